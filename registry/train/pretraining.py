"""A teacher from images: the student's step, fed with data (EDM training; PFGM++ at finite D)."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import nn

from registry.core.contracts import Noise
from registry.core.sharding import shard
from registry.core.streams import Streams
from registry.recipe.tables import PretrainConfig
from registry.train.data import RealImages, augmented
from registry.train.ema import EMA
from registry.train.losses import denoising_loss
from registry.train.passes import Passes
from registry.train.recompute import blocks
from registry.train.step import Learner, cosine_rate, own_image_numbers


class Pretraining:
    """A denoiser that learns real images, and its average."""

    def __init__(self, net: nn.Module, noise: Noise, data: RealImages, train: PretrainConfig, device: torch.device) -> None:
        self.noise, self.data, self.train, self.device = noise, data, train, device
        net.to(device)
        if train.shard:
            shard(net, blocks(net))
        self.denoiser = Learner(net, train.batch, train.lr, train.betas, train.eps, clip=train.clip)
        self.passes = Passes(train.precision, train.compile)
        self.average = EMA(net, train.ema_halflife_kimg, train.ema_rampup_ratio)
        self.nimg = 0
        self.rollbacks = 0

    @property
    def total(self) -> int:
        """Images of the whole run."""
        return round(self.train.duration_kimg * 1000)


def iterations(run: Pretraining) -> Iterator[None]:
    """Iterate until the run's images are used up; after every iteration the caller may look at the run."""
    while run.nimg < run.total:
        iteration(run)
        yield


def iteration(run: Pretraining) -> None:
    """One Adam step on the denoising loss of real images, and the average."""
    train = run.train
    warmth = min(1.0, (run.nimg + train.batch) / max(train.lr_rampup_kimg * 1000, 1e-8))
    denoiser_gradient(run)
    run.denoiser.step(warmth * cosine_rate(run.nimg / run.total, train.lr_decay))
    run.average.update(train.batch, run.nimg)
    run.nimg += train.batch


def denoiser_gradient(run: Pretraining) -> None:
    """The denoising loss of real images, augmented or as they are, and its gradient."""
    denoiser, train = run.denoiser, run.train
    with denoiser.mode(train=True), run.passes(denoiser.net):
        for numbers in own_image_numbers(run.nimg, train.batch, train.batch_gpu):
            again = f"/{run.rollbacks}" if run.rollbacks else ""
            rng = Streams.derived(f"{train.seed}/data{again}", numbers, run.device)
            x, labels = run.data.batch(rng)
            f, x, _ = augmented(denoiser.net, x, (), train.augment, rng)
            denoiser.accumulate(denoising_loss(f, x, labels, run.noise, rng))
