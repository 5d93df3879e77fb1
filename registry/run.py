"""A recipe from beginning to end: build the components, run the loop, leave networks, pictures and numbers."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from registry import distributed, features, quality
from registry.api import Loss, Metric, Noise, Teacher, UserError
from registry.descent import mode
from registry.desk import Desk, find_state
from registry.edm.datasets import load_images
from registry.files import SUFFIXES, save_network, weights_hash
from registry.generator import Generator, generator_levels
from registry.loop import Distillation
from registry.loop import distill as run_loop
from registry.plugins import load_plugins
from registry.pretrain import Pretraining, build_network
from registry.pretrain import pretrain as run_pretraining
from registry.recipe import (
    Choice,
    FeaturesRecipe,
    PretrainConfig,
    PretrainRecipe,
    Recipe,
    TrainConfig,
    dumps,
    expect,
    resolve,
)
from registry.report import Journal, check_outdir


@dataclass
class Result:
    """What a distillation leaves: the generator (with its averaged weights), the table's rows, and the run folder."""

    generator: Generator
    rows: list[quality.Row]
    folder: Path


def distill(
    recipe: str | Recipe,
    *,
    sets: tuple[str, ...] | list[str] = (),
    loss: str | None = None,
    seed: int | None = None,
    outdir: str | None = None,
    resume: str | None = None,
    fresh_teacher: bool = False,
    journal: Journal | None = None,
) -> Result:
    """Distil a teacher as a recipe says: a path, the bare name of a shipped recipe, or one already resolved.

    `sets`, `loss`, `seed` and `outdir` are the command line's; `resume` is "auto" or the path of a training state or
    run folder; `fresh_teacher` measures the teacher again. Raises UserError before anything is written if something is
    wrong, and Interrupted (its state is kept) when it was asked to stop.
    """
    if not isinstance(recipe, Recipe):
        recipe = expect(resolve(recipe, load_plugins(), sets, loss, seed, outdir), Recipe)
    state = find_state(resume, Path(recipe.log.outdir), recipe.path.stem, recipe.tables())
    check_outdir(Path(recipe.log.outdir))
    device = distributed.start(recipe.train.device)
    check_batch(recipe.train)
    journal = journal or Journal()

    teacher, noise, loss_ = build(recipe)
    metrics = build_metrics(recipe.metrics, teacher)
    torch.manual_seed(recipe.train.seed * 1000 + distributed.rank())  # for dropout; the draws have streams of their own
    teacher.denoiser.to(device)
    generator = build_generator(recipe, teacher, noise)
    run = Distillation(teacher, noise, loss_, recipe.train, device, generator)
    about = {
        "D": noise.D, "sigma_data": teacher.sigma_data, "sigma_init": noise.sigma_init, "sigmas": list(generator.sigmas),
        "steps": generator.steps, "gradient": generator.gradient,
        "image_shape": list(teacher.image_shape), "label_dim": teacher.label_dim,
        "teacher": teacher.origin, "teacher_weights": teacher.provenance.get("weights", ""), "recipe": training_tables(recipe),
        "recipe_hash": hashlib.sha256(dumps(training_tables(recipe)).encode()).hexdigest()[:16],
    }  # fmt: skip

    shown = range(2000 if teacher.image_shape == (2, 1, 1) else recipe.log.grid**2)  # points in the plane are drawn as a cloud

    def snapshot(desk: Desk) -> None:
        with run.ema.averaged() as net:
            desk.samples(run.generator.sample(shown), recipe.log.grid, teacher.images)
            desk.network("generator", net)
            if recipe.eval.snapshot_samples and metrics:
                start, images = time.monotonic(), range(recipe.eval.snapshot_samples)
                with journal.progress("measuring the generator", len(images)) as bar:
                    found = quality.measure(metrics, run.generator.sample, images, recipe.eval.batch, bar.at)
                desk.metric(metrics, found, len(images), time.monotonic() - start)
        desk.curves({"student": "Loss/student", "generator": "Loss/generator"}, metrics)

    desk = Desk(journal, recipe.log, run, run.parts, recipe.tables(), recipe.path.stem, snapshot)
    desk.about = about
    desk.tallies = {"student": run.student.tally, "generator": run.generating.tally}
    desk.begin(state)
    if resume and state is None:
        journal.log(f"nothing to resume in {recipe.log.outdir}; starting anew")
    journal.log(
        f"distilling {Path(teacher.origin).name} (D = {noise.D:g}, {'×'.join(map(str, teacher.image_shape))}, "
        f"{count(run.generator.net)} parameters) with loss {recipe.loss.name!r} and noise {recipe.noise.name!r} on {device}"
        + (f", {generator.steps} steps at sigma = {', '.join(f'{s:.4g}' for s in generator.sigmas)}" if generator.steps > 1 else "")
        + (f" × {distributed.world_size()}" if distributed.world_size() > 1 else "")
    )
    if run.nimg == 0:
        desk.samples(run.generator.sample(shown), recipe.log.grid, teacher.images, name="fakes_init.png")
    with desk.running():
        run_loop(run, desk)

    with run.ema.averaged() as net:
        rows = [quality.generator_row(run.generator, metrics, recipe.eval, journal)] if metrics else []
        weights = {name: tensor.detach().clone() for name, tensor in net.state_dict().items()}
    if metrics:
        rows += quality.teacher_rows(teacher, noise, metrics, recipe.eval, journal, fresh_teacher)
        rows.append(quality.floor_row(metrics, recipe.eval))
        desk.quality(rows, metrics, recipe.eval)
    run.generator.net.load_state_dict(weights)
    journal.log(f"the run is in {desk.folder}")
    return Result(run.generator, rows, desk.folder)


