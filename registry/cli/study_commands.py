"""The command that runs studies."""

from __future__ import annotations

import os
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from registry.cli import completion
from registry.cli.again import this_command
from registry.cli.group import main
from registry.core.errors import SettingError

if TYPE_CHECKING:
    from registry.study.definition import Study
    from registry.study.grid import Combination


@main.command()
@click.argument("name", required=False, metavar="[STUDY]", shell_complete=completion.studies)
@click.option("--recipe", metavar="PATH|NAME", shell_complete=completion.recipes, help="The recipe of all runs.")
@click.option("--vary", multiple=True, metavar="TABLE.KEY=V,V,…", help="An axis: a key and its values; repeatable.")
@click.option("--seeds", metavar="LIST", help="Training seeds, e.g. 0-4.  [default: 0-4]")
@click.option(
    "--set", multiple=True, metavar="TABLE.KEY=VALUE", shell_complete=completion.settings,
    help="Override one setting in all runs; repeatable.",
)  # fmt: skip
@click.option("--equal", type=click.Choice(["images", "time"]), help="Compare at equal images (default) or equal training time.")
@click.option("--jobs", type=click.IntRange(min=1), default=1, show_default=True, help="Runs at a time on this machine.")
@click.option("--slurm", is_flag=True, help="Run as a Slurm array, as the study's [slurm] or --set slurm.KEY=VALUE say.")
@click.option("--reuse", multiple=True, metavar="DIR", help="Copy the runs that a study in DIR has made already; repeatable.")
@click.option("--retry", is_flag=True, help="Run failed and diverged cells again.")
@click.option("--report-only", is_flag=True, help="Run nothing; report what is there.")
@click.option("--outdir", metavar="DIR", help="The study's folder.  [default: runs/study-NAME]")
@click.option("--dry-run", is_flag=True, help="Check everything, and print the commands of all runs.")
def study(
    name: str | None,
    recipe: str | None,
    vary: tuple[str, ...],
    seeds: str | None,
    set: tuple[str, ...],
    equal: str | None,
    jobs: int,
    slurm: bool,
    reuse: tuple[str, ...],
    retry: bool,
    report_only: bool,
    outdir: str | None,
    dry_run: bool,
) -> None:
    """Run a grid over settings of a recipe × training seeds, and report means, paired tests and curves.

    STUDY is a TOML file, the name of a shipped study, or a study's folder. What was interrupted goes on.

    \b
    distill study alpha --jobs 2
    distill study --recipe quickstart --vary loss.alpha=0.5,1 --vary generator.steps=1,2,4 --seeds 0-4
    """
    from registry.plugins.loading import load_plugins
    from registry.study.definition import read_study

    if name is None and recipe is None:
        raise click.UsageError("Missing a study (distill study alpha), or a recipe and what varies (--recipe quickstart --vary …).")
    wanted = read_study(name, recipe=recipe, vary=vary, seeds=seeds, sets=set, equal=equal)
    folder = Path(outdir) if outdir else default_folder(name, wanted)
    plugins = load_plugins()
    for path in reuse:
        if not Path(path).is_dir():
            raise SettingError("reuse", "is no folder", path)
    if dry_run:
        from registry.study.cells import prepare

        cells = prepare(wanted, folder, plugins, cell_command)
        for cell in cells:
            click.echo(cell.line)
        click.echo(f"# {len(cells)} runs; the study's folder is {folder}")
        return
    from registry.study.conduct import conduct

    typed = shlex.join(["distill", *sys.argv[1:]])
    conduct(
        wanted, folder, plugins, cell_command, typed=typed, jobs=jobs, slurm=slurm, sources=[Path(path) for path in reuse],
        retry=retry, report_only=report_only,
    )  # fmt: skip


def default_folder(name: str | None, study: Study) -> Path:
    """A study's own folder, if it was named by that; otherwise runs/study-NAME, or runs/study-RECIPE-AXES for a typed one."""
    if name is None:
        return Path("runs") / "-".join(["study", Path(study.recipe).stem, *(axis.name.rpartition(".")[2] for axis in study.axes)])
    path = Path(os.path.expanduser(name))
    if path.is_dir() or path.name == "study.toml":
        return path if path.is_dir() else path.parent
    return Path("runs") / f"study-{path.stem}"


def cell_command(recipe: str, combination: Combination, seed: int, folder: Path, resume: bool) -> list[str]:
    """The command line of one run."""
    loss = ["--loss", combination.loss] if combination.loss else []
    sets = [word for text in combination.sets for word in ("--set", text)]
    again = ["--resume", "auto"] if resume else []
    where = ["--seed", str(seed), "--outdir", str(folder)]
    return [*this_command(), "--recipe", recipe, *loss, *sets, *where, *again]
