"""Nothing in an iteration reads a value, so no step waits for the device: on torch's meta device, tensors have none to read."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from ipfm_plugin.loss import IPFMLoss
from ipfm_plugin.noise import ElectrostaticNoise
from registry.builtin.loss import SiDLoss
from registry.builtin.noise import GaussianNoise
from registry.core.contracts import Noise, RealBatch, Teacher
from registry.edm.datasets import Images
from registry.recipe.tables import PretrainConfig, TrainConfig, WarmupConfig
from registry.train import loop, pretraining
from registry.train.data import RealImages
from registry.train.generator import Generator
from registry.train.step import Learner
from registry.train.warmup import Pairs
from tests.conftest import tiny_network

META = torch.device("meta")
SHAPE = (1, 8, 8)
BLACK = Images(torch.zeros(4, *SHAPE, dtype=torch.uint8), torch.arange(4) % 2, "black")


class WithRealImages(SiDLoss):
    def student(self, *arguments: Any) -> Tensor:
        *others, real = arguments
        assert isinstance(real, RealBatch) and real.labels is not None
        return super().student(*others) + (real.x * real.labels.sum()).detach() * 0


def on_meta(learner: Learner) -> None:
    """Adam in one kernel is for devices that compute."""
    for group in learner.optimiser.param_groups:
        group.update(fused=False, foreach=True)


def game(noise: Noise, loss: Any, steps: int = 1, gradient: Any = "all", data: bool = False, **train: Any) -> loop.Distillation:
    teacher = Teacher(tiny_network(label_dim=2, D=noise.D), D=noise.D, image_shape=SHAPE, label_dim=2)
    levels = [2.5 / (k + 1) for k in range(steps)]
    generator = Generator(teacher.copy(), noise, SHAPE, 2, levels, gradient)
    options = TrainConfig(**({"batch": 8, "duration_kimg": 0.08} | train))
    images = RealImages(BLACK, True, META) if data else None
    run = loop.Distillation(teacher, noise, loss, options, META, generator, images, WarmupConfig(kimg=0.008, student_kimg=0.008))
    starts = torch.zeros(steps, 3, *SHAPE, device=META)
    run.pairs = Pairs(starts, starts, run.generator.model.sigmas, torch.zeros(3, 2, device=META))
    for learner in (run.student, run.generator, run.regression):
        on_meta(learner)
    return run


CASES: dict[str, dict[str, Any]] = {
    "ipfm": {},
    "sid": {"noise": GaussianNoise(), "loss": SiDLoss(1.2)},
    "clipped": {"clip": 1.0, "gclip": 1.0, "lr_decay": 0.5, "student_steps": 2, "batch_gpu": 4},
    "four applications": {"steps": 4},
    "one of four": {"steps": 4, "gradient": "last"},
    "lean": {"memory": "lean"},
    "least": {"memory": "least", "steps": 2},
    "bf16": {"precision": "bf16"},
    "real images": {"noise": GaussianNoise(), "loss": WithRealImages(), "data": True},
    "reuse_samples": {"reuse_samples": True},
    "shared_pass": {"shared_pass": True},
}


@pytest.mark.parametrize("case", CASES)
def test_no_iteration_reads_a_value(case: str) -> None:
    """But the game's first, which looks whether a loss is finite at all."""
    run = game(**({"noise": ElectrostaticNoise(128.0), "loss": IPFMLoss()} | CASES[case]))
    if case == "real images":
        run.loss.generator = lambda teacher, student, x, labels, noise, rng, real: SiDLoss.generator(
            run.loss, teacher, student, x, labels, noise, rng
        )
    loop.regression(run)
    run.nimg = run.game_start + run.train.batch
    loop.student_alone(run)
    for _ in range(2):
        loop.iteration(run)


def test_nor_does_the_training_of_a_teacher() -> None:
    noise = ElectrostaticNoise(128.0)
    train = PretrainConfig(batch=8, duration_kimg=0.08, clip=1.0)
    run = pretraining.Pretraining(tiny_network(label_dim=2), noise, RealImages(BLACK, True, META), train, META)
    on_meta(run.denoiser)
    for _ in range(2):
        pretraining.iteration(run)


def test_a_value_that_is_read_is_found() -> None:
    class Reads(IPFMLoss):
        def student(self, *arguments: Any) -> Tensor:
            values = super().student(*arguments)
            return values if float(values.sum()) > 0 else -values

    run = game(ElectrostaticNoise(128.0), Reads())
    run.nimg = run.game_start + run.train.batch
    with pytest.raises(RuntimeError, match="meta"):
        loop.iteration(run)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("case", ["ipfm", "sid", "clipped", "lean", "shared_pass"])
def test_no_iteration_on_a_gpu_waits_for_it(case: str) -> None:
    """torch names every call that would wait. (Written where there was no GPU, and never run on one.)"""
    options = {"noise": ElectrostaticNoise(128.0), "loss": IPFMLoss()} | CASES[case]
    noise, loss = options.pop("noise"), options.pop("loss")
    teacher = Teacher(tiny_network(label_dim=2, D=noise.D), D=noise.D, image_shape=SHAPE, label_dim=2)
    generator = Generator(teacher.copy(), noise, SHAPE, 2, [2.5])
    train = TrainConfig(**({"batch": 8, "duration_kimg": 0.08} | options))
    run = loop.Distillation(teacher, noise, loss, train, torch.device("cuda"), generator)
    for _ in range(2):  # kernels are chosen and memory is taken
        loop.iteration(run)
    torch.cuda.set_sync_debug_mode("error")
    try:
        loop.iteration(run)
    finally:
        torch.cuda.set_sync_debug_mode("default")
