"""What a run needs, from its recipe: work, memory, time. Nothing is trained, downloaded or measured.

An iteration of the run's own loop is made on torch's meta device, where tensors have shapes and no values. Augmentation is left
out: it needs values, and costs next to nothing.
"""

from __future__ import annotations

import copy
import itertools
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import nn

from registry.core.contracts import Domain, Noise
from registry.core.errors import UserError
from registry.core.text import shown
from registry.edm.datasets import Images
from registry.files.locate import published
from registry.files.teachers import outline
from registry.plugins.loading import Plugins
from registry.recipe.resolved import PretrainRecipe, Recipe, parts, plain
from registry.runs.building import build, build_generator, real_images
from registry.runs.pretrain import new_network
from registry.runs.starting import share, start_device
from registry.show.journal import Journal
from registry.train import loop, pretraining
from registry.train.cost import Cost, cost, nbytes
from registry.train.data import RealImages
from registry.train.passes import Passes
from registry.train.recompute import blocks
from registry.train.step import Learner, mode

META = torch.device("meta")
RESERVE = 0.1
"""Share of a device's memory that is left for its driver, the kernels' work space and what lies between tensors."""


@dataclass(frozen=True)
class Plan:
    """What a run needs. Bytes are those of one device, and operations are floating-point ones."""

    parameters: int
    """Of one network; teacher, student and generator have as many each."""
    evaluation: int
    """Operations of one evaluation of that network, for one image."""
    work: Mapping[str, int]
    """Operations of an iteration for one image, by step."""
    before: int
    """Operations of the whole warm-up: the teacher's pairs, their regression, the student alone."""
    weights: int
    """Bytes of all networks and of the average."""
    moments: int
    """Bytes of Adam's moments."""
    peaks: Mapping[str, int]
    """Bytes of gradients and activations at their most, by step."""
    at_a_time: int
    """Images at a time on a device."""
    largest: int | None
    """The most images at a time that fit into the device's memory; 0 if not even one does, None if it was not asked."""

    @property
    def memory(self) -> int:
        """Bytes of one device."""
        return self.weights + self.moments + max(self.peaks.values())

    def images_per_second(self, tflops: float, devices: int = 1) -> float:
        """Images per second of devices that do so many 10^12 operations per second each."""
        return devices * tflops * 1e12 / sum(self.work.values())


