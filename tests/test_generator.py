"""K-step generators: schedules, the chain's result, its gradients and their memory; and runs with K > 1."""

from __future__ import annotations

import itertools
import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ipfm_plugin.noise import ElectrostaticNoise
from registry.builtin.noise import GaussianNoise
from registry.core.contracts import Noise
from registry.core.levels import generator_levels
from registry.core.streams import Streams
from registry.files.formats import load_network
from registry.plugins.loading import Plugins
from registry.recipe.reading import resolve
from registry.runs.checkpoints import identity
from registry.runs.distill import distill
from registry.train.generator import Generator
from tests.conftest import error_line, tiny_network

Write = Callable[..., Path]
Cli = Callable[..., subprocess.CompletedProcess[str]]
LEVELS = [2.5, 1.2, 0.6]


def generator(noise: Noise | None = None, label_dim: int = 0, **kwargs: object) -> Generator:
    return Generator(tiny_network(label_dim=label_dim), noise or GaussianNoise(), (1, 8, 8), label_dim, **kwargs)  # type: ignore[arg-type]


# ------------------------------------------------------------------------------------------------------ schedules


@given(steps=st.integers(1, 12), sigma_init=st.floats(0.1, 80))
def test_schedules_fall_from_sigma_init(steps: int, sigma_init: float) -> None:
    for schedule in ("uniform", "karras"):
        levels = generator_levels(steps, schedule, sigma_init)  # type: ignore[arg-type]
        assert levels[0] == sigma_init
        assert len(levels) == steps
        assert all(a > b > 0.002 for a, b in itertools.pairwise(levels))


def test_uniform_equals_the_linspace_in_the_authors_code() -> None:
    wanted = torch.linspace(0.002, 2.5, 5, dtype=torch.float64)[1:].flip(0)
    torch.testing.assert_close(torch.tensor(generator_levels(4, "uniform", 2.5), dtype=torch.float64), wanted)


def test_karras_is_equally_spaced_in_the_seventh_root() -> None:
    roots = torch.tensor([*generator_levels(4, "karras", 2.5), 0.002], dtype=torch.float64) ** (1 / 7)
    torch.testing.assert_close(roots.diff(), roots.diff().mean().expand(4))


def test_a_list_is_used_unchanged() -> None:
    assert generator_levels(3, LEVELS, 2.5) == LEVELS


# ------------------------------------------------------------------------------------------------------ the chain


@pytest.mark.parametrize("noise", [GaussianNoise(), ElectrostaticNoise(128)], ids=["gaussian", "electrostatic"])
@pytest.mark.parametrize("gradient", ["all", "last"])
def test_one_step_is_the_plain_generator_bit_for_bit(noise: Noise, gradient: str) -> None:
    g = generator(noise, label_dim=3, sigmas=generator_levels(1, "karras", 2.5), gradient=gradient, recompute=True)
    rng = Streams(range(5))
    z, labels = noise.prior((1, 8, 8), 2.5, rng), rng.one_hot(3)
    wanted = g.net(z, torch.full((5,), 2.5), labels)
    images, drawn = g(Streams(range(5)))
    assert torch.equal(images, wanted)
    assert labels is not None
    assert drawn is not None
    assert torch.equal(drawn, labels)
    assert torch.equal(g.sample(range(5)), wanted)


def test_the_chain_is_algorithm_2() -> None:
    noise = ElectrostaticNoise(64)
    g, rng = generator(noise, sigmas=LEVELS), Streams(range(4))
    x_k = noise.prior((1, 8, 8), LEVELS[0], rng)
    for k, sigma in enumerate(LEVELS):
        x = g.net(x_k, torch.full((4,), sigma))
        if k < 2:
            x_k = noise.perturb(x, torch.full((4,), LEVELS[k + 1]), rng)
    assert torch.equal(g(Streams(range(4)))[0], x)


def test_an_image_depends_on_its_seed_only() -> None:
    g = generator(ElectrostaticNoise(128), label_dim=3, sigmas=LEVELS)
    whole = g.sample(range(12))
    torch.testing.assert_close(g.sample(range(12), batch=5), whole, rtol=0, atol=1e-6)
    torch.testing.assert_close(g.sample([7]), whole[7:8], rtol=0, atol=1e-6)


