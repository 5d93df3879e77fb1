"""The checks for plugin authors: shipped components pass, and every wrong one is caught with its own message."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from ipfm_plugin.loss import IPFMLoss
from ipfm_plugin.noise import ElectrostaticNoise
from registry.builtin import AnalyticConfig, analytic
from registry.builtin.loss import SiDLoss
from registry.builtin.noise import GaussianNoise
from registry.core.contracts import Metric, Noise, Teacher
from registry.core.streams import Streams
from registry.edm.datasets import load_images
from registry.files.teachers import teacher_from_file
from registry.plugins.loading import Plugins
from registry.testing import check_loss, check_metric, check_noise, check_plugin, check_teacher, check_tracker
from registry.train.losses import denoising_loss
from tests.conftest import tiny_network


def teacher_of(D: float = 128.0, label_dim: int = 0, **changes: Any) -> Teacher:
    return Teacher(
        **dict(denoiser=tiny_network(D=D, label_dim=label_dim), D=D, image_shape=(1, 8, 8), label_dim=label_dim) | changes
    )


# ------------------------------------------------------------------------------------------------- what is right


@pytest.mark.parametrize("D", [0.5, 3.0, 128.0, 1e6, math.inf])
def test_kernels_pass(D: float) -> None:
    check_noise(ElectrostaticNoise(D))
    check_noise(ElectrostaticNoise(D), image_shape=(2, 1, 1))


@pytest.mark.parametrize(("D", "label_dim"), [(128.0, 0), (math.inf, 3)])
def test_networks_and_losses_pass(D: float, label_dim: int) -> None:
    teacher, noise = teacher_of(D, label_dim), ElectrostaticNoise(D)
    check_teacher(teacher)
    check_teacher(teacher, noise)
    check_loss(IPFMLoss(0.5), teacher, noise)
    check_loss(SiDLoss(1.2), teacher, noise)


def test_shipped_teachers_pass() -> None:
    check_teacher(teacher_from_file("digits_dinf"), GaussianNoise())


@pytest.mark.parametrize("D", [1.0, math.inf])
def test_exact_teachers_pass(D: float) -> None:
    teacher = analytic.build(AnalyticConfig(D=D, warmup=5, width=16))
    check_teacher(teacher)
    check_loss(IPFMLoss(1.0), teacher, ElectrostaticNoise(D))


def test_metrics_pass(plugins: Plugins) -> None:
    teacher = teacher_of(images=load_images("digits").x()[:100])
    for name in ("frechet", "sliced_wasserstein", "coverage"):
        component = plugins.find("metric", name).component
        check_metric(component.make(component.config(), teacher), (1, 8, 8))


@pytest.mark.parametrize("name", ["tensorboard", "wandb"])
def test_trackers_pass(name: str, plugins: Plugins) -> None:
    component = plugins.find("tracker", name).component
    check_tracker(component.make(component.config()))


@pytest.mark.parametrize("module", ["registry.builtin", "ipfm_plugin"])
def test_plugins_pass(module: str) -> None:
    check_plugin(module)


def test_a_check_changes_nothing() -> None:
    teacher = teacher_of()
    teacher.denoiser.train().requires_grad_(True)
    before = [p.clone() for p in teacher.denoiser.parameters()]
    check_teacher(teacher)
    check_loss(IPFMLoss(0.5), teacher, ElectrostaticNoise(128.0))
    assert teacher.denoiser.training
    assert all(p.requires_grad and torch.equal(p, b) for p, b in zip(teacher.denoiser.parameters(), before, strict=True))


# ---------------------------------------------------------------------------------------------- teachers that are wrong


class Wrong(nn.Module):
    """A good denoiser with its output or its arguments spoilt."""

    def __init__(self, spoil: Callable[..., Tensor], label_dim: int = 0) -> None:
        super().__init__()
        self.net, self.spoil = tiny_network(label_dim=label_dim), spoil

    def forward(self, x: Tensor, sigma: Tensor, labels: Tensor | None = None) -> Tensor:
        return self.spoil(self.net, x, sigma, labels)


def column(sigma: Tensor) -> Tensor:
    return sigma.reshape(-1, 1, 1, 1)


ANSWERS: dict[str, tuple[str, Callable[..., Tensor]]] = {
    "shape": ("has shape", lambda net, x, s, c: net(x, s, c)[:, :, 1:]),
    "flat": ("has shape", lambda net, x, s, c: net(x, s, c).flatten(1)),
    "dtype": ("is torch.float64", lambda net, x, s, c: net(x, s, c).double()),
    "tuple": ("is a tuple", lambda net, x, s, c: (net(x, s, c), None)),
    "not finite": ("is not finite", lambda net, x, s, c: net(x, s, c) / (column(s) > 0.01)),
    "random": ("gives different results for the same input", lambda net, x, s, c: net(x, s, c) + 0.1 * torch.randn_like(x)),
    "batch statistics": ("depends on the batch", lambda net, x, s, c: net(x, s, c) - 0.1 * x.mean(0)),
    "one sigma for all": ("depends on the batch", lambda net, x, s, c: net(x, s[:1].expand(len(x)), c)),
    "float32 only": ("float64", lambda net, x, s, c: net(x, s, c) if x.dtype == torch.float32 else 0.9 * x),
    "no gradient": ("no gradient flows", lambda net, x, s, c: net(x, s, c).detach()),
    "a constant": ("is zero", lambda net, x, s, c: 0 * net(x, s, c)),
    "epsilon": ("it must leave it almost unchanged", lambda net, x, s, c: (x - net(x, s, c)) / column(s)),
    "identity": ("from pure noise", lambda net, x, s, c: x + 0 * net(x, s, c)),
    "the wrong sign": ("from pure noise", lambda net, x, s, c: 2 * x - net(x, s, c)),
    "half the noise": ("from pure noise", lambda net, x, s, c: (x + net(x, s, c)) / 2),
    "variance for sigma": ("from pure noise", lambda net, x, s, c: x + (net(x, s, c) - x) / (1 + column(s)).sqrt()),
}


@pytest.mark.parametrize("what", ANSWERS)
def test_a_wrong_denoiser_is_caught(what: str) -> None:
    sentence, spoil = ANSWERS[what]
    with pytest.raises(AssertionError, match=sentence):
        check_teacher(teacher_of(denoiser=Wrong(spoil)))


def shared(teacher: Teacher) -> Callable[[], nn.Module]:
    return lambda: teacher.denoiser


class Copied(nn.Module):
    """A denoiser that loses its weights when copied."""

    def __init__(self) -> None:
        super().__init__()
        self.net = tiny_network()

    def __deepcopy__(self, memo: dict[int, Any]) -> nn.Module:
        return tiny_network(model_channels=12)

    def forward(self, x: Tensor, sigma: Tensor, labels: Tensor | None = None) -> Tensor:
        answer: Tensor = self.net(x, sigma, labels)
        return answer


FACTS: dict[str, tuple[str, Callable[[], Teacher]]] = {
    "not a module": ("must be a torch.nn.Module", lambda: teacher_of(denoiser=lambda x, sigma, labels=None: x)),
    "D": ("it must be a positive number", lambda: teacher_of(D=-1.0, denoiser=tiny_network())),
    "list": ("must be a tuple", lambda: teacher_of(image_shape=[1, 8, 8])),
    "two numbers": ("must be a tuple", lambda: teacher_of(image_shape=(8, 8))),
    "labels": ("labels do not change", lambda: teacher_of(label_dim=3, denoiser=Wrong(lambda net, x, s, c: net(x, s)))),
    "label_dim": ("0 means no labels", lambda: teacher_of(denoiser=tiny_network(), label_dim=None)),
    "sigma_data": ("standard deviation", lambda: teacher_of(sigma_data=0.0)),
    "no hash": ("teacher.weights", lambda: teacher_of(path=Path("teacher.pt"))),
    "nothing to train": (
        "has no parameters",
        lambda: Teacher(analytic.build(AnalyticConfig()).denoiser, D=math.inf, image_shape=(2, 1, 1)),
    ),
    "shared": ("share parameters", lambda: (lambda t: teacher_of(denoiser=t.denoiser, trainable=shared(t)))(teacher_of())),
    "another function": ("does not compute the same function", lambda: teacher_of(denoiser=Copied())),
}


@pytest.mark.parametrize("what", FACTS)
def test_wrong_facts_of_a_teacher_are_caught(what: str) -> None:
    sentence, make = FACTS[what]
    with pytest.raises(AssertionError, match=sentence):
        check_teacher(make())


class Limited(nn.Module):
    """The exact denoiser of N(0, ¼), which knows only levels from `low` to `high` and rounds them to multiples of 1/`grid`."""

    def __init__(self, low: float = 0.05, high: float = 20.0, grid: float = 100.0, round_to: torch.dtype = torch.float64) -> None:
        super().__init__()
        self.sigma_min, self.sigma_max, self.grid, self.round_to = low, high, grid, round_to
        self.mean = nn.Parameter(torch.zeros(1))
        self.asked: list[float] = []

    def round_sigma(self, sigma: Tensor) -> Tensor:
        return ((self.grid * sigma).round() / self.grid).to(self.round_to) if self.grid > 0 else sigma - self.grid

    def forward(self, x: Tensor, sigma: Tensor, labels: Tensor | None = None) -> Tensor:
        self.asked += [float(s) for s in sigma]
        return self.mean + (x - self.mean) * 0.25 / (0.25 + column(sigma.to(x.dtype)) ** 2)


def test_a_denoiser_is_checked_at_the_levels_that_it_knows() -> None:
    limited = Limited()
    check_teacher(teacher_of(denoiser=limited))
    assert (min(limited.asked), max(limited.asked)) == (pytest.approx(0.05), 20.0)
    for wrong, sentence in {
        Limited(low=3, high=2): "it must be 0 ≤ sigma_min < sigma_max",
        Limited(round_to=torch.float32): "it must have sigma's type, torch.float64",
        Limited(grid=-1): "changes a level that it has rounded",
    }.items():
        with pytest.raises(AssertionError, match=sentence):
            check_teacher(teacher_of(denoiser=wrong))


def test_a_noise_of_another_dimension_is_caught() -> None:
    with pytest.raises(AssertionError, match="they must agree"):
        check_teacher(teacher_of(), GaussianNoise())


# ------------------------------------------------------------------------------------------------ noises that are wrong


class GlobalDraws(GaussianNoise):
    def draw(self, shape: Sequence[int], rng: Streams, dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.randn(len(rng), *shape, dtype=dtype)


class OneForAll(GaussianNoise):
    """Uses the first image's draw for the whole batch."""

    def draw(self, shape: Sequence[int], rng: Streams, dtype: torch.dtype = torch.float32) -> Tensor:
        return super().draw(shape, rng, dtype)[:1].expand(len(rng), *shape)


