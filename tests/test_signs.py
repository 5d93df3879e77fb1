"""Signs of convergence: the gap is what the formula says, measuring changes nothing, swings are found; and clipped gradients."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from registry.core.streams import Streams
from registry.runs.clock import Clock
from registry.runs.distill import distill
from registry.runs.folder import RunFolder
from registry.runs.ticks import Ticks
from registry.show.journal import Journal
from registry.train.losses import edm_weight, generator_weight
from registry.train.signs import BANDS, EDGES, signs, swings
from registry.train.step import Learner, guard_gradients
from tests.test_loop import distillation, everything, run


def test_the_gap_and_the_students_loss_are_what_their_formulas_say() -> None:
    """Against a computation image by image, for all images and for those of a band."""
    game = run(distillation(batch=32, lr=1e-2, label_dim=2), 3)
    found = signs(game)
    gaps, losses = [], []
    f_star, f = game.teacher.eval(), game.student.net.eval()
    for i in range(32):
        rng = Streams.derived("signs", [i])
        with torch.no_grad():
            x, labels = game.generator.model.eval()(rng)
            sigma = game.noise.generator_sigma(rng)
            x_r = game.noise.perturb(x, sigma, rng)
            a, b = f_star(x_r, sigma, labels), f(x_r, sigma, labels)
            gaps.append((sigma.item(), (generator_weight(x, a) * (a - b) ** 2).sum().item()))
            sigma = game.noise.student_sigma(rng)
            b = f(game.noise.perturb(x, sigma, rng), sigma, labels)
            losses.append((sigma.item(), (edm_weight(sigma) * (b - x).square().sum()).item()))
    for name, pairs in (("Gap", gaps), ("StudentLoss", losses)):
        assert found[f"{name}/all"] == pytest.approx(sum(v for _, v in pairs) / 32, rel=1e-4)
        for band, low, high in zip(BANDS, (0, *EDGES), (*EDGES, math.inf), strict=True):
            inside = [v for sigma, v in pairs if low < sigma <= high]
            assert (f"{name}/{band}" in found) == bool(inside)
            if inside:
                assert found[f"{name}/{band}"] == pytest.approx(sum(inside) / len(inside), rel=1e-4)


def test_measuring_changes_nothing_and_gives_the_same_again() -> None:
    game = run(distillation(dropout=0.3, batch=16), 2)
    before, state = {k: v.clone() for k, v in everything(game).items()}, torch.get_rng_state()
    first = signs(game)
    assert signs(game) == first
    assert all(torch.equal(tensor, everything(game)[name]) for name, tensor in before.items())
    assert torch.equal(torch.get_rng_state(), state)
    parts = signs(run(distillation(dropout=0.0, batch=16, batch_gpu=4), 2))
    whole = signs(run(distillation(dropout=0.0, batch=16), 2))
    assert parts == pytest.approx(whole, rel=1e-2)


def test_there_is_no_gap_while_student_and_teacher_are_the_same() -> None:
    game = distillation()
    game.nimg = 1
    assert signs(game)["Gap/all"] == 0
    assert signs(run(game, 1))["Gap/all"] > 0


def test_the_distance_from_the_average() -> None:
    game = run(distillation(ema_halflife_kimg=1e6, ema_rampup_ratio=0), 3)
    weights = torch.cat([p.flatten() for p in game.generator.net.parameters()]).detach().double()
    average = torch.cat([p.flatten() for p in game.average.state_dict().values()]).double()
    assert game.average.distance() == pytest.approx(float((weights - average).norm() / average.norm()), rel=1e-6)


@pytest.mark.parametrize(
    ("values", "factors"),
    [
        ([], []),
        ([3.0], []),
        ([1, 1.2, 0.9, 1.1, 1], []),  # noise
        ([8, 4, 2, 1], [8]),  # falling
        ([1, 4, 2, 3], [4, 2, 1.5]),
        ([1, 2, 3, 4, 3.5, 4, 2, 1, 1.2, 0.5, 5], [4, 8, 10]),  # small turns on the way do not count
        ([0, 1, 0, 4, 1], [4, 4]),  # zeros say nothing
    ],
)
def test_swings(values: list[float], factors: list[float]) -> None:
    assert swings(values) == pytest.approx(factors)


@given(st.lists(st.floats(1e-6, 1e6), min_size=1, max_size=30), st.floats(1e-3, 1e3))
def test_swings_do_not_depend_on_the_unit(values: list[float], unit: float) -> None:
    found = swings(values)
    assert all(factor >= 1.5 - 1e-9 for factor in found)
    assert math.prod(found[0::2]) <= (max(values) / min(values)) ** len(found) * (1 + 1e-6)
    assert len(found) == pytest.approx(len(swings([unit * v for v in values])), abs=1)  # a factor of just 1.5 may go either way


def ticks_of(folder: Path, signs: list[dict[str, float]]) -> list[str]:
    """The lines that the log has for ticks with these signs."""
    learner, values = Learner(nn.Linear(2, 1), batch=1, lr=1e-3), iter(signs)
    ticks = Ticks(
        RunFolder(folder, Journal()), lambda: {"student": learner}, 1.0, torch.device("cpu"), Clock(), lambda: next(values)
    )
    for i in range(len(signs)):
        ticks.begin(i * 1000)
        ticks.record((i + 1) * 1000, 100_000)
    return (folder / "log.txt").read_text().splitlines()


@pytest.mark.parametrize(("gaps", "warned"), [([1, 3, 1, 3, 1], True), ([9, 7, 5, 4, 3, 2, 1], False)])
def test_the_log_says_that_a_run_oscillates(tmp_path: Path, gaps: list[float], warned: bool) -> None:
    lines = ticks_of(tmp_path, [{"Gap/all": gap} for gap in gaps])
    assert ("WARNING the gap oscillates: 4 swings in 12 ticks, by a factor of 3 at most" in lines[-1]) == warned
    assert not any("oscillates" in line for line in lines[:-1])


def test_gradients_are_shortened_to_the_norm_that_is_asked_for() -> None:
    p, q = nn.Parameter(torch.zeros(3)), nn.Parameter(torch.zeros(4))
    p.grad, q.grad = torch.full((3,), 3.0), torch.full((4,), -4.0)
    length = math.sqrt(3 * 9 + 4 * 16)
    assert guard_gradients([p, q], None)[1].item() == pytest.approx(length)
    assert guard_gradients([p, q], 100.0)[1].item() == pytest.approx(length)
    assert torch.equal(p.grad, torch.full((3,), 3.0))
    assert guard_gradients([p, q], 2.0)[1].item() == pytest.approx(length)  # the norm before
    assert guard_gradients([p, q], None)[1].item() == pytest.approx(2.0)
    assert (p.grad / q.grad[:3]).tolist() == pytest.approx([-0.75] * 3)  # the direction is kept


def test_a_clip_that_is_never_reached_changes_no_bit_and_one_that_is_does() -> None:
    plain, loose, tight = (everything(run(distillation(clip=c, gclip=c), 2)) for c in (None, 1e9, 1e-9))
    assert all(torch.equal(tensor, loose[name]) for name, tensor in plain.items())
    assert not all(torch.equal(tensor, tight[name]) for name, tensor in plain.items())


def test_every_run_has_signs_and_norms_in_its_statistics(recipe_file: Callable[..., Path], tmp_path: Path) -> None:
    folder = distill(str(recipe_file()), outdir=str(tmp_path / "out")).folder
    for line in map(json.loads, (folder / "stats.jsonl").read_text().splitlines()):
        for name in ("Gap/all", "StudentLoss/all", "Average/distance", "Gradient/student", "Gradient/generator"):
            assert math.isfinite(line[name]["mean"])
            assert line[name]["mean"] >= 0
