"""The exact denoiser of a finite set, and the values, limits and gradients that theory predicts with it."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from ipfm_plugin.loss import IPFMLoss
from ipfm_plugin.noise import ElectrostaticNoise
from registry.builtin.noise import GaussianNoise
from registry.builtin.points import ExactDenoiser, PointDenoiser, points_in_the_plane
from registry.core.levels import heun_levels
from registry.core.streams import Streams
from registry.edm.datasets import load_images
from registry.sample.heun import heun
from registry.train.losses import denoising_loss

DIMENSIONS = (1.0, 16.0, 128.0, math.inf)


def noise_of(D: float) -> GaussianNoise:
    return GaussianNoise() if math.isinf(D) else ElectrostaticNoise(D)


def ring(count: int = 8) -> Tensor:
    return points_in_the_plane("ring", count).double()


@pytest.mark.parametrize("D", DIMENSIONS)
def test_exact_denoiser_is_the_posterior_mean(D: float) -> None:
    """The average origin of the draws that fall near x is f(x): a check by counting, without the formula."""
    points, n = ring(3), 400_000
    origin = points[torch.arange(n) % 3]
    z = torch.randn(n, 2, 1, 1, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    if not math.isinf(D):
        chi2 = torch.distributions.Gamma(torch.tensor(D / 2, dtype=torch.float64), 1.0)
        torch.manual_seed(0)
        z = z * (D / 2 / chi2.sample((n,))).sqrt().reshape(-1, 1, 1, 1)
    x_r = origin + 0.8 * z
    x = torch.tensor([0.3, 0.2], dtype=torch.float64).reshape(1, 2, 1, 1)
    near = (x_r - x).flatten(1).norm(dim=1) < 0.15
    counted = origin[near].mean(0)
    error = origin[near].std(0) / math.sqrt(int(near.sum()))
    assert near.sum() > 1000
    assert ((ExactDenoiser(points, D)(x, 0.8)[0] - counted).abs() < 5 * error + 0.01).all()


@pytest.mark.parametrize("D", DIMENSIONS)
def test_exact_denoiser_limits(D: float) -> None:
    """At large sigma it is the data's mean, at small sigma the nearest point; and it is stable at the extremes."""
    points = ring()
    exact = ExactDenoiser(points, D)
    x = points + 0.01
    torch.testing.assert_close(exact(x, 1e4), points.mean(0, keepdim=True).expand_as(x), rtol=0, atol=1e-3)
    torch.testing.assert_close(exact(x, 1e-3), points, rtol=0, atol=1e-3)
    for sigma in (1e-8, 1e8):
        assert exact(1e6 * x, sigma).isfinite().all()


