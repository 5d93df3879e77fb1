"""EDM teachers from files, and the exact denoiser of a finite set as a teacher."""

from __future__ import annotations

import copy
import functools
import math
from typing import Any

import torch
from torch import nn

from registry.analytic import ExactDenoiser, PointDenoiser, points_in_the_plane
from registry.api import Teacher, UserError
from registry.builtin import AnalyticConfig, EDMConfig
from registry.denoising import edm_weight
from registry.edm.datasets import load_images
from registry.edm.networks import EDMPrecond
from registry.files import load_network, weights_hash
from registry.noise import karras_sigma
from registry.sources import open_path
from registry.streams import Streams


def teacher_from_file(
    source: str,
    key: str | None = None,
    sha256: str | None = None,
    dropout: float | None = None,
    fp16: bool | None = None,
) -> Teacher:
    """A teacher from any readable file (see registry.files.load_network), whatever its D. Raises UserError.

    `dropout` is that of the student and the generator, `fp16` whether all three networks run in float16 on CUDA; by default
    both are as the file has them.
    """
    net, about = load_network(source, "denoiser", key=key, sha256=sha256)
    if not isinstance(net, EDMPrecond):
        raise UserError(f"{source}: holds a {type(net).__name__}; a teacher is a network of EDM's kind (EDMPrecond)")
    weights = weights_hash(net)
    if fp16 is not None:
        net = rebuilt(net, use_fp16=fp16)
    return Teacher(
        denoiser=net.requires_grad_(False),
        D=float(about["D"]),
        image_shape=(net.img_channels, net.img_resolution, net.img_resolution),
        label_dim=net.label_dim,
        sigma_data=float(about.get("sigma_data", 0.5)),
        origin=source,
        path=open_path(source, sha256),
        provenance=about | {"weights": weights},
        trainable=None if dropout is None else lambda: rebuilt(net, dropout=dropout),
    )


def rebuilt(net: EDMPrecond, **settings: Any) -> EDMPrecond:
    """A copy with the network's own tensors, built with other settings: so its files tell how it really is."""
    with torch.device("meta"):  # draws no initial weights
        twin = EDMPrecond(**(net.init_kwargs | settings))
    twin.load_state_dict({name: tensor.clone() for name, tensor in net.state_dict().items()}, assign=True)
    return twin.train(net.training)


def build_edm(config: EDMConfig) -> Teacher:
    teacher = teacher_from_file(**dict(config))
    if not math.isinf(teacher.D):
        raise UserError(
            f'{config.source}: is a PFGM++ teacher with D = {teacher.D:g}, not an EDM one; write [teacher] use = "pfgmpp"'
        )
    return teacher


def build_analytic(config: AnalyticConfig) -> Teacher:
    if config.points in ("ring", "spiral", "grid"):
        images = points_in_the_plane(config.points, config.count)
    else:
        images = load_images(config.points).x()
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
        origin=f"the exact denoiser of {len(images)} points ({config.points})",
        provenance={"points": config.points, "count": len(images), "D": config.D, "weights": weights_hash(exact)},
        trainable=trainable,
        images=images,
    )


def warm_up(net: nn.Module, exact: ExactDenoiser, iterations: int, seed: int, sigma_data: float, batch: int = 256) -> nn.Module:
    """Fit a network to the exact denoiser at all noise levels: it takes the place of a pre-trained teacher's weights."""
    optimiser = torch.optim.Adam(net.parameters(), lr=2e-3)
    points, device = exact.points, exact.points.device
    for i in range(iterations):
        rng = Streams.derived(f"{seed}/warm-up", range(i * batch, (i + 1) * batch), device)
        x = points[rng.integers(len(points))]
        sigma = karras_sigma(rng.uniform().double(), rho=7.0).float()
        x = x + sigma.reshape(-1, 1, 1, 1) * rng.normal(x.shape[1:])
        error = (net(x, sigma) - exact(x, sigma)).square()
        loss = (edm_weight(sigma, sigma_data).reshape(-1, 1, 1, 1) * error).sum() / batch
        for group in optimiser.param_groups:
            group["lr"] = 2e-3 * (1 - i / iterations)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    return net
