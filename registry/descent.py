"""One optimiser step on an accumulated batch: reduce, scale, differentiate, guard, step. Shared by all training."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from registry import distributed


class Descent:
    """A network with its Adam, and a tally of what happened since it was last read.

    `batch` is the number of images of one step over all parts and processes: the loss is summed over values and
    averaged over images, times `scaling` (EDM, SiD).
    """

    def __init__(
        self,
        net: nn.Module,
        batch: int,
        lr: float,
        betas: tuple[float, float] = (0.0, 0.999),
        eps: float = 1e-8,
        scaling: float = 1.0,
    ) -> None:
        self.net, self.batch, self.lr, self.scaling = net, batch, lr, scaling
        self.optimiser = torch.optim.Adam(net.parameters(), lr=lr, betas=betas, eps=eps, fused=True)
        self.tally = Tally(next(net.parameters()).device)

    def step(self, values: Iterable[Tensor], rate: float = 1.0) -> None:
        """One Adam step at `rate` times the learning rate. `values` yields unreduced losses [b, C, H, W], part by part."""
        for group in self.optimiser.param_groups:
            group["lr"] = self.lr * rate
        self.optimiser.zero_grad(set_to_none=True)
        loss = torch.zeros((), device=self.tally.device)
        for part in values:
            reduced, dropped = reduce(part, self.batch)
            (self.scaling * reduced).backward()
            loss = loss + reduced.detach()
            self.tally.dropped += dropped
        distributed.sum_gradients(self.net.parameters())
        self.tally.repaired += repair_gradients(self.net.parameters())
        self.optimiser.step()
        self.tally.add(distributed.sum_(loss))

    def state_dict(self) -> dict[str, object]:
        return {"net": self.net.state_dict(), "optimiser": self.optimiser.state_dict()}

    def load_state_dict(self, state: dict[str, dict[str, object]]) -> None:
        settings = [{k: group[k] for k in ("betas", "eps")} for group in self.optimiser.param_groups]
        self.net.load_state_dict(state["net"])
        self.optimiser.load_state_dict(state["optimiser"])
        for group, own in zip(self.optimiser.param_groups, settings, strict=True):
            group.update(own)  # the recipe's, not those of the run that is resumed


class Tally:
    """Sums kept on the device, read once a tick, so that no step waits for the device."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.clear()

    def clear(self) -> None:
        self.losses = torch.zeros(3, dtype=torch.float64, device=self.device)  # number, sum, sum of squares
        self.dropped = torch.zeros((), device=self.device)
        self.repaired = torch.zeros((), device=self.device)

    def add(self, loss: Tensor) -> None:
        loss = loss.double()
        self.losses += torch.stack([torch.ones_like(loss), loss, loss**2])

    def read(self) -> dict[str, float]:
        """{num, mean, std} of the loss, images dropped and gradient values replaced, over all processes; then forget."""
        num, total, squares = self.losses.tolist()
        mean = total / max(num, 1)
        found = {
            "num": num,
            "mean": mean,
            "std": math.sqrt(max(squares / max(num, 1) - mean**2, 0)),
            "dropped": distributed.sum_(self.dropped.clone()).item(),
            "repaired": self.repaired.item(),
        }
        self.clear()
        return found


def reduce(values: Tensor, batch: int) -> tuple[Tensor, Tensor]:
    """Sum over values [b, C, H, W], divided by the whole batch; images with non-finite values are dropped and counted."""
    per_image = values.flatten(1).sum(1)
    finite = per_image.isfinite()
    return torch.where(finite, per_image, 0).sum() / batch, (~finite).sum()


@torch.no_grad()
def repair_gradients(parameters: Iterable[nn.Parameter]) -> Tensor:
    """Replace NaN by 0 and ±inf by ±1e5 in all gradients (EDM, SiD), and give the number of values replaced."""
    gradients = [p.grad for p in parameters if p.grad is not None]
    bad = torch.stack([(~g.isfinite()).sum() for g in gradients]).sum()
    for g in gradients:
        torch.nan_to_num(g, nan=0.0, posinf=1e5, neginf=-1e5, out=g)
    return bad


def cosine_rate(progress: float, decay: float) -> float:
    """1 until the last share `decay` of the run, then a cosine to 0; progress in [0, 1]."""
    if not decay or progress <= 1 - decay:
        return 1.0
    return 0.5 + 0.5 * math.cos(math.pi * (progress - (1 - decay)) / decay)


@contextmanager
def mode(net: nn.Module, train: bool | None = None, grad: bool | None = None) -> Iterator[nn.Module]:
    """The network in train or eval mode, with or without gradients of its parameters; both restored afterwards."""
    training = [(m, m.training) for m in net.modules()]
    requires = [(p, p.requires_grad) for p in net.parameters()]
    try:
        if train is not None:
            net.train(train)
        if grad is not None:
            net.requires_grad_(grad)
        yield net
    finally:
        for m, was in training:
            m.training = was
        for p, did in requires:
            p.requires_grad_(did)
