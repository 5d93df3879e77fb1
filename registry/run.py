"""A recipe from beginning to end: build the components, run the loop, leave networks, pictures and numbers."""

from __future__ import annotations

import hashlib
import json
import math
import re
import signal
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from registry import distributed, features, quality
from registry.api import Loss, Metric, Noise, Teacher, UserError
from registry.descent import mode
from registry.edm.datasets import load_images
from registry.edm.networks import EDMPrecond
from registry.files import save_network, weights_hash, write_atomically
from registry.generator import Generator
from registry.loop import Distillation
from registry.loop import distill as run_loop
from registry.pictures import save_curves, save_samples
from registry.plugins import load_plugins
from registry.pretrain import Pretraining, build_network
from registry.pretrain import pretrain as run_pretraining
from registry.recipe import (
    Choice,
    EvalConfig,
    FeaturesRecipe,
    LogConfig,
    PretrainConfig,
    PretrainRecipe,
    Recipe,
    TrainConfig,
    dumps,
    expect,
    resolve,
)
from registry.report import Journal, check_outdir, duration, memory_mb, new_run_folder
from registry.state import load_state, save_state


class Interrupted(Exception):
    """The run was asked to stop, and did: its state is kept. `code` is the exit code."""

    def __init__(self, message: str, code: int) -> None:
        super().__init__(message)
        self.code = code


@dataclass
class Result:
    """What a distillation leaves: the generator (with its averaged weights), the table's rows, and the run folder."""

    generator: Generator
    rows: list[quality.Row]
    folder: Path


class Players(Protocol):
    """What both kinds of training have in common."""

    nimg: int
    device: torch.device

    @property
    def total(self) -> int: ...


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
    state = find_state(resume, Path(recipe.log.outdir), recipe.path.stem)
    check_outdir(Path(recipe.log.outdir))
    device = distributed.start(recipe.train.device)
    check_batch(recipe.train)
    journal = journal or Journal()

    teacher, noise, loss_ = build(recipe)
    metrics = build_metrics(recipe.metrics, teacher)
    torch.manual_seed(recipe.train.seed * 1000 + distributed.rank())  # for dropout; the draws have streams of their own
    run = Distillation(teacher, noise, loss_, recipe.train, device)
    about = {
        "D": noise.D, "sigma_data": teacher.sigma_data, "sigma_init": noise.sigma_init, "steps": recipe.generator.steps,
        "teacher": teacher.origin, "teacher_weights": teacher.provenance.get("weights", ""), "recipe": training_tables(recipe),
        "recipe_hash": hashlib.sha256(dumps(training_tables(recipe)).encode()).hexdigest()[:16],
    }  # fmt: skip

    shown = range(2000 if teacher.image_shape == (2, 1, 1) else recipe.log.grid**2)  # points in the plane are drawn as a cloud

    def snapshot(desk: Desk) -> None:
        with run.ema.averaged() as net:
            desk.samples(run.generator.sample(shown), recipe.log.grid, teacher.images)
            desk.network("generator", net, about)
            if recipe.eval.snapshot_samples and metrics:
                found = quality.measure(metrics, run.generator.sample(range(recipe.eval.snapshot_samples)))
                desk.metric(metrics, found, recipe.eval.snapshot_samples)
        desk.curves({"student": "Loss/student", "generator": "Loss/generator"}, metrics)

    desk = Desk(journal, recipe.log, run, run.parts, recipe.tables(), recipe.path.stem, snapshot)
    desk.tallies = {"student": run.student.tally, "generator": run.generating.tally}
    desk.begin(state)
    if resume and state is None:
        journal.log(f"nothing to resume in {recipe.log.outdir}; starting anew")
    journal.log(
        f"distilling {Path(teacher.origin).name} (D = {noise.D:g}, {'×'.join(map(str, teacher.image_shape))}, "
        f"{count(run.generator.net)} parameters) with loss {recipe.loss.name!r} and noise {recipe.noise.name!r} on {device}"
        + (f" × {distributed.world_size()}" if distributed.world_size() > 1 else "")
    )
    if run.nimg == 0:
        desk.samples(run.generator.sample(shown), recipe.log.grid, teacher.images, name="fakes_init.png")
    with desk.running():
        run_loop(run, desk)

    with run.ema.averaged() as net:
        rows = [quality.generator_row(run.generator, metrics, recipe.eval, journal)] if metrics else []
        weights = {name: tensor.detach().clone() for name, tensor in net.state_dict().items()}
    if metrics and distributed.rank() == 0:
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
    state = find_state(resume, Path(recipe.log.outdir), recipe.path.stem)
    check_outdir(Path(recipe.log.outdir))
    if save:
        check_outdir(Path(save).parent)
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
    noise: Noise = recipe.noise.component.make(recipe.noise.config, teacher)
    metrics = build_metrics(recipe.metrics, teacher)
    torch.manual_seed(recipe.train.seed * 1000 + distributed.rank())
    run = Pretraining(net, noise, images, recipe.train, device)
    about = {"D": noise.D, "sigma_data": teacher.sigma_data, "data": recipe.data.source, "recipe": training_tables(recipe)}

    def snapshot(desk: Desk) -> None:
        with run.ema.averaged() as averaged, eval_mode(averaged):
            fakes = quality.sample_teacher(teacher, noise, range(recipe.log.grid**2), 18)
            desk.samples(fakes, recipe.log.grid)
            desk.network("denoiser", averaged, about)
        desk.curves({"denoiser": "Loss/denoiser"}, metrics)

    desk = Desk(journal, recipe.log, run, run.parts, recipe.tables(), recipe.path.stem, snapshot)
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
            teacher.origin = str(target.resolve())
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
    check_outdir(path.parent)
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
    teacher: Teacher = recipe.teacher.component.make(recipe.teacher.config)
    for choice in (recipe.noise, recipe.loss):
        reason = choice.config.misfit(teacher.D)
        if reason:
            raise UserError(f"{recipe.path}: [{choice.kind}] use = {choice.name!r}: {reason}")
    noise: Noise = recipe.noise.component.make(recipe.noise.config, teacher)
    if noise.D != teacher.D:
        raise UserError(f"{recipe.path}: [noise] {recipe.noise.name!r} has D = {noise.D:g}, the teacher has D = {teacher.D:g}")
    return teacher, noise, recipe.loss.component.make(recipe.loss.config, teacher)


