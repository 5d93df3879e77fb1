"""`list_globals`: every global that a file refers to, found with stage 1 only."""

from __future__ import annotations

import io
import pickle
from pathlib import Path
from typing import BinaryIO

from registry.edm.pickles.allowlist import ALLOWED_GLOBALS, Global
from registry.edm.pickles.disguise import TARBALL, is_tarball
from registry.edm.pickles.refusals import blaming
from registry.edm.pickles.torch_files import STREAM_MARK, ZIP_START, zip_members
from registry.edm.pickles.trace import UNKNOWN, Latin, trace_pickle


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
    span = zip_members(file, size)[0] if file.read(4) == ZIP_START else range(size)
    for data in dict.fromkeys(_follow(file, span, names, careful)):
        inner: tuple[BinaryIO, range] = (file, data) if isinstance(data, range) else _in_memory(data)
        inner[0].seek(inner[1].start)
        if inner[0].read(4) == ZIP_START or _follow(*inner, names, careful):
            names.append(UNKNOWN)  # a storage's stream has no storages in it


def _follow(file: BinaryIO, span: range, names: list[Global], careful: bool) -> list[range | Latin]:
    """Collect the globals of a pickle, or of an older torch.save stream. Returns the streams in it."""
    trace = trace_pickle(file, span, names, False, careful)
    streams = trace.streams
    if trace.code.endswith(pickle.encode_long(STREAM_MARK) + b"."):
        for _ in range(4):
            trace = trace_pickle(file, range(trace.stop, span.stop), names, False, careful)
            streams += trace.streams
    return streams


def _in_memory(data: Latin) -> tuple[BinaryIO, range]:
    content = data.text.encode("latin-1")
    return io.BytesIO(content), range(len(content))
