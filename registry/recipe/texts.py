"""The text of a recipe and of `--set`: TOML in, plain tables out. What they mean is for `reading`."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from registry.core.errors import UserError
from registry.core.text import cut, shown
from registry.files.json_files import NoRecord, content
from registry.recipe.resolved import Tables

MOST_CHARACTERS, DEEPEST, MOST_SETTINGS = 1_000_000, 50, 2000
"""Of a recipe."""
TEXTS = re.compile(
    r'''"""(?:[^"\\]|\\.|"(?!""))*+"""|\'\'\'(?:[^']|'(?!''))*+\'\'\'|"(?:[^"\\\n]|\\.)*+"|'[^'\n]*+'|\#[^\n]*+''', re.DOTALL
)
"""Texts and comments of TOML, in which brackets and dots mean nothing."""


def read_tables(path: Path) -> Tables:
    """A TOML file as plain tables. Raises UserError with line and column."""
    return read_text_and_tables(path)[1]


def read_text_and_tables(path: Path) -> tuple[str, Tables]:
    """The same, and the file's text."""
    try:
        text = content(path, 4 * MOST_CHARACTERS).decode("utf-8-sig")  # some editors write a mark first
        if too_nested(text):
            raise UserError(f"{path}: not a recipe: its tables or lists are nested too deeply, or it is too long")
        tables = tomllib.loads(text)
        check_integers(tables)
        if (number := settings_in(tables)) > MOST_SETTINGS:
            raise UserError(f"{path}: not a recipe: it has {number:,} settings, and no recipe has more than {MOST_SETTINGS:,}")
        return text, tables
    except RecursionError:
        raise UserError(f"{path}: not a recipe: its tables or lists are nested too deeply") from None
    except UnicodeDecodeError:
        raise UserError(f"{path}: not a text file in UTF-8, so not a recipe") from None
    except NoRecord as error:
        raise UserError(f"{path}: {error}, so not a recipe") from None
    except ValueError as error:  # also a number of thousands of digits
        what = "it has a whole number of more than 64 bits" if "integer string conversion" in str(error) else shown(error)
        raise UserError(f"{path}: not valid TOML: {what}") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from None


def settings_in(tables: Mapping[str, Any]) -> int:
    """How many settings and tables there are in tables."""
    return sum(1 + (settings_in(value) if isinstance(value, dict) else 0) for value in tables.values())


def check_integers(value: Any) -> None:
    """TOML's integers have 64 bits; tomllib takes more. Raises ValueError."""
    if isinstance(value, int) and not -(2**63) <= value < 2**63:
        raise ValueError("it has a whole number of more than 64 bits")
    for inner in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        check_integers(inner)


def too_nested(text: str) -> bool:
    """Whether a text has more brackets or dots in a row than any recipe: TOML's parser would recur, or take very long."""
    if len(text) > MOST_CHARACTERS:
        return True
    bare = re.sub(TEXTS, "s", text)
    depth = deepest = 0
    for bracket in re.findall(r"[\[{\]}]", bare):
        depth = depth + 1 if bracket in "[{" else max(depth - 1, 0)
        deepest = max(deepest, depth)
    return deepest >= DEEPEST or re.search(rf"(?<![\w-])(?:[\w-]++\s*+\.\s*+){{{DEEPEST}}}", bare) is not None


def parse_set(text: str, given: str = "--set") -> tuple[list[str], Any]:
    """'table.key=value' -> (['table', 'key'], value), the value read as TOML, or as a string if it is none. Raises UserError."""
    key, equals, value = text.partition("=")
    keys = [part.strip() for part in key.split(".")]
    if not equals or len(keys) < 2 or not all(keys):
        raise UserError(f"{given} {cut(text)}: write it as table.key=value, such as train.batch=128")
    if too_nested(value):
        raise UserError(f"{given} {shown(text, 60)}: its value is nested too deeply, or too long")
    try:
        found = tomllib.loads(f"value = {value}")["value"]
    except ValueError:
        found = value.strip()
    try:
        check_integers(found)
    except ValueError as error:
        raise UserError(f"{given} {shown(text, 60)}: {error}") from None
    return keys, found


def lay_over(base: Mapping[str, Any], top: Mapping[str, Any]) -> Tables:
    """`top` over `base`, table by table."""
    merged = dict(base)
    for key, value in top.items():
        both = isinstance(value, Mapping) and isinstance(merged.get(key), Mapping)
        merged[key] = lay_over(merged[key], value) if both else value
    return merged
