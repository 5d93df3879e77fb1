"""Loads the generator in a folder and turns seeds into images: the same that `distill generate` makes.

Needs torch and safetensors, nothing else. This module's text goes into exported folders, behind that of `registry.edm.networks`
and `registry.core.philox`.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from hashlib import blake2b
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from registry.core.philox import gamma, inside_unit, normals, philox, uniform53
from registry.edm.networks import PRECONDITIONINGS, Precond


class Draws:
    """The random numbers of B images, each from its own seed: those of `registry.core.streams`, in torch alone."""

    def __init__(self, seeds: Sequence[int], device: torch.device) -> None:
        digest = blake2b(b"sample", digest_size=8).digest()
        self.key = int.from_bytes(digest[:4], "little"), int.from_bytes(digest[4:], "little")
        self.number, self.device = 0, device
        words = [[seed % 2**32 for seed in seeds], [seed // 2**32 % 2**32 for seed in seeds]]
        self.low, self.high = torch.tensor(words, dtype=torch.int64, device=device)[..., None]

    def words(self, blocks: int) -> Sequence[Tensor]:
        """The next draw's words: four tensors [B, blocks]."""
        counter = torch.arange(blocks, device=self.device), self.number, self.low, self.high
        self.number += 1
        found: Sequence[Tensor] = philox(counter, self.key)
        return found

    def normal(self, shape: Sequence[int]) -> Tensor:
        """Standard normal values [B, *shape], float32."""
        size = math.prod(shape)
        a, b, c, d = self.words(-(-size // 4))
        four = normals(torch, torch.stack([a, b]), torch.stack([c, d])).float().reshape(4, *a.shape)
        values: Tensor = four.moveaxis(0, -1).reshape(len(a), -1)[:, :size].reshape(len(a), *shape)
        return values

    def gamma(self, concentration: float) -> Tensor:
        """Gamma(concentration, rate 1), float64: [B]."""
        words = self.words(5)
        values: Tensor = gamma(torch, concentration, [w[:, 1:] for w in words], inside_unit(torch, words[0][:, 0]))
        return values

    def integers(self, high: int) -> Tensor:
        """Uniform integers in [0, high): [B]."""
        a, _, c, _ = self.words(1)
        u: Tensor = uniform53(torch, a, c)[:, 0]
        return (u * high).long()


class FewStepGenerator:
    """A generator of K evaluations. An image depends on its seed and class only, not on the batch or the device."""

    def __init__(self, net: Precond, config: dict[str, Any]) -> None:
        self.net = net.eval().requires_grad_(False)
        self.D = math.inf if config["D"] == "inf" else float(config["D"])
        self.sigmas: list[float] = config["sigmas"]
        self.image_shape: tuple[int, ...] = tuple(config["image_shape"])
        self.label_dim: int = config["label_dim"]

    def to(self, device: str | torch.device) -> FewStepGenerator:
        self.net.to(device)
        return self

    @torch.no_grad()
    def sample(
        self,
        n: int = 16,
        *,
        seeds: Sequence[int] | None = None,
        labels: int | Sequence[int] | None = None,
        batch: int = 64,
    ) -> Tensor:
        """Images [n, C, H, W], float32, in about [-1, 1]: one for each seed (0 to n - 1 by default).

        `labels`: a class for all images, or one for each; by default each image draws its class from its seed.
        """
        seeds = range(n) if seeds is None else [int(seed) for seed in seeds]
        classes = [labels] * len(seeds) if isinstance(labels, int) else labels
        if classes is not None and (len(classes) != len(seeds) or not all(0 <= c < self.label_dim for c in classes)):
            raise ValueError(f"labels must be {len(seeds)} classes from 0 to {self.label_dim - 1}")
        parts = [self.part(seeds[i : i + batch], classes and classes[i : i + batch]) for i in range(0, len(seeds), batch)]
        return torch.cat(parts) if parts else torch.empty(0, *self.image_shape)

    def images(self, n: int = 16, **arguments: Any) -> Tensor:
        """The same as pixels: uint8 [n, H, W, C]."""
        images = self.sample(n, **arguments)
        return (images * 127.5 + 128).clip(0, 255).to(torch.uint8).permute(0, 2, 3, 1)

    def part(self, seeds: Sequence[int], classes: Sequence[int] | None) -> Tensor:
        """x_K ~ the kernel at sigma_K around 0; x = G(x_k; sigma_k), x_(k-1) ~ the kernel at sigma_(k-1) around x, to k = 1."""
        device = next(self.net.parameters()).device
        draws = Draws(seeds, device)
        x_k = self.sigmas[0] * self.noise(draws)
        drawn = draws.integers(self.label_dim) if self.label_dim else None
        chosen = drawn if classes is None else torch.tensor(list(classes), device=device)
        labels = None if chosen is None else torch.nn.functional.one_hot(chosen, self.label_dim).float()
        for k, sigma in enumerate(self.sigmas):
            x: Tensor = self.net(x_k, torch.full((len(x_k),), sigma, device=device), labels)
            if k + 1 < len(self.sigmas):
                x_k = x + self.sigmas[k + 1] * self.noise(draws)
        return x

    def noise(self, draws: Draws) -> Tensor:
        """The kernel of dimension D at sigma = 1 around 0: [B, C, H, W]. Gaussian at D = inf, otherwise a Student t with D degrees
        of freedom: a Gaussian times sqrt((D/2)/g), g ~ Gamma(D/2), one g per image (PFGM++ App. B)."""
        z = draws.normal(self.image_shape)
        if math.isinf(self.D):
            return z
        scale = (self.D / 2 / draws.gamma(self.D / 2)).sqrt()
        scaled: Tensor = z * scale.float().reshape(-1, 1, 1, 1)
        return scaled


def load(folder: str | Path = ".", device: str | torch.device = "cpu") -> FewStepGenerator:
    """The generator in a folder that holds config.json and model.safetensors."""
    from safetensors.torch import load_file

    config = json.loads((Path(folder) / "config.json").read_text(encoding="utf-8"))
    network = config["network"]
    arguments = {k: math.inf if v == "inf" else v for k, v in network["arguments"].items()}
    make: Any = PRECONDITIONINGS[network["class"]]
    net = make(**arguments)
    net.load_state_dict(load_file(Path(folder) / "model.safetensors"))
    return FewStepGenerator(net.to(device), config)
