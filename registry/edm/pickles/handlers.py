"""Stage 3: which function handles which global of the allow-list."""

from __future__ import annotations

from typing import Any

from registry.edm.pickles.allowlist import (
    ALLOWED_GLOBALS,
    DEVICE,
    DICTIONARIES,
    DTYPES,
    EMPTY_BYTES,
    ENCODE,
    LOAD_FROM_BYTES,
    MODULE_CONTAINERS,
    NUMPY_ARRAYS,
    NUMPY_BUFFERS,
    NUMPY_DTYPE,
    NUMPY_NDARRAY,
    NUMPY_SCALARS,
    PARAMETERS,
    RUNS_SOURCE,
    SETS,
    SIZE,
    STORAGES,
    TENSOR,
    Global,
)
from registry.edm.pickles.arrays import numpy_array, numpy_buffer, numpy_scalar
from registry.edm.pickles.notes import Call, arguments_of, name_of
from registry.edm.pickles.rebuild import Handler, Rebuilder
from registry.edm.pickles.records import Inert, Persistent
from registry.edm.pickles.refusals import PickleError
from registry.edm.pickles.tensors import device, parameter, size, tensor


def _persistent(rebuilder: Rebuilder, call: Call) -> Persistent:
    (meta,) = arguments_of(call, dict)
    kind, name, version, state = (meta.get(k) for k in ("type", "class_name", "version", "state"))
    if kind != "class" or type(name) is not str or type(version) is not int or type(state) is not dict:
        raise PickleError("has a persistent object that is not a class with name, version and state")
    return Persistent(name, version, rebuilder.value(state))


def _module_container(rebuilder: Rebuilder, call: Call) -> Inert:
    arguments_of(call)
    if type(call.state) is not dict:
        raise PickleError(f"has a {name_of(call)} without attributes")
    return Inert(call.target.name, rebuilder.value(call.state))


def _dictionary(rebuilder: Rebuilder, call: Call) -> dict[Any, Any]:
    arguments_of(call)
    if call.state is not None and type(rebuilder.value(call.state)) is not dict:
        raise PickleError(f"has a {name_of(call)} with attributes that are not a dictionary")
    return {rebuilder.key(k): rebuilder.value(v) for k, v in call.items}


def _set(rebuilder: Rebuilder, call: Call) -> set[Any]:
    (members,) = arguments_of(call, list)
    return {rebuilder.key(k) for k in members}


def _never_called(rebuilder: Rebuilder, call: Call) -> Any:
    raise PickleError(f"calls {name_of(call)}, which no pickler does")


HANDLERS: dict[Global, Handler] = {
    RUNS_SOURCE: _persistent,
    **dict.fromkeys(MODULE_CONTAINERS, _module_container),
    **dict.fromkeys(DICTIONARIES, _dictionary),
    **dict.fromkeys(SETS, _set),
    **dict.fromkeys({ENCODE} | EMPTY_BYTES, Rebuilder.text),
    TENSOR: tensor,
    **dict.fromkeys(PARAMETERS, parameter),
    SIZE: size,
    DEVICE: device,
    **dict.fromkeys(NUMPY_SCALARS, numpy_scalar),
    **dict.fromkeys(NUMPY_ARRAYS, numpy_array),
    **dict.fromkeys(NUMPY_BUFFERS, numpy_buffer),
    # The rest are only mentioned, or are part of one of the above. A call of them is not a value.
    **dict.fromkeys({LOAD_FROM_BYTES, NUMPY_DTYPE, NUMPY_NDARRAY, *STORAGES, *DTYPES}, _never_called),
}
"""The handler that turns a call of each allowed global into a value."""

assert HANDLERS.keys() == ALLOWED_GLOBALS, "handlers.py and allowlist.py must name the same globals"
