"""A run in TensorBoard: event files in the run's folder."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from registry.api import Config, Tracker, UserError
from registry.core.version import install
from registry.recipe.resolved import dumps

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter


class TensorBoard(Tracker):
    """Numbers, grids and the recipe in RUN/tensorboard: `tensorboard --logdir runs` shows all runs. Steps are images."""

    writer: SummaryWriter

    def begin(self, folder: Path, recipe: Mapping[str, Any], nimg: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        # Of events after the state that the run goes on from, TensorBoard shows none.
        self.writer = SummaryWriter(str(folder / "tensorboard"), purge_step=nimg + 1 if nimg else None)
        text = dumps(dict(recipe))
        self.writer.add_text("recipe", "\n".join(f"    {line}" for line in text.splitlines()), nimg)

    def numbers(self, nimg: int, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            self.writer.add_scalar(name, value, nimg)
        self.writer.flush()  # a run may be killed

    def picture(self, nimg: int, name: str, path: Path) -> None:
        with Image.open(path, formats=("PNG",)) as picture:
            self.writer.add_image(name, np.asarray(picture.convert("RGB")), nimg, dataformats="HWC")

    def end(self) -> None:
        self.writer.close()


def build(config: Config) -> TensorBoard:
    """Raises UserError if tensorboard is not installed."""
    try:
        import tensorboard  # noqa: F401
    except ImportError:
        raise UserError(f"TensorBoard is not installed: {install('tensorboard')}") from None
    return TensorBoard()
