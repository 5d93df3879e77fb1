"""Writes network snapshots that the unmodified scripts of EDM, SiD and PFGM++ can open, and so can we.

`pickle.load(file)["ema"]` gives a network wherever `torch_utils` and `dnnlib` are importable. This project need not be
installed there: the file carries the source text of `registry.edm.networks`, which needs only torch.
"""

from __future__ import annotations

import io
import pickle
import sys
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor
from torch._utils import _rebuild_tensor_v2
from torch.serialization import MAGIC_NUMBER, PROTOCOL_VERSION
from torch.storage import _load_from_bytes

from registry.core import seal
from registry.edm import networks
from registry.edm.networks import Precond

EXTRA = "distill"
"""The key in the snapshot's dictionary that holds our own facts. Other projects' scripts ignore it."""

SYSTEM = {"protocol_version": PROTOCOL_VERSION, "little_endian": True, "type_sizes": {"short": 2, "int": 4, "long": 4}}
STORAGES = {
    torch.float32: torch.FloatStorage, torch.float64: torch.DoubleStorage, torch.float16: torch.HalfStorage,
    torch.bfloat16: torch.BFloat16Storage, torch.int64: torch.LongStorage, torch.int32: torch.IntStorage,
    torch.uint8: torch.ByteStorage,
}  # fmt: skip


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


class SnapshotPickler(Pickler):
    """Pickles tensors as torch does, but without the memory addresses that torch writes, and equal texts as one, wherever they came
    from: equal networks give equal files."""

    def save(self, obj: Any, save_persistent_id: bool = True) -> None:
        super().save(sys.intern(obj) if type(obj) is str else obj, save_persistent_id)

    def memoize(self, obj: Any) -> None:
        """Numbers are not kept until the end, nor what holds them: nothing else refers to them."""
        super().memoize(object() if isinstance(obj, bytes | tuple | Storage) else obj)

    def reducer_override(self, obj: Any) -> Any:
        if isinstance(obj, Tensor):
            tensor, hooks = obj.detach().cpu().contiguous(), OrderedDict()  # type: ignore[var-annotated]
            return _rebuild_tensor_v2, (Storage(tensor), 0, tuple(tensor.shape), tensor.stride(), False, hooks)
        if isinstance(obj, Storage):
            return _load_from_bytes, (obj.stream(),)
        return NotImplemented


class Storage:
    """The numbers of a contiguous tensor, to be pickled as a storage of torch."""

    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor

    def stream(self) -> bytes:
        """The older stream of torch.save, which a storage is pickled as."""
        tensor, stream = self.tensor, io.BytesIO()
        for part in (MAGIC_NUMBER, PROTOCOL_VERSION, SYSTEM):
            pickle.dump(part, stream, protocol=2)
        _Storage(stream, ("storage", STORAGES[tensor.dtype], "0", "cpu", tensor.numel(), None)).dump(...)
        pickle.dump(["0"], stream, protocol=2)
        stream.write(tensor.numel().to_bytes(8, "little"))
        stream.write(tensor.flatten().view(torch.uint8).numpy().tobytes())
        return stream.getvalue()


class _Storage(pickle.Pickler):
    """Pickles `...` as a reference to a storage."""

    def __init__(self, stream: io.BytesIO, reference: tuple[Any, ...]) -> None:
        super().__init__(stream, protocol=2)
        self._reference = reference

    def persistent_id(self, obj: Any) -> Any:
        return self._reference if obj is ... else None


def write_snapshot(file: BinaryIO, net: Precond, about: Mapping[str, Any]) -> None:
    """Write a network snapshot to a file that is open for reading and writing: {"ema": net, "distill": about}, sealed.

    `about` holds plain values. The same network and values give the same bytes.
    """
    SnapshotPickler(file, protocol=4).dump({"ema": persistent(net), EXTRA: dict(about)})
    seal.seal(file)
