"""What a run tells: the run folder, the log, stats.jsonl, and rich progress on a terminal (rank 0 alone)."""

from __future__ import annotations

import io
import json
import re
import resource
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from registry import distributed
from registry.api import UserError
from registry.files import write_atomically


def new_run_folder(outdir: Path, description: str) -> Path:
    """Make {id:05d}-{description} under outdir, id = highest existing + 1 (EDM). Raises UserError."""
    try:
        outdir.mkdir(parents=True, exist_ok=True)
        while True:
            ids = [int(m[1]) for p in outdir.iterdir() if (m := re.match(r"(\d{5})-", p.name))]
            folder = outdir / f"{max(ids, default=-1) + 1:05d}-{description}"
            try:
                folder.mkdir()
                return folder
            except FileExistsError:
                continue
    except OSError as error:
        raise UserError(f"[log] outdir = {str(outdir)!r}: cannot be written: {error.strerror}") from None


def check_outdir(outdir: Path, setting: str = "[log] outdir =") -> None:
    """Raise UserError if no folder could be made there, naming the setting; leaves nothing behind."""
    try:
        existing = next(p for p in (outdir, *outdir.absolute().parents) if p.exists())
        if not existing.is_dir():
            raise UserError(f"{setting} {str(outdir)!r}: {existing} is a file, not a folder")
        probe = existing / f".distill-{time.time_ns()}"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise UserError(f"{setting} {str(outdir)!r}: cannot be written: {error.strerror}") from None


class Journal:
    """The one place that prints and logs. On ranks other than 0 it does nothing."""

    def __init__(self, console: Console | None = None) -> None:
        self.console = console or Console(highlight=False, soft_wrap=True)
        self.folder: Path | None = None
        self.active = distributed.rank() == 0
        self._progress: Progress | None = None

    def open(self, folder: Path) -> None:
        """From now on, also keep log.txt and stats.jsonl in this folder."""
        self.folder = folder

    def log(self, text: str) -> None:
        """One line for people: printed, and kept in log.txt."""
        if not self.active:
            return
        self.console.print(text, markup=False)
        self._append("log.txt", text)

    def table(self, table: Table, name: str) -> None:
        """A table: printed, and kept as text."""
        if not self.active:
            return
        self.console.print(table)
        if self.folder:
            plain = Console(width=100, color_system=None, record=True, file=io.StringIO())
            plain.print(table)
            write_atomically(self.folder / name, plain.export_text().encode())

    def stats(self, entry: dict[str, Any], name: str = "stats.jsonl") -> None:
        """One JSON object per line, as EDM writes them."""
        self._append(name, json.dumps(entry | {"timestamp": time.time()}))

    def read_stats(self, name: str = "stats.jsonl") -> list[dict[str, Any]]:
        """All lines written so far, of earlier parts of a resumed run too."""
        if not self.folder or not (self.folder / name).is_file():
            return []
        return [entry for _, entry in _lines(self.folder / name)]

    def forget_after(self, kimg: float) -> None:
        """Drop lines of stats that a resumed run will write again."""
        if not self.active or not self.folder:
            return
        for path in self.folder.glob("*.jsonl"):
            kept = "".join(line + "\n" for line, entry in _lines(path) if _kimg(entry) <= kimg)
            if kept != path.read_text():
                write_atomically(path, kept.encode())

    @contextmanager
    def progress(self, description: str, total: float) -> Iterator[Bar]:
        """A bar with ETA on a terminal; when piped nothing, since ticks are lines already."""
        if not (self.active and self.console.is_terminal):
            yield Bar(None, None)
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
        with Progress(*columns, console=self.console, transient=True) as progress:
            self._progress = progress
            try:
                yield Bar(progress, progress.add_task(description, total=total, note=""))
            finally:
                self._progress = None

    def _append(self, name: str, line: str) -> None:
        if self.active and self.folder:
            with open(self.folder / name, "a", encoding="utf-8") as file:
                file.write(line + "\n")


class Bar:
    """A running bar, or nothing."""

    def __init__(self, progress: Progress | None, task: TaskID | None) -> None:
        self._progress, self._task = progress, task

    def at(self, done: float, note: str = "") -> None:
        """Move to `done`; `note` stands behind the bar."""
        if self._progress is not None and self._task is not None:
            self._progress.update(self._task, completed=done, note=note)


def _lines(path: Path) -> list[tuple[str, dict[str, Any]]]:
    """The lines of a JSON-lines file with their content; one that was cut off when a run was killed is left out."""
    found = []
    for line in path.read_text().splitlines():
        try:
            found.append((line, json.loads(line)))
        except ValueError:
            continue
    return found


def _kimg(entry: dict[str, Any]) -> float:
    value = entry.get("Progress/kimg", entry.get("kimg", 0))
    return float(value["mean"] if isinstance(value, dict) else value)


def memory_mb(device: torch.device) -> float:
    """Peak memory of the device, or of the process on the CPU, in MiB."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)


def duration(seconds: float) -> str:
    """1h 02m 03s, 2m 03s, 3s."""
    s = round(seconds)
    if s >= 3600:
        return f"{s // 3600}h {s // 60 % 60:02d}m {s % 60:02d}s"
    return f"{s // 60}m {s % 60:02d}s" if s >= 60 else f"{s}s"
