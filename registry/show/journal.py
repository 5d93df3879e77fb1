"""What people see during a run: lines, which also go to a log, and progress bars on a terminal. Only on rank 0."""

from __future__ import annotations

import io
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from registry.core import distributed
from registry.core.atomic import write_atomically
from registry.core.text import printable

LINE_SECONDS = 20
"""Where there is no terminal, long work says so often how far it is."""


class Journal:
    """Prints and logs everything. On ranks other than 0 it does nothing."""

    def __init__(self, console: Console | None = None) -> None:
        self.console = console or Terminal(highlight=False, soft_wrap=True)
        self.folder: Path | None = None
        self.active = distributed.rank() == 0
        self._progress: Progress | None = None
        self._complained = False

    def open(self, folder: Path) -> None:
        """From now on, also write lines to log.txt and tables as text in this folder."""
        self.folder = folder
        if self.active and half_a_line(folder / "log.txt"):
            self._append("\n")

    def log(self, text: str) -> None:
        """Print a line and add it to log.txt."""
        if not self.active:
            return
        text = printable(text)
        self._print(text, markup=False)
        self._append(text + "\n")

    def _append(self, text: str) -> None:
        if self.folder:
            try:
                with open(self.folder / "log.txt", "a", encoding="utf-8") as file:
                    file.write(text)
            except OSError as error:
                self.complain(self.folder / "log.txt", error)

    def complain(self, path: Path, error: OSError) -> None:
        """Say once that a line cannot be written. That is no reason to stop a run."""
        if not self._complained:
            self._complained = True
            self._print(f"WARNING {path}: cannot be written: {error.strerror}; the run goes on", markup=False)

    def _print(self, what: str | Table, markup: bool = True) -> None:
        """Print a line or a table. A run goes on without, if the disk is full or whoever read the lines is gone."""
        try:
            self.console.print(what, markup=markup)
        except BrokenPipeError:
            self.console = Console(quiet=True)
            discard_output()
            if self.folder is None:
                raise SystemExit(1) from None  # as of other commands whose output nobody reads
            self.log("WARNING nobody reads the output any more; the run goes on, and log.txt has every line")
        except OSError:
            self.console = Console(quiet=True)

    def table(self, table: Table, name: str) -> None:
        """Print a table and save it as text under `name`."""
        if not self.active:
            return
        self._print(table)
        if self.folder:
            plain = Console(width=200, color_system=None, record=True, file=io.StringIO())
            plain.print(table)
            write_atomically(self.folder / name, plain.export_text().encode())

    @contextmanager
    def progress(self, description: str, total: float = 1, lines: bool = True) -> Iterator[Bar | Lines]:
        """A bar with ETA on a terminal. Elsewhere a line now and then, unless the work prints `lines` of its own, as ticks do."""
        if not (self.active and self.console.is_terminal):
            yield Lines(self, description, total) if lines and self.active else Bar(None, None)
            return
        if self._progress is not None:  # a bar inside a bar
            task = self._progress.add_task(description, total=total, note="")
            yield Bar(self._progress, task)
            self._progress.remove_task(task)
            return
        columns = (
            TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(),
            TextColumn("eta"), TimeRemainingColumn(), TextColumn("{task.fields[note]}"),
        )  # fmt: skip
        self._progress = progress = Progress(*columns, console=self.console, transient=True)
        with suppress(OSError):  # the terminal may be gone, now or at the end, which must not take the place of what ends the work
            progress.start()
        try:
            yield Bar(progress, progress.add_task(description, total=total, note=""))
        finally:
            self._progress = None
            with suppress(OSError):
                progress.stop()

    @contextmanager
    def working(self, description: str) -> Iterator[None]:
        """Something that moves on a terminal while work goes on whose length is not known, such as reading a large file."""
        if not (self.active and self.console.is_terminal) or self._progress is not None:
            yield
            return
        with self.console.status(Text(description)):
            yield


class Terminal(Console):
    """rich's console, but for what it does when a pipe breaks: it ends the process without a word."""

    def on_broken_pipe(self) -> None:
        raise BrokenPipeError


def half_a_line(path: Path) -> bool:
    """Whether a file ends in the middle of a line, as one does whose writer was killed, or whose disk was full."""
    try:
        with open(path, "rb") as file:
            file.seek(-1, os.SEEK_END)
            return file.read() != b"\n"
    except OSError:  # there is none, or it is empty
        return False


def discard_output() -> None:
    """Send what is printed from now on nowhere, what Python still holds of it included."""
    with suppress(OSError, ValueError, AttributeError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


class Bar:
    """A running progress bar, or a stand-in that does nothing."""

    def __init__(self, progress: Progress | None, task: TaskID | None) -> None:
        self._progress, self._task = progress, task

    def at(self, done: float, note: str = "", total: float | None = None) -> None:
        """Move to `done`, of a `total` that was not known before, and show `note` after the bar."""
        if self._progress is not None and self._task is not None:
            self._progress.update(self._task, completed=done, note=note, total=total)


class Lines:
    """What stands for a bar where there is no terminal: a line now and then."""

    def __init__(self, journal: Journal, description: str, total: float) -> None:
        self.journal, self.description, self.total = journal, description, total
        self.start = self.said = time.monotonic()

    def at(self, done: float, note: str = "", total: float | None = None) -> None:
        """Say how far the work is, if nothing was said for a while."""
        now, self.total = time.monotonic(), total or self.total
        if now - self.said > LINE_SECONDS and 0 < done < self.total:
            self.said = now
            left = (now - self.start) / done * (self.total - done)
            self.journal.log(f"{self.description}: {done:g} of {self.total:g}, eta {duration(left)}")


def duration(seconds: float) -> str:
    """Seconds as text: 1h 02m 03s, 2m 03s, 3s."""
    s = round(seconds)
    if s >= 3600:
        return f"{s // 3600}h {s // 60 % 60:02d}m {s % 60:02d}s"
    return f"{s // 60}m {s % 60:02d}s" if s >= 60 else f"{s}s"
