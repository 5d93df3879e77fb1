"""The run folder, which one run writes into."""

from __future__ import annotations

import errno
import glob
import os
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from filelock import Timeout

from registry.core import distributed
from registry.core.atomic import sweep, unused, write_atomically
from registry.core.errors import SettingError, UserError
from registry.core.interruption import leave_if_copied
from registry.core.joining import tell_launcher
from registry.core.locks import lock_on, taken
from registry.core.text import shown
from registry.files.json_files import NoRecord
from registry.files.json_lines import STATISTICS, append_line, kimg_of, readable_lines, whole_lines
from registry.recipe.resolved import Tables, dumps
from registry.runs.states import LATER, NUMBERED, set_aside
from registry.show.journal import Journal
from registry.show.trackers import Trackers

LOOKED_AT = 1.0
"""Seconds that a lock is waited for: who lists runs takes it for an instant, to see whether they go on."""


def new_run_folder(outdir: Path, description: str) -> Path:
    """Make {id:05d}-{description} under outdir, id = highest existing + 1 (EDM). Raises SettingError."""
    try:
        outdir.mkdir(parents=True, exist_ok=True)
        number = 1 + max((int(m[1]) for p in outdir.iterdir() if (m := NUMBERED.fullmatch(p.name))), default=-1)
        while not made(folder := outdir / f"{number:05d}-{description}"):
            number += 1
        return folder
    except OSError as error:
        if error.errno == errno.ENAMETOOLONG and outdir.is_dir():
            raise UserError(f"the recipe's name is too long for that of a folder: {shown(description, 60)}") from None
        raise SettingError("outdir", f"cannot be written: {error.strerror}", str(outdir)) from None


def made(folder: Path) -> bool:
    """Make a folder; False if another run has made it at the same time. Raises OSError."""
    try:
        folder.mkdir()
    except FileExistsError:
        return False
    return True


def holds_a_run(folder: Path) -> bool:
    """Whether a run has begun to write into a folder."""
    return any((folder / name).exists() for name in ("run.lock", "recipe.toml", STATISTICS)) or any(folder.glob("training-state-*"))


