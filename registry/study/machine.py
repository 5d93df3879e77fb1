"""What a run was made with: machine, versions, code."""

from __future__ import annotations

import functools
import hashlib
import importlib.util
import os
import platform
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from registry.core.version import versions
from registry.plugins.loading import entry_points


def cores() -> int:
    """The cores that this process may use."""
    return len(os.sched_getaffinity(0)) if "sched_getaffinity" in dir(os) else os.cpu_count() or 1


def gpus() -> list[str]:
    """The CUDA devices that this process may use, as CUDA_VISIBLE_DEVICES names them."""
    import torch

    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    count = torch.cuda.device_count()
    return [name for name in visible.split(",") if name][:count] if visible else [str(i) for i in range(count)]


@functools.cache
def made_with() -> dict[str, str]:
    """Processor, GPUs, system, Python, and versions."""
    import torch

    names = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    devices = {"gpu": f"{len(names)} × {names[0]}"} if names else {}
    return {
        "cpu": f"{processor()}, {cores()} cores", **devices,
        "system": f"{platform.system()} {platform.release()}", "python": platform.python_version(), **versions(),
    }  # fmt: skip


def processor() -> str:
    """The processor's name, or at least its kind."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def code() -> str:
    """Twelve digits that change with any line of the source code of this package and of installed plugins."""
    packages = {"registry", *(entry.value.partition(":")[0].partition(".")[0] for entry in entry_points())}
    digest = hashlib.sha256()
    for package in sorted(packages):
        spec = importlib.util.find_spec(package)
        if spec is None or spec.origin is None:
            continue
        root = Path(spec.origin).parent
        for path in sorted(root.rglob("*.py")) if spec.submodule_search_locations else [Path(spec.origin)]:
            digest.update(path.relative_to(root).as_posix().encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()[:12]


WHOLE, ENDS = 2**28, 2**20
"""Bytes of a file that is hashed as a whole, and of the beginning and end of a larger one that are."""


def files(tables: Mapping[str, Any]) -> dict[str, str]:
    """The files and folders that a resolved recipe names, and twelve digits each that change with what is in them: with the bytes
    of a network or of statistics, with names and sizes of the files in a folder."""
    named = {text for name, table in tables.items() if name not in ("log", "swap") for text in texts(table)}
    paths = sorted(text for text in named if os.path.isabs(text) and os.path.exists(text))
    return {path: content_of(path, os.stat(path).st_mtime_ns) for path in paths}


def texts(value: Any) -> Iterator[str]:
    """All texts in plain tables and lists."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping | list | tuple):
        for inner in value.values() if isinstance(value, Mapping) else value:
            yield from texts(inner)


@functools.cache
def content_of(path: str, changed: int) -> str:
    """Such digits of a file or folder that has `changed` at this time."""
    digest = hashlib.sha256()
    if os.path.isdir(path):
        for below in sorted(below for below in Path(path).rglob("*") if below.is_file()):
            digest.update(f"{below.relative_to(path).as_posix()}\0{below.stat().st_size}\0".encode(errors="surrogateescape"))
    elif os.path.isfile(path):
        size = os.path.getsize(path)
        with open(path, "rb") as file:
            for begin in range(0, size, ENDS) if size <= WHOLE else (0, size - ENDS):
                file.seek(begin)
                digest.update(file.read(ENDS))
        digest.update(str(size).encode())
    return digest.hexdigest()[:12]


def made_from(tables: Mapping[str, Any]) -> dict[str, str]:
    """The same as one entry of what a run was made with; none if the recipe names no files."""
    found = files(tables)
    return {"files": hashlib.sha256("".join(found.values()).encode()).hexdigest()[:12]} if found else {}
