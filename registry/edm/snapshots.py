"""Writes network snapshots that the unmodified scripts of EDM, SiD and PFGM++ can open, and so can we.

`pickle.load(file)["ema"]` gives a network wherever `torch_utils` and `dnnlib` are importable. This project need not be
installed there: the file carries the source text of `registry.edm.networks`, which needs only torch.
"""

from __future__ import annotations

import io
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from registry.edm import networks
from registry.edm.networks import Precond

EXTRA = "distill"
"""The key in the snapshot's dictionary that holds our own facts. Other projects' scripts ignore it."""


def _reconstruct_persistent_obj(meta: dict[str, Any]) -> Any:
    """A placeholder for the function of this name in torch_utils.persistence, which we cannot import."""
    raise NotImplementedError


class _Persistent:
    """Pickles as one of EDM's persistent objects: a call of _reconstruct_persistent_obj with one dictionary."""

    def __init__(self, meta: dict[str, Any]) -> None:
        self._meta = meta

    def __reduce__(self) -> Any:
        return _reconstruct_persistent_obj, (self._meta,)


_PythonPickler: Any = pickle._Pickler  # the C pickler would import the global that it names


class Pickler(_PythonPickler):  # type: ignore[misc]
    """Python's pickler, which also writes the name of the function that we cannot import."""

    def save_global(self, obj: Any, name: str | None = None) -> None:
        if obj is _reconstruct_persistent_obj:
            self.write(pickle.GLOBAL + b"torch_utils.persistence\n_reconstruct_persistent_obj\n")
            self.memoize(obj)
        else:
            super().save_global(obj, name)

    dispatch = _PythonPickler.dispatch | {type(_reconstruct_persistent_obj): save_global}


def persistent(net: Precond) -> Any:
    """What pickles as a persistent object of EDM: the network's arguments and tensors, and the source text that rebuilds it."""
    source = Path(networks.__file__).read_text(encoding="utf-8")
    meta = {"type": "class", "version": 6, "module_src": source, "class_name": type(net).__name__}
    return _Persistent(meta | {"state": net.travelling_state(source)})


def snapshot(net: Precond, about: Mapping[str, Any]) -> bytes:
    """The bytes of a network snapshot: {"ema": net, "distill": about}. `about` holds plain values."""
    buffer = io.BytesIO()
    Pickler(buffer, protocol=4).dump({"ema": persistent(net), EXTRA: dict(about)})
    return buffer.getvalue()
