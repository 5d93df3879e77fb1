"""Results as files keep them: a run's quality.json, and what `distill evaluate` writes."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, FailFast, Field, TypeAdapter

from registry.core.errors import UserError
from registry.files.json_files import MOST_CHANGES, STRICT, Digested, Number, kept
from registry.files.locate import RECIPE
from registry.recipe.resolved import UNTRAINED, without_unlearned
from registry.recipe.texts import read_tables

Values = Annotated[list[Number], Field(min_length=1, max_length=1000), FailFast()]
MOST_ROWS, MOST_COLUMNS, MOST_CELLS = 200, 200, 10_000
"""Of a table."""
Evaluations = Annotated[int, Field(ge=0, le=10**9)]


def harmless(name: str) -> str:
    """A name that is printed as it is. Raises ValueError."""
    if not name.isprintable() or len(name) > 200:
        raise ValueError("is no name")
    return name


Name = Annotated[str, AfterValidator(harmless)]


def named(protocol: dict[str, Any]) -> dict[str, Any]:
    if not isinstance(protocol.get("metric"), str):
        raise ValueError("names no metric")
    return protocol


class Saved(Digested):
    """What both kinds of file say. Files of version 0.1 have no protocols, and no digest."""

    protocols: dict[str, Annotated[dict[str, Any], AfterValidator(named)]] = Field({}, max_length=MOST_COLUMNS)
    higher_is_better: Annotated[list[Name], FailFast()] = Field([], max_length=MOST_COLUMNS)


class SavedRow(BaseModel):
    """A row of a table."""

    model_config = STRICT
    name: Name
    evaluations: Evaluations | None
    values: dict[Name, Values] = Field(max_length=MOST_COLUMNS)


def few_columns(rows: list[SavedRow]) -> list[SavedRow]:
    """Rows that have no more cells together than a table that somebody can read. Raises ValueError."""
    columns = {column for row in rows for column in row.values}
    if len(columns) > MOST_COLUMNS or len(rows) * len(columns) > MOST_CELLS:
        raise ValueError(f"has {len(rows)} rows of {len(columns)} columns")
    return rows


class Quality(Saved):
    """A run's quality.json."""

    rows: Annotated[list[SavedRow], FailFast(), AfterValidator(few_columns)] = Field(min_length=1, max_length=MOST_ROWS)
    nimg: Annotated[int, Field(ge=0, le=10**15)] | None = None
    """Images of the run when it was measured; earlier versions did not say."""
    changed: Annotated[list[str], FailFast()] = Field([], max_length=MOST_CHANGES)
    """What it learned otherwise from some number of images on, if it was resumed with other settings."""
    learned_by: Name | None = None
    """The digest of the recipe that the run has learned by."""
    made_from: dict[Name, Name] = Field({}, max_length=10)
    """Hashes of what the run has loaded."""
    columns: dict[Name, Annotated[list[Name], Field(min_length=1, max_length=MOST_COLUMNS), FailFast()]] = Field(
        {}, max_length=MOST_COLUMNS
    )
    """By metric."""


MADE_FROM = {"teacher_weights": "teacher", "data_hash": "data"}
"""Of what a network's file says about it, what tells one teacher or data set from another; and the recipe's table that names it."""


class Best(Digested):
    """A run's best.json: its snapshot with the best number so far."""

    kimg: Number
    column: Name
    value: Number


class Summary(BaseModel):
    """The values of a column."""

    model_config = STRICT
    values: Values


class Evaluated(Saved):
    """The result of `distill evaluate`."""

    results: dict[Name, Annotated[dict[Name, Summary], Field(max_length=MOST_COLUMNS)]] = Field(max_length=MOST_COLUMNS)
    evaluations: Evaluations | None
    network: str


def learned_by(recipe: Path) -> str | None:
    """A digest of what a run has learned by, but for how long, as the recipe in its folder says; None if that cannot be read."""
    try:
        return digest_of_learned(read_tables(recipe))
    except UserError:
        return None


def digest_of_learned(tables: Mapping[str, Any]) -> str:
    """The same of a recipe's tables, which a network's file holds, too."""
    learned = {name: table for name, table in without_unlearned(tables).items() if name not in UNTRAINED}
    learned.get("train", {}).pop("duration_kimg", None)
    return hashlib.sha256(json.dumps(learned, sort_keys=True, default=str).encode()).hexdigest()[:16]


def kept_table(run: Path) -> Quality | None:
    """The table in a run's folder, if it can be read and is not that of another run."""
    found = kept(run / "quality.json", QUALITY)
    return found if found and is_of(found, run) else None


def is_of(table: Quality, run: Path) -> bool:
    """Whether a table is that of the run in this folder, as far as both say what was learned by."""
    return table.learned_by is None or learned_by(run / RECIPE) in (None, table.learned_by)


QUALITY = TypeAdapter(Quality)
BEST = TypeAdapter(Best)
EITHER: TypeAdapter[Quality | Evaluated] = TypeAdapter(Quality | Evaluated)
