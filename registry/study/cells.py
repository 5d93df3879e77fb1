"""Cells: one combination and one training seed, the folder of their run, and how far it is."""

from __future__ import annotations

import math
import shlex
import signal
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from functools import partial
from pathlib import Path
from typing import Annotated, Any, cast

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError
from typing_extensions import TypedDict

from registry.core.atomic import write_atomically
from registry.core.errors import Diverged, Mistakes, SettingError, UserError
from registry.core.interruption import SIGNALS
from registry.core.text import printable_values, shown
from registry.files.json_files import kept
from registry.files.json_lines import STATISTICS, readable_lines
from registry.files.locate import locate_recipe
from registry.measure.saved import Quality, kept_table
from registry.plugins.loading import Plugins
from registry.recipe.reading import expect, resolve
from registry.recipe.resolved import Recipe, Tables, dumps, without_unlearned
from registry.recipe.tables import StudyConfig
from registry.recipe.texts import read_tables
from registry.runs.checkpoints import all_images, differences, what_is_learned
from registry.runs.states import NUMBERED
from registry.study.definition import Study
from registry.study.grid import Combination, combinations

Command = Callable[[str, Combination, int, Path, bool], list[str]]
"""From recipe, combination, seed, folder and whether to resume to the command line of the run, which a user could type."""

INTERRUPTED = tuple(code for number in (*SIGNALS, signal.SIGKILL) for code in (128 + number, -number))
"""Exit codes of a run that was asked to stop, or killed, as where memory runs out; a process that is still loading is ended by any
signal."""


class Status(StrEnum):
    """How far a cell is. Failed and diverged cells are results."""

    WAITING = "waiting"
    UNFINISHED = "unfinished"
    DONE = "done"
    FAILED = "failed"
    DIVERGED = "diverged"


FINAL = (Status.DONE, Status.FAILED, Status.DIVERGED)


class Note(TypedDict, total=False):
    """What an attempt leaves."""

    __pydantic_config__ = ConfigDict(strict=True, extra="allow")  # type: ignore[misc]
    exit: int | None
    """None while it runs."""
    error: str
    seconds: Annotated[float, Field(ge=0, le=1e12)]
    """Of all attempts."""
    pid: int | None
    made_with: dict[str, str | None]
    sources: dict[str, str]
    copied_from: str


NOTE = TypeAdapter(Note)
MOST_WORDS = 1000
"""Characters of a text that an attempt leaves."""


@dataclass(frozen=True)
class Cell:
    """One combination and one seed."""

    combination: Combination
    seed: int
    folder: Path
    command: tuple[str, ...]
    again: tuple[str, ...]
    """The command that continues the run."""
    tables: Tables
    """The resolved recipe: what makes this cell what it is."""
    sources: Mapping[str, str] = field(default_factory=dict)
    """What the files and folders that it names hold: digits by path."""

    @property
    def name(self) -> str:
        return f"{self.combination.slug}, seed {self.seed}"

    @property
    def line(self) -> str:
        """The command as it is typed."""
        return shlex.join(["distill", *self.command[self.command.index("-m") + 2 :]])

    @property
    def total(self) -> int:
        """Images of the whole run, the warm-up included."""
        return all_images(self.tables)

    @property
    def total_kimg(self) -> float:
        return self.total / 1000 or 1e-3

    def run_folder(self) -> Path | None:
        """The newest run folder in the cell's folder."""
        return run_folder(self.folder)

    def attempt(self) -> Note:
        """What the last attempt left; empty before the first."""
        return read_attempt(self.folder)


def run_folder(folder: Path) -> Path | None:
    """The newest run folder in a cell's folder."""
    runs = [p for p in folder.glob("*-*") if NUMBERED.fullmatch(p.name) and p.is_dir() and any(p.iterdir())]
    return max(runs, key=lambda p: int(p.name.partition("-")[0]), default=None)


ATTEMPT = "attempt.json"
RECIPE = "recipe.toml"


def prepare(study: Study, outdir: Path, plugins: Plugins, command: Command) -> tuple[Cell, ...]:
    """All cells, seed by seed, so that a study that is broken off has whole tables of fewer seeds. Writes nothing.

    Raises UserError with everything that is wrong with any of their recipes.
    """
    raw = read_tables(locate_recipe(study.recipe))
    try:
        along = StudyConfig.model_validate(raw.get("study", {})).along
    except ValidationError:  # reading the recipe will say what is wrong with it
        along = ()
    cells, errors = [], dict[str, None]()
    for seed in study.seeds:
        for combination in combinations(study.axes, study.fixed, along, raw):
            folder = outdir / "cells" / combination.slug / f"seed-{seed}"
            try:
                found = resolve(study.recipe, plugins, combination.options, combination.loss, seed, str(folder))
                recipe = expect(found, Recipe)
            except UserError as error:
                errors |= dict.fromkeys(str(error).splitlines())
                continue
            if not recipe.metrics:
                errors[f"{recipe.path}: has no metrics, so a study has nothing to compare"] = None
            first, again = (tuple(command(study.recipe, combination, seed, folder, resume)) for resume in (False, True))
            cells.append(Cell(combination, seed, folder, first, again, recipe.tables()))
    if errors:
        raise Mistakes(errors)
    check_distinct(cells)
    return tuple(cells)


def identity(tables: Tables) -> Tables:
    """What must be the same for a cell's results to be used again: the whole recipe, but for where the run is."""
    own = {name: table for name, table in tables.items() if name != "swap"}
    return own | {"log": {key: value for key, value in tables["log"].items() if key != "outdir"}}


