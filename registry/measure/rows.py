"""Rows of numbers, and tables of rows."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from rich.table import Table

from registry.core import distributed
from registry.core.contracts import Metric
from registry.measure.protocol import compared_with
from registry.recipe.resolved import Choice
from registry.show.journal import duration

Metrics = Sequence[tuple[Choice, Metric]]


@dataclass
class Row:
    """One line of the table: every column's values, one per repeat."""

    name: str
    evaluations: int | None
    values: dict[str, list[float]] = field(default_factory=dict)
    note: str = ""

    def add(self, found: dict[str, float]) -> None:
        for column, value in found.items():
            self.values.setdefault(column, []).append(value)

    def mean(self, column: str) -> float:
        return mean(self.values[column])

    def text(self, column: str) -> str:
        """A column's number as it is printed; a dash without values."""
        return in_text(self.values[column]) if column in self.values else "–"


def in_text(values: Sequence[float]) -> str:
    """mean ± standard deviation over the repeats; without ± if there is one; a whole number if all values equal it."""
    if len(set(values)) == 1 and float(values[0]).is_integer() and abs(values[0]) < 1e15:
        return f"{values[0]:.0f}"
    return f"{mean(values):.3g}" if len(values) == 1 else f"{mean(values):.3g} ± {spread(values):.2g}"


def mean(values: Sequence[float]) -> float:
    """The mean; infinite if the sum of the values is too large a number."""
    try:
        return statistics.fmean(values)
    except OverflowError:
        return math.inf


def spread(values: Sequence[float]) -> float:
    """Standard deviation (ddof 1) of the repeats, 0 of a single one, NaN if one is not finite."""
    if not all(map(math.isfinite, values)):
        return math.nan
    try:
        return statistics.stdev(values) if len(values) > 1 else 0.0
    except OverflowError:
        return math.inf


def best(values: Sequence[float], higher: bool) -> float:
    """The lowest of the repeats, or the highest if higher is better; NaN if one is."""
    return math.nan if any(map(math.isnan, values)) else max(values) if higher else min(values)


def summary(values: list[float]) -> dict[str, Any]:
    """Values, minimum, maximum, mean and standard deviation. EDM's protocol reports the minimum of three."""
    lowest, highest = (best(values, higher) for higher in (False, True))
    return {"values": values, "min": lowest, "max": highest, "mean": mean(values), "std": spread(values)}


def label(choice: Choice, metric: Metric, samples: int) -> str:
    """A metric's name with the number of images: fid50k, or fid5k_proxy if published numbers use more (`metric.protocol`)."""
    if metric.protocol is None:
        return choice.name
    count = f"{samples // 1000}k" if samples % 1000 == 0 else str(samples)
    return f"{choice.name}{count}{'_proxy' if samples < metric.protocol else ''}"


def entry(choice: Choice, metric: Metric, found: dict[str, float], samples: int, network: str, seconds: float) -> dict[str, Any]:
    """A measurement in the form of EDM's metric-*.jsonl lines. `seconds` is its duration."""
    return {
        "results": {column: found[column] for column in metric.columns},
        "metric": label(choice, metric, samples),
        "samples": samples,
        "compared_with": compared_with(metric),
        "num_gpus": distributed.world_size(),
        "snapshot_pkl": network,
        "total_time": seconds,
        "total_time_str": duration(seconds),
    }


def headings(metrics: Metrics, samples: int) -> dict[str, str]:
    """{column: heading}. A column named like its metric gets the metric's label (fid5k_proxy)."""
    return {
        column: label(choice, metric, samples) if column == choice.name else column
        for choice, metric in metrics
        for column in metric.columns
    }


def table(rows: Sequence[Row], metrics: Metrics, title: str, samples: int) -> Table:
    """The rows as a rich table. A metric's first number also has the best of its repeats, which is what many papers report."""
    columns = headings(metrics, samples)
    firsts = {metric.columns[0]: metric.columns[0] in metric.higher for _, metric in metrics}
    shown = Table(title=title, title_justify="left")
    shown.add_column("")
    shown.add_column("evaluations", justify="right")
    for heading in columns.values():
        shown.add_column(heading, justify="right")
    for row in rows:
        evaluations = "" if row.evaluations is None else str(row.evaluations)
        shown.add_row(row.name, evaluations, *(cell(row, column, firsts.get(column)) for column in columns))
    return shown


def cell(row: Row, column: str, higher: bool | None, mark: str = "") -> str:
    """mean ± standard deviation with a mark, and below it the best of several repeats unless `higher` is None."""
    values = row.values.get(column, [])
    shown = f"{row.text(column)}{mark}"
    if higher is None or len(set(values)) < 2:
        return shown
    return f"{shown}\n{'max' if higher else 'min'} {best(values, higher):.3g}"
