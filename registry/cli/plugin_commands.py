"""The command that lists plugins and their components."""

from __future__ import annotations

import itertools

from registry.cli.group import main
from registry.plugins.loading import load_plugins


@main.command()
def plugins() -> None:
    """List every component with its owner, and every plugin that failed to load."""
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Column, Table

    found = load_plugins()
    console = Console(highlight=False)
    entries = sorted(found.registered, key=lambda r: (r.kind, r.component.name, r.owner))
    for kind, of_kind in itertools.groupby(entries, key=lambda r: r.kind):
        table = Table.grid(Column(no_wrap=True), Column(no_wrap=True), Column(overflow="fold"), padding=(0, 2, 0, 0))
        for entry in of_kind:
            twice = len(found.owners(kind, entry.component.name)) > 1
            note = f"{entry.component.help}{'  (two owners: an error when used)' if twice else ''}"
            table.add_row(*map(escape, (f"  {entry.component.name}", f"{entry.owner} {entry.version}", note)))
        console.print(kind, style="bold")
        console.print(table)
    for failure in found.failures:
        console.print(f"plugin {failure.plugin} {failure.version} not loaded: {failure.reason}", style="red", markup=False)
