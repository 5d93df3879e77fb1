"""Stage 2: notes of what a file asks for. The unpickler makes them, and stage 3 reads them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, ClassVar, NamedTuple

import torch

from registry.edm.pickles.allowlist import ALLOWED_GLOBALS, STORAGES, Global
from registry.edm.pickles.refusals import PickleError


class Call:
    """A note of what a file asks for: a global called with `args`, then filled with `items`, then given a `state`.

    An unpickler can do nothing else to it: it has no other method or attribute, and no `__dict__`.
    """

    __slots__ = ("args", "items", "read", "state")
    __hash__ = None  # type: ignore[assignment]
    args: tuple[Any, ...]
    items: list[tuple[Any, Any]]
    state: Any
    read: bool
    """Whether stage 3 has looked at it."""
    target: ClassVar[Global]

    def __new__(cls, *args: Any) -> Call:
        self = object.__new__(cls)
        self.args, self.items, self.state, self.read = args, [], None, False
        _made.get().append(self)
        return self

    def __setitem__(self, key: Any, value: Any) -> None:
        self.items.append((key, value))

    def __setstate__(self, state: Any) -> None:
        self.state = state


_made: ContextVar[list[Call]] = ContextVar("made")
_later: ContextVar[list[str]] = ContextVar("later")


@contextmanager
def all_of_it() -> Iterator[None]:
    """For the reading of a file: every call that it asks for must be looked at, also one that is no part of its value. Those that
    nobody looks at could ask for anything: numpy's functions read any place in memory. Raises PickleError."""
    token, later = _made.set([]), _later.set([])
    try:
        yield
        for reason in _later.get():
            raise PickleError(reason)
        if unread := [note for note in _made.get() if not note.read]:
            raise PickleError(f"calls {name_of(unread[0])} for something that is not part of its content, which no pickler does")
    finally:
        _made.reset(token)
        _later.reset(later)


def refuse_later(reason: str) -> None:
    """Refuse the file when all of it was looked at, unless something else, which can be named better, is found until then."""
    _later.get().append(reason)


class Storage(NamedTuple):
    """A storage that is kept outside the pickle."""

    key: str
    dtype: torch.dtype
    numel: int


CALL_CLASSES: dict[Global, type[Call]] = {g: type(g.name, (Call,), {"__slots__": (), "target": g}) for g in ALLOWED_GLOBALS}
"""What the unpickler gets for each allowed global: a class of notes."""

STORAGE_CLASSES = {CALL_CLASSES[g]: dtype for g, dtype in STORAGES.items()}
"""The classes of notes that stand for storage classes, and the type of their numbers."""


def name_of(raw: Any) -> str:
    """What something is, in words for a message."""
    is_note = isinstance(raw, Call) or (isinstance(raw, type) and issubclass(raw, Call))
    return ".".join(raw.target) if is_note else f"a {type(raw).__name__.strip('_')}"


def arguments_of(call: Call, *kinds: type, more: int = 0) -> tuple[Any, ...]:
    """A call's arguments, which must be of exactly these types. Up to `more` further arguments are ignored. Raises PickleError."""
    fits = len(kinds) <= len(call.args) <= len(kinds) + more
    if not (fits and all(k is object or type(a) is k for a, k in zip(call.args, kinds, strict=False))):
        raise PickleError(f"calls {name_of(call)} with arguments that no pickler writes")
    call.read = True
    return call.args[: len(kinds)]
