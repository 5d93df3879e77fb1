"""The perturbation kernel of every D, and the laws of noise levels.

A kernel of dimension D is x_r = x + sigma·s·z, with z standard normal and one scale s per image: s = 1 at D = inf (the
Gaussian), a Student-t scale at finite D (PFGM++ App. B). A plugin's kernel only says what s is.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from registry.core.errors import BrokenContract
from registry.core.float64 import wide
from registry.core.levels import karras_sigma
from registry.core.settings import NoiseConfig
from registry.core.streams import Streams
from registry.core.text import kind


class Kernel(ABC):
    """x_r = x + sigma·s·z, with EDM's and SiD's noise levels. B = len(rng)."""

    def __init__(self, D: float, levels: NoiseConfig | None = None) -> None:
        levels = levels or NoiseConfig()
        self.D = D
        self.sigma_init, self.t_max = levels.sigma_init, levels.t_max
        self.sigma_min, self.sigma_max, self.rho = levels.sigma_min, levels.sigma_max, levels.rho
        self.P_mean, self.P_std = levels.P_mean, levels.P_std

    @abstractmethod
    def scale(self, rng: Streams) -> Tensor | None:
        """The scales s [B] of this kernel, None if they are all 1."""

    def draw(self, shape: Sequence[int], rng: Streams, dtype: torch.dtype = torch.float32) -> Tensor:
        """B draws of the kernel at sigma = 1 around 0: shape (C, H, W) -> [B, C, H, W]. Raises BrokenContract."""
        z = rng.normal(shape).to(dtype)
        if not callable(self.scale):
            raise BrokenContract(f"scale must be a method, not a {kind(self.scale)}")
        s = self.scale(rng)
        if s is None:
            return z
        right = (
            type(s) in (Tensor, nn.Parameter)
            and s.layout == torch.strided
            and s.is_floating_point()
            and tuple(s.shape) == (len(rng),)
        )
        if not right or s.device.type != z.device.type:
            found = f"a {kind(s)}" + (f" of {s.dtype}, {s.layout}, {list(s.shape)} on {s.device}" if isinstance(s, Tensor) else "")
            raise BrokenContract(f"scale(rng) must give real numbers [{len(rng)}] on {z.device}, or None, and gave {found}")
        return z * s.detach().to(dtype).reshape(-1, *[1] * len(shape))

    def prior(self, shape: Sequence[int], sigma: float, rng: Streams) -> Tensor:
        """The kernel at `sigma` around 0: shape (C, H, W) -> [B, C, H, W]."""
        return sigma * self.draw(shape, rng)

    def perturb(self, x: Tensor, sigma: Tensor, rng: Streams) -> Tensor:
        """x_r ~ p_r(· | x), r = sigma·√D (PFGM++ alignment): x [B, C, H, W], sigma [B] -> [B, C, H, W]."""
        return x + sigma.to(x.dtype).reshape(-1, 1, 1, 1) * self.draw(x.shape[1:], rng, x.dtype)

    def student_sigma(self, rng: Streams) -> Tensor:
        """ln sigma ~ N(P_mean, P_std²): [B] (EDM Table 1)."""
        return (self.P_std * rng.normal() + self.P_mean).exp()

    def generator_sigma(self, rng: Streams) -> Tensor:
        """sigma(t), t ~ U[0, t_max/1000]: [B] (SiD Sec. 4; IPFM Eq. 36)."""
        t = rng.uniform().to(wide(rng.device)) * self.t_max / 1000
        return karras_sigma(t, self.sigma_min, self.sigma_max, self.rho).float()

    def level_ratio(self, sigma: Tensor) -> Tensor:
        """The density of the student's law over that of the generator's at levels of the latter: [B] (its mean is 1, but for the
        student's levels above the generator's highest)."""
        ln = sigma.to(wide(sigma.device)).log()
        student = torch.exp(-(((ln - self.P_mean) / self.P_std) ** 2) / 2) / (self.P_std * math.sqrt(2 * math.pi))
        low, high = (level ** (1 / self.rho) for level in (self.sigma_min, self.sigma_max))
        generator = (ln / self.rho).exp() / (self.rho * (high - low) * self.t_max / 1000)
        ratio: Tensor = (student / generator).to(sigma.dtype)
        return ratio


def log_kernel(distance2: Tensor, sigma: Tensor, N: int, D: float) -> Tensor:
    """ln p_r(x_r | x) up to a constant, for |x_r − x|² = distance2; stable for every D, inf included.

    (|x_r − x|² + r²)^(−(N+D)/2) with r² = sigma²·D (PFGM++ App. B); at D = inf, exp(−|x_r − x|²/(2·sigma²)).
    """
    if math.isinf(D):
        return -distance2 / (2 * sigma**2)
    return -(N + D) / 2 * torch.log1p(distance2 / (sigma**2 * D))
