"""THE loop: SiD, IPFM, and whatever else a plugin brings. It knows components by their contracts only.

One iteration (IPFM Algorithm 1; SiD Algorithm 1):

    noise.prior -> generator -> x                      (no gradient)
    loss.student(student, x) -> Adam(student)
    noise.prior -> generator -> x                      (fresh, with gradient)
    loss.generator(teacher, student, x) -> Adam(generator) -> EMA
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from registry import distributed
from registry.api import Loss, Noise, Teacher
from registry.descent import Descent, cosine_rate, mode
from registry.ema import EMA
from registry.generator import Generator
from registry.recipe import TrainConfig
from registry.streams import Streams


class Distillation:
    """The players of one run: teacher f*, student f and generator G, which both start as the teacher."""

    def __init__(
        self,
        teacher: Teacher,
        noise: Noise,
        loss: Loss,
        train: TrainConfig,
        device: torch.device,
        generator: Generator | None = None,
    ) -> None:
        teacher.denoiser.to(device).eval().requires_grad_(False)
        self.teacher, self.noise, self.loss, self.train, self.device = teacher, noise, loss, train, device
        self.student = Descent(teacher.copy(), train.batch, train.lr, train.betas, train.eps, train.loss_scaling)
        self.generator = (generator or Generator(teacher.copy(), noise, teacher.image_shape, teacher.label_dim)).to(device)
        self.generating = Descent(self.generator.net, train.batch, train.glr, train.gbetas, train.eps, train.generator_loss_scaling)
        self.ema = EMA(self.generator.net, train.ema_halflife_kimg, train.ema_rampup_ratio)
        self.parts = {"student": self.student, "generator": self.generating, "ema": self.ema}
        self.nimg = 0

    @property
    def total(self) -> int:
        """Images of the whole run."""
        return round(self.train.duration_kimg * 1000)

    def images(self, step: str) -> Iterator[Streams]:
        """This process's share of the batch, part by part: streams that depend on seed, step and image number alone."""
        for part in shares(self.nimg, self.train.batch, self.train.batch_gpu):
            yield Streams.derived(f"{self.train.seed}/{step}", part, self.device)


def distill(run: Distillation, after: Callable[[Distillation], bool]) -> None:
    """Iterate until the run's images are spent, or until `after`, called after every iteration, says to stop."""
    while run.nimg < run.total:
        iteration(run)
        if after(run):
            break


def iteration(run: Distillation) -> None:
    """Student, generator, average."""
    rate = cosine_rate(run.nimg / run.total, run.train.lr_decay)
    for i in range(run.train.student_steps):
        run.student.step(student_values(run, i), rate)
    run.generating.step(generator_values(run), rate)
    run.ema.update(run.train.batch, run.nimg)
    run.nimg += run.train.batch


def student_values(run: Distillation, i: int) -> Iterator[Tensor]:
    """The student's loss on generated images, for one part of the batch after the other."""
    with mode(run.generator, train=False), mode(run.student.net, train=True):
        for rng in run.images(f"student{i}"):
            with torch.no_grad():
                x, labels = run.generator(rng)
            yield run.loss.student(run.student.net, x, labels, run.noise, rng)


def generator_values(run: Distillation) -> Iterator[Tensor]:
    """The generator's loss on fresh images; the student stands still, but gradients flow through it to x."""
    with mode(run.generator, train=True), mode(run.student.net, train=False, grad=False):
        for rng in run.images("generator"):
            x, labels = run.generator(rng)
            values = run.loss.generator(run.teacher.denoiser, run.student.net, x, labels, run.noise, rng)
            shield(x, values)
            yield values


def shield(x: Tensor, values: Tensor) -> None:
    """An image whose loss is not finite is dropped from the sum; keep its gradient, which is NaN, from the other images too."""
    if x.requires_grad:
        finite = values.detach().flatten(1).sum(1).isfinite().reshape(-1, 1, 1, 1)
        x.register_hook(lambda gradient: torch.where(finite, gradient, 0))


def shares(first: int, batch: int, batch_gpu: int | None) -> Iterator[range]:
    """The image numbers of this process in the batch that starts at `first`, in parts of `batch_gpu`."""
    share = batch // distributed.world_size()
    start = first + distributed.rank() * share
    part = min(batch_gpu or share, share)
    for i in range(0, share, part):
        yield range(start + i, start + i + part)
