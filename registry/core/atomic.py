"""Writes files and folders whole or not at all."""

from __future__ import annotations

import errno
import glob
import itertools
import os
import re
import secrets
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, _GeneratorContextManager, contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Generic, TypeVar, cast

from registry.core.errors import SettingError, UserError
from registry.core.interruption import undisturbed

T = TypeVar("T")
TEMPORARY = re.compile(r"\..+\.[0-9a-f]{8}\.distill", re.DOTALL)
"""The names of files and folders that are being written. Hidden files of a user have none that is like it."""
MEANWHILE = "was made by another process in the meantime; it is left as it is"

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]


def write_atomically(path: Path, content: bytes | Callable[[BinaryIO], object], durable: bool = True, new: bool = False) -> None:
    """Write a file whole or not at all, by moving a temporary file in the same folder into place. Raises UserError.

    A `new` file does not take the place of another, and none that of a device or a pipe.

    `content` may be a function that writes it, so that it need not be in memory as a whole. With `durable`, wait until the content
    is on the disk, so that even a power failure cannot leave half a file.
    """
    try:
        if path.exists() and not (path.is_file() or path.is_dir()):
            raise UserError(f"{path}: is a device or a pipe; give the name of a file")
        path.parent.mkdir(parents=True, exist_ok=True)
        if durable:  # others are many
            sweep(path.parent, path.name)
    except OSError as error:
        raise UserError(f"{path}: cannot be written: {error.strerror}") from None
    try:
        with SurelyLeft(temporary_beside(path)) as (file, temporary), file, held(file.fileno()):
            if isinstance(content, bytes):
                file.write(content)
            else:
                write_through(content, file)
            file.flush()
            if durable:
                os.fsync(file.fileno())
            file.close()
            put_in_place(temporary, path, new)
    except FileExistsError:
        raise UserError(f"{path}: {MEANWHILE}") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be written: {error.strerror}") from None


_unfinished = dict[str, int]()
"""Temporary files and folders, and the process that writes each."""


class SurelyLeft(Generic[T]):
    """A manager of `contextmanager` that is left again if an exception comes in the moment in which it has been entered, as that of
    a signal may: the block that would leave it has not begun by then."""

    def __init__(self, manager: _GeneratorContextManager[T]) -> None:
        self.manager = manager

    def __enter__(self) -> T:
        try:
            return self.manager.__enter__()
        except BaseException:
            self.manager.gen.close()
            raise

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> bool | None:
        return self.manager.__exit__(kind, error, trace)


@contextmanager
def temporary_beside(path: Path) -> Iterator[tuple[BinaryIO, str]]:
    """A temporary file beside `path`, and its name; gone afterwards, also if a signal comes while it is made. Raises OSError."""
    name = None
    try:
        with undisturbed():
            file, name = own_temporary(path)
            _unfinished[name] = os.getpid()
        yield file, name
    finally:
        if name is not None:
            _unfinished.pop(name, None)
            with suppress(OSError):  # the disk may be read-only by now; the next start sweeps
                os.unlink(name)


def remove_unfinished() -> None:
    """Remove what this process was writing: for one that ends at once."""
    for name, writer in [*_unfinished.items()]:
        if writer == os.getpid():
            with suppress(OSError):
                shutil.rmtree(name) if os.path.isdir(name) else os.unlink(name)


@contextmanager
def held(handle: int) -> Iterator[None]:
    """Keep an open file's lock, also after it is closed: until it is in its place, a sweep would take it for a killed writer's."""
    twin = os.dup(handle) if fcntl is not None else None
    try:
        yield
    finally:
        if twin is not None:
            os.close(twin)


def put_in_place(temporary: str, path: Path, new: bool) -> None:
    """Move a file to where it belongs. Raises OSError; FileExistsError if it should be new and is not."""
    if new:
        try:
            os.link(temporary, path)
            return
        except FileExistsError:
            raise
        except OSError:  # a disk without hard links
            if path.exists():
                raise FileExistsError from None
    os.replace(temporary, path)


def write_through(content: Callable[[BinaryIO], object], file: BinaryIO) -> None:
    """Let a function write into a file. Raises the OSError of a write that fails, which torch.save turns into a RuntimeError."""
    target = _Target(file)
    try:
        content(cast(BinaryIO, target))
    except RuntimeError:
        if target.error is not None:
            raise target.error from None
        raise


class _Target:
    """A file that remembers the error of a write."""

    def __init__(self, file: BinaryIO) -> None:
        self.seek, self.read, self.tell, self.flush = file.seek, file.read, file.tell, file.flush
        self._write, self.error = file.write, cast(OSError | None, None)

    def write(self, data: bytes) -> int:
        try:
            return self._write(data)
        except OSError as error:
            self.error = error
            raise


