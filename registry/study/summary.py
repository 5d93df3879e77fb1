"""Means, counts and tests of all combinations of a study."""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from registry.core.errors import SettingError
from registry.study.cells import Status
from registry.study.definition import Study
from registry.study.grid import as_label
from registry.study.results import Measured, Result
from registry.study.statistics import Effect, Values, averaged, common_end, holm, value_at

AxisLabels = tuple[str, tuple[str, ...]]
"""An axis, as far as tables need it: its name, and its variants' names, the reference first."""


@dataclass(frozen=True)
class Group:
    """All runs of one combination."""

    labels: tuple[str, ...]
    values: dict[str, dict[int, float]]
    """By column and seed: of the runs that have a number."""
    evaluations: int | None
    results: tuple[Result, ...]

    def count(self, *states: Status) -> int:
        return sum(result.status in states for result in self.results)

    def mean(self, column: str) -> float:
        return statistics.fmean(self.values[column].values()) if self.values.get(column) else math.nan

    def deviation(self, column: str) -> float:
        values = list(self.values.get(column, {}).values())
        return statistics.stdev(values) if len(values) > 1 else math.nan


@dataclass(frozen=True)
class Comparison:
    """One variant of an axis against the axis' first, the reference."""

    column: str
    axis: str
    variant: str
    reference: str
    at: tuple[str, ...] | None
    """The other axes' variants; None for the average over all of them."""
    effect: Effect
    p_holm: float

    @property
    def shown(self) -> bool:
        """Whether a difference is shown at 5 %, corrected for the number of comparisons."""
        return self.p_holm < 0.05


@dataclass(frozen=True)
class TeacherRows:
    """A teacher's numbers, beside those of its generators."""

    name: str
    rows: tuple[Measured, ...]


@dataclass(frozen=True)
class Summary:
    """What a study has found."""

    trained: bool
    """Whether the numbers are generators', over training seeds; otherwise they are teachers', over sampling seeds."""
    axes: tuple[AxisLabels, ...]
    columns: tuple[str, ...]
    """The first column of every metric."""
    groups: tuple[Group, ...]
    comparisons: tuple[Comparison, ...]
    teachers: tuple[TeacherRows, ...]
    floor: Measured | None
    time: float | None
    """Seconds of training at which the runs are compared; None: at their ends."""

    def group(self, labels: tuple[str, ...]) -> Group:
        return next(group for group in self.groups if group.labels == labels)


def named(axes: Sequence[str], labels: Sequence[str]) -> str:
    """Variants with the names of their axes: 'alpha 0.5, steps 2'."""
    return ", ".join(f"{axis.rpartition('.')[2]} {label}" for axis, label in zip(axes, labels, strict=True))


def summarise(study: Study, results: Sequence[Result]) -> Summary:
    """Means, counts and tests. Raises SettingError if the numbers at equal time are wanted, and there are none."""
    finished = [result for result in results if result.status is Status.DONE]
    columns = tuple(dict.fromkeys(column for result in finished for column in result.main))
    axes: tuple[AxisLabels, ...] = tuple((axis.name, tuple(v.label for v in axis.variants)) for axis in study.axes)
    time = equal_time(study, finished, columns)
    if study.measure == "teacher":
        steps = tuple(dict.fromkeys(str(row.evaluations) for result in finished for row in result.rows[1:] if row.evaluations))
        groups = teacher_groups(axes, steps, results, columns)
        axes = (*axes, ("evaluations", steps))
    else:
        groups = generator_groups(axes, results, columns, lambda result, column: number(result, column, time))
    compared = [c for column in columns for c in comparisons(axes, groups, column)]
    trained = study.measure == "generator"
    teachers = teachers_of(finished) if trained else ()  # otherwise they are the groups
    floor = next((result.floor for result in finished if result.floor), None)
    return Summary(trained, axes, columns, groups, tuple(compared), teachers, floor, time)


def equal_time(study: Study, finished: Sequence[Result], columns: Sequence[str]) -> float | None:
    """The longest training time that all finished runs reached; None if runs are compared at their ends."""
    if study.equal == "images" or not finished:
        return None
    if study.measure == "teacher":
        raise SettingError("equal", "teachers are not trained here, so they cannot be compared at equal time", study.equal)
    found = common_end(result.curve(columns[0], "seconds") for result in finished)
    if math.isnan(found):
        problem = "the runs have no measurements on the way; let eval.snapshot_samples be above 0"
        raise SettingError("equal", problem, study.equal)
    return found


