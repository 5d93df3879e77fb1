"""Train a teacher from images, from the recipe to its file and its rows of the table."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import torch
from torch import nn

from registry.core import distributed
from registry.core.contracts import Domain, Noise, Teacher
from registry.core.errors import UserError
from registry.core.surroundings import torch_left_alone, usual_torch
from registry.core.version import versions
from registry.edm import augment
from registry.edm.architectures import build_network
from registry.files.formats import save_network, weights_hash
from registry.measure.measuring import floor_row
from registry.measure.teacher_rows import teacher_rows
from registry.plugins.loading import load_plugins
from registry.recipe.arguments import Given, Sets, check_path, recipe_of
from registry.recipe.resolved import TABLE_NAMES, PretrainRecipe, training_tables
from registry.report.render import REPORT
from registry.runs.building import build_metrics, check_target, parameter_count, real_images
from registry.runs.built import check_noise, held
from registry.runs.ending import interruptible
from registry.runs.health import check_images
from registry.runs.outputs import (
    Curves,
    draw_fakes,
    draw_real,
    measure_snapshot,
    snapshot_name,
    take_up,
    write_network,
    write_table,
)
from registry.runs.starting import prepare, start_or_resume
from registry.runs.states import TEACHER
from registry.runs.training import Saved, train
from registry.sample.heun import heun_samples
from registry.show.journal import Journal
from registry.train import pretraining
from registry.train.data import RealImages
from registry.train.step import mode

STEPS = 18
"""Heun steps of a snapshot's images, as EDM samples CIFAR-10: 35 evaluations."""


@torch_left_alone()
@usual_torch()
def pretrain(
    recipe: Given | PretrainRecipe,
    *,
    sets: Sets = (),
    seed: int | None = None,
    outdir: str | os.PathLike[str] | None = None,
    resume: str | os.PathLike[str] | None = None,
    save: str | os.PathLike[str] | None = None,
    journal: Journal | None = None,
) -> Path:
    """Train a teacher from images as a recipe says, and give the path of its file. See `distill` for the arguments.

    `save` is where a copy of the finished teacher goes, with its measured rows beside it.
    """
    recipe = recipe_of(PretrainRecipe, recipe, load_plugins(), sets, None, seed, outdir)
    resume = None if resume is None else check_path("resume", resume)
    target = None if save is None else check_target(save)
    device, found = prepare(recipe, resume)
    journal = journal or Journal()
    data = real_images(recipe.data, device)
    net, domain = new_network(recipe, data)
    noise: Noise = recipe.noise.make(domain)
    check_noise(recipe.noise, noise, domain.image_shape)
    metrics = build_metrics(recipe.metrics, domain)
    torch.manual_seed(recipe.train.seed * 1000 + distributed.rank())
    run = pretraining.Pretraining(net, noise, data, recipe.train, device)
    images = {"data": recipe.data.source, "data_hash": data.images.hash()}
    facts = images | {"D": noise.D, "sigma_data": domain.sigma_data, "recipe": training_tables(recipe)}
    saved = Saved({"denoiser": run.denoiser, "ema": run.average}, recipe.tables(), facts)
    start = partial(start_or_resume, recipe, run, saved, resume, found, journal)
    curves = Curves(("denoiser",), metrics)

    def snapshot() -> None:
        with run.average.averaged() as averaged, sampling(averaged):
            sample = partial(heun_samples, averaged, noise, domain, steps=STEPS, shared=True)
            images = distributed.share(recipe.log.grid**2, recipe.eval.batch, lambda part: sample(part).cpu())
            draw_fakes(folder, run.nimg, torch.cat(images), recipe.log.grid)
            file = write_network(folder, snapshot_name(run.nimg, saved.tables), "denoiser", averaged, facts, run.nimg)
            measure_snapshot(folder, metrics, sample, recipe.eval, file, run.nimg, saved.clock.seconds)
        curves.draw(folder, saved.clock.seconds, run.nimg >= run.total)

    with interruptible(start) as folder, held(None, recipe.noise, noise):
        size = f"{recipe.network.arch} of {parameter_count(net)} parameters"
        journal.log(f"training a {size} on {domain.origin} ({len(data)} images), D = {noise.D:g}")
        if run.nimg == 0:
            draw_real(folder, recipe)
        take_up(folder, metrics, recipe, run.nimg)
        train(partial(pretraining.iterations, run), run, recipe, folder, lambda: {"denoiser": run.denoiser}, saved, snapshot)

        target = target or folder.path / TEACHER
        with run.average.averaged() as averaged, sampling(averaged):
            check_images(heun_samples(averaged, noise, domain, range(8), STEPS), "denoiser", run.nimg)
            if folder.writes:
                save_network(target, "denoiser", averaged, facts | {"nimg": run.nimg, "versions": versions()})
            if metrics:
                teacher = Teacher(averaged, path=target.resolve(), weights=weights_hash(averaged), **vars(domain))
                rows = teacher_rows(teacher, noise, metrics, recipe.eval, journal, fresh=True, own=True)
                write_table(folder, [*rows, floor_row(metrics, recipe.eval)], metrics, recipe.eval, run.nimg, facts)
    journal.log(f"the teacher is in {target}; the page of its training: {folder.path / REPORT}")
    return target


def new_network(recipe: PretrainRecipe, data: RealImages) -> tuple[nn.Module, Domain]:
    """The network of [network], with initial weights of the recipe's seed, and what its images are. Raises UserError."""
    config, images = recipe.network, data.images
    label_dim = images.label_dim if recipe.data.labels else 0
    try:
        net = build_network(
            config.arch, config.D, images.image_shape, label_dim, recipe.train.seed, use_fp16=config.use_fp16,
            model_channels=config.model_channels, channel_mult=list(config.channel_mult), num_blocks=config.num_blocks,
            attn_resolutions=list(config.attn_resolutions), dropout=config.dropout,
            augment_dim=augment.LABELS if recipe.train.augment else 0,
        )  # fmt: skip
    except ValueError as error:
        raise UserError(f"{recipe.path}: [{TABLE_NAMES[type(config)]}] {error}") from None
    return net, Domain(
        D=config.D,
        image_shape=images.image_shape,
        label_dim=label_dim,
        augment_dim=int(net.init_kwargs["augment_dim"]),
        origin=images.origin,
    )


@contextmanager
def sampling(net: nn.Module) -> Iterator[None]:
    """The network in eval mode, without gradients."""
    with mode(net, train=False), torch.no_grad():
        yield
