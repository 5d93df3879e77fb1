"""Pages and texts from templates."""

from __future__ import annotations

from pathlib import Path

from jinja2 import Environment, StrictUndefined, Template


def template(file: Path) -> Template:
    """The template in a file. In a page (.html) values are escaped. A value that is missing raises jinja2.UndefinedError."""
    page = file.suffix == ".html"
    environment = Environment(
        autoescape=page, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True
    )
    return environment.from_string(file.read_text(encoding="utf-8"))
