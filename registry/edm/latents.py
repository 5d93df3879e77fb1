"""The latents of PFGM++'s generation script: each seed gives the same start, so its published images can be reproduced."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor


def pfgmpp_latents(seeds: Sequence[int], shape: Sequence[int], sigma: float, D: float) -> Tensor:
    """The prior at `sigma` around 0, drawn as that script draws it on every device: [B, *shape] in float64. D must be finite.

    For each seed in turn, torch's global CPU generator draws b ~ Beta(N/2, D/2) and a normal vector g, both in float32. The latent
    is g/|g|·sigma·√(D·b/(1 − b)) (PFGM++ App. B). The global generator's state is restored.
    """
    assert math.isfinite(D)
    N = math.prod(shape)
    beta = torch.distributions.Beta(torch.tensor([N / 2], dtype=torch.float32), torch.tensor([D / 2], dtype=torch.float32))
    latents = []
    with torch.random.fork_rng(devices=[]):
        for seed in seeds:
            torch.default_generator.manual_seed(seed)  # the CPU's generator only
            b = beta.sample().double()
            g = torch.randn(N)
            latents.append((g / g.norm()).double() * (b / (1 - b)).sqrt() * sigma * math.sqrt(D))
    return torch.stack(latents).reshape(len(latents), *shape)
