"""Perturbation kernels: the Gaussian, and what every kernel shares with it.

A kernel of dimension D is x_r = x + sigma·s·z, with z standard normal and one scale s per image: s = 1 for the
Gaussian (D = inf), a Student-t scale for finite D. A plugin's kernel only says what s is.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from registry.api import NoiseConfig
from registry.streams import Streams


class GaussianNoise:
    """x_r = x + sigma·z: the kernel at D = inf, with EDM's and SiD's noise levels."""

    D: float = math.inf

    def __init__(self, levels: NoiseConfig | None = None) -> None:
        levels = levels or NoiseConfig()
        self.sigma_init, self.t_max = levels.sigma_init, levels.t_max
        self.sigma_min, self.sigma_max, self.rho = levels.sigma_min, levels.sigma_max, levels.rho
        self.P_mean, self.P_std = levels.P_mean, levels.P_std

    def scale(self, rng: Streams) -> Tensor | None:
        """The scales s [B] of this kernel, None if they are all 1."""
        return None

    def kernel(self, shape: Sequence[int], rng: Streams, dtype: torch.dtype = torch.float32) -> Tensor:
        """B draws of the kernel at sigma = 1 around 0: shape (C, H, W) -> [B, C, H, W]."""
        z = rng.normal(shape).to(dtype)
        s = self.scale(rng)
        return z if s is None else z * s.to(dtype).reshape(-1, *[1] * len(shape))

    def prior(self, shape: Sequence[int], sigma: float, rng: Streams) -> Tensor:
        """The kernel at `sigma` around 0: shape (C, H, W) -> [B, C, H, W]."""
        return sigma * self.kernel(shape, rng)

    def perturb(self, x: Tensor, sigma: Tensor, rng: Streams) -> Tensor:
        """x_r ~ p_r(· | x), r = sigma·√D (PFGM++ alignment): x [B, C, H, W], sigma [B] -> [B, C, H, W]."""
        return x + sigma.to(x.dtype).reshape(-1, 1, 1, 1) * self.kernel(x.shape[1:], rng, x.dtype)

    def student_sigma(self, rng: Streams) -> Tensor:
        """ln sigma ~ N(P_mean, P_std²): [B] (EDM Table 1)."""
        return (self.P_std * rng.normal() + self.P_mean).exp()

    def generator_sigma(self, rng: Streams) -> Tensor:
        """sigma(t), t ~ U[0, t_max/1000]: [B] (SiD Sec. 4; IPFM Eq. 36)."""
        t = rng.uniform().double() * self.t_max / 1000
        return karras_sigma(t, self.sigma_min, self.sigma_max, self.rho).float()


def karras_sigma(t: Tensor, sigma_min: float = 0.002, sigma_max: float = 80.0, rho: float = 7.0) -> Tensor:
    """sigma(t) = (sigma_max^(1/rho) + (1 − t)(sigma_min^(1/rho) − sigma_max^(1/rho)))^rho, t in [0, 1] (EDM Eq. 5)."""
    low, high = sigma_min ** (1 / rho), sigma_max ** (1 / rho)
    levels: Tensor = (high + (1 - t) * (low - high)) ** rho
    return levels


def log_kernel(distance2: Tensor, sigma: Tensor, N: int, D: float) -> Tensor:
    """ln p_r(x_r | x) up to a constant, for |x_r − x|² = distance2; stable for every D, inf included.

    (|x_r − x|² + r²)^(−(N+D)/2) with r² = sigma²·D (PFGM++ App. B); at D = inf, exp(−|x_r − x|²/(2·sigma²)).
    """
    if math.isinf(D):
        return -distance2 / (2 * sigma**2)
    return -(N + D) / 2 * torch.log1p(distance2 / (sigma**2 * D))
