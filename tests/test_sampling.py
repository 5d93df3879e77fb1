"""Samplers and averages compared with independent implementations."""

from __future__ import annotations

import math

import pytest
import torch
from torch_ema import ExponentialMovingAverage

from registry.builtin.noise import GaussianNoise
from registry.core.levels import heun_levels
from registry.core.streams import TorchStreams
from registry.sample.heun import heun
from registry.show.pictures import to_uint8
from registry.train.ema import EMA, ema_beta
from registry.train.generator import Generator
from registry.train.step import mode
from tests.conftest import golden, network_of, tiny_network


@pytest.mark.parametrize("D", ["inf", "128"])
@pytest.mark.parametrize("run", [0, 1])
def test_golden_heun(D: str, run: int) -> None:
    g, key = golden("sampler"), f"d{D}/run{run}"
    levels = heun_levels(g.meta["runs"][run]["num_steps"])
    torch.testing.assert_close(levels, g.at(f"{key}/t_steps"), rtol=1e-12, atol=0)
    latents = g.at(f"d{D}/latents", torch.float64) * (levels[0] if D == "inf" else 1)
    net = network_of(g, g.meta["kwargs"])
    images = heun(net, latents, levels)
    torch.testing.assert_close(images, g.at(f"{key}/images"), rtol=0, atol=1e-4)
    assert (to_uint8(images).int() - g.at(f"{key}/images_u8").int()).abs().max() <= 1
    torch.testing.assert_close(heun(net.double(), latents, levels), g.at(f"{key}/images_netf64"), rtol=0, atol=1e-9)

    mean, variance = g.at("gauss_mean"), g.meta["gauss_std"] ** 2

    def gaussian(x: torch.Tensor, sigma: torch.Tensor, labels: torch.Tensor | None = None) -> torch.Tensor:
        s2 = sigma.reshape(-1, 1, 1, 1) ** 2
        return (variance * x + s2 * mean) / (variance + s2)

    torch.testing.assert_close(heun(gaussian, latents, levels), g.at(f"{key}/images_gauss"), rtol=0, atol=1e-10)


def test_golden_one_step_generator_from_seeds() -> None:
    """As in SiD's generation script: latents, then a class, from one stream per seed."""
    g = golden("onestep")
    net = network_of(g, g.meta["kwargs"])
    generator = Generator(net, GaussianNoise(), (3, 8, 8), label_dim=5)
    rng = TorchStreams(g.meta["seeds"])
    torch.testing.assert_close(rng.normal((3, 8, 8)), g.at("latents"))
    assert torch.equal(rng.integers(5), g.at("class_idx"))
    with mode(net, train=False), torch.no_grad():
        images, _ = generator.chain(TorchStreams(g.meta["seeds"]))
    torch.testing.assert_close(images.double(), g.at("images", torch.float64), rtol=0, atol=1e-4)
    assert (to_uint8(images).int() - g.at("images_u8").int()).abs().max() <= 1


def test_golden_one_step_generator_at_finite_D() -> None:
    g = golden("onestep")
    net = network_of(g, g.meta["kwargs"])
    labels = torch.nn.functional.one_hot(g.at("class_idx"), 5).float()
    with torch.no_grad():
        images = net(g.at("dfin/z"), torch.tensor(2.5), labels)
    torch.testing.assert_close(images, g.at("dfin/images"), rtol=0, atol=1e-4)


def test_an_image_depends_on_its_seed_only() -> None:
    generator = Generator(tiny_network(label_dim=3), GaussianNoise(), (1, 8, 8), label_dim=3)
    whole = generator.sample(range(12))
    torch.testing.assert_close(generator.sample(range(12), batch=5), whole, rtol=0, atol=1e-6)
    torch.testing.assert_close(generator.sample([7]), whole[7:8], rtol=0, atol=1e-6)


def test_golden_beta() -> None:
    g = golden("ema")
    for batch, nimg, _, beta, without_rampup in g.at("table").tolist():
        assert ema_beta(int(batch), int(nimg), 500, 0.05) == pytest.approx(beta, rel=1e-12, abs=1e-300)
        assert ema_beta(int(batch), int(nimg), 500, 0) == pytest.approx(without_rampup, rel=1e-12)


def test_golden_average() -> None:
    g = golden("ema")
    net = torch.nn.Linear(5, 1, bias=False).double()
    net.weight.data.copy_(g.at("ema_init"))
    ema = EMA(net, g.meta["ema_halflife_kimg"], g.meta["ema_rampup_ratio"])
    for i, (value, wanted) in enumerate(zip(g.at("params"), g.at("ema"), strict=True)):
        net.weight.data.copy_(value)
        ema.update(64, 64 * i)
        torch.testing.assert_close(ema.state_dict()["weight"][0], wanted, rtol=0, atol=1e-12)


def test_the_average_is_torch_emas_to_the_bit() -> None:
    net = tiny_network()
    ema, wanted = EMA(net, 1.0, 0.5), ExponentialMovingAverage(net.parameters(), decay=0.0, use_num_updates=False)
    for i in range(10):
        for p in net.parameters():
            p.data.add_(torch.randn_like(p))
        ema.update(64, 64 * i)
        wanted.decay = ema_beta(64, 64 * i, 1.0, 0.5)
        wanted.update()
        assert all(map(torch.equal, ema.state_dict().values(), wanted.shadow_params))


def test_swapping_in_the_average_leaves_nothing_behind() -> None:
    net = tiny_network()
    before = {k: v.clone() for k, v in net.state_dict().items()}
    ema = EMA(net)
    with ema.averaged() as averaged:
        for p in averaged.parameters():
            p.data.zero_()
    assert all(torch.equal(before[k], v) for k, v in net.state_dict().items())
    inner: ExponentialMovingAverage = ema._average
    assert inner.collected_params is None
    assert list(ema.state_dict()) == [name for name, _ in net.named_parameters()]


def test_average_of_another_network_is_refused() -> None:
    with pytest.raises(AssertionError, match="another network"):
        EMA(torch.nn.Linear(2, 2)).load_state_dict(EMA(tiny_network()).state_dict())


def test_heun_takes_two_evaluations_per_step_except_the_last() -> None:
    calls = []

    def denoiser(x: torch.Tensor, sigma: torch.Tensor, labels: torch.Tensor | None = None) -> torch.Tensor:
        calls.append(float(sigma[0]))
        return 0 * x

    x = heun(denoiser, torch.ones(2, 1, 1, 1), heun_levels(18))
    assert len(calls) == 35
    assert calls[0] == pytest.approx(80)
    assert math.isclose(calls[-1], 0.002)
    torch.testing.assert_close(x, torch.zeros_like(x))
