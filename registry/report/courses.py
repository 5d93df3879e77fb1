"""The curves of a page: which numbers, against kimg and time, with a sentence that says how to read each."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from registry.measure.saved import SavedRow
from registry.report.history import History, Line, seconds_of

MOST_POINTS = 1500
"""Of a curve: a screen has no more."""
MOST_LEVELS = 4
"""Horizontal lines of a chart."""
Points = list[tuple[float, float, float]]
"""kimg, seconds of training, value."""


@dataclass(frozen=True)
class Curve:
    """A line of a chart: one number of one run."""

    label: str
    run: int
    """Which of the page's runs."""
    points: Points


@dataclass(frozen=True)
class Chart:
    """Curves that share a scale."""

    title: str
    unit: str
    reading: str
    """How to read it."""
    curves: list[Curve]
    log: bool = False
    levels: tuple[tuple[str, float], ...] = ()
    """Horizontal lines: what the teacher reaches, what real images would."""

    @property
    def summary(self) -> str:
        """The chart in words, for those who do not see it."""
        said = [f"{c.label}: from {c.points[0][2]:.4g} to {c.points[-1][2]:.4g}" for c in self.curves]
        return "; ".join([*said, *(f"{name} {value:.4g}" for name, value in self.levels)])


def charts(runs: Sequence[History], names: Sequence[str]) -> list[Chart]:
    """All charts that the runs have numbers for."""
    return [chart for chart in (*metric_charts(runs, names), *loss_charts(runs, names), *sign_charts(runs, names)) if chart.curves]


def metric_charts(runs: Sequence[History], names: Sequence[str]) -> Iterator[Chart]:
    """The first number of every metric at the snapshots."""
    for column in dict.fromkeys(column for run in runs for column in run.first_columns()):
        curves = []
        for i, run in enumerate(runs):
            found = [e for e in run.measurements.get(run.first_columns().get(column, ""), ()) if column in e["results"]]
            points = thinned([(e["kimg"], e.get("train_seconds", 0.0), e["results"][column]) for e in found])
            curves.append(Curve(label(names, i, column), i, points))
        higher = any(run.higher(column) for run in runs)
        lines = levels(runs, column)
        reading = f"At every snapshot; {'higher' if higher else 'lower'} is better. {fewer(runs)}{dashed(lines)}"
        yield Chart(column, "", reading, kept(curves), log=not higher, levels=lines)


def fewer(runs: Sequence[History]) -> str:
    """A sentence on the number of images, if snapshots are measured with one that is known."""
    lines = [line for run in runs for lines in run.measurements.values() for line in lines]
    counts = {line["samples"] for line in lines if line.get("samples") and isinstance(line["samples"], int)}
    if len(counts) != 1:
        return ""
    final = [p.get("images") for run in runs if run.quality for p in run.quality.protocols.values()]
    larger = ", and a distance is larger with fewer" if all(isinstance(n, int) and n > max(counts) for n in final) else ""
    return f"It is measured with {counts.pop():,} images here{larger}. "


def levels(runs: Sequence[History], column: str) -> tuple[tuple[str, float], ...]:
    """What each teacher with its most evaluations and real images reach in the final tables, where the runs agree on it."""
    found: dict[str, set[float]] = {}
    for run in runs:
        rows = run.quality.rows if run.quality else []
        teachers = [row for row in rows if row.evaluations is not None][1:2]  # the first is the run's own network
        for row in [*(() if run.is_pretraining else teachers), *(row for row in rows if row.evaluations is None)]:
            values = row.values.get(column)
            if values and all(map(math.isfinite, values)):
                name = "floor" if row.evaluations is None else f"{row_name(run, row, runs)}, {row.evaluations} evaluations"
                found.setdefault(name, set()).add(sum(values) / len(values))
    agreed = [(name, values.pop()) for name, values in found.items() if len(values) == 1]
    return tuple(sorted(agreed, reverse=True)[:MOST_LEVELS])


def row_name(run: History, row: SavedRow, runs: Sequence[History]) -> str:
    """What a row of a run's final table is called beside those of the other runs."""
    return teacher_name(run, runs) if row.name == "teacher" and not run.is_pretraining else row.name


def teacher_name(run: History, runs: Sequence[History]) -> str:
    """What a run's teacher is called beside those of the other runs: by its name, if there are several."""
    return f"teacher {run.teacher}" if len({other.teacher for other in runs if not other.is_pretraining}) > 1 else "teacher"


