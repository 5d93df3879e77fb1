"""Stage 3: the byte strings and storages of a file. Each is read once, and together they take no more bytes than the file has."""

from __future__ import annotations

import io
from typing import Any

import torch
from torch import Tensor

from registry.core.text import shown
from registry.edm.pickles.allowlist import EMPTY_BYTES, ENCODE, LOAD_FROM_BYTES
from registry.edm.pickles.notes import Call, Storage, arguments_of, name_of
from registry.edm.pickles.refusals import CUT, PickleError
from registry.edm.pickles.torch_files import read_stream


class FileData:
    """The data of one file. `spans` says where the storages outside the pickle are, by key.

    Without `tensors`, storages are on the device "meta", and their numbers are not read.
    """

    def __init__(self, file: io.BufferedReader, size: int, spans: dict[str, range], tensors: bool) -> None:
        self._file, self._spans, self._tensors = file, spans, tensors
        self._unread = size  # bytes of data that may still be read: no file of this kind uses any byte twice
        self._storages: dict[Storage | int, Tensor] = {}  # what was read: storages by reference or call
        self._strings: dict[range | int, bytes] = {}  # what was read: byte strings by place or call

    def byte_string(self, raw: Any) -> bytes:
        """A byte string, from its place in the file or from the call that protocol 2 writes for it."""
        key = raw if type(raw) is range else id(raw)
        if key not in self._strings:
            if type(raw) is range:
                self._file.seek(raw.start)
            self._strings[key] = self._file.read(len(raw)) if type(raw) is range else _decoded(raw)
            self.spend(len(self._strings[key]))
        return self._strings[key]

    def spend(self, size: int) -> None:
        """Count bytes of data. A file whose data takes more memory than the file has bytes is refused."""
        self._unread -= size
        if self._unread < 0:
            raise PickleError("is built to take more memory than it has bytes: it uses the same data more than once")

    def storage(self, raw: Any) -> Tensor:
        """A storage as a flat tensor: one outside the pickle, or a byte string that holds its own stream."""
        if type(raw) is Storage:
            if raw.key not in self._spans:
                raise PickleError(f"{CUT}: its storage {shown(raw.key)} is missing")
            if raw not in self._storages:
                self.spend(len(self._spans[raw.key]))
                self._storages[raw] = self._numbers(self._file, self._spans[raw.key], raw)
            return self._storages[raw]
        if not (isinstance(raw, Call) and raw.target == LOAD_FROM_BYTES):
            raise PickleError(f"has {name_of(raw)} in a place where a tensor's storage belongs")
        if id(raw) not in self._storages:
            (data,) = arguments_of(raw, object)
            file: io.BufferedReader | io.BytesIO = self._file
            if type(data) is not range:
                content = _decoded(data)
                file, data = io.BytesIO(content), range(len(content))
            self.spend(len(data))
            storage, spans = read_stream(file, data)
            if type(storage) is not Storage:
                raise PickleError("hides something else in a place where a tensor's storage belongs")
            self._storages[id(raw)] = self._numbers(file, spans[storage.key], storage)
        return self._storages[id(raw)]

    def _numbers(self, file: io.BufferedReader | io.BytesIO, span: range, storage: Storage) -> Tensor:
        """Numbers from the file as a flat tensor. This is the only copy of them that is made."""
        size = storage.numel * storage.dtype.itemsize
        if len(span) != size:
            raise PickleError(f"is damaged: its storage {shown(storage.key)} has {len(span)} bytes instead of {size}")
        if not self._tensors:
            return torch.empty(storage.numel, dtype=storage.dtype, device="meta")
        found = torch.empty(size, dtype=torch.uint8)
        file.seek(span.start)
        if file.readinto(found.numpy()) != size:  # type: ignore[arg-type]
            raise PickleError(f"{CUT}: it ends in the middle")
        return found != 0 if storage.dtype == torch.bool else found.view(storage.dtype)  # a bool must be 0 or 1


def _decoded(raw: Any) -> bytes:
    """The byte string that a call makes from text."""
    if isinstance(raw, Call) and raw.target in EMPTY_BYTES:
        arguments_of(raw)
        return b""
    if not (isinstance(raw, Call) and raw.target == ENCODE):
        raise PickleError(f"has {name_of(raw)} in a place where bytes belong")
    text, encoding = arguments_of(raw, str, str)
    if encoding not in ("latin1", "latin-1"):
        raise PickleError(f"encodes text as {shown(encoding)}, which no pickler does")
    return bytes(text.encode("latin-1"))
