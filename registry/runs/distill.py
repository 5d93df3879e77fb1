"""Distil a teacher into a generator, from the recipe to the table."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from registry.core import distributed
from registry.core.contracts import Domain, Noise, Teacher
from registry.core.sharding import whole
from registry.core.surroundings import torch_left_alone, usual_torch
from registry.files.formats import weights_hash
from registry.measure.measuring import floor_row, measured
from registry.measure.rows import Metrics, Row
from registry.measure.teacher_rows import teacher_rows
from registry.plugins.loading import load_plugins
from registry.recipe.arguments import Given, Sets, check_flag, check_path, recipe_of
from registry.recipe.resolved import Recipe, Tables
from registry.report.render import REPORT
from registry.runs.building import build, build_generator, build_metrics, generator_facts, parameter_count, real_images
from registry.runs.built import held, told_of
from registry.runs.clock import Clock
from registry.runs.ending import interruptible
from registry.runs.folder import RunFolder
from registry.runs.health import check_images, check_unchanged, fingerprint
from registry.runs.outputs import (
    Curves,
    draw_fakes,
    draw_start,
    draw_teacher,
    measure_snapshot,
    missing_grids,
    snapshot_name,
    take_up,
    write_network,
    write_table,
)
from registry.runs.starting import prepare, start_or_resume
from registry.runs.training import Saved, train
from registry.sample.pairs import teacher_pairs
from registry.sample.sampler import Sampler
from registry.show.journal import Journal
from registry.show.notebook import html_table
from registry.train import loop
from registry.train.generator import Generator
from registry.train.signs import signs


@dataclass
class Result:
    """What a distillation gives."""

    generator: Sampler
    """The generator with its averaged weights, ready to sample: the run's last snapshot."""
    rows: list[Row]
    """The table: the generator, its teacher with several numbers of evaluations, and real images against real images."""
    folder: Path
    """The run's folder."""

    def _repr_html_(self) -> str:
        """For notebooks: the table, and images of the generator."""
        columns = list(self.rows[0].values) if self.rows else []
        cells = [
            [row.name, "" if row.evaluations is None else str(row.evaluations), *(row.text(column) for column in columns)]
            for row in self.rows
        ]
        below = html_table(["", "evaluations", *columns], cells) if self.rows else ""
        return self.generator._repr_html_() + below


@torch_left_alone()
@usual_torch()
def distill(
    recipe: Given | Recipe,
    *,
    sets: Sets = (),
    loss: str | None = None,
    seed: int | None = None,
    outdir: str | os.PathLike[str] | None = None,
    resume: str | os.PathLike[str] | None = None,
    fresh_teacher: bool = False,
    journal: Journal | None = None,
) -> Result:
    """Distil a teacher as a recipe says (SiD Algorithm 1, IPFM Algorithm 1), and give the generator, its table and its folder.

    `recipe` is the path of a recipe, the name of a shipped one, a run folder, or a dict of tables. Over it are laid: `loss`, with
    what the recipe swaps with it; `seed` and `outdir` (where run folders are made); and `sets`, such as {"train.batch": 64}.
    `resume` is "auto" or the path of a training state or run folder; `fresh_teacher` measures the teacher again. torch's settings
    and random state are left as they were. Raises UserError before anything is written if something is wrong, Diverged if nothing
    is left to learn from, and Interrupted after a signal, when a state has been saved.
    """
    plugins = load_plugins()
    recipe = recipe_of(Recipe, recipe, plugins, sets, loss, seed, outdir)
    resume = None if resume is None else check_path("resume", resume)
    check_flag("fresh_teacher", fresh_teacher)
    device, found = prepare(recipe, resume)
    journal = journal or Journal()
    teacher, noise, loss_ = build(recipe, plugins)
    data = real_images(recipe.data, device, teacher) if recipe.data else None
    metrics = build_metrics(recipe.metrics, teacher)
    torch.manual_seed(recipe.train.seed * 1000 + distributed.rank())  # for dropout; the draws have streams of their own
    teacher.denoiser.to(device)
    generator = build_generator(recipe, teacher, noise)
    run = loop.Distillation(teacher, noise, loss_, recipe.train, device, generator, data, recipe.warmup)
    saved = Saved(run.learned(), recipe.tables(), generator_facts(recipe, teacher, noise, generator, data))

    start = partial(start_or_resume, recipe, run, saved, resume, found, journal)
    with interruptible(start) as folder, told_of(recipe.loss), held((recipe.teacher, teacher.denoiser), recipe.noise, noise):
        needed = partial(have_pairs, recipe, run, generator, teacher, noise, saved.clock, journal)
        needed()
        for line in (introduction(recipe, teacher, noise, generator, device, run.nimg), *teacher.remarks, *phases(run)):
            journal.log(line)
        curves = Curves(("regression", "student", "generator"), metrics)
        shown = range(2000 if teacher.image_shape == (2, 1, 1) else recipe.log.grid**2)  # points in the plane are drawn as a cloud
        take_up(folder, metrics, recipe, run.nimg, teacher.images)

        def snapshot() -> None:
            with run.averaged() as net:
                draw_fakes(folder, run.nimg, generator.sample(shown), recipe.log.grid, teacher.images)
                file = write_network(folder, snapshot_name(run.nimg, saved.tables), "generator", net, saved.facts, run.nimg)
                measure_snapshot(folder, metrics, generator.sample, recipe.eval, file, run.nimg, saved.clock.seconds)
            curves.draw(folder, saved.clock.seconds, run.nimg >= run.total)

        if run.nimg == 0:
            with run.averaged():
                draw_start(folder, generator.sample(shown), teacher.images, recipe)
        begun = partial(pictures_of, teacher, noise, generator.steps, folder, recipe)
        seen = partial(signs_and_teacher, run, fingerprint(run.teacher.state_dict()))
        train(partial(iterations, run, needed), run, recipe, folder, run.learners, saved, snapshot, seen, run.milestones, begun)
        rows = final_table(recipe, run, generator, teacher, noise, metrics, folder, fresh_teacher, saved.facts)
    journal.log(f"the run is in {folder.path}; its page: {folder.path / REPORT}")
    return Result(sampler_of(generator, teacher, saved.tables, folder.path), rows, folder.path)


