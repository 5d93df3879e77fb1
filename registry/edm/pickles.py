"""Snapshots and training states of EDM, PFGM++, SiD and IPFM, read without executing anything from the file.

A file passes through three stages. (1) *Trace*: its instructions are read as data. Only those that a pickler writes are
allowed, nothing may be larger than the file, and byte strings are cut out: what remains is small, tensors stay on disk.
(2) *Unpickle* what remains, with Python's unpickler, to which every admitted global is a `_Call`: a note of what the file
asks for. Nothing is called, not even our own functions, and other globals are refused by name. (3) *Rebuild* plain values,
tensors and records from the notes, with every argument checked; each tensor is read from the file straight to its place.

Formats: network-snapshot-*.pkl (pickle protocols 2 to 5), training-state-*.pt (torch's zip files and its older streams).
"""

from __future__ import annotations

import io
import math
import pickle
import pickletools
import re
import struct
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, ClassVar, Literal, NamedTuple

import numpy as np
import torch
from pydantic import Field, ValidationError
from torch import Tensor

from registry.api import Config, Dimension, Positive, UserError
from registry.edm.networks import EDMPrecond

NEWEST_VERSION = 6
"""The newest layout of persistent objects that is known."""

RUNS_SOURCE = ("torch_utils.persistence", "_reconstruct_persistent_obj")
"""The original loader executes the Python source that a file with this global carries; this reader leaves it alone."""

MAX_PARTS = 1_000_000
"""Most instructions in a file, and most values in what it unfolds to. A large training state has some 400 000."""

MAX_DEPTH = 100
"""How deeply values may be nested. A network snapshot needs about 20 levels."""


MAX_ARGUMENTS = 16
"""Most arguments of a call, and most dimensions of a tensor. Arguments are copied with every call."""


class PickleError(UserError):
    """A file that cannot be read, or is refused. One line: the file, what is wrong with it, what would be right."""


# -------------------------------------------------------------------------------------------------------- records


class _Record:
    """What records have in common: a class's name and attributes, which may be those of a torch module."""

    class_name: str
    state: dict[str, Any]

    def modules(self, path: str = "") -> Iterator[tuple[str, _Record]]:
        """This record and those of its sub-modules with their dotted names, in the order of `nn.Module.named_modules`."""
        yield path, self
        for name, module in self._part("_modules"):
            if not isinstance(module, _Record):
                raise PickleError(f"its module {_shown(name)} is a {type(module).__name__}, not a module")
            yield from module.modules(f"{path}.{name}" if path else name)

    def tensors(self) -> dict[str, Tensor]:
        """Parameters and persistent buffers by dotted name, in the order of `nn.Module.state_dict`. Raises PickleError.

        In the files that distill writes, a network has one flat dictionary of them, `_tensors`.
        """
        found: dict[str, Tensor] = {}
        for path, module in self.modules():
            transient = module.state.get("_non_persistent_buffers_set", set())
            if not isinstance(transient, set):
                raise PickleError(f"_non_persistent_buffers_set of its {_shown(module.class_name)} is not a set")
            buffers = [(k, v) for k, v in module._part("_buffers") if k not in transient]
            for name, tensor in [*module._part("_parameters"), *buffers, *module._part("_tensors")]:
                full = f"{path}.{name}" if path else name
                if not isinstance(tensor, Tensor) or full in found:
                    raise PickleError(f"its {_shown(full)} is a {type(tensor).__name__}, not a tensor, or is there twice")
                found[full] = tensor
        return found

    def _part(self, name: str) -> list[tuple[str, Any]]:
        """Items of one of a module's dictionaries, without those that are None."""
        part = self.state.get(name, {})
        if not (isinstance(part, dict) and all(isinstance(k, str) for k in part)):
            raise PickleError(f"{name} of its {_shown(self.class_name)} is not a dictionary of names")
        return [(k, v) for k, v in part.items() if v is not None]

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {_shown(self.class_name)}>"


@dataclass(repr=False, eq=False)
class Inert(_Record):
    """An object of a class that is known but not needed, for example a module container: its attributes."""

    class_name: str
    state: dict[str, Any]


@dataclass(repr=False, eq=False)
class Persistent(_Record):
    """A persistent object of EDM's `torch_utils.persistence`: its attributes, and the version of the layout.

    `state` holds plain values, tensors, and further records (sub-modules in `_modules`).
    """

    class_name: str
    version: int
    state: dict[str, Any]

    @property
    def init_kwargs(self) -> dict[str, Any]:
        """The constructor's keyword arguments. Raises PickleError."""
        found = self.state.get("_init_kwargs", {})
        if not (isinstance(found, dict) and all(isinstance(k, str) for k in found)):
            raise PickleError(f"_init_kwargs of its {_shown(self.class_name)} is not a dictionary of names")
        return found


# ------------------------------------------------------------------------------------------ stage 1: instructions


class Global(NamedTuple):
    """A global that a file refers to; '?' for what only executing the file would tell."""

    module: str
    name: str


class _Latin(NamedTuple):
    """A byte string as protocol 2 writes it: a call that encodes this text as latin-1."""

    text: str


class _Op(NamedTuple):
    """A pickle instruction: the size of its argument, and what it takes from the stack and puts there."""

    name: str
    code: bytes
    size: int
    read: Callable[[BinaryIO], Any] | None
    marked: bool
    pops: int
    pushes: int


def _op(info: pickletools.OpcodeInfo) -> _Op:
    before, marked = list(info.stack_before), pickletools.markobject in info.stack_before
    pops = before.index(pickletools.markobject) if marked else len(before)
    size, read = (info.arg.n, info.arg.reader) if info.arg else (0, None)
    return _Op(info.name, info.code.encode("latin-1"), size, read, marked, pops, len(info.stack_after))


