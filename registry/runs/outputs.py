"""What a snapshot and the end of a run write: pictures, the network's file, its metrics, the best snapshot, the final table."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from registry.core.contracts import Metric
from registry.core.version import versions
from registry.edm.networks import Precond
from registry.files.formats import save_network
from registry.measure.measuring import Sample, measure
from registry.measure.rows import Metrics, Row, entry, headings, table
from registry.recipe.resolved import Choice, Tables
from registry.recipe.tables import EvalConfig
from registry.runs.folder import RunFolder
from registry.show.figures import save_curves
from registry.show.pictures import save_samples


def draw_samples(folder: RunFolder, name: str, images: Tensor, columns: int, real: Tensor | None = None) -> None:
    """A grid of samples, or points in the plane against the real ones."""
    folder.picture(lambda: save_samples(folder.path / name, images, columns, real))


def snapshot_name(nimg: int, tables: Tables) -> str:
    """As EDM names snapshots, and as SiD does where the loss has an alpha."""
    alpha = tables.get("loss", {}).get("alpha")
    return f"network-snapshot-{f'{alpha:03f}-' if isinstance(alpha, int | float) else ''}{nimg // 1000:06d}"


def write_network(folder: RunFolder, name: str, kind: str, net: nn.Module, facts: Mapping[str, Any], nimg: int) -> str:
    """The network's file under this name, in EDM's format if it is EDM's network; gives the file's name."""
    path = folder.path / f"{name}{'.pkl' if isinstance(net, Precond) else '.pt'}"
    if folder.writes:
        save_network(path, kind, net, {**facts, "nimg": nimg, "versions": versions()})
    return path.name


def measure_snapshot(
    folder: RunFolder, metrics: Metrics, sample: Sample, config: EvalConfig, file: str, nimg: int, trained: float
) -> None:
    """Measure the network of a snapshot's file, if [eval] asks for it; all processes take part. `trained`: seconds of training."""
    n = config.snapshot_samples
    if not n or not metrics:
        return
    start = time.monotonic()
    with folder.journal.progress("measuring the generator", n) as bar:
        found = measure(metrics, sample, range(n), config.batch, bar.at)
    seconds, kimg = time.monotonic() - start, nimg / 1000
    for choice, metric in metrics:
        line = entry(choice, metric, found, n, file, seconds) | {"kimg": kimg, "train_seconds": trained}
        folder.append(line, f"metric-{choice.name}.jsonl")
    numbers = "  ".join(f"{name} {found[column]:.4g}" for column, name in headings(metrics, n).items())
    folder.journal.log(f"kimg {kimg:<9.1f} {numbers}  ({n} samples)")
    keep_best(folder, *metrics[0])


def keep_best(folder: RunFolder, choice: Choice, metric: Metric) -> None:
    """Copy the snapshot with the lowest distance to network-snapshot-best, unless it is there already.

    The choice is made from the lines in the folder, so a resumed run forgets a best one that came after its state.
    """
    if not folder.writes:
        return
    lines, column = folder.lines(f"metric-{choice.name}.jsonl"), metric.columns[0]
    alike = [e for e in lines if all(e[key] == lines[-1][key] for key in ("metric", "samples"))]
    found = [e for e in alike if not math.isnan(e["results"][column])]
    if not found:
        return
    lowest = min(found, key=lambda e: float(e["results"][column]))
    snapshot, note = folder.path / lowest["snapshot_pkl"], folder.path / "best.json"
    best = {"kimg": lowest["kimg"], "metric": lowest["metric"], "column": column, "value": lowest["results"][column]}
    content = (json.dumps(best | {"file": snapshot.name}) + "\n").encode()
    if snapshot.is_file() and not (note.is_file() and note.read_bytes() == content):
        folder.write(f"network-snapshot-best{snapshot.suffix}", snapshot.read_bytes())
        folder.write(note.name, content)


def draw_curves(folder: RunFolder, losses: tuple[str, ...], metrics: Metrics) -> None:
    """curves.png: every learner's loss, and the first column of every metric, over kimg."""
    stats = folder.lines()
    panels: list[Any] = [(f"{name}'s loss", {name: course(stats, f"Loss/{name}")}, False) for name in losses]
    gaps = sorted({key for line in stats for key in line if key.startswith("Gap/")})
    panels.append(("gap", {key.removeprefix("Gap/"): course(stats, key) for key in gaps}, True))
    for choice, metric in metrics:
        lines, column = folder.lines(f"metric-{choice.name}.jsonl"), metric.columns[0]
        panels.append((column, {column: ([e["kimg"] for e in lines], [e["results"][column] for e in lines])}, True))
    folder.picture(lambda: save_curves(folder.path / "curves.png", panels, folder.path.name))


def course(stats: list[dict[str, Any]], key: str) -> tuple[list[float], list[float]]:
    """A number of the statistics over kimg, where it is there."""
    lines = [line for line in stats if key in line]
    return [line["Progress/kimg"]["mean"] for line in lines], [line[key]["mean"] for line in lines]


def write_table(folder: RunFolder, rows: list[Row], metrics: Metrics, config: EvalConfig, nimg: int) -> None:
    """The final table, printed and kept as quality.txt and quality.json."""
    title = f"{nimg / 1000:g} kimg: {config.samples} samples, mean ± standard deviation of {config.repeats} sampling seeds"
    folder.journal.table(table(rows, metrics, title, config.samples), "quality.txt")
    columns = {choice.name: list(metric.columns) for choice, metric in metrics}
    content = {"samples": config.samples, "columns": columns, "rows": [vars(row) for row in rows], "versions": versions()}
    folder.write("quality.json", (json.dumps(content, indent=1) + "\n").encode())