def test_an_exact_denoiser_gains_from_more_steps() -> None:
    """With the exact denoiser of N(0, ¼), the images' variance rises with K towards ¼."""
    variance = 0.25

    class Exact(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.anchor = torch.nn.Parameter(torch.zeros(()))

        def forward(self, x: torch.Tensor, sigma: torch.Tensor, labels: torch.Tensor | None = None) -> torch.Tensor:
            return x * variance / (variance + sigma.reshape(-1, 1, 1, 1) ** 2)

    found = []
    for steps in (1, 2, 8):
        levels = generator_levels(steps, "karras", 2.5)
        v = levels[0] ** 2  # variance of the chain, in closed form
        for k, sigma in enumerate(levels):
            v *= (variance / (variance + sigma**2)) ** 2
            v += levels[k + 1] ** 2 if k + 1 < steps else 0
        images = Generator(Exact(), GaussianNoise(), (1, 8, 8), sigmas=levels).sample(range(400))
        assert float(images.var()) == pytest.approx(v, rel=0.05)
        found.append(v)
    assert found == sorted(found)


# ------------------------------------------------------------------------------------------------------ gradients


def gradients(g: Generator, seeds: range = range(6)) -> tuple[torch.Tensor, torch.Tensor]:
    images, _ = g(Streams(seeds))
    g.zero_grad()
    images.square().sum().backward()
    return images.detach(), torch.cat([p.grad.flatten() for p in g.net.parameters() if p.grad is not None])


def test_recomputed_activations_give_the_same_gradients_for_less_memory() -> None:
    g = generator(sigmas=LEVELS, gradient="all")
    kept: dict[bool, int] = {}
    found = {}
    for recompute in (False, True):
        g.recompute, kept[recompute] = recompute, 0

        def note(tensor: torch.Tensor, recompute: bool = recompute) -> torch.Tensor:
            kept[recompute] += tensor.numel()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
            g(Streams(range(6)))
        found[recompute] = gradients(g)
    assert torch.equal(found[False][0], found[True][0])
    torch.testing.assert_close(found[False][1], found[True][1], rtol=1e-5, atol=1e-6)
    assert kept[True] < kept[False] / 2.5  # of three applications, only one keeps its activations until the backward pass


def test_recomputing_draws_the_same_dropout() -> None:
    torch.manual_seed(1)
    g = Generator(tiny_network(dropout=0.3).train(), GaussianNoise(), (1, 8, 8), sigmas=LEVELS)
    found = []
    for recompute in (False, True):
        g.recompute = recompute
        torch.manual_seed(7)
        found.append(gradients(g))
    torch.testing.assert_close(found[0], found[1], rtol=1e-5, atol=1e-6)


def test_gradient_through_all_is_that_of_the_whole_chain() -> None:
    """Compared with a difference quotient in one direction, in float64."""
    torch.manual_seed(0)
    net = tiny_network().double()
    g = Generator(net, GaussianNoise(), (1, 8, 8), sigmas=LEVELS)

    def value() -> torch.Tensor:
        return g(Streams(range(3)))[0].double().square().sum()

    direction = [torch.randn_like(p) for p in net.parameters()]
    slope = sum((a * b).sum() for a, b in zip(torch.autograd.grad(value(), list(net.parameters()), allow_unused=True), direction, strict=True) if a is not None)  # fmt: skip
    sides = []
    for h in (1e-5, -2e-5):
        for p, d in zip(net.parameters(), direction, strict=True):
            p.data.add_(h * d)
        sides.append(value().item())
    assert (sides[0] - sides[1]) / 2e-5 == pytest.approx(slope.item(), rel=1e-4)


def test_last_trains_one_application_of_the_chain_per_image() -> None:
    """Every image is the chain's result after a random number of applications. Only the last application has a gradient."""
    g = generator(sigmas=LEVELS, gradient="last", label_dim=3)
    seeds = range(60)
    images, _ = g(Streams(seeds))
    after = [Generator(g.net, g.noise, (1, 8, 8), 3, LEVELS[: k + 1]).chain(Streams(seeds))[0] for k in range(3)]
    match = torch.stack([(images - a).flatten(1).abs().amax(1) < 1e-6 for a in after])
    assert bool((match.sum(0) == 1).all())
    counts = match.sum(1)
    assert bool((counts > 8).all())  # 20 each on average: drawn per image

    # The input of the application with the gradient is detached, so the gradient is that of one application at its own level.
    calls = []
    handle = g.net.register_forward_pre_hook(lambda net, args: calls.append((args[0].requires_grad, torch.is_grad_enabled())))
    g(Streams(range(3)))
    handle.remove()
    assert calls == [(False, False), (False, False), (False, True)]


@settings(max_examples=5)
@given(seed=st.integers(0, 2**31))
def test_parts_of_a_batch_give_the_gradient_of_the_whole_batch(seed: int) -> None:
    for gradient in ("all", "last"):
        g = generator(sigmas=LEVELS[:2], gradient=gradient)
        whole = gradients(g, range(seed, seed + 4))[1]
        parts = gradients(g, range(seed, seed + 2))[1] + gradients(g, range(seed + 2, seed + 4))[1]
        torch.testing.assert_close(parts, whole, rtol=1e-4, atol=1e-5)


# ----------------------------------------------------------------------------------------------------------- runs


@pytest.mark.parametrize("gradient", ["all", "last"])
def test_a_run_with_steps_is_resumed_as_if_never_interrupted(recipe_file: Write, tmp_path: Path, gradient: str) -> None:
    path = recipe_file()
    sets = ["generator.steps=3", "generator.schedule=karras", f"generator.gradient={gradient}", "generator.recompute=true"]
    whole = distill(str(path), sets=sets, outdir=str(tmp_path / "whole"))
    half = distill(str(path), sets=[*sets, "train.duration_kimg=0.024"], outdir=str(tmp_path / "parts"))
    rest = distill(str(path), sets=sets, outdir=str(tmp_path / "parts"), resume=str(half.folder))
    for a, b in zip(whole.generator.net.state_dict().values(), rest.generator.net.state_dict().values(), strict=True):
        assert torch.equal(a, b)
    _, facts = load_network(next(whole.folder.glob("network-snapshot-*.pkl")), "generator")
    assert list(facts.sigmas) == generator_levels(3, "karras", 2.5)
    assert (facts.others["steps"], facts.others["gradient"]) == (3, gradient)


def test_a_state_of_other_steps_is_not_resumed(cli: Cli, recipe_file: Write, tmp_path: Path) -> None:
    path = recipe_file(("duration_kimg = 0.048", "duration_kimg = 0.016"))
    assert cli("--recipe", path).returncode == 0
    (run,) = (tmp_path / "runs").iterdir()
    message = error_line(cli("--recipe", path, "--set", "generator.steps=2", "--resume", run))
    assert "belongs to another run ([generator] steps: 1 -> 2)" in message


@pytest.mark.parametrize("setting", ["generator.schedule=karras", "generator.steps=3", "noise.sigma_init=3.0"])
def test_other_noise_levels_are_another_run(setting: str, recipe_file: Write, plugins: Plugins) -> None:
    """A generator must continue at the levels that it began with."""
    path = str(recipe_file(append="[generator]\nsteps = 2\n"))
    assert identity(resolve(path, plugins).tables()) == identity(
        resolve(path, plugins, ["generator.gradient=last", "train.lr=1"]).tables()
    )
    assert identity(resolve(path, plugins).tables()) != identity(resolve(path, plugins, [setting]).tables())


def test_the_table_counts_the_evaluations(cli: Cli, recipe_file: Write, tmp_path: Path) -> None:
    append = 'metrics = ["sliced_wasserstein"]\nreference = "digits"\n[generator]\nsteps = 2\nschedule = [2.5, 0.8]\n'
    done = cli("--recipe", recipe_file(append=append))
    assert done.returncode == 0, done.stderr
    (run,) = (tmp_path / "runs").iterdir()
    rows = json.loads((run / "quality.json").read_text())["rows"]
    assert (rows[0]["name"], rows[0]["evaluations"]) == ("generator", 2)


BAD = {
    "no steps": ("steps = 0", "[generator] steps = 0: must be greater than or equal to 1"),
    "unknown schedule": ('schedule = "cosine"', "[generator] schedule = 'cosine': must be 'uniform', 'karras', or a list of noise levels"),
    "too few levels": ("steps = 3\nschedule = [2.5, 1.0]", "[generator] schedule = [2.5, 1.0]: has 2 noise levels, but steps = 3"),
    "rising levels": ("steps = 2\nschedule = [2.5, 3.0]", "[generator] schedule = [2.5, 3.0]: must be falling"),
    "negative levels": ("steps = 2\nschedule = [2.5, -1.0]", "[generator] schedule = [2.5, -1.0]: must be positive noise levels"),
    "another sigma_init": ("steps = 2\nschedule = [5.0, 1.0]", "[generator] schedule begins with 5, but [noise] sigma_init = 2.5; they must agree"),
    "unknown gradient": ('gradient = "first"', "[generator] gradient = 'first': must be 'all' or 'last'"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_bad_settings_are_one_line(case: str, here: Cli, recipe_file: Write) -> None:
    text, wanted = BAD[case]
    assert wanted in here("check", recipe_file(append=f"[generator]\n{text}\n")).stderr.splitlines()[0]
