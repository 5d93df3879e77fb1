"""Tables as text: for Markdown, for a page, for a terminal, and as CSV."""

from __future__ import annotations

import csv
import io
import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

from rich.table import Table

from registry.study.cells import Status
from registry.study.results import Measured, Result
from registry.study.statistics import Effect
from registry.study.summary import Comparison, Group, Summary, named


@dataclass(frozen=True)
class Sheet:
    """A table of texts."""

    title: str
    head: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    left: int = 1
    """How many columns are names; the others are numbers."""
    note: str = ""


def sheets(summary: Summary) -> list[Sheet]:
    """All tables of a study, in their order."""
    found = [results_sheet(summary)]
    if len(summary.axes) > 1 and all(len(labels) > 1 for _, labels in summary.axes) and summary.columns:
        found.append(crossed_sheet(summary))
    if summary.teachers or summary.floor:
        found.append(teachers_sheet(summary))
    for column in summary.columns:
        tested = [c for c in summary.comparisons if c.column == column]
        averages = [c for c in tested if c.at is None]
        found += [tests_sheet(summary, column, averages, "averaged over the other axes")] if averages else []
        single = [c for c in tested if c.at is not None]
        found += [tests_sheet(summary, column, single, "in every combination" if averages else "")] if single else []
    return found


def spread(mean: float, deviation: float) -> str:
    """mean ± standard deviation; a dash without a mean."""
    if math.isnan(mean):
        return "–"
    return f"{mean:.3g}" + ("" if math.isnan(deviation) else f" ± {deviation:.2g}")


def lost(group: Group) -> str:
    """What became of the runs that have no number: '2 of 5 failed'; '' if all have one."""
    words = {Status.FAILED: "failed", Status.DIVERGED: "diverged", Status.UNFINISHED: "unfinished", Status.WAITING: "not run"}
    return ", ".join(f"{n} of {len(group.results)} {word}" for state, word in words.items() if (n := group.count(state)))


def results_sheet(summary: Summary) -> Sheet:
    """Every combination: mean ± standard deviation of every metric, number of runs, and their length (if they were trained)."""
    names, rows = [name for name, _ in summary.axes], []
    any_lost, trained = any(map(lost, summary.groups)), summary.trained
    for group in summary.groups:
        numbers = [spread(group.mean(c), group.deviation(c)) for c in summary.columns]
        n = max((len(values) for values in group.values.values()), default=0)
        done = [r for r in group.results if r.status is Status.DONE]
        kimg, seconds = mean_of([r.kimg for r in done]), mean_of([r.seconds for r in done])
        length = (number(kimg, 4), number(seconds, 3)) if trained else ()
        rows.append((*group.labels, *numbers, str(n), *length, *([lost(group)] if any_lost else [])))
    at = f" after {summary.time:.3g} s of training" if summary.time is not None else ""
    title = f"Results{at}: mean ± standard deviation over {'training' if trained else 'sampling'} seeds"
    length_heads = () if not trained else ("kimg", "training, s") if summary.time is None else ("kimg in all", "training in all, s")
    heads = (*names, *summary.columns, "n", *length_heads, *(["without a number"] if any_lost else []))
    return Sheet(title, heads, tuple(rows), len(names))


def mean_of(values: Sequence[float]) -> float:
    return fmean(values) if values else math.nan


def number(value: float, digits: int) -> str:
    return "–" if math.isnan(value) else f"{value:.{digits}g}"


def crossed_sheet(summary: Summary) -> Sheet:
    """The first metric: the first axis down, all others across."""
    (first, variants), *others = summary.axes
    across = list(itertools.product(*(labels for _, labels in others)))
    heads = tuple(named([name for name, _ in others], at) for at in across)
    rows = tuple(
        (v, *(spread((g := summary.group((v, *at))).mean(summary.columns[0]), g.deviation(summary.columns[0])) for at in across))
        for v in variants
    )
    return Sheet(f"{summary.columns[0]}, crossed", (first, *heads), rows)


