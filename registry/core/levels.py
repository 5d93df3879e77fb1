"""Every schedule of sigma: the law of the generator's noise levels, the teacher's sampler, the steps of a generator.

All of them are even spacings of sigma^(1/rho) (EDM Eq. 5).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, TypeVar

import torch
from torch import Tensor

Schedule = Literal["uniform", "karras"] | Sequence[float]
U = TypeVar("U", float, Tensor)


def spaced(u: U, sigma_from: float, sigma_to: float, rho: float) -> U:
    """sigma at the share u in [0, 1] of the way from sigma_from to sigma_to, evenly in sigma^(1/rho)."""
    start, end = sigma_from ** (1 / rho), sigma_to ** (1 / rho)
    sigma: U = (start + u * (end - start)) ** rho
    return sigma


def karras_sigma(t: Tensor, sigma_min: float = 0.002, sigma_max: float = 80.0, rho: float = 7.0) -> Tensor:
    """sigma(t) = (sigma_max^(1/rho) + (1 − t)(sigma_min^(1/rho) − sigma_max^(1/rho)))^rho, t in [0, 1] (EDM Eq. 5)."""
    return spaced(1 - t, sigma_max, sigma_min, rho)


def heun_levels(steps: int, sigma_min: float = 0.002, sigma_max: float = 80.0, rho: float = 7.0) -> Tensor:
    """Noise levels sigma_0 = sigma_max … sigma_(n−1) = sigma_min, sigma_n = 0, in float64: [steps + 1] (EDM Eq. 5)."""
    assert steps >= 1
    t = 1 - torch.arange(steps, dtype=torch.float64) / max(steps - 1, 1)
    return torch.cat([karras_sigma(t, sigma_min, sigma_max, rho), torch.zeros(1, dtype=torch.float64)])


def generator_levels(steps: int, schedule: Schedule, sigma_init: float, sigma_min: float = 0.002, rho: float = 7.0) -> list[float]:
    """sigma_K = sigma_init > … > sigma_1 > sigma_min: [K].

    "uniform": K equal steps from sigma_init towards sigma_min, which is not reached (the IPFM authors' code); "karras": the same
    in sigma^(1/rho); or the levels themselves.
    """
    if not isinstance(schedule, str):
        return [float(sigma) for sigma in schedule]
    exponent = rho if schedule == "karras" else 1.0
    return [sigma_init] + [float(spaced(k / steps, sigma_init, sigma_min, exponent)) for k in range(1, steps)]
