"""Exceptions with messages of one line."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable

from registry.core.text import shown, text_of


class UserError(Exception):
    """Something the user can fix. Its message is one line: what was wrong, where, and what would be right."""


class BrokenContract(UserError):
    """What a component gave is not what its kind promises. Whoever knows the component's name puts it before the message."""


NO_MEMORY = re.compile("out of memory|can't allocate memory|failed to map segment")


def is_out_of_memory(error: BaseException) -> bool:
    """Whether there was not enough memory, on a device or in the machine, for a tensor, or for a library."""
    return isinstance(error, MemoryError) or (isinstance(error, RuntimeError | ImportError) and bool(NO_MEMORY.search(str(error))))


class Mistakes(UserError):
    """Mistakes that were found together: a line for each."""

    def __init__(self, lines: Iterable[str]) -> None:
        super().__init__("\n".join(line.replace("\n", "?") for line in lines))


class SettingError(UserError):
    """An invalid setting, under the name of the argument or field that holds it.

    The code that raises it knows nothing of flags and recipes. The surface adds where the setting was made: for a recipe the
    `table`, on the command line the flag. In Python the name is already that of the argument.
    """

    def __init__(self, setting: str, problem: str, value: object = None, table: str = "") -> None:
        super().__init__(setting, problem)
        self.setting, self.problem, self.value, self.table = setting, problem, value, table

    def __str__(self) -> str:
        where = f"[{self.table}] {self.setting}" if self.table else self.setting
        value = f"{self.value:g}" if isinstance(self.value, float) else shown(text_of(self.value), 1000)
        value = value.lower() if isinstance(self.value, bool) else value
        return f"{where}{'' if self.value is None else f' = {value}'}: {self.problem}"


class Interrupted(BaseException):
    """The run was asked to stop, and did. It can be resumed from `state`; `code` is the exit code.

    Like KeyboardInterrupt it is no Exception: code that expects any error of a file or a plugin does not take it for one.
    """

    def __init__(self, message: str, code: int, state: str | None = None) -> None:
        super().__init__(message, code, state)
        assert code > 128, "an interruption has the exit code of a signal"
        self.message, self.code, self.state = message, code, state

    def __str__(self) -> str:
        return self.message


class Diverged(Exception):
    """Training came to values that are not finite, and learns nothing more. `nimg` is how far it was, `advice` what may help."""

    code = 4
    """The exit code."""

    def __init__(self, message: str, nimg: int, advice: str = "try smaller learning rates") -> None:
        super().__init__(message, nimg, advice)
        self.message, self.nimg, self.advice = message, nimg, advice

    def __str__(self) -> str:
        return self.message


class Lost(Exception):
    """Another process has ended, or has not answered in time."""

    code = 75
    """The exit code: started again, the run may well go on."""


def near(word: str, known: Iterable[str]) -> str:
    """' (did you mean …?)' for the nearest known word, or nothing."""
    known = list(known)
    match = difflib.get_close_matches(word, known, n=1, cutoff=0.6) or [k for k in known if k.lower() == word.lower()]
    return f" (did you mean {match[0]!r}?)" if match else ""
