"""`distill plan`: what is counted without values is what a run does."""

from __future__ import annotations

import math
import re
import subprocess
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from registry.api import Component, Config, Denoiser
from registry.core.errors import UserError
from registry.files.formats import save_network
from registry.files.locate import published
from registry.files.teachers import outline
from registry.plugins.loading import load_plugins
from registry.recipe.reading import expect, resolve
from registry.recipe.resolved import PretrainRecipe, Recipe
from registry.runs.building import build, build_generator
from registry.runs.plan import Plan, largest, plan
from registry.train import loop
from registry.train.cost import Allocated, cost, nbytes
from tests.conftest import error_line, tiny_network

Cli = Callable[..., subprocess.CompletedProcess[str]]

SETS = ("train.batch=8", "train.student_steps=1", "warmup.kimg=0")
SMALL: list[str] = []
"""Sets a teacher that is counted quickly: the way to a number is the same for every size."""


@pytest.fixture(autouse=True, scope="module")
def _small(tmp_path_factory: pytest.TempPathFactory) -> None:
    file = tmp_path_factory.mktemp("small") / "teacher.pt"
    save_network(file, "denoiser", tiny_network(model_channels=16, channel_mult=[1, 2]), {"D": 128.0, "sigma_data": 0.5})
    SMALL[:] = [f"teacher.source={file}"]


def recipe(*sets: str) -> Recipe:
    return expect(resolve("quickstart", load_plugins(), (*SETS, *SMALL, *sets)), Recipe)


def planned(*sets: str, devices: int = 1, memory: int | None = None) -> Plan:
    return plan(recipe(*sets), load_plugins(), devices, memory)


def test_bytes_are_those_of_tensors_that_are_alive() -> None:
    kilobyte = torch.zeros(256)

    def work() -> None:
        a = kilobyte + 1  # 1
        b = a * 2  # 2
        del a
        b.view(16, 16).add_(1)  # a view and an operation in place: none
        _ = torch.cat([b, b, b])  # 4

    assert cost(work).peak == 4 * 1024
    x = torch.zeros(64, 100, requires_grad=True)
    with Allocated() as counted:
        y = x.exp().sum()  # exp's result is saved for the backward pass, the sum is 4 bytes
        y.backward()  # 1 is 4 bytes; the gradient is expanded, multiplied by the saved result
    assert counted.peak == pytest.approx(2 * 64 * 100 * 4, abs=16)
    with pytest.raises(ZeroDivisionError), Allocated():
        _ = 1 / 0


def test_operations_are_multiplications_and_additions() -> None:
    assert cost(lambda: torch.zeros(3, 5, device="meta") @ torch.zeros(5, 7, device="meta")).flop == 2 * 3 * 5 * 7


def test_what_several_modules_share_is_counted_once() -> None:
    layer = torch.nn.Linear(10, 10, bias=False)
    assert nbytes(layer, torch.nn.Sequential(layer)) == 400


@pytest.mark.parametrize(
    ("sets", "swap"), [((), None), (("generator.steps=2",), None), (("train.batch_gpu=4",), None), ((), "sid")], ids=str
)
def test_an_iteration_takes_what_was_planned(sets: tuple[str, ...], swap: str | None) -> None:
    """The bytes of a real iteration, its optimisers included, and its operations."""
    wanted = expect(resolve("quickstart", load_plugins(), (*SETS, *([] if swap else SMALL), *sets), swap), Recipe)
    found = plan(wanted, load_plugins())
    teacher, noise, loss = build(wanted, load_plugins())
    generator = build_generator(wanted, teacher, noise)
    run = loop.Distillation(teacher, noise, loss, wanted.train, torch.device("cpu"), generator)
    loop.iteration(run)  # makes the moments
    real = cost(partial(loop.iteration, run))
    assert real.flop == wanted.train.batch * sum(found.work.values())
    assert real.peak == pytest.approx(max(found.peaks.values()), rel=0.02)
    moments = [t for learner in (run.student, run.generator) for s in learner.optimiser.state.values() for t in s.values()]
    assert sum(t.nbytes for t in moments if t.dim()) == found.moments
    assert nbytes(teacher.denoiser, run.student.net, generator.net) * 4 / 3 == pytest.approx(found.weights, rel=1e-3)


@pytest.mark.parametrize(
    ("sets", "student", "generator"),
    [
        ((), 4, 7),
        (("generator.steps=2",), 5, 10),
        (("generator.steps=2", "generator.gradient=last"), 5, 8),
        (("generator.steps=4", "generator.recompute=true"), 7, 4 * 3 + 3 + 4),
        (("train.student_steps=2",), 8, 7),
    ],
    ids=str,
)
def test_an_iteration_is_eleven_evaluations(sets: tuple[str, ...], student: int, generator: int) -> None:
    """G 1 and student 3; G 3, teacher 2, student 2. K applications are K evaluations, and recomputed ones one more each."""
    found = planned(*sets)
    assert found.work["student"] / found.evaluation == pytest.approx(student, rel=0.02)
    assert found.work["generator"] / found.evaluation == pytest.approx(generator, rel=0.02)


def test_memory_is_linear_in_the_images_at_a_time_and_parts_add_a_gradient() -> None:
    a, b, c = (max(planned("train.batch=64", f"train.batch_gpu={n}").peaks.values()) for n in (8, 16, 32))
    assert (c - b) / (b - a) == pytest.approx(2, rel=0.01)
    whole, parts = planned("train.batch=32"), planned("train.batch=64", "train.batch_gpu=32")
    assert parts.peaks["generator"] - whole.peaks["generator"] == pytest.approx(whole.moments / 4, rel=1e-3)
    assert planned("train.batch=64", devices=2).peaks == whole.peaks


