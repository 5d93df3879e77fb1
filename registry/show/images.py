"""Sets of images are read with a bar: of many it takes minutes."""

from __future__ import annotations

from registry.edm.datasets import Images, load_images
from registry.show.journal import Journal


def read_images(source: str, most: int | None = None, journal: Journal | None = None) -> Images:
    """What `load_images` gives, and how far it is meanwhile. Raises UserError."""
    with (journal or Journal()).progress("reading images") as bar:
        return load_images(source, most, lambda done, total: bar.at(done, total=total))
