"""Histories -> one HTML file that holds everything, and opens from the disk without a network."""

from __future__ import annotations

import base64
import json
import math
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from markupsafe import Markup

from registry.core.atomic import sweep, write_atomically
from registry.core.templates import template
from registry.core.version import versions
from registry.measure.protocol import in_words
from registry.measure.rows import in_text
from registry.plugins.loading import load_plugins
from registry.report.courses import Chart, Points, charts, row_name, teacher_name
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
    write_atomically(path, page([read_history(folder) for folder in folders]).encode(errors="replace"), durable=False)
    return path


def page(runs: Sequence[History]) -> str:
    """The page as HTML."""
    names = distinct_names(runs)
    found = charts(runs, names)
    return template(HERE / "page_of_runs.html").render(
        title=names[0] if len(runs) == 1 else f"{len(runs)} runs",
        runs=runs,
        names=names,
        sentences=[sentence(run) for run in runs],
        pictures=pictures(runs, names),
        table=table(runs, names),
        charts=found,
        settings=settings(runs),
        recipes=[run.recipe for run in runs],
        surroundings=[surroundings(run) for run in runs],
        data=Markup(data(found, names, marks(runs))),
        style=Markup((HERE / "uplot" / "uPlot.min.css").read_text(encoding="utf-8")),
        library=Markup((HERE / "uplot" / "uPlot.iife.min.js").read_text(encoding="utf-8")),
        script=Markup((HERE / "page_of_runs.js").read_text(encoding="utf-8")),
        made=f"{time.strftime('%Y-%m-%d %H:%M')}, distill {versions()['distill']}",
    )


def distinct_names(runs: Sequence[History]) -> list[str]:
    """The names of the runs' folders, or what tells their paths apart; and the losses, if the runs have several."""
    names = [run.name for run in runs]
    if len(set(names)) < len(runs):
        names = distinct_paths(runs)
    losses = ["" if run.is_pretraining else f" ({run.table('loss').get('use', '?')})" for run in runs]
    several = len({*losses} - {""}) > 1
    return [f"{name}{loss}" for name, loss in zip(names, losses, strict=True)] if several else names


def distinct_paths(runs: Sequence[History]) -> list[str]:
    """What tells the runs' paths apart, or else a number."""
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
    of = f" of {run.total:g}" if run.total and run.state != "finished" else ""
    after = f"{run.state} at {run.kimg:g}{of} kimg, after {duration(run.seconds)} of training"
    if run.is_pretraining:
        network, images = run.table("network"), Path(str(run.table("data").get("source", "?"))).name
        what = f"D = {text(network.get('D', math.inf))} ({network.get('arch', '?')})"
        return f"A teacher of {what} trained on {images}: {after}."
    steps, loss = run.table("generator").get("steps", 1), run.table("loss").get("use", "?")
    count = "one evaluation" if steps == 1 else f"{steps} evaluations"
    return f"The teacher {run.teacher}, distilled with the loss {loss} into a generator of {count}: {after}."


def pictures(runs: Sequence[History], names: Sequence[str]) -> dict[str, Any]:
    """Grids of the same seeds: real images and teachers, each once, and every run's snapshots."""
    still: dict[str, tuple[str, str]] = {}
    for name, run in zip(names, runs, strict=True):
        for caption, path, alt in still_pictures(run, teacher_name(run, runs)):
            source = address(path)
            if source in {shown for shown, _ in still.values()}:
                continue
            still[f"{caption}, for {name}" if caption in still else caption] = source, alt
    moving = [
        {
            "caption": learner(run) if len(runs) == 1 else name,
            "grids": [(f"{kimg:g}", address(path)) for kimg, path in run.snapshots],
            "alt": f"The {learner(run)}'s images after",
            "name": name,
        }
        for name, run in zip(names, runs, strict=True)
        if run.snapshots
    ]
    if all(run.is_pretraining for run in runs):
        reading = "An image in the same place has the same seed in every snapshot."
    else:
        reading = "An image in the same place has the same seed, so a generator can be compared with its teacher one by one."
    return {"still": [(caption, *picture) for caption, picture in still.items()], "moving": moving, "reading": reading}


def learner(run: History) -> str:
    """Whose images a run's snapshots are."""
    return "teacher" if run.is_pretraining else "generator"


def still_pictures(run: History, teacher: str) -> list[tuple[str, Path, str]]:
    """Caption, file and description of the grids that a run's snapshots are compared with."""
    found = []
    if "real" in run.pictures:
        found.append(("real images", run.pictures["real"], "Real images, for comparison; they have no seeds."))
    teachers = sorted((int(name.rpartition("-")[2]), path) for name, path in run.pictures.items() if name.startswith("teacher-"))
    for nfe, path in reversed(teachers):
        many = f"{nfe} evaluation{'s' * (nfe > 1)}"
        found.append((f"{teacher}, {many}", path, f"The teacher's images with {many}, of the generator's seeds."))
    return found


