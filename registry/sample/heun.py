"""EDM's deterministic sampler, for teachers of every D."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from registry.core.contracts import Denoiser, Domain, KnowsLevels, Noise
from registry.core.errors import UserError
from registry.core.float64 import wide
from registry.core.interruption import stop_if_signalled
from registry.core.levels import heun_levels
from registry.core.settings import NoiseConfig
from registry.core.streams import Streams
from registry.edm.networks import Precond


@torch.no_grad()
def heun(
    denoiser: Denoiser,
    x: Tensor,
    levels: Tensor,
    labels: Tensor | None = None,
    shared: bool = False,
) -> Tensor:
    """Solve dx/dsigma = (x − f(x; sigma))/sigma from levels[0] down to 0 (EDM Algorithm 1, S_churn = 0).

    x [B, C, H, W] is the prior at levels[0]; the state is kept in float64, if the device has it. n levels above 0 take 2n − 1
    evaluations. Work that `distributed.share` hands out is left between two of them when a signal has come: raises Interrupted.
    """

    def slope(x: Tensor, sigma: Tensor) -> Tensor:
        if shared:
            stop_if_signalled("while the teacher was sampled")
        each = torch.full((len(x),), float(sigma), dtype=x.dtype, device=x.device)
        return (x - denoiser(x, each, labels).to(x.dtype)) / sigma

    x = x.to(wide(x.device))
    for sigma, sigma_next in itertools.pairwise(levels.cpu()):
        d = slope(x, sigma)
        euler = x + (sigma_next - sigma) * d
        x = euler if sigma_next == 0 else x + (sigma_next - sigma) * (d + slope(euler, sigma_next)) / 2
    return x


def level_range(denoiser: Denoiser, noise: Noise | NoiseConfig) -> tuple[float, float]:
    """The sampler's lowest and highest noise level: those of `noise`, or the denoiser's if it knows fewer. Raises UserError."""
    if not isinstance(denoiser, KnowsLevels):
        return noise.sigma_min, noise.sigma_max
    lowest, highest = max(noise.sigma_min, denoiser.sigma_min), min(noise.sigma_max, denoiser.sigma_max)
    if not lowest < highest:
        raise UserError(
            f"the network knows noise levels from {denoiser.sigma_min:g} to {denoiser.sigma_max:g}, "
            f"but is to be sampled from {noise.sigma_max:g} to {noise.sigma_min:g}"
        )
    return lowest, highest


def teacher_levels(denoiser: Denoiser, noise: Noise | NoiseConfig, steps: int, start: float | None = None) -> Tensor:
    """The noise levels of the sampler, at which the denoiser is evaluated, and a last 0, in float64: [steps + 1].

    They begin with the highest level, or with a lower `start`.
    """
    lowest, highest = level_range(denoiser, noise)
    levels = heun_levels(steps, lowest, highest if start is None else start, noise.rho)
    return torch.cat([denoiser.round_sigma(levels[:-1]), levels[-1:]]) if isinstance(denoiser, KnowsLevels) else levels


def depends_on(denoiser: Denoiser, noise: Noise) -> dict[str, Any]:
    """What the sampler's images depend on besides weights, steps and seeds, as plain values."""
    half_precision = {"fp16": True} if isinstance(denoiser, Precond) and denoiser.use_fp16 else {}
    return half_precision | {
        "D": str(noise.D),
        # It is not known what a noise's prior depends on, so a draw of it stands for that.
        "kernel": [round(v, 3) for v in noise.prior((1, 2, 2), 1.0, Streams([0])).flatten().tolist()],
        "levels": [*level_range(denoiser, noise), noise.rho],
    }


@torch.no_grad()
def heun_images(
    denoiser: Denoiser, noise: Noise, image_shape: Sequence[int], label_dim: int, steps: int, rng: Streams,
    labels: Tensor | None = None, z: Tensor | None = None, shared: bool = False,
) -> tuple[Tensor, Tensor | None]:  # fmt: skip
    """One Heun sample per stream, from the prior at the highest level or from z: [B, C, H, W] in float32, and the labels.

    Takes 2·steps − 1 evaluations. Labels are drawn if none are given.
    """
    levels = teacher_levels(denoiser, noise, steps)
    z = noise.prior(image_shape, float(levels[0]), rng) if z is None else z
    labels = rng.one_hot(label_dim) if labels is None else labels
    return heun(denoiser, z, levels, labels, shared).float(), labels


def heun_samples(
    denoiser: nn.Module, noise: Noise, domain: Domain, seeds: Sequence[int], steps: int, shared: bool = False
) -> Tensor:
    """Heun samples [n, C, H, W] of a denoiser, one per seed, on the denoiser's device."""
    device = next((t.device for t in (*denoiser.parameters(), *denoiser.buffers())), torch.device("cpu"))
    rng = Streams(seeds, device)
    return heun_images(denoiser, noise, domain.image_shape, domain.label_dim, steps, rng, shared=shared)[0]