def teachers_sheet(summary: Summary) -> Sheet:
    """Teachers by evaluations, and the floor; the spread is over sampling seeds."""

    def line(name: str, row: Measured) -> tuple[str, ...]:
        numbers = []
        for column in summary.columns:
            group = Group((), {column: dict(enumerate(row.values.get(column, ())))}, None, ())
            numbers.append(spread(group.mean(column), group.deviation(column)))
        return (name, "" if row.evaluations is None else str(row.evaluations), *numbers)

    rows = [line(teacher.name, row) for teacher in summary.teachers for row in teacher.rows]
    rows += [line("real images against real images", summary.floor)] if summary.floor else []
    return Sheet(
        "Teachers and floor: mean ± standard deviation over sampling seeds", ("", "evaluations", *summary.columns), tuple(rows)
    )


def tests_sheet(summary: Summary, column: str, found: Sequence[Comparison], where: str) -> Sheet:
    """Comparisons of one column."""
    ratio = all(c.effect.scale == "ratio" for c in found)
    rows = tuple(
        (c.axis, f"{c.variant} against {c.reference}", *([place(summary, c)] if c.at else []), estimate(c.effect),
         *(p_text(p) for p in (c.effect.p, c.p_holm)), str(c.effect.n), "–" if math.isnan(c.p_holm) else "yes" if c.shown else "no")
        for c in found
    )  # fmt: skip
    note = (
        f"A {'ratio below 1' if ratio else 'difference below 0'} means a lower {column} than the reference's. Paired t test over "
        f"seeds{' on logarithms' if ratio else ''}; Holm's correction over the {len(found)} comparison{'s' * (len(found) != 1)} of "
        f"this table."
    )
    at = ("at",) if any(c.at for c in found) else ()
    heads = ("axis", "compared", *at, "ratio [95 %]" if ratio else "difference [95 %]", "p", "p, Holm", "n", "differs")
    return Sheet(f"Tests: {column}{', ' * bool(where)}{where}", heads, rows, 2 + len(at), note)


def place(summary: Summary, comparison: Comparison) -> str:
    """Where a comparison was made: the other axes' variants; '' if there are none or they are averaged."""
    return named([name for name, _ in summary.axes if name != comparison.axis], comparison.at) if comparison.at else ""


def estimate(effect: Effect) -> str:
    """The estimate with its interval, if there is one; a ratio that is not 1 has so many digits that it does not read as 1."""
    numbers = [n for n in (effect.estimate, effect.low, effect.high) if not math.isnan(n)]
    ratio = effect.scale == "ratio"
    digits = next((d for d in range(3, 9) if not (ratio and any(float(f"{n:.{d}g}") == 1 != n for n in numbers))), 9)
    first, *interval = (f"{n:.{digits}g}" for n in numbers)
    return f"{first} [{', '.join(interval)}]" if interval else first


def p_text(p: float) -> str:
    return "–" if math.isnan(p) else "< 0.001" if p < 0.001 else f"{p:.3f}"


def markdown(found: Sequence[Sheet]) -> str:
    """The tables in Markdown."""
    texts = []
    for sheet in found:
        lines = [sheet.head, tuple("---" if i < sheet.left else "---:" for i in range(len(sheet.head))), *sheet.rows]
        table = "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)
        texts.append(f"**{sheet.title}**\n\n{table}\n" + (f"\n{sheet.note}\n" if sheet.note else ""))
    return "\n".join(texts)


def rich_table(sheet: Sheet) -> Table:
    """A table for a terminal."""
    table = Table(title=sheet.title, title_justify="left", caption=sheet.note or None, caption_justify="left")
    for i, head in enumerate(sheet.head):
        table.add_column(head, justify="left" if i < sheet.left else "right")
    for row in sheet.rows:
        table.add_row(*row)
    return table


def csv_text(summary: Summary, results: Sequence[Result], names: Sequence[str]) -> str:
    """One line for every cell: axes, seed, status, numbers at the end of the run, length, error, folder."""
    columns = sorted({c for r in results if r.generator for c in r.generator.values}, key=lambda c: (c not in summary.columns, c))
    text = io.StringIO()
    lines = csv.writer(text, lineterminator="\n")
    lines.writerow([*names, "seed", "status", *columns, "evaluations", "kimg", "train_seconds", "error", "folder"])
    for result in results:
        row = result.generator
        numbers = [row.mean(c) if row and c in row.values else "" for c in columns]
        cell = result.cell
        lines.writerow([
            *cell.combination.labels, cell.seed, result.status, *numbers, row.evaluations if row else "", result.kimg,
            round(result.seconds, 3), result.error, result.run.as_posix() if result.run else "",
        ])  # fmt: skip
    return text.getvalue()
