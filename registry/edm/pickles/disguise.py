"""Whether a file of another format would name code if it were opened as a pickle: its first bytes may be instructions, too.

Loaders differ in what they take: how much, in which encoding, how many pickles in a row. So nothing is interpreted here. The
instructions are gone through one by one, whatever they would do, up to the first bytes that are none: no loader gets beyond these.
"""

from __future__ import annotations

import codecs
import io
import mmap
import pickletools
import tarfile
from pathlib import Path
from typing import BinaryIO

from registry.edm.pickles.allowlist import Global
from registry.edm.pickles.instructions import TEXTS

MOST_INSTRUCTIONS = 100_000
"""A file that holds more before its first bytes that are no instructions is no accident."""
LENGTHS = {pickletools.TAKEN_FROM_ARGUMENT1: 1, pickletools.TAKEN_FROM_ARGUMENT4: 4, pickletools.TAKEN_FROM_ARGUMENT4U: 4,
           pickletools.TAKEN_FROM_ARGUMENT8U: 8}  # fmt: skip
"""Bytes of the length that stands before an argument."""
INSTRUCTIONS = {code.code: code for code in pickletools.opcodes}
LONGEST, MOST_TEXT, PIECE = 10_000, 2**26, 2**16
"""Bytes of a module, or of a name, that are shown; of a line that is looked at; and of it at a time."""
TARBALL = Global("", "the pickles in the tar archive that it is, too")
ZIPPED = Global("", "the pickle in the zip archive that it is, too")
PACKED = Global("", "the pickle that is compressed in it")
GZIP_START = b"\x1f\x8b"
"""joblib unpacks such a file before it unpickles it. No file of safetensors begins with what other kinds of compression do."""
LAST_BYTES = 2**17
"""The end record of a zip file is looked for in so many, twice as many as its longest comment has."""
ZIP_START = b"PK\x03\x04"
"""The first bytes of a zip file and of each of its members."""
ZIP_ENTRY, ZIP_END = b"PK\x01\x02", b"PK\x05\x06"
"""The first bytes of an entry of its directory, and of its end record."""


def begins_a_pickle(byte: int) -> bool:
    """Whether a file with this first byte may be taken for a pickle."""
    return chr(byte) in INSTRUCTIONS


def is_tarball(start: bytes) -> bool:
    """Whether a file that begins so is a tar archive, in which torch.load looks for pickles whatever else the file is."""
    try:
        tarfile.TarInfo.frombuf(start[:512], "utf-8", "surrogateescape")
    except tarfile.HeaderError:
        return False
    return True


def ends_as_zip(file: BinaryIO) -> bool:
    """Whether a file has the end record of a zip file, and an entry of its directory somewhere: torch.jit.load and Python's zipfile
    look for no more, whatever the file begins with, and each has its own ways from the one to the other. Raises OSError."""
    size = file.seek(0, io.SEEK_END)
    file.seek(max(0, size - LAST_BYTES))
    if ZIP_END not in file.read():
        return False
    with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        return content.find(ZIP_ENTRY) >= 0


def disguised_program(path: Path) -> Global | None:
    """Module and name of what would be run, or no module and a few words; None for nothing. Raises OSError."""
    with open(path, "rb") as file:
        if not file.seek(0, 2):
            return None
        file.seek(0)
        start = file.read(512)
        if start.startswith(ZIP_START):
            return ZIPPED
        if is_tarball(start):
            return TARBALL
        if ends_as_zip(file):
            return ZIPPED
        if start.startswith(GZIP_START):
            return PACKED
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            return _named(content)


def _named(content: mmap.mmap) -> Global | None:
    at = texts = 0
    for _ in range(MOST_INSTRUCTIONS):
        code = INSTRUCTIONS.get(chr(content[at])) if at < len(content) else None
        if code is None:
            return None
        at += 1
        lines = code.name in ("GLOBAL", "INST")
        end = _end(content, at, code, 2 if lines else 1)
        if end is None and not lines:
            return None
        end = len(content) if end is None else end  # a name that is cut off is one for loaders in Python
        if code.name == "FRAME":  # its end, too, may be the beginning of what a loader reads next
            length = int.from_bytes(content[at:end], "little")
            if end + length <= len(content):
                return Global("", "what a frame of a pickle hides")  # one that is cut off is read all the same, as far as it goes
        if lines and (named := _imported(content, at)):
            return named
        texts += code.name in TEXTS
        if code.name == "STACK_GLOBAL" and texts:
            return Global("", "what its strings name")
        at = end
    return Global("", f"a program of more than {MOST_INSTRUCTIONS:,} instructions")


def _imported(content: mmap.mmap, at: int) -> Global | None:
    """The module and the name in two lines, if there may be such a module. A loader imports the first of the names in a dotted one,
    and only then looks for the others, and for the name, whatever they are; but the whole line must be UTF-8."""
    middle = content.find(b"\n", at)
    end = middle if middle >= 0 else len(content) - 1  # loaders in Python take the last byte of a file for the end of its line
    first = content[at : min(end, at + LONGEST)].partition(b".")[0]
    if not first or b"\0" in first or len(first) == LONGEST or not _is_text(content, at, end):
        return None
    after = content.find(b"\n", end + 1)
    parts = (at, end), (end + 1, after if after >= 0 else len(content))
    return Global(*(content[a : min(b, a + LONGEST)].decode(errors="replace").rstrip("\r") for a, b in parts))


def _is_text(content: mmap.mmap, at: int, end: int) -> bool:
    """Whether these bytes are UTF-8; so many that nobody reads them are taken for it."""
    decoder = codecs.getincrementaldecoder("utf-8")()
    try:
        for start in range(at, min(end, at + MOST_TEXT), PIECE):
            decoder.decode(content[start : min(end, start + PIECE)])
        decoder.decode(b"", end - at <= MOST_TEXT)
    except UnicodeDecodeError:
        return False
    return True


def _end(content: mmap.mmap, at: int, code: pickletools.OpcodeInfo, lines: int) -> int | None:
    """Where the instruction's argument ends; None if it is cut off."""
    size = code.arg.n if code.arg is not None else 0
    if size == pickletools.UP_TO_NEWLINE:
        for _ in range(lines):
            at = content.find(b"\n", at) + 1
            if not at:
                return None
        return at
    if width := LENGTHS.get(size):
        size = width + int.from_bytes(content[at : at + width], "little")
    return at + size if at + size <= len(content) else None