_OPS = {op.code: op for op in map(_op, pickletools.opcodes)}
_LENGTHS = {
    pickletools.TAKEN_FROM_ARGUMENT1: "<B",
    pickletools.TAKEN_FROM_ARGUMENT4: "<i",
    pickletools.TAKEN_FROM_ARGUMENT4U: "<I",
    pickletools.TAKEN_FROM_ARGUMENT8U: "<Q",
}
_PUTS, _GETS = {"BINPUT", "LONG_BINPUT", "PUT"}, {"BINGET", "LONG_BINGET", "GET"}
_TUPLES = {"EMPTY_TUPLE", "TUPLE", "TUPLE1", "TUPLE2", "TUPLE3"}
_NUMBERS = {"BININT", "BININT1", "BININT2"}
_TEXTS = {"SHORT_BINUNICODE", "BINUNICODE", "BINUNICODE8", "UNICODE", "STRING", "BINSTRING", "SHORT_BINSTRING"}
_BLOBS = {"BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8"}
_GLOBALS = {"GLOBAL", "STACK_GLOBAL", "INST", "EXT1", "EXT2", "EXT4"}
_FILLS = {"SETITEM", "SETITEMS", "ADDITEMS", "APPEND", "APPENDS", "BUILD"}
_CALLS = {"REDUCE", "NEWOBJ", "NEWOBJ_EX", "OBJ"}

# What Python's pickler writes in protocols 2 to 5 for files of this kind. Left out on purpose: all other ways to call or to
# look up (INST, OBJ, NEWOBJ_EX, EXT*, PERSID), numbers of any length, frozen sets, what self-reference needs, buffers.
_ALLOWED = _TUPLES | _NUMBERS | _BLOBS | _FILLS | {
    "PROTO", "FRAME", "STOP", "MARK", "NONE", "NEWTRUE", "NEWFALSE", "LONG1", "BINFLOAT", "EMPTY_LIST", "EMPTY_DICT", "EMPTY_SET",
    "SHORT_BINUNICODE", "BINUNICODE", "BINUNICODE8", "GLOBAL", "STACK_GLOBAL", "REDUCE", "NEWOBJ", "BINPERSID",
    "BINPUT", "LONG_BINPUT", "BINGET", "LONG_BINGET", "MEMOIZE",
}  # fmt: skip
_CUT = "is damaged, or was not downloaded completely"
_LOAD, _ENCODE, _UNKNOWN = Global("torch.storage", "_load_from_bytes"), Global("_codecs", "encode"), Global("?", "?")


class _Trace(NamedTuple):
    """A pickle's instructions, followed without executing them."""

    code: bytes
    """The instructions with byte strings cut out: number i of `blobs` has become the persistent id i."""
    blobs: list[range]
    """Where in the file the byte strings are."""
    streams: list[range | _Latin]
    """Byte strings that `torch.storage._load_from_bytes` is asked to load."""
    stop: int
    """Where in the file the pickle ends."""


def _instructions(file: BinaryIO, span: range) -> Iterator[tuple[_Op, Any, bytes]]:
    """The pickle that starts at `span.start`: each instruction, its argument, and its bytes as they stand.

    Of a byte string the argument is its place in the file, and it is not read. Nothing beyond the span is read.
    """
    position = span.start
    file.seek(position)

    def take(size: int | None) -> bytes:
        nonlocal position
        left = span.stop - position
        found = file.readline(left) if size is None else file.read(min(size, left))
        position += len(found)
        if len(found) != size and (size is not None or not found.endswith(b"\n")):
            raise PickleError(f"{_CUT}: it ends in the middle")
        return found

    while True:
        code = take(1)
        op = _OPS.get(code)
        if op is None:
            raise PickleError(f"is damaged, or not a pickle: it has the unknown instruction {code!r}")
        if op.size > 0:
            argument = take(op.size)
            yield op, argument, code + argument
        elif op.size == 0:
            yield op, b"", code
            if op.name == "STOP":
                return
        elif op.size == pickletools.UP_TO_NEWLINE:
            argument = take(None) + (take(None) if op.name in ("GLOBAL", "INST") else b"")
            yield op, argument, code + argument
        else:
            head = take(struct.calcsize(_LENGTHS[op.size]))
            (length,) = struct.unpack(_LENGTHS[op.size], head)
            if not 0 <= length <= span.stop - position:
                raise PickleError(f"{_CUT}: it announces a piece of {length} bytes")
            if op.name in _BLOBS:
                yield op, range(position, position + length), code + head
                position += length
                file.seek(position)
            else:
                argument = take(length)
                yield op, argument, code + head + argument


def _trace(file: BinaryIO, span: range, names: list[Global], strict: bool) -> _Trace:
    """Follow a pickle's instructions on a stack of our own, which knows texts, byte strings, globals and tuples of these.

    `names` receives the globals as soon as they are met. `strict` refuses what stage 2 must not see.
    """
    code, blobs, streams = bytearray(), list[range](), list[range | _Latin]()
    stack, marks, memo = list[Any](), list[int](), dict[int, Any]()
    for count, (op, argument, text) in enumerate(_instructions(file, span), 1):
        name = op.name
        if count > MAX_PARTS:
            raise PickleError(f"has more than {MAX_PARTS} instructions, several times what the largest training states need")
        if strict and name not in _ALLOWED:
            raise PickleError(f"uses the pickle instruction {name}, which no network snapshot or training state needs")
        if name == "FRAME":  # a hint for reading ahead, wrong without the byte strings
            if int.from_bytes(argument, "little") > len(span):
                raise PickleError(f"{_CUT}: it announces a part larger than itself")
            continue
        if name in _BLOBS:
            text = b"J" + struct.pack("<i", len(blobs)) + b"Q"
            blobs.append(argument)
        code += text

        if name in _GETS:
            if _index(op, argument) not in memo:
                raise PickleError(f"is damaged: it uses a value {_index(op, argument)} that it does not have")
            stack.append(memo[_index(op, argument)])
        elif name in _PUTS:
            number = _index(op, argument)
            if strict and number > count:  # Python's unpickler would make room for all numbers below
                raise PickleError(f"is damaged: it numbers a value {number} after only {count} instructions")
            memo[number] = stack[-1]
        elif name == "MARK":
            marks.append(len(stack))
        elif name == "POP" and marks and marks[-1] == len(stack):
            marks.pop()
        else:
            top = (marks.pop() if marks else -1) if op.marked else len(stack)
            bottom = top - op.pops
            if bottom < (marks[-1] if marks else 0):
                raise PickleError(f"is damaged: its instruction {name} finds too few values")
            items = stack[bottom:]
            if strict:
                _check(name, items)
            stack[bottom:] = pushed = _pushed(op, argument, text, items)
            if name == "MEMOIZE":
                memo[len(memo)] = items[0]
            elif name in _GLOBALS:
                names += pushed
            elif name in _CALLS and items[:1] == [_LOAD]:
                match items:
                    case [_, range() | _Latin() as data] | [_, (range() | _Latin() as data,)]:
                        streams.append(data)
                    case _:
                        names.append(_UNKNOWN)
            elif name == "BUILD" and type(items[0]) is Global:
                names.append(_UNKNOWN)  # changes a function or class, then calls something in its place
    return _Trace(bytes(code), blobs, streams, file.tell())


