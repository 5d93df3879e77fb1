"""The exact denoiser of a finite set as a teacher, with a small network to distil it into."""

from __future__ import annotations

import copy
import functools
from pathlib import Path

import torch
from torch import nn

from registry.api import Teacher
from registry.builtin import AnalyticConfig
from registry.builtin.points import ExactDenoiser, PointDenoiser, points_in_the_plane
from registry.core.float64 import wide
from registry.core.levels import karras_sigma
from registry.core.streams import Streams
from registry.files.formats import weights_hash
from registry.show.images import read_images
from registry.train.losses import edm_weight


def build(config: AnalyticConfig) -> Teacher:
    """The teacher for these settings. Raises UserError if the set of points is unknown."""
    if config.points in ("ring", "spiral", "grid"):
        images = points_in_the_plane(config.points, config.count)
    else:
        images = read_images(config.points).x()
        spread = torch.Generator().manual_seed(config.seed)
        images = images[torch.randperm(len(images), generator=spread)[: config.count]]
    exact = ExactDenoiser(images, config.D)
    shape = (images.shape[1], images.shape[2], images.shape[3])

    @functools.cache
    def warmed_up() -> nn.Module:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.seed)
            net = PointDenoiser(shape, config.width, config.depth, config.sigma_data)
        device = exact.points.device
        return warm_up(net.to(device), exact, config.warmup, config.seed, config.sigma_data)

    def trainable() -> nn.Module:
        return copy.deepcopy(warmed_up())

    return Teacher(
        denoiser=exact.requires_grad_(False),
        D=config.D,
        image_shape=shape,
        sigma_data=config.sigma_data,
        origin=f"the exact denoiser of {len(images)} points ({Path(config.points).name})",
        weights=weights_hash(exact),
        provenance={"points": config.points, "count": len(images), "D": config.D},
        trainable=trainable,
        images=images,
    )


def warm_up(net: nn.Module, exact: ExactDenoiser, iterations: int, seed: int, sigma_data: float, batch: int = 256) -> nn.Module:
    """Fit a network to the exact denoiser at all noise levels. The result replaces a pre-trained teacher's weights."""
    optimiser = torch.optim.Adam(net.parameters(), lr=2e-3)
    points, device = exact.points, exact.points.device
    for i in range(iterations):
        rng = Streams.derived(f"{seed}/warm-up", range(i * batch, (i + 1) * batch), device)
        x = points[rng.integers(len(points))]
        sigma = karras_sigma(rng.uniform().to(wide(device)), rho=7.0).float()
        x = x + sigma.reshape(-1, 1, 1, 1) * rng.normal(x.shape[1:])
        error = (net(x, sigma) - exact(x, sigma)).square()
        loss = (edm_weight(sigma, sigma_data).reshape(-1, 1, 1, 1) * error).sum() / batch
        for group in optimiser.param_groups:
            group["lr"] = 2e-3 * (1 - i / iterations)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    return net