def dashed(lines: Sequence[tuple[str, float]]) -> str:
    """A sentence on the horizontal lines of a chart."""
    whose = [
        *(["of the teacher"] if any(name != "floor" for name, _ in lines) else []),
        *(["of real images"] if "floor" in dict(lines) else []),
    ]
    return f"Dashed: what the final table has {' and '.join(whose)}." if whose else ""


LOSSES = {
    "generator": (
        "The generator's loss",
        "It compares teacher and student, which learns all the time: when the student catches up the loss rises, when the "
        "generator gets ahead it falls. A fall and a rise are no alarm, and its height says nothing of quality.",
    ),
    "student": (
        "The student's loss",
        "The denoising loss on the generator's own images. It settles at the variance that no denoiser can remove; a steep rise "
        "means that the generator has changed faster than the student could follow.",
    ),
    "regression": ("The warm-up's loss", "The distance to the teacher's images of the same starts. It should fall."),
    "denoiser": ("The denoiser's loss", "It falls fast, and then slowly towards the variance that no denoiser can remove."),
}


def loss_charts(runs: Sequence[History], names: Sequence[str]) -> Iterator[Chart]:
    """Every learner's loss."""
    for name, (title, reading) in LOSSES.items():
        unit = "summed over an image's values, mean over images"
        yield Chart(title, unit, reading, curves_of(runs, names, f"Loss/{name}"), log=name in ("regression", "denoiser"))


def sign_charts(runs: Sequence[History], names: Sequence[str]) -> Iterator[Chart]:
    """Signs of convergence, gradients, values that are not finite, speed."""
    reading = (
        "How far the two denoisers differ on the generator's images. It should fall over the run; if it goes up and down by large "
        "factors, the student's rate is too low for the generator's."
    )
    yield Chart("Gap between teacher and student", "", reading, curves_of(runs, names, "Gap/all"), log=True)
    for name in ("generator", "student", "denoiser", "regression"):
        title = f"Norm of the {'warm-up' if name == 'regression' else name}'s gradient"
        reading = "Before clipping, mean of a tick. Adam divides by its size, so only jumps by orders of magnitude matter."
        yield Chart(title, "", reading, curves_of(runs, names, f"Gradient/{name}"), log=True)
    reading = "How far the network is from its average. While it is small, the average follows."
    yield Chart("Distance of the average", "relative", reading, curves_of(runs, names, "Average/distance"), log=True)
    reading = "Over the generator's images, mean over values. A fall to a fraction means that they become alike."
    yield Chart("Variance of the images", "", reading, curves_of(runs, names, "Images/variance"))
    reading = "Images dropped and gradient values replaced. It should stay at 0."
    yield Chart("Values that were not finite", "per tick", reading, guards(runs, names))
    yield Chart("Speed", "images per second", "Of training alone, without measuring.", curves_of(runs, names, "Timing/img_per_sec"))


def guards(runs: Sequence[History], names: Sequence[str]) -> list[Curve]:
    """The sums of all guards' counts."""
    count = lambda line: sum(value["mean"] for key, value in line.items() if key.startswith("Guard/"))  # noqa: E731
    return kept([Curve(label(names, i, "values"), i, course(run, count)) for i, run in enumerate(runs)])


def curves_of(runs: Sequence[History], names: Sequence[str], key: str) -> list[Curve]:
    """A number of the statistics, of all runs."""
    name = key.partition("/")[2]
    short = {"all": "gap", "img_per_sec": "images per second"}.get(name, name)
    return kept([Curve(label(names, i, short), i, course(run, lambda line: line[key]["mean"], key)) for i, run in enumerate(runs)])


def course(run: History, value: Callable[[Line], float], key: str | None = None) -> Points:
    """A number of the statistics, where it is there."""
    lines = [line for line in run.statistics if key is None or key in line]
    return thinned([(line["Progress/kimg"]["mean"], seconds_of(line), value(line)) for line in lines])


def label(names: Sequence[str], i: int, short: str) -> str:
    """What a curve is called: its run, if there are several."""
    return short if len(names) == 1 else names[i]


def kept(curves: list[Curve]) -> list[Curve]:
    """Those with points."""
    return [curve for curve in curves if curve.points]


def thinned(points: Points) -> Points:
    """Finite points, at most MOST_POINTS."""
    finite = [point for point in points if all(map(math.isfinite, point))]
    step = -(-len(finite) // MOST_POINTS) if finite else 1
    return finite[::step] + (finite[-1:] if finite and (len(finite) - 1) % step else [])
