"""This command in another process: as safe from modules in the working folder as this one is."""

from __future__ import annotations

import os
import sys

SAFE = "PYTHONSAFEPATH"
"""With this in the environment `python -m` takes no modules from the working folder."""


def takes_working_folder() -> bool:
    """Whether this process imports modules from the working folder, as `python -m registry.cli` in a checkout does."""
    return any(os.path.abspath(path or ".") == os.getcwd() for path in sys.path)


def this_command() -> list[str]:
    """The words before the arguments. The console script takes no modules from the working folder; `python -m` alone would."""
    return [sys.executable, *([] if takes_working_folder() else ["-P"]), "-m", "registry.cli"]