def check_distinct(cells: list[Cell]) -> None:
    """Check that no two combinations are the same run. Raises SettingError."""
    seen: dict[str, Cell] = {}
    for cell in cells:
        text = dumps(identity(cell.tables))
        if text in seen:
            names = f"{seen[text].combination.slug} and {cell.combination.slug}"
            raise SettingError("vary", f"{names} are the same run: the settings that differ do not change the recipe")
        seen[text] = cell


def check_unchanged(cells: tuple[Cell, ...], outdir: Path, plugins: Plugins) -> None:
    """Check that the runs in the study's folder are those of these cells. Raises SettingError with what differs."""
    found, runs = Counter[str](), list[Path]()
    for cell in cells:
        run = cell.run_folder()
        other = changed(cell.folder, cell.tables, plugins, without_unlearned)
        if not other and run is not None and not told_by_its_table(run):  # somebody may have resumed the run by hand
            other = changed(run, cell.tables, plugins, partial(what_is_learned, nimg=0, over=False), ignore=("log",))
            runs += [run] if other else []
        found.update(other)
    if found:
        changes = "; ".join(f"{change} ({n} cell{'s' * (n > 1)})" for change, n in found.items())
        remove = f"move {runs[0]} away{', and others' * (len(runs) > 1)}, and retry failed runs" if runs else "remove this one"
        raise SettingError("outdir", f"has runs with other settings: {changes}; name another folder, or {remove}", str(outdir))


def changed(
    folder: Path, tables: Tables, plugins: Plugins, what: Callable[[Tables], Tables], ignore: tuple[str, ...] = ()
) -> list[str]:
    """How the recipe that is recorded in a folder differs from the tables, in what counts of them. Tables may be ignored."""
    if not (folder / RECIPE).is_file():
        return []
    old = expect(resolve(str(folder / RECIPE), plugins), Recipe).tables()
    return differences(identity(what(old)), identity(what(tables)), ignore)


def told_by_its_table(run: Path) -> bool:
    """Whether a finished run itself says that it was resumed with other settings: it counts as failed, and can be made again."""
    quality = kept_table(run)
    return quality is not None and bool(quality.changed)


def record(cell: Cell) -> None:
    """Write down what the cell is, before its run begins."""
    write_atomically(cell.folder / RECIPE, dumps(cell.tables).encode())


def status(cell: Cell, folder: Path | None = None) -> tuple[Status, str]:
    """How far a cell is, in its own or in another folder, and what went wrong, if something did."""
    folder = folder or cell.folder
    attempt, run = read_attempt(folder), run_folder(folder)
    if "exit" not in attempt:
        return Status.WAITING, ""
    code = attempt["exit"]
    finished = run is not None and (run / "quality.json").is_file()
    quality = kept_table(run) if run else None
    # Somebody may have made a table before the end.
    short = quality is not None and quality.nimg is not None and quality.nimg < cell.total
    if code in INTERRUPTED or (code is None and (short or not finished)):
        return Status.UNFINISHED, ""
    if code == Diverged.code:
        return Status.DIVERGED, attempt.get("error", "")
    if code:
        return Status.FAILED, attempt.get("error", "")
    if run is None or quality is None:
        return Status.FAILED, "its quality.json cannot be read, or is another run's" if finished else "the run left no numbers"
    if quality.changed:
        what = shown(quality.changed[0], 200)
        return Status.FAILED, f"was resumed by hand with other settings ({what}); if failed runs are retried, it begins anew"
    if short:
        return Status.UNFINISHED, ""
    if is_longer(cell, quality):
        return Status.FAILED, f"has {quality.nimg} images, more than {cell.total}; if failed runs are retried, it begins anew"
    reason = divergence(run, quality, cell.tables["train"]["batch"])
    return (Status.DIVERGED, reason) if reason else (Status.DONE, "")


def is_longer(cell: Cell, quality: Quality) -> bool:
    """Whether a run has learned for longer than its recipe says: somebody has gone on with it."""
    return quality.nimg is not None and quality.nimg > cell.total


def divergence(run: Path, quality: Quality, batch: int) -> str:
    """Why a finished run counts as diverged: numbers that are not finite, or no image was left to learn from; '' if it does not."""
    for column, values in quality.rows[0].values.items():
        if not all(map(math.isfinite, values)):
            return f"{column} = {next(v for v in values if not math.isfinite(v))}"
    last = last_line(run / STATISTICS)
    for key, guard in last.items():
        learner = key.removeprefix("Guard/").removesuffix("_dropped")
        if key == f"Guard/{learner}_dropped" and guard["mean"] >= batch * last.get(f"Loss/{learner}", {}).get("num", 0) > 0:
            return f"at the end all images were dropped: the {learner}'s loss was not finite"
    return ""


def kimg(cell: Cell) -> float:
    """Thousands of images that the newest run has seen, by its last tick."""
    run = cell.run_folder()
    return float(last_line(run / STATISTICS).get("Progress/kimg", {"mean": 0.0})["mean"]) if run else 0.0


def read_attempt(folder: Path) -> Note:
    """What the last attempt left in a cell's folder, its words as they may be shown; empty before the first, or if it cannot be
    read."""
    note = kept(folder / ATTEMPT, NOTE) or Note()
    words = {name: printable_values(note[name], MOST_WORDS) for name in ("error", "made_with", "copied_from") if name in note}
    return cast(Note, {**note, **words})


def last_line(path: Path) -> dict[str, Any]:
    """The last whole line of a JSON-lines file; empty if there is none."""
    return next(reversed(readable_lines(path)), {})
