"""From run folders to numbers."""

from __future__ import annotations

import json
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from registry.core.errors import SettingError
from registry.files.json_lines import STATISTICS, readable_lines
from registry.measure.saved import MADE_FROM, kept_table
from registry.study.cells import Cell, Note, Status, kimg, last_line, status
from registry.study.statistics import Curve


@dataclass(frozen=True)
class Point:
    """A measurement at a snapshot: where, after how many seconds of training, and the metrics' columns."""

    kimg: float
    seconds: float
    values: dict[str, float]


@dataclass(frozen=True)
class Measured:
    """A row of a run's final table: generator, teacher or floor, with one value per sampling seed."""

    name: str
    evaluations: int | None
    values: dict[str, list[float]]

    def mean(self, column: str) -> float:
        return statistics.fmean(self.values[column]) if self.values.get(column) else float("nan")


@dataclass(frozen=True)
class Result:
    """What a cell has come to."""

    cell: Cell
    status: Status
    error: str
    run: Path | None
    kimg: float
    seconds: float
    """Of training, without measuring."""
    main: dict[str, str] = field(default_factory=dict)
    """The first column of every metric: {column: metric}."""
    rows: tuple[Measured, ...] = ()
    points: tuple[Point, ...] = ()
    attempt: Note = field(default_factory=Note)
    made_from: Mapping[str, str] = field(default_factory=dict)
    """What the run has loaded: hashes of the teacher's weights and of the real images."""
    protocols: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """How it was measured, by column."""

    @property
    def generator(self) -> Measured | None:
        return self.rows[0] if self.rows else None

    @property
    def teachers(self) -> tuple[Measured, ...]:
        """The teacher's rows, by evaluations."""
        rows = [row for row in self.rows[1:] if row.evaluations is not None]
        return tuple(sorted(rows, key=lambda row: row.evaluations or 0))

    @property
    def floor(self) -> Measured | None:
        """Real images against real images."""
        return next((row for row in self.rows[1:] if row.evaluations is None), None)

    def curve(self, column: str, over: str = "kimg") -> Curve:
        """A column over `kimg` or `seconds`."""
        return [
            (point.kimg if over == "kimg" else point.seconds, point.values[column])
            for point in self.points
            if column in point.values
        ]


def read_result(cell: Cell) -> Result:
    """What a cell's folder holds."""
    found, error = status(cell)
    run = cell.run_folder()
    if run is None:
        return Result(cell, found, error, None, 0.0, 0.0, attempt=cell.attempt())
    quality = kept_table(run)
    main = {columns[0]: metric for metric, columns in quality.columns.items()} if quality else {}
    rows = tuple(Measured(row.name, row.evaluations, row.values) for row in quality.rows) if quality else ()
    seconds = float(last_line(run / STATISTICS).get("Timing/train_sec", {"mean": 0.0})["mean"])
    made_from, protocols = (quality.made_from, quality.protocols) if quality else ({}, {})
    points = read_points(run)
    return Result(cell, found, error, run, kimg(cell), seconds, main, rows, points, cell.attempt(), made_from, protocols)


def read_points(run: Path) -> tuple[Point, ...]:
    """The measurements at all snapshots, of all metrics, in their order."""
    found: dict[float, Point] = {}
    for path in sorted(run.glob("metric-*.jsonl")):
        for line in readable_lines(path):
            if {"kimg", "results"} <= line.keys():
                point = found.setdefault(line["kimg"], Point(line["kimg"], line.get("train_seconds", 0.0), {}))
                point.values.update(line["results"])
    return tuple(found[key] for key in sorted(found))


def read_results(cells: Sequence[Cell], outdir: Path) -> tuple[Result, ...]:
    """What the folders of all cells hold. Raises SettingError if the runs have loaded different things under the same name."""
    results, first = tuple(map(read_result, cells)), dict[tuple[str, str], Result]()
    for result in results:
        for what, table in MADE_FROM.items() if result.status is Status.DONE else ():
            if what in result.made_from:
                known = first.setdefault((what, json.dumps(result.cell.tables.get(table), sort_keys=True)), result)
                if known.made_from[what] != result.made_from[what]:
                    problem = f"the {table} of {known.cell.name} was another one than that of {result.cell.name}, by the same name"
                    remedy = f"move {known.cell.folder} or {result.cell.folder} away, and the same command makes it again"
                    raise SettingError("outdir", f"{problem}; {remedy}", str(outdir))
    return results
