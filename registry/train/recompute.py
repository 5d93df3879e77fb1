"""Less memory for more time: activations are not kept for the backward pass, but computed again there."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial

from torch import nn
from torch.utils.checkpoint import checkpoint


@contextmanager
def recomputing(*modules: nn.Module) -> Iterator[None]:
    """Inside the context, the modules keep their inputs only. Gradients are the same, dropout included."""
    with ExitStack() as stack:
        for module in modules:
            module.forward = partial(checkpoint, module.forward, use_reentrant=False)
            stack.callback(delattr, module, "forward")
        yield


def recomputed(memory: str, *networks: nn.Module) -> list[nn.Module]:
    """What keeps its inputs only, as [train] memory says, in a step that differentiates these networks.

    "lean": of several networks, one has its activations at a time. "least": of every network, one block.
    """
    whole = [*networks] if memory != "full" and len(networks) > 1 else []
    return whole + [block for net in networks for block in blocks(net)] if memory == "least" else whole


def blocks(net: nn.Module) -> Iterator[nn.Module]:
    """The parts that a network applies in turn: what stands in its outermost lists of modules."""
    for child in net.children():
        yield from child.children() if isinstance(child, nn.ModuleList | nn.ModuleDict | nn.Sequential) else blocks(child)
