"""Whose code an error came from."""

from __future__ import annotations

import sys
import traceback
from importlib import metadata
from pathlib import Path
from typing import NamedTuple

from registry.plugins.loading import GROUP

OURS = ("registry", "ipfm_plugin")


class Fault(NamedTuple):
    """The last line of a plugin's code that an error passed through."""

    plugin: str
    file: Path
    line: int


def fault_of(error: BaseException | None) -> Fault | None:
    """The plugin that an error, or one that caused it, came from; None if it was no plugin of others."""
    homes = dict[Path, str]()
    for entry in metadata.entry_points(group=GROUP):
        top = entry.value.partition(":")[0].partition(".")[0]
        file = vars(sys.modules[top]).get("__file__") if top in sys.modules and top not in OURS else None
        if file:
            path = Path(file)
            homes[path.parent if path.name == "__init__.py" else path] = entry.name
    while error is not None:
        lines = [(Path(frame.f_code.co_filename), line) for frame, line in traceback.walk_tb(error.__traceback__)]
        for file, line in reversed(lines):
            for home, plugin in homes.items():
                if home in (file, *file.parents):
                    return Fault(plugin, file, line)
        error = error.__cause__ or error.__context__
    return None
