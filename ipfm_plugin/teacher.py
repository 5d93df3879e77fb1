"""PFGM++ teachers from files."""

from __future__ import annotations

from ipfm_plugin import PFGMPPConfig
from registry.api import Teacher, UserError
from registry.builtin.teacher import teacher_from_file


def build(config: PFGMPPConfig) -> Teacher:
    """The teacher. Raises UserError if its file has another D; one that says nothing of D is a diffusion model's, D = inf."""
    teacher = teacher_from_file(config.source, config.key, config.sha256, config.dropout, config.fp16)
    if config.D is not None and config.D != teacher.D:
        raise UserError(f"{config.source}: was trained with D = {teacher.D:g}, but [teacher] D = {config.D:g}")
    return teacher
