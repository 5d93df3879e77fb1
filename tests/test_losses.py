"""The losses: golden numbers, the papers' identities, and what the objective means when the student is exact."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from ipfm_plugin.loss import IPFMLoss, ipfm_objective
from ipfm_plugin.noise import ElectrostaticNoise
from registry.builtin.loss import SiDLoss, sid_objective
from registry.builtin.noise import GaussianNoise
from registry.core.streams import Streams
from registry.train.losses import DenoisingGame, denoising_loss, edm_weight, generator_weight
from registry.train.step import reduce
from tests.conftest import golden, tiny_network

ALPHAS = (0.0, 0.5, 1.0, 1.2)


class Recorded(GaussianNoise):
    """A kernel that plays back recorded noise levels and noise."""

    def __init__(self, sigma: Tensor, noise: Tensor) -> None:
        super().__init__()
        self._sigma, self._noise = sigma.flatten(), noise

    def student_sigma(self, rng: Streams) -> Tensor:
        return self._sigma

    generator_sigma = student_sigma

    def perturb(self, x: Tensor, sigma: Tensor, rng: Streams) -> Tensor:
        return x + self._noise.to(x.dtype)


def relative_error(found: Tensor, wanted: Tensor) -> float:
    """The largest error, relative to each sample's largest element."""
    found = found.detach()
    return float(((found - wanted).abs().flatten(1).amax(1) / wanted.abs().flatten(1).amax(1)).max())


@pytest.mark.parametrize("alpha", ALPHAS)
@pytest.mark.parametrize(("suffix", "dtype", "tolerance"), [("", torch.float32, 1e-5), ("_f64", torch.float64, 1e-10)])
def test_golden_objective_and_weight(alpha: float, suffix: str, dtype: torch.dtype, tolerance: float) -> None:
    g = golden("losses")
    y, y_real, y_fake = (g.at(k, dtype) for k in ("y", "y_real", "y_fake"))
    w = generator_weight(y, y_real)
    torch.testing.assert_close(1 / w, g.at("weight_factor" + suffix), rtol=tolerance, atol=0)
    wanted = g.at(f"loss{suffix}/sid_alpha{alpha:g}")
    assert relative_error(w * sid_objective(y, y_real, y_fake, alpha), wanted) < tolerance
    assert relative_error(w * ipfm_objective(y, y_real, y_fake, alpha), wanted) < tolerance
    if alpha == 0.5:
        assert relative_error(2 * w * ipfm_objective(y, y_real, y_fake, alpha), g.at(f"loss{suffix}/idmd")) < tolerance


@given(alpha=st.floats(-1, 2), closeness=st.floats(1e-6, 1), seed=st.integers(0, 1000))
@settings(max_examples=200)
def test_float32_agrees_with_float64_at_every_alpha(alpha: float, closeness: float, seed: int) -> None:
    """Even where the student is close to the teacher, and a difference of squares would lose most digits."""
    draw = torch.Generator().manual_seed(seed)
    x, f_star, apart = torch.randn(3, 1, 4, 8, 8, generator=draw)
    f = f_star + closeness * apart
    found = ipfm_objective(x, f_star, f, alpha)
    exact = ipfm_objective(x.double(), f_star.double(), f.double(), alpha)
    assert (found - exact).abs().max() <= 1e-5 * exact.abs().max()


@pytest.mark.parametrize("D", ["inf", "128"])
@pytest.mark.parametrize("alpha", [*ALPHAS, "idmd"])
@pytest.mark.parametrize(("suffix", "dtype", "tolerance"), [("", torch.float32, 1e-4), ("_f64", torch.float64, 1e-9)])
def test_golden_gradient_through_both_denoisers(D: str, alpha: Any, suffix: str, dtype: torch.dtype, tolerance: float) -> None:
    g = golden("losses")
    loss: DenoisingGame = IPFMLoss(0.5) if alpha == "idmd" else SiDLoss(alpha)
    kind, factor = ("idmd", 2) if alpha == "idmd" else (f"sid_alpha{alpha:g}", 1)

    def denoiser(which: str) -> Any:
        v, m = g.at(f"grad/v_{which}", dtype), g.at(f"grad/m_{which}", dtype)
        return lambda x, sigma, labels=None: (v * x + sigma.reshape(-1, 1, 1, 1) ** 2 * m) / (v + sigma.reshape(-1, 1, 1, 1) ** 2)

    noise = Recorded(g.at(f"grad/d{D}/sigma", dtype), g.at(f"grad/d{D}/noise", dtype))
    y = g.at("y", dtype).requires_grad_()
    values = factor * loss.generator(denoiser("true"), denoiser("fake"), y, None, noise, Streams(range(6)))
    (gradient,) = torch.autograd.grad(values.sum(), y)
    assert relative_error(values, g.at(f"grad/d{D}/loss{suffix}/{kind}")) < tolerance
    assert relative_error(gradient, g.at(f"grad/d{D}/grad_y{suffix}/{kind}")) < tolerance


