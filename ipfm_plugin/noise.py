"""The electrostatic kernel of PFGM++ at finite D, drawn exactly."""

from __future__ import annotations

import math

from torch import Tensor

from ipfm_plugin import ElectrostaticConfig
from registry.api import Domain, Kernel, Streams


class ElectrostaticNoise(Kernel):
    """p_r(x_r | x) ∝ (|x_r − x|² + r²)^(−(N+D)/2), r = sigma·√D (PFGM++ App. B), for every real D > 0.

    This law is a multivariate Student t with D degrees of freedom: a Gaussian times √((D/2)/g), g ~ Gamma(D/2), one
    g per image. At D = inf the scale is 1 and no gamma is drawn, so this is the Gaussian bit for bit.
    """

    def scale(self, rng: Streams) -> Tensor | None:
        """√((D/2)/g): [B]. `Kernel.draw` multiplies a normal draw by it, `prior` and `perturb` by sigma."""
        if math.isinf(self.D):
            return None
        return (self.D / 2 / rng.gamma(self.D / 2)).sqrt()


def build(config: ElectrostaticConfig, domain: Domain) -> ElectrostaticNoise:
    return ElectrostaticNoise(domain.D, config)
