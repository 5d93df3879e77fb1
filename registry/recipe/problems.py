"""What is wrong with a setting, in words."""

from __future__ import annotations

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from registry.core.errors import near
from registry.core.settings import Config
from registry.core.text import shown, text_of

Place = tuple[int | str, ...]


def problems(error: ValidationError, config: type[Config]) -> dict[Place, str]:
    """What is wrong, by place in the table: in words that follow '[table] key'.

    Where a setting may be one of several things, pydantic names what it is not, one by one; here that is one problem.
    """
    found: dict[Place, list[str]] = {}
    for detail in error.errors(include_url=False):
        place = tuple(part for i, part in enumerate(detail["loc"]) if i == 0 or isinstance(part, int))
        words = in_words(detail, config)
        if detail["type"] == "missing" and isinstance(place[-1], int):  # of a list of fixed length
            place, words = place[:-1], f"= {shown(repr(detail['input']))}: has too few entries"
        found.setdefault(place, []).append(words)
    return {place: _either(list(dict.fromkeys(texts))) for place, texts in found.items()}


def _either(texts: list[str]) -> str:
    """`= x: must be a` and `= x: must be b` as `= x: must be a, or b`."""
    first, *others = texts
    same = [text.partition(": must be ") for text in others if text.partition(": must be ")[0] == first.partition(": must be ")[0]]
    return first + "".join(f", or {rest}" for _, _, rest in same)


def in_words(error: ErrorDetails, config: type[Config]) -> str:
    """One of pydantic's errors in plain words, to follow '[table] key'."""
    kind, found, message = error["type"], error["input"], error["msg"]
    fields = config.model_fields
    if kind == "extra_forbidden":
        return f"is unknown{near(str(error['loc'][-1]), list(fields))}; allowed: {', '.join(fields)}"
    if kind == "missing":
        about = fields[str(error["loc"][-1])].description if str(error["loc"][-1]) in fields else None
        return "is missing" + (f": {about}" if about else "")
    message = message.removeprefix("Value error, ").removeprefix("Input should be ")
    message = {"a valid tuple": "a list, written as [a, b]", "a valid boolean": "true or false"}.get(message, message)
    bounds = error.get("ctx", {})
    plain = {
        "too_short": "must have at least {min_length} entries", "too_long": "must have at most {max_length} entries",
        "string_too_short": "must not be empty",
    }  # fmt: skip
    message = plain[kind].format(**bounds) if kind in plain else message if kind == "value_error" else f"must be {message}"
    return f"= {shown(text_of(found))}: {message}"
