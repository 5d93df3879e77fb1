"""Whether a network's tensors are finite."""

from __future__ import annotations

import torch
from torch import nn

from registry.core.sharding import local


def not_finite(module: nn.Module) -> str | None:
    """The first tensor of a network that holds a value that is not finite, in this process if the network is split."""
    state = module.state_dict()
    tensors = {name: tensor for name, tensor in zip(state, local(state.values()), strict=True) if tensor.is_floating_point()}
    if not tensors or bool(torch.stack([tensor.isfinite().all() for tensor in tensors.values()]).all()):
        return None
    return next(name for name, tensor in tensors.items() if not tensor.isfinite().all())
