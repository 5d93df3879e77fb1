"""The latents of PFGM++'s generation script: for a seed the same start, so that its published images can be made again."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor


def pfgmpp_latents(seeds: Sequence[int], shape: Sequence[int], sigma: float, D: float) -> Tensor:
    """The prior at `sigma` around 0, drawn as that script does on every device: [B, *shape] in float64, for finite D.

    With torch's global CPU generator, for each seed in turn: b ~ Beta(N/2, D/2) and a normal vector g, both in float32; then
    g/|g|·sigma·√(D·b/(1 − b)) (PFGM++ App. B). The global generator is left as it was.
    """
    assert math.isfinite(D)
    N = math.prod(shape)
    beta = torch.distributions.Beta(torch.tensor([N / 2], dtype=torch.float32), torch.tensor([D / 2], dtype=torch.float32))
    latents = []
    with torch.random.fork_rng(devices=[]):
        for seed in seeds:
            torch.default_generator.manual_seed(seed)  # the CPU's alone
            b = beta.sample().double()
            g = torch.randn(N)
            latents.append((g / g.norm()).double() * (b / (1 - b)).sqrt() * sigma * math.sqrt(D))
    return torch.stack(latents).reshape(len(latents), *shape)
