"""Whether a network's tensors are finite."""

from __future__ import annotations

import torch
from torch import nn


def not_finite(module: nn.Module) -> str | None:
    """The first tensor of a network that holds a value that is not finite."""
    tensors = {name: tensor for name, tensor in module.state_dict().items() if tensor.is_floating_point()}
    if not tensors or bool(torch.stack([tensor.isfinite().all() for tensor in tensors.values()]).all()):
        return None
    return next(name for name, tensor in tensors.items() if not tensor.isfinite().all())
