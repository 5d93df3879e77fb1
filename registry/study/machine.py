"""What a run was made with: machine, versions, code."""

from __future__ import annotations

import functools
import hashlib
import importlib.util
import os
import platform
from pathlib import Path

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
