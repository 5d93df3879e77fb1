"""Members of a stranger's zip file, unpacked no further than they say that they are long.

Python's zipfile unpacks bzip2 and LZMA as far as a block of the file reaches, and a whole deflated member when all of it is read; a
kilobyte can be gigabytes then.
"""

from __future__ import annotations

import zipfile


def check_packing(member: zipfile.ZipInfo) -> None:
    """Check that a member is stored or deflated; others are in no file that this package reads. Raises BadZipFile."""
    if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise zipfile.BadZipFile("a member is compressed in a way that is not read here; save it as it is, or deflated")


def content_of(archive: zipfile.ZipFile, member: zipfile.ZipInfo, most: int | None = None) -> bytes:
    """What a member holds, or its first so many bytes. Raises BadZipFile, and what Python's zipfile raises."""
    check_packing(member)
    with archive.open(member) as file:
        return file.read(member.file_size if most is None else min(most, member.file_size))