def test_exact_denoiser_tends_to_the_softmax() -> None:
    x, points = torch.randn(16, 2, 1, 1, dtype=torch.float64), ring()
    torch.testing.assert_close(ExactDenoiser(points, 1e12)(x, 0.7), ExactDenoiser(points)(x, 0.7), rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("D", [128.0, math.inf])
def test_exact_denoiser_minimises_the_denoising_loss(D: float) -> None:
    """With the same draws, no nearby denoiser does better than the exact one."""
    points, noise = ring(), noise_of(D)
    x = points[torch.arange(4096) % 8]
    exact = ExactDenoiser(points, D)

    def value(scale: float, shift: float) -> float:
        def denoiser(x: Tensor, sigma: Tensor, labels: Tensor | None = None) -> Tensor:
            return scale * exact(x, sigma.double()) + shift

        return float(denoising_loss(denoiser, x, None, noise, Streams(range(4096))).sum() / 4096)

    best = value(1, 0)
    assert all(value(*other) > best for other in ((1.05, 0), (0.95, 0), (1, 0.05), (1, -0.05)))


def overlap(D: float, n: int = 20_000) -> tuple[ExactDenoiser, ExactDenoiser, Tensor, GaussianNoise]:
    """A teacher of eight points, the exact student of a generator that makes three others, and its images and noise."""
    fake = 0.7 * ring(3)
    return ExactDenoiser(ring(), D), ExactDenoiser(fake, D), fake[torch.arange(n) % 3].clone(), noise_of(D)


class OneLevel(ElectrostaticNoise):
    """The kernel at one noise level."""

    def generator_sigma(self, rng: Streams) -> Tensor:
        return torch.full((len(rng),), 0.7)


@pytest.mark.parametrize("D", [4.0, 128.0, math.inf])
def test_with_an_exact_student_the_objective_is_the_distance_of_the_fields(D: float) -> None:
    """E[|f* − x|² − |f − x|²] = E[|f* − f|²] (unweighted; IPFM Sec. 3.2), within sampling error."""
    teacher, student, x, _ = overlap(D)
    noise, loss = OneLevel(D), IPFMLoss(0.5)
    rng = Streams(range(len(x)))
    x_r = noise.perturb(x, noise.generator_sigma(rng), rng)
    sigma = torch.full((len(x),), 0.7)
    f_star, f = teacher(x_r, sigma), student(x_r, sigma)
    left = 2 * loss.objective(x, f_star, f).sum((1, 2, 3))
    right = (f_star - f).square().sum((1, 2, 3))
    difference = left - right
    error = float(difference.std() / math.sqrt(len(x)))
    assert right.mean() > 20 * error  # the test has power
    assert abs(float(difference.mean())) < 4 * error


@pytest.mark.parametrize("D", [4.0, 128.0, math.inf])
def test_a_generator_equal_to_the_data_gets_gradient_zero(D: float) -> None:
    """With the exact student of the data, f = f*, so value and gradient vanish for every draw and in expectation."""
    points = ring()
    for alpha in (0.5, 1.0):
        x = points[torch.arange(800) % 8].clone().requires_grad_()
        student = ExactDenoiser(points.flip(0), D)  # the same set in another order: a different network but the same function
        values = IPFMLoss(alpha).generator(ExactDenoiser(points, D), student, x, None, noise_of(D), Streams(range(800)))
        (gradient,) = torch.autograd.grad(values.sum(), x)
        assert values.abs().max() < 1e-9
        assert gradient.abs().max() < 1e-6


def test_a_generator_off_the_data_is_pulled_towards_it() -> None:
    """The gradient at shifted points has the sign of the shift, so gradient descent moves them back."""
    points, shift = ring(), 0.3
    x = (points[torch.arange(8000) % 8] + torch.tensor([shift, 0.0]).reshape(1, 2, 1, 1)).clone().requires_grad_()
    student = ExactDenoiser(points + torch.tensor([shift, 0.0]).reshape(1, 2, 1, 1), 128.0)
    values = IPFMLoss(0.5).generator(ExactDenoiser(points, 128.0), student, x, None, noise_of(128.0), Streams(range(8000)))
    (gradient,) = torch.autograd.grad(values.sum() / 8000, x)
    assert values.sum() > 0
    assert gradient[:, 0].sum() > 10 * gradient[:, 1].sum().abs()


@pytest.mark.parametrize("D", DIMENSIONS)
def test_the_ode_with_the_exact_denoiser_reproduces_the_points(D: float) -> None:
    points, noise = ring(), noise_of(D)
    x = heun(ExactDenoiser(points, D), noise.prior((2, 1, 1), 80.0, Streams(range(400))), heun_levels(18))
    distance, nearest = torch.cdist(x.flatten(1), points.flatten(1)).min(1)
    assert (distance < 0.05).double().mean() > 0.98
    assert set(nearest.tolist()) == set(range(8))


def test_exact_denoiser_of_real_images() -> None:
    images = load_images("digits").x()[:300]
    noise = ElectrostaticNoise(128.0)
    x_r = noise.perturb(images, torch.full((300,), 0.05), Streams(range(300)))
    torch.testing.assert_close(ExactDenoiser(images, 128.0)(x_r, 0.05), images, rtol=0, atol=1e-3)


def test_point_denoiser_is_preconditioned_as_edm() -> None:
    """At sigma → 0 it returns its input; its output is finite at every level."""
    net, x = PointDenoiser((2, 1, 1)), torch.randn(16, 2, 1, 1)
    torch.testing.assert_close(net(x, 1e-6), x, rtol=1e-4, atol=1e-4)
    assert all(net(x * s, s).isfinite().all() for s in (1e-3, 1.0, 80.0, 1e4))
