"""Members of a stranger's zip file, unpacked no further than they say that they are long.

Python's zipfile unpacks bzip2 and LZMA as far as a block of the file reaches, and a whole deflated member when all of it is read; a
kilobyte can be gigabytes then.
"""

from __future__ import annotations

import zipfile
from typing import BinaryIO


def check_packing(member: zipfile.ZipInfo) -> None:
    """Check that a member is stored or deflated; others are in no file that this package reads. Raises BadZipFile."""
    if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise zipfile.BadZipFile("a member is compressed in a way that is not read here; save it as it is, or deflated")


def content_of(archive: zipfile.ZipFile, member: zipfile.ZipInfo, most: int | None = None) -> bytes:
    """What a member holds, or its first so many bytes. Raises BadZipFile, and what Python's zipfile raises."""
    check_packing(member)
    with archive.open(member) as file:
        return file.read(member.file_size if most is None else min(most, member.file_size))


def named_directory(file: BinaryIO, size: int) -> tuple[int, int]:
    """Where the directory of a zip file is, and how many members it has, by its end record, as torch finds it. Raises BadZipFile.

    Python takes the directory that lies right before that record, and the end record of a long file that lies right before the
    text that says where it is; so these must be the same.
    """
    start = max(0, size - 2**16 - 98)  # the longest comment, and the records before it
    file.seek(start)
    tail = file.read()
    end = tail.rfind(b"PK\x05\x06")
    record = tail[end : end + 22]
    if end < 0 or len(record) < 22 or end + 22 + int.from_bytes(record[20:], "little") < len(tail):
        cut = "is damaged, or was not downloaded completely"
        raise zipfile.BadZipFile(f"{cut}: it has no end record of a zip file, or bytes after it")
    locator = tail[max(0, end - 20) : end]
    if locator[:4] != b"PK\x06\x07":
        return int.from_bytes(record[16:20], "little"), int.from_bytes(record[10:12], "little")
    position = start + end - 20 - 56
    file.seek(max(0, position))
    record = file.read(56)
    if int.from_bytes(locator[8:16], "little") != position or record[:4] != b"PK\x06\x06":
        raise zipfile.BadZipFile("has another end record than the one that its end names, which torch would read")
    return int.from_bytes(record[48:], "little"), int.from_bytes(record[32:40], "little")
