"""Histories -> one HTML file that holds everything, and opens from the disk without a network."""

from __future__ import annotations

import base64
import json
import math
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from registry.core.atomic import sweep, write_atomically
from registry.core.version import versions
from registry.measure.rows import mean
from registry.measure.rows import spread as deviation
from registry.plugins.loading import load_plugins
from registry.recipe.resolved import dumps
from registry.report.courses import Chart, Points, charts
from registry.report.history import History, read_history, unlike_defaults
from registry.show.journal import duration

HERE = Path(__file__).parent
REPORT = "report.html"


def write_report(folder: Path) -> Path:
    """Write the page of one run into its folder. Raises UserError."""
    return write_page([folder], folder / REPORT)


def write_page(folders: Sequence[Path], path: Path) -> Path:
    """Write one page for one or several runs. Raises UserError."""
    sweep(path.parent, path.name)  # what was killed while it wrote the page
    write_atomically(path, page([read_history(folder) for folder in folders]).encode(), durable=False)
    return path


def page(runs: Sequence[History]) -> str:
    """The page as HTML."""
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    template = environment.from_string((HERE / "page_of_runs.html").read_text(encoding="utf-8"))
    names = distinct_names(runs)
    found = charts(runs, names)
    return template.render(
        title=names[0] if len(runs) == 1 else f"{len(runs)} runs",
        runs=runs,
        names=names,
        sentences=[sentence(run) for run in runs],
        pictures=[pictures(run) for run in runs],
        table=table(runs, names),
        charts=found,
        settings=settings(runs),
        recipes=[dumps(run.tables) if run.tables else "" for run in runs],
        surroundings=[surroundings(run) for run in runs],
        data=Markup(data(found, names)),
        style=Markup((HERE / "uplot" / "uPlot.min.css").read_text(encoding="utf-8")),
        library=Markup((HERE / "uplot" / "uPlot.iife.min.js").read_text(encoding="utf-8")),
        script=Markup((HERE / "page_of_runs.js").read_text(encoding="utf-8")),
        made=f"{time.strftime('%Y-%m-%d %H:%M')}, distill {versions()['distill']}",
    )


def distinct_names(runs: Sequence[History]) -> list[str]:
    """The names of the runs' folders, or what tells their paths apart."""
    names = [run.name for run in runs]
    if len(set(names)) == len(runs):
        return names
    parts = [run.path.absolute().parts for run in runs]
    while len({part[-1] for part in parts}) == 1 and all(len(part) > 1 for part in parts):
        parts = [part[:-1] for part in parts]
    while len({part[0] for part in parts}) == 1 and all(len(part) > 1 for part in parts):
        parts = [part[1:] for part in parts]
    names = ["/".join(part) for part in parts]
    return names if len(set(names)) == len(runs) else [f"{run.name} ({i + 1})" for i, run in enumerate(runs)]


def sentence(run: History) -> str:
    """What ran, in a sentence."""
    if not run.tables:
        return f"A run at {run.kimg:g} kimg, whose recipe cannot be read."
    far = f"{run.kimg:g} of {run.total:g} kimg" if run.total else f"{run.kimg:g} kimg"
    after = f"{run.state} at {far}, after {duration(run.seconds)} of training"
    if run.is_pretraining:
        network, images = run.table("network"), run.table("data").get("source", "?")
        return (
            f"A teacher of D = {network.get('D', 'inf')} ({network.get('arch', '?')}) trained on {Path(str(images)).name}: {after}."
        )
    teacher, steps = run.table("teacher"), run.table("generator").get("steps", 1)
    source = Path(str(teacher.get("source", teacher.get("use", "?")))).name
    count = "one evaluation" if steps == 1 else f"{steps} evaluations"
    return f"{str(run.table('loss').get('use', '?')).upper()} distils {source} into a generator of {count}: {after}."


def pictures(run: History) -> dict[str, Any]:
    """Grids of the same seeds: real images, the teacher, and the generator's snapshots."""
    still = []
    if "real" in run.pictures:
        still.append(("real images", address(run.pictures["real"]), "Real images, for comparison; they have no seeds."))
    teachers = sorted((int(name.rpartition("-")[2]), path) for name, path in run.pictures.items() if name.startswith("teacher-"))
    for nfe, path in reversed(teachers):
        many = f"{nfe} evaluation{'s' * (nfe > 1)}"
        still.append((f"teacher, {many}", address(path), f"The teacher's images with {many}, of the generator's seeds."))
    moving = [(kimg, address(path)) for kimg, path in run.snapshots]
    return {"still": still, "moving": moving}


def address(path: Path) -> str:
    """A picture's bytes as an address."""
    return "data:image/png;base64," + base64.b64encode(path.read_bytes()).decode()


