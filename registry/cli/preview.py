"""What would run (--dry-run), and what it needs (`distill plan`)."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from typing import TYPE_CHECKING

import click

from registry.files.locate import whereabouts
from registry.recipe.doubts import doubts
from registry.recipe.resolved import PretrainRecipe, Recipe, dumps, parts, plain

if TYPE_CHECKING:
    from registry.runs.plan import Plan

GIB = 2**30


def preview(recipe: Recipe | PretrainRecipe) -> None:
    """Print the resolved recipe, and what would run."""
    click.echo(dumps(recipe.tables()).rstrip())
    batch = recipe.train.batch
    regression, alone, game = (images // batch for images in parts(recipe))
    if warm_up := regression + alone:
        click.echo(f"\n# {warm_up:,} iterations of the warm-up and {game:,} of the game, of {batch} images", nl=False)
    else:
        click.echo(f"\n# {game:,} iterations of {batch} images", nl=False)
    click.echo(f"; runs in {recipe.log.outdir}/NNNNN-{recipe.name}")
    source = plain(recipe.teacher.config).get("source") if isinstance(recipe, Recipe) else None
    if source is not None:
        click.echo(f"# the teacher: {whereabouts(source)}")
    if isinstance(recipe, Recipe) and (remark := recipe.teacher.config.remark()):
        click.echo(f"# WARNING: [teacher] {remark}")
    for doubt in doubts(recipe):
        click.echo(f"# WARNING: {doubt}")
    chosen = (recipe.teacher, recipe.noise, recipe.loss) if isinstance(recipe, Recipe) else (recipe.noise,)
    click.echo("# " + ", ".join(f"{c.kind} {c.name!r} of plugin {c.owner}" for c in (*chosen, *recipe.metrics, *recipe.trackers)))
    click.echo(f"# memory, work and time: distill plan {shlex.quote(str(recipe.path))}")


def report(plan: Plan, recipe: Recipe | PretrainRecipe, gpus: int, memory: int | None, rates: Mapping[str, float]) -> None:
    """Print what a run needs. `rates`: 10^12 operations per second, by how they are printed."""
    from rich.console import Console
    from rich.table import Table

    networks = "three networks" if isinstance(recipe, Recipe) else "a network"
    gpu = "each device" if gpus > 1 else "the device"
    size, evaluation = plan.parameters / 1e6, plan.evaluation / 1e9
    click.echo(f"{networks} of {size:.3g} M parameters; one evaluation takes {evaluation:.3g} GFLOP per image")
    click.echo(f"memory of {gpu} with batch_gpu = {plan.at_a_time}:\n")
    table = Table("gradient of the", "GFLOP per image", "evaluations", "memory", box=None, pad_edge=False)
    for column in table.columns[1:]:
        column.justify = "right"

    def work(operations: int) -> tuple[str, str]:
        return f"{operations / 1e9:.4g}", f"{operations / plan.evaluation:.1f}"

    for name, operations in plan.work.items():
        table.add_row(name, *work(operations), amount(plan.peaks[name]))
    table.add_row("networks and average", "", "", amount(plan.weights))
    table.add_row("Adam's moments", "", "", amount(plan.moments))
    table.add_row("together, one gradient at a time", *work(sum(plan.work.values())), amount(plan.memory))
    Console(highlight=False).print(table)
    if plan.largest is not None and memory is not None:
        fit = "not even one image at a time" if not plan.largest else f"batch_gpu up to {plan.largest}"
        click.echo(f"\nin {amount(memory)}, a tenth of it left for driver, work space and gaps: {fit}")
    of = "the game" if isinstance(recipe, Recipe) else "images"
    click.echo(f"\n{recipe.train.duration_kimg:,.6g} kimg of {of}, if {gpu} reaches")
    for printed, rate in rates.items():
        speed = plan.images_per_second(rate, gpus)
        seconds = recipe.train.duration_kimg * 1000 / speed + plan.before / (gpus * rate * 1e12)
        click.echo(f"  {printed}: {speed:,.4g} images/s, {time(seconds)}{' with the warm-up' if plan.before else ''}")


def amount(n: int) -> str:
    """Bytes for people."""
    return f"{n / GIB:.3g} GiB" if n >= GIB else f"{n / 2**20:.3g} MiB"


def time(seconds: float) -> str:
    """Seconds for people."""
    for unit, length in (("days", 86400), ("hours", 3600), ("minutes", 60)):
        if seconds >= length:
            return f"{seconds / length:.2g} {unit}"
    return f"{seconds:.2g} seconds"
