"""Stage 3: the values that numpy's globals stand for. Scalars become Python's numbers, and arrays are read-only."""

from __future__ import annotations

import re
from typing import Any

import numpy as np

from registry.core.text import shown
from registry.edm.pickles.allowlist import NUMPY_DTYPE, NUMPY_NDARRAY
from registry.edm.pickles.notes import CALL_CLASSES, Call, arguments_of, name_of
from registry.edm.pickles.rebuild import Rebuilder
from registry.edm.pickles.refusals import PickleError
from registry.edm.pickles.tensors import shape_of


def numpy_scalar(rebuilder: Rebuilder, call: Call) -> bool | int | float:
    """A numpy scalar as a plain number."""
    (number,) = _numbers(rebuilder, *arguments_of(call, object, object))
    plain: bool | int | float = number.item()
    return plain


def numpy_array(rebuilder: Rebuilder, call: Call) -> np.ndarray[Any, Any]:
    """An array as most protocols write it: an empty array, with the numbers in its state."""
    match call.args, call.state:
        case (type() as kind, (0,), code), (1, shape, dtype, bool() as columns, data) if kind is CALL_CLASSES[NUMPY_NDARRAY]:
            rebuilder.value(code)
            return _numbers(rebuilder, dtype, data).reshape(shape_of(shape), order="F" if columns else "C")
    raise PickleError("has a numpy array that no pickler writes")


def numpy_buffer(rebuilder: Rebuilder, call: Call) -> np.ndarray[Any, Any]:
    """An array as protocol 5 writes it: a call with the numbers among its arguments."""
    data, dtype, shape, order = arguments_of(call, object, object, tuple, str)
    return _numbers(rebuilder, dtype, data).reshape(shape_of(shape), order="F" if order == "F" else "C")


def _numbers(rebuilder: Rebuilder, dtype: Any, data: Any) -> np.ndarray[Any, Any]:
    """Numbers of a plain dtype as a flat array, which is a view of the byte string. Truth values are a copy."""
    kind, content = _dtype(dtype), rebuilder.data.byte_string(data)
    if kind.kind != "b":
        return np.frombuffer(content, kind)
    rebuilder.data.spend(len(content))
    truths: np.ndarray[Any, Any] = np.frombuffer(content, "u1") != 0
    return truths


def _dtype(raw: Any) -> np.dtype[Any]:
    """A dtype of plain numbers."""
    if not (isinstance(raw, Call) and raw.target == NUMPY_DTYPE):
        raise PickleError(f"has {name_of(raw)} in a place where a numpy dtype belongs")
    (code,) = arguments_of(raw, str, more=2)
    match raw.state:
        case (int(), "<" | "|", None, None, None, -1, -1, 0, *_) if re.fullmatch("b1|[iu][1248]|f[248]", code):
            return np.dtype(f"<{code}")
    raise PickleError(f"has a numpy dtype {shown(code)} that is not one of plain little-endian numbers")
