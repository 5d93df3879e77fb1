"""ddpmpp, ncsnpp and adm, as EDM's training script builds them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch

from registry.edm.networks import EDMPrecond

ARCHITECTURES: dict[str, dict[str, Any]] = {
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


def build_network(
    arch: str, D: float, image_shape: Sequence[int], label_dim: int, seed: int, *, use_fp16: bool = False, **settings: Any
) -> EDMPrecond:
    """A denoiser of dimension D for images of shape (C, H, H), with initial weights drawn from `seed`. Raises ValueError.

    `settings` are EDM's model_channels, channel_mult, num_blocks, attn_resolutions and dropout.
    """
    channels, resolution, _ = image_shape
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return EDMPrecond(
            img_resolution=resolution, img_channels=channels, label_dim=label_dim, use_fp16=use_fp16,
            pfgmpp=math.isfinite(D), D=D, **settings, **ARCHITECTURES[arch],
        )  # fmt: skip
