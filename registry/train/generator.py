"""The generator: a denoiser applied to pure noise, once or K times, at fixed noise levels."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from registry.core.contracts import Noise
from registry.core.streams import Streams
from registry.train.step import mode


class Generator(nn.Module):
    """x_K ~ the kernel at sigma_K around 0; x = G(x_k; sigma_k), x_(k−1) ~ the kernel at sigma_(k−1) around x, for k = K … 1.

    The result is the last x (IPFM Algorithm 2). With K = 1 it is x = G(z; sigma_init) (SiD Sec. 3, IPFM Algorithm 1).

    `sigmas` are sigma_K > … > sigma_1, by default sigma_init alone. `gradient` is for training: "all" differentiates through
    all K applications; "last" (DMD2) picks one of the K at random for every image, returns its result, and differentiates
    through that one only. `recompute` limits the memory of "all" to the activations of one application: the others are computed
    again in the backward pass.
    """

    def __init__(
        self,
        net: nn.Module,
        noise: Noise,
        image_shape: Sequence[int],
        label_dim: int = 0,
        sigmas: Sequence[float] | None = None,
        gradient: Literal["all", "last"] = "all",
        recompute: bool = False,
    ) -> None:
        super().__init__()
        self.net, self.noise = net, noise
        self.image_shape, self.label_dim = tuple(image_shape), label_dim
        self.sigmas = tuple(sigmas or (noise.sigma_init,))
        self.gradient, self.recompute = gradient, recompute

    @property
    def steps(self) -> int:
        """K, the number of evaluations of the network for one image."""
        return len(self.sigmas)

    def forward(self, rng: Streams, labels: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        """Images for training [B, C, H, W], one per stream, and labels [B, label_dim] (drawn if none are given)."""
        if self.gradient == "all" or self.steps == 1:
            return self.chain(rng, labels)
        return self.one_of_chain(rng, labels)

    def chain(self, rng: Streams, labels: Tensor | None = None, z: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        """All K applications in turn: images [B, C, H, W] and their labels. z [B, C, H, W] is drawn if not given."""
        x_k = self.noise.prior(self.image_shape, self.sigmas[0], rng) if z is None else z
        drawn = rng.one_hot(self.label_dim)  # also if labels are given: the draws that follow are the same (EDM)
        labels = drawn if labels is None else labels
        for k in range(self.steps - 1):
            x = self.apply_net(x_k, self.level(k, x_k), labels, self.recompute)
            x_k = self.noise.perturb(x, self.level(k + 1, x), rng)
        return self.apply_net(x_k, self.level(self.steps - 1, x_k), labels), labels

    def one_of_chain(self, rng: Streams, labels: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        """The result of one application per image, picked at random; earlier ones carry no gradient (DMD2 Sec. 4.4, 4.5)."""
        x_k = self.noise.prior(self.image_shape, self.sigmas[0], rng)
        if labels is None:
            labels = rng.one_hot(self.label_dim)
        inputs = [x_k]
        with torch.no_grad():
            for k in range(1, self.steps):
                x = self.net(x_k, self.level(k - 1, x_k), labels)
                x_k = self.noise.perturb(x, self.level(k, x), rng)
                inputs.append(x_k)
        chosen = rng.integers(self.steps)
        images = torch.arange(len(rng), device=x_k.device)
        sigmas = torch.stack([self.level(k, x_k) for k in range(self.steps)])
        return self.apply_net(torch.stack(inputs)[chosen, images], sigmas[chosen, images], labels), labels

    def apply_net(self, x: Tensor, sigma: Tensor, labels: Tensor | None, recompute: bool = False) -> Tensor:
        """G(x; sigma): [B, C, H, W]. Activations are kept for the backward pass, or computed again if `recompute`."""
        if recompute and torch.is_grad_enabled():
            images: Tensor = checkpoint(self.net, x, sigma, labels, use_reentrant=False)
            return images
        images = self.net(x, sigma, labels)
        return images

    def level(self, k: int, like: Tensor) -> Tensor:
        """The noise level of application k = 0 … K − 1, the same for every image: [B]."""
        return torch.full((len(like),), self.sigmas[k], device=like.device)

    @torch.no_grad()
    def sample(self, seeds: Iterable[int], labels: Tensor | None = None, batch: int = 500) -> Tensor:
        """Images [n, C, H, W] in about [−1, 1], one per seed, in eval mode; an image depends on its seed only."""
        seeds = list(seeds)
        device = next(self.net.parameters()).device
        with mode(self.net, train=False):
            parts = [
                self.chain(Streams(seeds[i : i + batch], device), None if labels is None else labels[i : i + batch].to(device))[0]
                for i in range(0, len(seeds), batch)
            ]
        return torch.cat(parts)
