"""The commands of plugins: plugins, new-plugin."""

from __future__ import annotations

import itertools
import shlex
import sys
from pathlib import Path

import click

from registry.cli.group import main


@main.command()
def plugins() -> None:
    """List every component with its owner, and every plugin that failed to load."""
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Column, Table

    from registry.plugins.loading import load_plugins

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


@main.command("new-plugin")
@click.argument("name", metavar="NAME")
@click.option("--kind", type=click.Choice(["loss", "metric"]), default="loss", show_default=True, help="What it brings.")
def new_plugin(name: str, kind: str) -> None:
    """Write a package to begin a plugin with: settings, hook, a loss or a metric, tests that pass.

    \b
    distill new-plugin my_loss
    distill new-plugin my_metric --kind metric
    """
    from registry.files.locate import shipped
    from registry.plugins.beginning import begin_plugin

    folder = begin_plugin(name, kind, shipped() / "starters" / "plugin", Path())
    python = shlex.quote(sys.executable)
    install, test = f"{python} -m pip install -e '{folder}[test]'", f"{python} -m pytest {folder}"
    click.echo(f"{folder} is written; install it and run its tests with:\n  {install}\n  {test}")
