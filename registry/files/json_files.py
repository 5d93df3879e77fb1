"""Small files that the package writes for itself. What is read is checked: anything may lie in their place.

A schema is a pydantic type. Its parser has a limit of depth, and takes NaN and Infinity, as Python writes them.
"""

from __future__ import annotations

import hashlib
import json
import os
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, TypeAdapter, ValidationError, model_validator

T = TypeVar("T")
MOST_BYTES = 64 * 2**20
MOST_CHANGES = 1000
"""Of a run's settings while it learned, the last that its records name."""
LARGEST = 1e150
"""Of finite numbers in a record; the mean and the variance of several are finite, too."""


class NoRecord(ValueError):
    """A file is none of ours, or is damaged. The message says why, in a few words."""


def bounded(found: Any) -> Any:
    """What stands in the file, before it becomes a float: an integer too large for one would become infinite."""
    if isinstance(found, int | float) and LARGEST < abs(found) < float("inf"):
        raise ValueError("beyond all bounds")
    return found


Number = Annotated[float, BeforeValidator(bounded)]
"""Of a measurement; it may be infinite or NaN."""
STRICT = ConfigDict(strict=True, extra="ignore")


class Digested(BaseModel):
    """A record that may have a digest of all that it says: then it is refused if it says something else by now."""

    model_config = STRICT

    @model_validator(mode="before")
    @classmethod
    def unchanged(cls, found: Any) -> Any:
        if isinstance(found, dict) and not is_unchanged(found):
            raise ValueError("is not what was written")
        return found


def with_digest(record: Mapping[str, Any]) -> dict[str, Any]:
    """A record as it will be read, and a digest of it."""
    text = json.dumps(record, ensure_ascii=False).encode(errors="replace")  # a path may have bytes that are no characters
    plain = json.loads(text)
    return {**plain, "digest": digest_of(plain)}


def is_unchanged(record: Mapping[str, Any]) -> bool:
    """Whether a record says what it said when it was written, as far as it has a digest."""
    return "digest" not in record or record["digest"] == digest_of(record)


def digest_of(record: Mapping[str, Any]) -> str:
    """Sixteen digits of all that a record says but its digest."""
    rest = {name: value for name, value in record.items() if name != "digest"}
    return hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()[:16]


def content(path: Path, most: int = MOST_BYTES) -> bytes:
    """What a regular file holds; a pipe in its place is not waited for. Raises OSError and NoRecord."""
    handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    with open(handle, "rb") as file:
        found = os.fstat(handle)
        if not stat.S_ISREG(found.st_mode):
            raise NoRecord("is not a file")
        if found.st_size > most:
            raise NoRecord("is too long")
        whole = file.read(most + 1)
    if whole is None or len(whole) > most:  # what the system makes up as it is read has no size
        raise NoRecord("is not a file" if whole is None else "is too long")
    return whole


def read_record(path: Path, schema: TypeAdapter[T]) -> T:
    """The record in a JSON file. Raises OSError and NoRecord."""
    return parse_record(content(path), schema)


def parse_record(text: str | bytes, schema: TypeAdapter[T]) -> T:
    """The record in JSON text. Raises NoRecord."""
    try:
        return schema.validate_json(text, strict=True)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False, include_context=False)[0]
        where = ".".join(map(str, first["loc"]))
        raise NoRecord(f"{where}: {first['msg']}" if where else first["msg"]) from None


def kept(path: Path, schema: TypeAdapter[T]) -> T | None:
    """The record in a JSON file, or None if there is none that can be read."""
    try:
        return read_record(path, schema)
    except (OSError, NoRecord):
        return None


ANYTHING: TypeAdapter[dict[str, Any]] = TypeAdapter(dict[str, Any])
"""A record whose reader checks it."""
