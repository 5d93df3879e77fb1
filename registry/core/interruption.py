"""Signals that ask a run to stop. They are noted when they come, and answered where the work can be left."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType, FunctionType, MethodType, TracebackType

from registry.core.errors import Interrupted

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP)
"""Ctrl-C; the end of a job; what schedulers send some time before that; a terminal that is closed."""

OURS = __name__.partition(".")[0]
"""The package whose handlers of signals a copy of the process does not keep."""

WRITER = "distill-writer"
"""The name of a thread that works in the background, on a file or for a server: Python's shutdown must not come while there is
one."""


def heeded() -> tuple[signal.Signals, ...]:
    """Those of the signals that are answered: not that of a closed terminal if nohup has it ignored."""
    return tuple(s for s in SIGNALS if s != signal.SIGHUP or signal.getsignal(s) != signal.SIG_IGN)


_entered: list[Interruption] = []
_droppable: list[tuple[str, FrameType]] = []
"""What goes on inside of `dropped_at_a_signal`, if anything does, and whose block that is."""


class Interruption:
    """While it is entered, signals are noted instead of ending the process. A second Ctrl-C raises KeyboardInterrupt at once."""

    def __enter__(self) -> Interruption:
        self.number = 0
        self._to_leave = False  # Ctrl-C has come
        here = threading.current_thread() is threading.main_thread()
        caught = heeded() if here else ()
        self._previous = {s: signal.signal(s, self._note) for s in caught}
        _entered.append(self)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self in _entered:  # not in a copy of the process
            _entered.remove(self)
            for number, handler in self._previous.items():
                signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT and any(entered._to_leave for entered in _entered):
            raise KeyboardInterrupt
        self._to_leave |= number == signal.SIGINT
        self.number = self.number or number
        for when, block in _droppable:
            if is_within(frame, block):
                raise Interrupted(f"interrupted {when}", 128 + self.number)


@contextmanager
def dropped_at_a_signal(when: str) -> Iterator[None]:
    """Inside of an Interruption a signal raises Interrupted at once: for what takes long, is not ours to divide, and may be left
    anywhere, as a metric's arithmetic."""
    stop_if_signalled(when)
    _droppable.append((when, sys._getframe(2)))  # beyond this function's and contextlib's
    try:
        yield
    finally:
        _droppable.clear()
    stop_if_signalled(when)  # it came during an import, or was caught


def is_within(frame: FrameType | None, block: FrameType) -> bool:
    """Whether a frame was called by another one, and no import is between them: no exception may be raised in the block once it is
    left, nor in a module that is being loaded."""
    while frame is not None and frame is not block and not loads_a_module(frame):
        frame = frame.f_back
    return frame is block


def is_importing(frame: FrameType | None) -> bool:
    """Whether a module is being loaded: it may take an exception for an error of another kind."""
    while frame is not None and not loads_a_module(frame):
        frame = frame.f_back
    return frame is not None


def loads_a_module(frame: FrameType) -> bool:
    """Whether this is where the import system loads one. PIL imports from itself for each image: that passes through importlib,
    but loads nothing."""
    return frame.f_code.co_filename.startswith("<frozen importlib") and frame.f_code.co_name == "_find_and_load"


def forget_in_a_child() -> None:
    """A copy of this process, such as a worker of a plugin's pool, ends at the SIGTERM that the pool sends. The other signals,
    which a terminal or a scheduler sends to all processes, are for this process to answer."""
    _entered.clear()
    _droppable.clear()
    for number in SIGNALS:
        handler = signal.getsignal(number)
        if isinstance(handler, FunctionType | MethodType) and handler.__module__.partition(".")[0] == OURS:
            signal.signal(number, signal.SIG_DFL if number == signal.SIGTERM else signal.SIG_IGN)


os.register_at_fork(after_in_child=forget_in_a_child)


@contextmanager
def undisturbed() -> Iterator[None]:
    """Signals are answered afterwards: torch's writer of files is C++ that calls Python, and no exception may leave it."""
    came: list[int] = []

    def note(number: int, frame: FrameType | None) -> None:
        came.append(number)

    here = threading.current_thread() is threading.main_thread()
    handlers = {s: handler for s in (heeded() if here else ()) if callable(handler := signal.getsignal(s))}
    for each in handlers:
        signal.signal(each, note)
    try:
        yield
    finally:
        for each, handler in handlers.items():
            signal.signal(each, handler)
        for number in came:
            signal.raise_signal(number)


def signalled() -> int:
    """The number of the first signal that this process was sent inside of an Interruption; 0 if there was none."""
    return next((entered.number for entered in _entered if entered.number), 0)


def stop_if_signalled(when: str) -> None:
    """Raises Interrupted if this process was sent a signal inside of an Interruption."""
    if number := signalled():
        raise Interrupted(f"interrupted {when}", 128 + number)
