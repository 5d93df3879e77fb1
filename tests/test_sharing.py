"""[train] reuse_samples and shared_pass: what both steps share, and that the rest is as it was."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from ipfm_plugin.loss import IPFMLoss
from registry.builtin.noise import GaussianNoise
from registry.core.contracts import derived_from
from registry.core.settings import NoiseConfig
from registry.core.streams import Streams
from registry.plugins.loading import load_plugins
from registry.recipe.reading import expect, resolve
from registry.recipe.resolved import Recipe
from registry.runs.checkpoints import save_state
from registry.runs.plan import plan
from registry.train import loop
from registry.train.losses import denoising_loss, edm_weight
from tests.conftest import tiny_network
from tests.test_loop import distillation, everything, resume, run

Write = Callable[..., Path]


def calls(**train: Any) -> list[str]:
    """The networks that one iteration calls, in order, with + where a graph is kept."""
    game, seen = distillation(**train), list[str]()
    for name, net in (("G", game.generator.net), ("f", game.student.net), ("f*", game.teacher)):
        net.register_forward_hook(lambda module, inputs, output, name=name: seen.append(name + "+" * output.requires_grad))
    loop.iteration(game)
    return seen


def test_the_evaluations_of_an_iteration() -> None:
    assert calls() == ["G", "f+", "G+", "f*+", "f+"]
    assert calls(reuse_samples=True) == ["G+", "f+", "f*+", "f+"]
    assert calls(shared_pass=True) == ["G+", "f*+", "f+"]
    assert calls(reuse_samples=True, student_steps=2) == ["G+", "f+", "f+", "f*+", "f+"]
    assert calls(shared_pass=True, student_steps=2) == ["G", "f+", "G+", "f*+", "f+"]


SHARING = [{"reuse_samples": True}, {"shared_pass": True}]


@pytest.mark.parametrize("options", SHARING, ids=str)
@pytest.mark.parametrize("memory", ["full", "lean", "least"])
def test_parts_and_memory_change_nothing(options: dict[str, Any], memory: str) -> None:
    found = []
    for more in ({}, {"batch_gpu": 2, "memory": memory}):
        game = distillation(dtype=torch.float64, label_dim=3, **more, **options)
        torch.manual_seed(5)
        with torch.no_grad():  # as long as student and teacher are the same, the generator's gradient is rounding alone
            for p in game.student.net.parameters():
                p += 0.01 * torch.randn_like(p)
        found.append(everything(run(game, 3)))
    for name, wanted in found[0].items():
        torch.testing.assert_close(found[1][name], wanted, rtol=0, atol=1e-9)


@pytest.mark.parametrize("options", SHARING, ids=str)
def test_resumed_equals_uninterrupted(options: dict[str, Any], tmp_path: Path) -> None:
    whole = everything(run(distillation(label_dim=2, **options), 4))
    begun = run(distillation(label_dim=2, **options), 2)
    save_state(tmp_path / "training-state-000000.pt", begun.learned(), begun.nimg, {})
    again = distillation(label_dim=2, **options)
    again.nimg = resume(tmp_path / "training-state-000000.pt", again)
    found = everything(run(again, 2))
    assert all(torch.equal(found[name], whole[name]) for name in whole)


def test_reuse_changes_what_the_student_sees_and_nothing_of_the_generators_first_step() -> None:
    """The generator's first loss is at the same images, levels and draws; only the student before it has learned other images."""
    kept, again = distillation(dtype=torch.float64), distillation(dtype=torch.float64, reuse_samples=True)
    for game in (kept, again):  # a student that does not learn
        game.student.lr = 0.0
        loop.iteration(game)
    a, b = everything(kept), everything(again)
    assert all(torch.equal(a[name], b[name]) for name in a)


def test_the_shared_pass_gives_the_gradients_of_both_losses() -> None:
    """By hand: the generator's gradient is that of its own step (with the student as it was), the student's that of its values."""
    kept, again = distillation(dtype=torch.float64), distillation(dtype=torch.float64, shared_pass=True)
    loop.generator_gradient(kept)
    loop.shared_gradient(again)
    for a, b in zip(kept.generator.net.parameters(), again.generator.net.parameters(), strict=True):
        assert (a.grad is None) == (b.grad is None)
        if a.grad is not None:
            torch.testing.assert_close(a.grad, b.grad, rtol=1e-9, atol=1e-12)
    assert all(p.grad is None for p in again.teacher.parameters())

    game = distillation(dtype=torch.float64)
    ((rng, _),) = game.parts("generator")
    with torch.no_grad():
        x, labels = game.generator(rng)
    sigma = game.noise.generator_sigma(rng)
    x_r = game.noise.perturb(x, sigma, rng)
    weight = game.noise.level_ratio(sigma) * edm_weight(sigma.double())
    (weight.reshape(-1, 1, 1, 1) * (game.student.net(x_r, sigma, labels) - x) ** 2).sum().div(8).backward()
    for a, b in zip(game.student.net.parameters(), again.student.net.parameters(), strict=True):
        assert (a.grad is None) == (b.grad is None)
        if a.grad is not None:
            torch.testing.assert_close(a.grad, b.grad, rtol=1e-9, atol=1e-12)


