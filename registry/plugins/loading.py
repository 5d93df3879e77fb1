"""Guarded loading of plugins, and the table of what they register with its owners.

Every plugin is tried alone before it joins. One that does not import, misspells a hook, returns anything but components, is
blocked, or has the name of another plugin is set aside with the reason, and breaks nothing.
"""

from __future__ import annotations

import functools
import os
import sys
from collections.abc import Iterable
from dataclasses import dataclass, field
from importlib import metadata
from typing import TypeVar

import pluggy

from registry.core.errors import Interrupted, UserError, near
from registry.core.text import shown
from registry.core.version import DISTRIBUTION
from registry.plugins import hooks
from registry.plugins.component import Component, NetworkClass, Published
from registry.plugins.hooks import HOOKS

GROUP = "distill"
BLOCK = "DISTILL_BLOCK_PLUGINS"
Item = Component | Published | NetworkClass
I = TypeVar("I", bound=Item)


@dataclass(frozen=True)
class Registered:
    """What a plugin registered, with its kind and its owner."""

    kind: str
    component: Item
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
        """Everything that is registered under this kind and name; several are an error only when the name is used."""
        return [r for r in self.registered if r.kind == kind and r.component.name == name]

    def find(self, kind: str, name: str) -> Registered:
        """What is registered under this kind and name. Raises UserError if nothing or several things are, naming all owners."""
        owners = self.owners(kind, name)
        if len(owners) == 1:
            return owners[0]
        if owners:
            who = " and ".join(f"{r.owner} {r.version}" for r in owners)
            raise UserError(f"{kind} {name!r} is registered by both {who}; block one with {BLOCK}={owners[-1].owner}")
        failed = "; ".join(f"plugin {f.plugin!r} failed to load: {f.reason}" for f in self.failures)
        known, typed = self.names(kind), shown(repr(name), 80)
        raise UserError(
            f"no {kind} is called {typed}{near(name, known)}; known: {', '.join(known)}" + (f" ({failed})" if failed else "")
        )

    def item(self, kind: str, name: str, cls: type[I]) -> I | None:
        """What is registered under this kind and name, None if nothing is. Raises UserError if several things are."""
        if not self.owners(kind, name):
            return None
        found = self.find(kind, name).component
        assert isinstance(found, cls)
        return found

    def serving(self, kind: str, D: float) -> list[str]:
        """Components of this kind whose default settings serve dimension D."""
        components = [r.component for r in self.registered if r.kind == kind]
        return sorted({c.name for c in components if isinstance(c, Component) and c.serves(D)})


def hook_caller() -> pluggy.PluginManager:
    """A plugin manager that knows the hooks and no plugin."""
    pm = pluggy.PluginManager("distill")
    pm.add_hookspecs(hooks)
    return pm


def components(plugin: object, name: str) -> list[tuple[str, Item]]:
    """What a plugin registers, with its kind, asked in a manager of its own. Raises whatever is wrong with the plugin."""
    pm = hook_caller()
    pm.register(plugin, name)
    callers = pm.get_hookcallers(plugin) or []
    if not callers:
        raise UserError("brings nothing: none of its functions is marked with @hookimpl")
    for caller in callers:
        if not caller.has_spec():
            raise UserError(f"unknown hook {caller.name!r}{near(caller.name, [hook for hook, _ in HOOKS.values()])}")
    found: list[tuple[str, Item]] = []
    for kind, (hook, cls) in HOOKS.items():
        for result in getattr(pm.hook, hook)():
            for item in result:
                if not isinstance(item, cls) or not isinstance(item, Item):
                    raise UserError(f"{hook} must give registry.api.{cls.__name__} objects, not {item!r}")
                found.append((kind, item))
    return found


def entry_points() -> metadata.EntryPoints:
    """What installed packages have in our group; read anew when a folder of sys.path has changed."""
    return _entry_points(tuple((folder, _changed(folder)) for folder in sys.path))


def _changed(folder: str) -> int:
    try:
        return os.stat(folder or ".").st_mtime_ns
    except OSError:  # it does not exist, or is an archive within an archive
        return 0


@functools.lru_cache(maxsize=1)
def _entry_points(searched: tuple[tuple[str, int], ...]) -> metadata.EntryPoints:
    return metadata.entry_points(group=GROUP)


def load_plugins(blocked: Iterable[str] | None = None) -> Plugins:
    """Load every entry point of the group `distill`, each in its own try; the built-in plugin is one of them.

    `blocked` defaults to the names in the environment variable DISTILL_BLOCK_PLUGINS, separated by commas.
    """
    blocked = set(filter(None, os.environ.get(BLOCK, "").split(",")) if blocked is None else blocked)
    plugins = Plugins()
    taken: dict[str, str] = {}
    entries = [(e.dist.metadata["Name"] if e.dist else "?", e) for e in entry_points()]
    for package, entry in sorted(entries, key=lambda e: (e[0] != DISTRIBUTION, e[1].name, e[1].value)):  # ours keep their names
        release = entry.dist.version if entry.dist else "?"
        try:
            if entry.name in blocked:
                raise UserError(f"blocked by {BLOCK}")
            if entry.name in taken:
                raise UserError(f"package {package} names its plugin {entry.name!r}, as does package {taken[entry.name]}")
            found = components(entry.load(), entry.name)
        except (KeyboardInterrupt, Interrupted):
            raise
        except BaseException as error:  # a stranger's code may raise anything
            plugins.failures.append(Failure(entry.name, release, _reason(error)))
        else:
            taken[entry.name] = package
            plugins.registered += [Registered(kind, item, entry.name, release) for kind, item in found]
    return plugins


def _reason(error: BaseException) -> str:
    return shown(error, 500) if isinstance(error, UserError) else f"{type(error).__name__}: {shown(error, 300)}"