class Rescaled(GaussianNoise):
    """DDPM's perturbation, which shrinks x."""

    def perturb(self, x: Tensor, sigma: Tensor, rng: Streams) -> Tensor:
        return super().perturb(x, sigma, rng) / (1 + column(sigma) ** 2).sqrt()


class FlatPrior(GaussianNoise):
    def prior(self, shape: Sequence[int], sigma: float, rng: Streams) -> Tensor:
        return super().prior(shape, sigma, rng).flatten(1)


class NegativeLevels(GaussianNoise):
    def student_sigma(self, rng: Streams) -> Tensor:
        return rng.normal()


class ColumnOfLevels(GaussianNoise):
    def generator_sigma(self, rng: Streams) -> Tensor:
        return column(super().generator_sigma(rng))


class DoublePrecision(GaussianNoise):
    def generator_sigma(self, rng: Streams) -> Tensor:
        return super().generator_sigma(rng).double()


class Unaligned(ElectrostaticNoise):
    """r = sigma, without the alignment's factor √D."""

    def scale(self, rng: Streams) -> Tensor | None:
        scale = super().scale(rng)
        return None if scale is None else scale / math.sqrt(self.D)


class NoTail(ElectrostaticNoise):
    """A Gaussian that claims a finite D."""

    def scale(self, rng: Streams) -> Tensor | None:
        return None


