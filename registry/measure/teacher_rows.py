"""The teacher's rows of the table. Measuring is slow, so they are saved beside its file with everything that they depend on."""

from __future__ import annotations

import json
import math
import time
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter
from torch import Tensor

from registry.core import distributed
from registry.core.atomic import unused, write_atomically
from registry.core.contracts import Noise, Teacher
from registry.core.errors import UserError
from registry.core.version import versions
from registry.files.downloads import cache_folder
from registry.files.json_files import Digested, NoRecord, content, kept, parse_record, with_digest
from registry.files.locate import shipped
from registry.measure.guarded import Guarded
from registry.measure.measuring import measured
from registry.measure.rows import Metrics, Row
from registry.measure.saved import Name, SavedRow
from registry.recipe.resolved import plain
from registry.recipe.tables import EvalConfig
from registry.sample.heun import depends_on, heun_samples
from registry.show.journal import Journal


class Kept(Digested):
    """A row with everything that it depends on."""

    measured: dict[str, Any]
    row: SavedRow
    date: Name
    versions: dict[str, Any]


ROW = TypeAdapter(Kept)
ROWS = TypeAdapter(list[dict[str, Any]])
BEGINNING = b'[\n {\n  "measured": '
"""Of a file of rows."""
SET_ASIDE = ".damaged"


def teacher_rows(
    teacher: Teacher, noise: Noise, metrics: Metrics, config: EvalConfig, journal: Journal, fresh: bool = False, own: bool = False
) -> list[Row]:
    """One row for each number of the teacher's sampling steps. Saved rows are used if measured the same way, unless `fresh`.

    New rows are saved beside the teacher's file. For a shipped teacher they go to the cache, unless it is our `own` new one.
    """
    try:
        beside, target = places(teacher, own)
    except UserError as error:
        journal.log(f"the teacher's rows are not kept: {error}")
        beside = target = None
    kept: dict[str, Any] = {} if fresh else distributed.from_rank0(read_kept(beside) | read_kept(target))
    rows, said = list[Row](), dict[str, None]()
    for steps in config.teacher_steps:
        key = json.dumps(row_depends_on(teacher, noise, metrics, config, steps), sort_keys=True)
        found = distributed.from_rank0(kept[key] if key in kept and fits(kept[key]["row"], metrics, config, steps) else None)
        if found is not None:
            rows.append(Row(**found["row"]))
            rows[-1].note = f"measured {found['date']}"
            continue
        journal.log(f"measuring the teacher: {steps} Heun steps, {config.repeats} × {config.samples} images")

        def sample(part: range, steps: int = steps) -> Tensor:
            return heun_samples(teacher.denoiser, noise, teacher, part, steps, shared=True)

        row = measured("teacher", 2 * steps - 1, sample, metrics, config, journal)
        kept[key] = {"row": asdict(row), "date": time.strftime("%Y-%m-%d"), "versions": versions()}
        rows.append(row)
        if journal.active and target:  # now, so that an interruption costs one row at most
            said |= {keep(target, kept): None}
    for line in said:
        journal.log(line)
    return rows


def fits(row: dict[str, Any], metrics: Metrics, config: EvalConfig, steps: int) -> bool:
    """Whether a saved row is one of these measurements: a file can be edited."""
    values, columns = row["values"], {column for _, metric in metrics for column in metric.columns}
    whole = {*values} == columns and all(len(of) == config.repeats and all(map(math.isfinite, of)) for of in values.values())
    return bool(whole and (row["name"], row["evaluations"]) == ("teacher", 2 * steps - 1))


def places(teacher: Teacher, own: bool) -> tuple[Path | None, Path | None]:
    """Two paths: the teacher's rows beside its file, and where new rows are saved. None without a file. Raises UserError if there
    can be no cache."""
    if teacher.path is None:
        return None, None
    beside = teacher.path.with_suffix(".quality.json")
    to_cache = teacher.path.is_relative_to(shipped()) and not own
    return beside, cache_folder() / "quality" / beside.name if to_cache else beside


def read_kept(path: Path | None) -> dict[str, dict[str, Any]]:
    """The rows saved in a file that are whole, by everything that they depend on; none if it cannot be read."""
    rows = [whole(row) for row in kept(path, ROWS) or []] if path else []
    return {
        json.dumps(e.measured, sort_keys=True): {"row": vars(e.row) | {"note": ""}, "date": e.date, "versions": e.versions}
        for e in filter(None, rows)
    }


def whole(row: dict[str, Any]) -> Kept | None:
    """A row of a file, if it is what was written."""
    with suppress(NoRecord):
        return parse_record(json.dumps(row), ROW)
    return None


def is_damaged(path: Path) -> bool:
    """Whether a file of rows has one that is not what was written."""
    rows = kept(path, ROWS)
    return rows is None or not all(map(whole, rows))


def keep(path: Path, rows: dict[str, dict[str, Any]]) -> str:
    """Add rows to those saved in a file, and say so. If some there are damaged, it is set aside with them. A file of another kind
    that has this name stays."""
    entries = [with_digest({"measured": json.loads(key), **value}) for key, value in (read_kept(path) | rows).items()]
    aside, damaged = "", None
    try:
        if path.exists() and is_damaged(path):
            if not content(path).startswith(BEGINNING):
                return f"the teacher's rows are not saved: {path} is there and holds none, or cannot be read"
            damaged = path.rename(unused(path.with_name(path.name + SET_ASIDE)))
            aside = f"; the file before has damaged rows, and is {damaged.name} now"
        write_atomically(path, (json.dumps(entries, indent=1) + "\n").encode())
        return f"the teacher's rows are saved in {path}{aside}"
    except (UserError, OSError, NoRecord):
        with suppress(OSError):
            if damaged is not None:  # its whole rows are of use
                damaged.rename(path)
                aside = ""
        return f"the teacher's rows could not be saved in {path.parent}; they will be measured again{aside}"


def row_depends_on(teacher: Teacher, noise: Noise, metrics: Metrics, config: EvalConfig, steps: int) -> dict[str, Any]:
    """Everything that a teacher's row depends on, as plain values."""
    return (
        depends_on(teacher.denoiser, noise)
        | {
            "weights": teacher.weights or None,
            "steps": steps,
            "samples": config.samples,
            "repeats": config.repeats,
            "metrics": {choice.name: plain(choice.config) for choice, _ in metrics},
            "reference": {choice.name: metric.fingerprint for choice, metric in metrics},
        }
        | {f"code of {c.name}": m.code for c, m in metrics if isinstance(m, Guarded) and m.code}
    )
