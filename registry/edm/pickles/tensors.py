"""Stage 3: the values that torch's globals stand for: tensors, parameters, shapes and devices."""

from __future__ import annotations

import math
from collections.abc import Sequence
from types import NoneType
from typing import Any

from torch import Tensor

from registry.edm.pickles.notes import Call, arguments_of, name_of
from registry.edm.pickles.rebuild import Rebuilder
from registry.edm.pickles.refusals import MAX_ARGUMENTS, PickleError

MARGIN, MOST_TIMES = 2**20, 32
"""Bytes that tensors may take beyond twice those that a file holds; how often it may hold the same tensor under several names."""


def take_too_much(tensors: Sequence[Tensor], size: int) -> bool:
    """Whether tensors take far more memory than a file of this size has bytes: a few numbers can be a tensor's of any shape, and
    those of many tensors. Networks have some of their weights in several places."""
    views = {(t.untyped_storage()._cdata, t.storage_offset(), t.shape, t.stride()): t.nbytes for t in tensors}
    return sum(views.values()) > 2 * size + MARGIN or sum(t.nbytes for t in tensors) > MOST_TIMES * size + 256 * MARGIN


def shape_of(raw: Any) -> tuple[int, ...]:
    """The shape or the strides of a tensor or array, checked."""
    if not (isinstance(raw, tuple) and len(raw) <= MAX_ARGUMENTS and all(type(n) is int and n >= 0 for n in raw)):
        raise PickleError("has a tensor whose shape or strides are not a few whole numbers")
    return raw


def tensor(rebuilder: Rebuilder, call: Call) -> Tensor:
    """A view of a storage. It must lie within the storage and use each number at most once."""
    storage, offset, size, stride = arguments_of(call, object, int, tuple, tuple, more=3)
    check_extras(rebuilder, *call.args[4:6])
    if len(call.args) == 7 and call.args[6]:
        raise PickleError("has a tensor with metadata (a conjugate or negative view), which networks and optimizers do not have")
    flat, size, stride = rebuilder.data.storage(storage), shape_of(size), shape_of(stride)
    numel = math.prod(size)
    if numel == 0:
        return flat[:0].reshape(size)
    last = offset + sum((n - 1) * s for n, s in zip(size, stride, strict=True))
    if offset < 0 or last >= len(flat):
        raise PickleError(f"has a tensor of shape {list(size)} that reaches beyond its {len(flat)} numbers")
    if numel > len(flat):
        raise PickleError(f"has a tensor of shape {list(size)} that repeats its {len(flat)} numbers")
    return flat.as_strided(size, stride, offset)


def check_extras(rebuilder: Rebuilder, *extras: Any) -> None:
    """Check what stands beside a tensor's numbers: whether it has gradients, and its hooks, of which there are none."""
    for extra in extras:
        if not (extra is None or type(extra) is bool or rebuilder.value(extra) == {}):
            raise PickleError("has a tensor with hooks, which no pickler writes")


def parameter(rebuilder: Rebuilder, call: Call) -> Tensor:
    """A parameter as a plain tensor."""
    (data,) = arguments_of(call, object, more=3)
    check_extras(rebuilder, *call.args[1:3])
    for state in call.args[3:]:
        if type(rebuilder.value(state)) not in (dict, NoneType):
            raise PickleError("has a parameter with a state that is not a dictionary")
    found = rebuilder.value(data)
    if not isinstance(found, Tensor):
        raise PickleError(f"has {name_of(data)} in a place where a tensor belongs")
    return found


def size(rebuilder: Rebuilder, call: Call) -> tuple[int, ...]:
    """A `torch.Size` as a tuple."""
    return shape_of(*arguments_of(call, tuple))


def device(rebuilder: Rebuilder, call: Call) -> str:
    """A `torch.device` as its name."""
    match call.args:
        case (str() as name,):
            return name
        case (str() as name, int() as index):
            return f"{name}:{index}"
    raise PickleError(f"calls {name_of(call)} with arguments that no pickler writes")
