"""How a run ends: its folder is given back, says why if it failed, and has a page that says so."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from registry.core import distributed
from registry.core.atomic import write_atomically
from registry.core.errors import Diverged, Interrupted, Lost, UserError
from registry.core.interruption import Interruption, leave_if_copied, signalled
from registry.core.text import shown
from registry.files.locate import ERROR
from registry.runs.folder import RunFolder
from registry.runs.outputs import draw_page
from registry.runs.states import states

MOST = 500
"""Characters of an error that are kept."""


@contextmanager
def interruptible(start: Callable[[], RunFolder]) -> Iterator[RunFolder]:
    """The folder that `start` opens, released at the end. Until then signals are noted, so that a folder is never left without a
    word; an interruption names the state that the run goes on from, if there is one. Any other error is left in error.txt."""
    with Interruption():
        folder = start()
        folder.remove(ERROR)
        try:
            with contained(), distributed.answered(nothing_else=False):  # split networks have messages of their own
                yield folder
        except Interrupted as stop:
            state = None if stop.state else newest(folder)
            end(folder)
            if state is None:
                raise
            raise Interrupted("interrupted; the state is kept", stop.code, str(state)) from None
        except Exception as error:
            number = 0 if isinstance(error, UserError | Diverged | Lost) else signalled()
            end(folder, None if number else error)
            if number:  # to all processes, perhaps, and a plugin's workers have ended
                kept = next(iter(states(folder.path)), None)
                left = "the last state is kept" if kept else "there is no state yet"
                what = f"interrupted, and then {type(error).__name__}: {shown(error, 200)}; {left}"
                raise Interrupted(what, 128 + number, str(kept) if kept else None) from error
            raise
        except BaseException:  # who leaves at once waits for nothing
            folder.release()
            raise
        end(folder)


@contextmanager
def contained() -> Iterator[None]:
    """No copy of this process that a plugin makes leaves this alive."""
    try:
        yield
    except BaseException as error:
        leave_if_copied(error)
        raise
    leave_if_copied()


def end(folder: RunFolder, error: Exception | None = None) -> None:
    """Give the folder back, with the page as it is now, and with why the run failed, if it did."""
    writes = folder.writes and folder.is_there()
    try:
        if writes and error is not None:  # before another run may go on here
            what = shown(error, MOST)
            if not isinstance(error, UserError | Diverged | Lost):
                what = f"{type(error).__name__}: {what}"
            with suppress(OSError, UserError):  # the error itself is told anyway
                write_atomically(folder.path / ERROR, f"{what}\n".encode())
    finally:
        folder.release()
    if writes:
        draw_page(folder)


def newest(folder: RunFolder) -> Path | None:
    """The newest state in the run's folder, as rank 0 sees it."""
    found: Path | None = distributed.from_rank0(next(iter(states(folder.path)), None))
    return found