def pretrain(
    recipe: str | PretrainRecipe,
    *,
    sets: tuple[str, ...] | list[str] = (),
    seed: int | None = None,
    outdir: str | None = None,
    resume: str | None = None,
    save: str | None = None,
    journal: Journal | None = None,
) -> Path:
    """Train a teacher from images as a recipe says, and give the path of its file. See `distill` for the arguments.

    `save` is where a copy of the finished teacher goes, with its measured rows beside it.
    """
    if not isinstance(recipe, PretrainRecipe):
        recipe = expect(resolve(recipe, load_plugins(), sets, None, seed, outdir), PretrainRecipe)
    state = find_state(resume, Path(recipe.log.outdir), recipe.path.stem, recipe.tables())
    check_outdir(Path(recipe.log.outdir))
    if save:
        check_target(Path(save))
    device = distributed.start(recipe.train.device)
    check_batch(recipe.train)
    journal = journal or Journal()

    images = load_images(recipe.data.source)
    if recipe.data.labels and images.classes is None:
        raise UserError(f"{recipe.path}: [data] labels = true: {recipe.data.source} has no labels")
    try:
        net = build_network(recipe.network, images, recipe.data.labels, recipe.train.seed)
    except ValueError as error:
        raise UserError(f"{recipe.path}: [network] {error}") from None
    teacher = Teacher(
        net,
        recipe.network.D,
        images.image_shape,
        images.label_dim if recipe.data.labels else 0,
        sigma_data=0.5,
        origin="the teacher in training",
    )
    noise: Noise = recipe.noise.make(recipe.noise.config, teacher)
    metrics = build_metrics(recipe.metrics, teacher)
    torch.manual_seed(recipe.train.seed * 1000 + distributed.rank())
    run = Pretraining(net, noise, images, recipe.train, device)
    about = {"D": noise.D, "sigma_data": teacher.sigma_data, "data": recipe.data.source, "recipe": training_tables(recipe)}

    def snapshot(desk: Desk) -> None:
        with run.ema.averaged() as averaged, eval_mode(averaged):
            fakes = quality.sample_teacher(teacher, noise, range(recipe.log.grid**2), 18)
            desk.samples(fakes, recipe.log.grid)
            desk.network("denoiser", averaged)
        desk.curves({"denoiser": "Loss/denoiser"}, metrics)

    desk = Desk(journal, recipe.log, run, run.parts, recipe.tables(), recipe.path.stem, snapshot)
    desk.about = about
    desk.tallies = {"denoiser": run.denoiser.tally}
    desk.begin(state)
    journal.log(
        f"training a {recipe.network.arch} of {count(net)} parameters on {images.origin} ({len(images)} images), D = {noise.D:g}"
    )
    with desk.running():
        run_pretraining(run, desk)

    target = Path(save) if save else desk.folder / "teacher.pt"
    with run.ema.averaged() as averaged, eval_mode(averaged):
        if distributed.rank() == 0:
            save_network(target, "denoiser", averaged, about | {"nimg": run.nimg, "versions": quality.versions()})
        teacher.path = target.resolve()
        teacher.provenance = {"weights": weights_hash(averaged), "fresh_from_training": True}
        if metrics:
            rows = quality.teacher_rows(teacher, noise, metrics, recipe.eval, journal, fresh=True)
            desk.quality([*rows, quality.floor_row(metrics, recipe.eval)], metrics, recipe.eval)
    journal.log(f"the teacher is in {target}")
    return target


