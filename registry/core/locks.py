"""Locks on files, which go with the process that holds them, however it ends.

filelock takes them. Where a disk knows none, it would make do with a file that says who has the lock; a killed process leaves that
file behind, and from another machine nobody can tell that it is dead. So such a disk is told apart.
"""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import BaseFileLock, FileLock

UNKNOWN = {errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOTSUP}
"""What a disk answers that knows no locks."""


def lock_on(path: Path, timeout: float = 0) -> BaseFileLock:
    """A lock that nobody has taken yet. To take it, others are waited for so many seconds; -1: as long as it takes."""
    return FileLock(path, timeout=timeout, fallback_to_soft=False)


def taken(lock: BaseFileLock) -> bool:
    """Take a lock; False if its disk knows none. Raises filelock.Timeout if another process has it, or OSError."""
    try:
        lock.acquire()
    except OSError as error:
        if error.errno in UNKNOWN:
            return False
        raise
    return True


@contextmanager
def locked(path: Path, timeout: float = 0) -> Iterator[None]:
    """Hold a lock, if the disk knows locks. Raises as `taken` does."""
    lock = lock_on(path, timeout)
    taken(lock)
    try:
        yield
    finally:
        lock.release()
