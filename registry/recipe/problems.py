"""What is wrong with a setting, in words."""

from __future__ import annotations

from pydantic_core import ErrorDetails

from registry.core.errors import near
from registry.core.settings import Config
from registry.core.text import shown


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
    return f"= {shown(repr(found))}: {message}"