def address(path: Path) -> str:
    """A picture's bytes as an address."""
    return "data:image/png;base64," + base64.b64encode(path.read_bytes()).decode()


def table(runs: Sequence[History], names: Sequence[str]) -> dict[str, Any] | None:
    """The final tables: the runs' own networks, then teachers, then real images; what several runs share stands once."""
    columns = list(dict.fromkeys(column for run in runs if run.quality for row in run.quality.rows for column in row.values))
    rows: dict[tuple[int, str, str], list[str]] = {}
    for name, run in zip(names, runs, strict=True):
        for i, row in enumerate(run.quality.rows if run.quality else ()):
            own = len(runs) > 1 and (i == 0 or run.is_pretraining) and row.evaluations is not None
            rank = 2 if row.evaluations is None else int(i > 0)
            who, count = name if own else row_name(run, row, runs), "" if row.evaluations is None else str(row.evaluations)
            cells = [in_text(row.values[column]) if column in row.values else "" for column in columns]
            if rows.get((rank, who, count), cells) != cells:
                who = f"{who}, for {name}"
            rows[rank, who, count] = cells
    if not rows:
        return None
    ranked = sorted(rows.items(), key=lambda item: item[0][0])
    measured_like = dict.fromkeys(line for run in runs if run.quality for line in in_words(run.quality.protocols.values()).items())
    return {"columns": columns, "rows": [(who, count, *cells) for (_, who, count), cells in ranked], "like": measured_like}


def settings(runs: Sequence[History]) -> dict[str, Any]:
    """Of one run: the settings that are not the defaults. Of several: those that differ, run by run."""
    plugins = load_plugins()
    if len(runs) == 1:
        tables = runs[0].tables
        marked = unlike_defaults(runs[0], plugins)
        rows = [(f"[{t}] {k}", [text(tables[t][k])]) for t, k in sorted(marked, key=lambda pair: [*tables].index(pair[0]))]
        return {"title": "What differs from the defaults", "rows": rows}
    keys = dict.fromkeys((t, k) for run in runs for t, table in run.tables.items() if isinstance(table, dict) for k in table)
    found = {(t, k): [text(run.table(t).get(k)) for run in runs] for t, k in keys if t != "swap" and (t, k) != ("log", "outdir")}
    rows = [(f"[{t}] {k}", values) for (t, k), values in found.items() if len(set(values)) > 1]
    return {"title": "What differs between the recipes", "rows": rows}


def text(value: Any) -> str:
    """A setting as it stands in a recipe, but for the quotation marks of a text alone."""
    if value is None:
        return "—"
    if isinstance(value, Mapping):
        return f"{{ {', '.join(f'{key} = {inner(item)}' for key, item in value.items())} }}"
    if isinstance(value, list):
        return f"[{', '.join(map(inner, value))}]"
    if isinstance(value, bool):
        return str(value).lower()
    return f"{value:g}" if isinstance(value, float) else str(value)


def inner(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False) if isinstance(value, str) else text(value)


def surroundings(run: History) -> list[tuple[str, str]]:
    """Where and how fast it ran."""
    found = [("folder", str(run.path.absolute())), ("training", duration(run.seconds))]
    if speed := run.last("Timing/img_per_sec"):
        found.append(("images per second, at last", f"{speed:.0f}"))
    if memory := run.last("Resources/peak_mem_mb"):
        found.append(("memory at most", f"{memory:.0f} MB"))
    if (device := run.table("train").get("device")) not in (None, "auto"):
        found.append(("device", str(device)))
    return found + [(name, str(version)) for name, version in run.versions.items()]


def marks(runs: Sequence[History]) -> list[tuple[str, float, float]]:
    """Where the parts of a run with a warm-up begin: name, thousands of images, seconds of training. Of one run only."""
    if len(runs) > 1 or not runs[0].table("warmup").get("kimg"):
        return []
    starts = zip(("student alone", "game"), runs[0].ends.values(), strict=False)
    return [(name, kimg, runs[0].seconds_at(kimg)) for name, kimg in starts if kimg < runs[0].kimg]


def data(found: Sequence[Chart], names: Sequence[str], begun: Sequence[tuple[str, float, float]]) -> str:
    """The charts' numbers as JSON that may stand in a script."""
    content = {
        "names": list(names),
        "marks": [{"name": name, "kimg": kimg, "time": seconds} for name, kimg, seconds in begun],
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
