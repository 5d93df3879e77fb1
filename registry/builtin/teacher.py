"""EDM's teachers, from files."""

from __future__ import annotations

from registry.api import Teacher, teacher_from_file
from registry.builtin import EDMConfig


def build(config: EDMConfig) -> Teacher:
    """The denoiser in the file. The host refuses finite D, using `EDMConfig.misfit`. Raises UserError."""
    return teacher_from_file(**dict(config))
