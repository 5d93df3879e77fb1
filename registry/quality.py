"""How good: the table of generator, teacher and floor. The teacher's rows are kept beside its file."""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from rich.table import Table
from torch import Tensor

from registry import distributed
from registry.api import Metric, Noise, Teacher, UserError
from registry.downloads import cache_folder
from registry.files import write_atomically
from registry.generator import Generator
from registry.plugins import version
from registry.recipe import Choice, EvalConfig, plain
from registry.report import Journal, duration
from registry.sampling import heun_images
from registry.sources import shipped
from registry.streams import Streams

Metrics = Sequence[tuple[Choice, Metric]]
Sample = Callable[[range], Tensor]
"""Image seeds to images [n, C, H, W]."""


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
        if all(v.is_integer() for v in values) and len(set(values)) == 1:
            return f"{values[0]:.0f}"
        spread = statistics.stdev(values) if len(values) > 1 else 0.0
        return f"{self.mean(column):.3g} ± {spread:.2g}"


def measure(
    metrics: Metrics, sample: Sample, seeds: range, batch: int = 100, done: Callable[[int], None] | None = None
) -> dict[str, float]:
    """All metrics' numbers for the images of these seeds, of which a process has `batch` in memory at a time.

    The processes take batches in turn, and what they find does not depend on their number. All must call it.
    """

    def rows(part: range) -> list[Tensor]:
        images = sample(seeds[part.start : part.stop]).float()
        return [metric.embed(images) for _, metric in metrics]

    parts = distributed.share(len(seeds), batch, rows, done)
    found: dict[str, float] = {}
    if distributed.rank() == 0:
        for (_, metric), of_metric in zip(metrics, zip(*parts, strict=True), strict=True):
            found |= metric.compare(torch.cat(of_metric))
    return dict(distributed.from_rank0(found))


def seeds(config: EvalConfig, repeat: int) -> range:
    """The image seeds of one repeat: 0 … n−1, n … 2n−1, and so on, as EDM counts them."""
    return range(repeat * config.samples, (repeat + 1) * config.samples)


def label(choice: Choice, metric: Metric, samples: int) -> str:
    """A metric's name with the number of images: fid50k, or fid5k_proxy where a published number has more (`metric.protocol`)."""
    protocol: int | None = getattr(metric, "protocol", None)
    if protocol is None:
        return choice.name
    count = f"{samples // 1000}k" if samples % 1000 == 0 else str(samples)
    return f"{choice.name}{count}{'_proxy' if samples < protocol else ''}"


def entry(choice: Choice, metric: Metric, found: dict[str, float], samples: int, network: str, seconds: float) -> dict[str, Any]:
    """A measurement as EDM's lines of metric-*.jsonl have it."""
    return {
        "results": {column: found[column] for column in metric.columns},
        "metric": label(choice, metric, samples),
        "samples": samples,
        "num_gpus": distributed.world_size(),
        "snapshot_pkl": network,
        "total_time": seconds,
        "total_time_str": duration(seconds),
    }


def repeats(
    name: str, sample: Sample, metrics: Metrics, config: EvalConfig, journal: Journal
) -> Iterator[tuple[dict[str, float], float]]:
    """Every repeat's numbers, and the seconds that it took."""
    for repeat in range(config.repeats):
        start = time.monotonic()
        with journal.progress(f"measuring the {name}, {repeat + 1} of {config.repeats}", config.samples) as bar:
            found = measure(metrics, sample, seeds(config, repeat), config.batch, bar.at)
        yield found, time.monotonic() - start


def measured(name: str, evaluations: int, sample: Sample, metrics: Metrics, config: EvalConfig, journal: Journal) -> Row:
    """The row of whatever makes images from seeds."""
    row = Row(name, evaluations)
    for found, _ in repeats(name, sample, metrics, config, journal):
        row.add(found)
    return row


def generator_row(generator: Generator, metrics: Metrics, config: EvalConfig, journal: Journal) -> Row:
    """The generator."""
    return measured("generator", generator.steps, generator.sample, metrics, config, journal)


def floor_row(metrics: Metrics, config: EvalConfig) -> Row:
    """Real images against real images."""
    row = Row("floor: half of the real images", None)
    for repeat in range(config.repeats):
        for _, metric in metrics:
            row.add(metric.floor(repeat))
    return row


def sample_teacher(teacher: Teacher, noise: Noise, image_seeds: range, steps: int) -> Tensor:
    """Heun samples [n, C, H, W] of the teacher from sigma_max, one per seed (EDM Algorithm 1)."""
    device = next((t.device for t in (*teacher.denoiser.parameters(), *teacher.denoiser.buffers())), torch.device("cpu"))
    rng = Streams(image_seeds, device)
    return heun_images(teacher.denoiser, noise, teacher.image_shape, teacher.label_dim, steps, rng)[0]


def teacher_rows(
    teacher: Teacher, noise: Noise, metrics: Metrics, config: EvalConfig, journal: Journal, fresh: bool = False
) -> list[Row]:
    """The teacher's sampler at each number of steps: from where rows are kept, if they were measured the same way."""
    beside, shelf = shelves(teacher)
    kept: dict[str, Any] = {} if fresh else distributed.from_rank0(_kept(beside) | _kept(shelf))
    rows, anew = [], False
    for steps in config.teacher_steps:
        key = json.dumps(_terms(teacher, noise, metrics, config, steps), sort_keys=True)
        if key in kept:
            rows.append(Row(**kept[key]["row"]))
            rows[-1].note = f"measured {kept[key]['date']}"
            continue
        journal.log(f"measuring the teacher: {steps} Heun steps, {config.repeats} × {config.samples} images")

        def sample(part: range, steps: int = steps) -> Tensor:
            return sample_teacher(teacher, noise, part, steps)

        row = measured("teacher", 2 * steps - 1, sample, metrics, config, journal)
        kept[key] = {"row": asdict(row), "date": time.strftime("%Y-%m-%d"), "versions": versions()}
        rows.append(row)
        anew = True
    if anew and journal.active and shelf:
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
    half_precision = {"fp16": True} if getattr(teacher.denoiser, "use_fp16", False) else {}
    return half_precision | {
        "weights": teacher.provenance.get("weights"),
        "D": str(noise.D),
        "kernel": [round(v, 3) for v in noise.prior((1, 2, 2), 1.0, Streams([0])).flatten().tolist()],
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


def headings(metrics: Metrics, samples: int) -> dict[str, str]:
    """{column: heading}: a number that stands for its metric is called as that is (fid5k_proxy)."""
    return {
        column: label(choice, metric, samples) if column == choice.name else column
        for choice, metric in metrics
        for column in metric.columns
    }


def table(rows: Sequence[Row], metrics: Metrics, title: str, samples: int) -> Table:
    """The rows as a rich table."""
    columns = headings(metrics, samples)
    shown = Table(title=title, title_justify="left")
    shown.add_column("")
    shown.add_column("evaluations", justify="right")
    for heading in columns.values():
        shown.add_column(heading, justify="right")
    for row in rows:
        evaluations = "" if row.evaluations is None else str(row.evaluations)
        shown.add_row(row.name, evaluations, *(row.text(column) for column in columns))
    return shown