def have_pairs(
    recipe: Recipe,
    run: loop.Distillation,
    generator: Generator,
    teacher: Teacher,
    noise: Noise,
    clock: Clock,
    journal: Journal,
) -> None:
    """Make what the generator learns in the warm-up, if the run is there and has none. Making it is a part of the training."""
    if run.nimg >= run.regression_end or run.pairs is not None:
        return
    clock.start()
    with whole_teacher(teacher) as f_star:
        run.pairs = teacher_pairs(f_star, noise, generator.sigmas, recipe.warmup.pairs, recipe.warmup.nfe, run.device, journal)
    clock.stop(run.device)


def iterations(run: loop.Distillation, needed: Callable[[], None]) -> Iterator[None]:
    """Those that are left, and what is needed for them: a run that was resumed after the warm-up may be rolled back into it."""
    needed()
    return loop.iterations(run)


def pictures_of(teacher: Teacher, noise: Noise, steps: int, folder: RunFolder, recipe: Recipe) -> None:
    """The teacher's grids, with which the generator's are compared. They take long: a run that fails at once fails before them."""
    if missing := missing_grids(folder, teacher.image_shape[1], steps):
        with whole_teacher(teacher) as f_star:
            draw_teacher(folder, f_star, noise, missing, recipe)


def sampler_of(generator: Generator, teacher: Teacher, tables: Tables, folder: Path) -> Sampler:
    """The generator as it is now, ready to sample."""
    domain = Domain(D=teacher.D, image_shape=teacher.image_shape, label_dim=teacher.label_dim, origin=str(folder))
    settings = {"network": str(folder), "weights": weights_hash(generator.net)}
    return Sampler(generator.net, generator.noise, domain, sigmas=generator.sigmas, settings=settings, recipe=tables)


def signs_and_teacher(run: loop.Distillation, before: int) -> dict[str, float]:
    """Signs of convergence, of a run whose teacher is what it was before. Raises UserError if a loss has written to it."""
    check_unchanged(run.teacher, "teacher", before)
    return signs(run)


def final_table(
    recipe: Recipe,
    run: loop.Distillation,
    generator: Generator,
    teacher: Teacher,
    noise: Noise,
    metrics: Metrics,
    folder: RunFolder,
    fresh_teacher: bool,
    facts: Mapping[str, Any],
) -> list[Row]:
    """Generator, teacher, floor; the generator is left with its averaged weights. Raises Diverged if its images are not finite."""
    with run.averaged() as net:
        check_images(generator.sample(range(8)), "generator", run.nimg)
        rows = [measured("generator", generator.steps, generator.sample, metrics, recipe.eval, folder.journal)] if metrics else []
        weights = {name: tensor.detach().clone() for name, tensor in net.state_dict().items()}
    if metrics:
        with whole_teacher(teacher) as f_star:
            rows += teacher_rows(f_star, noise, metrics, recipe.eval, folder.journal, fresh_teacher)
        rows.append(floor_row(metrics, recipe.eval))
        write_table(folder, rows, metrics, recipe.eval, run.nimg, facts)
    net.load_state_dict(weights)
    generator.net = net  # of a split generator, the whole copy
    return rows


@contextmanager
def whole_teacher(teacher: Teacher) -> Iterator[Teacher]:
    """The teacher with all of its weights in every process."""
    with whole(teacher.denoiser) as denoiser:
        yield teacher if denoiser is teacher.denoiser else replace(teacher, denoiser=denoiser)


def introduction(recipe: Recipe, teacher: Teacher, noise: Noise, generator: Generator, device: torch.device, nimg: int) -> str:
    """What is distilled, and how, in a line."""
    steps = f", {generator.steps} steps at sigma = {', '.join(f'{s:.4g}' for s in generator.sigmas)}" if generator.steps > 1 else ""
    start = f", beginning with the generator {Path(recipe.generator.init).name}" if recipe.generator.init and not nimg else ""
    return (
        f"distilling {Path(teacher.origin).name} (D = {noise.D:g}, {'×'.join(map(str, teacher.image_shape))}, "
        f"{parameter_count(generator.net)} parameters) with loss {recipe.loss.name!r} and noise {recipe.noise.name!r}{steps}{start}"
        f" on {device}{processes()}"
    )


def phases(run: loop.Distillation) -> list[str]:
    """What happens up to when, in a line, if there is a warm-up."""
    if not run.regression_end:
        return []
    alone = run.game_start > run.regression_end
    student = f"; to {run.game_start / 1000:g} kimg only the student learns, from the generator's images" if alone else ""
    game = f"; then the game, to {run.total / 1000:g} kimg" if run.total > run.game_start else ""
    return [f"warm-up: to {run.regression_end / 1000:g} kimg the generator learns the teacher's pairs{student}{game}"]


def processes() -> str:
    """How many devices, if several."""
    return f" × {distributed.world_size()}" if distributed.world_size() > 1 else ""