def train_features(
    recipe: str | FeaturesRecipe, *, sets: tuple[str, ...] | list[str] = (), save: str, journal: Journal | None = None
) -> Path:
    """Train the feature network of the Fréchet distance as a recipe says, and save it. See `distill` for the arguments."""
    if not isinstance(recipe, FeaturesRecipe):
        recipe = expect(resolve(recipe, load_plugins(), sets), FeaturesRecipe)
    journal, path, config = journal or Journal(), Path(save), recipe.classifier
    check_target(path)
    images = load_images(recipe.data.source)
    if images.classes is None:
        raise UserError(f"{recipe.path}: [data] source = {recipe.data.source!r}: a classifier needs labels, this set has none")
    accuracy = features.held_out_accuracy(images.x(), images.classes, config)
    journal.log(f"accuracy on a held-out fifth: {accuracy:.1%}; now training on all {len(images)} images")
    with journal.progress("training the feature network", config.epochs) as bar:
        net = features.train(images.x(), images.classes, config, bar.at)
    about = {"held_out_accuracy": accuracy, "recipe": recipe.tables(), "versions": quality.versions()}
    save_network(path, "classifier", net, about)
    journal.log(f"the feature network is in {path}")
    return path


# ----------------------------------------------------------------------------------------------------- components


def build(recipe: Recipe) -> tuple[Teacher, Noise, Loss]:
    """Teacher, noise and loss of a recipe. Raises UserError where they do not fit each other."""
    teacher: Teacher = recipe.teacher.make(recipe.teacher.config)
    for choice in (recipe.noise, recipe.loss):
        reason = choice.config.misfit(teacher.D)
        if reason:
            raise UserError(f"{recipe.path}: [{choice.kind}] use = {choice.name!r}: {reason}")
    noise: Noise = recipe.noise.make(recipe.noise.config, teacher)
    if noise.D != teacher.D:
        raise UserError(f"{recipe.path}: [noise] {recipe.noise.name!r} has D = {noise.D:g}, the teacher has D = {teacher.D:g}")
    return teacher, noise, recipe.loss.make(recipe.loss.config, teacher)


def build_generator(recipe: Recipe, teacher: Teacher, noise: Noise) -> Generator:
    """The generator of [generator], initialised as the teacher."""
    config = recipe.generator
    sigmas = generator_levels(config.steps, config.schedule, noise.sigma_init, noise.sigma_min, noise.rho)
    return Generator(teacher.copy(), noise, teacher.image_shape, teacher.label_dim, sigmas, config.gradient, config.recompute)


def build_metrics(choices: tuple[Choice, ...], teacher: Teacher) -> list[tuple[Choice, Metric]]:
    return [(choice, choice.make(choice.config, teacher)) for choice in choices]


def training_tables(recipe: Recipe | PretrainRecipe) -> dict[str, Any]:
    """What a network's file tells of its recipe: all but where the run was logged and how it was measured."""
    return {name: table for name, table in recipe.tables().items() if name not in ("log", "eval")}


def check_target(path: Path) -> None:
    """A network can be saved there. Raises UserError."""
    if path.suffix not in SUFFIXES:
        raise UserError(f"--save {path}: a network is saved as {', '.join(SUFFIXES)}")
    check_outdir(path.parent)


def check_batch(train: TrainConfig | PretrainConfig) -> None:
    """The batch must split evenly over processes and parts. Raises UserError."""
    world = distributed.world_size()
    share, rest = divmod(train.batch, world)
    if rest:
        raise UserError(f"[train] batch = {train.batch}: must be divisible by the {world} processes")
    if train.batch_gpu and share % min(train.batch_gpu, share):
        raise UserError(f"[train] batch_gpu = {train.batch_gpu}: must divide batch/{world} = {share}")


def count(net: nn.Module) -> str:
    """Number of parameters, for people."""
    n = sum(p.numel() for p in net.parameters())
    return f"{n / 1e6:.2f} M" if n >= 1e5 else f"{n:,}"


@contextmanager
def eval_mode(net: nn.Module) -> Iterator[None]:
    with mode(net, train=False), torch.no_grad():
        yield
