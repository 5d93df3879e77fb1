"""`list_globals`: every global that a file refers to, found with stage 1 only."""

from __future__ import annotations

import io
import zipfile
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

from registry.core.zips import content_of
from registry.edm.pickles.allowlist import ALLOWED_GLOBALS, Global
from registry.edm.pickles.disguise import TARBALL, ZIP_START, ZIPPED, ends_as_zip, is_tarball
from registry.edm.pickles.refusals import Misframed, PickleError, blaming
from registry.edm.pickles.stack import UNKNOWN, Latin
from registry.edm.pickles.torch_files import members_of, zip_members
from registry.edm.pickles.trace import Trace, trace_pickle

UNPACKED = 2**20
"""So many bytes of members that torch could take for its pickle are looked through: of each, and about as many of all."""
MOST_MEMBERS = 100
"""And at most so many."""
PICKLES = 5
"""So many follow each other in an older stream of torch.save."""


def list_globals(path: str | Path, careful: bool = False) -> list[tuple[str, str, bool]]:
    """Every global that a file refers to: (module, name, whether `read_pickle` refuses it because it would execute code).

    Nothing is executed or loaded. The search covers the pickle, or the pickle in a zip file, and the storages' own pickles.
    For a truncated file, the result is what was found before the end. If all of that is allowed, this raises PickleError, as
    for any file that cannot be read. `RUNS_SOURCE` is not refused, but if it is in the list, the original
    loader would execute the source text that the file carries. With `careful`, a file that would crash or stall an unpickler,
    although it executes nothing, cannot be read.
    """
    names: list[Global] = []
    with blaming(path), open(path, "rb") as file:
        try:
            _find_globals(file, file.seek(0, io.SEEK_END), names, careful)
        except Misframed:
            names.append(UNKNOWN)
        except Exception:
            if all(name in ALLOWED_GLOBALS for name in names):
                raise
    return [(*name, name not in ALLOWED_GLOBALS) for name in dict.fromkeys(names)]


def _find_globals(file: BinaryIO, size: int, names: list[Global], careful: bool) -> None:
    """Collect the globals of a file and of the streams in its storages."""
    file.seek(0)
    if is_tarball(file.read(512)):
        names.append(TARBALL)
    file.seek(0)
    if file.read(4) == ZIP_START:
        try:
            span, _ = zip_members(file, size)
        except PickleError:
            _look_through(file, size, names)
            raise
        streams = trace_pickle(file, span, names, False, careful).streams
    else:
        if ends_as_zip(file):
            names.append(ZIPPED)
        trace = trace_pickle(file, range(size), names, False, careful)
        streams = trace.streams
        if not trace.is_dictionary:  # torch goes on if it takes the value for the mark of an older stream
            try:
                streams += _following(file, trace, size, names, careful)
            except Misframed:
                names.append(UNKNOWN)
            except PickleError:  # torch reads so far
                pass
    for data in dict.fromkeys(streams):
        inner: tuple[BinaryIO, range] = (file, data) if isinstance(data, range) else _in_memory(data.text.encode("latin-1"))
        inner[0].seek(inner[1].start)
        if inner[0].read(4) == ZIP_START or _stream(*inner, names, careful):
            names.append(UNKNOWN)  # a storage's stream has no storages in it


def _stream(file: BinaryIO, span: range, names: list[Global], careful: bool) -> list[range | Latin]:
    """Collect the globals of an older stream, whatever its first pickle is. Returns the streams in it."""
    first = trace_pickle(file, span, names, False, careful)
    return first.streams + _following(file, first, span.stop, names, careful)


def _following(file: BinaryIO, first: Trace, end: int, names: list[Global], careful: bool) -> list[range | Latin]:
    """Collect the globals of the other pickles of an older stream. Returns the streams in them."""
    trace, streams = first, list[range | Latin]()
    for _ in range(PICKLES - 1):
        trace = trace_pickle(file, range(trace.stop, end), names, False, careful)
        streams += trace.streams
    return streams


def _look_through(file: BinaryIO, size: int, names: list[Global]) -> None:
    """Collect the globals of whatever in a zip file torch could take for its pickle, by its name."""
    left = UNPACKED
    with zipfile.ZipFile(file) as archive:
        for member, info in zip(members_of(file, size), archive.infolist(), strict=True):
            if not member.name.partition("\0")[0].lower().endswith("data.pkl"):
                continue
            if left <= 0:
                names.append(UNKNOWN)
                return
            left -= max(info.file_size, info.compress_size, UNPACKED // MOST_MEMBERS)
            inner: tuple[BinaryIO, range] = (file, member.span)
            with suppress(Exception):  # whatever is wrong with a member, the others are looked at
                if not member.stored:
                    inner = _in_memory(content_of(archive, info, UNPACKED))
                trace_pickle(*inner, names, False)


def _in_memory(content: bytes) -> tuple[BinaryIO, range]:
    return io.BytesIO(content), range(len(content))
