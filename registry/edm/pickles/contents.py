"""`read_pickle`: the content of a whole file, through all three stages."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

from registry.core.seal import trailer_length
from registry.edm.pickles.disguise import ZIP_START, ends_as_zip, is_tarball
from registry.edm.pickles.file_data import FileData
from registry.edm.pickles.handlers import HANDLERS
from registry.edm.pickles.notes import all_of_it
from registry.edm.pickles.rebuild import Rebuilder
from registry.edm.pickles.refusals import PickleError, blaming
from registry.edm.pickles.torch_files import STREAM_MARK, check_sums, read_stream, zip_members
from registry.edm.pickles.unpickle import unpickle


def read_pickle(path: str | Path, tensors: bool = True) -> dict[str, Any]:
    """The top-level dictionary of a network snapshot or of a training state: records, tensors on the CPU, plain values.

    Nothing from the file is executed. Numpy scalars become Python's numbers and arrays are read-only. OrderedDict and
    EasyDict become plain dicts, and modules become `Persistent` or `Inert`. Reading takes about the file's size in memory.
    Without `tensors` it takes almost none: tensors are then on the device "meta", with shape and dtype but no numbers.
    Every failure raises PickleError.
    """
    with blaming(path), open(path, "rb") as file:
        return _content(file, tensors)


def _content(file: io.BufferedReader, tensors: bool) -> dict[str, Any]:
    with all_of_it():
        raw, spans, size = _notes(file)
        content = Rebuilder(FileData(file, size, spans, tensors), HANDLERS).value(raw)
    if tensors and spans:
        check_sums(file)
    if not isinstance(content, dict) or not all(isinstance(key, str) for key in content):
        raise PickleError(f"holds a {type(content).__name__}, not a dictionary of networks by name")
    return content


def _notes(file: io.BufferedReader) -> tuple[Any, dict[str, range], int]:
    """Stages 1 and 2: the notes, the places of the storages outside the pickle by key, and the file's size."""
    spans: dict[str, range] = {}
    size = file.seek(0, io.SEEK_END)
    file.seek(0)
    if is_tarball(file.read(512)):
        raise PickleError("is a tar archive, too, in which another loader would look for pickles")
    file.seek(0)
    start = file.read(4)
    if start == ZIP_START:
        pickled, spans = zip_members(file, size)
        raw, _, stop = unpickle(file, pickled)
        end = pickled.stop
    elif ends_as_zip(file):
        raise PickleError("is a zip archive, too, in which another loader would look for a pickle")
    elif start[:1] == b"\x80":
        end = size - trailer_length(file, size)
        raw, _, stop = unpickle(file, range(end))
        if type(raw) is int and raw == STREAM_MARK:
            raw, spans = read_stream(file, range(end))
            stop = end
    else:
        raise PickleError(f"begins with {start!r}: neither a network snapshot (a pickle) nor a training state (of torch.save)")
    if stop != end:
        raise PickleError(f"is damaged: {end - stop} bytes follow the end of its pickle")
    return raw, spans, size