class BeyondItself(GaussianNoise):
    """The generator starts above the highest level."""

    def __init__(self) -> None:
        super().__init__()
        self.sigma_init = 100.0


NOISES: dict[str, tuple[str, Callable[[], Noise]]] = {
    "global random numbers": ("noise.prior does not draw only from", GlobalDraws),
    "one draw for all": ("in a batch than alone", OneForAll),
    "rescaled": ("the derivative of noise.perturb", Rescaled),
    "flat prior": (r"noise.prior gives shape \[4, 64\], not \[4, 1, 8, 8\]", FlatPrior),
    "negative levels": ("levels must be positive", NegativeLevels),
    "a column of levels": ("noise.generator_sigma gives shape", ColumnOfLevels),
    "float64": ("it must be float32", DoublePrecision),
    "unaligned": ("the kernel of D = 16 has", lambda: Unaligned(16.0)),
    "no tail": ("the kernel of D = 16 has", lambda: NoTail(16.0)),
    "negative D": ("must be a positive number", lambda: ElectrostaticNoise(-2.0)),
    "sigma_init": ("sigma_init ≤ sigma_max", BeyondItself),
}


@pytest.mark.parametrize("what", NOISES)
def test_a_wrong_noise_is_caught(what: str) -> None:
    sentence, make = NOISES[what]
    with pytest.raises(AssertionError, match=sentence):
        check_noise(make())


