"""This command again: in another process, and to go on after an interruption."""

from __future__ import annotations

import os
import shlex
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

LAUNCHER = "DISTILL_LAUNCHER_COMMAND"
"""In the environment of a launched process: what was typed before its own words, for a shell."""
SAFE = "PYTHONSAFEPATH"
"""With this in the environment `python -m` takes no modules from the working folder."""


def takes_working_folder() -> bool:
    """Whether this process imports modules from the working folder, as `python -m registry.cli` in a checkout does."""
    return any(os.path.abspath(path or ".") == os.getcwd() for path in sys.path)


def this_command() -> list[str]:
    """The words before the arguments, for another process that is as safe from modules in the working folder as this one is: the
    console script takes none of them; `python -m` alone would."""
    return [sys.executable, *([] if takes_working_folder() else ["-P"]), "-m", "registry.cli"]


def going_on(words: Sequence[str], state: str) -> str:
    """What to type to go on from a state: the command with these arguments, as it was typed but for --resume."""
    kept, rest = list[str](), iter(words)
    for word in rest:
        if word == "--resume":
            next(rest, None)
        elif not word.startswith("--resume="):
            kept.append(word)
    launcher = os.environ.get(LAUNCHER)
    return f"{launcher or shlex.join(typed(sys.argv[0]))} {shlex.join([*kept, '--resume', state])}"


def typed(program: str) -> list[str]:
    """The words by which somebody has started this program."""
    path = Path(program)
    if path.name == "__main__.py":
        return [Path(sys.executable).name, "-m", "registry"]
    return [path.name if shutil.which(path.name) == str(path.absolute()) else program]
