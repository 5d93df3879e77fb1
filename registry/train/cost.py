"""What work costs, counted where nothing is computed: on torch's meta device tensors have shapes and no values.

The same code runs as in training, so every loss, noise and network is counted as it is, those of plugins included.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry


@dataclass(frozen=True)
class Cost:
    """Floating-point operations (a multiplication and an addition are two), and the most bytes allocated at a time."""

    flop: int
    peak: int


def cost(work: Callable[[], object], learning: Iterable[nn.Parameter] = (), devices: int = 1) -> Cost:
    """What this work costs, on whatever device its tensors are. Bytes that were there before are not counted.

    The gradients of what is `learning` are split over so many devices; the bytes are those of one of them.
    """
    with ExitStack() as stack, Allocated() as counted:
        for parameter in learning if devices > 1 else ():
            hook = parameter.register_post_accumulate_grad_hook(lambda p: counted.split(p.grad, devices))
            stack.callback(hook.remove)
        work()
    return Cost(counted.flop, counted.peak)


class Allocated(TorchDispatchMode):
    """Counts the bytes of new tensors that are alive at a time, those that are saved for the backward pass among them.

    Work space inside a kernel is not seen, nor what an allocator keeps for later. Operations are counted with torch's formulas, but
    not by its FlopCounterMode, which keeps tensors alive that are computed again in a backward pass.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.flop = self.peak = self._now = 0
        self._alive: dict[int, int] = {}
        self._split: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None) -> Any:
        kwargs = kwargs or {}
        given = {tensor.untyped_storage()._cdata for tensor in tensors((args, kwargs))}
        result = func(*args, **kwargs)
        if count := flop_registry.get(func.overloadpacket):
            self.flop += count(*args, **kwargs, out_val=result)
        for tensor in tensors(result):
            storage = tensor.untyped_storage()
            if storage._cdata not in given and storage._cdata not in self._alive:
                self._alive[storage._cdata] = storage.nbytes()
                self._now += storage.nbytes()
                weakref.finalize(storage, self._freed, storage._cdata)
        self.peak = max(self.peak, self._now)
        return result

    def split(self, tensor: Tensor | None, devices: int) -> None:
        """From now on a share of this tensor's bytes counts; other devices hold the rest. Once for each tensor."""
        key = -1 if tensor is None else tensor.untyped_storage()._cdata
        if key in self._alive and key not in self._split:
            self._split.add(key)
            whole = self._alive[key]
            self._alive[key] = whole // devices
            self._now -= whole - self._alive[key]

    def _freed(self, storage: int) -> None:
        self._now -= self._alive.pop(storage)
        self._split.discard(storage)


def tensors(values: Any) -> list[Tensor]:
    """All tensors in nested lists, tuples and dicts."""
    return [value for value in tree_leaves(values) if isinstance(value, Tensor)]


def nbytes(*modules: nn.Module) -> int:
    """Bytes of the parameters and buffers of modules; what several share is counted once."""
    storages = {
        t.untyped_storage()._cdata: t.untyped_storage().nbytes() for module in modules for t in module.state_dict().values()
    }
    return sum(storages.values())
