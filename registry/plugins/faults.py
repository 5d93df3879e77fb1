"""Whose code an error came from. What plugins need is imported when there was one."""

from __future__ import annotations

import sys
import traceback
from pathlib import Path
from typing import NamedTuple

OURS = ("registry", "ipfm_plugin")
HERE = Path(__file__).parents[1]


class Fault(NamedTuple):
    """The last line of a plugin's code that an error passed through."""

    plugin: str
    file: Path
    line: int


def homes_of_plugins() -> dict[Path, str]:
    """The files and folders of plugins' code that was loaded: where their entry points lead, and what makes their components."""
    from registry.plugins.component import Component, NetworkClass
    from registry.plugins.loading import entry_points, load_plugins

    tops = [(entry.value, entry.name) for entry in entry_points()]
    for registered in load_plugins().registered:
        made = registered.component
        if isinstance(made, Component | NetworkClass):
            tops.append((made.build if isinstance(made.build, str) else made.build.__module__, registered.owner))
    homes = dict[Path, str]()
    for module, plugin in tops:
        top = module.partition(":")[0].partition(".")[0]
        file = vars(sys.modules[top]).get("__file__") if top in {*sys.modules} - {*OURS, *sys.stdlib_module_names} else None
        if file:
            path = Path(file)
            homes[path.parent if path.name == "__init__.py" else path] = plugin
    return homes


def fault_of(error: BaseException | None) -> Fault | None:
    """The plugin that an error, or one that caused it, came from; None if it was no plugin of others."""
    homes = homes_of_plugins()
    while error is not None:
        lines = [(Path(frame.f_code.co_filename), line) for frame, line in traceback.walk_tb(error.__traceback__)]
        for file, line in reversed(lines):
            for home, plugin in homes.items():
                if home in (file, *file.parents):
                    return Fault(plugin, file, line)
        error = error.__cause__ or error.__context__
    return None


def raised_by_a_plugin(error: BaseException) -> bool:
    """Whether a plugin's own code raised it, or had click raise it; not ours that it called, or that answered a signal."""
    files = [Path(frame.f_code.co_filename) for frame, _ in traceback.walk_tb(error.__traceback__)]
    last = next((file for file in reversed(files) if file.parent.name != "click"), None)
    if last is None or HERE in last.parents:
        return False
    return any(home in (last, *last.parents) for home in homes_of_plugins())
