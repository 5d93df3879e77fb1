"""What a run's folder holds."""

from __future__ import annotations

import itertools
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from filelock import Timeout

from registry.core.errors import UserError
from registry.core.locks import locked
from registry.core.text import printable, printable_values, shown
from registry.files.json_files import ANYTHING, kept
from registry.files.json_lines import STATISTICS, readable_lines
from registry.files.locate import ERROR, RECIPE
from registry.measure.saved import BEST, Best, Quality, kept_table
from registry.plugins.component import Component
from registry.plugins.loading import Plugins
from registry.recipe.tables import (
    MOST_BATCH,
    MOST_KIMG,
    DataConfig,
    EvalConfig,
    GeneratorConfig,
    LogConfig,
    NetworkConfig,
    PretrainConfig,
    TrainConfig,
    WarmupConfig,
    lengths,
)
from registry.recipe.texts import read_text_and_tables

MOST_SNAPSHOTS = 24
"""Pictures of a page's slider."""
PNG = b"\x89PNG\r\n\x1a\n"
MOST_PICTURE = 2**26
"""Bytes of a grid."""
Line = Mapping[str, Any]


@dataclass(frozen=True)
class History:
    """A run as its folder shows it."""

    path: Path
    tables: dict[str, Any]
    """The resolved recipe; empty if it cannot be read."""
    statistics: list[Line]
    measurements: dict[str, list[Line]]
    """By metric."""
    quality: Quality | None
    """The final table."""
    pictures: dict[str, Path]
    """{"real", "teacher-35", …}: grids of the same seeds."""
    snapshots: list[tuple[float, Path]]
    """Grids of the generator's images, by thousands of images."""
    recipe: str = ""
    """The text of that file."""
    best: Best | None = None
    versions: dict[str, Any] = field(default_factory=dict)
    running: bool = False
    error: str = ""
    """Why the run failed, if it did."""

    @property
    def name(self) -> str:
        return self.path.name

    @property
    def kimg(self) -> float:
        """Thousands of images so far: at the last tick, or in the final table, which may be of some batches more."""
        measured = self.quality.nimg if self.quality and self.quality.nimg else 0
        return max([measured / 1000, *(float(line["Progress/kimg"]["mean"]) for line in self.statistics)])

    @property
    def ends(self) -> dict[str, float]:
        """Thousands of images after which each part of the run ends, in whole batches; empty if its recipe does not say."""
        warmup, train = self.table("warmup"), self.table("train")
        given = {"regression": warmup.get("kimg", 0), "student": warmup.get("student_kimg", 0), "game": train.get("duration_kimg")}
        batch = train.get("batch")
        known = all(type(kimg) in (int, float) and 0 <= kimg <= MOST_KIMG for kimg in given.values())
        if not known or type(batch) is not int or not 1 <= batch <= MOST_BATCH:
            return {}
        images = itertools.accumulate(lengths(given["regression"], given["student"], given["game"], batch))
        return {part: end / 1000 for part, end in zip(given, images, strict=True)}

    @property
    def total(self) -> float | None:
        """Thousands of images of the whole run, if its recipe says."""
        return self.ends.get("game")

    def seconds_at(self, kimg: float) -> float:
        """Of training, at the first line of the statistics with so many thousand images."""
        return next((seconds_of(line) for line in self.statistics if line["Progress/kimg"]["mean"] >= kimg), self.seconds)

    @property
    def seconds(self) -> float:
        """Of training, without measuring."""
        return max((seconds_of(line) for line in self.statistics), default=0.0)

    @property
    def state(self) -> str:
        """finished, running, failed or stopped. A finished run may be resumed with more images."""
        if self.running or self.error:
            return "running" if self.running else "failed"
        if self.quality:
            done = self.quality.nimg is None or self.quality.nimg / 1000 >= self.kimg - 1e-6
        else:  # perhaps nothing is measured, so there is no table
            done = not self.table("eval").get("metrics") and self.total is not None and self.kimg >= self.total - 1e-6
        return "finished" if done else "stopped"

    @property
    def is_pretraining(self) -> bool:
        return "network" in self.tables

    @property
    def teacher(self) -> str:
        """What its teacher is called."""
        table = self.table("teacher")
        return Path(str(table.get("source", table.get("use", "?")))).name

    def table(self, name: str) -> dict[str, Any]:
        found = self.tables.get(name, {})
        return found if isinstance(found, dict) else {}

    def last(self, key: str) -> float | None:
        """The last value of a number of the statistics."""
        return next((float(line[key]["mean"]) for line in reversed(self.statistics) if key in line), None)

    def first_columns(self) -> dict[str, str]:
        """The first column of every metric: {column: metric}."""
        if self.quality and self.quality.columns:
            return {columns[0]: metric for metric, columns in self.quality.columns.items()}
        return {next(iter(lines[-1]["results"])): metric for metric, lines in self.measurements.items() if lines[-1]["results"]}

    def higher(self, column: str) -> bool:
        """Whether higher is better."""
        return self.quality is not None and column in self.quality.higher_is_better


def seconds_of(line: Line) -> float:
    """Of training, at a line of the statistics."""
    return float(line.get("Timing/train_sec", {"mean": 0.0})["mean"])


