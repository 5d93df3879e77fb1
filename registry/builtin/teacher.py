"""EDM's teachers, from files."""

from __future__ import annotations

from registry.api import Teacher, teacher_from_file
from registry.builtin import EDMConfig


def build(config: EDMConfig) -> Teacher:
    """The denoiser of the file; the host refuses one of finite D, as the settings say."""
    return teacher_from_file(**dict(config))
