"""The kinds of paths in settings, and the settings of a teacher read from a file. Does not import torch.

A path is looked up when the settings are validated: as typed, then beside the recipe, then among the shipped files.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, Field, ValidationInfo

from registry.core.settings import Config
from registry.files import locate
from registry.files.kinds import NOT_A_TEACHER, named_like_a_generator


def _looked_up(look_up: Callable[[str, Path | None], str]) -> AfterValidator:
    """Validates a path with a function of `locate`, which also looks beside the recipe."""

    def validate(value: str, info: ValidationInfo) -> str:
        folder = (info.context or {}).get("folder")
        return look_up(value, Path(folder) if folder else None)

    return AfterValidator(validate)


Source = Annotated[str, _looked_up(locate.locate)]
"""A network's file: a path (as typed, or relative to the recipe), a URL, or the name of a shipped or published network."""

DataSource = Annotated[str, _looked_up(locate.locate_data)]
"""Images: `digits`, or a folder or ZIP (as typed, or relative to the recipe)."""

Reference = Annotated[str, _looked_up(locate.locate_reference)]
"""Images, or statistics of their Inception features: an .npz file (as typed, or relative to the recipe) or its URL."""

Features = Annotated[str, _looked_up(locate.locate_features)]
"""A feature network: `inception`, a shipped or trained classifier, or a TorchScript file; paths as for a `Source`."""

File = Annotated[str, _looked_up(locate.locate_file)]
"""Any file: a path (as typed, or relative to the recipe) or a URL."""


class FileTeacherConfig(Config):
    """A teacher's file and the settings that override it. For teachers of any D."""

    source: Source = Field(description="the teacher's file: a path, a URL, or the name of a shipped or published teacher")
    key: str | None = Field(None, description="which network in the file, e.g. ema; default: an average if it has one")
    kind: Literal["denoiser"] | None = Field(
        None,
        description="denoiser, for the file of another project that looks like a generator's; takes it as one without a warning",
    )
    sha256: str | None = Field(None, pattern="^[0-9a-fA-F]{64}$", description="the file's hash, checked when it is downloaded")
    dropout: float | None = Field(
        None, ge=0, lt=1, description="dropout of the student's and the generator's networks; default: the file's"
    )
    fp16: bool | None = Field(None, description="run all three networks in float16 on CUDA; default: as in the file")

    def known_D(self) -> float | None:
        """D of a published teacher, known from its short name; None for others."""
        found = locate.published(self.source)
        return found.D if found else None

    def remark(self) -> str | None:
        """A file with a generator's name is no teacher; it is not opened for this."""
        why = named_like_a_generator(self.source, self.key) if self.kind is None else None
        return why and f"source = {self.source!r} looks like a generator, because {why}; {NOT_A_TEACHER}"
