"""One attempt at a cell: a process that runs its command, and what it leaves in the cell's folder.

The process holds a lock on the cell as long as it lives, even if the study that started it was killed. So no cell is run by
two processes at once, and a study that goes on waits for what an earlier one left running.
"""

from __future__ import annotations

import fcntl
import json
import os
import signal
import subprocess
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from registry.core.atomic import check_in_place, write_atomically
from registry.core.errors import UserError
from registry.study.cells import ATTEMPT, read_attempt
from registry.study.machine import code, made_with
from registry.study.sources import held_now

LOCK, OUTPUT, ERRORS = "lock", "output.txt", "errors.txt"
LAST_WORDS = 2**16
"""Bytes at the end of its errors in which a run's reason is looked for."""


@dataclass
class Attempt:
    """A running process of this study."""

    folder: Path
    process: subprocess.Popen[bytes]
    note: dict[str, Any]
    begun: float = field(default_factory=time.monotonic)

    def poll(self) -> bool:
        """Whether the process is still running. When it has ended, its exit code and last error are written down."""
        code = self.process.poll()
        if code is None:
            return True
        self.note |= {"exit": code, "error": last_error(self.folder, code), "seconds": self.note["seconds"] + self.elapsed()}
        write_note(self.folder, self.note)
        return False

    def elapsed(self) -> float:
        """Seconds, whatever happens to the clock meanwhile."""
        return time.monotonic() - self.begun

    def signal(self, number: int) -> None:
        """Send a signal to the process, if it is still there."""
        with suppress(ProcessLookupError):
            self.process.send_signal(number)


@dataclass
class Leftover:
    """A process that an earlier study started and left running when it was killed."""

    folder: Path

    def poll(self) -> bool:
        """Whether the process is still running."""
        return is_running(self.folder)

    def signal(self, number: int) -> None:
        """Send a signal to the process, if it is still there."""
        pid = read_attempt(self.folder).get("pid")
        if isinstance(pid, int) and pid > 1 and is_running(self.folder) and holds_lock(pid, self.folder):
            with suppress(ProcessLookupError, PermissionError):
                os.kill(pid, number)


def begin(folder: Path, command: list[str], environment: Mapping[str, str], sources: Mapping[str, str]) -> Attempt:
    """Start a command in a process of its own session, so that Ctrl-C reaches it through us only. `sources`: what the files and
    folders that the recipe names have held. Raises UserError."""
    folder.mkdir(parents=True, exist_ok=True)
    for path in (folder / LOCK, folder / OUTPUT, folder / ERRORS):
        check_in_place(path)
    with open(folder / LOCK, "w") as lock, open(folder / OUTPUT, "ab") as output, open(folder / ERRORS, "wb") as errors:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(f"{folder}: is being run by another process") from None
        seconds = read_attempt(folder).get("seconds", 0.0)
        note: dict[str, Any] = {
            "command": command, "started": time.time(), "seconds": seconds, "exit": None, "error": "", "pid": None,
            "threads": environment.get("OMP_NUM_THREADS", ""), "sources": held_now(sources, folder),
            "made_with": {**made_with(), "code": code()},
        }  # fmt: skip
        write_note(folder, note)
        process = subprocess.Popen(
            command, env={**os.environ, **environment}, stdin=subprocess.DEVNULL, stdout=output, stderr=errors,
            start_new_session=True, pass_fds=(lock.fileno(),),
        )  # fmt: skip
    note["pid"] = process.pid
    write_note(folder, note)
    return Attempt(folder, process, note)


def write_note(folder: Path, note: Mapping[str, Any]) -> None:
    write_atomically(folder / ATTEMPT, (json.dumps(note, indent=1) + "\n").encode())


def is_running(folder: Path) -> bool:
    """Whether a process holds the lock of a cell."""
    try:
        with open(folder / LOCK, "r+") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    return False


def holds_lock(pid: int, folder: Path) -> bool:
    """Whether this process has the cell's lock open: the number in a file may have become another's. Where the system does not say
    (macOS), it is believed."""
    open_files = Path(f"/proc/{pid}/fd")
    if not Path("/proc/self/fd").is_dir():
        return True
    with suppress(OSError):
        lock = os.stat(folder / LOCK)
        for file in open_files.iterdir():
            with suppress(OSError):
                if os.path.samestat(os.stat(file), lock):
                    return True
    return False


def last_error(folder: Path, code: int) -> str:
    """The last line that a process wrote to stderr, or the signal that ended it; '' if all went well."""
    if code == 0:
        return ""
    if code < 0:
        known = {s.value: s.name for s in signal.Signals}  # not all that a system has
        return f"ended by signal {known.get(-code, -code)}"
    with open(folder / ERRORS, "rb") as file:
        file.seek(-min(LAST_WORDS, os.fstat(file.fileno()).st_size), os.SEEK_END)
        lines = file.read(LAST_WORDS).decode(errors="replace").strip().splitlines()
    return lines[-1].strip().removeprefix("distill: ") if lines else f"exit code {code}"