def test_an_image_that_is_not_finite_is_dropped_from_both() -> None:
    class Bad(IPFMLoss):
        def shared(self, *arguments: Any) -> tuple[Tensor, Tensor]:
            first, second = super().shared(*arguments)
            bad = torch.zeros_like(first)
            bad[0] = torch.nan
            return first + bad, second * (1 + bad)

    game = run(distillation(loss=Bad(), shared_pass=True), 2)
    assert game.student.tally.read()["dropped"] == game.generator.tally.read()["dropped"] == 2
    assert all(t.isfinite().all() for t in everything(game).values())


@pytest.mark.parametrize("levels", [NoiseConfig(), NoiseConfig(P_mean=-0.8, P_std=1.6, t_max=900, rho=5.0, sigma_max=40.0)])
def test_the_ratio_of_the_laws_turns_one_mean_into_the_other(levels: NoiseConfig) -> None:
    noise, rng = GaussianNoise(levels), Streams(range(200_000))
    sigma = noise.generator_sigma(rng)
    ratio = noise.level_ratio(sigma)
    highest = float(noise.generator_sigma(Streams(range(200_000))).max())
    drawn = noise.student_sigma(rng)
    covered = ((drawn >= levels.sigma_min) & (drawn <= highest)).double()
    for moment in (lambda s: torch.ones_like(s), lambda s: s.log(), lambda s: s.log() ** 2, lambda s: (s > 0.5).double()):
        wanted = (moment(drawn.double()) * covered).mean()
        found = moment(sigma.double()) * ratio.double()
        assert abs(found.mean() - wanted) < 5 * (found.std() + moment(drawn.double()).std()) / len(sigma) ** 0.5


def test_the_shared_loss_of_the_student_has_the_mean_of_its_own() -> None:
    net, n = tiny_network().double(), 4000
    x = torch.randn(1, 1, 8, 8, dtype=torch.float64).repeat(n, 1, 1, 1) * 0.5
    noise, loss = GaussianNoise(), IPFMLoss()
    with torch.no_grad():
        shared = loss.shared(net, net, x, None, noise, Streams(range(n)))[0].sum((1, 2, 3))
        own = denoising_loss(net, x, None, noise, Streams(range(n, 2 * n))).sum((1, 2, 3))
    assert abs(shared.mean() - own.mean()) < 5 * (shared.var() / n + own.var() / n).sqrt()


class OtherStudent(IPFMLoss):
    def student(self, *arguments: Any) -> Tensor:
        return super().student(*arguments) * 2


class OtherLevels(GaussianNoise):
    def student_sigma(self, rng: Streams) -> Tensor:
        return rng.uniform()


def test_what_was_overridden_is_not_shared() -> None:
    assert derived_from(IPFMLoss(), "shared", "student", "generator")
    assert not derived_from(OtherStudent(), "shared", "student", "generator")
    assert derived_from(GaussianNoise(), "level_ratio", "student_sigma", "generator_sigma")
    assert not derived_from(OtherLevels(), "level_ratio", "student_sigma", "generator_sigma")
    assert not derived_from(object(), "shared", "student", "generator")


@pytest.mark.parametrize(
    ("lines", "problem"),
    [
        ("shared_pass = true\nreuse_samples = true", "the images are shared already; leave reuse_samples out"),
        ("shared_pass = true\naugment = 0.1", "the teacher's network has no inputs for augmentation labels"),
    ],
)
def test_what_does_not_go_together(lines: str, problem: str, recipe_file: Write, here: Callable[..., Any]) -> None:
    done = here("--recipe", recipe_file(("[train]", f"[train]\n{lines}")))
    assert done.returncode == 1
    assert problem in done.stderr


def test_the_plan_counts_them() -> None:
    def work(*sets: str) -> float:
        found = plan(expect(resolve("quickstart", load_plugins(), ("train.batch=16", *sets)), Recipe), load_plugins())
        return sum(found.work.values()) / found.evaluation

    whole = work()
    assert work("train.reuse_samples=true") == pytest.approx(whole - 2, abs=0.05)  # of two student steps
    assert work("train.shared_pass=true") == pytest.approx(whole - 2, abs=0.05)
    assert work("train.reuse_samples=true", "train.student_steps=3") == pytest.approx(whole + 1, abs=0.05)
    assert work("train.shared_pass=true", "train.student_steps=3") == pytest.approx(whole + 2, abs=0.05)