def number(result: Result, column: str, time: float | None) -> float:
    """A run's number: at its end, or at a training time."""
    if result.status is not Status.DONE or result.generator is None:
        return math.nan
    return result.generator.mean(column) if time is None else value_at(result.curve(column, "seconds"), time)


def generator_groups(
    axes: Sequence[AxisLabels], results: Sequence[Result], columns: Sequence[str], read: Callable[[Result, str], float]
) -> tuple[Group, ...]:
    """One group for every combination, with a value for every training seed."""
    groups = []
    for labels in itertools.product(*(variants for _, variants in axes)):
        own = tuple(result for result in results if result.cell.combination.labels == labels)
        values = {column: {result.cell.seed: v for result in own if math.isfinite(v := read(result, column))} for column in columns}
        evaluations = next((result.generator.evaluations for result in own if result.generator), None)
        groups.append(Group(labels, values, evaluations, own))
    return tuple(groups)


def teacher_groups(
    axes: Sequence[AxisLabels], steps: Sequence[str], results: Sequence[Result], columns: Sequence[str]
) -> tuple[Group, ...]:
    """One group for every combination and number of the teacher's evaluations, with a value for every sampling seed."""
    groups = []
    for labels in itertools.product(*(variants for _, variants in axes)):
        own = tuple(result for result in results if result.cell.combination.labels == labels)
        rows = next((result.rows[1:] for result in own if result.status is Status.DONE), ())
        for count in steps:
            row = next((row for row in rows if str(row.evaluations) == count), None)
            values = {column: dict(enumerate(row.values.get(column, ()))) if row else {} for column in columns}
            groups.append(Group((*labels, count), values, int(count), own))
    return tuple(groups)


def comparisons(axes: Sequence[AxisLabels], groups: Sequence[Group], column: str) -> list[Comparison]:
    """Every variant against its axis' first: in every combination of the other axes, and averaged over those.

    The two kinds answer two questions, and each is corrected for its own number of comparisons.
    """
    by_labels = {group.labels: group.values.get(column, {}) for group in groups}
    overall: list[Comparison] = []
    single: list[Comparison] = []
    for i, (axis, variants) in enumerate(axes):
        others = list(itertools.product(*(names for j, (_, names) in enumerate(axes) if j != i)))
        for variant in variants[1:]:
            pairs: list[tuple[Values, Values]] = [
                (by_labels[(*at[:i], variant, *at[i:])], by_labels[(*at[:i], variants[0], *at[i:])]) for at in others
            ]
            kinds: list[tuple[tuple[str, ...] | None, Effect | None]] = [(None, averaged(pairs))] if len(others) > 1 else []
            kinds += [(at, averaged([pair])) for at, pair in zip(others, pairs, strict=True)]
            for at, effect in kinds:
                if effect is not None:
                    found = Comparison(column, axis, variant, variants[0], at, effect, math.nan)
                    (overall if at is None else single).append(found)
    return [*corrected(overall), *corrected(single)]


def corrected(found: Sequence[Comparison]) -> list[Comparison]:
    """With Holm's correction over all of them."""
    return [replace(c, p_holm=p) for c, p in zip(found, holm([c.effect.p for c in found]), strict=True)]


def teachers_of(finished: Sequence[Result]) -> tuple[TeacherRows, ...]:
    """Every teacher that the runs had, once, with all numbers of evaluations it was measured at."""
    found: dict[str, dict[int, Measured]] = {}
    for result in finished:
        rows = found.setdefault(teacher_name(result), {})
        for row in result.teachers:
            rows.setdefault(row.evaluations or 0, row)
    return tuple(TeacherRows(name, tuple(rows[n] for n in sorted(rows))) for name, rows in found.items() if rows)


def teacher_name(result: Result) -> str:
    """A teacher's file or kind, and its D, if the recipe says it."""
    table = result.cell.tables["teacher"]
    name = Path(table["source"]).stem if "source" in table else table["use"]
    return f"{name}, D = {as_label(table['D'])}" if "D" in table and f"d{as_label(table['D'])}" not in name else name