def _pushed(op: _Op, argument: Any, text: bytes, items: list[Any]) -> list[Any]:
    """What an instruction leaves on the stack in place of `items`: None for values that we need not know."""
    name = op.name
    if name in _FILLS or name == "MEMOIZE":
        return items[:1]
    if name in _TUPLES:
        return [tuple(items)]
    if name in _NUMBERS:
        return [0]
    if name in _BLOBS:
        return [argument]
    if name in _GLOBALS:
        return [_global(name, argument, items)]
    if name in _TEXTS and op.read:
        return [op.read(io.BytesIO(text[1:]))]
    if name == "REDUCE" and items[0] == _ENCODE:
        match items[1]:
            case (str() as letters, "latin1" | "latin-1"):
                return [_Latin(letters)]
    return items * 2 if name == "DUP" else [None] * op.pushes


def _check(name: str, items: list[Any]) -> None:
    """Refuse what would crash or stall Python's unpickler although it executes nothing."""
    # Keys are hashed: nested tuples overflow C's stack there, and well-chosen large numbers collide.
    keys = {"SETITEM": items[1:2], "SETITEMS": items[1::2], "ADDITEMS": items[1:]}.get(name, []) if name in _FILLS else []
    if not all(type(key) in (str, int) for key in keys):
        raise PickleError("has a dictionary or set with keys other than text and small whole numbers")
    # Arguments are copied, and the same long tuple can be the argument of very many calls.
    if name in _CALLS and not (type(items[1]) is tuple and len(items[1]) <= MAX_ARGUMENTS):
        raise PickleError(f"calls something with other than up to {MAX_ARGUMENTS} arguments, which no pickler does")


def _index(op: _Op, argument: bytes) -> int:
    return int(argument) if op.size == pickletools.UP_TO_NEWLINE else int.from_bytes(argument, "little")


def _global(name: str, argument: bytes, items: list[Any]) -> Global:
    if name == "STACK_GLOBAL":
        return Global(*(item if type(item) is str else "?" for item in items))
    if name.startswith("EXT"):
        return Global("copyreg", f"extension {int.from_bytes(argument, 'little')}")
    return Global(*argument.decode("utf-8", "backslashreplace").split("\n")[:2])


# ----------------------------------------------------------------------------------------- stage 2: notes of calls


class _Call:
    """A note of what a file asks for: a global called with `args`, then filled with `items`, then given a `state`.

    An unpickler can do nothing else to it: it has no other method or attribute, and no `__dict__`.
    """

    __slots__ = ("args", "items", "state")
    __hash__ = None  # type: ignore[assignment]
    args: tuple[Any, ...]
    items: list[tuple[Any, Any]]
    state: Any
    target: ClassVar[Global]

    def __new__(cls, *args: Any) -> _Call:
        self = object.__new__(cls)
        self.args, self.items, self.state = args, [], None
        return self

    def __setitem__(self, key: Any, value: Any) -> None:
        self.items.append((key, value))

    def __setstate__(self, state: Any) -> None:
        self.state = state


class _Storage(NamedTuple):
    """A storage that is kept outside of the pickle."""

    key: str
    dtype: torch.dtype
    numel: int


class _Unpickler(pickle.Unpickler):
    """Python's unpickler for the code of a `_Trace`: it makes notes of calls, and meets nothing but notes and plain values."""

    def __init__(self, trace: _Trace) -> None:
        super().__init__(io.BytesIO(trace.code))
        self.blobs, self.storages = trace.blobs, dict[str, _Storage]()

    def find_class(self, module: str, name: str) -> type[_Call]:
        try:
            return _ADMITTED[Global(module, name)]
        except KeyError:
            raise PickleError(
                f"refers to {_shown(f'{module}.{name}')}, which network snapshots and training states do not need; "
                "it is not a file of EDM, PFGM++, SiD or IPFM, or not only that, and nothing in it was executed"
            ) from None

    def persistent_load(self, pid: Any) -> Any:
        """A byte string that was cut out; a storage; or the container class that torch's older streams keep this way."""
        match pid:
            case int():
                return self.blobs[pid]
            case ("storage", type() as kind, str() as key, str(), int() as numel) | (
                "storage", type() as kind, str() as key, str(), int() as numel, None,
            ) if kind in _STORAGES and numel >= 0:  # fmt: skip
                storage = _Storage(key, _STORAGES[kind], numel)
                if self.storages.setdefault(key, storage) != storage:
                    raise PickleError(f"describes its storage {_shown(key)} in two ways")
                return storage
            case ("module", type() as kind, _, _):
                return kind
        raise PickleError("refers to something outside of its pickle that is not a storage of numbers")


def _shown(text: object, most: int = 200) -> str:
    """Text from a file or an error, fit for one line of a terminal."""
    line = "".join(c if c.isprintable() else "?" for c in " ".join(str(text)[:1000].split()))
    return line if len(line) <= most else line[:most] + "…"


