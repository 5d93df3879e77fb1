"""[train] memory: activations that are computed again in the backward pass. Less memory, the same numbers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from registry.core.errors import UserError
from registry.plugins.loading import load_plugins
from registry.recipe.reading import expect, resolve
from registry.recipe.resolved import Recipe
from registry.runs.plan import Plan, plan
from registry.train.generator import Generator
from registry.train.recompute import blocks, recomputed, recomputing
from registry.train.step import Learner
from tests.conftest import tiny_network
from tests.test_loop import distillation, everything, run


@pytest.mark.parametrize("memory", ["lean", "least"])
@pytest.mark.parametrize(
    "options", [{}, {"batch_gpu": 4, "student_steps": 2}, {"steps": 3}, {"steps": 2, "recompute": True}], ids=str
)
def test_the_numbers_are_the_same_bit_for_bit(memory: str, options: dict[str, Any]) -> None:
    """With dropout, whose draws are made again, too."""
    kept, again = (iterated(value, **options) for value in ("full", memory))
    assert all(torch.equal(again[name], kept[name]) for name in kept)


def iterated(memory: str, steps: int = 1, recompute: bool = False, **train: Any) -> dict[str, torch.Tensor]:
    torch.manual_seed(1)
    game = distillation(dropout=0.3, label_dim=2, memory=memory, **train)
    first = game.generator.model
    game.generator.model = Generator(
        first.net, first.noise, first.image_shape, first.label_dim, [2.5, 1.5, 0.7][:steps], recompute=recompute
    )  # fmt: skip
    return everything(run(game, 3))


def test_nothing_stays_behind_on_the_networks() -> None:
    game = run(distillation(memory="least"), 1)
    for net in (game.teacher, game.student.net, game.generator.net):
        assert not [m for m in net.modules() if "forward" in vars(m)]
    with recomputing(game.teacher):
        assert "forward" in vars(game.teacher)
    with pytest.raises(ZeroDivisionError), recomputing(game.teacher):
        _ = 1 / 0
    assert "forward" not in vars(game.teacher)


def test_blocks_are_the_parts_that_a_network_applies_in_turn() -> None:
    net = tiny_network()
    assert list(blocks(net)) == [*net.model.enc.values(), *net.model.dec.values()]
    assert not list(blocks(torch.nn.Linear(2, 2)))


def planned(recipe: str, memory: str, *sets: str) -> Plan:
    sets = (*sets, f"train.memory={memory}", "train.batch=16", "train.batch_gpu=16")
    return plan(expect(resolve(recipe, load_plugins(), sets), Recipe), load_plugins())


@pytest.mark.parametrize(
    "recipe",
    ["quickstart", *(pytest.param(r, marks=pytest.mark.slow) for r in ("sid_cifar10_uncond", "ipfm_cifar10_d128", "sid_ffhq64", "sid_imagenet64"))],
)  # fmt: skip
def test_the_generators_step_takes_hardly_more_than_the_training_of_the_teacher(recipe: str) -> None:
    """Bytes at the papers' sizes, counted on the meta device. IPFM's paper names three times as the method's limitation."""
    sets = ("train.student_steps=1",)
    full, lean, least = (planned(recipe, memory, *sets) for memory in ("full", "lean", "least"))
    teacher = full.peaks["student"]  # the student's step is the training of a denoiser
    assert full.peaks["generator"] > 2 * teacher
    assert lean.peaks["generator"] < 1.05 * teacher and lean.peaks["student"] == teacher
    assert max(least.peaks.values()) < 0.6 * teacher
    work = [sum(plan.work.values()) for plan in (full, lean, least)]
    assert 1.1 < work[1] / work[0] < 1.2 and work[2] / work[0] < 1.65


class Odd(nn.Module):
    """A small denoiser of parts in two lists, made as a test wants them."""

    def __init__(self, one: nn.Module, two: nn.Module) -> None:
        super().__init__()
        self.enc, self.dec = nn.ModuleList([one, two]), nn.ModuleList([two, one])

    def forward(self, x: torch.Tensor, sigma: torch.Tensor, labels: torch.Tensor | None = None) -> torch.Tensor:
        y = x
        for part in (*self.enc, *self.dec):
            y = y + part(y).tanh()
        return y


def own_forward() -> nn.Module:
    part = nn.Conv2d(1, 1, 3, padding=1)
    part.forward = lambda x: 2 * nn.Conv2d.forward(part, x)  # type: ignore[method-assign]
    return part


PARTS: dict[str, Callable[[], nn.Module]] = {
    "that stand in two lists": lambda: nn.Conv2d(1, 1, 3, padding=1),
    "with a forward of their own": own_forward,
    "with batch norm": lambda: nn.Sequential(nn.Conv2d(1, 1, 3, padding=1), nn.BatchNorm2d(1)),
    "with spectral norm": lambda: nn.utils.parametrizations.spectral_norm(nn.Conv2d(1, 1, 3, padding=1)),
}


@pytest.mark.parametrize("memory", ["lean", "least"])
@pytest.mark.parametrize("parts", PARTS)
def test_odd_parts_of_networks_compute_the_same_and_are_counted_once(parts: str, memory: str) -> None:
    found = []
    for which in ("full", memory):
        torch.manual_seed(0)
        net = Odd(PARTS[parts](), PARTS[parts]()).train()
        x = torch.randn(4, 1, 8, 8)
        for _ in range(2):
            with recomputing(*(recomputed(which, net, net))):
                net(x, torch.ones(4)).square().sum().backward()
        found.append({n: p.grad for n, p in net.named_parameters()} | dict(net.named_buffers()))
    assert all(torch.equal(found[1][name], value) for name, value in found[0].items())  # type: ignore[arg-type]


def test_a_part_that_writes_to_its_input_is_told_so() -> None:
    class Writes(nn.Conv2d):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return super().forward(x.mul_(2))

    net = Odd(Writes(1, 1, 3, padding=1), Writes(1, 1, 3, padding=1))
    learner = Learner(net, batch=4, lr=1e-3)
    x = torch.randn(4, 1, 8, 8)
    with recomputing(*recomputed("least", net)), pytest.raises(UserError, match="a part of a network must not write to its input"):
        learner.accumulate(net(x.clone(), torch.ones(4)).square())
