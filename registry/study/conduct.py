"""A study from beginning to end."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from filelock import Timeout
from pydantic import TypeAdapter
from rich.console import Console
from typing_extensions import TypedDict

from registry.core.atomic import check_folder, check_in_place, unused, write_atomically
from registry.core.errors import SettingError, UserError
from registry.core.locks import locked
from registry.core.text import shown
from registry.files.json_files import kept
from registry.measure.saved import kept_table
from registry.plugins.loading import Plugins
from registry.recipe.resolved import dumps
from registry.recipe.texts import read_tables
from registry.show.journal import Journal
from registry.study.attempts import write_note
from registry.study.cells import Cell, Command, Status, check_unchanged, is_longer, prepare, status
from registry.study.definition import Study
from registry.study.local import run_local
from registry.study.page import page
from registry.study.progress import Progress
from registry.study.results import Result, read_results
from registry.study.reuse import reuse
from registry.study.sheets import csv_text, markdown, rich_table, sheets
from registry.study.slurm import run_slurm
from registry.study.sources import check_same_sources, with_sources
from registry.study.summary import Summary, summarise

STUDY = "study.toml"


class Typed(TypedDict):
    """Of study.json: the command that the study was begun with."""

    command: str


TYPED = TypeAdapter(Typed)
MOST_PRINTED, WIDE = 40, 140
"""Longer tables are only in the files; columns of a table that is printed to no terminal."""


def conduct(
    study: Study,
    outdir: Path,
    plugins: Plugins,
    command: Command,
    *,
    typed: str,
    jobs: int = 1,
    slurm: bool = False,
    sources: Sequence[Path] = (),
    retry: bool = False,
    report_only: bool = False,
    journal: Journal | None = None,
) -> Summary:
    """Run every cell that has no result yet, and report all of them in the study's folder. Raises UserError and Interrupted.

    `typed` is the command line that is shown in the report. `sources` are folders whose studies may have made some of the runs
    already. `retry` runs failed and diverged cells again. `report_only` runs
    nothing and may be used while the study runs.
    """
    journal = journal or Journal()
    check_folder(outdir, "outdir")
    check_same_axes(study, outdir)
    cells = prepare(study, outdir, plugins, command)
    check_unchanged(cells, outdir, plugins)
    if report_only:
        if not any(cell.folder.is_dir() for cell in cells):
            raise SettingError("outdir", "has no runs of this study to report", str(outdir))
        typed = (kept(outdir / "study.json", TYPED) or {"command": typed})["command"]
        return report(study, outdir, read_results(cells, outdir), typed, journal)
    with journal.working("reading what the runs are made from"):
        cells = with_sources(cells)
    check_same_sources([cell for cell in cells if not (retry and begins_anew(cell))], outdir)
    with alone(outdir):
        write_atomically(outdir / STUDY, dumps(study.tables()).encode())
        journal.open(outdir)
        if retry:
            forget_failures(cells)
        for source in sources:
            journal.log(f"{len(reuse(cells, source))} of {len(cells)} runs were copied from {source}")
        carry_out(study, cells, outdir, jobs, slurm, journal)
        check_same_sources(with_sources(cells), outdir)  # they may have changed meanwhile
        summary = report(study, outdir, read_results(cells, outdir), typed, journal)
        check_all_ran(cells)
        return summary


def check_same_axes(study: Study, outdir: Path) -> None:
    """Check that a folder that holds a study holds one of these axes: its report would no longer be that of its runs. Raises
    SettingError."""
    try:
        held = read_tables(outdir / STUDY).get("vary", {})
    except UserError:  # there is none, or it is damaged
        return
    if isinstance(held, dict) and held.keys() != study.vary.keys():
        of, now = (", ".join(map(shown, sorted(names))) or "nothing" for names in (held, study.vary))
        raise SettingError("outdir", f"holds a study that varies {of}, and this one varies {now}; give another folder", str(outdir))


def check_all_ran(cells: Sequence[Cell]) -> None:
    """Raises UserError, or SettingError, if runs have failed or were killed. One that has diverged is a result like others."""
    found = [status(cell)[0] for cell in cells]
    if failed := found.count(Status.FAILED):
        raise SettingError("retry", f"{failed} of {len(cells)} runs have failed, as is said above; with this they run again")
    if killed := found.count(Status.UNFINISHED):
        raise UserError(f"{killed} of {len(cells)} runs were killed; the same command goes on with them")
    if waiting := found.count(Status.WAITING):
        raise UserError(f"{waiting} of {len(cells)} runs have left no record; the same command runs them")


@contextmanager
def alone(outdir: Path) -> Iterator[None]:
    """Keep other studies out of the folder. Raises SettingError if one is in it."""
    outdir.mkdir(parents=True, exist_ok=True)
    lock = outdir / "study.lock"
    for path in (lock, outdir / "log.txt"):
        check_in_place(path)
    try:
        with locked(lock):
            yield
    except Timeout:
        raise SettingError("outdir", "another study is running in this folder", str(outdir)) from None


def forget_failures(cells: Sequence[Cell]) -> None:
    """Make failed and diverged cells run again: a failed run continues where it was, if it does not begin anew."""
    for cell in cells:
        state, _ = status(cell)
        run = cell.run_folder()
        table = run / "quality.json" if run is not None else None
        if run is not None and begins_anew(cell):
            run.rename(unused(run.with_name(f"{'diverged' if state is Status.DIVERGED else 'changed'}-{run.name}")))
        elif state is Status.FAILED and table and table.is_file() and kept_table(table.parent) is None:
            table.rename(unused(table.with_name("quality.json.damaged")))  # with it, the run would be taken for finished
        if state in (Status.FAILED, Status.DIVERGED):
            write_note(cell.folder, cell.attempt() | {"exit": None, "error": ""})


def begins_anew(cell: Cell) -> bool:
    """Whether a cell that runs again does so from the beginning: one that has diverged, or has learned with other settings for a
    while, or for longer."""
    state, _ = status(cell)
    run = cell.run_folder()
    quality = kept_table(run) if run is not None and state is Status.FAILED else None
    return state is Status.DIVERGED or (quality is not None and (bool(quality.changed) or is_longer(cell, quality)))


def carry_out(study: Study, cells: Sequence[Cell], outdir: Path, jobs: int, slurm: bool, journal: Journal) -> None:
    """Run all cells without a result."""
    todo = [cell for cell in cells if status(cell)[0] in (Status.WAITING, Status.UNFINISHED)]
    if not todo:
        return
    journal.log(f"{len(cells)} runs, {len(cells) - len(todo)} of them done; the study is in {outdir}")
    progress = Progress(cells, journal)
    if slurm:
        run_slurm(todo, study.scheduler, outdir, progress)
    else:
        run_local(todo, jobs, progress)


def report(study: Study, outdir: Path, results: Sequence[Result], typed: str, journal: Journal) -> Summary:
    """Write study.json, results.csv, table.md, the figures and the page, and print the tables."""
    summary = summarise(study, results)
    tables = sheets(summary)
    names = [axis.name for axis in study.axes]
    write_atomically(
        outdir / "study.json", (json.dumps(content(study, summary, results, typed), indent=1, allow_nan=False) + "\n").encode()
    )
    write_atomically(outdir / "results.csv", csv_text(summary, results, names).encode())
    write_atomically(outdir / "table.md", markdown(tables).encode())
    drawn = draw(summary, outdir, journal)
    write_atomically(outdir / "index.html", page(outdir.name, study, typed, summary, results, tables, drawn).encode())
    console = journal.console if journal.console.is_terminal else Console(width=WIDE, highlight=False)
    for table in tables:
        if len(table.rows) <= MOST_PRINTED:
            console.print(rich_table(table))
    lost = [result for result in results if result.status in (Status.FAILED, Status.DIVERGED)]
    for result in lost:
        journal.log(f"{result.cell.name} {result.status}: {result.error}")
    journal.log(f"the report is {outdir / 'index.html'}")
    return summary


def draw(summary: Summary, outdir: Path, journal: Journal) -> dict[str, tuple[bytes, bytes]]:
    """Write the figures as PNG, and give them as SVGs for light and dark pages. Without matplotlib there are none."""
    from registry.study.charts import DARK, LIGHT, as_image, figures

    try:
        light, dark = figures(summary, LIGHT), figures(summary, DARK)
    except UserError as error:
        journal.log(f"no figures: {error}")
        return {}
    for name, figure in light.items():
        write_atomically(outdir / f"{name}.png", as_image(figure, "png"))
    return {name: (as_image(light[name], "svg"), as_image(dark[name], "svg")) for name in light}


def content(study: Study, summary: Summary, results: Sequence[Result], typed: str) -> dict[str, Any]:
    """Everything, as plain values for study.json. What is no finite number there is a text: 'nan', 'inf'."""
    found = {
        "command": typed,
        "study": study.tables(),
        "equal": study.equal,
        "time": summary.time,
        "axes": [{"name": name, "variants": list(labels)} for name, labels in summary.axes],
        "columns": list(summary.columns),
        "combinations": [
            {
                "labels": list(g.labels), "evaluations": g.evaluations,
                "columns": {c: {"mean": g.mean(c), "std": g.deviation(c), "n": len(v), "by_seed": v} for c, v in g.values.items()},
                "states": {state.value: g.count(state) for state in Status if g.count(state)},
            }
            for g in summary.groups
        ],
        "comparisons": [asdict(c) | {"shown": c.shown} for c in summary.comparisons],
        "teachers": [asdict(t) for t in summary.teachers],
        "floor": asdict(summary.floor) if summary.floor else None,
        "cells": [cell_content(result) for result in results],
    }  # fmt: skip
    return dict(strict(found))


def cell_content(result: Result) -> dict[str, Any]:
    """One cell of study.json."""
    cell = result.cell
    return {
        "labels": list(cell.combination.labels), "settings": cell.combination.settings, "seed": cell.seed,
        "status": result.status.value, "error": result.error, "command": cell.line,
        "folder": result.run.as_posix() if result.run else None,
        "kimg": result.kimg, "train_seconds": result.seconds, "rows": [asdict(row) for row in result.rows],
        "curve": [asdict(point) for point in result.points], "attempt": result.attempt,
    }  # fmt: skip


def strict(value: Any) -> Any:
    """Plain values that strict JSON can hold."""
    if isinstance(value, dict):
        return {str(key): strict(v) for key, v in value.items()}
    if isinstance(value, list | tuple):
        return [strict(v) for v in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value
