"""The two containers in which torch.save writes a pickle: zip files and the older streams."""

from __future__ import annotations

import itertools
import re
import struct
import zipfile
from typing import Any, BinaryIO, NamedTuple

from registry.core.text import shown
from registry.core.zips import named_directory
from registry.edm.pickles.disguise import ZIP_START
from registry.edm.pickles.notes import Storage
from registry.edm.pickles.refusals import CUT, PickleError
from registry.edm.pickles.unpickle import unpickle

STREAM_MARK = 0x1950A86A20F9469CFC6C
"""An older stream begins with this number, pickled."""

NAMES = re.compile(r"[^/\\]+/(data\.pkl|version|byteorder|data/[0-9]+|\.[a-z_]+|\.data/serialization_id)", re.DOTALL)
"""How torch.save names the members of a zip file. (A package of torch.package has others.)"""

ARRAY_START = b"\x93NUMPY"


class Member(NamedTuple):
    """A member of a zip file: its name as it is in the directory, where its content is, and whether that is stored as it is."""

    name: str
    span: range
    stored: bool


def check_sums(file: BinaryIO) -> None:
    """Check the checksums of a zip file's members; other kinds of file have none. Raises PickleError."""
    file.seek(0)
    if file.read(4) != ZIP_START:
        return
    with zipfile.ZipFile(file) as archive:
        if bad := archive.testzip():
            raise PickleError(f"is damaged: the checksum of its member {shown(bad)} is wrong")


def members_of(file: BinaryIO, size: int) -> list[Member]:
    """The members of a zip file. Names are as in the file: Python would cut them, or take others from an extra field."""
    with zipfile.ZipFile(file) as archive:
        infos, start = archive.infolist(), archive.start_dir
    try:
        named = named_directory(file, size)
    except zipfile.BadZipFile as error:
        raise PickleError(str(error)) from None
    if (start, len(infos)) != named:
        raise PickleError("has another directory than the one that its end record names, which torch would read")
    found: list[Member] = []
    for info in infos:
        name = info.orig_filename
        if long_fields(info.extra) > 1:
            raise PickleError(f"says twice how long its member {shown(name)} is, and torch reads the first, Python the last")
        file.seek(info.header_offset)
        header = file.read(30)
        if len(header) < 30 or header[:4] != ZIP_START:
            raise PickleError(f"is damaged: its member {shown(name)} is not where its directory says")
        start = info.header_offset + 30 + sum(struct.unpack("<HH", header[26:]))
        stored = info.compress_type == zipfile.ZIP_STORED and not info.flag_bits & 1 and info.file_size == info.compress_size
        found.append(Member(name, range(start, start + info.compress_size), stored))
    return found


def long_fields(extra: bytes) -> int:
    """How many of the extra fields of a member in the directory say how long it is, and where."""
    found = 0
    while len(extra) >= 4:
        kind, length = struct.unpack("<HH", extra[:4])
        found += kind == 1
        extra = extra[4 + length :]
    return found


def zip_members(file: BinaryIO, size: int) -> tuple[range, dict[str, range]]:
    """Where the pickle is in a zip file of torch.save, and the storages by key. Members are stored, never compressed.

    The members must be named as torch.save does: torch looks names up without regard to case, in the first member's folder.
    """
    members = members_of(file, size)
    spans = {member.name: member.span for member in members}
    pickles = [name for name in spans if name.rpartition("/")[2] == "data.pkl"]
    if len(pickles) != 1:
        raise PickleError(f"is a zip file with {len(pickles)} members data.pkl; one that torch.save writes has one")
    root = pickles[0].removesuffix("data.pkl")
    places = sorted((member.span.start, member.span.stop) for member in members)
    if any(stop > start for (_, stop), (start, _) in itertools.pairwise(places)):
        raise PickleError("is built to take more memory than it has bytes: its members lie in each other")
    taken = set[str]()
    for name, span, stored in members:
        if not stored:
            raise PickleError(f"has the compressed or encrypted member {shown(name)}, which torch.save never writes")
        if name.lower() in taken or span.stop > size:
            raise PickleError(f"is damaged: its member {shown(name)} appears twice, or extends beyond the end of the file")
        if not (NAMES.fullmatch(name) and name.startswith(root) and name.removeprefix(root).isascii()):
            raise PickleError(f"has a member {shown(name)}, which torch.save never writes")
        file.seek(span.start)
        if file.read(len(ARRAY_START)) == ARRAY_START:
            raise PickleError(f"has a member {shown(name)} that is an array of numpy's, which may hold a pickle")
        taken.add(name.lower())
    order = spans.get(f"{root}byteorder", range(0))
    file.seek(order.start)
    if file.read(len(order)) not in (b"", b"little"):
        raise PickleError("was not written on a little-endian machine")
    data = f"{root}data/"
    return spans[pickles[0]], {name.removeprefix(data): span for name, span in spans.items() if name.startswith(data)}


def read_stream(file: BinaryIO, span: range) -> tuple[Any, dict[str, range]]:
    """An older torch.save stream, which must fill the span: its content as notes, and the places of its storages by key.

    It is five pickles (mark, version, system, content, keys of the storages), then for each storage a count and the numbers.
    """
    parts, position, storages = list[Any](), span.start, dict[str, Storage]()
    for _ in range(5):
        part, mentioned, position = unpickle(file, range(position, span.stop))
        parts.append(part)
        storages |= mentioned
    mark, version, system, content, keys = parts
    if mark != STREAM_MARK or version != 1001 or type(system) is not dict or system.get("little_endian") is not True:
        raise PickleError("holds data that torch.save did not write, or did not write on a little-endian machine")
    if type(keys) is not list or not all(type(key) is str for key in keys) or sorted(keys) != sorted(storages):
        raise PickleError("is damaged: the storages that it lists are not those that it uses")
    spans: dict[str, range] = {}
    for key in keys:
        storage = storages[key]
        file.seek(position)
        count = int.from_bytes(file.read(8), "little")
        spans[key] = range(position + 8, position + 8 + storage.numel * storage.dtype.itemsize)
        position = spans[key].stop
        if count != storage.numel or position > span.stop:
            raise PickleError(f"{CUT}: its storage {shown(key)} does not have the size that was announced")
    if position != span.stop:
        raise PickleError(f"is damaged: {span.stop - position} bytes follow its last storage")
    return content, spans
