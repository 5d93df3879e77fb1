"""How the passes of networks are computed: in which precision, compiled or not, with how much memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from registry.core.errors import SettingError
from registry.edm.networks import Precond
from registry.train.recompute import recomputed, recomputing, restored

DTYPES = {"fp32": torch.float32, "tf32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


class Passes:
    """Networks compute in this precision, compiled or not, with so much memory, but only inside of this context.

    Weights, averages and what is saved stay as they are: float32, under the names that they have, and not compiled. Without a
    precision, networks compute as they are made.
    """

    def __init__(self, precision: str | None = None, compile: bool = False, memory: str = "full") -> None:
        if precision not in (None, *DTYPES):
            raise SettingError("precision", f"must be one of {', '.join(DTYPES)}", precision)
        self.precision, self.compile, self.memory = precision, compile, memory
        self._compiled = dict[nn.Module, Callable[..., Any]]()

    @contextmanager
    def __call__(self, *networks: nn.Module, others: tuple[nn.Module, ...] = (), last: nn.Module | None = None) -> Iterator[None]:
        """For a step that differentiates these networks and evaluates the others. `last` of them is evaluated after the rest, once,
        and differentiated once."""
        with ExitStack() as stack:
            if self.precision:
                stack.enter_context(tensor_cores(self.precision == "tf32"))
            for net in dict.fromkeys((*networks, *others)):
                if self.compile:
                    stack.enter_context(replaced(net, self.compiled(net)))
                if self.precision:
                    stack.enter_context(computing(net, self.precision))
            stack.enter_context(recomputing(*recomputed(self.memory, *networks, last=last)))
            yield

    def compiled(self, net: nn.Module) -> Callable[..., Any]:
        """The network's forward pass, compiled once by torch when it is first called. Raises SettingError then."""
        if net not in self._compiled:
            function = torch.compile(net.forward, dynamic=False)

            def call(*args: Any, **kwargs: Any) -> Any:
                try:
                    return function(*args, **kwargs)
                except Exception as error:
                    if not type(error).__module__.startswith(("torch._dynamo", "torch._inductor")):
                        raise
                    reason = " ".join(str(error).split())[:200]
                    raise SettingError("compile", f"torch cannot compile the network here ({reason})", True) from error

            self._compiled[net] = call
        return self._compiled[net]


@contextmanager
def tensor_cores(tf32: bool) -> Iterator[None]:
    """Whether CUDA multiplies float32 with 10 bits of the mantissa (TF32)."""
    matmul, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    before = matmul.allow_tf32, cudnn.allow_tf32
    matmul.allow_tf32 = cudnn.allow_tf32 = tf32
    try:
        yield
    finally:
        matmul.allow_tf32, cudnn.allow_tf32 = before


@contextmanager
def computing(net: nn.Module, precision: str) -> Iterator[None]:
    """The network in this precision. EDM's networks have a way of their own: all but the preconditioning, on casts of the weights.

    Others compute under torch's autocast.
    """
    if isinstance(net, Precond):
        before, net.unet_dtype = net.unet_dtype, DTYPES[precision]
        try:
            yield
        finally:
            net.unet_dtype = before
    elif precision in ("bf16", "fp16"):
        with replaced(net, under_autocast(net.forward, DTYPES[precision])):
            yield
    else:
        yield


def under_autocast(forward: Callable[..., Any], dtype: torch.dtype) -> Callable[..., Any]:
    """The forward pass in lower precision; its images have that of x again."""

    def call(x: Tensor, *args: Any, **kwargs: Any) -> Any:
        with torch.autocast(x.device.type, dtype, enabled=x.device.type != "meta"):
            images = forward(x, *args, **kwargs)
        return images.to(x.dtype) if isinstance(images, Tensor) else images

    return call


@contextmanager
def replaced(net: nn.Module, forward: Callable[..., Any]) -> Iterator[None]:
    """The network with another forward pass."""
    before = vars(net).get("forward")
    net.forward = forward
    try:
        yield
    finally:
        restored(net, before)
