"""What the files that recipes name hold: runs that were made from different things under the same names are not comparable."""

from __future__ import annotations

import functools
import hashlib
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from registry.core.errors import SettingError, UserError
from registry.edm.image_files import LABELS, SUFFIXES, files_below
from registry.runs.states import states
from registry.study.cells import Cell, Status, read_attempt, run_folder, status

WHOLE, ENDS = 2**28, 2**20
"""Bytes of a file that is hashed as a whole, and of the beginning and end of a larger one that are."""


def held_now(before: Mapping[str, str], folder: Path) -> dict[str, str]:
    """What files hold now; folders are taken to hold what they held `before`, for it may take long to look into them. If the run
    in a cell's folder has a state that it goes on from, what they held when that run began."""
    begun = read_attempt(folder).get("sources")
    if begun is not None and has_a_state(folder):
        return begun
    return {path: digits(Path(path)) if os.path.isfile(path) else of for path, of in before.items()}


def with_sources(cells: Sequence[Cell]) -> tuple[Cell, ...]:
    """The cells with what the files and folders that their recipes name hold at present."""
    known: dict[str, str] = {}
    return tuple(replace(cell, sources=sources(cell.tables, known)) for cell in cells)


def sources(tables: Mapping[str, Any], known: dict[str, str]) -> dict[str, str]:
    """The files and folders that a resolved recipe names, and twelve digits each that change with what is in them; those of
    `known` files are taken from there, and others are added."""
    named = {text for name, table in tables.items() if name not in ("log", "swap") for text in texts(table)}
    paths = sorted(text for text in named if os.path.isabs(text) and os.path.exists(text))
    for path in paths:
        if path not in known:
            known[path] = digits(Path(path))
    return {path: known[path] for path in paths}


def texts(value: Any) -> Iterator[str]:
    """All texts in plain tables and lists."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping | list | tuple):
        for inner in value.values() if isinstance(value, Mapping) else value:
            yield from texts(inner)


def digits(path: Path) -> str:
    """Twelve digits that change with the bytes of a file; with the names and sizes of a folder's images, and with their labels. ''
    if it cannot be read: the run that tries will say why."""
    digest = hashlib.sha256()
    try:
        if path.is_dir():
            for file in files_below(path):
                if file.name == LABELS:
                    digest.update(file.read_bytes())
                elif file.suffix.lower() in SUFFIXES:
                    digest.update(f"{file.relative_to(path).as_posix()}\0{file.stat().st_size}\0".encode(errors="surrogateescape"))
        elif path.is_file():
            found = path.stat()
            digest.update(content_of(path, found.st_size, (found.st_dev, found.st_ino, found.st_mtime_ns, found.st_ctime_ns)))
    except (OSError, UserError):
        return ""
    return digest.hexdigest()[:12]


@functools.cache
def content_of(path: Path, size: int, which: tuple[int, ...]) -> bytes:
    """A hash of a file, which is `which` on its disk and has changed then. Raises OSError."""
    digest = hashlib.sha256()
    with open(path, "rb") as content:
        for begin in range(0, size, ENDS) if size <= WHOLE else (0, size - ENDS):
            content.seek(begin)
            digest.update(content.read(ENDS))
    digest.update(str(size).encode())
    return digest.digest()


def check_same_sources(cells: Sequence[Cell], outdir: Path) -> None:
    """Check that the files that the recipes name hold what they held when runs were begun that are there. Raises SettingError."""
    other: dict[str, list[Cell]] = {}
    for cell in cells:
        before = cell.attempt().get("sources", {})
        for path in before.keys() & cell.sources.keys() if keeps_something(cell) else ():
            if before[path] and cell.sources[path] and before[path] != cell.sources[path]:
                other.setdefault(path, []).append(cell)
    for path, of in sorted(other.items()):
        runs = f"{len(of)} run{'s' * (len(of) > 1)} ({of[0].name}{', …' * (len(of) > 1)})"
        problem = f"{path} holds something else than when {runs} began; put it back, move them away, or name another folder"
        raise SettingError("outdir", problem, str(outdir))


def keeps_something(cell: Cell) -> bool:
    """Whether a cell has a result, or a state that its run goes on from."""
    return status(cell)[0] is Status.DONE or has_a_state(cell.folder)


def has_a_state(folder: Path) -> bool:
    """Whether the run in a cell's folder has one to go on from."""
    run = run_folder(folder)
    return run is not None and bool(states(run))
