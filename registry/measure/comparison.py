"""One table of results from several files, of `distill evaluate` and of runs. What is measured in another way is marked."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich import box
from rich.table import Table
from rich.text import Text

from registry.core.errors import UserError
from registry.core.text import shown
from registry.files.json_files import NoRecord, read_record
from registry.files.locate import RECIPE
from registry.measure.protocol import Protocol, difference, in_words
from registry.measure.rows import Row, cell
from registry.measure.saved import EITHER, Quality, is_of

MARK = "†"


@dataclass
class Result:
    """A row that was read from a file, and how its numbers were measured."""

    row: Row
    source: Path
    """The run folder, or the network that was measured."""
    protocols: dict[str, Protocol] = field(default_factory=dict)
    """By column; empty in files of version 0.1."""
    higher: tuple[str, ...] = ()
    """The columns of which higher is better."""


def read_results(source: str) -> list[Result]:
    """The rows in a result of `distill evaluate` (.json), in a run's quality.json, or in a run folder. Raises UserError."""
    path = Path(os.path.expanduser(source))
    path = path / "quality.json" if path.is_dir() else path
    if path.exists() and not path.is_file():
        raise UserError(f"{path}: is not a file")
    try:
        found = read_record(path, EITHER)
    except FileNotFoundError as error:
        run = path.name == "quality.json" and (path.parent / RECIPE).is_file()
        what = "its run has not come to its end" if run else f"cannot be read: {error.strerror}"
        raise UserError(f"{path}: {what}") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror or error}") from None
    except NoRecord:
        raise UserError(f"{path}: neither a result of `distill evaluate` (.json) nor a run's quality.json, or damaged") from None
    if isinstance(found, Quality):
        if not is_of(found, path.resolve().parent):
            raise UserError(f"{path}: is the table of another run than the recipe.toml beside it")
        measured = path.resolve().parent
        rows = [Row(shown(row.name), row.evaluations, escaped(row.values)) for row in found.rows]
    else:
        measured = Path(found.network)
        values = {column: s.values for columns in found.results.values() for column, s in columns.items()}
        rows = [Row("", found.evaluations, escaped(values))]
    return [Result(row, measured, escaped(found.protocols), tuple(map(shown, found.higher_is_better))) for row in rows]


def escaped(value: Any) -> Any:
    """Plain values from a file, with all text as a terminal may show it."""
    if isinstance(value, dict):
        return {shown(key): escaped(inside) for key, inside in value.items()}
    if isinstance(value, list):
        return [escaped(inside) for inside in value]
    return shown(value, most=1000) if isinstance(value, str) else value


def distinct(sources: Iterable[Path]) -> dict[Path, str]:
    """Names for the sources: of their paths' last parts as many as tell them apart, without those that all have."""
    parts = {source: source.parts for source in sources}
    longest = max(map(len, parts.values()), default=1)
    count = next((n for n in range(1, longest) if len({p[-n:] for p in parts.values()}) == len(parts)), longest)
    last = {source: p[-count:] for source, p in parts.items()}
    while len(last) > 1 and all(len(p) > 1 for p in last.values()) and len({p[-1] for p in last.values()}) == 1:
        last = {source: p[:-1] for source, p in last.items()}
    return {source: "/".join(p) for source, p in last.items()}


def table_of_results(results: Sequence[Result]) -> Table:
    """All rows in one table. Below it: how each metric was measured for the first time, and what is unlike in marked numbers."""
    columns = dict.fromkeys(column for result in results for column in result.row.values)
    metric_of = {column: p["metric"] for result in results for column, p in result.protocols.items()}
    firsts = {metric: column for column, metric in reversed(metric_of.items())}.values()
    usual: dict[str, Protocol] = {}  # by metric
    for protocol in (p for result in results for p in result.protocols.values()):
        usual.setdefault(protocol["metric"], protocol)
    notes: dict[str, str] = {}

    def text(result: Result, column: str) -> str:
        mark, metric = "", metric_of.get(column, "")
        unlike = difference(result.protocols.get(column, {}), usual.get(metric, {}))
        if unlike and column in result.row.values:
            mark = " " + notes.setdefault(f"{metric}: {unlike}", f"{MARK}{len(notes) + 1}")
        return cell(result.row, column, column in result.higher if column in firsts else None, mark)

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, caption_justify="left")
    table.add_column("", overflow="fold")
    table.add_column("eval.", justify="right")
    for column in columns:
        table.add_column(Text(column), justify="right")
    names = distinct(result.source for result in results)
    for result in results:
        evaluations = "" if result.row.evaluations is None else str(result.row.evaluations)
        name = "\n".join(filter(None, (shown(names[result.source]), result.row.name)))
        table.add_row(Text(name), evaluations, *(Text(text(result, column)) for column in columns))
    lines = [f"{name}: {line}" for name, line in in_words(usual.values()).items()]
    table.caption = Text("\n".join([*lines, *(f"{mark} {note}" for note, mark in notes.items())]))
    return table
