"""How many threads torch computes with on the processor."""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Iterator
from dataclasses import dataclass

import torch

from registry.core import distributed
from registry.show.journal import Journal

TRIES = 3
"""Iterations with each number."""
MARGIN = 0.95
"""One thread must be faster than this share of the time that all take: it leaves the other cores to others, and is not chosen by
chance."""


@dataclass
class Threads:
    """The number that a run computes with: the one that was `asked` for, or `chosen`, here or before it was interrupted."""

    asked: int | None
    chosen: int | None = None


def is_free(device: torch.device) -> bool:
    """Whether the number of threads is for the run to choose."""
    return device.type == "cpu" and torch.get_num_threads() > 1 and "OMP_NUM_THREADS" not in os.environ


def with_known_threads(threads: Threads, device: torch.device) -> None:
    """Compute with the number that was asked for, or chosen before the run was interrupted, if there is one."""
    if threads.asked is not None:
        torch.set_num_threads(threads.asked)
    elif threads.chosen is not None and is_free(device):
        torch.set_num_threads(threads.chosen)


def with_fastest_threads(iterations: Iterator[None], threads: Threads, device: torch.device, journal: Journal) -> Iterator[None]:
    """Go through the iterations with so many threads. If the number is open, the first few try one and all, and the others take the
    faster: beside other work two threads can be slower than one, since each waits for the other.

    What OMP_NUM_THREADS says is heeded. The number changes how sums are rounded, so a fixed one gives the same numbers again.
    """
    with_known_threads(threads, device)
    most = torch.get_num_threads()
    if distributed.from_rank0(is_free(device) and threads.asked is None and threads.chosen is None):
        seconds: dict[int, list[float]] = {most: [], 1: []}
        for i, number in enumerate((most, *[most, 1] * TRIES)):
            torch.set_num_threads(number)
            start = time.monotonic()
            if next(iterations, iterations) is iterations:  # the run is over
                return
            if i:  # the first prepares much
                seconds[number].append(time.monotonic() - start)
            yield
        one, all_ = distributed.from_rank0([statistics.median(seconds[number]) for number in (1, most)])
        threads.chosen = 1 if one < MARGIN * all_ else most
        torch.set_num_threads(threads.chosen)
        times = f"an iteration takes {one:.2g} s with one thread and {all_:.2g} s with {most}"
        journal.log(f"{times}: going on with {'one' if threads.chosen == 1 else most}; the setting threads fixes the number")
    yield from iterations
