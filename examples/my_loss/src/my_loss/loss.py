"""Distribution matching: the generator follows the difference of two scores, and no gradient goes through a denoiser.

Luo et al. 2023, Diff-Instruct (arXiv 2305.18455); Yin et al. 2024, DMD (arXiv 2311.18828).
"""

from __future__ import annotations

import torch
from torch import Tensor

from my_loss import DiffInstructConfig
from registry.api import Denoiser, Domain, Noise, Streams, denoising_loss, generator_weight


class DiffInstructLoss:
    """The generator descends KL(generator || data), both blurred by noise of a random level (Diff-Instruct Sec. 3, DMD Eq. 7).

    With scores (f − x_r)/sigma² of the student and (f* − x_r)/sigma² of the teacher, its gradient in x is
    (f − f*)/sigma²: a step against it moves x towards where the teacher's answer lies, seen from the student's. `weighting`
    "kl" is this; "dmd" multiplies it by sigma²/mean|x − f*|, so that all levels count alike (DMD Eq. 8).

    At finite D (f − x_r)/sigma is the direction of the Poisson field (PFGM++ Sec. 3), not a score. The same rule then makes
    the two fields agree, and is the gradient of the divergence in the limit D → inf only.
    """

    def __init__(self, weighting: str = "dmd", sigma_data: float = 0.5) -> None:
        self.weighting, self.sigma_data = weighting, sigma_data

    def student(self, student: Denoiser, x: Tensor, labels: Tensor | None, noise: Noise, rng: Streams) -> Tensor:
        """The student learns to denoise what the generator makes, as in SiD and IPFM."""
        return denoising_loss(student, x, labels, noise, rng, self.sigma_data)

    def generator(
        self, teacher: Denoiser, student: Denoiser, x: Tensor, labels: Tensor | None, noise: Noise, rng: Streams
    ) -> Tensor:
        """Values ½|gradient|² [B, C, H, W] whose derivative in x is the gradient above."""
        with torch.no_grad():
            sigma = noise.generator_sigma(rng)
            x_r = noise.perturb(x, sigma, rng)
            f_star, f = teacher(x_r, sigma, labels), student(x_r, sigma, labels)
            w = generator_weight(x, f_star) if self.weighting == "dmd" else 1 / sigma.to(f.dtype).reshape(-1, 1, 1, 1) ** 2
            target = x - w * (f - f_star)
        return (x - target) ** 2 / 2


def build(config: DiffInstructConfig, domain: Domain) -> DiffInstructLoss:
    return DiffInstructLoss(config.weighting, domain.sigma_data)
