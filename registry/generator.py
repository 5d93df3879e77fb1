"""The generator: a denoiser applied once, at a fixed noise level, to pure noise."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn

from registry.api import Noise
from registry.descent import mode
from registry.streams import Streams


class Generator(nn.Module):
    """x = G(z; sigma_init), z ~ the kernel at sigma_init around 0 (SiD Sec. 3; IPFM Algorithm 1)."""

    def __init__(self, net: nn.Module, noise: Noise, image_shape: Sequence[int], label_dim: int = 0) -> None:
        super().__init__()
        self.net, self.noise = net, noise
        self.image_shape, self.label_dim = tuple(image_shape), label_dim

    def forward(self, rng: Streams, labels: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        """One image per stream: images [B, C, H, W] and their labels [B, label_dim] (drawn where none are given)."""
        z = self.noise.prior(self.image_shape, self.noise.sigma_init, rng)
        if labels is None:
            labels = rng.one_hot(self.label_dim)
        sigma = torch.full((len(rng),), self.noise.sigma_init, device=z.device)
        return self.net(z, sigma, labels), labels

    @torch.no_grad()
    def sample(self, seeds: Iterable[int], labels: Tensor | None = None, batch: int = 500) -> Tensor:
        """Images [n, C, H, W] in about [−1, 1], one per seed, in eval mode; an image depends on its seed only."""
        seeds = list(seeds)
        device = next(self.net.parameters()).device
        with mode(self.net, train=False):
            parts = [
                self(Streams(seeds[i : i + batch], device), None if labels is None else labels[i : i + batch].to(device))[0]
                for i in range(0, len(seeds), batch)
            ]
        return torch.cat(parts)
