"""Apple's GPUs have no float64. There is none here, so torch's meta device stands for one: what makes float64 there is found."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from ipfm_plugin.loss import IPFMLoss
from ipfm_plugin.noise import ElectrostaticNoise
from registry.builtin.noise import GaussianNoise
from registry.core import float64
from registry.core.streams import Streams, TorchStreams
from registry.edm.networks import iDDPMPrecond
from registry.recipe.tables import PretrainConfig
from registry.sample.heun import heun_images
from registry.train import loop, pretraining
from registry.train.cost import tensors
from registry.train.data import RealImages
from registry.train.signs import signs
from tests.conftest import tiny_network
from tests.test_waiting import BLACK, CASES, META, SHAPE, game, on_meta


class NoFloat64(TorchDispatchMode):
    """Refuses what Apple's GPUs refuse."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **kwargs or {})
        if any(t.device == META and t.dtype == torch.float64 for t in tensors(result)):
            raise TypeError(f"{func} makes float64, which the device does not have")
        return result


@pytest.fixture
def no_float64(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(float64, "WITHOUT_FLOAT64", {"meta"})
    with NoFloat64():
        yield


@pytest.mark.parametrize("case", [case for case in CASES if case != "real images"])
def test_an_iteration_needs_no_float64(no_float64: None, case: str) -> None:
    run = game(**({"noise": ElectrostaticNoise(128.0), "loss": IPFMLoss()} | CASES[case]))
    loop.regression(run)
    run.nimg = run.game_start + run.train.batch
    loop.student_alone(run)
    loop.iteration(run)


def test_nor_does_the_training_of_a_teacher(no_float64: None) -> None:
    train = PretrainConfig(batch=8, duration_kimg=0.08)
    run = pretraining.Pretraining(tiny_network(label_dim=2), ElectrostaticNoise(128.0), RealImages(BLACK, True, META), train, META)
    on_meta(run.denoiser)
    pretraining.iteration(run)


@pytest.mark.parametrize("D", [128.0, math.inf])
def test_nor_does_the_teachers_sampler(no_float64: None, D: float) -> None:
    noise = ElectrostaticNoise(D)
    net = tiny_network(label_dim=2, D=D).to(META)
    images, labels = heun_images(net, noise, SHAPE, 2, 5, Streams(range(3), META))
    assert images.shape == (3, *SHAPE) and images.dtype == torch.float32 and labels is not None


def test_nor_do_levels_that_a_network_rounds_to(no_float64: None) -> None:
    net = iDDPMPrecond(8, 1, model_type="SongUNet", model_channels=8, channel_mult=[1], num_blocks=1, attn_resolutions=[])
    sigma = torch.tensor([0.5, 2.0], dtype=torch.float64)
    wanted = net.round_sigma(sigma)
    assert wanted.dtype == torch.float64 and wanted.device == sigma.device
    net.to(META)(torch.zeros(2, 1, 8, 8, device=META), torch.ones(2, device=META))


@pytest.mark.parametrize("streams", [Streams, TorchStreams])
def test_nor_do_draws(no_float64: None, streams: type[Streams]) -> None:
    rng = streams([1, 2], META)
    drawn = [rng.normal((3,)), rng.uniform((3,)), rng.gamma(64.0), rng.uniform(dtype=torch.float64)]
    assert all(values.device == META and values.dtype == torch.float32 for values in drawn)
    assert rng.integers(7).dtype == torch.int64


def test_float64_is_found(no_float64: None) -> None:
    with pytest.raises(TypeError, match="float64"):
        torch.ones(2, device=META).double()


def test_the_signs_are_the_same_to_rounding(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sums in float32, on the processor."""
    run = game(GaussianNoise(), IPFMLoss())
    for module in (run.teacher, run.student.net, run.generator.model):
        module.to_empty(device="cpu")
        for i, tensor in enumerate(module.state_dict(keep_vars=True).values()):
            tensor.data.normal_(0, 0.1, generator=torch.Generator().manual_seed(i)) if tensor.is_floating_point() else None
    run.device, run.nimg = torch.device("cpu"), run.game_start
    run.average = type(run.average)(run.generator.net)
    wanted = signs(run)
    monkeypatch.setattr(float64, "WITHOUT_FLOAT64", {"cpu"})
    found = signs(run)
    assert found == pytest.approx(wanted, rel=1e-4) and found != wanted
