"""The Gaussian kernel, D = inf."""

from __future__ import annotations

import math

from torch import Tensor

from registry.api import Domain, Kernel, NoiseConfig, Streams
from registry.builtin import GaussianConfig


class GaussianNoise(Kernel):
    """x_r = x + sigma·z: the kernel at D = inf."""

    def __init__(self, levels: NoiseConfig | None = None) -> None:
        super().__init__(math.inf, levels)

    def scale(self, rng: Streams) -> Tensor | None:
        return None


def build(config: GaussianConfig, domain: Domain) -> GaussianNoise:
    return GaussianNoise(config)
