"""Distances compared with independent numbers and known properties."""

from __future__ import annotations

import pytest
import torch

from registry.builtin import CoverageConfig, FrechetConfig, SlicedWassersteinConfig
from registry.builtin.metrics import build_coverage, build_frechet, build_sliced_wasserstein
from registry.builtin.reference import half
from registry.core.contracts import Domain
from registry.core.errors import UserError
from registry.edm.datasets import load_images
from registry.files.formats import load_network
from registry.measure import distances
from registry.measure.classifier import Classifier
from registry.measure.distances import frechet_distance, moments, sliced_wasserstein
from tests.conftest import golden


def domain(shape: tuple[int, int, int] = (1, 8, 8), images: torch.Tensor | None = None) -> Domain:
    return Domain(D=128.0, image_shape=shape, images=images)


@pytest.mark.parametrize("case", ["a", "b"])
def test_golden_frechet(case: str) -> None:
    g = golden("fid")
    found = [moments(g.at(f"{case}/features_{side}")) for side in "ab"]
    for (mu, sigma), side in zip(found, "ab", strict=True):
        torch.testing.assert_close(mu, g.at(f"{case}/mu_{side}"), rtol=1e-9, atol=1e-12)
        torch.testing.assert_close(sigma, g.at(f"{case}/sigma_{side}"), rtol=1e-9, atol=1e-12)
    assert frechet_distance(*found[0], *found[1]) == pytest.approx(g.at(f"{case}/fid").item(), rel=1e-7)


@pytest.mark.parametrize("n", [2, 99, 100, 101, 250])
def test_moments_do_not_depend_on_how_many_rows_are_taken_at_a_time(n: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(distances, "BLOCK", 100)
    rows = 1000 + torch.randn(n, 7, generator=torch.Generator().manual_seed(n))
    mean, covariance = moments(rows)
    torch.testing.assert_close(mean, rows.double().mean(0), rtol=1e-15, atol=0)
    torch.testing.assert_close(covariance, torch.cov(rows.double().T), rtol=1e-9, atol=1e-12)


def test_frechet_of_gaussians_is_the_formula() -> None:
    """Diagonal covariances: |Δmu|² + Σ(√a − √b)², also when they are singular."""
    a, b = torch.tensor([4.0, 1.0, 0.0]).double(), torch.tensor([1.0, 9.0, 0.0]).double()
    mu = torch.tensor([1.0, 2.0, 0.0]).double()
    assert frechet_distance(mu, a.diag(), 0 * mu, b.diag()) == pytest.approx(5 + 1 + 4)
    assert frechet_distance(mu, a.diag(), mu, a.diag()) == pytest.approx(0, abs=1e-9)


def test_sliced_wasserstein_of_a_shift_and_of_a_scale() -> None:
    x = torch.randn(4000, 16, generator=torch.Generator().manual_seed(0))
    assert sliced_wasserstein(x, x) == 0
    assert sliced_wasserstein(x, x + 0.5) == pytest.approx(0.5 * 4, rel=0.1)  # c·√d
    assert sliced_wasserstein(x, 2 * x) == pytest.approx(4, rel=0.05)  # one per dimension, times √16
    assert sliced_wasserstein(x[:1000], x) < 0.4


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_columns_in_order(dtype: torch.dtype) -> None:
    x = torch.randn(50, 7).to(dtype).requires_grad_()
    x.data[3, 2] = torch.nan
    torch.testing.assert_close(distances.in_order(x), x.detach().sort(dim=0).values, rtol=0, atol=0, equal_nan=True)


def test_many_projections_are_taken_in_parts() -> None:
    x = torch.randn(300, 16, generator=torch.Generator().manual_seed(0))
    more = sliced_wasserstein(x, x + 0.5, 1300)
    assert more == pytest.approx(2, rel=0.05)
    directions = torch.nn.functional.normalize(torch.randn(16, 1300, generator=torch.Generator().manual_seed(0)), dim=0)
    shifts = 0.5 * directions.sum(0)  # each direction's points are moved by so much
    assert more == pytest.approx(float((16 * shifts.square().mean()).sqrt()), rel=1e-5)


def test_real_digits_compared_with_themselves_and_with_noise() -> None:
    images = load_images("digits").x()
    frechet = build_frechet(FrechetConfig(reference="digits"), domain())
    sliced = build_sliced_wasserstein(SlicedWassersteinConfig(reference="digits"), domain())
    assert frechet(images)["frechet"] == pytest.approx(0, abs=1e-4)
    assert frechet(images)["classes"] == 10
    assert frechet(images[load_images("digits").classes != 3])["classes"] == 9  # a missing class is noticed
    blurred = images + 0.5 * torch.randn(images.shape, generator=torch.Generator().manual_seed(0))
    for metric in (frechet, sliced):
        column = metric.columns[0]
        assert metric.floor(0)[column] < metric(blurred)[column] / 3
        assert metric.floor(0) == metric.floor(0) != metric.floor(1)


def test_shipped_classifier_knows_the_digits() -> None:
    net, facts = load_network("digits_features", "classifier")
    images = load_images("digits")
    assert images.classes is not None
    assert (net(images.x()).argmax(1) == images.classes).double().mean() > 0.99
    assert facts.others["held_out_accuracy"] > 0.98
    assert isinstance(net, Classifier)


def test_halves_are_halves() -> None:
    real = torch.arange(10.0).reshape(10, 1, 1, 1)
    assert len(half(real, 0)) == 5
    assert len(set(half(real, 0).flatten().tolist())) == 5


def test_coverage() -> None:
    real = torch.tensor([[0.0, 0], [1, 0], [0, 1], [1, 1]]).reshape(4, 2, 1, 1)
    coverage = build_coverage(CoverageConfig(radius=0.2), domain((2, 1, 1), real))
    found = coverage(torch.tensor([[0.1, 0], [1, 0.1], [0.5, 0.5]]).reshape(3, 2, 1, 1))
    assert found["reached"] == 0.5
    assert found["nearest"] == pytest.approx((0.1 + 0.1 + 0.5**0.5) / 3)


def test_reference_that_does_not_fit() -> None:
    with pytest.raises(UserError, match=r"reference = 'digits': its images are 1×8×8; the network's are 3×32×32"):
        build_sliced_wasserstein(SlicedWassersteinConfig(reference="digits"), domain((3, 32, 32)))
    with pytest.raises(UserError, match="does not include its images; give a data set"):
        build_sliced_wasserstein(SlicedWassersteinConfig(), domain())
    with pytest.raises(ValueError, match="no such data set"):
        SlicedWassersteinConfig(reference="nowhere")
    with pytest.raises(UserError, match="made for 1 channels at resolution 8"):
        build_frechet(FrechetConfig(), domain((1, 4, 4), torch.zeros(4, 1, 4, 4)))