def test_the_largest_part_that_fits_does_fit() -> None:
    sizes = [1, 2, 4, 8, 16, 32, 64]
    assert [largest(sizes, lambda n, most=most: n <= most) for most in (0, 1, 2, 3, 31, 63, 64, 100)] == [
        0,
        1,
        2,
        2,
        16,
        32,
        64,
        64,
    ]
    room = 10 * 2**20
    found = planned("train.batch=16", memory=room)
    assert found.largest is not None
    assert 1 < found.largest < 16
    fits = planned("train.batch=16", f"train.batch_gpu={found.largest}")
    assert fits.memory <= 0.9 * room < planned("train.batch=16", f"train.batch_gpu={2 * found.largest}").memory
    assert planned("train.batch=16", memory=2**10).largest == 0


@pytest.mark.parametrize(
    ("name", "millions"),
    [
        ("edm:cifar10-uncond", 55.73),
        ("edm:cifar10-cond", 55.74),
        ("edm:ffhq", 61.80),
        ("edm:afhqv2", 61.80),
        ("edm:imagenet64-cond", 295.9),
    ],
)
def test_published_networks_have_the_sizes_that_edm_gives(name: str, millions: float) -> None:
    found = published(name)
    assert found is not None
    assert sum(p.numel() for p in outline(found).denoiser.parameters()) / 1e6 == pytest.approx(millions, abs=0.06)


def test_every_published_teacher_can_be_planned() -> None:
    for name in load_plugins().names("published"):
        found = published(name)
        assert found is not None
        teacher = outline(found, fp16=True)
        assert (teacher.D, teacher.augment_dim) == (found.D, 0 if "imagenet" in name else 9)
        assert teacher.denoiser.use_fp16 is True
        assert all(p.device.type == "meta" for p in teacher.denoiser.parameters())


def test_half_precision_is_planned_as_on_a_gpu() -> None:
    """Without the file of a network that is not here, and at D = inf as at D = 128."""

    def of(fp16: bool) -> Plan:
        sets = ("train.batch=8", "train.batch_gpu=8", f"teacher.fp16={str(fp16).lower()}")
        return plan(expect(resolve("ipfm_ffhq_d128", load_plugins(), sets), Recipe), load_plugins())

    a, b = of(False), of(True)
    assert (a.weights, a.work) == (b.weights, b.work)
    gradients = a.moments / 4
    assert 0.5 < (b.peaks["generator"] - gradients) / (a.peaks["generator"] - gradients) < 0.75
    assert math.isclose(sum(a.work.values()) / a.evaluation, 11, rel_tol=0.01)


def test_the_warm_up_is_counted() -> None:
    """8 pairs of 23 evaluations; 3 batches of the regression at 3 each; 2 of the student alone, at 1 and 3."""
    found = planned("warmup.kimg=0.02", "warmup.pairs=8", "warmup.nfe=23", "warmup.student_kimg=0.016")
    assert found.before == (8 * 23 + 24 * 3 + 16 * 4) * found.evaluation
    assert planned().before == 0


def test_the_training_of_a_teacher_is_three_evaluations() -> None:
    wanted = expect(resolve("teachers/digits_d128", load_plugins(), ("train.batch=4",)), PretrainRecipe)
    found = plan(wanted, load_plugins())
    assert list(found.work) == ["denoiser"]
    assert found.work["denoiser"] / found.evaluation == pytest.approx(3, rel=0.02)
    assert found.weights == pytest.approx(found.moments, rel=1e-3)  # network and average; two moments


def test_a_loss_that_reads_values_cannot_be_planned() -> None:
    class Reads:
        def student(self, f: Denoiser, x: Tensor, *_: Any) -> Tensor:
            return x * x.sum().item()

        def generator(self, teacher: Denoiser, f: Denoiser, x: Tensor, *_: Any) -> Tensor:
            return x

    wanted = recipe()
    component = Component("reads", Config, lambda config, domain: Reads(), "reads a value")
    with pytest.raises(UserError, match=r"cannot be planned, for a component reads the values of tensors"):
        plan(replace(wanted, loss=replace(wanted.loss, component=component, config=Config())), load_plugins())


def test_the_command(cli: Cli) -> None:
    words = ["plan", "quickstart", "--set", "train.batch=8", "--set", "train.student_steps=1", "--gpus", "2"]
    done = cli(*words, "--gpu", "8GB", "--tflops", "0.5")
    assert done.returncode == 0, done.stderr
    for text in ("three networks of 0.189 M parameters", "evaluations", "11.0", "batch_gpu up to 4", "0.5 TFLOP/s"):
        assert text in done.stdout
    assert max(map(len, done.stdout.splitlines())) <= 100
    here = cli("plan", "quickstart", "--here", "--set", SMALL[0], "--set", "train.batch=8")
    said = r"25\.6 kimg of the game, if the device reaches\n  \S+ TFLOP/s, as here: \S+ images/s, .* with the warm-up\n$"
    assert re.search(said, here.stdout), here
    assert "no size of a GPU's memory" in cli(*words, "--gpu", "large").stderr
    assert error_line(cli("plan", "quickstart", "--gpus", "3")).endswith(
        "[train] batch = 128: must be divisible by the 3 processes"
    )
    assert "nothing to plan" in error_line(cli("plan", "features/digits_features"))