def build_metrics(choices: tuple[Choice, ...], teacher: Teacher) -> list[tuple[Choice, Metric]]:
    return [(choice, choice.component.make(choice.config, teacher)) for choice in choices]


def training_tables(recipe: Recipe | PretrainRecipe) -> dict[str, Any]:
    """What a network's file tells of its recipe: all but where the run was logged and how it was measured."""
    return {name: table for name, table in recipe.tables().items() if name not in ("log", "eval")}


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


# ------------------------------------------------------------------------------------------------------- the desk


class Desk:
    """Between the loop and the run folder: called after every iteration, it knows when something is due.

    Ticks are counted in images, so a resumed run has them where an uninterrupted one has.
    """

    def __init__(
        self,
        journal: Journal,
        log: LogConfig,
        run: Any,
        parts: Mapping[str, Any],
        tables: dict[str, Any],
        description: str,
        snapshot: Callable[[Desk], None],
    ) -> None:
        self.journal, self.log, self.run, self.parts, self.tables = journal, log, run, parts, tables
        self.description, self.snapshot = description, snapshot
        self.tallies: dict[str, Any] = {}
        self.folder = Path()
        self.signal = 0
        self._told: set[str] = set()
        self._said = ""

    @property
    def kimg(self) -> float:
        return float(self.run.nimg) / 1000

    def begin(self, state: Path | None) -> None:
        """Make the run folder, or step into the one that is resumed."""
        if state is None:
            folder = new_run_folder(Path(self.log.outdir), self.description) if distributed.rank() == 0 else None
            self.folder = distributed.from_rank0(folder)
            self.journal.open(self.folder)
            if distributed.rank() == 0:
                write_atomically(self.folder / "recipe.toml", dumps(self.tables).encode())
        else:
            old = torch.load(state, map_location="cpu", weights_only=True).get("recipe", {}) if state.is_file() else {}
            self.run.nimg = load_state(state, self.parts)
            self.folder = state.parent
            self.journal.open(self.folder)
            self.journal.forget_after(self.kimg)
            self.journal.log(f"resuming at {self.kimg:.3f} kimg from {state}")
            for difference in differences(old, self.tables):
                self.journal.log(f"changed since that state was written: {difference}")
            if distributed.rank() == 0:
                write_atomically(self.folder / "recipe.toml", dumps(self.tables).encode())
        self._since, self._tick_start = self.run.nimg, time.monotonic()

    @contextmanager
    def running(self) -> Iterator[None]:
        """While the loop runs: the progress bar, and signals that stop it after the iteration. A second one stops at once."""

        def stop(number: int, frame: Any) -> None:
            if self.signal:
                raise KeyboardInterrupt
            self.signal = number

        previous = {s: signal.signal(s, stop) for s in (signal.SIGINT, signal.SIGTERM)}
        try:
            with self.journal.progress(self.description, math.ceil(self.run.total / 1000 * 10) / 10) as self._bar:
                yield
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)

    def __call__(self, run: Players) -> bool:
        """After an iteration: tick, snapshot, state where they are due. True = stop."""
        now = time.monotonic()
        speed = (run.nimg - self._since) / max(now - self._tick_start, 1e-9)
        self._bar.at(round(self.kimg, 1), f"kimg  {speed:.0f} img/s  {self._said}")
        tick = self.log.tick_kimg * 1000
        batch = self.tables["train"]["batch"]
        ticks, done = int(run.nimg / tick), run.nimg >= run.total
        ticked = ticks > int((run.nimg - batch) / tick)
        if ticked or done:
            self.tick(ticks, speed)
        if (ticked and ticks % self.log.snapshot_ticks == 0) or done:
            self.snapshot(self)
        if (ticked and ticks % self.log.state_ticks == 0) or done:
            self.state()
        if ticked or done:
            self._since, self._tick_start = run.nimg, time.monotonic()
        if distributed.any_(bool(self.signal), run.device) and not done:
            path = self.state()
            raise Interrupted(
                f"interrupted at {self.kimg:.3f} kimg; the state is kept, continue with --resume {path}", 128 + (self.signal or 2)
            )
        return False

    def tick(self, ticks: int, speed: float) -> None:
        """One line of the log and of stats.jsonl."""
        entry: dict[str, Any] = {}
        said = []
        for name, tally in self.tallies.items():
            found = tally.read()
            entry[f"Loss/{name}"] = {k: found[k] for k in ("num", "mean", "std")}
            said.append(f"{name} {found['mean']:.4g}")
            for what, text in (
                ("dropped", "images with non-finite loss dropped"),
                ("repaired", "non-finite gradient values replaced"),
            ):
                entry[f"Guard/{name}_{what}"] = one(found[what])
                if found[what]:
                    said.append(f"WARNING {name}: {found[what]:.0f} {text}")
        memory = memory_mb(self.run.device)
        self._said = f"{'  '.join(said)}  {memory:.0f} MB"  # stands behind the bar until the next tick
        entry |= {
            "Progress/tick": one(ticks), "Progress/kimg": one(self.kimg),
            "Timing/img_per_sec": one(speed), "Resources/peak_mem_mb": one(memory),
        }  # fmt: skip
        self.journal.stats(entry)
        eta = (self.run.total - self.run.nimg) / max(speed, 1e-9)
        self.journal.log(
            f"kimg {self.kimg:<9.1f} {'  '.join(said)}  {speed:.0f} img/s  eta {duration(max(eta, 0))}  {memory:.0f} MB"
        )

    def state(self) -> Path:
        path = self.folder / f"training-state-{int(self.kimg):06d}.pt"
        save_state(path, self.parts, self.run.nimg, self.tables)
        return path

    def samples(self, images: Tensor, columns: int, real: Tensor | None = None, name: str | None = None) -> None:
        """A grid of samples (or a scatter plot of points)."""
        if distributed.rank() == 0:
            path = self.folder / (name or f"fakes_{int(self.kimg):06d}.png")
            self.picture(lambda: save_samples(path, images, columns, real))

    def network(self, kind: str, net: nn.Module, about: dict[str, Any]) -> None:
        if distributed.rank() == 0:
            path = self.folder / f"{self.snapshot_name()}{'.pkl' if isinstance(net, EDMPrecond) else '.pt'}"
            save_network(path, kind, net, about | {"nimg": self.run.nimg, "versions": quality.versions()})

    def snapshot_name(self) -> str:
        """As EDM names snapshots, and as SiD does where the loss has an alpha."""
        alpha = self.tables.get("loss", {}).get("alpha")
        return f"network-snapshot-{'' if alpha is None else f'{alpha:03f}-'}{int(self.kimg):06d}"

    def metric(self, metrics: quality.Metrics, found: dict[str, float], samples: int) -> None:
        """One line of metric-NAME.jsonl per metric, and one of the log."""
        for choice, metric in metrics:
            results = {column: found[column] for column in metric.columns}
            entry = {
                "results": results, "metric": choice.name, "num_gpus": distributed.world_size(), "samples": samples,
                "kimg": self.kimg, "snapshot_pkl": f"{self.snapshot_name()}.pkl",
            }  # fmt: skip
            self.journal.stats(entry, f"metric-{choice.name}.jsonl")
        told = "  ".join(f"{column} {value:.4g}" for column, value in found.items())
        self.journal.log(f"kimg {self.kimg:<9.1f} {told}  ({samples} samples)")

    def curves(self, losses: dict[str, str], metrics: quality.Metrics) -> None:
        """curves.png: every loss, and the first column of every metric, over kimg."""
        if distributed.rank() != 0:
            return
        stats = self.journal.read_stats()
        x = [entry["Progress/kimg"]["mean"] for entry in stats]
        panels: list[Any] = [
            (f"{name}'s loss", {name: (x, [entry[key]["mean"] for entry in stats])}, False) for name, key in losses.items()
        ]
        for choice, metric in metrics:
            lines = self.journal.read_stats(f"metric-{choice.name}.jsonl")
            column = metric.columns[0]
            panels.append((column, {column: ([e["kimg"] for e in lines], [e["results"][column] for e in lines])}, True))
        self.picture(lambda: save_curves(self.folder / "curves.png", panels, self.folder.name))

    def picture(self, draw: Callable[[], None]) -> None:
        """Draw, or say once what is missing: a run is not lost for want of a plotting library."""
        try:
            draw()
        except UserError as error:
            if str(error) not in self._told:
                self._told.add(str(error))
                self.journal.log(f"no picture: {error}")

    def quality(self, rows: list[quality.Row], metrics: quality.Metrics, config: EvalConfig) -> None:
        """The final table, printed and kept as quality.txt and quality.json."""
        title = f"{config.samples} samples, mean ± standard deviation of {config.repeats} sampling seeds"
        self.journal.table(quality.table(rows, metrics, title), "quality.txt")
        content = {"samples": config.samples, "rows": [vars(row) for row in rows], "versions": quality.versions()}
        write_atomically(self.folder / "quality.json", (json.dumps(content, indent=1) + "\n").encode())


