"""A teacher from images: the student's step, fed with data (EDM training; PFGM++ at finite D)."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

from registry.api import Noise
from registry.denoising import denoising_loss
from registry.descent import Descent, cosine_rate, mode
from registry.edm.datasets import Images
from registry.edm.networks import EDMPrecond
from registry.ema import EMA
from registry.loop import shares
from registry.recipe import NetworkConfig, PretrainConfig
from registry.streams import Streams

ARCHITECTURES = {
    "ddpmpp": dict(
        model_type="SongUNet", embedding_type="positional", encoder_type="standard", decoder_type="standard",
        channel_mult_noise=1, resample_filter=[1, 1],
    ),
    "ncsnpp": dict(
        model_type="SongUNet", embedding_type="fourier", encoder_type="residual", decoder_type="standard",
        channel_mult_noise=2, resample_filter=[1, 3, 3, 1],
    ),
    "adm": dict(model_type="DhariwalUNet"),
}  # fmt: skip


def build_network(config: NetworkConfig, images: Images, labels: bool, seed: int) -> nn.Module:
    """The network of [network] for images of this shape, with initial weights of this seed. Raises ValueError."""
    channels, resolution, _ = images.image_shape
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return EDMPrecond(
            img_resolution=resolution,
            img_channels=channels,
            label_dim=images.label_dim if labels else 0,
            use_fp16=config.use_fp16,
            pfgmpp=float("inf") != config.D,
            D=config.D,
            model_channels=config.model_channels,
            channel_mult=list(config.channel_mult),
            num_blocks=config.num_blocks,
            attn_resolutions=list(config.attn_resolutions),
            dropout=config.dropout,
            **ARCHITECTURES[config.arch],  # type: ignore[arg-type]
        )


class Pretraining:
    """A denoiser with its optimiser and average, and the images it learns."""

    def __init__(self, net: nn.Module, noise: Noise, images: Images, train: PretrainConfig, device: torch.device) -> None:
        self.net, self.noise, self.images, self.train, self.device = net.to(device), noise, images, train, device
        self.x = images.x().to(device)
        self.denoiser = Descent(net, train.batch, train.lr, train.betas, train.eps)
        self.ema = EMA(net, train.ema_halflife_kimg, train.ema_rampup_ratio)
        self.parts = {"denoiser": self.denoiser, "ema": self.ema}
        self.nimg = 0

    @property
    def total(self) -> int:
        """Images of the whole run."""
        return round(self.train.duration_kimg * 1000)


def pretrain(run: Pretraining, after: Callable[[Pretraining], bool]) -> None:
    """Iterate until the run's images are spent, or until `after`, called after every iteration, says to stop."""
    while run.nimg < run.total:
        rampup = min(1.0, (run.nimg + run.train.batch) / max(run.train.lr_rampup_kimg * 1000, 1e-8))
        run.denoiser.step(values(run), rampup * cosine_rate(run.nimg / run.total, run.train.lr_decay))
        run.ema.update(run.train.batch, run.nimg)
        run.nimg += run.train.batch
        if after(run):
            break


def values(run: Pretraining) -> Iterator[Tensor]:
    """The denoising loss on real images, for one part of the batch after the other."""
    with mode(run.net, train=True):
        for part in shares(run.nimg, run.train.batch, run.train.batch_gpu):
            rng = Streams.derived(f"{run.train.seed}/data", part, run.device)
            index = rng.integers(len(run.images))
            labels = run.images.one_hot(index.cpu()) if run.net.label_dim else None
            yield denoising_loss(run.net, run.x[index], None if labels is None else labels.to(run.device), run.noise, rng)
