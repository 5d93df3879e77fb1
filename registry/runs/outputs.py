"""What a snapshot and the end of a run write: pictures, the network's file, its metrics, the best snapshot, the final table."""

from __future__ import annotations

import filecmp
import hashlib
import json
import math
import time
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from rich.text import Text
from torch import Tensor, nn

from registry.core import distributed
from registry.core.contracts import Noise, Teacher
from registry.core.errors import UserError
from registry.core.text import shown
from registry.core.version import versions
from registry.edm.networks import Precond
from registry.files.formats import save_network
from registry.files.json_files import kept, with_digest
from registry.files.locate import RECIPE
from registry.measure.measuring import Sample, measure
from registry.measure.protocol import compared_with, difference, in_words, protocols
from registry.measure.rows import Metrics, Row, entry, headings, summary, table
from registry.measure.saved import BEST, MADE_FROM, learned_by
from registry.recipe.resolved import Choice, PretrainRecipe, Recipe, Tables
from registry.recipe.tables import EvalConfig
from registry.report.render import write_report
from registry.runs.folder import RunFolder
from registry.runs.states import images_of
from registry.sample.heun import heun_samples
from registry.sample.steps import heun_steps
from registry.show.figures import save_curves
from registry.show.images import read_images
from registry.show.pictures import save_samples
from registry.train.signs import BANDS

MOST_OF_TEACHER = 256
"""Images in the teacher's grids, which take many evaluations."""


def draw_fakes(folder: RunFolder, nimg: int, images: Tensor, columns: int, real: Tensor | None = None) -> None:
    """fakes_NNNNNN.png: a snapshot's grid of samples, or points in the plane against the real ones."""
    name = f"fakes_{nimg // 1000:06d}.png"
    folder.picture(lambda place: save_samples(place / name, images, columns, real), name, nimg)


def draw_start(folder: RunFolder, images: Tensor, real: Tensor | None, recipe: Recipe) -> None:
    """fakes_init.png: the generator's images before training. And real.png, where the teacher or the recipe has real images."""
    columns, name = recipe.log.grid, "fakes_init.png"
    folder.picture(lambda place: save_samples(place / name, images, columns, real), name)
    draw_real(folder, recipe, real)


def missing_grids(folder: RunFolder, resolution: int, steps: int) -> list[int]:
    """The numbers of evaluations of which there is no grid of the teacher's yet: all of its own, and about as many as the generator
    takes."""
    wanted = (2 * heun_steps(resolution, None, None) - 1, steps + 1 - steps % 2)  # Heun takes an odd number
    return distributed.by_rank0(lambda: [nfe for nfe in wanted if not (folder.path / grid_name(nfe)).exists()])


def grid_name(nfe: int) -> str:
    return f"teacher-{nfe:03d}.png"


