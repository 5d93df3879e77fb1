"""The conversion against theory (Gaussian data, where everything is known), and the teacher against the host's contract."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Literal

import pytest
import torch
from torch import Tensor, nn

from my_teacher import VPConfig
from my_teacher.network import SomebodysUNet, linear_schedule
from my_teacher.teacher import VPDenoiser, build
from my_teacher.train import train
from registry.api import UserError
from registry.testing import build as build_registered
from registry.testing import check_plugin, check_teacher

ALPHA_BAR = linear_schedule()
STD = 0.5


class Exact(nn.Module):
    """The best predictor for data N(0, STD²) at the schedule's steps: x_t and its target are jointly Gaussian."""

    def __init__(self, parametrisation: str) -> None:
        super().__init__()
        self.parametrisation = parametrisation
        self.dummy = nn.Parameter(torch.zeros((), dtype=torch.float64))

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        alpha_bar = ALPHA_BAR[t.round().long()].reshape(-1, 1, 1, 1)
        alpha, sigma = alpha_bar.sqrt(), (1 - alpha_bar).sqrt()
        x_0 = alpha * STD**2 / (alpha_bar * STD**2 + sigma**2) * x
        epsilon = (x - alpha * x_0) / sigma
        return epsilon if self.parametrisation == "epsilon" else alpha * epsilon - sigma * x_0


def with_network(net: nn.Module, parametrisation: str = "epsilon") -> VPDenoiser:
    """The denoiser with another network in the place of its own."""
    denoiser = VPDenoiser(parametrisation=parametrisation)
    denoiser.net = net
    return denoiser


@pytest.mark.parametrize("parametrisation", ["epsilon", "velocity"])
def test_an_exact_network_gives_the_exact_denoiser(parametrisation: str) -> None:
    """E[x₀ | x₀ + sigma·epsilon] = STD²/(STD² + sigma²)·x, at every one of the schedule's noise levels."""
    sigma = ((1 - ALPHA_BAR) / ALPHA_BAR).sqrt()
    x = torch.randn(len(sigma), 1, 2, 2, dtype=torch.float64) * (STD**2 + sigma**2).sqrt().reshape(-1, 1, 1, 1)
    f = with_network(Exact(parametrisation), parametrisation)(x, sigma)
    torch.testing.assert_close(f, STD**2 / (STD**2 + sigma.reshape(-1, 1, 1, 1) ** 2) * x, rtol=1e-9, atol=1e-9)


def test_the_networks_step_is_that_of_the_noise_level() -> None:
    denoiser = with_network(Exact("epsilon"))
    sigma = ((1 - ALPHA_BAR) / ALPHA_BAR).sqrt()
    torch.testing.assert_close(denoiser.step(sigma), torch.arange(1000.0, dtype=torch.float64))
    between = denoiser.step((sigma[1:] * sigma[:-1]).sqrt())
    torch.testing.assert_close(between, torch.arange(999.0, dtype=torch.float64) + 0.5)
    assert denoiser.step(torch.tensor([1e-6, 1e6])).tolist() == [0, 999]


@pytest.mark.parametrize(("parametrisation", "iterations"), [("epsilon", 150), ("velocity", 20)])
def test_contract(parametrisation: Literal["epsilon", "velocity"], iterations: int, tmp_path: Path) -> None:
    """A network that was trained for seconds is a teacher, on noise levels that are not too high for it yet."""
    torch.save(train(iterations, parametrisation, channels=8, batch=32).state_dict(), tmp_path / "short.pt")
    teacher = build(VPConfig(source=str(tmp_path / "short.pt"), parametrisation=parametrisation, channels=8))
    check_teacher(teacher, build_registered("noise", "gaussian", teacher, sigma_max=10.0))


def test_plugin() -> None:
    check_plugin("my_teacher")


@pytest.mark.parametrize("damage", ["truncated", "of another width", "no checkpoint", "a list"])
def test_a_file_that_is_no_checkpoint_is_one_line(damage: str, tmp_path: Path) -> None:
    file = tmp_path / "damaged.pt"
    torch.save([1, 2] if damage == "a list" else SomebodysUNet(8 if damage == "of another width" else 16).state_dict(), file)
    if damage == "truncated":
        file.write_bytes(file.read_bytes()[:-1000])
    if damage == "no checkpoint":
        file.write_text("hello")
    with pytest.raises(UserError, match="damaged.pt: no state dict of SomebodysUNet") as caught:
        build(VPConfig(source=str(file)))
    assert "\n" not in str(caught.value)


def test_D_is_known_before_anything_is_built() -> None:
    assert math.isinf(VPConfig(source="digits_d128").known_D())