# ------------------------------------------------------------------------------------------------ losses that are wrong


class WrongGenerator(IPFMLoss):
    """A good loss with the generator's values spoilt."""

    def __init__(self, spoil: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__(0.5)
        self.spoil = spoil

    def generator(self, teacher: Any, student: Any, x: Tensor, *rest: Any) -> Tensor:
        return self.spoil(super().generator(teacher, student, x, *rest), x)


class WrongStudent(IPFMLoss):
    """A good loss with the student's values spoilt."""

    def __init__(self, spoil: Callable[[Tensor, Any], Tensor]) -> None:
        super().__init__(0.5)
        self.spoil = spoil

    def student(self, student: Any, x: Tensor, labels: Tensor | None, noise: Noise, rng: Streams) -> Tensor:
        return self.spoil(denoising_loss(student, x, labels, noise, rng), student)


LOSSES: dict[str, tuple[str, Callable[[], IPFMLoss]]] = {
    "generator reduced": ("loss.generator's output has shape", lambda: WrongGenerator(lambda v, x: v.mean())),
    "generator summed by image": ("loss.generator's output has shape", lambda: WrongGenerator(lambda v, x: v.sum((1, 2, 3)))),
    "generator not finite": ("loss.generator's output is not finite", lambda: WrongGenerator(lambda v, x: v / 0)),
    "generator detached": ("no gradient with respect to x", lambda: WrongGenerator(lambda v, x: v.detach())),
    "generator at rest": ("is zero for some image", lambda: WrongGenerator(lambda v, x: 0 * v)),
    "generator of a batch": ("value in a batch than alone", lambda: WrongGenerator(lambda v, x: v / v.detach().abs().mean())),
    "gradient of a batch": ("gradient of loss.generator depends", lambda: WrongGenerator(lambda v, x: v + 1e3 * (x - x.detach()) * x.mean())),
    "generator random": ("gives different results for the same input", lambda: WrongGenerator(lambda v, x: v * (1 + torch.rand(())))),
    "student reduced": ("loss.student's output has shape", lambda: WrongStudent(lambda v, net: v.mean())),
    "student detached": ("no gradient with respect to the student's parameters", lambda: WrongStudent(lambda v, net: v.detach())),
    "student at rest": ("the student's gradient is zero", lambda: WrongStudent(lambda v, net: 0 * v)),
    "student of a batch": ("value in a batch than alone", lambda: WrongStudent(lambda v, net: v / v.detach().max())),
}  # fmt: skip


@pytest.mark.parametrize("what", LOSSES)
def test_a_wrong_loss_is_caught(what: str) -> None:
    sentence, make = LOSSES[what]
    with pytest.raises(AssertionError, match=sentence):
        check_loss(make(), teacher_of(), ElectrostaticNoise(128.0))


# ----------------------------------------------------------------------------------------------- metrics that are wrong


class Brightness(Metric):
    """The mean of the pixels. Correct until part of it is spoilt."""

    columns: tuple[str, ...] = ("brightness",)

    def __init__(self, **spoilt: Any) -> None:
        vars(self).update(spoilt)

    def embed(self, images: Tensor) -> Tensor:
        return images.flatten(1).mean(1, keepdim=True)

    def compare(self, rows: Tensor) -> dict[str, float]:
        return {"brightness": float(rows.mean())}


METRICS: dict[str, tuple[str, dict[str, Any]]] = {
    "no columns": ("columns is empty", dict(columns=())),
    "higher": ("metric.higher names light; it may name only `columns`", dict(higher=("brightness", "light"))),
    "a list": ("gives a list", dict(embed=lambda images: images.tolist())),
    "images": ("gives shape", dict(embed=lambda images: images)),
    "one row": ("gives shape", dict(embed=lambda images: images.flatten(1).mean(0, keepdim=True))),
    "of a batch": ("in a batch than alone", dict(embed=lambda images: images.flatten(1) - images.mean())),
    "another name": ("metric.compare gives light; `columns` names brightness", dict(compare=lambda rows: {"light": 1.0})),
    "a tensor": ("metric.compare must give floats", dict(compare=lambda rows: {"brightness": rows.mean()})),
    "not a number": ("metric.compare must give floats", dict(compare=lambda rows: {"brightness": math.nan})),
    "floor": ("metric.floor gives light", dict(floor=lambda repeat: {"light": 1.0})),
}


@pytest.mark.parametrize("what", METRICS)
def test_a_wrong_metric_is_caught(what: str) -> None:
    sentence, spoilt = METRICS[what]
    check_metric(Brightness(), (1, 8, 8))
    with pytest.raises(AssertionError, match=sentence):
        check_metric(Brightness(**spoilt), (1, 8, 8))


# ----------------------------------------------------------------------------------------------- plugins that are wrong


PLUGINS: dict[str, tuple[str, str]] = {
    "empty": ("registers nothing", ""),
    "no such function": ("does not name a function", "Component('x', Config, 'math:nothing', '')"),
    "unexplained": ("beta in Mute lacks", "Component('x', Mute, 'math:sqrt', '')"),
    "torch": ("imports torch", "Component('x', Config, 'math:sqrt', '')"),
}


@pytest.mark.parametrize("what", PLUGINS)
def test_a_wrong_plugin_is_caught(what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sentence, component = PLUGINS[what]
    name = f"a_plugin_{what.replace(' ', '_')}"
    source = "from registry.api import Component, Config, hookimpl\nclass Mute(Config):\n    beta: float = 0.5\n"
    source += "import torch\n" if what == "torch" else ""
    source += f"@hookimpl\ndef register_losses():\n    return [{component}]\n"
    (tmp_path / f"{name}.py").write_text(source)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with pytest.raises(AssertionError, match=sentence):
        check_plugin(name)
