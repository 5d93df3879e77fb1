"""Kinds of paths as settings, and the settings of a teacher that is read from a file. Imports no torch.

A path is looked up when the settings are validated: as typed, then beside the recipe, then among the shipped files.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator, Field, ValidationInfo

from registry.core.settings import Config
from registry.files import locate


def _looked_up(look_up: Callable[[str, Path | None], str]) -> AfterValidator:
    """Validates a path with one of the functions of `locate`, beside the recipe too."""

    def validate(value: str, info: ValidationInfo) -> str:
        folder = (info.context or {}).get("folder")
        return look_up(value, Path(folder) if folder else None)

    return AfterValidator(validate)


Source = Annotated[str, _looked_up(locate.locate)]
"""A network's file: a path (as typed, or relative to the recipe), a URL, the name of a shipped or published one."""

DataSource = Annotated[str, _looked_up(locate.locate_data)]
"""Images: `digits`, or a folder or ZIP (as typed, or relative to the recipe)."""

Reference = Annotated[str, _looked_up(locate.locate_reference)]
"""Images, or statistics of their Inception features: an .npz file (as typed, or relative to the recipe) or its URL."""

File = Annotated[str, _looked_up(locate.locate_file)]
"""Any file: a path (as typed, or relative to the recipe) or a URL."""


class FileTeacherConfig(Config):
    """A teacher's file, and what of it should be different; for teachers of any D."""

    source: Source = Field(description="the teacher's file: a path, a URL, or the name of a shipped or published teacher")
    key: str | None = Field(None, description="which network of the file, e.g. ema; by default averages come first")
    sha256: str | None = Field(None, pattern="^[0-9a-fA-F]{64}$", description="hash of the file, checked when it is downloaded")
    dropout: float | None = Field(None, ge=0, lt=1, description="of the student's and the generator's network; default: the file's")
    fp16: bool | None = Field(None, description="run all three networks in float16 on CUDA; default: as the file has it")

    def known_D(self) -> float | None:
        """D of a published teacher, which its short name tells."""
        found = locate.published(self.source)
        return found.D if found else None
