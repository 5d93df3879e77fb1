"""The command that lists plugins and their components."""

from __future__ import annotations

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
    table = Table("kind", Column("name", no_wrap=True), "owner", "version", "what it is", box=None, pad_edge=False)
    for entry in sorted(found.registered, key=lambda r: (r.kind, r.component.name, r.owner)):
        twice = len(found.owners(entry.kind, entry.component.name)) > 1
        note = f"{entry.component.help}{'  (two owners: an error when used)' if twice else ''}"
        table.add_row(*map(escape, (entry.kind, entry.component.name, entry.owner, entry.version, note)))
    console.print(table)
    for failure in found.failures:
        console.print(f"plugin {failure.plugin} {failure.version} not loaded: {failure.reason}", style="red", markup=False)
