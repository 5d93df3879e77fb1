"""The loop of SiD, IPFM and any other loss that a plugin brings. It knows components by their contracts only.

Algorithm 1 of IPFM and of SiD, one iteration:

    (1)  x = G(x_init), no gradient     student f    one Adam step on the loss of denoising x
    (2)  x = G(x_init), fresh           generator G  one Adam step on L_alpha(x; f*, f), f* and f held fixed
    (3)                                 average      moves towards G
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

from registry.core.contracts import Loss, Noise, Teacher
from registry.core.streams import Streams
from registry.recipe.tables import TrainConfig
from registry.train.data import RealImages
from registry.train.ema import EMA
from registry.train.generator import Generator
from registry.train.step import Learner, cosine_rate, mode, own_image_numbers


class Distillation:
    """The four players: teacher f* (frozen); student f, generator G and the average of G, which start as copies of it."""

    def __init__(
        self,
        teacher: Teacher,
        noise: Noise,
        loss: Loss,
        train: TrainConfig,
        device: torch.device,
        generator: Generator,
        data: RealImages | None = None,
    ) -> None:
        teacher.denoiser.to(device).eval().requires_grad_(False)
        generator.to(device)
        # A loss with parameters of its own: they are trained along with the student.
        companion = loss.to(device) if isinstance(loss, torch.nn.Module) else None
        self.noise, self.loss, self.train, self.device, self.data = noise, loss, train, device, data

        self.teacher = teacher.denoiser
        self.student = Learner(
            teacher.copy().to(device), train.batch, train.lr, train.betas, train.eps, train.loss_scaling, companion=companion
        )
        self.generator = Learner(
            generator, train.batch, train.glr, train.gbetas, train.eps, train.generator_loss_scaling, net=generator.net
        )
        self.average = EMA(generator.net, train.ema_halflife_kimg, train.ema_rampup_ratio)
        self.nimg = 0

    @property
    def total(self) -> int:
        """Images of the whole run."""
        return round(self.train.duration_kimg * 1000)

    def parts(self, step: str) -> Iterator[tuple[Streams, tuple[Any, ...]]]:
        """This process's share of the batch, part by part: one random stream per image, and real images if the run has data.

        The streams depend on seed, step and image number only. So up to rounding results do not depend on how a batch is split
        into parts and over processes, nor on interruptions. (Dropout draws from torch's global state, which states keep.)
        """
        for numbers in own_image_numbers(self.nimg, self.train.batch, self.train.batch_gpu):
            purpose = f"{self.train.seed}/{step}"
            real = (self.data.batch(Streams.derived(f"{purpose}/real", numbers, self.device)),) if self.data is not None else ()
            yield Streams.derived(purpose, numbers, self.device), real


def iterations(run: Distillation) -> Iterator[None]:
    """Iterate until the run's images are used up; after every iteration the caller may look at the run."""
    while run.nimg < run.total:
        iteration(run)
        yield


def iteration(run: Distillation) -> None:
    """Student, generator, average. (The average's ramp-up counts the images before this batch.)"""
    teacher, student, generator = run.teacher, run.student, run.generator
    rate = cosine_rate(run.nimg / run.total, run.train.lr_decay)

    for i in range(run.train.student_steps):
        with mode(generator.model, train=False), mode(student.modules, train=True):
            for rng, real in run.parts(f"student{i}"):
                with torch.no_grad():
                    x, labels = generator(rng)
                # The loss perturbs x; its draws follow the generator's in the same streams.
                student.accumulate(run.loss.student(student.net, x, labels, run.noise, rng, *real))
        student.step(rate)

    with mode(generator.model, train=True), mode(student.modules, train=False, grad=False):
        for rng, real in run.parts("generator"):
            x, labels = generator(rng)
            # The gradient reaches the generator through x, where that of an image with a non-finite loss is set to 0.
            generator.accumulate(run.loss.generator(teacher, student.net, x, labels, run.noise, rng, *real), x)
    generator.step(rate)

    run.average.update(run.train.batch, run.nimg)
    run.nimg += run.train.batch
