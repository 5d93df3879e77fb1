"""What a notebook shows of our objects: a picture and what is known, in HTML without scripts."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from html import escape

from PIL import Image


def facts_and_picture(title: str, facts: Mapping[str, str], picture: Image.Image | None, below: str = "") -> str:
    """A title, names and values, and a picture if there is one."""
    rows = "".join(
        f"<tr><th style='text-align:left'>{escape(k)}</th><td style='text-align:left'>{escape(v)}</td></tr>"
        for k, v in facts.items()
    )
    shown = "" if picture is None else f"<div>{image_tag(picture, f'images of the {title}')}</div>"
    return f"<div><b>{escape(title)}</b><table>{rows}</table>{shown}{below}</div>"


def image_tag(picture: Image.Image, alt: str) -> str:
    """A picture that stands in the page itself."""
    buffer = io.BytesIO()
    picture.save(buffer, format="PNG")
    data = base64.b64encode(buffer.getvalue()).decode()
    return (
        f"<img alt='{escape(alt, quote=True)}' style='image-rendering:pixelated;max-width:100%' src='data:image/png;base64,{data}'>"
    )


def html_table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table of texts."""
    top = "".join(f"<th style='text-align:left'>{escape(h)}</th>" for h in headings)
    body = "".join("<tr>" + "".join(f"<td style='text-align:left'>{escape(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    return f"<table><tr>{top}</tr>{body}</table>"