@pytest.mark.parametrize("D", ["inf", "128"])
@pytest.mark.parametrize(("suffix", "dtype", "tolerance"), [("", torch.float32, 1e-5), ("_f64", torch.float64, 1e-10)])
def test_golden_student_loss(D: str, suffix: str, dtype: torch.dtype, tolerance: float) -> None:
    g, key = golden("losses"), f"student/d{D}"
    sigma = (g.at(f"{key}/rnd_normal", dtype) * 1.2 - 1.2).exp()
    torch.testing.assert_close(sigma.float(), g.at(f"{key}/sigma"), rtol=1e-6, atol=0)
    recorded = g.at(f"{key}/sigma", dtype)  # the float64 arrays were made from the float32 noise levels
    torch.testing.assert_close(edm_weight(recorded.float()), g.at(f"{key}/weight"), rtol=1e-5, atol=0)
    y_fake = g.at("y_fake", dtype)
    values = denoising_loss(
        lambda x, s, labels=None: y_fake, g.at("y", dtype), None, Recorded(recorded, g.at(f"{key}/noise")), Streams(range(6))
    )
    assert relative_error(values, g.at(f"{key}/loss{suffix}")) < tolerance


@pytest.mark.parametrize(("kind", "loss"), [("sid_alpha1.2", SiDLoss(1.2)), ("idmd", IPFMLoss(0.5))])
def test_golden_images_with_nan_are_dropped_from_the_sum(kind: str, loss: DenoisingGame) -> None:
    g = golden("losses")
    y, y_real, y_fake = g.at("y"), g.at("nan/y_real"), g.at("nan/y_fake")
    values = generator_weight(y, y_real) * loss.objective(y, y_real, y_fake) * (2 if kind == "idmd" else 1)
    reduced, finite = reduce(values, len(y))
    assert (~finite).sum() == 2
    torch.testing.assert_close(reduced, g.at(f"nan/loss/{kind}").sum() / len(y), rtol=1e-4, atol=0)


elements = st.floats(-10, 10, width=32)


@settings(max_examples=300)
@given(elements, elements, elements)
def test_ipfm_is_twice_sid_at_one_half(x: float, f_star: float, f: float) -> None:
    """|f* − x|² − |f − x|² = 2[(f* − f)(f* − x) − ½|f* − f|²], element by element (IPFM Prop. 3.4)."""
    a, b, c = (torch.tensor(v, dtype=torch.float64) for v in (x, f_star, f))
    torch.testing.assert_close((b - a) ** 2 - (c - a) ** 2, 2 * sid_objective(a, b, c, 0.5), rtol=1e-9, atol=1e-9)


@settings(max_examples=300)
@given(elements, elements, elements, st.floats(-2, 3))
def test_ipfm_is_sid_for_every_alpha(x: float, f_star: float, f: float, alpha: float) -> None:
    a, b, c = (torch.tensor(v, dtype=torch.float64) for v in (x, f_star, f))
    torch.testing.assert_close(ipfm_objective(a, b, c, alpha), sid_objective(a, b, c, alpha), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("alpha", [0.0, 0.5, 1.0, 1.2])
def test_ipfm_at_infinite_D_is_sid_network_and_noise_included(alpha: float) -> None:
    teacher, student = tiny_network(D=math.inf).double(), tiny_network(D=math.inf, model_channels=12).double()
    x = torch.randn(8, 1, 8, 8, dtype=torch.float64)
    sid = SiDLoss(alpha).generator(teacher, student, x, None, GaussianNoise(), Streams(range(8)))
    ipfm = IPFMLoss(alpha).generator(teacher, student, x, None, ElectrostaticNoise(math.inf), Streams(range(8)))
    torch.testing.assert_close(ipfm, sid, rtol=1e-9, atol=1e-9 * float(sid.detach().abs().max()))
    sid = SiDLoss(alpha).student(student, x, None, GaussianNoise(), Streams(range(8)))
    assert torch.equal(sid, IPFMLoss(alpha).student(student, x, None, ElectrostaticNoise(math.inf), Streams(range(8))))


def test_weight_is_per_image_and_carries_no_gradient() -> None:
    x = torch.randn(4, 3, 2, 2, requires_grad=True)
    f_star = x.detach() + torch.tensor([0.0, 1e-7, 1.0, 4.0]).reshape(-1, 1, 1, 1)
    w = generator_weight(x, f_star)
    assert not w.requires_grad
    torch.testing.assert_close(w.flatten(), torch.tensor([1e5, 1e5, 1.0, 0.25]), rtol=1e-5, atol=0)