class RunFolder:
    """The folder of a run, which only one run writes into. Rank 0 writes; on other ranks the methods that write do nothing.

    Raises UserError if another process is writing into the folder. The lock goes with the process, if `release` is not called.
    """

    def __init__(self, path: Path, journal: Journal) -> None:
        self.path, self.journal, self._home = path, journal, path
        self.writes = distributed.rank() == 0
        self._reported: set[str] = set()
        self.changed: list[str] = []  # what was learned otherwise from some number of images on, in words
        self._recipe = b""
        self._locks, self._locked = False, -1  # whether the disk knows locks, and the inode of the lock's file
        self._known: int | None = None
        self._known = self._place()
        self.trackers = Trackers((), journal)
        self._lock = lock_on(path / "run.lock", LOOKED_AT)
        locks = distributed.by_rank0(self._take)
        journal.open(path)
        if not locks:
            journal.log(f"WARNING the disk of {path} knows no locks; see to it that no other run writes there")

    def _place(self) -> int | None:
        """What the folder is to its disk: not what it was if it was renamed and made anew. None if it is gone."""
        try:
            return self.path.stat().st_ino
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError:  # a disk that does not answer at present
            return self._known

    def is_there(self) -> bool:
        """Whether the folder is the one that this run writes into."""
        return self._known is not None and self._place() == self._known

    def _still_locked(self) -> bool:
        """Whether the lock is this run's. If somebody has removed its file, it is taken again, unless another run has it by now."""
        try:
            if not self._locks or os.stat(self._lock.lock_file).st_ino == self._locked:
                return True
        except FileNotFoundError:
            pass
        except OSError:  # a disk that does not answer at present
            return True
        again = lock_on(self.path / "run.lock", LOOKED_AT)
        try:
            self._lock.release()
            taken(again)
            self._locked = os.stat(again.lock_file).st_ino
        except Timeout:
            return False
        except OSError:
            return True
        self._lock = again
        self.journal.log(f"WARNING {again.lock_file} was removed while this run goes on; it is there again")
        return True

    def _take(self) -> bool:
        """Take the folder's lock; False if its disk knows none. Raises UserError."""
        lock = Path(self._lock.lock_file)
        if lock.is_symlink() or (lock.exists() and not lock.is_file()):
            raise UserError(f"{lock}: is not a file, so it cannot be locked; remove it, if no run writes here")
        for file in (*self.path.glob("*.txt"), *self.path.glob("*.jsonl")):
            if file.is_symlink() and (file.name == "log.txt" or file.suffix == ".jsonl"):
                raise UserError(f"{file}: is a link; lines are added to files in this folder only")
            if file.exists() and not file.is_file():
                raise UserError(f"{file}: is not a file that lines can be added to")
        try:
            self._locks = taken(self._lock)
            self._locked = os.stat(self._lock.lock_file).st_ino
            return self._locks
        except Timeout:
            raise UserError(f"{self.path}: another process is writing into this run; stop it first, or begin another run") from None
        except PermissionError as error:
            raise UserError(f"{self._lock.lock_file}: cannot be locked: {error.strerror}; another run may write here") from None
        except OSError:  # a disk that is full or read-only; whoever writes a file says so
            return True

    def follow(self, trackers: Trackers, tables: Tables, nimg: int) -> None:
        """From now on, give numbers and pictures to these trackers, too."""
        if self.writes:
            self.trackers = trackers
            trackers.begin(self.path, tables, nimg)

    def release(self) -> None:
        """Let others write into the folder."""
        self.trackers.end()
        self._lock.release()

    @classmethod
    def new(cls, outdir: Path, description: str, journal: Journal) -> RunFolder:
        """A new folder under outdir, the same one for all ranks."""
        path = new_run_folder(outdir, description) if distributed.rank() == 0 else None
        return cls(distributed.from_rank0(path), journal)

    def keep_there(self) -> None:
        """If the folder is gone, go on in a new one of that name, take its lock, and say so. If another run's is there now, go on
        under the next number. If neither can be had, it is tried again the next time; whoever writes a file says why it cannot."""
        leave_if_copied()
        if not self.writes or (self.is_there() and self._still_locked()):
            return
        self._known = None
        with suppress(OSError):
            self._lock.release()
        try:
            self.path = self._home
            self.path.mkdir(parents=True, exist_ok=True)
            if holds_a_run(self.path):
                self.path = new_run_folder(self.path.parent, self.path.name.partition("-")[2] or self.path.name)
            self._lock = lock_on(self.path / "run.lock", LOOKED_AT)
            self._take()
            write_atomically(self.path / "recipe.toml", self._recipe)
        except (OSError, UserError):
            self.path = unused(self._home)  # not into another run's
            return
        gone = "was gone" if self.path == self._home or not self._home.exists() else "is gone, and another is in its place"
        where = "a new folder of that name" if self.path == self._home else str(self.path)
        self._home, self._known = self.path, self._place()
        tell_launcher(self.path)
        self.journal.open(self.path)
        self.journal.log(f"WARNING the folder of this run {gone}; the run goes on in {where}")

    def write(self, name: str, content: bytes) -> None:
        """A file in the folder, whole or not at all."""
        if self.writes:
            self.keep_there()
            write_atomically(self.path / name, content)

    def remove(self, name: str) -> None:
        """Remove a file from the folder, if it is there."""
        if self.writes:
            with suppress(OSError):
                (self.path / name).unlink()

    def write_recipe(self, tables: Tables) -> None:
        """recipe.toml: the resolved recipe, which reproduces the run."""
        self._recipe = dumps(tables).encode()
        self.write("recipe.toml", self._recipe)

    def append(self, entry: dict[str, Any], name: str = STATISTICS) -> None:
        """One JSON object per line, as EDM writes them."""
        if self.writes:
            self.keep_there()
            try:
                append_line(self.path / name, entry | {"timestamp": time.time()})
            except OSError as error:
                self.journal.complain(self.path / name, error)
            self.trackers.line(round(1000 * kimg_of(entry)), entry)

    def lines(self, name: str = STATISTICS) -> list[dict[str, Any]]:
        """All lines so far, including those from before a resumption; none if the disk does not give them now."""
        return readable_lines(self.path / name)

    def forget_after(
        self, kimg: float, written: Sequence[str] | None = None, snapshot_due: bool = False, keep: bool = False
    ) -> list[Path]:
        """Drop lines of statistics that a resumed run will write again: later ones, and those of a snapshot that is still due. Of
        metrics only in the files that are `written` again (by default in all). To `keep` those that it will not write just so,
        they get files of their own, which are returned; ticks only if all are dropped."""
        aside = list[Path]()
        metrics = self.path.glob("metric-*.jsonl") if written is None else [self.path / name for name in written]
        for path in (self.path / STATISTICS, *metrics) if self.writes else ():
            if not path.is_file():
                continue
            try:
                whole, before = whole_lines(path), path.read_bytes()
            except (OSError, NoRecord) as error:
                reason = error.strerror if isinstance(error, OSError) else error
                self.journal.log(f"WARNING {path.name}: {reason}; {set_aside(path)}")
                continue
            if damaged := sum(bool(line.strip()) for line in before.splitlines()) - len(whole):
                self.journal.log(f"WARNING {path.name}: {damaged} damaged line{'s are' * (damaged > 1) or ' is'} left out")
            again = [kimg] if snapshot_due and path.name != STATISTICS else []
            kept, left = list[str](), list[str]()
            for line, entry in whole:
                (left if kimg_of(entry) > kimg or kimg_of(entry) in again else kept).append(line)
            if keep and left and (path.name != STATISTICS or written is None):
                aside.append(unused(path.with_name(path.name + LATER)))
                write_atomically(aside[-1], as_lines(left))
            if as_lines(kept) != before:
                write_atomically(path, as_lines(kept))
        return aside

    def sweep(self) -> None:
        """Remove what writes left behind that were killed, also in older folders of this recipe that nobody goes on from."""
        for folder in (self.path, *self.path.parent.glob(f"[0-9]*-{glob.escape(self.path.name.partition('-')[2])}")):
            if self.writes:
                sweep(folder)

    def picture(self, draw: Callable[[Path], object], name: str | None = None, nimg: int = 0) -> None:
        """Draw a picture in the folder. If the plotting library is missing, say so once and go on. One with a name is given to the
        trackers."""
        if not self.writes:
            return
        self.keep_there()
        try:
            draw(self.path)
            if name is not None:
                self.trackers.picture(nimg, self.path / name)
        except UserError as error:
            if str(error) not in self._reported:
                self._reported.add(str(error))
                self.journal.log(f"no picture: {error}")


def as_lines(lines: Sequence[str]) -> bytes:
    return "".join(f"{line}\n" for line in lines).encode()