def draw_teacher(folder: RunFolder, teacher: Teacher, noise: Noise, evaluations: Sequence[int], recipe: Recipe) -> None:
    """teacher-N.png: what to compare the generator's images of the same seeds with. Raises Interrupted after a signal."""
    columns = recipe.log.grid
    n = min(columns**2, MOST_OF_TEACHER)

    def sampled(nfe: int, part: range) -> Tensor:
        return heun_samples(teacher.denoiser, noise, teacher, part, (nfe + 1) // 2, shared=True).cpu()

    for nfe in evaluations:
        images = torch.cat(distributed.share(n, recipe.eval.batch, partial(sampled, nfe)))
        folder.picture(partial(save_grid, name=grid_name(nfe), images=images, columns=columns), grid_name(nfe))


def take_up(folder: RunFolder, metrics: Metrics, recipe: Recipe | PretrainRecipe, nimg: int, real: Tensor | None = None) -> None:
    """See to what a run finds in its folder: it may have been killed between a line and the best snapshot's copy, and metrics may
    compare with other images than before."""
    try:
        for choice, metric in metrics:
            lines = folder.lines(f"metric-{choice.name}.jsonl") if folder.writes else ()
            before = [known for line in lines if isinstance(known := line.get("compared_with"), dict)]
            if before and (other := difference(compared_with(metric), before[-1])):
                folder.journal.log(f"WARNING {choice.name} is measured otherwise than before: {other}; its best number begins anew")
                draw_real(folder, recipe, real)
        keep_best(folder, metrics, nimg)
    except OSError as error:  # a disk that does not answer at present
        folder.journal.log(f"WARNING {error.filename}: {error.strerror}; the run goes on")


def draw_real(folder: RunFolder, recipe: Recipe | PretrainRecipe, real: Tensor | None = None) -> None:
    """real.png: a grid of real images: the teacher's own, or those that the recipe names, if it does."""
    columns, source = recipe.log.grid, recipe.data.source if recipe.data else recipe.eval.reference
    n = min(columns**2, MOST_OF_TEACHER)
    if real is not None:
        folder.picture(lambda place: save_samples(place / "real.png", real[:n], columns), "real.png")
    elif source and source != "teacher" and not source.endswith(".npz"):
        folder.picture(lambda place: save_samples(place / "real.png", read_images(source, n).x()[:n], columns), "real.png")


def save_grid(place: Path, name: str, images: Tensor, columns: int) -> None:
    save_samples(place / name, images, columns)


def draw_page(folder: RunFolder) -> None:
    """report.html. Nothing that goes wrong with it ends a run."""
    try:
        folder.picture(write_report)
    except Exception as error:
        folder.journal.log(f"WARNING the page of the run cannot be made: {shown(error, 200)}")


def snapshot_name(nimg: int, tables: Tables) -> str:
    """As EDM names snapshots, and as SiD does where the loss has an alpha."""
    alpha = tables.get("loss", {}).get("alpha")
    return f"network-snapshot-{f'{alpha:03f}-' if isinstance(alpha, int | float) else ''}{nimg // 1000:06d}"


def write_network(folder: RunFolder, name: str, kind: str, net: nn.Module, facts: Mapping[str, Any], nimg: int) -> str:
    """The network's file under this name, in EDM's format if it is EDM's network; gives the file's name."""
    folder.keep_there()
    path = folder.path / f"{name}{'.pkl' if isinstance(net, Precond) else '.pt'}"
    distributed.by_rank0(lambda: save_network(path, kind, net, {**facts, "nimg": nimg, "versions": versions()}))
    return path.name


def measure_snapshot(
    folder: RunFolder, metrics: Metrics, sample: Sample, config: EvalConfig, file: str, nimg: int, trained: float
) -> None:
    """Measure the network of a snapshot's file, if [eval] asks for it; all processes take part. `trained`: seconds of training."""
    n = config.snapshot_samples
    if not n or not metrics:
        return
    start = time.monotonic()
    with folder.journal.progress("measuring the snapshot", n) as bar:
        found = measure(metrics, sample, range(n), config.batch, bar.at)
    seconds, kimg, learned = time.monotonic() - start, nimg / 1000, learned_by(folder.path / RECIPE)
    for choice, metric in metrics:
        line = entry(choice, metric, found, n, file, seconds) | {"kimg": kimg, "train_seconds": trained, "learned_by": learned}
        folder.append(line, f"metric-{choice.name}.jsonl")
    numbers = "  ".join(f"{name} {found[column]:.4g}" for column, name in headings(metrics, n).items())
    folder.journal.log(f"kimg {kimg:<9.1f} {numbers}  ({n} samples)")
    keep_best(folder, metrics, nimg)


def keep_best(folder: RunFolder, metrics: Metrics, nimg: int) -> None:
    """Copy the snapshot with the best first number of the first metric to network-snapshot-best, unless it is there already.

    The choice is made from the lines in the folder. A best one of more than `nimg` images, which a resumed run comes to again,
    stays until then: its snapshot may be gone. A run may have been killed before it had written down which snapshot the copy is of,
    and somebody may have removed it: so both are compared.
    """
    if not folder.writes or not metrics:
        return
    choice, metric = metrics[0]
    column = metric.columns[0]
    found = [e for e in measurements(folder, choice, column) if not math.isnan(e["results"][column])]
    if not found:
        return
    sign = -1 if column in metric.higher else 1
    first = min(found, key=lambda e: sign * float(e["results"][column]))
    snapshot, note = folder.path / first["snapshot_pkl"], folder.path / "best.json"
    best = {"kimg": first["kimg"], "metric": first["metric"], "column": column, "value": first["results"][column]}
    content = (json.dumps(with_digest(best | {"file": snapshot.name})) + "\n").encode()
    copy = folder.path / f"network-snapshot-best{snapshot.suffix}"
    before = kept(note, BEST)
    if before is not None and before.kimg > nimg / 1000 and copy.is_file():
        return
    try:
        if not snapshot.is_file():
            return
        if not (copy.is_file() and filecmp.cmp(snapshot, copy, shallow=False)):
            made = images_of(snapshot)
            if not made:
                raise UserError(f"{snapshot}: cannot be read, or does not say how many images it has seen")
            if made != round(1000 * first["kimg"]):  # replaced by a later one within the same thousand images
                return
            folder.write(copy.name, snapshot.read_bytes())
        if not (note.is_file() and note.read_bytes() == content):
            folder.write(note.name, content)
    except (OSError, UserError) as error:  # a disk that is full, or does not answer at present: the snapshot itself is there
        what = f"{snapshot}: {error.strerror}" if isinstance(error, OSError) else str(error)
        folder.journal.log(f"WARNING {what}; the best snapshot is not kept this time")


def measurements(folder: RunFolder, choice: Choice, column: str) -> list[dict[str, Any]]:
    """The lines of a metric that have this column and can be compared."""
    lines = [line for line in folder.lines(f"metric-{choice.name}.jsonl") if {"results", "metric", "snapshot_pkl"} <= line.keys()]
    return alike([line for line in lines if column in line["results"]])


def alike(lines: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Those of a metric's lines that are measured like the last. Others cannot be compared with it."""
    keys = ("metric", "samples", "compared_with")  # version 0.1 did not write the last
    last = lines[-1] if lines else {}
    return [line for line in lines if all(line.get(key, last.get(key)) == last.get(key) for key in keys)]


class Curves:
    """report.html, and curves.png: every learner's loss, and the first column of every metric, over kimg. Both are made at
    snapshots, but after the first one curves no more often than a tenth of the time allows, and at the end."""

    def __init__(self, losses: tuple[str, ...], metrics: Metrics) -> None:
        self.losses, self.metrics = losses, metrics
        self.spent, self.takes = 0.0, 0.0  # seconds: of all drawings, of one

    def draw(self, folder: RunFolder, trained: float, last: bool) -> None:
        """Draw the page, and the curves if it is time. `trained`: seconds of training."""
        if folder.writes and (last or not self.spent or self.spent + self.takes <= 0.1 * trained):
            start = time.monotonic()
            panels = self.panels(folder)
            folder.picture(lambda place: save_curves(place / "curves.png", panels, place.name))
            self.takes = time.monotonic() - start
            self.spent += self.takes
        draw_page(folder)

    def panels(self, folder: RunFolder) -> list[Any]:
        """The curves of each panel, as `save_curves` wants them."""
        stats = folder.lines()
        found: list[Any] = [(f"{name}'s loss", {name: course(stats, f"Loss/{name}")}, False) for name in self.losses]
        found.append(("gap", {band: course(stats, f"Gap/{band}") for band in ("all", *BANDS)}, True))
        for choice, metric in self.metrics:
            column = metric.columns[0]
            lines = measurements(folder, choice, column)
            found.append((column, {column: ([e["kimg"] for e in lines], [e["results"][column] for e in lines])}, True))
        return found


def course(stats: list[dict[str, Any]], key: str) -> tuple[list[float], list[float]]:
    """A number of the statistics over kimg, where it is there."""
    lines = [line for line in stats if key in line]
    return [line["Progress/kimg"]["mean"] for line in lines], [line[key]["mean"] for line in lines]


def write_table(
    folder: RunFolder, rows: list[Row], metrics: Metrics, config: EvalConfig, nimg: int, facts: Mapping[str, Any]
) -> None:
    """The final table, printed and kept as quality.txt and quality.json, with the network's facts that say what it was made from;
    the best snapshot is there, too, from then on."""
    keep_best(folder, metrics, nimg)
    spread = f"mean ± standard deviation of {config.repeats} sampling seeds" if config.repeats > 1 else "one sampling seed"
    title = f"{nimg / 1000:g} kimg: {config.samples} samples, {spread}"
    measured_like = protocols(metrics, config)
    shown = table(rows, metrics, title, config.samples)
    shown.caption = Text("\n".join(f"{name}: {line}" for name, line in in_words(measured_like.values()).items()))
    shown.caption_justify = "left"
    folder.journal.table(shown, "quality.txt")
    content = {
        "nimg": nimg,
        "samples": config.samples,
        "columns": {choice.name: list(metric.columns) for choice, metric in metrics},
        "rows": [vars(row) | {"summary": {column: summary(row.values[column]) for column in row.values}} for row in rows],
        "protocols": measured_like,
        "learned_by": learned_by(folder.path / RECIPE),
        "made_from": {what: hashlib.sha256(facts[what].encode()).hexdigest()[:16] for what in MADE_FROM if facts.get(what)},
        **({"changed": folder.changed} if folder.changed else {}),
        "higher_is_better": [column for _, metric in metrics for column in metric.higher],
        "versions": versions(),
    }
    folder.write("quality.json", (json.dumps(with_digest(content), indent=1) + "\n").encode())
    draw_page(folder)
