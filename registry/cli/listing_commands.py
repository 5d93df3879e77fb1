"""The commands that list what there is: runs, recipes, cache."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from registry.cli.group import main
from registry.core.errors import UserError
from registry.core.text import shown

if TYPE_CHECKING:
    from registry.recipe.resolved import AnyRecipe
    from registry.report.history import History


@main.command()
@click.argument("folder", required=False, default="runs", type=click.Path(path_type=Path))
def runs(folder: Path) -> None:
    """List the runs in a folder (default: runs): recipe, progress, best number, state.

    A run that was stopped, or that failed, goes on with --resume FOLDER/RUN.
    """
    from registry.report.history import read_history

    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder; give the one that [log] outdir names")
    found: list[History] = []
    for path in sorted(p for p in folder.iterdir() if p.is_dir()):
        try:
            found.append(read_history(path))
        except UserError:
            continue
    if not found:
        raise UserError(f"{folder}: there are no runs in it")
    rows = [
        (
            run.name,
            str(run.table("loss").get("use", "pretraining" if run.is_pretraining else "?")),
            dimension(run.tables),
            str(run.table("generator").get("steps", "")),
            f"{run.kimg:g} of {run.total:g}" if run.total else f"{run.kimg:g}",
            f"{shown(run.best.column, 30)} {run.best.value:.4g} at {run.best.kimg:g}" if run.best else "",
            run.state + (", can be resumed" if resumable(run) else ""),
        )
        for run in found
    ]
    show(("run", "loss", "D", "K", "kimg", "best", "state"), rows)


def resumable(run: History) -> bool:
    """Whether the run ended too early, and has a state."""
    return run.state in ("stopped", "failed") and any(run.path.glob("training-state-*.pt"))


def dimension(tables: Mapping[str, Any]) -> str:
    """D of a recipe: as it says, or inf if its noise serves that alone."""
    from registry.plugins.loading import load_plugins

    found = [table["D"] for name in ("teacher", "noise", "network") if isinstance(table := tables.get(name), dict) and "D" in table]
    if found and isinstance(found[0], int | float):
        return f"{found[0]:g}"
    noise, plugins = tables.get("noise"), load_plugins()
    use = noise.get("use") if isinstance(noise, dict) else None
    return "inf" if use in plugins.serving("noise", math.inf) and use not in plugins.serving("noise", 1.0) else ""


@main.command()
def recipes() -> None:
    """List the shipped recipes and studies: what each runs, and whether its teacher or data is here already."""
    from rich.console import Console

    for command, rows in described().items():
        Console(highlight=False).print(f"{command} NAME", style="bold")
        show(("", "files", ""), sorted(rows))


def described() -> dict[str, list[tuple[str, str, str]]]:
    """{command: name, "here" or "not here", what it is} of every shipped recipe and study."""
    from registry.files.locate import STUDIES, shipped
    from registry.plugins.loading import load_plugins
    from registry.recipe.reading import COMMANDS, resolve
    from registry.recipe.resolved import Recipe
    from registry.recipe.texts import read_tables

    plugins = load_plugins()
    found: dict[str, list[tuple[str, str, str]]] = {command: [] for command in (*COMMANDS.values(), "distill study")}
    for path in sorted(shipped().rglob("*.toml")):
        if path.parent.name == STUDIES:
            found["distill study"].append((path.stem, "", str(read_tables(path).get("about", ""))))
            continue
        name = path.relative_to(shipped()).with_suffix("").as_posix()
        comments = [
            line.lstrip("# ") for line in path.read_text(encoding="utf-8").partition("\n\n")[0].splitlines() if line[:1] == "#"
        ]
        about = re.split(r"(?<=[a-z\d)])[.:]\s", " ".join(comments) + " ")[0]
        try:
            recipe = resolve(str(path), plugins)
        except UserError as error:  # a plugin is missing
            found[COMMANDS[Recipe]].append((name, "", shown(error, 100)))
            continue
        found[COMMANDS[type(recipe)]].append((name, "here" if is_here(recipe) else "not here", about))
    return {command: rows for command, rows in found.items() if rows}


def is_here(recipe: AnyRecipe) -> bool:
    """Whether a teacher's or data set's files can be opened without a download."""
    from registry.files.locate import open_path, published
    from registry.recipe.resolved import Recipe, plain

    source = str(plain(recipe.teacher.config).get("source", "")) if isinstance(recipe, Recipe) else recipe.data.source
    if source in ("", "digits"):
        return True
    known = published(source)
    if known and known.url:
        from registry.files.downloads import place_of

        return place_of(known.url).is_file()
    try:
        return open_path(source).exists()
    except UserError:
        return False


@main.command()
@click.option("--clear", "clearing", is_flag=True, help="Remove all of it, but for what you have put there yourself.")
def cache(clearing: bool) -> None:
    """Show the cache folder: what is in it, and how large it is.

    Everything in it is made or downloaded again when it is needed. Files that you have put there (Inception, teachers) stay.
    """
    from registry.files.cache import clear, contents
    from registry.files.downloads import cache_folder

    if clearing:
        click.echo(f"{megabytes(clear())} removed from {cache_folder()}")
        return
    click.echo(f"{cache_folder()} (DISTILL_CACHE_DIR names another)")
    sizes = {what: (len(paths), sum(path.stat().st_size for path in paths)) for what, paths in contents().items()}
    show(("", "files", "size"), [(what, str(n), megabytes(size)) for what, (n, size) in sizes.items()])


def megabytes(size: int) -> str:
    return f"{size / 2**20:,.1f} MiB"


def show(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print a table without frames."""
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Column, Table

    columns = [Column(heading, no_wrap=i == 0, overflow="fold") for i, heading in enumerate(headings)]
    table = Table(*columns, box=None, padding=(0, 2, 0, 0))
    for row in rows:
        table.add_row(*(escape(shown(cell, 200)) for cell in row))
    Console(highlight=False).print(table)
