"""Guarded loading of plugins, and the table of components with their owners.

Every plugin is tried alone before it joins: one that does not import, misspells a hook, gives something else than
components, is blocked, or has the name of another one is set aside with the reason and breaks nothing.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from importlib import metadata
from types import ModuleType
from typing import Any

import pluggy

from registry import hookspecs
from registry.api import Component, UserError
from registry.hookspecs import HOOKS
from registry.sources import near

GROUP = "distill"
BLOCK = "DISTILL_BLOCK_PLUGINS"


@dataclass(frozen=True)
class Registered:
    """A component with its kind and its owner."""

    kind: str
    component: Component
    owner: str
    version: str


@dataclass(frozen=True)
class Failure:
    """A plugin that was set aside, and why."""

    plugin: str
    version: str
    reason: str


@dataclass
class Plugins:
    """All that is registered, and all that could not be."""

    registered: list[Registered] = field(default_factory=list)
    failures: list[Failure] = field(default_factory=list)

    def names(self, kind: str) -> list[str]:
        """The names of one kind, sorted."""
        return sorted({r.component.name for r in self.registered if r.kind == kind})

    def owners(self, kind: str, name: str) -> list[Registered]:
        """Who registers this name: none, one, or (an error when it is used) several."""
        return [r for r in self.registered if r.kind == kind and r.component.name == name]

    def find(self, kind: str, name: str) -> Registered:
        """The one component of this kind and name. Raises UserError, naming all owners if there are several."""
        owners = self.owners(kind, name)
        if len(owners) == 1:
            return owners[0]
        if owners:
            who = " and ".join(f"{r.owner} {r.version}" for r in owners)
            raise UserError(f"{kind} {name!r} is registered by both {who}; block one with {BLOCK}={owners[-1].owner}")
        failed = "; ".join(f"plugin {f.plugin!r} failed to load: {f.reason}" for f in self.failures)
        known = self.names(kind)
        raise UserError(
            f"no {kind} is called {name!r}{near(name, known)}; known: {', '.join(known)}" + (f" ({failed})" if failed else "")
        )


def manager() -> pluggy.PluginManager:
    """A plugin manager that knows the hooks and no plugin."""
    pm = pluggy.PluginManager("distill")
    pm.add_hookspecs(hookspecs)
    return pm


def components(plugin: object, name: str) -> list[tuple[str, Component]]:
    """What a plugin registers, found out in a manager of its own. Raises whatever is wrong with the plugin."""
    pm = manager()
    pm.register(plugin, name)
    for caller in pm.get_hookcallers(plugin) or []:
        if not caller.has_spec():
            raise UserError(f"unknown hook {caller.name!r}{near(caller.name, list(HOOKS.values()))}")
    found: list[tuple[str, Component]] = []
    for kind, hook in HOOKS.items():
        for result in getattr(pm.hook, hook)():
            for component in result:
                if not isinstance(component, Component):
                    raise UserError(f"{hook} must give registry.api.Component objects, not {component!r}")
                found.append((kind, component))
    return found


def load_plugins(blocked: Iterable[str] | None = None) -> Plugins:
    """Load the built-in plugin and every entry point of the group `distill`, each in its own try.

    `blocked` defaults to the names in the environment variable DISTILL_BLOCK_PLUGINS, separated by commas.
    """
    blocked = set(os.environ.get(BLOCK, "").split(",") if blocked is None else blocked)
    plugins = Plugins()

    def builtin() -> ModuleType:
        import registry.builtin

        return registry.builtin

    candidates: list[tuple[str, str, str, Callable[[], Any]]] = [("builtin", "distill", version(), builtin)]
    for entry in sorted(metadata.entry_points(group=GROUP), key=lambda e: (e.name, e.value)):
        package = entry.dist.metadata["Name"] if entry.dist else "?"
        candidates.append((entry.name, package, entry.dist.version if entry.dist else "?", entry.load))

    taken: dict[str, str] = {}
    for name, package, release, load in candidates:
        try:
            if name in blocked:
                raise UserError(f"blocked by {BLOCK}")
            if name in taken:
                raise UserError(f"package {package} names its plugin {name!r}, as does package {taken[name]}")
            found = components(load(), name)
        except (Exception, SystemExit) as error:  # a stranger's code may raise anything
            plugins.failures.append(Failure(name, release, _reason(error)))
        else:
            taken[name] = package
            plugins.registered += [Registered(kind, component, name, release) for kind, component in found]
    return plugins


@functools.cache
def version() -> str:
    """The installed version of this package."""
    try:
        return metadata.version("distill")
    except metadata.PackageNotFoundError:
        return "not installed"


def _reason(error: BaseException) -> str:
    text = " ".join(str(error).split())
    return text if isinstance(error, UserError) else f"{type(error).__name__}: {text}"
