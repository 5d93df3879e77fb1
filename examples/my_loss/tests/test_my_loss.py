"""The loss against theory (two Gaussians, whose divergence is known), and against the host's contract."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from my_loss.loss import DiffInstructLoss
from registry.api import Kernel, Streams
from registry.testing import build, check_loss, check_plugin

SIGMA = 0.8


class OneLevel(Kernel):
    """The Gaussian kernel at one noise level."""

    def __init__(self) -> None:
        super().__init__(D=math.inf)

    def scale(self, rng: Streams) -> None:
        return None

    def generator_sigma(self, rng: Streams) -> Tensor:
        return torch.full((len(rng),), SIGMA)


class Gaussian:
    """The exact denoiser of N(mean, std²): f = x + sigma²·score(x)."""

    def __init__(self, mean: float, std: float) -> None:
        self.mean, self.std = mean, std

    def score(self, x: Tensor, sigma: float) -> Tensor:
        return -(x - self.mean) / (self.std**2 + sigma**2)

    def __call__(self, x: Tensor, sigma: Tensor, labels: Tensor | None = None) -> Tensor:
        return x + sigma.reshape(-1, 1, 1, 1) ** 2 * self.score(x, SIGMA)


DATA, MADE = Gaussian(0.3, 0.5), Gaussian(-0.4, 0.7)


def gradient(weighting: str, n: int) -> tuple[Tensor, Tensor, Tensor]:
    """The loss's gradient, x and the z that it was made from, x = mean + std·z, for n images."""
    z = Streams(range(n, 2 * n)).normal((1, 2, 2), dtype=torch.float64)
    x = (MADE.mean + MADE.std * z).requires_grad_()
    values = DiffInstructLoss(weighting).generator(DATA, MADE, x, None, OneLevel(), Streams(range(n)))
    (found,) = torch.autograd.grad(values.sum(), x)
    return found, x.detach(), z


def test_the_gradient_is_the_difference_of_the_scores() -> None:
    found, x, _ = gradient("kl", 100)
    x_r = OneLevel().perturb(x, torch.full((100,), SIGMA), Streams(range(100)))
    torch.testing.assert_close(found, MADE.score(x_r, SIGMA) - DATA.score(x_r, SIGMA), rtol=1e-6, atol=1e-6)


def test_its_mean_is_the_gradient_of_the_divergence() -> None:
    """KL(N(m, a²) || N(d, b²)) = ln(b/a) + (a² + (m − d)²)/(2b²) − ½ per value, a² = std² + sigma²: derivatives in m and std."""
    n = 3000
    found, _, z = gradient("kl", n)
    mean, std = (torch.tensor(v, dtype=torch.float64, requires_grad=True) for v in (MADE.mean, MADE.std))
    a2, b2 = std**2 + SIGMA**2, DATA.std**2 + SIGMA**2
    divergence = (b2 / a2).log() / 2 + (a2 + (mean - DATA.mean) ** 2) / (2 * b2) - 0.5
    for part, wanted in zip((found, found * z), torch.autograd.grad(divergence, (mean, std)), strict=True):
        error = float(part.std()) / math.sqrt(part.numel())
        assert abs(float(part.mean() - wanted)) < 4 * error
        assert abs(float(wanted)) > 10 * error  # the test has power


def test_dmd_weighs_every_image_by_the_teachers_error() -> None:
    kl, x, _ = gradient("kl", 100)
    dmd, _, _ = gradient("dmd", 100)
    x_r = OneLevel().perturb(x, torch.full((100,), SIGMA), Streams(range(100)))
    error = (x - DATA(x_r, torch.full((100,), SIGMA))).abs().mean((1, 2, 3), keepdim=True)
    torch.testing.assert_close(dmd, kl * SIGMA**2 / error, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("weighting", ["dmd", "kl"])
def test_contract(weighting: str) -> None:
    teacher = build("teacher", "edm", source="digits_dinf")
    check_loss(DiffInstructLoss(weighting), teacher, build("noise", "gaussian", teacher))


def test_plugin() -> None:
    check_plugin("my_loss")
