"""What a study is: its file, what a command line lays over it, and that it is valid."""

from __future__ import annotations

import math
from collections.abc import Container, Mapping
from itertools import chain
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, ValidationError, ValidationInfo, field_validator
from pydantic_core import ErrorDetails

from registry.core.errors import Mistakes, SettingError, UserError
from registry.core.seeds import ranges_of
from registry.core.settings import Config
from registry.core.text import shown
from registry.files.locate import locate_study
from registry.recipe.problems import in_words
from registry.recipe.resolved import Tables
from registry.recipe.texts import parse_set, read_tables
from registry.study.grid import Axis, Settings, axes_of, split_values

SCHEDULER = "slurm."
"""Overrides of this table are for the scheduler, not for the recipe."""
MOST_RUNS = 2000
"""Combinations times seeds."""


def parse_seeds(value: Any) -> Any:
    """'0-2,7' -> (0, 1, 2, 7). Raises ValueError. Anything but a text is left as it is."""
    if not isinstance(value, str):
        return value
    ranges = ranges_of(value)
    if sum(map(len, ranges)) > MOST_RUNS:
        raise ValueError(f"at most {MOST_RUNS:,} runs are made")
    return tuple(chain(*ranges))


class Study(Config):
    """A study's file."""

    about: str = Field("", description="what the study asks, in a sentence or two")
    recipe: str = Field(description="the recipe of all runs: a path, or the name of a shipped one")
    seeds: Annotated[tuple[Annotated[int, Field(ge=0, lt=2**32)], ...], BeforeValidator(parse_seeds), Field(strict=False)] = Field(
        (0, 1, 2, 3, 4), description="training seeds: a list, or a text such as '0-4'"
    )
    set: Annotated[tuple[str, ...], Field(strict=False)] = Field(
        (), description="settings of all runs: 'table.key=value'; {table.key} in a value is the value of that key"
    )
    vary: dict[str, Any] = Field({}, description="the axes: a key and its values, or a name and its variants")
    measure: Literal["generator", "teacher"] = Field(
        "generator", description="whose numbers are compared; the teacher's by evaluations, over sampling seeds"
    )
    equal: Literal["images", "time"] = Field(
        "images", description="compare the ends of the runs, or their values at the longest training time that all reached"
    )
    slurm: dict[str, Any] = Field({}, description="what the scheduler is asked for: parameters of submitit's AutoExecutor")

    @field_validator("seeds")
    @classmethod
    def _are_seeds(cls, value: tuple[int, ...]) -> tuple[int, ...]:
        if not value or len(set(value)) < len(value):
            raise ValueError("must be seeds, each once")
        return value

    @field_validator("set")
    @classmethod
    def _are_settings(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for text in value:
            try:
                parse_set(text)
            except UserError:
                raise ValueError(f"{text!r} must be written as 'table.key=value'") from None
        return value

    @field_validator("vary")
    @classmethod
    def _are_axes(cls, value: dict[str, Any], info: ValidationInfo) -> dict[str, Any]:
        runs = len(info.data.get("seeds", (0,))) * math.prod(len(axis.variants) for axis in axes_of(value))
        if runs > MOST_RUNS:
            raise ValueError(f"this study would have {runs:,} runs; at most {MOST_RUNS:,} are made")
        return value

    @property
    def axes(self) -> tuple[Axis, ...]:
        return axes_of(self.vary)

    @property
    def fixed(self) -> Settings:
        """What all runs set."""
        parsed = [parse_set(text) for text in self.set if not text.strip().startswith(SCHEDULER)]
        return {".".join(keys): value for keys, value in parsed}

    @property
    def scheduler(self) -> dict[str, Any]:
        """The parameters of the scheduler, those among the settings included."""
        parsed = [parse_set(text) for text in self.set if text.strip().startswith(SCHEDULER)]
        return self.slurm | {".".join(keys[1:]): value for keys, value in parsed}

    def tables(self) -> Tables:
        """As a file has it."""
        found = self.model_dump(mode="python", exclude_defaults=True)
        return {key: list(value) if isinstance(value, tuple) else value for key, value in found.items()}


def read_study(
    name: str | None = None,
    *,
    recipe: str | None = None,
    vary: tuple[str, ...] = (),
    seeds: str | None = None,
    sets: tuple[str, ...] = (),
    equal: str | None = None,
) -> Study:
    """The study in a file (or shipped under a bare name), with what is given laid over it. Raises UserError with all errors.

    An axis in `vary` ('loss.alpha=0.5,1') replaces the file's of the same name, or comes last; `sets` come after the file's.
    """
    path = locate_study(name) if name else None
    tables: Tables = read_tables(path) if path else {}
    given = {"recipe": recipe, "seeds": seeds, "equal": equal}
    tables |= {key: value for key, value in given.items() if value is not None}
    if vary and isinstance(axes := tables.get("vary", {}), Mapping):  # what is no table is told of below
        tables["vary"] = {**axes, **dict(map(parse_vary, vary))}
    if sets and isinstance(fixed := tables.get("set", []), list):
        tables["set"] = [*fixed, *sets]
    if "recipe" not in tables and path is None:
        raise SettingError("recipe", "name a recipe, or a study")
    if path and isinstance(tables.get("recipe"), str) and recipe is None:
        tables["recipe"] = beside(path, tables["recipe"])
    typed = {key for key, value in given.items() if value is not None} if path else tables
    return checked(tables, str(path or "this study"), typed)


def beside(path: Path, recipe: str) -> str:
    """A recipe's path is relative to the study's file, if it is there."""
    found = path.parent / recipe
    return str(found) if not Path(recipe).is_file() and found.is_file() else recipe


def checked(tables: Mapping[str, Any], where: str, typed: Container[str] = ()) -> Study:
    """A valid study. Raises SettingError if one `typed` setting is wrong, otherwise UserError with all errors, one a line."""
    try:
        return Study.model_validate(dict(tables))
    except ValidationError as error:
        details = error.errors(include_url=False)
        key = str(details[0]["loc"][0])
        if len(details) == 1 and key in typed:
            value = None if key in OWN_WORDS else tables[key]
            raise SettingError(key, details[0]["msg"].removeprefix("Value error, "), value) from None
        raise Mistakes(f"{where}: {in_a_line(detail)}" for detail in details) from None


OWN_WORDS = ("vary", "set")
"""What is wrong with an axis or a setting says itself which; the whole table would only hide that."""


def in_a_line(detail: ErrorDetails) -> str:
    """One of pydantic's errors."""
    key = str(detail["loc"][0])
    if key in OWN_WORDS and detail["type"] == "value_error":
        return f"{key}: {shown(detail['msg'].removeprefix('Value error, '), 300)}"
    return f"{key} {in_words(detail, Study)}".replace("a valid dictionary", "a table")


def parse_vary(text: str) -> tuple[str, list[Any]]:
    """'loss.alpha=0.5,1' -> ('loss.alpha', [0.5, 1]). Raises SettingError."""
    key, equals, values = text.partition("=")
    if not equals or "." not in key:
        raise SettingError("vary", "write it as table.key=value,value,…, such as loss.alpha=0.5,1", text)
    try:
        return key.strip(), split_values(values)
    except UserError as error:
        raise SettingError("vary", str(error), text) from None
