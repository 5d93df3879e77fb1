"""Stage 1: follows a pickle's instructions without executing them, and cuts out the byte strings."""

from __future__ import annotations

import io
import pickletools
import struct
from collections.abc import Callable
from typing import Any, BinaryIO, NamedTuple

from registry.edm.pickles.allowlist import DICTIONARIES, ENCODE, LOAD_FROM_BYTES, Global
from registry.edm.pickles.instructions import (
    ALLOWED_INSTRUCTIONS,
    BLOBS,
    CALLS,
    FILLS,
    GETS,
    GLOBALS,
    NUMBERS,
    PUTS,
    TEXTS,
    TUPLES,
    Op,
    instructions,
)
from registry.edm.pickles.refusals import CALL_BYTES, FEW_CALLS, FEW_PARTS, MAX_ARGUMENTS, MAX_PARTS, PickleError
from registry.edm.pickles.stack import DICTIONARY, UNKNOWN, Latin, Made, would_run


class Trace(NamedTuple):
    """A pickle's instructions, followed without executing them."""

    code: bytes
    """The instructions with byte strings cut out: number i of `blobs` has become the persistent id i."""
    blobs: list[range]
    """Where the byte strings are in the file."""
    streams: list[range | Latin]
    """The byte strings that `torch.storage._load_from_bytes` is asked to load."""
    stop: int
    """Where the pickle ends in the file."""
    is_dictionary: bool
    """Whether its value is certainly one."""


