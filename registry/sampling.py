"""The teacher's sampler: EDM's deterministic Heun solver of the probability-flow ODE, which serves every D."""

from __future__ import annotations

import itertools

import torch
from torch import Tensor

from registry.api import Denoiser
from registry.noise import karras_sigma


def heun_levels(steps: int, sigma_min: float = 0.002, sigma_max: float = 80.0, rho: float = 7.0) -> Tensor:
    """Noise levels sigma_0 = sigma_max … sigma_(n−1) = sigma_min, sigma_n = 0, in float64: [steps + 1] (EDM Eq. 5)."""
    assert steps >= 1
    t = 1 - torch.arange(steps, dtype=torch.float64) / max(steps - 1, 1)
    return torch.cat([karras_sigma(t, sigma_min, sigma_max, rho), torch.zeros(1, dtype=torch.float64)])


@torch.no_grad()
def heun(
    denoiser: Denoiser,
    x: Tensor,
    levels: Tensor,
    labels: Tensor | None = None,
) -> Tensor:
    """Solve dx/dsigma = (x − f(x; sigma))/sigma from levels[0] down to 0 (EDM Algorithm 1, S_churn = 0).

    x [B, C, H, W] is the prior at levels[0]; the state is kept in float64. n levels above 0 take 2n − 1 evaluations."""

    def slope(x: Tensor, sigma: Tensor) -> Tensor:
        return (x - denoiser(x, sigma.expand(len(x)), labels).to(torch.float64)) / sigma

    x, levels = x.to(torch.float64), levels.to(x.device)
    for sigma, sigma_next in itertools.pairwise(levels):
        d = slope(x, sigma)
        euler = x + (sigma_next - sigma) * d
        x = euler if sigma_next == 0 else x + (sigma_next - sigma) * (d + slope(euler, sigma_next)) / 2
    return x