def plan(
    recipe: Recipe | PretrainRecipe,
    plugins: Plugins,
    devices: int = 1,
    memory: int | None = None,
    journal: Journal | None = None,
) -> Plan:
    """What the recipe's run needs on so many devices, with so many bytes each. Raises UserError, SettingError."""
    own, at_a_time = share(recipe.train, devices)
    domain, make = distillations(recipe, plugins) if isinstance(recipe, Recipe) else pretrainings(recipe)

    def costs(n: int, only: str | None = None) -> dict[str, Cost]:
        """Of the steps with n images at a time. Gradients of parts add up, so two parts take as much memory as many."""
        run = make(n * min(2, own // n), n)
        learning = [p for learner in learners(run) for p in learner.net.parameters()]
        try:
            return {name: cost(step, learning, split) for name, step in gradients(run).items() if only in (None, name)}
        except (NotImplementedError, RuntimeError) as error:
            reason = shown(error, 100)
            raise UserError(f"{recipe.path}: cannot be planned, for a component reads the values of tensors ({reason})") from error

    split = devices if recipe.train.shard else 1
    low = [n for n in range(1, math.isqrt(own) + 1) if own % n == 0]
    sizes = sorted({*low, *(own // n for n in low)})
    with (journal or Journal()).progress("counting", 1 + (len(sizes).bit_length() if memory else 0)) as bar:
        found, run = costs(at_a_time), make(1, 1)
        weights, moments = (bytes_ // split for bytes_ in held(run))
        together = gathered(network(run)) if split > 1 else 0
        heaviest = max(found, key=lambda name: found[name].peak)
        tried = itertools.count(1)

        def fits(n: int) -> bool:
            bar.at(next(tried))
            needed = weights + moments + costs(n, heaviest)[heaviest].peak + together
            return needed <= (memory or 0) * (1 - RESERVE)

        most = largest(sizes, fits) if memory else None
    images = at_a_time * min(2, own // at_a_time)
    times = {"student": recipe.train.student_steps - recipe.train.shared_pass} if isinstance(recipe, Recipe) else {}
    per_image = evaluation(network(run), domain)
    return Plan(
        parameters=sum(p.numel() for p in network(run).parameters()),
        evaluation=per_image,
        before=evaluations_before(recipe) * per_image,
        work={name: times.get(name, 1) * c.flop // images for name, c in found.items()},
        weights=weights,
        moments=moments,
        peaks={name: c.peak + together for name, c in found.items()},
        at_a_time=at_a_time,
        largest=most,
    )


def evaluations_before(recipe: Recipe | PretrainRecipe) -> int:
    """Evaluations of a network in the whole warm-up; a backward pass counts as two."""
    if not isinstance(recipe, Recipe) or not recipe.warmup.kimg:
        return 0
    warmup, steps = recipe.warmup, recipe.generator.steps
    regression, alone, _ = parts(recipe)
    return warmup.pairs * warmup.nfe + regression * 3 * steps + alone * (steps + 3)


def largest(sizes: list[int], fits: Callable[[int], bool]) -> int:
    """The last of ascending sizes that fits, by bisection; 0 if none does."""
    low, high = 0, len(sizes)  # all below low fit, none from high on
    while low < high:
        middle = (low + high) // 2
        low, high = (middle + 1, high) if fits(sizes[middle]) else (low, middle)
    return sizes[low - 1] if low else 0


def reached(recipe: Recipe | PretrainRecipe, plugins: Plugins, most: int, journal: Journal | None = None) -> float:
    """Operations per second, in 10^12, that the recipe's device reaches with its network, whatever the weights.

    Evaluations and their gradients are timed, of 1, 2, 4 … up to `most` images, until they take half a second. Raises UserError.
    """
    device = start_device(recipe.train)
    domain, make = distillations(recipe, plugins) if isinstance(recipe, Recipe) else pretrainings(recipe)
    run, rng = make(1, 1), torch.Generator(device)
    net = copy.deepcopy(network(run)).to_empty(device=device).requires_grad_(True)
    for tensor in net.state_dict(keep_vars=True).values():  # constants would lead to numbers close to 0, which take longer
        tensor.data.normal_(0, 0.1, generator=rng) if tensor.is_floating_point() else tensor.zero_()
    operations, passes = 3 * evaluation(network(run), domain), Passes(recipe.train.precision, recipe.train.compile)

    def seconds(n: int) -> float:
        x = torch.randn(n, *domain.image_shape, generator=rng, device=device)
        labels = torch.zeros(n, domain.label_dim, device=device) if domain.label_dim else None
        start = time.monotonic()
        with passes(net):
            net(x, torch.ones(n, device=device), labels).sum().backward()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return time.monotonic() - start

    n, best = 1, 0.0
    with (journal or Journal()).progress("timing", most) as bar:
        while True:
            took = min(seconds(n) for _ in range(4))
            best = max(best, n * operations / took / 1e12)
            bar.at(n)
            if n == most or took > 0.5:
                return best
            n = min(2 * n, most)


Run = loop.Distillation | pretraining.Pretraining


def distillations(recipe: Recipe, plugins: Plugins) -> tuple[Domain, Callable[[int, int], Run]]:
    """Makes the recipe's run on the meta device, for a batch and so many images at a time."""
    settings = plain(recipe.teacher.config)
    found = published(str(settings.get("source")))
    known = outline(found, settings.get("fp16"), settings.get("dropout")) if found and found.network else None
    teacher, noise, loss = build(recipe, plugins, known)
    config = recipe.generator.model_copy(update={"init": None})
    images = None
    if recipe.data:
        labels = recipe.data.labels and teacher.label_dim > 0
        classes = torch.arange(teacher.label_dim) if labels else None
        black = torch.zeros(max(1, teacher.label_dim), *teacher.image_shape, dtype=torch.uint8)
        images = RealImages(Images(black, classes, "black"), labels, META)

    def make(batch: int, at_a_time: int) -> Run:
        train = recipe.train.model_copy(update={"batch": batch, "batch_gpu": at_a_time, "augment": 0.0, "compile": False})
        generator = build_generator(replace(recipe, generator=config), teacher, noise)
        run = loop.Distillation(teacher, noise, loss, train, META, generator, images, recipe.warmup)
        run.nimg = run.game_start
        return run

    return teacher, make


def pretrainings(recipe: PretrainRecipe) -> tuple[Domain, Callable[[int, int], Run]]:
    """The same for the training of a teacher. Its network depends on the images, so these must be there."""
    data = real_images(recipe.data, META)
    net, domain = new_network(recipe, data)
    noise: Noise = recipe.noise.make(domain)

    def make(batch: int, at_a_time: int) -> Run:
        train = recipe.train.model_copy(update={"batch": batch, "batch_gpu": at_a_time, "augment": 0.0, "compile": False})
        net.zero_grad(set_to_none=True)
        return pretraining.Pretraining(net, noise, data, train, META)

    return domain, make


def gradients(run: Run) -> dict[str, Callable[[], object]]:
    """The steps of an iteration, each up to its gradient."""
    if isinstance(run, loop.Distillation):
        student: dict[str, Callable[[], object]] = {"student": partial(loop.student_gradient, run, "student0")}
        if run.train.reuse_samples:
            return {"student and generator": partial(reusing, run)}
        if run.train.shared_pass:
            return (student if run.train.student_steps > 1 else {}) | {"both": partial(loop.shared_gradient, run)}
        return student | {"generator": partial(loop.generator_gradient, run)}
    return {"denoiser": partial(pretraining.denoiser_gradient, run)}


def reusing(run: loop.Distillation) -> None:
    """Both steps, since the generator's images and their graph are alive in the student's, too."""
    images = loop.reused(run)
    for i in range(run.train.student_steps):
        loop.student_gradient(run, f"student{i}", images)
    loop.generator_gradient(run, images)


def network(run: Run) -> nn.Module:
    return run.teacher if isinstance(run, loop.Distillation) else run.denoiser.net


def held(run: Run) -> tuple[int, int]:
    """Bytes that a run holds all the time: of its networks and averages, and of Adam's moments."""
    modules = [network(run), *(learner.modules for learner in learners(run))]
    average = sum(tensor.nbytes for tensor in run.average.state_dict().values())
    return nbytes(*modules) + average, sum(2 * p.nbytes for learner in learners(run) for p in learner.modules.parameters())


def learners(run: Run) -> tuple[Learner, ...]:
    return (run.student, run.generator) if isinstance(run, loop.Distillation) else (run.denoiser,)


def gathered(net: nn.Module) -> int:
    """Bytes of a split network that come together on a device: of the block with the most weights, those and what they were
    gathered in, the next block's, and a gradient as it is sent and received (torch's `fully_shard`)."""
    whole = sum(p.nbytes for p in net.parameters())
    units = [sum(p.nbytes for p in block.parameters()) for block in blocks(net)]
    return 5 * max([*units, whole - sum(units)])


@torch.no_grad()
def evaluation(net: nn.Module, domain: Domain) -> int:
    """Operations of one evaluation of a network for one image."""
    x = torch.zeros(1, *domain.image_shape, device=META)
    labels = torch.zeros(1, domain.label_dim, device=META) if domain.label_dim else None
    with mode(net, train=False):
        return cost(lambda: net(x, torch.ones(1, device=META), labels)).flop
