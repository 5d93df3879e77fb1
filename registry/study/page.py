"""One page of a study, with everything inside: tables, tests, figures, images, and what it was made with."""

from __future__ import annotations

import base64
import math
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from registry.core.templates import template
from registry.core.text import printable
from registry.measure.protocol import in_words
from registry.recipe.resolved import dumps
from registry.report.history import grids
from registry.show.journal import duration
from registry.study.cells import Status
from registry.study.definition import Study
from registry.study.results import Result
from registry.study.sheets import Sheet, estimate
from registry.study.summary import Summary, named

TEMPLATE = Path(__file__).with_name("page.html")
MOST_PICTURES = 24


def page(
    name: str,
    study: Study,
    command: str,
    summary: Summary,
    results: Sequence[Result],
    tables: Sequence[Sheet],
    figures: Mapping[str, tuple[bytes, bytes]],
) -> str:
    """The page as HTML. `figures` are SVGs for light and for dark pages, by name."""
    first = summary.columns[0] if summary.columns else ""
    shown = {key: tuple(map(svg_address, pair)) for key, pair in figures.items()}
    return template(TEMPLATE).render(
        name=name,
        about=study.about,
        command=command,
        headline=headline(results),
        about_curves=about_curves(results),
        findings=findings(summary),
        tables=tables,
        figures={caption(key): pair for key, pair in shown.items() if key.startswith(f"{first}-")},
        more_figures={caption(key): pair for key, pair in shown.items() if not key.startswith(f"{first}-")},
        pictures=pictures(summary),
        lost=[r for r in results if r.status in (Status.FAILED, Status.DIVERGED)],
        results=results,
        main=first,
        duration=duration,
        definition=dumps(study.tables()).strip(),
        example=results[0].cell.line if results else "",
        provenance=provenance(results),
        date=time.strftime("%Y-%m-%d %H:%M"),
    )


def headline(results: Sequence[Result]) -> str:
    """How many runs there are, and how many of them came to what."""
    counts = Counter(result.status for result in results)
    parts = [f"{counts[state]} {state.value}" for state in Status if counts[state]]
    spent = sum(result.attempt.get("seconds", 0.0) for result in results)
    return f"{len(results)} runs: {', '.join(parts)}; {duration(spent)} of computing"


def findings(summary: Summary) -> list[str]:
    """A sentence for every metric: which differences are shown, and how large they are; of several axes, the averages only."""
    found = []
    for column in summary.columns:
        tested = [c for c in summary.comparisons if c.column == column and (c.at is None or len(summary.axes) == 1)]
        if tested and all(math.isnan(c.effect.p) for c in tested):
            found.append(f"{column}: nothing can be tested, since no two variants share two seeds with a number")
        elif tested:
            shown = [f"{named([c.axis], [c.variant])} against {c.reference}: {estimate(c.effect)}" for c in tested if c.shown]
            text = f"{column}: a difference is shown in {len(shown)} of {len(tested)} comparisons"
            found.append(text + (f": {'; '.join(shown)}" if shown else ""))
    return found


def about_curves(results: Sequence[Result]) -> str:
    """What is to be known of curves whose points are of fewer images than the tables; '' otherwise."""
    of_points, of_tables = ({result.cell.tables["eval"][key] for result in results} for key in ("snapshot_samples", "samples"))
    if not of_points or max(of_points) >= min(of_tables):
        return ""
    return (
        f"Over images and time, points are of {max(of_points):,} images, with the same sampling seeds in every run: a bad sample "
        f"shifts all runs, which the bands do not show. The tables are of {min(of_tables):,} images, several times."
    )


def provenance(results: Sequence[Result]) -> list[tuple[str, str]]:
    """What the runs were made with; where runs differ, every value with the number of runs."""
    keys: dict[str, Counter[str]] = {}
    names = Counter(Path(path).name for path in {path for result in results for path in result.attempt.get("sources", {})})
    for result in results:
        for key, value in result.attempt.get("made_with", {}).items():
            keys.setdefault(key, Counter())[str(value)] += 1
        if result.attempt:
            keys.setdefault("threads", Counter())[str(result.attempt.get("threads", ""))] += 1
        for path, digits in result.attempt.get("sources", {}).items():
            called = Path(path).name if names[Path(path).name] == 1 else path
            keys.setdefault(f"content of {printable(called)}", Counter())[digits] += 1
        for metric, line in in_words(result.protocols.values()).items():
            keys.setdefault(f"{metric} is measured with", Counter())[line] += 1
        if "copied_from" in result.attempt:
            keys.setdefault("copied from", Counter())[result.attempt["copied_from"]] += 1
    return [
        (key, "; ".join(value if n == len(results) else f"{value} ({n} runs)" for value, n in counts.items()))
        for key, counts in keys.items()
    ]


def pictures(summary: Summary) -> list[tuple[str, str]]:
    """The last grid of images of every combination's first finished run, as data addresses."""
    found = []
    for group in summary.groups[:MOST_PICTURES]:
        runs = [r.run for r in group.results if r.status is Status.DONE and r.run]
        drawn = [path for _, path in grids(runs[0]) if path.stem != "fakes_init"] if runs else []
        if drawn:
            label = named([name for name, _ in summary.axes], group.labels) or "generator"
            with suppress(OSError):  # it was there a moment ago
                found.append((label, address(max(drawn).read_bytes(), "image/png")))
    return found


OVER = {"kimg": "images seen", "time": "training time", "evaluations": "evaluations per image"}


def caption(name: str) -> str:
    """A figure's caption."""
    column, _, over = name.rpartition("-")
    return f"{column} over {OVER[over]}"


def svg_address(content: bytes) -> str:
    return address(content, "image/svg+xml")


def address(content: bytes, kind: str) -> str:
    """A file as an address that a page can hold."""
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"
