"""The generator's average: torch-ema with EDM's half-life and ramp-up."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch_ema import ExponentialMovingAverage

from registry.core import distributed
from registry.core.float64 import wide
from registry.core.sharding import is_split, local, split_like, whole


def ema_beta(batch: int, nimg: int, halflife_kimg: float, rampup_ratio: float) -> float:
    """beta = 0.5^(batch/max(H, 1e-8)), H = min(halflife, rampup_ratio·nimg) in images; a ratio of 0 sets no limit (EDM, SiD).

    `nimg` is the number of images before the batch, so beta is 0 at the first update: the average starts as the network after
    its first step.
    """
    halflife = halflife_kimg * 1000
    if rampup_ratio:
        halflife = min(halflife, rampup_ratio * nimg)
    return float(0.5 ** (batch / max(halflife, 1e-8)))


class EMA:
    """Exponential moving average of a network's parameters; buffers are not averaged."""

    def __init__(self, net: nn.Module, halflife_kimg: float = 500.0, rampup_ratio: float = 0.05) -> None:
        self.net = net
        self.halflife_kimg, self.rampup_ratio = halflife_kimg, rampup_ratio
        self._names, self._parameters = (list(of) for of in zip(*net.named_parameters(), strict=True))
        self._average = ExponentialMovingAverage(net.parameters(), decay=0.0, use_num_updates=False)

    @torch.no_grad()
    def update(self, batch: int, nimg: int) -> None:
        """Take in the parameters after a step on `batch` images; `nimg` is the number of images seen before that step.

        The arithmetic of torch-ema's `update`, value by value, for all tensors at once.
        """
        self._average.decay = ema_beta(batch, nimg, self.halflife_kimg, self.rampup_ratio)
        averages = local(self._average.shadow_params)
        moved = torch._foreach_sub(averages, local(self._parameters))
        torch._foreach_mul_(moved, 1.0 - self._average.decay)
        torch._foreach_sub_(averages, moved)

    @contextmanager
    def averaged(self) -> Iterator[nn.Module]:
        """The network with its averaged parameters inside the context, and its own again after it. If it is split over the
        processes, which must all take part, a whole copy."""
        try:
            with self._average.average_parameters(), whole(self.net) as net:
                yield net
        finally:
            self._average.collected_params = None  # otherwise every saved state would hold one more model

    @torch.no_grad()
    def distance(self) -> float:
        """|θ − average|/|average|: how far the network has moved from its average."""
        pairs = list(zip(local(self._parameters), local(self._average.shadow_params), strict=True))
        dtype = wide(pairs[0][0].device)
        moved = torch.stack([(p - average).to(dtype).square().sum() for p, average in pairs]).sum()
        squares = torch.stack([moved, torch.stack([average.to(dtype).square().sum() for _, average in pairs]).sum()])
        if any(map(is_split, self._parameters)):
            distributed.sum_(squares)
        return float((squares[0] / squares[1]).sqrt())

    def state_dict(self) -> dict[str, Tensor]:
        """The averages by parameter name."""
        return dict(zip(self._names, self._average.shadow_params, strict=True))

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Restore averages saved by `state_dict`; the names must be those of the network."""
        assert list(state) == self._names, "the averages belong to another network"
        for shadow, value in zip(self._average.shadow_params, state.values(), strict=True):
            shadow.data.copy_(split_like(value, shadow))
