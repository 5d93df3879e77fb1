"""The command that makes the page of runs."""

from __future__ import annotations

from pathlib import Path

import click

from registry.cli.group import main


@main.command()
@click.argument("runs", nargs=-1, required=True, metavar="RUN...", type=click.Path(path_type=Path))
@click.option("--output", type=click.Path(path_type=Path), metavar="FILE.html", help="Where the page goes.")
def report(runs: tuple[Path, ...], output: Path | None) -> None:
    """Make the page of a run anew, or one page that compares several.

    \b
    distill report runs/00003-quickstart
    distill report runs/00003-quickstart runs/00004-quickstart

    The page is one file that needs no network. By default it is the run's report.html; that of several runs is ./report.html.
    """
    from registry.core.errors import SettingError
    from registry.core.text import one_line
    from registry.report.render import REPORT, write_page

    if output and output.suffix.lower() not in (".html", ".htm"):
        raise SettingError("output", "a page's name ends in .html", str(output))
    path = output or (runs[0] / REPORT if len(runs) == 1 else Path(REPORT))
    click.echo(f"the page is in {one_line(write_page(runs, path))}")
