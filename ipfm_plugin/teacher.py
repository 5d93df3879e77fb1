"""PFGM++ teachers from files."""

from __future__ import annotations

from ipfm_plugin import PFGMPPConfig
from registry.api import SettingError, Teacher, teacher_from_file


def build(config: PFGMPPConfig) -> Teacher:
    """The teacher; a file that says nothing of D is a diffusion model's, D = inf. Raises SettingError if D is not the file's."""
    teacher = teacher_from_file(config.source, config.key, config.sha256, config.dropout, config.fp16, config.kind)
    if config.D is not None and config.D != teacher.D:
        raise SettingError("D", f"{config.source} was trained with D = {teacher.D:g}", config.D)
    return teacher
