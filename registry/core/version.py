"""The version of this package, and of what a measurement was made with."""

from __future__ import annotations

import functools

DISTRIBUTION = "distill-generators"
"""What pip calls this package: on PyPI `distill` and `registry` are other people's."""


def install(extra: str) -> str:
    """How to get what an extra brings."""
    return f"pip install '{DISTRIBUTION}[{extra}]'"


@functools.cache
def version() -> str:
    """The installed version of this package."""
    return _installed(DISTRIBUTION)


def versions() -> dict[str, str]:
    """What measured or wrote something: this package and torch."""
    return {"distill": version(), "torch": _installed("torch")}


@functools.cache
def _installed(package: str) -> str:
    from importlib import metadata  # which takes as long as the rest of the command's help

    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"
