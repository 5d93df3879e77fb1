"""Networks of which every process holds a part (ZeRO's third stage, arXiv 1910.02054; torch's `fully_shard`).

Parameters, gradients, Adam's moments and averages are split over the processes. A block's weights come together where it computes,
forward and backward, and are let go again.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any, TypeGuard

import torch
from torch import Tensor, nn

from registry.core import distributed

if TYPE_CHECKING:  # it takes two seconds to import
    from torch.distributed.tensor import DTensor

TWIN = "_twin"
"""Where a network that is split keeps itself as it was, without weights; no attribute that torch knows as a part of it."""


def shard(net: nn.Module, blocks: Iterable[nn.Module]) -> None:
    """Split a network over the processes, in place, by these blocks and the rest of it. Nothing happens in a single process.

    Its gradients are sums over the processes from then on, of which each has its part. A block must be called as a module, and
    its weights must not be used elsewhere.
    """
    if distributed.world_size() == 1 or next(net.parameters(), None) is None:
        return
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh(distributed.device().type, (distributed.world_size(),))
    twin = copy.deepcopy(net, {id(p): nn.Parameter(torch.empty_like(p, device="meta"), p.requires_grad) for p in net.parameters()})
    for module in (*(block for block in blocks if can_be_called(block)), net):
        # The weights of the whole go, too, after each forward pass: they change, and whether they learn does.
        unit = fully_shard(module, mesh=mesh, reshard_after_forward=True)
        unit.set_gradient_divide_factor(1.0)
        unit.set_force_sum_reduction_for_comms(True)  # gloo has no other way not to divide
    vars(net)[TWIN] = twin


@contextmanager
def let_go_at_once(net: nn.Module) -> Iterator[None]:
    """Blocks of a split network let go of their weights after a forward pass also in the midst of a backward pass, when activations
    are computed again. By itself each would keep them until its own backward pass: in the end all of the network's."""
    with ExitStack() as stack:
        if TWIN in vars(net):
            from torch.distributed.fsdp import FSDPModule

            for unit in (module for module in net.modules() if isinstance(module, FSDPModule)):
                stack.callback(unit.register_forward_hook(lambda unit, *of: unit.reshard()).remove)
        yield


def can_be_called(block: nn.Module) -> bool:
    """Whether it is a module with parameters and a forward pass."""
    return next(block.parameters(), None) is not None and not isinstance(block, nn.ModuleList | nn.ModuleDict)


def outline(net: nn.Module) -> nn.Module:
    """The network as it was before it was split, for its class and shapes; itself if it is not split."""
    twin: nn.Module = vars(net).get(TWIN, net)
    return twin


@contextmanager
def whole(net: nn.Module) -> Iterator[nn.Module]:
    """A copy of a split network with all of its weights, as they are now, in every process; itself if it is not split.

    All processes must take part. The copy is to be evaluated, and does not learn.
    """
    if (twin := outline(net)) is net:
        yield net
        return
    values: dict[int, Any] = {id(b): own.clone() for b, own in zip(twin.buffers(), net.buffers(), strict=True)}
    with torch.no_grad():
        for parameter, part in zip(twin.parameters(), net.parameters(), strict=True):
            values[id(parameter)] = nn.Parameter(whole_tensor(part.detach()), requires_grad=False)
    yield copy.deepcopy(twin, values).train(net.training)


def is_split(tensor: Tensor) -> TypeGuard[DTensor]:
    """Whether this process has only a part of it."""
    if type(tensor) in (Tensor, nn.Parameter):
        return False
    from torch.distributed.tensor import DTensor

    return isinstance(tensor, DTensor)


def whole_tensor(tensor: Tensor) -> Tensor:
    """All of a tensor; all processes must take part if it is split."""
    return tensor.full_tensor() if is_split(tensor) else tensor


@torch.no_grad()
def local(tensors: Iterable[Tensor]) -> list[Tensor]:
    """What this process holds of each tensor; no copies."""
    return [tensor.to_local() if is_split(tensor) else tensor for tensor in tensors]


@torch.no_grad()
def split_like(values: Tensor, like: Tensor) -> Tensor:
    """This process's part of a whole tensor, split like another one; itself if that is whole or has another shape."""
    if not isinstance(values, Tensor) or not is_split(like) or is_split(values) or values.shape != like.shape:
        return values
    from torch.distributed.tensor import distribute_tensor

    return distribute_tensor(values.to(like.device), like.device_mesh, like.placements, src_data_rank=None)


def split_state(values: Mapping[str, Tensor], like: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The same for a state; what the other one does not have stays as it is."""
    return {name: split_like(tensor, like.get(name, tensor)) for name, tensor in values.items()}


def gathered(state: Any) -> Any:
    """A copy of nested values in main memory, with whole tensors, for rank 0. Others take part, and get None for each tensor."""
    if isinstance(state, Tensor):
        tensor = whole_tensor(state.detach())
        return tensor.cpu().clone() if distributed.rank() == 0 else None
    if isinstance(state, Mapping):
        return {key: gathered(value) for key, value in state.items()}
    if isinstance(state, list | tuple):
        return type(state)(gathered(value) for value in state)
    return state
