"""Stage 3: `Persistent` and `Inert`, the records that stand for the modules and other objects of a file."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from registry.core.text import shown
from registry.edm.pickles.refusals import PickleError

LONGEST, MOST_LETTERS = 1000, 10_000_000
"""The most characters of a module's dotted name, and of the names of all tensors: a large network's have 300,000."""


class _Record:
    """The common part of both records: a class's name and attributes. The class may be a torch module."""

    class_name: str
    state: dict[str, Any]

    def modules(self, path: str = "") -> Iterator[tuple[str, _Record]]:
        """This record and its sub-modules with their dotted names, in the order of `nn.Module.named_modules`."""
        yield path, self
        for name, module in self._part("_modules"):
            if not isinstance(module, _Record):
                raise PickleError(f"its module {shown(name)} is a {type(module).__name__}, not a module")
            yield from module.modules(f"{path}.{name}" if path else name)

    def tensors(self) -> dict[str, Tensor]:
        """Parameters and persistent buffers by dotted name, in the order of `nn.Module.state_dict`. Raises PickleError.

        In files that distill writes, a network keeps them in one flat dictionary, `_tensors`.
        """
        found: dict[str, Tensor] = {}
        letters = 0
        for path, module in self.modules():
            if len(path) > LONGEST:
                raise PickleError(f"its module {shown(path)} has a name of more than {LONGEST} characters")
            transient = module.state.get("_non_persistent_buffers_set", set())
            if not isinstance(transient, set):
                raise PickleError(f"_non_persistent_buffers_set of its {shown(module.class_name)} is not a set")
            buffers = [(k, v) for k, v in module._part("_buffers") if k not in transient]
            for name, tensor in [*module._part("_parameters"), *buffers, *module._part("_tensors")]:
                full = f"{path}.{name}" if path else name
                letters += len(full)
                if letters > MOST_LETTERS:
                    raise PickleError(f"has tensors whose names have more than {MOST_LETTERS:,} characters together")
                if not isinstance(tensor, Tensor):
                    raise PickleError(f"its {shown(full)} is a {type(tensor).__name__}, not a tensor")
                if full in found:
                    raise PickleError(f"has two tensors named {shown(full)}")
                found[full] = tensor
        return found

    def _part(self, name: str) -> list[tuple[str, Any]]:
        """The items of one of a module's dictionaries, without those that are None."""
        part = self.state.get(name, {})
        if not (isinstance(part, dict) and all(isinstance(k, str) for k in part)):
            raise PickleError(f"{name} of its {shown(self.class_name)} is not a dictionary of names")
        return [(k, v) for k, v in part.items() if v is not None]

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {shown(self.class_name)}>"


@dataclass(repr=False, eq=False)
class Inert(_Record):
    """The attributes of an object whose class is known but not needed, for example a module container."""

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
            raise PickleError(f"_init_kwargs of its {shown(self.class_name)} is not a dictionary of names")
        return found
