"""Opens pictures of strangers: only as what training images are, and only up to a size."""

from __future__ import annotations

import io
import warnings
from pathlib import Path

from PIL import Image

SUFFIXES = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".bmp": "BMP", ".webp": "WEBP"}
"""The files that are taken for images. Pillow knows far more formats, and runs other programs for some of them."""
FORMATS = tuple(sorted(set(SUFFIXES.values())))
MOST_PIXELS = 2**26
"""The most pixels of a picture: 8192 × 8192."""
MOST_RATIO, SMALL = 500, 2**22
"""A picture of more bytes than SMALL, and of more than so many times those of its file, only fills the memory."""


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
    if 3 * size > max(SMALL, MOST_RATIO * length):
        raise ValueError(f"it has {image.width}×{image.height} pixels in a file of {length:,} bytes: it holds nothing but its size")
    try:
        image.load()
    except Exception as error:
        raise ValueError(" ".join(str(error).split()) or type(error).__name__) from None
    return image
