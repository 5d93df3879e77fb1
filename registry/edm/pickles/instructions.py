"""Stage 1: the pickle instructions, which of them are allowed, and reading them from a file as data."""

from __future__ import annotations

import pickletools
import struct
from collections.abc import Callable, Iterator
from typing import Any, BinaryIO, NamedTuple

from registry.edm.pickles.refusals import CUT, Misframed, PickleError


class Op(NamedTuple):
    """A pickle instruction: the size of its argument, what it takes from the stack, and what it puts there."""

    name: str
    code: bytes
    size: int
    read: Callable[[BinaryIO], Any] | None
    marked: bool
    pops: int
    pushes: int


def _op(info: pickletools.OpcodeInfo) -> Op:
    before, marked = list(info.stack_before), pickletools.markobject in info.stack_before
    pops = before.index(pickletools.markobject) if marked else len(before)
    size, read = (info.arg.n, info.arg.reader) if info.arg else (0, None)
    return Op(info.name, info.code.encode("latin-1"), size, read, marked, pops, len(info.stack_after))


_OPS = {op.code: op for op in map(_op, pickletools.opcodes)}
_LENGTHS = {
    pickletools.TAKEN_FROM_ARGUMENT1: "<B",
    pickletools.TAKEN_FROM_ARGUMENT4: "<i",
    pickletools.TAKEN_FROM_ARGUMENT4U: "<I",
    pickletools.TAKEN_FROM_ARGUMENT8U: "<Q",
}
PUTS, GETS = {"BINPUT", "LONG_BINPUT", "PUT"}, {"BINGET", "LONG_BINGET", "GET"}
TUPLES = {"EMPTY_TUPLE", "TUPLE", "TUPLE1", "TUPLE2", "TUPLE3"}
NUMBERS = {"BININT", "BININT1", "BININT2"}
TEXTS = {"SHORT_BINUNICODE", "BINUNICODE", "BINUNICODE8", "UNICODE", "STRING", "BINSTRING", "SHORT_BINSTRING"}
BLOBS = {"BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8"}
GLOBALS = {"GLOBAL", "STACK_GLOBAL", "INST", "EXT1", "EXT2", "EXT4"}
FILLS = {"SETITEM", "SETITEMS", "ADDITEMS", "APPEND", "APPENDS", "BUILD"}
CALLS = {"REDUCE", "NEWOBJ", "NEWOBJ_EX", "OBJ"}

ALLOWED_INSTRUCTIONS = TUPLES | NUMBERS | BLOBS | FILLS | {
    "PROTO", "FRAME", "STOP", "MARK", "NONE", "NEWTRUE", "NEWFALSE", "LONG1", "BINFLOAT", "EMPTY_LIST", "EMPTY_DICT", "EMPTY_SET",
    "SHORT_BINUNICODE", "BINUNICODE", "BINUNICODE8", "GLOBAL", "STACK_GLOBAL", "REDUCE", "NEWOBJ", "BINPERSID",
    "BINPUT", "LONG_BINPUT", "BINGET", "LONG_BINGET", "MEMOIZE",
}  # fmt: skip
"""The instructions that Python's pickler writes in protocols 2 to 5 for files of this kind.

Left out on purpose: all other ways to call something or look it up (INST, OBJ, NEWOBJ_EX, EXT*, PERSID), numbers of any
length, frozen sets, everything that self-reference needs, and buffers.
"""


def instructions(file: BinaryIO, span: range) -> Iterator[tuple[Op, Any, bytes]]:
    """The pickle that starts at `span.start`: each instruction, its argument, and its bytes as they are in the file.

    A byte string is not read: its argument is its place in the file. Nothing beyond the span is read. Every instruction must lie
    in a frame or outside, and the last frame must end with the pickle: Python's unpickler lets go of what is left of a frame when
    it needs more, and goes on behind a frame when it is asked for the next pickle.
    """
    position = frame = span.start
    file.seek(position)

    def take(size: int | None) -> bytes:
        nonlocal position
        left = span.stop - position
        found = file.readline(left) if size is None else file.read(min(size, left))
        position += len(found)
        if len(found) != size and (size is not None or not found.endswith(b"\n")):
            raise PickleError(f"{CUT}: it ends in the middle")
        return found

    while True:
        begin = position
        code = take(1)
        op = _OPS.get(code)
        if op is None:
            raise PickleError(f"is damaged, or not a pickle: it has the unknown instruction {code!r}")
        if op.size > 0:
            argument = take(op.size)
            if begin < frame:
                check_frame(op, position, frame)
            if op.name == "FRAME":
                frame = position + int.from_bytes(argument, "little")
                if frame > span.stop:
                    raise PickleError(f"{CUT}: it announces a part larger than itself")
            yield op, argument, code + argument
        elif op.size == 0:
            if begin < frame:
                check_frame(op, position, frame)
            yield op, b"", code
            if op.name == "STOP":
                return
        elif op.size == pickletools.UP_TO_NEWLINE:
            argument = take(None) + (take(None) if op.name in ("GLOBAL", "INST") else b"")
            if begin < frame:
                check_frame(op, position, frame)
            yield op, argument, code + argument
        else:
            head = take(struct.calcsize(_LENGTHS[op.size]))
            (length,) = struct.unpack(_LENGTHS[op.size], head)
            if not 0 <= length <= span.stop - position:
                raise PickleError(f"{CUT}: it announces a piece of {length} bytes")
            if begin < frame:
                check_frame(op, position + length, frame)
            if op.name in BLOBS:
                yield op, range(position, position + length), code + head
                position += length
                file.seek(position)
            else:
                argument = take(length)
                yield op, argument, code + head + argument


def check_frame(op: Op, end: int, frame: int) -> None:
    """Check an instruction that begins in a frame, and ends at a position, against the end of that frame. Raises Misframed."""
    if end > frame or op.name == "FRAME" or (op.name == "STOP" and end < frame):
        raise Misframed("is damaged: its frames do not fit its instructions")
