"""Opens pictures of strangers: only as what training images are, and only up to a size."""

from __future__ import annotations

import io
import mmap
import os
import re
import warnings
from pathlib import Path

from PIL import Image

from registry.core.errors import UserError
from registry.core.text import shown

SUFFIXES = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".bmp": "BMP", ".webp": "WEBP"}
"""The files that are taken for images. Pillow knows far more formats, and runs other programs for some of them."""
MOST_AGAIN = 10_000
"""How often links may lead to folders that were seen before: each that holds two such links doubles the folders."""
LABELS = "dataset.json"
"""EDM's list of labels."""
FORMATS = tuple(sorted(set(SUFFIXES.values())))
MOST_PIXELS = 2**26
"""The most pixels of a picture: 8192 × 8192."""
MOST_RATIO, SMALL = 500, 2**22
"""A picture of more bytes than SMALL, and of more than so many times those of its file, only fills the memory."""
MOST_PIXELS_A_BYTE, PIXELS_A_BYTE = 38, {"WEBP": 26}
"""And so does one of more pixels for each byte of its file, or of 1 MiB: decoding and conversion take up to 12 bytes each; of some
formats, whose pictures may move, up to 18."""
MOST_SCANS = 100
"""Of a JPEG: each goes over the whole picture. Progressive ones have about ten."""


def open_picture(content: bytes | Path) -> Image.Image:
    """The picture in a file, decoded. Raises ValueError with the reason if it is none or too large."""
    length = len(content) if isinstance(content, bytes) else content.stat().st_size
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # our own limit is below
            image = Image.open(io.BytesIO(content) if isinstance(content, bytes) else content, formats=FORMATS)
    except Image.DecompressionBombError:
        raise ValueError(f"it has more than {MOST_PIXELS:,} pixels") from None
    except Exception as error:
        raise ValueError(" ".join(str(error).split()) or type(error).__name__) from None
    size = image.width * image.height
    if size > MOST_PIXELS:
        raise ValueError(f"it has {image.width}×{image.height} pixels; at most {MOST_PIXELS:,} are read")
    most = PIXELS_A_BYTE.get(image.format or "", MOST_PIXELS_A_BYTE)
    if 3 * size > max(SMALL, MOST_RATIO * length) or size > most * max(2**20, length):
        raise ValueError(f"it has {image.width}×{image.height} pixels in a file of {length:,} bytes: it holds nothing but its size")
    if image.format == "BMP" and image.info.get("compression") in (1, 2):  # whose lines Pillow fills byte by byte
        raise ValueError("it is a compressed BMP; save it as PNG")
    if image.format not in ("PNG", "BMP", "WEBP") and scans(content) > MOST_SCANS:  # MPO, too: a camera's JPEG
        raise ValueError(f"it goes over the picture more than {MOST_SCANS} times")
    try:
        image.load()
    except Exception as error:
        raise ValueError(" ".join(str(error).split()) or type(error).__name__) from None
    return image


def scans(content: bytes | Path) -> int:
    """How often a JPEG goes over the picture, or more. Among its numbers a byte 0xff is never followed by 0xda."""
    if isinstance(content, bytes):
        return content.count(b"\xff\xda")
    with open(content, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
        return sum(1 for _ in re.finditer(rb"\xff\xda", mapped))


def files_below(folder: Path) -> list[Path]:
    """The files of a folder and of those in it, links followed, in order. Raises UserError if a folder cannot be read, a link leads
    nowhere or back to where it stands, or an image or a list of labels is no file: what is left out would not be missed."""
    found, folders, met, again = list[Path](), [(folder, frozenset[str]())], set[str](), 0
    while folders:
        place, above = folders.pop()
        if (real := os.path.realpath(place)) in above:
            raise UserError(f"{shown(place)}: is a link to a folder that it stands in")
        again += real in met
        met.add(real)
        if again > MOST_AGAIN:
            raise UserError(f"{shown(folder)}: leads to its folders again more than {MOST_AGAIN:,} times, by links to them")
        try:
            for entry in os.scandir(place):
                path = place / entry.name
                wanted = path.suffix.lower() in SUFFIXES or path.name == LABELS
                if entry.is_file():
                    found.append(path)
                elif entry.is_dir() and path.name != LABELS:
                    folders.append((path, above | {real}))
                elif entry.is_symlink() and not path.exists():
                    raise UserError(f"{shown(path)}: is a link that leads nowhere")
                elif wanted:
                    raise UserError(f"{shown(path)}: is no regular file")
        except OSError as error:
            raise UserError(f"{shown(place)}: cannot be read: {error.strerror or error}") from None
    return sorted(found)
