"""What the shell completes: names of recipes, losses, networks, and files."""

from __future__ import annotations

from collections.abc import Iterable

import click
from click.shell_completion import CompletionItem

from registry.files.locate import STUDIES, shipped
from registry.plugins.loading import load_plugins


def losses(context: click.Context, parameter: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """The losses of all plugins."""
    return items(load_plugins().names("loss"), incomplete)


def metrics(context: click.Context, parameter: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """The metrics of all plugins."""
    return items(load_plugins().names("metric"), incomplete)


def recipes(context: click.Context, parameter: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """The shipped recipes, and files."""
    found = (path.relative_to(shipped()) for path in shipped().rglob("*.toml") if path.parent.name != STUDIES)
    return [*items((path.with_suffix("").as_posix() for path in found), incomplete), files(incomplete)]


def studies(context: click.Context, parameter: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """The shipped studies, and files."""
    return [*items((path.stem for path in (shipped() / STUDIES).glob("*.toml")), incomplete), files(incomplete)]


def networks(context: click.Context, parameter: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """The shipped and the published teachers, and files."""
    names = [path.stem for path in (shipped() / "teachers").glob("*.pt")]
    names += load_plugins().names("published")
    return [*items(names, incomplete), files(incomplete)]


def items(names: Iterable[str], incomplete: str) -> list[CompletionItem]:
    return [CompletionItem(name) for name in sorted(names) if name.startswith(incomplete)]


def files(incomplete: str) -> CompletionItem:
    """Leaves the rest to the shell."""
    return CompletionItem(incomplete, type="file")