def table(runs: Sequence[History], names: Sequence[str]) -> dict[str, Any] | None:
    """The final tables: one row for a row of each run, mean ± standard deviation over sampling seeds."""
    columns = list(dict.fromkeys(column for run in runs if run.quality for row in run.quality.rows for column in row.values))
    rows: list[tuple[str, ...]] = []
    for name, run in zip(names, runs, strict=True):
        for i, row in enumerate(run.quality.rows if run.quality else ()):
            if len(runs) > 1 and i and any(old[1:] == entry(row, columns)[1:] for old in rows):
                continue  # the same teacher, measured once
            who = row.name if len(runs) == 1 else name if i == 0 else row.name
            rows.append((who, *entry(row, columns)[1:]))
    if not rows:
        return None
    rows.sort(key=lambda row: row[0] not in names)  # generators first
    best = {column: best_of(runs, column) for column in columns} if len(runs) > 1 else {}
    return {"columns": columns, "rows": rows, "best": best}


def entry(row: Any, columns: Sequence[str]) -> tuple[str, ...]:
    """A row as texts."""
    cells = [spread(row.values[column]) if column in row.values else "" for column in columns]
    return (row.name, "" if row.evaluations is None else str(row.evaluations), *cells)


def best_of(runs: Sequence[History], column: str) -> str:
    """The best of the generators in a column, as it is printed."""
    values = [run.quality.rows[0].values[column] for run in runs if run.quality and column in run.quality.rows[0].values]
    pick = max if any(run.higher(column) for run in runs) else min
    return spread(pick(values, key=mean)) if len({spread(v) for v in values}) > 1 else ""


def spread(values: Sequence[float]) -> str:
    """mean ± standard deviation; a single value stands alone."""
    return f"{mean(values):.4g}" if len(values) == 1 else f"{mean(values):.4g} ± {deviation(values):.2g}"


def settings(runs: Sequence[History]) -> dict[str, Any]:
    """Of one run: the settings that are not the defaults. Of several: those that differ, run by run."""
    plugins = load_plugins()
    if len(runs) == 1:
        tables = runs[0].tables
        marked = unlike_defaults(tables, plugins)
        rows = [(f"[{t}] {k}", [text(tables[t][k])]) for t, k in sorted(marked, key=lambda pair: [*tables].index(pair[0]))]
        return {"title": "What differs from the defaults", "rows": rows}
    keys = dict.fromkeys((t, k) for run in runs for t, table in run.tables.items() if isinstance(table, dict) for k in table)
    found = {(t, k): [text(run.table(t).get(k)) for run in runs] for t, k in keys if t != "swap" and (t, k) != ("log", "outdir")}
    rows = [(f"[{t}] {k}", values) for (t, k), values in found.items() if len(set(values)) > 1]
    return {"title": "What differs between the recipes", "rows": rows}


def text(value: Any) -> str:
    """A setting as it stands in a recipe."""
    if value is None:
        return "—"
    if isinstance(value, bool):
        return str(value).lower()
    return f"{value:g}" if isinstance(value, float) else str(value)


def surroundings(run: History) -> list[tuple[str, str]]:
    """Where and how fast it ran."""
    found = [("folder", str(run.path.absolute())), ("training", duration(run.seconds))]
    if speed := run.last("Timing/img_per_sec"):
        found.append(("images per second, at last", f"{speed:.0f}"))
    if memory := run.last("Resources/peak_mem_mb"):
        found.append(("memory at most", f"{memory:.0f} MB"))
    found.append(("device", str(run.table("train").get("device", "?"))))
    return found + [(name, str(version)) for name, version in run.versions.items()]


def data(found: Sequence[Chart], names: Sequence[str]) -> str:
    """The charts' numbers as JSON that may stand in a script."""
    content = {
        "names": list(names),
        "charts": [
            {
                "log": chart.log and decades(chart) > 1,
                "unit": chart.unit,
                "levels": [[name, value] for name, value in chart.levels],
                "curves": [{"label": c.label, "run": c.run} | as_columns(c.points) for c in chart.curves],
            }
            for chart in found
        ],
    }
    return json.dumps(content, allow_nan=False).replace("<", "\\u003c")


def decades(chart: Chart) -> float:
    """How many powers of ten a chart's values span; 0 if some are not positive."""
    values = [point[2] for curve in chart.curves for point in curve.points] + [value for _, value in chart.levels]
    return math.log10(max(values) / min(values)) if min(values) > 0 else 0.0


def as_columns(points: Points) -> dict[str, list[float]]:
    """Points as uPlot takes them."""
    return {name: [point[i] for point in points] for i, name in enumerate(("kimg", "time", "y"))}