def read_history(path: Path) -> History:
    """The run in a folder. Raises UserError if there is none."""
    if not path.is_dir() or not ((path / RECIPE).is_file() or (path / STATISTICS).is_file()):
        what = "no run folder: it has neither recipe.toml nor stats.jsonl" if path.is_dir() else "no such folder"
        raise UserError(f"{path}: {what}")
    try:
        text, tables = read_text_and_tables(path / RECIPE) if (path / RECIPE).is_file() else ("", {})
    except UserError:
        text, tables = "", {}
    teachers = sorted(p.name for p in path.glob("teacher-*.png") if re.fullmatch(r"teacher-[0-9]{1,9}", p.stem))
    names = {"real": "real.png", **{name.removesuffix(".png"): name for name in teachers}}
    measured: dict[str, list[Line]] = {
        p.stem.removeprefix("metric-"): [line for line in readable_lines(p) if {"kimg", "results"} <= line.keys()]
        for p in sorted(path.glob("metric-*.jsonl"))
    }
    quality = kept_table(path)
    whole = kept(path / "quality.json", ANYTHING) or {}
    versions = whole.get("versions")
    return History(
        path=path,
        tables=printable_values(tables),
        recipe=printable(text.expandtabs()),
        statistics=[line for line in readable_lines(path / STATISTICS) if "Progress/kimg" in line],
        measurements={metric: lines for metric, lines in measured.items() if lines},
        quality=quality,
        pictures={name: path / file for name, file in names.items() if is_picture(path / file)},
        snapshots=spread_out(sorted(grids(path)), MOST_SNAPSHOTS),
        best=kept(path / "best.json", BEST),
        versions=versions if isinstance(versions, dict) else {},
        running=is_locked(path),
        error=reason(path / ERROR),
    )


def reason(path: Path) -> str:
    """Why a run failed, by the file that says so; nothing if there is none."""
    try:
        if not path.is_file():
            return ""
        with open(path, "rb") as file:
            return shown(file.read(2000).decode(errors="replace"), 500)
    except OSError:
        return ""


def grids(path: Path) -> list[tuple[float, Path]]:
    """The grids of a run, with thousands of images."""
    found = [(0.0, path / "fakes_init.png")] if is_picture(path / "fakes_init.png") else []
    return found + [
        (float(m[1]), p) for p in path.glob("fakes_*.png") if (m := re.fullmatch(r"fakes_([0-9]{1,9})", p.stem)) and is_picture(p)
    ]


def is_picture(path: Path) -> bool:
    """Whether a file is a PNG, and not too large: a page holds all that is in it, and in a stranger's folder it may be a link to
    anything."""
    try:
        if not path.is_file():
            return False
        with open(path, "rb") as file:
            return file.read(len(PNG)) == PNG and os.fstat(file.fileno()).st_size <= MOST_PICTURE
    except OSError:
        return False


def spread_out(values: list[Any], most: int) -> list[Any]:
    """The first, the last, and as many between as there is room for."""
    if len(values) <= most:
        return values
    return [values[round(i * (len(values) - 1) / (most - 1))] for i in range(most)]


def is_locked(path: Path) -> bool:
    """Whether a run is writing into the folder."""
    if not (path / "run.lock").is_file():
        return False
    try:
        with locked(path / "run.lock"):
            return False
    except Timeout:
        return True
    except OSError:
        return False


def defaults(tables: Mapping[str, Any], plugins: Plugins) -> dict[str, dict[str, Any]]:
    """The defaults of a recipe's tables, where they are known: {table: {key: value}}."""
    own: dict[str, Any] = {
        "train": PretrainConfig if "network" in tables else TrainConfig,
        "generator": GeneratorConfig, "warmup": WarmupConfig, "log": LogConfig, "eval": EvalConfig,
        "data": DataConfig, "network": NetworkConfig,
    }  # fmt: skip
    for kind in ("teacher", "noise", "loss"):
        table = tables.get(kind)
        use = table.get("use") if isinstance(table, dict) else None
        owners = plugins.owners(kind, use) if isinstance(use, str) else []
        if owners and isinstance(owners[0].component, Component):
            own[kind] = owners[0].component.config
    return {
        name: {key: info.default for key, info in config.model_fields.items() if not info.is_required()}
        for name, config in own.items()
    }


def unlike_defaults(run: History, plugins: Plugins) -> set[tuple[str, str]]:
    """The settings (table, key) that are not as they would be by default in a run of this length."""
    known, batch = defaults(run.tables, plugins), run.table("train").get("batch")
    if run.total and type(batch) is int:
        known["log"] |= vars(LogConfig().fitted(run.total, batch))
    if type(samples := run.table("eval").get("samples")) is int:
        known["eval"] |= {"snapshot_samples": EvalConfig.model_construct(samples=samples).fitted().snapshot_samples}
    found = set()
    for name, table in run.tables.items():
        for key, value in table.items() if isinstance(table, dict) else ():
            default = known.get(name, {}).get(key)
            default = list(default) if isinstance(default, tuple) else default
            if key != "use" and value != default:
                found.add((name, key))
    return found
