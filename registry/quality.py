"""How good: the table of generator, teacher and floor. The teacher's rows are kept beside its file."""

from __future__ import annotations

import functools
import json
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from rich.table import Table
from torch import Tensor

from registry.api import Metric, Noise, Teacher, UserError
from registry.downloads import cache_folder
from registry.files import write_atomically
from registry.generator import Generator
from registry.plugins import version
from registry.recipe import Choice, EvalConfig, plain
from registry.report import Bar, Journal
from registry.sampling import heun, heun_levels
from registry.sources import shipped
from registry.streams import Streams

Metrics = Sequence[tuple[Choice, Metric]]


@dataclass
class Row:
    """One line of the table: every column's values, one per sampling seed."""

    name: str
    evaluations: int | None
    values: dict[str, list[float]] = field(default_factory=dict)
    note: str = ""

    def add(self, found: dict[str, float]) -> None:
        for column, value in found.items():
            self.values.setdefault(column, []).append(value)

    def mean(self, column: str) -> float:
        return statistics.fmean(self.values[column])

    def text(self, column: str) -> str:
        """mean ± standard deviation over the sampling seeds."""
        if column not in self.values:
            return "–"
        values = self.values[column]
        if all(v == int(v) for v in values) and len(set(values)) == 1:
            return f"{values[0]:.0f}"
        spread = statistics.stdev(values) if len(values) > 1 else 0.0
        return f"{self.mean(column):.3g} ± {spread:.2g}"


def measure(metrics: Metrics, images: Tensor) -> dict[str, float]:
    """All metrics' numbers for images [n, C, H, W]."""
    found: dict[str, float] = {}
    for _, metric in metrics:
        found |= metric(images.float().cpu())
    return found


def seeds(config: EvalConfig, repeat: int) -> range:
    """The image seeds of one repeat: 0 … n−1, n … 2n−1, and so on, as EDM counts them."""
    return range(repeat * config.samples, (repeat + 1) * config.samples)


def generator_row(generator: Generator, metrics: Metrics, config: EvalConfig, journal: Journal) -> Row:
    """The generator."""
    row = Row("generator", generator.steps)
    with journal.progress("measuring the generator", config.repeats) as bar:
        for repeat in range(config.repeats):
            row.add(measure(metrics, generator.sample(seeds(config, repeat))))
            bar.at(repeat + 1)
    return row


def floor_row(metrics: Metrics, config: EvalConfig) -> Row:
    """Real images against real images."""
    row = Row("floor: half of the real images", None)
    for repeat in range(config.repeats):
        for _, metric in metrics:
            row.add(metric.floor(repeat))
    return row


def sample_teacher(
    teacher: Teacher, noise: Noise, image_seeds: range, steps: int, progress: Callable[[int], None] | None = None, batch: int = 500
) -> Tensor:
    """Heun samples [n, C, H, W] of the teacher from sigma_max, one per seed (EDM Algorithm 1)."""
    device = next((t.device for t in (*teacher.denoiser.parameters(), *teacher.denoiser.buffers())), torch.device("cpu"))
    levels = heun_levels(steps, noise.sigma_min, noise.sigma_max, noise.rho)
    parts = []
    for i in range(0, len(image_seeds), batch):
        rng = Streams(image_seeds[i : i + batch], device)
        z = noise.prior(teacher.image_shape, noise.sigma_max, rng)
        parts.append(heun(teacher.denoiser, z, levels, rng.one_hot(teacher.label_dim)).float())
        if progress:
            progress(i + len(rng))
    return torch.cat(parts)


def teacher_rows(
    teacher: Teacher, noise: Noise, metrics: Metrics, config: EvalConfig, journal: Journal, fresh: bool = False
) -> list[Row]:
    """The teacher's sampler at each number of steps: from where rows are kept, if they were measured the same way."""
    beside, shelf = shelves(teacher)
    kept = {} if fresh else _kept(beside) | _kept(shelf)
    rows, measured = [], False
    for steps in config.teacher_steps:
        key = json.dumps(_terms(teacher, noise, metrics, config, steps), sort_keys=True)
        if key in kept:
            rows.append(Row(**kept[key]["row"]))
            rows[-1].note = f"measured {kept[key]['date']}"
            continue
        row = Row("teacher", 2 * steps - 1)
        with journal.progress(f"measuring the teacher, {steps} Heun steps", config.repeats * config.samples) as bar:
            for repeat in range(config.repeats):
                before = repeat * config.samples
                journal.log(
                    f"measuring the teacher: {steps} Heun steps, {config.samples} images, part {repeat + 1} of {config.repeats}"
                )
                done = functools.partial(_advance, bar, before)
                images = sample_teacher(teacher, noise, seeds(config, repeat), steps, done)
                row.add(measure(metrics, images))
        kept[key] = {"row": asdict(row), "date": time.strftime("%Y-%m-%d"), "versions": versions()}
        rows.append(row)
        measured = True
    if measured and journal.active and shelf:
        content = [{"measured": json.loads(key), **value} for key, value in (_kept(shelf) | kept).items()]
        try:
            write_atomically(shelf, (json.dumps(content, indent=1) + "\n").encode())
            journal.log(f"the teacher's rows are kept in {shelf}")
        except UserError:
            journal.log(f"the teacher's rows could not be kept in {shelf.parent}; they will be measured again")
    return rows


def shelves(teacher: Teacher) -> tuple[Path | None, Path | None]:
    """Where a teacher's rows lie beside its file, and where new ones are put: there too, but for shipped teachers in the cache."""
    if teacher.path is None:
        return None, None
    beside = teacher.path.with_suffix(".quality.json")
    if teacher.path.is_relative_to(shipped()) and not teacher.provenance.get("fresh_from_training"):
        return beside, cache_folder() / "quality" / beside.name
    return beside, beside


def _advance(bar: Bar, before: int, done: int) -> None:
    bar.at(before + done)


def _kept(shelf: Path | None) -> dict[str, dict[str, Any]]:
    if shelf is None:
        return {}
    try:
        entries = json.loads(shelf.read_text())
        return {json.dumps(e["measured"], sort_keys=True): {k: e[k] for k in ("row", "date", "versions")} for e in entries}
    except (OSError, ValueError, KeyError, TypeError):
        return {}


def _terms(teacher: Teacher, noise: Noise, metrics: Metrics, config: EvalConfig, steps: int) -> dict[str, Any]:
    """All that a teacher's row depends on."""
    return {
        "weights": teacher.provenance.get("weights"),
        "D": str(noise.D),
        "levels": [noise.sigma_min, noise.sigma_max, noise.rho],
        "steps": steps,
        "samples": config.samples,
        "repeats": config.repeats,
        "metrics": {choice.name: plain(choice.config) for choice, _ in metrics},
        "reference": {choice.name: getattr(metric, "fingerprint", None) for choice, metric in metrics},
    }


def versions() -> dict[str, str]:
    """What measured it."""
    return {"distill": version(), "torch": str(torch.__version__)}


def table(rows: Sequence[Row], metrics: Metrics, title: str) -> Table:
    """The rows as a rich table."""
    columns = [column for _, metric in metrics for column in metric.columns]
    shown = Table(title=title, title_justify="left")
    shown.add_column("")
    shown.add_column("evaluations", justify="right")
    for column in columns:
        shown.add_column(column, justify="right")
    for row in rows:
        evaluations = "" if row.evaluations is None else str(row.evaluations)
        shown.add_row(row.name, evaluations, *(row.text(column) for column in columns))
    return shown
