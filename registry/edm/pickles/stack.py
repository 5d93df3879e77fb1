"""Stage 1: what the stack knows of values, and which uses of them would execute something although every global is allowed."""

from __future__ import annotations

from typing import Any, NamedTuple

from registry.edm.pickles.allowlist import (
    DICTIONARIES,
    DTYPES,
    LOAD_FROM_BYTES,
    MODULE_CONTAINERS,
    NUMPY_ARRAYS,
    NUMPY_DTYPE,
    NUMPY_NDARRAY,
    STORAGES,
    UNTYPED,
    Global,
)
from registry.edm.pickles.instructions import CALLS, FILLS

UNKNOWN = Global("?", "?")
"""Stands for a global that only executing the file would reveal."""
DICTIONARY = object()
"""Stands for a dictionary that is no object of a class."""
NEVER_CALLED = {NUMPY_NDARRAY, UNTYPED, *STORAGES, *DTYPES}
"""Picklers only mention these; called, some of them show any place in memory."""
TAKE_STATE = MODULE_CONTAINERS | NUMPY_ARRAYS | {NUMPY_DTYPE, Global("collections", "OrderedDict")}
"""Picklers give a state to what these make, as the last thing that is done to it."""


class Latin(NamedTuple):
    """A byte string as protocol 2 writes it: a call that encodes this text as latin-1."""

    text: str


class Made:
    """Stands for what a call makes. `finished`: it has got its state."""

    __slots__ = ("finished", "target")

    def __init__(self, target: Any) -> None:
        self.target, self.finished = target, False


def would_run(name: str, items: list[Any]) -> bool:
    """Whether an instruction with these values runs what the globals do not show. Notes of what gets its state that it has it.

    What loads bytes may only be called, and never be kept: as an attribute of an object it would be called by a second state, by
    an item that is added, or in place of the object's own method. For the same reason only functions and classes are called, what
    a call makes gets a state at most once, and then nothing more.
    """
    if not items:
        return name == "INST"
    passed = items[1:] if name in CALLS else items
    if any(type(item) is Global and item == LOAD_FROM_BYTES for item in passed) or name == "INST":
        return True
    if name in CALLS:
        return type(items[0]) is not Global or items[0] in NEVER_CALLED
    if name not in FILLS:
        return False
    owner = items[0]
    if type(owner) is not Made:
        return type(owner) is Global
    if name == "BUILD":
        again, owner.finished = owner.finished, True
        return again or owner.target not in TAKE_STATE
    return owner.finished or owner.target not in DICTIONARIES or name not in ("SETITEM", "SETITEMS")
