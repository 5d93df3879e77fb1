"""Signals that stop a run: the first one at the end of the iteration, a second one at once."""

from __future__ import annotations

import signal
import threading
from types import FrameType, TracebackType

import torch

from registry.core import distributed

POLL_ITERATIONS = 8
"""Several processes compare notes only every so many iterations, because it makes them wait for each other."""


class Interruption:
    """While it is entered, SIGINT and SIGTERM are noted. A second one raises KeyboardInterrupt."""

    def __init__(self, device: torch.device) -> None:
        self.device, self.signal = device, 0

    def __enter__(self) -> Interruption:
        caught = (signal.SIGINT, signal.SIGTERM) if threading.current_thread() is threading.main_thread() else ()
        self._previous = {s: signal.signal(s, self._note) for s in caught}
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.signal:
            raise KeyboardInterrupt
        self.signal = number

    def requested(self, iterations: int) -> bool:
        """Whether any process got a signal; all processes must ask after the same iteration."""
        if distributed.world_size() == 1:
            return bool(self.signal)
        return iterations % POLL_ITERATIONS == 0 and distributed.any_(bool(self.signal), self.device)

    @property
    def code(self) -> int:
        """The exit code for the signal; SIGINT's for a process that was not signalled itself."""
        return 128 + (self.signal or signal.SIGINT)
