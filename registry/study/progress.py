"""What is seen while cells run: a line for each that ends and, on a terminal, bars for those that run."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import suppress
from types import TracebackType

from rich import progress as rich
from rich.console import Console

from registry.show.journal import Journal, duration
from registry.study.cells import FINAL, Cell, kimg, status


class Progress:
    """The state of a study's cells, for people."""

    def __init__(self, cells: Sequence[Cell], journal: Journal) -> None:
        self.cells, self.journal = cells, journal
        self.ended_before = sum(status(cell)[0] in FINAL for cell in cells)
        self.ended_now = 0
        self._running: dict[str, tuple[Cell, rich.TaskID, float]] = {}
        self._began, self._last = time.monotonic(), 0.0
        console = journal.console if journal.console.is_terminal else Console(quiet=True)
        columns = (rich.TextColumn("{task.description}"), rich.BarColumn(), rich.TextColumn("{task.fields[note]}"))
        self._bars = rich.Progress(*columns, console=console, transient=True)
        self._all = self._bars.add_task("cells", total=len(cells), completed=self.ended_before, note="")

    def __enter__(self) -> Progress:
        self._bars.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        with suppress(OSError):  # the terminal is gone
            self._bars.stop()

    def started(self, cell: Cell) -> None:
        """A cell's run has begun."""
        task = self._bars.add_task(f"  {cell.name}", total=cell.total_kimg, note="")
        self._running[cell.name] = (cell, task, kimg(cell))

    def ended(self, cell: Cell) -> None:
        """A cell's run has ended, well or not."""
        _, task, _ = self._running.pop(cell.name)
        self._bars.remove_task(task)
        found, reason = status(cell)
        self.ended_now += found in FINAL
        spent = duration(cell.attempt().get("seconds", 0.0))
        count = f"{self.ended_before + self.ended_now} of {len(self.cells)}"
        self.journal.log(f"{count}: {cell.name}: {found}{f' ({reason})' if reason else ''}, {spent}")

    def stopping(self, cells: Sequence[Cell]) -> None:
        """The study was asked to stop."""
        if cells:
            self.journal.log(f"stopping; waiting for {', '.join(c.name for c in cells)} to save their states (once more: at once)")

    def update(self) -> None:
        """Move the bars, at most once a second."""
        if self._bars.console.quiet or time.monotonic() - self._last < 1:
            return
        self._last, parts, now = time.monotonic(), 0.0, 0.0
        for cell, task, before in self._running.values():
            seen = kimg(cell)
            parts += seen / cell.total_kimg
            now += (seen - before) / cell.total_kimg
            self._bars.update(task, completed=seen, note=f"{seen:.4g} of {cell.total_kimg:.4g} kimg")
        ended = self.ended_before + self.ended_now
        speed = (self.ended_now + now) / (time.monotonic() - self._began)
        eta = f", about {duration((len(self.cells) - ended - parts) / speed)} left" if speed else ""
        self._bars.update(self._all, completed=ended + parts, note=f"{ended} of {len(self.cells)}{eta}")