def own_temporary(path: Path) -> tuple[BinaryIO, str]:
    """A new file beside `path`, open and locked: the lock goes with the process and says that it is in use. Raises OSError."""
    while True:
        temporary = random_name(path)
        with suppress(FileExistsError):
            file = open(temporary, "x+b")  # noqa: SIM115  (whoever asked closes it)
            locked = lock(file.fileno())
            if locked is None or (locked and os.fstat(file.fileno()).st_nlink):
                return file, temporary
            file.close()  # another process has swept it before it was locked, or is about to


def random_name(path: Path) -> str:
    """The path of a hidden file beside `path`, of the form TEMPORARY, which a sweep knows."""
    return str(path.parent / f".{path.name}.{secrets.token_hex(4)}.distill")


def new_folder(target: Path) -> AbstractContextManager[Path]:
    """A new folder that takes the place of `target` when all is in it, and is gone otherwise; those of killed writers are removed.

    Raises UserError if it cannot be written, or something is at `target` by then.
    """
    return SurelyLeft(folder_for(target))


@contextmanager
def folder_for(target: Path) -> Iterator[Path]:
    """What `new_folder` enters and leaves. Raises UserError."""
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        sweep_folders(target)
    except OSError as error:
        raise UserError(f"{target}: cannot be written: {error.strerror}") from None
    part, handle = None, None
    try:
        with undisturbed():
            part, handle = own_folder(target)
            _unfinished[str(part)] = os.getpid()
        yield part
        part.replace(target)
    except OSError as error:
        there = error.errno in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR)
        raise UserError(f"{target}: {MEANWHILE if there else f'cannot be written: {error.strerror}'}") from None
    finally:
        if part is not None:
            _unfinished.pop(str(part), None)
            shutil.rmtree(part, ignore_errors=True)
        if handle is not None:
            os.close(handle)


def own_folder(path: Path) -> tuple[Path, int | None]:
    """A new folder beside `path`, open and locked like `own_temporary`'s file. Raises OSError."""
    while True:
        folder = Path(random_name(path))
        folder.mkdir()
        if fcntl is None:  # and folders cannot be opened
            return folder, None
        with suppress(FileNotFoundError):  # another process may sweep it before it is locked
            handle = os.open(folder, os.O_RDONLY)
            if lock(handle) is not False and folder.exists():
                return folder, handle
            os.close(handle)


def sweep_folders(target: Path) -> None:
    """Remove what killed writers of a folder of this name have left behind."""
    for left in target.parent.glob(f".{glob.escape(target.name)}.????????.distill"):
        with suppress(OSError):
            if is_temporary(left) and left.is_dir() and not left.is_symlink():
                handle = os.open(left, os.O_RDONLY)
                if lock(handle):
                    shutil.rmtree(left, ignore_errors=True)
                os.close(handle)


def lock(handle: int) -> bool | None:
    """Take the lock of an open file: whether it was free, or None if this disk has no locks."""
    if fcntl is None:
        return None
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return True
    except BlockingIOError:
        return False
    except OSError:
        return None


def sweep(folder: Path, name: str | None = None) -> None:
    """Remove what writes to files in a folder, or to those of one name, left behind that were killed."""
    for path in folder.glob(f".{'*' if name is None else glob.escape(name)}.????????.distill"):
        with suppress(OSError):
            if is_temporary(path) and path.is_file() and not path.is_symlink():
                handle = os.open(path, os.O_RDWR)
                try:
                    if lock(handle):
                        path.unlink()
                finally:
                    os.close(handle)


def is_temporary(path: Path) -> bool:
    """Whether a path is that of something that was being written."""
    return TEMPORARY.fullmatch(path.name) is not None


def unused(path: Path) -> Path:
    """The path, or the first with a number behind it that nothing has: what was set aside before stays."""
    numbered = (path.with_name(f"{path.name}.{i}") for i in itertools.count(2))
    return path if not path.exists() else next(p for p in numbered if not p.exists())


def check_in_place(path: Path) -> None:
    """Check that what is written where it stands, as a lock or line by line, is a file of its own folder, if there is one. Raises
    UserError: a link's target may be anybody's, and a pipe would be waited for."""
    if path.is_symlink():
        raise UserError(f"{path}: is a link; remove it: what is written here stays in this folder")
    if path.exists() and not path.is_file():
        raise UserError(f"{path}: is no file; remove it")


def check_folder(folder: Path, setting: str) -> None:
    """Check that the folder exists or can be made. Raises SettingError. Leaves nothing behind."""
    try:
        existing = next(p for p in (folder, *folder.absolute().parents) if p.exists())
        if not existing.is_dir():
            raise SettingError(setting, f"{existing} is a file, not a folder", str(folder))
        tempfile.TemporaryFile(dir=existing).close()
    except OSError as error:
        raise SettingError(setting, f"cannot be written: {error.strerror}", str(folder)) from None
