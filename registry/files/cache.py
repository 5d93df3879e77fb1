"""What lies in the cache folder, and removing it. All of it can be had again; what people have put there is not ours to remove."""

from __future__ import annotations

import re
from pathlib import Path

from registry.core.errors import UserError
from registry.files.downloads import cache_folder

FOLDERS = {
    "statistics": ("statistics of real images", r"[0-9a-f]{16}-[0-9a-f]{16,64}(-[\w-]+)?\.npz"),
    "quality": ("measured rows of shipped teachers", r"[\w.-]+\.quality\.json"),
    "pairs": ("pairs of warm-ups", r"[0-9a-f]{16}\.pt"),
}
"""What is in them, and the names of our files there, which a killed writer's are made from."""
DOWNLOADS, YOURS = "downloads", "yours: put here by hand"


def contents() -> dict[str, list[Path]]:
    """The files of the cache folder, by what they are."""
    folder = cache_folder()
    found: dict[str, list[Path]] = {DOWNLOADS: [], **{what: [] for what, _ in FOLDERS.values()}, YOURS: []}
    for path in sorted(folder.rglob("*")) if folder.is_dir() else ():
        if path.is_file() and not path.name.endswith(".lock"):
            top, *rest = path.relative_to(folder).parts
            what, name = FOLDERS.get(top, (YOURS, ""))
            if not rest:
                what = DOWNLOADS if re.match("[0-9a-f]{12}-", top) else YOURS
            elif what != YOURS and (len(rest) > 1 or not re.fullmatch(rf"{name}|\.{name}\.[0-9a-f]{{8}}\.distill", path.name)):
                what = YOURS
            found[what].append(path)
    return found


def clear() -> int:
    """Remove all but what people have put there; gives the number of bytes. Raises UserError."""
    removed = 0
    for path in [path for what, paths in contents().items() if what != YOURS for path in paths]:
        try:
            size = path.stat().st_size
            path.unlink()
        except FileNotFoundError:  # another command was faster
            continue
        except OSError as error:
            raise UserError(f"{path}: cannot be removed: {error.strerror}") from None
        removed += size
    return removed
