"""Text that is safe to print: what comes from a file may hold codes that steer a terminal, or turn the line around."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any


def printable(text: str) -> str:
    """Text with a question mark for everything that cannot be seen, but for ends of lines."""
    return "".join(c if c.isprintable() or c == "\n" else "?" for c in text)


def one_line(text: object) -> str:
    """Text with a question mark for ends of lines, too: a file's name may have some."""
    return printable(str(text)).replace("\n", "?")


def shown(text: object, most: int = 200) -> str:
    """Text from a file or an error, on one line of a terminal."""
    words = text_of(text, str)
    line = printable(" ".join(words[:1000].split()))
    return cut(line, most)


def cut(text: str, most: int = 200) -> str:
    """A name as it was given, but for the end of one that is too long."""
    return text if len(text) <= most else text[:most] + "…"


def text_of(value: object, of: Callable[[object], str] = repr) -> str:
    """A value's text, whoever wrote its class: a stranger's error, nested too deeply, a number of thousands of digits."""
    try:
        return of(value)
    except (Exception, SystemExit, KeyboardInterrupt):  # a stranger's error may exit in the middle of its message
        return f"{kind(value)} without a text"


def printable_values(value: Any, most: int | None = None) -> Any:
    """Plain values, with all text in them as a terminal may show it, and of at `most` so many characters."""
    if isinstance(value, Mapping):
        return {printable(str(key)): printable_values(inner, most) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [printable_values(inner, most) for inner in value]
    return printable(value if most is None else cut(value, most)) if isinstance(value, str) else value


def is_text(value: object) -> bool:
    """Whether this is text that can be written as UTF-8."""
    try:
        return isinstance(value, str) and value.encode() is not None
    except UnicodeEncodeError:
        return False


def kind(value: object) -> str:
    """The name of a value's type, for messages that say what was given instead."""
    return type(value).__name__