# ------------------------------------------------------------------------------------------------ stage 3: rebuilding

_Handler = Callable[["_Reader", _Call], Any]


class _Reader:
    """Rebuilds the content of one file."""

    def __init__(self, file: io.BufferedReader | io.BytesIO, tensors: bool = True) -> None:
        self.file, self.size, self.tensors = file, file.seek(0, io.SEEK_END), tensors
        self.unread = self.size  # bytes of data that may still be read: no file of this kind has any twice
        self.spans: dict[str, range] = {}  # storages outside of the pickle, by key
        self.storages: dict[_Storage | int, Tensor] = {}  # what was read: storages by reference or call
        self.strings: dict[range | int, bytes] = {}  # what was read: byte strings by place or call
        self.parts = 0
        self.done: dict[int, tuple[Any, int]] = {}
        self.open: set[int] = set()

    def read(self) -> dict[str, Any]:
        """The top-level dictionary of the file."""
        self.file.seek(0)
        start = self.file.read(4)
        if start == _ZIP:
            pickled, self.spans = _members(self.file, self.size)
            raw, _, stop = self.unpickle(pickled)
            end = pickled.stop
        elif start[:1] == b"\x80":
            end = self.size
            raw, _, stop = self.unpickle(range(end))
            if type(raw) is int and raw == _MARK:
                raw, self.spans = self.stream(range(end))
                stop = end
        else:
            raise PickleError(f"begins with {start!r}: neither a network snapshot (a pickle) nor a training state (of torch.save)")
        if stop != end:
            raise PickleError(f"is damaged: {end - stop} bytes follow the end of its pickle")
        content = self.value(raw)
        if not isinstance(content, dict) or not all(isinstance(key, str) for key in content):
            raise PickleError(f"holds a {type(content).__name__}, not a dictionary of networks by name")
        return content

    def unpickle(self, span: range) -> tuple[Any, _Unpickler, int]:
        """The notes of the pickle at `span.start`, the unpickler that made them, and where the pickle ends."""
        trace = _trace(self.file, span, [], strict=True)
        unpickler = _Unpickler(trace)
        return unpickler.load(), unpickler, trace.stop

    def stream(self, span: range) -> tuple[Any, dict[str, range]]:
        """An older stream of torch.save, which must fill the span: its content, and where its storages are by key.

        Five pickles (mark, version, system, content, keys of the storages); then per storage a count and the numbers.
        """
        parts, position, storages = list[Any](), span.start, dict[str, _Storage]()
        for _ in range(5):
            part, unpickler, position = self.unpickle(range(position, span.stop))
            parts.append(part)
            storages |= unpickler.storages
        mark, version, system, content, keys = parts
        if mark != _MARK or version != 1001 or type(system) is not dict or system.get("little_endian") is not True:
            raise PickleError("holds data that torch.save has not written, or not on a little-endian machine")
        if type(keys) is not list or not all(type(key) is str for key in keys) or sorted(keys) != sorted(storages):
            raise PickleError("is damaged: it lists other storages than it uses")
        spans: dict[str, range] = {}
        for key in keys:
            storage = storages[key]
            self.file.seek(position)
            count = int.from_bytes(self.file.read(8), "little")
            spans[key] = range(position + 8, position + 8 + storage.numel * storage.dtype.itemsize)
            position = spans[key].stop
            if count != storage.numel or position > span.stop:
                raise PickleError(f"{_CUT}: its storage {_shown(key)} has another size than announced")
        if position != span.stop:
            raise PickleError(f"is damaged: {span.stop - position} bytes follow its last storage")
        return content, spans

    # -------------------------------------------------------------------------------------------------- values

    def value(self, raw: Any) -> Any:
        """The value that notes stand for. Refuses cycles, deep nesting, and what would unfold to very many parts."""
        if raw is None or type(raw) in (bool, int, float, str):
            self.count(1 + len(raw) // 100 if type(raw) is str else 1)
            return raw
        key = id(raw)
        if key in self.done:
            value, parts = self.done[key]
            self.count(parts)
            return value
        if key in self.open:
            raise PickleError("has a value that contains itself")
        if len(self.open) == MAX_DEPTH:
            raise PickleError(f"has values nested more than {MAX_DEPTH} deep")
        self.open.add(key)
        before = self.parts
        self.count(1)
        value = self.build(raw)
        self.open.remove(key)
        self.done[key] = value, self.parts - before
        return value

    def count(self, parts: int) -> None:
        self.parts += parts
        if self.parts > MAX_PARTS:
            raise PickleError(f"unfolds to more than {MAX_PARTS} values, several times what the largest training states hold")

    def key(self, raw: Any) -> str | int:
        if not (type(raw) is str or (type(raw) is int and abs(raw) < 2**63)):
            raise PickleError("has a dictionary or set with keys other than text and small whole numbers")
        self.value(raw)
        return raw

    def build(self, raw: Any) -> Any:
        kind = type(raw)
        if kind is dict:
            return {self.key(k): self.value(v) for k, v in raw.items()}
        if kind is list:
            return [self.value(v) for v in raw]
        if kind is tuple:
            return tuple(self.value(v) for v in raw)
        if kind is set:
            return {self.key(k) for k in raw}
        if kind is range:
            return self.text(raw)
        if isinstance(raw, _Call):
            if (raw.items and raw.target not in _FILLED) or (raw.state is not None and raw.target not in _BUILT):
                raise PickleError(f"does with {_name(raw)} what no pickler does")
            return _HANDLERS[raw.target](self, raw)
        if isinstance(raw, type) and issubclass(raw, _Call) and raw.target in _DTYPES:
            return _DTYPES[raw.target]
        raise PickleError(f"has {_name(raw)} in a place where a value belongs")

    def text(self, raw: Any) -> bytes:
        """A byte string as a value of its own."""
        found = self.bytes(raw)
        self.count(len(found) // 100)
        return found

    def bytes(self, raw: Any) -> bytes:
        """A byte string, read once: from its place in the file, or from the call by which protocol 2 writes it."""
        key = raw if type(raw) is range else id(raw)
        if key not in self.strings:
            if type(raw) is range:
                self.file.seek(raw.start)
            self.strings[key] = self.file.read(len(raw)) if type(raw) is range else _decoded(raw)
            self.spend(len(self.strings[key]))
        return self.strings[key]

    def spend(self, size: int) -> None:
        self.unread -= size
        if self.unread < 0:
            raise PickleError("is built to take more memory than it has bytes: it uses the same data more than once")

    # ------------------------------------------------------------------------------------------------- tensors

    def storage(self, raw: Any) -> Tensor:
        """A storage as a flat tensor, read once: one outside of the pickle, or a byte string with a stream of its own."""
        if type(raw) is _Storage:
            if raw.key not in self.spans:
                raise PickleError(f"{_CUT}: its storage {_shown(raw.key)} is missing")
            if raw not in self.storages:
                self.spend(len(self.spans[raw.key]))
                self.storages[raw] = self.numbers(self.spans[raw.key], raw)
            return self.storages[raw]
        if not (isinstance(raw, _Call) and raw.target == _LOAD):
            raise PickleError(f"has {_name(raw)} in a place where a tensor's storage belongs")
        if id(raw) not in self.storages:
            reader, (data,) = self, _arguments(raw, object)
            if type(data) is not range:
                content = _decoded(data)
                reader, data = _Reader(io.BytesIO(content), self.tensors), range(len(content))
            self.spend(len(data))
            storage, spans = reader.stream(data)
            if type(storage) is not _Storage:
                raise PickleError("hides something else in a place where a tensor's storage belongs")
            self.storages[id(raw)] = reader.numbers(spans[storage.key], storage)
        return self.storages[id(raw)]

    def numbers(self, span: range, storage: _Storage) -> Tensor:
        """Numbers from the file as a flat tensor: the only copy of them that is made."""
        size = storage.numel * storage.dtype.itemsize
        if len(span) != size:
            raise PickleError(f"is damaged: its storage {_shown(storage.key)} has {len(span)} bytes instead of {size}")
        if not self.tensors:
            return torch.empty(storage.numel, dtype=storage.dtype, device="meta")
        found = torch.empty(size, dtype=torch.uint8)
        self.file.seek(span.start)
        if self.file.readinto(found.numpy()) != size:  # type: ignore[arg-type]
            raise PickleError(f"{_CUT}: it ends in the middle")
        return found != 0 if storage.dtype == torch.bool else found.view(storage.dtype)  # a bool must be 0 or 1


def _name(raw: Any) -> str:
    """What something is, for people."""
    is_note = isinstance(raw, _Call) or (isinstance(raw, type) and issubclass(raw, _Call))
    return ".".join(raw.target) if is_note else f"a {type(raw).__name__.strip('_')}"


def _arguments(call: _Call, *kinds: type, more: int = 0) -> tuple[Any, ...]:
    """A call's arguments if they have these very types, with `more` arguments behind them that do not matter."""
    fits = len(kinds) <= len(call.args) <= len(kinds) + more
    if not (fits and all(k is object or type(a) is k for a, k in zip(call.args, kinds, strict=False))):
        raise PickleError(f"gives arguments to {_name(call)} that no pickler does")
    return call.args[: len(kinds)]


def _shape(raw: Any) -> tuple[int, ...]:
    if not (isinstance(raw, tuple) and len(raw) <= MAX_ARGUMENTS and all(type(n) is int and n >= 0 for n in raw)):
        raise PickleError("has a tensor whose shape or strides are not a few whole numbers")
    return raw


def _persistent(reader: _Reader, call: _Call) -> Persistent:
    (meta,) = _arguments(call, dict)
    kind, name, version, state = (meta.get(k) for k in ("type", "class_name", "version", "state"))
    if kind != "class" or type(name) is not str or type(version) is not int or type(state) is not dict:
        raise PickleError("has a persistent object that is not a class with name, version and state")
    return Persistent(name, version, reader.value(state))


def _tensor(reader: _Reader, call: _Call) -> Tensor:
    storage, offset, size, stride = _arguments(call, object, int, tuple, tuple, more=3)
    if len(call.args) == 7 and call.args[6]:
        raise PickleError("has a tensor with metadata (a conjugate or negative view), which networks and optimizers do not")
    flat, size, stride = reader.storage(storage), _shape(size), _shape(stride)
    numel = math.prod(size)
    if numel == 0:
        return flat[:0].reshape(size)
    last = offset + sum((n - 1) * s for n, s in zip(size, stride, strict=True))
    if offset < 0 or last >= len(flat):
        raise PickleError(f"has a tensor of shape {list(size)} that reaches beyond its {len(flat)} numbers")
    if numel > len(flat):
        raise PickleError(f"has a tensor of shape {list(size)} that repeats its {len(flat)} numbers")
    return flat.as_strided(size, stride, offset)


def _parameter(reader: _Reader, call: _Call) -> Tensor:
    (data,) = _arguments(call, object, more=3)
    tensor = reader.value(data)
    if not isinstance(tensor, Tensor):
        raise PickleError(f"has {_name(data)} in a place where a tensor belongs")
    return tensor


def _filled(reader: _Reader, call: _Call) -> dict[Any, Any]:
    _arguments(call)
    return {reader.key(k): reader.value(v) for k, v in call.items}


def _container(reader: _Reader, call: _Call) -> Inert:
    _arguments(call)
    if type(call.state) is not dict:
        raise PickleError(f"has a {_name(call)} without attributes")
    return Inert(call.target.name, reader.value(call.state))


def _set(reader: _Reader, call: _Call) -> set[Any]:
    (members,) = _arguments(call, list)
    return {reader.key(k) for k in members}


def _decoded(raw: Any) -> bytes:
    """The byte string that a call makes of text."""
    if isinstance(raw, _Call) and raw.target.name == "bytes":
        _arguments(raw)
        return b""
    if not (isinstance(raw, _Call) and raw.target == _ENCODE):
        raise PickleError(f"has {_name(raw)} in a place where bytes belong")
    text, encoding = _arguments(raw, str, str)
    if encoding not in ("latin1", "latin-1"):
        raise PickleError(f"encodes text as {_shown(encoding)}, which no pickler does")
    return bytes(text.encode("latin-1"))


def _numpy_dtype(raw: Any) -> np.dtype[Any]:
    """A dtype of plain numbers."""
    if not (isinstance(raw, _Call) and raw.target == ("numpy", "dtype")):
        raise PickleError(f"has {_name(raw)} in a place where a numpy dtype belongs")
    (code,) = _arguments(raw, str, more=2)
    match raw.state:
        case (int(), "<" | "|", None, None, None, -1, -1, 0, *_) if re.fullmatch("b1|[iu][1248]|f[248]", code):
            return np.dtype(f"<{code}")
    raise PickleError(f"has a numpy dtype {_shown(code)} that is not one of plain little-endian numbers")


def _numpy_numbers(reader: _Reader, dtype: Any, data: Any) -> np.ndarray[Any, Any]:
    kind, content = _numpy_dtype(dtype), reader.bytes(data)
    if kind.kind != "b":
        return np.frombuffer(content, kind)
    reader.spend(len(content))
    truths: np.ndarray[Any, Any] = np.frombuffer(content, "u1") != 0
    return truths


def _numpy_scalar(reader: _Reader, call: _Call) -> bool | int | float:
    (number,) = _numpy_numbers(reader, *_arguments(call, object, object))
    plain: bool | int | float = number.item()
    return plain


def _numpy_array(reader: _Reader, call: _Call) -> np.ndarray[Any, Any]:
    match call.args, call.state:
        case (type() as kind, (0,), _), (1, shape, dtype, bool() as columns, data) if kind is _ADMITTED[Global("numpy", "ndarray")]:
            return _numpy_numbers(reader, dtype, data).reshape(_shape(shape), order="F" if columns else "C")
    raise PickleError("has a numpy array that no pickler writes")


def _numpy_buffer(reader: _Reader, call: _Call) -> np.ndarray[Any, Any]:
    data, dtype, shape, order = _arguments(call, object, object, tuple, str)
    return _numpy_numbers(reader, dtype, data).reshape(_shape(shape), order="F" if order == "F" else "C")


def _device(reader: _Reader, call: _Call) -> str:
    match call.args:
        case (str() as name,):
            return name
        case (str() as name, int() as index):
            return f"{name}:{index}"
    raise PickleError(f"gives arguments to {_name(call)} that no pickler does")


def _size(reader: _Reader, call: _Call) -> tuple[int, ...]:
    return _shape(*_arguments(call, tuple))


def _never_called(reader: _Reader, call: _Call) -> Any:
    raise PickleError(f"calls {_name(call)}, which no pickler does")


_MARK, _ZIP = 0x1950A86A20F9469CFC6C, b"PK\x03\x04"
"""How torch.save's older streams begin (a pickled number), and its zip files."""
_STORAGE_TYPES = {
    "DoubleStorage": torch.float64, "FloatStorage": torch.float32, "HalfStorage": torch.float16, "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64, "IntStorage": torch.int32, "ShortStorage": torch.int16, "CharStorage": torch.int8,
    "ByteStorage": torch.uint8, "BoolStorage": torch.bool,
}  # fmt: skip
_DTYPES = {Global("torch", str(t).removeprefix("torch.")): t for t in _STORAGE_TYPES.values()}
_CONTAINERS = {Global("torch.nn.modules.container", name) for name in ("ModuleDict", "ModuleList", "Sequential")}
_FILLED = {Global("collections", "OrderedDict"), Global("dnnlib.util", "EasyDict")}
_CORES = ("numpy.core", "numpy._core")

_HANDLERS: dict[Global, _Handler] = {
    Global(*RUNS_SOURCE): _persistent,
    Global("torch._utils", "_rebuild_tensor_v2"): _tensor,
    Global("torch._utils", "_rebuild_parameter"): _parameter,
    Global("torch._utils", "_rebuild_parameter_with_state"): _parameter,
    Global("torch", "Size"): _size,
    Global("torch", "device"): _device,
    Global("builtins", "set"): _set,
    Global("__builtin__", "set"): _set,
    Global("builtins", "bytes"): _Reader.text,
    Global("__builtin__", "bytes"): _Reader.text,
    _ENCODE: _Reader.text,
    **dict.fromkeys(_CONTAINERS, _container),
    **dict.fromkeys(_FILLED, _filled),
    **{Global(f"{core}.multiarray", "scalar"): _numpy_scalar for core in _CORES},
    **{Global(f"{core}.multiarray", "_reconstruct"): _numpy_array for core in _CORES},
    **{Global(f"{core}.numeric", "_frombuffer"): _numpy_buffer for core in _CORES},
    **dict.fromkeys([_LOAD, Global("numpy", "dtype"), Global("numpy", "ndarray")], _never_called),
    **dict.fromkeys([Global("torch", name) for name in _STORAGE_TYPES], _never_called),
    **dict.fromkeys(_DTYPES, _never_called),
}
"""The admitted globals, and what makes a value of a call of each."""

_BUILT = {*_CONTAINERS, *_FILLED, *(Global(f"{core}.multiarray", "_reconstruct") for core in _CORES)}
_ADMITTED: dict[Global, type[_Call]] = {g: type(g.name, (_Call,), {"__slots__": (), "target": g}) for g in _HANDLERS}
_STORAGES = {_ADMITTED[Global("torch", name)]: dtype for name, dtype in _STORAGE_TYPES.items()}


def _members(file: BinaryIO, size: int) -> tuple[range, dict[str, range]]:
    """Where in a zip file of torch.save the pickle is, and the storages by key. Members are stored, never compressed."""
    with zipfile.ZipFile(file) as archive:
        infos = archive.infolist()
    spans: dict[str, range] = {}
    for info in infos:
        if info.compress_type != zipfile.ZIP_STORED or info.flag_bits & 1 or info.file_size != info.compress_size:
            raise PickleError(f"has the compressed or encrypted member {_shown(info.filename)}, which torch.save never writes")
        file.seek(info.header_offset)
        header = file.read(30)
        if len(header) < 30 or header[:4] != _ZIP:
            raise PickleError(f"is damaged: its member {_shown(info.filename)} is not where its directory says")
        start = info.header_offset + 30 + sum(struct.unpack("<HH", header[26:]))
        if info.filename in spans or start + info.file_size > size:
            raise PickleError(f"is damaged: its member {_shown(info.filename)} is there twice, or goes beyond its end")
        spans[info.filename] = range(start, start + info.file_size)
    pickles = [name for name in spans if name.rpartition("/")[2] == "data.pkl"]
    if len(pickles) != 1:
        raise PickleError(f"is a zip file with {len(pickles)} members data.pkl; one that torch.save writes has one")
    root = pickles[0].removesuffix("data.pkl")
    order = spans.get(f"{root}byteorder", range(0))
    file.seek(order.start)
    if file.read(len(order)) not in (b"", b"little"):
        raise PickleError("was not written on a little-endian machine")
    data = f"{root}data/"
    return spans[pickles[0]], {name.removeprefix(data): span for name, span in spans.items() if name.startswith(data)}


# --------------------------------------------------------------------------------------------------------- for users


@contextmanager
def _blaming(origin: str | Path) -> Iterator[None]:
    """Turns whatever goes wrong into one line about one file."""
    try:
        yield
    except PickleError as error:
        raise PickleError(f"{origin}: {_shown(error, 600)}") from None
    except FileNotFoundError:
        raise PickleError(f"{origin}: no such file") from None
    except OSError as error:
        raise PickleError(f"{origin}: cannot be read: {_shown(error.strerror or error)}") from None
    except Exception as error:
        reason = _shown(f"{type(error).__name__}: {error}")
        raise PickleError(f"{origin}: is damaged, or not a file of EDM, PFGM++, SiD or IPFM ({reason})") from None


def read_pickle(path: str | Path, tensors: bool = True) -> dict[str, Any]:
    """The top-level dictionary of a network snapshot or of a training state: records, tensors on the CPU, plain values.

    Nothing from the file is executed. Numpy scalars become Python's, arrays are read-only, OrderedDict and EasyDict become
    plain dicts, modules `Persistent` or `Inert`. Takes about the file's size in memory; without `tensors` next to nothing,
    since these are then on the device "meta", with shape and dtype but no numbers. Raises PickleError, whatever is wrong.
    """
    with _blaming(path), open(path, "rb") as file:
        return _Reader(file, tensors).read()


def list_globals(path: str | Path) -> list[tuple[str, str, bool]]:
    """Every global that a file refers to: (module, name, whether `read_pickle` refuses it because it would execute code).

    Found without executing or loading anything, in the pickle, in a zip file's pickles and in the storages' own pickles.
    Of a file that breaks off, what was found before. `RUNS_SOURCE` is not refused, but if it is in the list, then the
    original loader would execute the source text that the file carries. Raises PickleError.
    """
    names: list[Global] = []
    with _blaming(path), open(path, "rb") as file:
        try:
            _find_globals(file, file.seek(0, io.SEEK_END), names)
        except Exception:
            if all(name in _HANDLERS for name in names):
                raise
    return [(*name, name not in _HANDLERS) for name in dict.fromkeys(names)]


def _find_globals(file: BinaryIO, size: int, names: list[Global]) -> None:
    """Collect the globals of a file, and of the streams that its storages are."""
    file.seek(0)
    span = _members(file, size)[0] if file.read(4) == _ZIP else range(size)
    for data in dict.fromkeys(_follow(file, span, names)):
        inner: tuple[BinaryIO, range] = (file, data) if isinstance(data, range) else _in_memory(data)
        inner[0].seek(inner[1].start)
        if inner[0].read(4) == _ZIP or _follow(*inner, names):
            names.append(_UNKNOWN)  # a storage's stream has no storages in it


def _follow(file: BinaryIO, span: range, names: list[Global]) -> list[range | _Latin]:
    """Collect the globals of a pickle, or of an older stream of torch.save; gives the streams in it."""
    trace = _trace(file, span, names, strict=False)
    streams = trace.streams
    if trace.code.endswith(pickle.encode_long(_MARK) + b"."):
        for _ in range(4):
            trace = _trace(file, range(trace.stop, span.stop), names, strict=False)
            streams += trace.streams
    return streams


def _in_memory(data: _Latin) -> tuple[BinaryIO, range]:
    content = data.text.encode("latin-1")
    return io.BytesIO(content), range(len(content))


class _Arguments(Config):
    """What EDM's network takes, within bounds beyond which no such network exists."""

    img_resolution: int = Field(ge=1, le=8192)
    img_channels: int = Field(ge=1, le=1024)
    label_dim: int = Field(0, ge=0, le=1_000_000)
    use_fp16: bool = False
    sigma_min: float = Field(0.0, ge=0, allow_inf_nan=False)
    sigma_max: float = Field(math.inf, gt=0)
    sigma_data: Positive = 0.5
    model_type: Literal["SongUNet", "DhariwalUNet"] = "DhariwalUNet"
    pfgmpp: bool = False
    D: Dimension = math.inf
    augment_dim: int = Field(0, ge=0, le=1024)
    model_channels: int = Field(128, ge=1, le=8192)
    channel_mult: list[int] | tuple[int, ...] = Field((1,), min_length=1, max_length=8)
    channel_mult_emb: int = Field(4, ge=1, le=64)
    num_blocks: int = Field(3, ge=1, le=64)
    attn_resolutions: list[int] | tuple[int, ...] = Field((), max_length=16)
    dropout: float = Field(0.1, ge=0, lt=1)
    label_dropout: float = Field(0.0, ge=0, lt=1)
    embedding_type: Literal["fourier", "positional"] = "positional"
    channel_mult_noise: int = Field(1, ge=1, le=64)
    encoder_type: Literal["standard", "skip", "residual"] = "standard"
    decoder_type: Literal["standard", "skip"] = "standard"
    resample_filter: list[float] | tuple[float, ...] = Field((1, 1), min_length=1, max_length=32)


_LEADING = list(_Arguments.model_fields)[:8]
_AS_IT_STANDS = ("use_fp16", "sigma_min", "sigma_max", "pfgmpp", "D")
"""Attributes that scripts set after construction: where a file has them, they win over the constructor's arguments."""


def network_of(record: Any, origin: str | Path) -> tuple[EDMPrecond, dict[str, Any]]:
    """Our network, in eval mode on the CPU, from the record of an EDMPrecond; and what is known about it.

    The record is checked before anything is built: class, version, arguments, then names, shapes and types of all tensors,
    and the attributes of all layers. Tensors are copied. The second value has `D` (inf unless PFGM++), `tells_D`
    (whether the file says anything about it), `sigma_data`, `label_dim`, `img_resolution`, `img_channels`, `class_name` and
    `version`. Raises PickleError, with `origin` in front.
    """
    with _blaming(origin):
        if not isinstance(record, Persistent):
            raise PickleError(f"holds a {type(record).__name__} where a network of class 'EDMPrecond' belongs")
        if record.class_name != "EDMPrecond":
            raise PickleError(f"holds a network of class {_shown(record.class_name)!r}; only 'EDMPrecond' is supported")
        if not 1 <= record.version <= NEWEST_VERSION:
            raise PickleError(f"has persistent objects of version {record.version}; known are 1 to {NEWEST_VERSION}")
        tensors = record.tensors()
        if any(tensor.is_meta for tensor in tensors.values()):
            raise PickleError("was read without the numbers in its tensors")
        arguments = _constructor_arguments(record, len(tensors))
        with torch.device("meta"):  # takes no memory, whatever the arguments are
            net = EDMPrecond(**arguments)
        _refuse(_tensor_problems(net.state_dict(), tensors), "has tensors that do not fit its network")
        _refuse(_attribute_problems(net, record), "has layers that do not fit its network")
        net.load_state_dict({k: v.clone(memory_format=torch.contiguous_format) for k, v in tensors.items()}, assign=True)
        about = {k: getattr(net, k) for k in ("D", "sigma_data", "label_dim", "img_resolution", "img_channels")}
        tells_D = "pfgmpp" in record.state or "pfgmpp" in record.init_kwargs
        return net.eval(), {**about, "tells_D": tells_D, "class_name": record.class_name, "version": record.version}


def _constructor_arguments(record: Persistent, tensors: int) -> dict[str, Any]:
    """What to build our network with, which must not be larger than that number of tensors allows."""
    positional = record.state.get("_init_args", ())
    if type(positional) is not tuple or len(positional) > len(_LEADING):
        raise PickleError(f"gives its network other positional arguments than {', '.join(_LEADING)}")
    given = dict(zip(_LEADING, positional, strict=False))
    if twice := given.keys() & record.init_kwargs.keys():
        raise PickleError(f"gives its network the argument {min(twice)} twice")
    given |= record.init_kwargs | {k: record.state[k] for k in _AS_IT_STANDS if k in record.state}
    try:
        arguments = _Arguments.model_validate(given)
    except ValidationError as error:
        first = error.errors()[0]
        where = _shown(".".join(map(str, first["loc"])))
        raise PickleError(f"has a network whose argument {where} is wrong: {_shown(first['msg'])}") from None
    if arguments.pfgmpp and "D" not in given:
        raise PickleError("says that its network is PFGM++'s (pfgmpp), but not what D is")
    blocks = len(arguments.channel_mult) * (2 * arguments.num_blocks + 1)
    if 10 * blocks > tensors:
        raise PickleError(f"asks for a network of {blocks} blocks, but holds only {tensors} tensors for it")
    return arguments.model_dump(exclude_unset=True) | {"D": arguments.D if arguments.pfgmpp else math.inf}


def _tensor_problems(wanted: dict[str, Tensor], found: dict[str, Tensor]) -> list[str]:
    """Names that are missing or unknown, and tensors of other shapes than wanted, or not of float32."""
    problems = [f"missing {k}" for k in wanted if k not in found] + [f"unknown {_shown(k)}" for k in found if k not in wanted]
    for name in (k for k in wanted if k in found):
        its, mine = found[name], list(wanted[name].shape)
        if list(its.shape) != mine or its.dtype != torch.float32:
            problems.append(f"{name} is {list(its.shape)} {its.dtype}, not {mine} torch.float32")
    return problems


def _attribute_problems(net: EDMPrecond, record: Persistent) -> list[str]:
    """Where a layer's attributes contradict ours of the same name: number of heads, scales, epsilons, resampling."""
    layers, problems = dict(net.named_modules()), []
    for path, module in record.modules():
        ours = vars(layers[path]) if path in layers else {}
        if not ours:
            problems.append(f"{_shown(path)} is unknown")
        for name in sorted(ours.keys() & module.state.keys() - {"training", *_AS_IT_STANDS}):
            mine, its = ours[name], module.state[name]
            if isinstance(mine, bool | int | float) and not (isinstance(its, bool | int | float) and math.isclose(mine, its)):
                shown = its if isinstance(its, bool | int | float | None) else f"a {type(its).__name__}"
                problems.append(f"{path}.{name}".lstrip(".") + f" is {shown}, not {mine}")
    return problems


def _refuse(problems: list[str], summary: str) -> None:
    if problems:
        raise PickleError(f"{summary}: {'; '.join(problems[:5])} ({len(problems)} in all)")
