"""Somebody's network and schedule, as they were before anybody thought of distilling. Nothing here knows the host."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class SomebodysUNet(nn.Module):
    """A U-Net with one lower level: x [B, C, H, W] with unit variance, step t [B] (real) -> epsilon or v [B, C, H, W]."""

    def __init__(self, channels: int = 16, image_channels: int = 1) -> None:
        super().__init__()
        c, time = channels, 4 * channels
        self.time = nn.Sequential(nn.Linear(64, time), nn.SiLU(), nn.Linear(time, time), nn.SiLU())
        self.first = nn.Conv2d(image_channels, c, 3, padding=1)
        self.down = nn.ModuleList([Block(c, c, time), Block(c, 2 * c, time)])
        self.middle = Block(2 * c, 2 * c, time)
        self.up = nn.ModuleList([Block(4 * c, 2 * c, time), Block(3 * c, c, time)])
        self.last = nn.Conv2d(c, image_channels, 3, padding=1)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        frequencies = torch.logspace(0, -4, 32, dtype=x.dtype, device=x.device)
        angles = t.to(x.dtype)[:, None] * frequencies
        time = self.time(torch.cat([angles.cos(), angles.sin()], 1))
        high = self.down[0](self.first(x), time)
        low = self.down[1](F.avg_pool2d(high, 2), time)
        h = self.up[0](torch.cat([self.middle(low, time), low], 1), time)
        h = self.up[1](torch.cat([F.interpolate(h, scale_factor=2.0), high], 1), time)
        out: Tensor = self.last(h)
        return out


class Block(nn.Module):
    """A residual block that is told the time: [B, inside, H, W] -> [B, outside, H, W]."""

    def __init__(self, inside: int, outside: int, time: int) -> None:
        super().__init__()
        self.norm0, self.conv0 = nn.GroupNorm(1, inside), nn.Conv2d(inside, outside, 3, padding=1)
        self.norm1, self.conv1 = nn.GroupNorm(1, outside), nn.Conv2d(outside, outside, 3, padding=1)
        self.time, self.skip = nn.Linear(time, 2 * outside), nn.Conv2d(inside, outside, 1)

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        scale, shift = self.time(time)[:, :, None, None].chunk(2, 1)
        h = self.conv0(F.silu(self.norm0(x)))
        h = self.conv1(F.silu(self.norm1(h) * (1 + scale) + shift))
        out: Tensor = self.skip(x) + h
        return out


def linear_schedule(steps: int = 1000, beta_first: float = 1e-4, beta_last: float = 0.02) -> Tensor:
    """alpha_bar [T] in float64: x_t = √alpha_bar·x₀ + √(1 − alpha_bar)·epsilon (DDPM Eq. 4)."""
    return (1 - torch.linspace(beta_first, beta_last, steps, dtype=torch.float64)).cumprod(0)
