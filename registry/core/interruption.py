"""Signals that ask a run to stop. They are noted when they come, and answered where the work can be left."""

from __future__ import annotations

import _thread
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType, FunctionType, MethodType, TracebackType
from typing import NoReturn

from registry.core.errors import Interrupted

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2, signal.SIGHUP)
"""Ctrl-C; the end of a job; what schedulers send some time before that (for submitit the second); a terminal that is closed."""

OURS = __name__.partition(".")[0]
"""The package whose handlers of signals a copy of the process does not keep."""

WRITER = "distill-writer"
"""The name of a thread that works in the background, on a file or for a server: Python's shutdown must not come while there is
one."""


def heeded() -> tuple[signal.Signals, ...]:
    """Those of the signals that are answered: not that of a closed terminal if nohup has it ignored, and not that of submitit if
    this is its own process, in which a caller runs us."""
    others = {signal.SIGHUP} if signal.getsignal(signal.SIGHUP) == signal.SIG_IGN else set()
    if not (is_ours(handler := signal.getsignal(signal.SIGUSR2)) or handler == signal.SIG_DFL):
        others |= {signal.SIGUSR2}
    return tuple(s for s in SIGNALS if s not in others)


def is_ours(handler: object) -> bool:
    """Whether what answers a signal is this package's."""
    return isinstance(handler, FunctionType | MethodType) and handler.__module__.partition(".")[0] == OURS


AGAIN = 2.0
"""Seconds after which a block is left that could not be left when the signal came."""


@dataclass(eq=False)
class Block:
    """One of `dropped_at_a_signal`: what goes on in it, whose frame it is in, and whether it was told to end."""

    when: str
    frame: FrameType
    told: bool = False


_entered: list[Interruption] = []
_droppable: list[Block] = []
"""The innermost block, if there is one."""
_asking = threading.Lock()
"""Held while a block is asked again, so that the signal comes while it is noted."""
_forking = threading.local()
_copied = False
"""Whether this is a copy of a process in which an Interruption was entered."""


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
            with _asking:
                _droppable.clear()
            _entered.remove(self)
            for number, handler in self._previous.items():
                signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT and any(entered._to_leave for entered in _entered) and not is_forking(frame):
            raise KeyboardInterrupt
        self._to_leave |= number == signal.SIGINT
        self.number = self.number or number
        for block in _droppable:
            if not block.told:
                block.told = True
                _thread.start_new_thread(ask_again, (block,))  # threading's own has locks, which this may have come between
            if is_within(frame, block.frame):
                raise Interrupted(f"interrupted {block.when}", 128 + self.number)


def ask_again(block: Block) -> None:
    """Signal a block until it is left: an import may have been under way, or the block may catch what is raised, or wait for its
    workers before it lets it pass."""
    while True:
        time.sleep(AGAIN)
        with _asking:
            handler = signal.getsignal(signal.SIGTERM)
            noted = isinstance(handler, MethodType) and handler.__self__ in _entered
            if block not in _droppable:
                return
            if not noted:  # the block has a handler of its own for a while
                continue
            signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGTERM)


@contextmanager
def dropped_at_a_signal(when: str, within: FrameType | None = None) -> Iterator[None]:
    """Inside of an Interruption a signal raises Interrupted at once: for what takes long, is not ours to divide, and may be left
    anywhere, as a metric's arithmetic. What else is raised after a signal is its consequence: workers have ended, perhaps.
    `within`: the frame whose block it is, if that is not the caller's."""
    stop_if_signalled(when)
    here = os.getpid()
    _droppable.append(Block(when, within or sys._getframe(2)))  # beyond this function's and contextlib's
    try:
        yield
    except BaseException as error:
        if os.getpid() != here:
            leave(error)
        _droppable.clear()
        if isinstance(error, Exception):
            stop_if_signalled(when)
        raise
    finally:
        _droppable.clear()
    if os.getpid() != here:
        leave()
    stop_if_signalled(when)  # it came during an import, or was caught


def is_within(frame: FrameType | None, block: FrameType) -> bool:
    """Whether a frame was called by another one, and no import is between them, nor a fork: no exception may be raised in the block
    once it is left, nor in a module that is being loaded."""
    while frame is not None and frame is not block and not loads_a_module(frame) and not is_forking(frame):
        frame = frame.f_back
    return frame is block


def is_forking(frame: FrameType | None) -> bool:
    """Whether this is what is called at a fork, which no exception leaves."""
    return frame is not None and frame.f_code in (keep_signals_waiting.__code__, let_signals_come.__code__)


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
    which a terminal or a scheduler sends to all processes, are for this process to answer. (They are not ignored: what the copy
    starts would ignore them, too.)"""
    global _copied, _asking
    _asking = threading.Lock()  # whoever held it is not here
    _copied = _copied or bool(_entered)
    _entered.clear()
    _droppable.clear()
    for number in SIGNALS:
        if is_ours(signal.getsignal(number)):
            signal.signal(number, signal.SIG_DFL if number == signal.SIGTERM else left_to_the_parent)
    let_signals_come()


def leave_if_copied(error: BaseException | None = None) -> None:
    """A copy that a plugin has made, and that comes back out of the plugin's code, by an `error` or without one, ends here: it
    would go on as a second run, and write into the same files. A run that a copy has begun itself is its own."""
    if _copied and not _entered:
        leave(error)


def leave(error: BaseException | None = None) -> NoReturn:
    """End this copy of the process at once."""
    if isinstance(error, SystemExit) and isinstance(error.code, int | None):
        os._exit(error.code or 0)
    how = "came back out of its code, and was ended" if error is None else f"has ended by {type(error).__name__}"
    os.write(2, f"distill: a copy of this process, made by a plugin, {how}\n".encode())
    os._exit(1)


def left_to_the_parent(number: int, frame: FrameType | None) -> None:
    """Do nothing."""


def keep_signals_waiting() -> None:
    """Until a copy of this process has forgotten the handlers: it would note a signal, and not end."""
    _forking.before = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS) if _entered else None


def let_signals_come() -> None:
    before: set[signal.Signals] | None = _forking.before
    if before is not None:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


os.register_at_fork(before=keep_signals_waiting, after_in_child=forget_in_a_child, after_in_parent=let_signals_come)


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
