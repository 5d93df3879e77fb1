"""The loop of SiD, IPFM and any other loss that a plugin brings. It knows components by their contracts only.

Algorithm 1 of IPFM and of SiD, one iteration:

    (1)  x = G(x_init), no gradient     student f    one Adam step on the loss of denoising x
    (2)  x = G(x_init), fresh           generator G  one Adam step on L_alpha(x; f*, f), f* and f held fixed
    (3)                                 average      moves towards G
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from registry.core import distributed
from registry.core.contracts import Loss, Noise, SharesPass, Teacher
from registry.core.sharding import shard
from registry.core.streams import Streams
from registry.recipe.tables import TrainConfig, WarmupConfig, lengths
from registry.train.data import RealImages, augmented
from registry.train.ema import EMA
from registry.train.generator import Generator
from registry.train.passes import Passes
from registry.train.recompute import blocks
from registry.train.step import Learner, checked, cosine_rate, own_image_numbers
from registry.train.warmup import Pairs, regression_loss


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
        warmup: WarmupConfig | None = None,
    ) -> None:
        teacher.denoiser.to(device).eval().requires_grad_(False)
        generator.to(device)
        # A loss with parameters of its own: they are trained along with the student.
        companion = loss.to(device) if isinstance(loss, torch.nn.Module) else None
        student = teacher.copy().to(device)
        if train.shard:
            for net in (teacher.denoiser, student, generator.net):
                shard(net, blocks(net))
        self.noise, self.loss, self.train, self.device, self.data = noise, loss, train, device, data
        self.warmup = warmup or WarmupConfig()
        self.pairs: Pairs | None = None
        """What the generator learns in the warm-up; needed while nimg < regression_end."""

        self.teacher = teacher.denoiser
        self.student = Learner(
            student, train.batch, train.lr, train.betas, train.eps, train.loss_scaling, train.clip,
            companion=companion,
        )  # fmt: skip
        self.generator = Learner(
            generator, train.batch, train.glr, train.gbetas, train.eps, train.generator_loss_scaling, train.gclip,
            net=generator.net,
        )  # fmt: skip
        # The regression has an optimiser of its own, since the moments of one loss say nothing of another.
        self.regression = Learner(
            generator, train.batch, self.warmup.lr, self.warmup.betas, train.eps, clip=train.gclip, net=generator.net
        )
        self.passes = Passes(train.precision, train.compile, train.memory)
        self.average = EMA(generator.net, train.ema_halflife_kimg, train.ema_rampup_ratio)
        self.nimg = 0
        """Images so far, those of the warm-up included."""
        self.rollbacks = 0
        """How often the run went back to a state because it had diverged. Each time it takes other draws."""

    @property
    def regression_end(self) -> int:
        """Images after which the generator has learned the pairs, in whole batches."""
        return lengths(self.warmup.kimg, 0, 0, self.train.batch)[0]

    @property
    def game_start(self) -> int:
        """Images of the whole warm-up, in whole batches. Without a regression there is none."""
        return sum(lengths(self.warmup.kimg, self.warmup.student_kimg, 0, self.train.batch))

    @property
    def total(self) -> int:
        """Images of the whole run."""
        return self.game_start + round(self.train.duration_kimg * 1000)

    @property
    def milestones(self) -> tuple[int, int]:
        """Images at the end of each part of the warm-up."""
        return self.regression_end, self.game_start

    @contextmanager
    def averaged(self) -> Iterator[nn.Module]:
        """The generator with its averaged weights, whole in every process."""
        model = self.generator.model
        own = model.net
        with self.average.averaged() as net:
            model.net = net
            try:
                yield net
            finally:
                model.net = own

    def learners(self) -> dict[str, Learner]:
        """Who learned in the last iteration, by the name of the loss."""
        if self.nimg <= self.regression_end:
            return {"regression": self.regression}
        if self.nimg <= self.game_start:
            return {"student": self.student}
        return {"student": self.student, "generator": self.generator}

    def learned(self) -> dict[str, Any]:
        """Everything that training changes, each with a state_dict, by its name in a training state."""
        regression = {"regression": self.regression.optimiser} if self.warmup.kimg else {}
        return {"student": self.student, "generator": self.generator, "ema": self.average, **regression}

    def parts(self, step: str) -> Iterator[tuple[Streams, tuple[Any, ...]]]:
        """This process's share of the batch, part by part: one random stream per image, and real images if the run has data.

        The streams depend on seed, step, image number and rollbacks only. So up to rounding results do not depend on how a batch is
        split into parts and over processes, nor on interruptions. (Dropout draws from torch's global state, which states keep.)
        """
        for numbers in own_image_numbers(self.nimg, self.train.batch, self.train.batch_gpu):
            purpose = f"{self.train.seed}/{step}" + (f"/{self.rollbacks}" if self.rollbacks else "")
            real = (self.data.batch(Streams.derived(f"{purpose}/real", numbers, self.device)),) if self.data is not None else ()
            yield Streams.derived(purpose, numbers, self.device), real


def iterations(run: Distillation) -> Iterator[None]:
    """The warm-up, if there is one, then the game. After every iteration the caller may look at the run."""
    for step, end in ((regression, run.regression_end), (student_alone, run.game_start), (iteration, run.total)):
        while run.nimg < end:
            step(run)
            yield


def regression(run: Distillation) -> None:
    """Warm-up: one step of the generator on pairs of a start and the teacher's image from there (`registry.train.warmup`)."""
    assert run.pairs is not None
    with run.regression.mode(train=True), run.passes(run.regression.net):
        for rng, _ in run.parts("warmup"):
            run.regression.accumulate(regression_loss(run.regression.net, run.pairs.batch(rng)))
    run.regression.step(cosine_rate(run.nimg / run.regression_end, 1.0))
    run.average.update(run.train.batch, run.nimg)
    run.nimg += run.train.batch
    if run.nimg >= run.regression_end:
        run.regression.forget()


def student_alone(run: Distillation) -> None:
    """Warm-up: one step of the student on the generator's images."""
    student_step(run, "student0")
    run.nimg += run.train.batch


def iteration(run: Distillation) -> None:
    """Student, generator, average. (The average's ramp-up counts the images before this batch.)"""
    rate = cosine_rate((run.nimg - run.game_start) / (run.total - run.game_start), run.train.lr_decay)
    images = reused(run) if run.train.reuse_samples else None
    for i in range(run.train.student_steps - run.train.shared_pass):
        student_step(run, f"student{i}", rate, images)
    if run.train.shared_pass:
        shared_step(run, rate)
    else:
        generator_step(run, rate, images)
    run.average.update(run.train.batch, run.nimg)
    run.nimg += run.train.batch


def student_step(run: Distillation, name: str, rate: float = 1.0, images: list[Images] | None = None) -> None:
    """(1): the student learns to denoise the generator's images."""
    student_gradient(run, name, images)
    run.student.step(rate)


def generator_step(run: Distillation, rate: float = 1.0, images: list[Images] | None = None) -> None:
    """(2): the generator learns from teacher and student."""
    generator_gradient(run, images)
    run.generator.step(rate)
    if run.student.companion is not None:  # the loss may count something in its buffers here, too
        distributed.spread(run.student.modules.buffers())


def shared_step(run: Distillation, rate: float = 1.0) -> None:
    """(1) and (2) at once, from the same evaluations: the generator learns from the student as it was before its step."""
    shared_gradient(run)
    run.student.step(rate)
    run.generator.step(rate)


class Images(NamedTuple):
    """A part of the generator's images for its own step, with their graph."""

    x: Tensor
    labels: Tensor | None
    rng: Streams
    real: tuple[Any, ...]


def images_to_learn_from(run: Distillation) -> Iterator[Images]:
    """The generator's images in its own step, part by part."""
    for rng, real in run.parts("generator"):
        x, labels = run.generator(rng)
        yield Images(x, labels, rng, real)


def reused(run: Distillation) -> list[Images]:
    """All of them, with their graphs, before the student's step."""
    with run.generator.mode(train=True), run.passes(run.generator.net, run.student.net):
        return list(images_to_learn_from(run))


def student_gradient(run: Distillation, name: str, images: list[Images] | None = None) -> None:
    """The student's loss on the generator's images, augmented or as they are, and its gradient."""
    student, generator = run.student, run.generator
    passes = run.passes(student.net, others=(generator.net,))
    with generator.mode(train=False), student.mode(train=True), passes:
        for i, (rng, real) in enumerate(run.parts(name)):
            with torch.no_grad():
                x, labels = generator(rng) if images is None else (images[i].x.detach(), images[i].labels)
                f, x, real = augmented(student.net, x, real, run.train.augment, rng)
            # The loss perturbs x; its draws follow the generator's in the same streams.
            values = run.loss.student(f, x, labels, run.noise, rng, *real)
            student.accumulate(checked(values, x, "student"))


def generator_gradient(run: Distillation, images: list[Images] | None = None) -> None:
    """The generator's loss, teacher and student held fixed, and its gradient. No image is augmented."""
    student, generator = run.student, run.generator
    passes = run.passes(generator.net, run.teacher, student.net, last=student.net)
    with generator.mode(train=True), student.mode(train=False, grad=False), passes:
        for x, labels, rng, real in images or images_to_learn_from(run):
            # The gradient reaches the generator through x, where that of an image with a non-finite loss is set to 0.
            values = run.loss.generator(run.teacher, student.net, x, labels, run.noise, rng, *real)
            generator.accumulate(checked(values, x, "generator"), x)


def shared_gradient(run: Distillation) -> None:
    """Both losses from the same evaluations, and both gradients: the student's in its weights, the generator's through x."""
    student, generator, loss = run.student, run.generator, run.loss
    assert isinstance(loss, SharesPass)
    with generator.mode(train=True), student.mode(train=True), run.passes(run.teacher, student.net, generator.net):
        for x, labels, rng, real in images_to_learn_from(run):
            leaf = x.detach().requires_grad_()
            values, of_generator = loss.shared(run.teacher, student.net, leaf, labels, run.noise, rng, *real)
            student.accumulate(checked(values, x, "shared"), shared=True)
            generator.accumulate(checked(of_generator, x, "shared"), x, leaf)
