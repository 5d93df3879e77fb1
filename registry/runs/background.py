"""Work that goes on beside the training, a piece at a time: writing a state."""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable, Iterator
from types import TracebackType
from typing import Any

import torch
from torch import Tensor

from registry.core.errors import UserError
from registry.core.interruption import WRITER


class Background:
    """A thread for one piece of work at a time. When it is left, the work is waited for, but not after a second Ctrl-C."""

    def __init__(self) -> None:
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None

    def __enter__(self) -> Background:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._thread is not None and kind is not KeyboardInterrupt:
            self._thread.join()

    def begin(self, work: Callable[[], None]) -> None:
        """Begin a piece of work, which the one before it must have been waited for."""
        assert self._thread is None, "the work before it was not waited for"

        def run() -> None:
            try:
                work()
            except BaseException as error:  # raised where the work is waited for
                self._error = error

        self._thread = threading.Thread(target=run, name=WRITER, daemon=True)
        self._thread.start()

    def failed(self) -> bool:
        """Whether the work has ended, and with an error that was not raised yet."""
        return self._thread is not None and not self._thread.is_alive() and self._error is not None

    def wait(self) -> None:
        """Wait for the work, if there is any. Raises its error, UserError or a bug."""
        if self._thread is None:
            return
        self._thread.join()
        error, self._thread, self._error = self._error, None, None
        if isinstance(error, UserError):
            raise UserError(str(error))  # without the other thread's traceback, which would keep the copy alive
        if error is not None:
            raise error


def in_main_memory(value: Any) -> Any:
    """A copy of nested plain values and tensors, the tensors in main memory. What is shared in `value` is shared in the copy."""
    storages: dict[int, torch.UntypedStorage] = {}
    copies = {}
    for tensor in tensors_of(value):
        storage = tensor.untyped_storage()
        if storage._cdata not in storages:
            storages[storage._cdata] = storage.clone() if storage.device.type == "cpu" else storage.cpu()
        place = (storages[storage._cdata], tensor.storage_offset(), tensor.shape, tensor.stride())
        copies[id(tensor)] = torch.empty(0, dtype=tensor.dtype).set_(*place)
    return copy.deepcopy(value, copies)


def tensors_of(value: Any) -> Iterator[Tensor]:
    """The tensors in nested dicts, lists and tuples."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, dict | list | tuple):
        for each in value.values() if isinstance(value, dict) else value:
            yield from tensors_of(each)
