"""Cells in parallel on this machine."""

from __future__ import annotations

import os
import signal
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import FrameType, TracebackType

from registry.core.errors import Interrupted
from registry.core.interruption import heeded
from registry.study.attempts import Attempt, Leftover, begin, is_running
from registry.study.cells import FINAL, Cell, Status, record, status
from registry.study.machine import cores, gpus
from registry.study.progress import Progress

POLL_SECONDS = 0.2


class Signals:
    """While it is entered, signals that ask the study to stop are counted instead of ending it."""

    def __enter__(self) -> Signals:
        self.number, self.waiting = 0, 0
        self._previous = {s: signal.signal(s, self._note) for s in heeded()}
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.number = self.number or number
        self.waiting += 1

    def new(self) -> bool:
        """Whether a signal came since the last call."""
        self.waiting, came = 0, self.waiting > 0
        return came


def run_local(cells: Sequence[Cell], jobs: int, progress: Progress) -> None:
    """Run cells, `jobs` at a time, until all have a result. Raises Interrupted after a signal, when the runs have stopped.

    The first signal makes the runs save their states and stop, a second one stops them at once.
    """
    left = [cell for cell in cells if is_running(cell.folder)]
    running: dict[int, tuple[Cell, Attempt | Leftover]] = {slot: (cell, Leftover(cell.folder)) for slot, cell in enumerate(left)}
    waiting = deque(cell for cell in cells if cell not in left)
    with Signals() as signals, progress, stopped_on_error(running):
        for cell in left:
            progress.started(cell)
        while waiting or running:
            free = [slot for slot in range(jobs) if slot not in running]
            while waiting and free and len(running) < jobs:
                cell, slot = waiting.popleft(), free.pop(0)
                running[slot] = (cell, start(cell, slot, jobs))
                progress.started(cell)
            time.sleep(POLL_SECONDS)
            for slot, (cell, attempt) in list(running.items()):
                if not attempt.poll():
                    del running[slot]
                    if isinstance(attempt, Leftover) and status(cell)[0] is Status.UNFINISHED and not signals.number:
                        waiting.append(cell)
                    progress.ended(cell)
            progress.update()
            if signals.new():
                waiting.clear()
                progress.stopping([cell for cell, _ in running.values()])
                for _, attempt in running.values():
                    attempt.signal(signal.SIGINT)
    if signals.number:
        done = sum(status(cell)[0] in FINAL for cell in progress.cells)
        text = f"interrupted with {done} of {len(progress.cells)} cells done; the same command goes on from there"
        raise Interrupted(text, 128 + signals.number)


@contextmanager
def stopped_on_error(running: Mapping[int, tuple[Cell, Attempt | Leftover]]) -> Iterator[None]:
    """If an error ends the block, the processes that are running are asked to stop."""
    try:
        yield
    except BaseException:
        for _, attempt in running.values():
            attempt.signal(signal.SIGINT)
        raise


def start(cell: Cell, slot: int, jobs: int) -> Attempt:
    """Start a cell's run, or continue it. Raises UserError."""
    record(cell)
    words = cell.again if cell.run_folder() else cell.command
    return begin(
        cell.folder, list(words), environment(slot, jobs, cores(), gpus(), os.environ.get("OMP_NUM_THREADS")), cell.sources
    )


def environment(slot: int, jobs: int, cores: int, gpus: Sequence[str], threads: str | None) -> dict[str, str]:
    """What a job in a slot has of this machine: an equal share of the cores (unless set already), and one GPU, if there are any.

    More threads than cores would make all jobs slower than one after the other.
    """
    share = {"OMP_NUM_THREADS": threads or str(max(1, cores // jobs))}
    return share | ({"CUDA_VISIBLE_DEVICES": gpus[slot % len(gpus)]} if gpus else {})
