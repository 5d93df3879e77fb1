"""Stage 3: turns notes into values, within the limits on number, depth and size."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from registry.edm.pickles.allowlist import DICTIONARIES, DTYPES, MODULE_CONTAINERS, NUMPY_ARRAYS, Global
from registry.edm.pickles.file_data import FileData
from registry.edm.pickles.notes import Call, name_of
from registry.edm.pickles.refusals import MAX_DEPTH, MAX_PARTS, PickleError

Handler = Callable[["Rebuilder", Call], Any]
"""Makes the value that a call stands for."""

_TAKE_ITEMS = DICTIONARIES
_TAKE_STATE = MODULE_CONTAINERS | DICTIONARIES | NUMPY_ARRAYS


class Rebuilder:
    """Rebuilds the values of one file, with a handler for each allowed global."""

    def __init__(self, data: FileData, handlers: Mapping[Global, Handler]) -> None:
        self.data, self._handlers = data, handlers
        self._parts = 0
        self._done: dict[int, tuple[Any, int]] = {}  # what was rebuilt, and how many parts it has
        self._open: set[int] = set()  # what is being rebuilt

    def value(self, raw: Any) -> Any:
        """The value that notes stand for. Refuses cycles, deep nesting, and values that would unfold to too many parts."""
        if raw is None or type(raw) in (bool, int, float, str):
            self._count(1 + len(raw) // 100 if type(raw) is str else 1)
            return raw
        key = id(raw)
        if key in self._done:
            value, parts = self._done[key]
            self._count(parts)
            return value
        if key in self._open:
            raise PickleError("has a value that contains itself")
        if len(self._open) == MAX_DEPTH:
            raise PickleError(f"has values nested more than {MAX_DEPTH} deep")
        self._open.add(key)
        before = self._parts
        self._count(1)
        value = self._build(raw)
        self._open.remove(key)
        self._done[key] = value, self._parts - before
        return value

    def key(self, raw: Any) -> str | int:
        """A key of a dictionary, or a member of a set."""
        if not (type(raw) is str or (type(raw) is int and abs(raw) < 2**63)):
            raise PickleError("has a dictionary or set with keys other than text and small whole numbers")
        self.value(raw)
        return raw

    def text(self, raw: Any) -> bytes:
        """A byte string as a value."""
        found = self.data.byte_string(raw)
        self._count(len(found) // 100)
        return found

    def _count(self, parts: int) -> None:
        self._parts += parts
        if self._parts > MAX_PARTS:
            raise PickleError(f"unfolds to more than {MAX_PARTS} values, several times what the largest training states hold")

    def _build(self, raw: Any) -> Any:
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
        if isinstance(raw, Call):
            raw.read = True
            if (raw.items and raw.target not in _TAKE_ITEMS) or (raw.state is not None and raw.target not in _TAKE_STATE):
                raise PickleError(f"uses {name_of(raw)} in a way that no pickler does")
            return self._handlers[raw.target](self, raw)
        if isinstance(raw, type) and issubclass(raw, Call) and raw.target in DTYPES:
            return DTYPES[raw.target]
        raise PickleError(f"has {name_of(raw)} in a place where a value belongs")
