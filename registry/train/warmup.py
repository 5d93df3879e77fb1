"""The warm-up's regression: the generator learns what the teacher's ODE makes of a start (Luhman and Luhman, arXiv 2101.02388).

A pair is a start x_k at noise level sigma_k, and the teacher's image y from it. At the generator's first level, start and image
come from one z: x_K = sigma_init·z, and y solves the teacher's ODE from sigma_max·z. At a lower level, x_k is an image of the
level above, perturbed, and y solves the ODE from x_k. The pairs are made by `registry.sample.pairs`.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from registry.core.contracts import Denoiser
from registry.core.streams import Streams


class PairBatch(NamedTuple):
    """One pair for each of B images."""

    start: Tensor
    """[B, C, H, W]"""
    sigma: Tensor
    """The noise level of each start: [B]."""
    labels: Tensor | None
    """[B, label_dim]"""
    image: Tensor
    """[B, C, H, W]"""


class Pairs(NamedTuple):
    """P pairs at each of the generator's K noise levels, from the highest down."""

    starts: Tensor
    """[K, P, C, H, W]"""
    images: Tensor
    """[K, P, C, H, W]"""
    sigmas: tuple[float, ...]
    labels: Tensor | None
    """[P, label_dim]"""

    def batch(self, rng: Streams) -> PairBatch:
        """A pair for each of B = len(rng) streams, with replacement, at a random level."""
        K, P = self.starts.shape[:2]
        pair = rng.integers(P)
        level = rng.integers(K) if K > 1 else torch.zeros_like(pair)
        sigma = torch.stack([torch.full((), s, device=pair.device) for s in self.sigmas])[level]
        labels = None if self.labels is None else self.labels[pair]
        return PairBatch(self.starts[level, pair], sigma, labels, self.images[level, pair])


def regression_loss(generator: Denoiser, batch: PairBatch) -> Tensor:
    """|G(x_k; sigma_k) − y|², unreduced [B, C, H, W]."""
    return (generator(batch.start, batch.sigma, batch.labels) - batch.image) ** 2
