"""The exact denoiser of a finite set of images, for every D, and a small network to distil it into.

It is the ground truth for tests of the theory, and the teacher of the 2-D toy.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from registry.train.kernels import log_kernel


class ExactDenoiser(nn.Module):
    """E[x₀ | x] for x₀ uniform on a finite set [M, C, H, W] under the kernel of dimension D.

    The posterior weights are ∝ exp(−|x − y|²/(2·sigma²)) at D = inf and ∝ (|x − y|² + r²)^(−(N+D)/2), r = sigma·√D,
    otherwise. They are normalised in log space (EDM App. B.3; PFGM++ Theorem 4.1).
    """

    points: Tensor

    def __init__(self, points: Tensor, D: float = math.inf) -> None:
        super().__init__()
        self.D, self.label_dim = D, 0
        self.register_buffer("points", points)

    def forward(self, x: Tensor, sigma: Tensor | float, labels: Tensor | None = None) -> Tensor:
        points = self.points.to(x).flatten(1)
        sigma = torch.as_tensor(sigma, dtype=x.dtype, device=x.device).reshape(-1, 1)
        # Not by a product of matrices: where x is near a point, the difference of squares would cancel.
        distance2 = torch.cdist(x.flatten(1), points, compute_mode="donot_use_mm_for_euclid_dist").square()  # [B, M]
        posterior = log_kernel(distance2, sigma, points.shape[1], self.D).softmax(1)
        return (posterior @ points).view_as(x)


class PointDenoiser(nn.Module):
    """An EDM-preconditioned perceptron for points or tiny images: x [B, C, H, W], sigma [B] -> [B, C, H, W]."""

    def __init__(self, image_shape: tuple[int, int, int], width: int = 128, depth: int = 3, sigma_data: float = 0.5) -> None:
        super().__init__()
        self.init_kwargs = dict(image_shape=tuple(image_shape), width=width, depth=depth, sigma_data=sigma_data)
        self.sigma_data, self.label_dim = sigma_data, 0
        values = math.prod(image_shape)
        self.noise_in = nn.Linear(32, width)
        self.image_in = nn.Linear(9 * values, width)
        self.hidden = nn.ModuleList(nn.Linear(width, width) for _ in range(depth))
        self.out = nn.Linear(width, values)
        self.freqs: Tensor
        self.register_buffer("freqs", torch.linspace(-1, 4, 16).exp())

    def forward(self, x: Tensor, sigma: Tensor | float, labels: Tensor | None = None) -> Tensor:
        flat = x.flatten(1)
        s = torch.as_tensor(sigma, dtype=x.dtype, device=x.device).reshape(-1, 1)
        norm = (s**2 + self.sigma_data**2).sqrt()
        angles = s.log() / 4 * self.freqs
        h = self.image_in(waves(flat / norm)) + self.noise_in(torch.cat([angles.cos(), angles.sin()], 1))
        for layer in self.hidden:
            h = h + layer(F.silu(h))
        f: Tensor = flat * self.sigma_data**2 / norm**2 + self.out(F.silu(h)) * s * self.sigma_data / norm
        return f.view_as(x)


def waves(x: Tensor) -> Tensor:
    """x with its sines and cosines at four frequencies, which let a smooth network form sharp edges: [B, n] -> [B, 9n]."""
    phases = torch.cat([x * 2.0**k for k in range(4)], 1)
    return torch.cat([x, phases.sin(), phases.cos()], 1)


def points_in_the_plane(name: str, count: int) -> Tensor:
    """`count` points of a figure in [−1, 1]², as images [count, 2, 1, 1]: ring, spiral or grid. Raises ValueError."""
    i = torch.arange(count, dtype=torch.float32)
    if name == "ring":
        angle = 2 * math.pi * i / count
        xy = torch.stack([angle.cos(), angle.sin()], 1)
    elif name == "spiral":
        radius = ((i + 1) / count).sqrt()
        angle = 4 * math.pi * radius
        xy = radius[:, None] * torch.stack([angle.cos(), angle.sin()], 1)
    elif name == "grid":
        side = math.ceil(math.sqrt(count))
        axis = torch.linspace(-1, 1, side) if side > 1 else torch.zeros(1)
        xy = torch.cartesian_prod(axis, axis)[:count]
    else:
        raise ValueError(f"{name!r} is not a known figure; known are ring, spiral and grid")
    return xy[:, :, None, None]
