"""When something is due. Ticks are counted in images, so a resumed run has them at the same places."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from registry.recipe.tables import LogConfig


class Due(NamedTuple):
    """What is due after an iteration, and whether that was the first of a part of the run, or the last of all."""

    tick: bool
    snapshot: bool
    state: bool
    begin: bool
    end: bool


@dataclass(frozen=True)
class Schedule:
    """The ticks of [log], for a run of `total` images in batches of `batch`. At the end everything is due."""

    log: LogConfig
    batch: int
    total: int
    milestones: tuple[int, ...] = ()
    """Numbers of images at which there is a tick and a snapshot in any case."""

    def due(self, nimg: int) -> Due:
        """What is due now that `nimg` images have been seen."""
        end = nimg >= self.total
        tick, snapshot, state = (end or self.crossed(nimg, n) for n in (1, self.log.snapshot_ticks, self.log.state_ticks))
        milestone = nimg in self.milestones
        begin = nimg - self.batch in (0, *self.milestones)
        return Due(tick or milestone, snapshot or milestone, state, begin, end)

    def crossed(self, nimg: int, ticks: int) -> bool:
        """Whether the last batch went over a multiple of that many ticks."""
        step = self.log.tick_kimg * 1000 * ticks
        return int(nimg / step) > int((nimg - self.batch) / step)
