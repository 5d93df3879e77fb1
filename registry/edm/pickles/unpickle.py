"""Stage 2: Python's unpickler, which meets only notes and plain values and calls nothing."""

from __future__ import annotations

import io
import pickle
from typing import Any, BinaryIO

from registry.core.text import shown
from registry.edm.pickles.allowlist import Global
from registry.edm.pickles.notes import CALL_CLASSES, STORAGE_CLASSES, Call, Storage, refuse_later
from registry.edm.pickles.refusals import PickleError
from registry.edm.pickles.stack import UNKNOWN
from registry.edm.pickles.trace import Trace, trace_pickle


class _Unpickler(pickle.Unpickler):
    """Python's unpickler for the code of a `Trace`. It sees every allowed global as a class of notes."""

    def __init__(self, trace: Trace) -> None:
        super().__init__(io.BytesIO(trace.code))
        self.blobs, self.storages = trace.blobs, dict[str, Storage]()

    def find_class(self, module: str, name: str) -> type[Call]:
        try:
            return CALL_CLASSES[Global(module, name)]
        except KeyError:
            raise PickleError(
                f"refers to {shown(f'{module}.{name}')}, which network snapshots and training states do not need; "
                "it is not an unmodified file of EDM, PFGM++, SiD or IPFM; nothing in it was executed"
            ) from None

    def persistent_load(self, pid: Any) -> Any:
        """A byte string that was cut out, a storage, or a container class, which torch's older streams store this way."""
        match pid:
            case int():
                return self.blobs[pid]
            case ("storage", type() as kind, str() as key, str(), int() as numel) | (
                "storage", type() as kind, str() as key, str(), int() as numel, None,
            ) if kind in STORAGE_CLASSES and numel >= 0:  # fmt: skip
                storage = Storage(key, STORAGE_CLASSES[kind], numel)
                if self.storages.setdefault(key, storage) != storage:
                    raise PickleError(f"describes its storage {shown(key)} in two ways")
                return storage
            case ("module", type() as kind, str() | None, str() | None):
                return kind
        raise PickleError("refers to something outside its pickle that is not a storage of numbers")


def unpickle(file: BinaryIO, span: range) -> tuple[Any, dict[str, Storage], int]:
    """The notes of the pickle that starts at `span.start`, its storages by key, and where it ends."""
    names = list[Global]()
    trace = trace_pickle(file, span, names, strict=True)
    if UNKNOWN in names:
        refuse_later("calls something, or gives it a state, in a way that no pickler does")
    unpickler = _Unpickler(trace)
    return unpickler.load(), unpickler.storages, trace.stop