def trace_pickle(file: BinaryIO, span: range, names: list[Global], strict: bool, careful: bool = False) -> Trace:
    """Follow a pickle's instructions on a simple stack, which knows only texts, byte strings, globals and tuples of these.

    Globals are added to `names` as they appear. With `strict`, anything that stage 2 must not see is refused; with
    `careful`, what would crash or stall an unpickler although it executes nothing. Raises PickleError.
    """
    most_calls = max(FEW_CALLS, len(span) // CALL_BYTES) if careful and not strict else MAX_PARTS
    careful = careful or strict
    most = min(MAX_PARTS, max(FEW_PARTS, len(span) * 2 // 3))
    code, blobs, streams, calls = bytearray(), list[range](), list[range | Latin](), 0
    stack, marks, memo = list[Any](), list[int](), dict[str, Any]()  # well-chosen numbers would collide
    for count, (op, argument, text) in enumerate(instructions(file, span), 1):
        name = op.name
        if count > most:
            raise PickleError(f"has more than {most} instructions, more than training states of its size need")
        if strict and name not in ALLOWED_INSTRUCTIONS:
            raise PickleError(f"uses the pickle instruction {name}, which no network snapshot or training state needs")
        if name == "FRAME":  # a hint for reading ahead, which is wrong once the byte strings are cut out
            continue
        if name in BLOBS:
            text = b"J" + struct.pack("<i", len(blobs)) + b"Q"
            blobs.append(argument)
        code += text

        if name in GETS:
            if (key := str(_index(op, argument))) not in memo:
                raise PickleError(f"is damaged: it uses a value {key} that it does not have")
            stack.append(memo[key])
        elif name in PUTS:
            number = _index(op, argument)
            if careful and number > count:  # Python's unpickler would make room for all smaller numbers
                raise PickleError(f"is damaged: it numbers a value {number} after only {count} instructions")
            memo[str(number)] = stack[-1]
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
            calls += name in CALLS
            if calls > most_calls:
                raise PickleError(f"calls something more than {most_calls:,} times, more often than files of its size need")
            if careful:
                _check(name, items)
            stack[bottom:] = pushed = _pushed(op, argument, text, items)
            if name == "MEMOIZE":
                memo[str(len(memo))] = items[0]
            else:
                _collect(name, items, pushed, names, streams)
    return Trace(bytes(code), blobs, streams, file.tell(), items == [DICTIONARY])  # STOP was last, and took the whole value


def _pushed(op: Op, argument: Any, text: bytes, items: list[Any]) -> list[Any]:
    """What an instruction leaves on the stack in place of `items`. None stands for values that do not matter here."""
    name = op.name
    if name in FILLS or name == "MEMOIZE":
        return items[:1]
    if name in TUPLES:
        return [tuple(items)]
    if name in ("EMPTY_DICT", "DICT"):
        return [DICTIONARY]
    if name in NUMBERS:
        return [None if name.startswith("LONG") else 0]
    if name in BLOBS:
        return [argument]
    if name in GLOBALS:
        return [_global(name, argument, items)]
    if name in TEXTS and op.read:
        return [_text(op.read, text)]
    if name == "REDUCE" and items[0] == ENCODE:
        match items[1]:
            case (str() as letters, "latin1" | "latin-1"):
                return [Latin(letters)]
    if name == "BINPERSID":
        match items[0]:
            case ("module", Global() as kind, *_):  # a class, as torch's older streams store it with its source
                return [kind]
    if name in CALLS:
        return [Made(items[0])]
    return items * 2 if name == "DUP" else [None] * op.pushes


def _collect(name: str, items: list[Any], pushed: list[Any], names: list[Global], streams: list[range | Latin]) -> None:
    """Add the globals that an instruction refers to, and the byte string that it asks torch to load, if any."""
    if name in GLOBALS:
        names += pushed
    if would_run(name, items):
        names.append(UNKNOWN)
    elif name in CALLS and items[0] == LOAD_FROM_BYTES:
        match items:
            case [_, range() | Latin() as data] | [_, (range() | Latin() as data,)]:
                streams.append(data)
            case _:
                names.append(UNKNOWN)


def _check(name: str, items: list[Any]) -> None:
    """Refuse input that would crash or stall Python's unpickler even though it executes nothing."""
    # Keys are hashed. Deeply nested tuples would overflow C's stack there, and well-chosen large numbers would collide.
    keys = {"SETITEM": items[1:2], "SETITEMS": items[1::2], "ADDITEMS": items[1:]}.get(name, []) if name in FILLS else []
    if not all(type(key) in (str, int) for key in keys):
        raise PickleError("has a dictionary or set with keys other than text and small whole numbers")
    # Arguments are copied, and the same long tuple could be the argument of a great many calls.
    if name in CALLS and not (type(items[1]) is tuple and len(items[1]) <= MAX_ARGUMENTS):
        raise PickleError(f"calls something with more than {MAX_ARGUMENTS} arguments, or not with a tuple, which no pickler does")
    # So could the same long tuple in the arguments, or the dictionary that another one is made from.
    if name in CALLS and any(type(of) is tuple and len(of) > MAX_ARGUMENTS for of in items[1]):
        raise PickleError(f"calls something with a tuple of more than {MAX_ARGUMENTS} values, which no pickler does")
    if name in CALLS and type(items[0]) is Global and items[0] in DICTIONARIES and items[1]:
        raise PickleError("makes a dictionary from another one, which no pickler does")


def _text(read: Callable[[BinaryIO], Any], text: bytes) -> Any:
    """A text, or None where loaders differ in what it is: some read old texts as ASCII, some as UTF-8 or Latin-1."""
    try:
        return read(io.BytesIO(text[1:]))
    except ValueError:
        return None


def _index(op: Op, argument: bytes) -> int:
    return int(argument) if op.size == pickletools.UP_TO_NEWLINE else int.from_bytes(argument, "little")


def _global(name: str, argument: bytes, items: list[Any]) -> Global:
    if name == "STACK_GLOBAL":
        return Global(*(item if type(item) is str else "?" for item in items))
    if name.startswith("EXT"):
        return Global("copyreg", f"extension {int.from_bytes(argument, 'little')}")
    return Global(*argument.decode("utf-8", "backslashreplace").split("\n")[:2])
