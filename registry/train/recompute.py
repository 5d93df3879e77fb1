"""Less memory for more time: activations are not kept for the backward pass, but computed again there."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from torch import nn
from torch.utils.checkpoint import checkpoint

from registry.core.sharding import let_go_at_once


@contextmanager
def recomputing(*modules: nn.Module) -> Iterator[None]:
    """Inside the context, the modules keep their inputs only. Gradients are the same: dropout draws the same numbers again, and
    what a module counts in its buffers (batch norm, spectral norm) it counts once."""
    with ExitStack() as stack:
        for module in dict.fromkeys(modules):
            stack.callback(restored, module, vars(module).get("forward"))
            module.forward = computed_again(module, module.forward)
        yield


def restored(module: nn.Module, forward: Callable[..., Any] | None) -> None:
    """The module as it was, with the forward of its own that it had, if any."""
    del module.forward
    if forward is not None:
        module.forward = forward


def computed_again(module: nn.Module, forward: Callable[..., Any]) -> Callable[..., Any]:
    """The forward pass of a module without its activations."""

    def call(*args: Any, **kwargs: Any) -> Any:
        buffers = list(module.buffers())
        before = [buffer.clone() for buffer in buffers]
        begun = False

        def once_and_again(*args: Any, **kwargs: Any) -> Any:
            nonlocal begun
            if not begun:
                begun = True
                return forward(*args, **kwargs)
            after = [buffer.clone() for buffer in buffers]
            overwrite(buffers, before)
            try:
                with let_go_at_once(module):
                    return forward(*args, **kwargs)
            finally:
                overwrite(buffers, after)

        return checkpoint(once_and_again, *args, use_reentrant=False, **kwargs)

    return call


def overwrite(buffers: list[Any], values: list[Any]) -> None:
    """New values, unseen by autograd, which may have saved the buffers."""
    for buffer, value in zip(buffers, values, strict=True):
        buffer.data.copy_(value)


def recomputed(memory: str, *networks: nn.Module, last: nn.Module | None = None) -> list[nn.Module]:
    """What keeps its inputs only, as [train] memory says, in a step that differentiates these networks.

    "lean": of several networks, one has its activations at a time. "least": of every network, one block. The network that is
    evaluated last is the first that is differentiated, so its activations need not be computed again.
    """
    whole = [net for net in networks if net is not last] if memory != "full" and len(networks) > 1 else []
    return whole + [block for net in networks for block in blocks(net)] if memory == "least" else whole


def blocks(net: nn.Module) -> Iterator[nn.Module]:
    """The parts that a network applies in turn: what stands in its outermost lists of modules."""
    for child in net.children():
        yield from child.children() if isinstance(child, nn.ModuleList | nn.ModuleDict | nn.Sequential) else blocks(child)
