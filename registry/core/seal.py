"""Seals: a file that holds the SHA-256 of itself, so that a reader knows whether every bit is as it was written.

The digest is that of the whole file with zeros in place of the digest's own 64 characters. It stands where other programs that
read such a file pass over it:

* torch's zip files: in the archive's comment, at the very end,
* pickles: after the pickle's end, as a second pickle that holds only this text,
* safetensors: in a text of the header's metadata.

It is no signature: whoever changes a file on purpose can seal it again.
"""

from __future__ import annotations

import hashlib
import io
import pickle
from pathlib import Path
from typing import BinaryIO

MARK = b"distill sha256 "
BLANK = b"0" * 64
TEXT = (MARK + BLANK).decode()
"""What a file holds before it is sealed; a safetensors file has it in its metadata."""
TRAILER = pickle.dumps(TEXT, protocol=4)
"""What follows the pickle in a sealed one."""
_ZIP, _ZIP_END = b"PK\x03\x04", b"PK\x05\x06"
_PICKLE = b"\x80"
_CHUNK = 2**20


def seal(file: BinaryIO) -> None:
    """Seal what has been written to a file, which is open for reading and writing."""
    size = file.seek(0, io.SEEK_END)
    file.seek(0)
    head = file.read(10)
    if head[:4] == _ZIP:
        file.seek(size - 22)  # the end record, whose last two bytes are the length of the comment that follows it
        assert file.read(4) == _ZIP_END
        file.seek(size - 2)
        file.write(len(TEXT).to_bytes(2, "little") + TEXT.encode())
    elif _is_pickle(head):
        file.seek(size)
        file.write(TRAILER)
    found = _position(file)
    assert found is not None, "the file has no place for a seal"
    digest = _digest(file, found)
    file.seek(found)
    file.write(digest)


def is_whole(path: str | Path) -> bool | None:
    """Whether a file is as it was written; None if it has no seal. Raises OSError."""
    with open(path, "rb") as file:
        found = _position(file)
        if found is None:
            return None
        file.seek(found)
        return file.read(len(BLANK)) == _digest(file, found)


def has_seal(path: str | Path) -> bool:
    """Whether a file has a seal, right or wrong. Raises OSError."""
    with open(path, "rb") as file:
        return _position(file) is not None


def trailer_length(file: BinaryIO, size: int) -> int:
    """How many bytes after a pickle belong to its seal."""
    if size < len(TRAILER):
        return 0
    file.seek(size - len(TRAILER))
    tail = file.read()
    at = TRAILER.index(BLANK)
    return len(TRAILER) if tail[:at] == TRAILER[:at] and tail[at + len(BLANK) :] == TRAILER[at + len(BLANK) :] else 0


def _is_pickle(head: bytes) -> bool:
    """Whether a file that begins like this is a pickle. The length of a safetensors header may begin with the same byte."""
    return head[:1] == _PICKLE and head[8:10] != b'{"'


def _position(file: BinaryIO) -> int | None:
    """Where the digest stands in a file."""
    size = file.seek(0, io.SEEK_END)
    file.seek(0)
    head = file.read(10)
    if head[:4] == _ZIP:
        at = size - len(TEXT)
    elif _is_pickle(head):
        if not trailer_length(file, size):
            return None
        at = size - len(TRAILER) + TRAILER.index(MARK)
    else:
        length = int.from_bytes(head[:8], "little")
        file.seek(8)
        at = 8 + file.read(length).find(MARK) if len(head) == 10 and length <= size else -1
    if at < 8:
        return None
    file.seek(at)
    return at + len(MARK) if file.read(len(MARK)) == MARK else None


def _digest(file: BinaryIO, at: int) -> bytes:
    """The digest in hexadecimal digits of a file that has its seal's digits at a position."""
    hasher = hashlib.sha256()
    file.seek(0)
    left = at
    while left:
        chunk = file.read(min(left, _CHUNK))
        hasher.update(chunk)
        left -= len(chunk)
    hasher.update(BLANK)
    file.seek(at + len(BLANK))
    while chunk := file.read(_CHUNK):
        hasher.update(chunk)
    return hasher.hexdigest().encode()