def one(value: float) -> dict[str, float]:
    """A single number in EDM's form of statistics."""
    return {"num": 1, "mean": value, "std": 0}


def differences(old: Mapping[str, Any], new: Mapping[str, Any], ignore: tuple[str, ...] = ("log", "eval")) -> list[str]:
    """What a resumed run does otherwise than the one that wrote its state."""
    found = []
    for table in sorted({*old, *new} - set(ignore)):
        a, b = old.get(table, {}), new.get(table, {})
        found += [f"[{table}] {key}: {a.get(key)} -> {b.get(key)}" for key in sorted({*a, *b}) if a.get(key) != b.get(key)]
    return found


def find_state(resume: str | None, outdir: Path, description: str) -> Path | None:
    """The training state to resume from: 'auto' is the newest of the newest run of this recipe. Raises UserError."""
    if resume is None:
        return None
    if resume == "auto":
        runs = sorted(p for p in outdir.glob(f"*-{description}") if re.match(r"\d{5}-", p.name)) if outdir.is_dir() else []
        return next((s for folder in reversed(runs) if (s := newest_state(folder))), None)
    path = Path(resume).expanduser()
    if path.is_dir():
        state = newest_state(path)
        if state is None:
            raise UserError(f"--resume {resume}: there is no training-state-*.pt in this folder")
        return state
    if not path.is_file():
        raise UserError(f"--resume {resume}: no such file or folder; give 'auto', a training state, or a run folder")
    return path


def newest_state(folder: Path) -> Path | None:
    return max(folder.glob("training-state-*.pt"), default=None, key=lambda p: p.name)
