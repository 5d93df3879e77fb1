"""JSON lines as runs write them, in EDM's form: statistics at ticks, and measurements at snapshots."""

from __future__ import annotations

import errno
import json
import os
import stat
from contextlib import suppress
from pathlib import Path
from typing import Any

from registry.files.json_files import LARGEST, NoRecord, content, is_unchanged, with_digest

STATISTICS = "stats.jsonl"
MOST_LINES = 2**30
"""Bytes of a JSON-lines file: far more than a run writes in months."""


def append_line(path: Path, entry: dict[str, Any]) -> None:
    """Add an entry with its digest, on a line of its own also if the last one was cut off. A new file for which the disk has no
    room is not left behind. Raises OSError, also for a pipe in the file's place."""
    new = not path.exists()
    handle = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_NONBLOCK, 0o666)
    try:
        with open(handle, "a+b") as file:
            if not stat.S_ISREG(os.fstat(handle).st_mode):
                raise OSError(errno.EINVAL, "is not a file")
            size = file.seek(0, os.SEEK_END)
            file.seek(max(size - 1, 0))
            file.write((b"" if file.read(1) in (b"", b"\n") else b"\n") + json.dumps(with_digest(entry)).encode() + b"\n")
    except OSError:
        with suppress(OSError):
            if new and not path.stat().st_size:
                path.unlink()
        raise


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The entries of a JSON-lines file, but for one that was cut off."""
    return [entry for _, entry in whole_lines(path)]


def readable_lines(path: Path) -> list[dict[str, Any]]:
    """The same; none if the file cannot be read."""
    try:
        return read_lines(path)
    except (OSError, NoRecord):
        return []


def whole_lines(path: Path) -> list[tuple[str, dict[str, Any]]]:
    """The lines of a JSON-lines file with their content, but for those that were cut off or are damaged."""
    found = []
    for line in content(path, MOST_LINES).decode(errors="replace").splitlines():
        try:
            entry = json.loads(line)
            whole = is_whole_line(entry)
        except (ValueError, RecursionError):
            continue
        if whole and not (path.name == STATISTICS and "results" in entry):
            found.append((line, entry))
    return found


def is_whole_line(entry: Any) -> bool:
    """Whether this is what a run has written: statistics or a measurement, numbers within bounds, at some thousands of images."""
    if not isinstance(entry, dict) or not is_unchanged(entry):
        return False
    return is_measurement(entry) if "results" in entry else is_statistics(entry)


def is_measurement(entry: dict[str, Any]) -> bool:
    names, measured = [entry[key] for key in ("metric", "snapshot_pkl") if key in entry], entry["results"]
    return (
        isinstance(measured, dict)
        and all(isinstance(name, str) and Path(name).name == name for name in names)
        and type(samples := entry.get("samples", 1)) is int
        and 0 < samples < LARGEST
        and all(_is_number(number) for number in measured.values())
        and all(_is_finite(number) for number in (entry.get("kimg"), entry.get("train_seconds", 0)))
    )


def is_statistics(entry: dict[str, Any]) -> bool:
    means = {key: value.get("mean") if isinstance(value, dict) else None for key, value in entry.items() if "/" in key}
    where = means.get("Progress/kimg"), means.get("Timing/train_sec", 0)
    return all(_is_number(mean) for mean in means.values()) and all(_is_finite(mean) for mean in where)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not LARGEST < abs(value) < float("inf")


def _is_finite(value: Any) -> bool:
    return isinstance(value, int | float) and abs(value) <= LARGEST


def kimg_of(entry: dict[str, Any]) -> float:
    """Thousands of images of a line."""
    value = entry.get("Progress/kimg", entry.get("kimg", 0))
    return float(value["mean"] if isinstance(value, dict) else value)
