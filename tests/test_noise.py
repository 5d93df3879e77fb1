"""Kernels compared with their exact distributions."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy import stats

from ipfm_plugin.noise import ElectrostaticNoise
from registry.builtin.noise import GaussianNoise
from registry.core.levels import karras_sigma
from registry.core.settings import NoiseConfig
from registry.core.streams import Streams, TorchStreams
from registry.train.kernels import log_kernel
from tests.conftest import golden

DIMENSIONS = (0.5, 1.0, 16.0, 128.0, 2048.0, 1e6)
SIZES = (2, 64, 3072, 12288)


def radius2(D: float, N: int, draws: int = 10_000) -> np.ndarray:
    """R²/r² of kernel draws at sigma = 1 around 0, in float64."""
    noise = ElectrostaticNoise(D)
    parts = [
        noise.draw((1, 1, N), Streams(range(i, i + 1000)), torch.float64).square().sum((1, 2, 3)) for i in range(0, draws, 1000)
    ]
    return (torch.cat(parts) / D).numpy()


@pytest.mark.parametrize("D", DIMENSIONS)
@pytest.mark.parametrize("N", SIZES)
def test_radius_follows_the_exact_distribution(D: float, N: int) -> None:
    """R²/(R²+r²) ~ Beta(N/2, D/2): Kolmogorov-Smirnov with ten thousand draws (of R²/r², which resolves the tails)."""
    found = stats.kstest(radius2(D, N), stats.betaprime(N / 2, D / 2).cdf)
    assert found.pvalue > 1e-3, found


@pytest.mark.parametrize("D", [3.0, 43.0, 128.0])
def test_the_level_of_an_image_varies_as_the_page_on_training_says(D: float) -> None:
    """log s has the standard deviation sqrt(trigamma(D/2))/2."""
    s = ElectrostaticNoise(D).scale(Streams(range(20_000)))
    assert s is not None
    assert s.log().std() == pytest.approx(float(torch.polygamma(1, torch.tensor(D / 2)).sqrt()) / 2, rel=0.02)


@pytest.mark.parametrize(("N", "D"), [(64, 3.0), (64, 128.0), (3072, 128.0), (64, math.inf)])
def test_a_posterior_weight_is_locally_gaussian_at_a_mean_of_the_seen_and_the_told_level(N: int, D: float) -> None:
    """d log weight / d |x - y|^2 = -1/(2 sigma_e^2), sigma_e^2 = (|x - y|^2 + D sigma^2)/(N + D)."""
    distance2 = torch.tensor([[0.3], [5.0], [400.0]], dtype=torch.float64, requires_grad=True)
    sigma = torch.tensor([[0.1], [0.5], [2.5]], dtype=torch.float64)
    (slope,) = torch.autograd.grad(log_kernel(distance2, sigma, N, D).sum(), distance2)
    seen, told = distance2.detach() / N, sigma**2
    level2 = told if math.isinf(D) else (N * seen + D * told) / (N + D)
    torch.testing.assert_close(slope, -1 / (2 * level2))


@pytest.mark.parametrize("D", [1e6, 1e12])
def test_large_D_tends_to_the_gaussian(D: float) -> None:
    found = stats.kstest(radius2(D, 64, 5000) * D, stats.chi2(64).cdf)
    assert found.pvalue > 1e-3


def test_a_wrong_distribution_is_noticed() -> None:
    """The test above can fail: it rejects a Gaussian radius at D = 128 and a clamped Beta at D = 0.5."""
    gaussian = GaussianNoise().draw((1, 1, 64), Streams(range(10_000)), torch.float64).square().sum((1, 2, 3)).numpy() / 128
    assert stats.kstest(gaussian, stats.betaprime(32, 64).cdf).pvalue < 1e-6
    b = np.clip(stats.beta(32, 0.25).rvs(10_000, random_state=0), 1e-3, 1 - 1e-3)
    assert stats.kstest(b / (1 - b), stats.betaprime(32, 0.25).cdf).pvalue < 1e-6


def test_direction_is_uniform_and_independent_of_the_radius() -> None:
    x = ElectrostaticNoise(4.0).draw((1, 1, 3), Streams(range(10_000)), torch.float64).flatten(1)
    u = x / x.norm(dim=1, keepdim=True)
    for coordinate in u.T:  # on the sphere in three dimensions every coordinate is uniform in [−1, 1]
        assert stats.kstest(coordinate.numpy(), stats.uniform(-1, 2).cdf).pvalue > 1e-3
    assert abs(stats.spearmanr(x.norm(dim=1).numpy(), u[:, 0].numpy()).statistic) < 0.04


@pytest.mark.parametrize(("N", "D"), [(64, 16), (192, 128), (3072, 128), (3072, 2048)])
def test_golden_quantiles_and_moments(N: int, D: int) -> None:
    g, key = golden("kernel"), f"n{N}_d{D}"
    rho = np.sqrt(radius2(float(D), N))
    q = g.at(f"{key}/q").numpy()
    below = np.searchsorted(np.sort(rho), g.at(f"{key}/rho_quantile").numpy()) / len(rho)
    assert np.abs(below - q).max() < 1.95 / math.sqrt(len(rho))  # Kolmogorov's bound at 1e-3
    error = math.sqrt(g.at(f"{key}/var_rho2").item() / len(rho))
    assert abs((rho**2).mean() - g.at(f"{key}/mean_rho2").item()) < 5 * error
    assert g.at(f"{key}/mean_rho2").item() == pytest.approx(N / (D - 2))


@pytest.mark.parametrize(("N", "D"), [(64, 16), (192, 128), (3072, 128), (3072, 2048)])
def test_log_kernel_has_the_golden_density(N: int, D: int) -> None:
    """Differences of the log density at sigma = 1 (the constant is left out of log_kernel)."""
    g, key = golden("kernel"), f"n{N}_d{D}"
    rho = g.at(f"{key}/rho_grid")
    found = log_kernel(rho**2 * D, torch.tensor(1.0, dtype=torch.float64), N, D)
    wanted = g.at(f"{key}/log_density_sigma1")
    torch.testing.assert_close(found - found[0], wanted - wanted[0], rtol=1e-9, atol=1e-6)


def test_log_kernel_at_infinity_is_the_limit() -> None:
    d2, sigma = torch.linspace(0, 30, 50, dtype=torch.float64), torch.tensor(1.5, dtype=torch.float64)
    torch.testing.assert_close(log_kernel(d2, sigma, 64, 1e12), log_kernel(d2, sigma, 64, math.inf), rtol=1e-6, atol=1e-9)


def test_infinite_D_is_exactly_the_gaussian() -> None:
    x, sigma = torch.randn(16, 3, 4, 4), torch.rand(16) + 0.1
    electrostatic, gaussian = ElectrostaticNoise(math.inf), GaussianNoise()
    assert torch.equal(electrostatic.perturb(x, sigma, Streams(range(16))), gaussian.perturb(x, sigma, Streams(range(16))))
    assert torch.equal(electrostatic.prior((3, 4, 4), 2.5, Streams(range(16))), gaussian.prior((3, 4, 4), 2.5, Streams(range(16))))


@pytest.mark.parametrize("D", [0.5, 128.0, math.inf])
def test_perturbation_is_aligned_and_differentiable(D: float) -> None:
    """x_r − x scales with sigma (r = sigma·√D), image by image, and dx_r/dx = 1."""
    noise, x = ElectrostaticNoise(D), torch.randn(8, 1, 4, 4, dtype=torch.float64, requires_grad=True)
    sigma = torch.linspace(0.1, 3, 8)
    one = noise.perturb(x, torch.ones(8), Streams(range(8))) - x
    some = noise.perturb(x, sigma, Streams(range(8))) - x
    torch.testing.assert_close(some, one * sigma.double().reshape(-1, 1, 1, 1))
    (gradient,) = torch.autograd.grad(noise.perturb(x, sigma, Streams(range(8))).sum(), x)
    assert torch.equal(gradient, torch.ones_like(x))


@pytest.mark.parametrize("t_max", [500, 800, 1000])
def test_golden_sigma_of_t(t_max: int) -> None:
    g = golden("losses")
    t = g.at("sigma/u").double() * t_max / 1000
    torch.testing.assert_close(karras_sigma(t), g.at(f"sigma/tmax{t_max}/sigma_f64"), rtol=1e-6, atol=0)
    torch.testing.assert_close(karras_sigma(g.at(f"sigma/tmax{t_max}/t")), g.at(f"sigma/tmax{t_max}/sigma_f64"), rtol=1e-12, atol=0)
    torch.testing.assert_close(karras_sigma(t).float(), g.at(f"sigma/tmax{t_max}/sigma"), rtol=5e-6, atol=0)


def test_noise_levels_follow_their_distributions() -> None:
    noise, rng = GaussianNoise(NoiseConfig(t_max=500)), lambda: Streams(range(10_000))
    student = stats.kstest(np.log(noise.student_sigma(rng()).numpy()), stats.norm(-1.2, 1.2).cdf)
    levels = noise.generator_sigma(rng()).double().numpy() ** (1 / 7)
    low, high = 0.002 ** (1 / 7), 80 ** (1 / 7)
    t = (levels - low) / (high - low)
    assert student.pvalue > 1e-3
    assert stats.kstest(t, stats.uniform(0, 0.5).cdf).pvalue > 1e-3


def test_golden_prior_latents() -> None:
    """At D = inf, the prior with torch's draws is PFGM++'s recorded latents exactly."""
    g = golden("kernel")
    latents = torch.stack([torch.randn(3, 8, 8, generator=torch.Generator().manual_seed(s)) for s in range(4)])
    assert torch.equal(latents, g.at("prior/dinf/latents"))
    assert torch.equal(TorchStreams(range(4)).normal((3, 8, 8)), latents)  # one stream per seed, as EDM's script draws
