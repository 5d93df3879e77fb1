"""A run's numbers and pictures, given to where people look at them: TensorBoard, Weights & Biases, or a plugin's."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from registry.core.contracts import Tracker
from registry.core.interruption import leave_if_copied
from registry.core.surroundings import surroundings_restored
from registry.core.text import shown
from registry.recipe.resolved import Choice
from registry.show.journal import Journal


class Trackers:
    """The trackers of a run. One that fails is left out from then on, and the log says so: it is no reason to stop."""

    def __init__(self, chosen: Sequence[tuple[Choice, Tracker]], journal: Journal) -> None:
        self.chosen, self.journal = list(chosen), journal

    def begin(self, folder: Path, recipe: Mapping[str, Any], nimg: int) -> None:
        self._each(lambda tracker: tracker.begin(folder, copy.deepcopy(dict(recipe)), nimg))

    def line(self, nimg: int, entry: Mapping[str, Any]) -> None:
        """A line of the run's statistics, or of a metric."""
        if values := numbers(entry):
            self._each(lambda tracker: tracker.numbers(nimg, dict(values)))

    def picture(self, nimg: int, path: Path) -> None:
        """A picture of the run's folder. Of fakes_000012.png the name is fakes."""
        name = path.stem.partition("_")[0]
        self._each(lambda tracker: tracker.picture(nimg, name, path))

    def end(self) -> None:
        self._each(lambda tracker: tracker.end())
        self.chosen.clear()

    def _each(self, tell: Callable[[Tracker], object]) -> None:
        for choice, tracker in list(self.chosen):
            try:
                with surroundings_restored():
                    tell(tracker)
                leave_if_copied()
            except KeyboardInterrupt:
                raise
            except BaseException as error:  # a stranger's code
                leave_if_copied(error)
                self.chosen.remove((choice, tracker))
                reason = f"{type(error).__name__}: {shown(error, 200)}"
                self.journal.log(f"WARNING {choice.who} has failed ({reason}); the run goes on without it")


def numbers(entry: Mapping[str, Any]) -> dict[str, float]:
    """The numbers in a line: of statistics the means, without those that say how far the run is; of a metric its columns."""
    found = {key: float(value["mean"]) for key, value in entry.items() if isinstance(value, Mapping) and "mean" in value}
    found |= {f"Metric/{column}": float(value) for column, value in entry.get("results", {}).items()}
    return {name: value for name, value in found.items() if not name.startswith("Progress/")}
