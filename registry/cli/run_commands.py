"""The other commands that take a recipe: pretrain, features, check, plan."""

from __future__ import annotations

import re

import click

from registry.cli import completion
from registry.cli.group import main
from registry.cli.options import override, recipe_options
from registry.core.errors import SettingError, UserError
from registry.core.text import one_line, printable


@main.command()
@recipe_options
@click.option("--save", metavar="FILE", help="Where the finished teacher goes (default: into the run folder).")
def pretrain(
    recipe: str | None,
    sets: tuple[str, ...],
    seed: int | None,
    outdir: str | None,
    resume: str | None,
    dry_run: bool,
    save: str | None,
) -> None:
    """Train a teacher from images: scikit-learn's digits, or a folder or ZIP."""
    if recipe is None:
        raise click.UsageError("Missing option '--recipe'.")
    from registry.plugins.loading import load_plugins
    from registry.recipe.reading import expect, resolve
    from registry.recipe.resolved import PretrainRecipe

    plugins = load_plugins()
    resolved = expect(resolve(recipe, plugins, sets, None, seed, outdir), PretrainRecipe)
    if dry_run:
        from registry.cli.preview import preview

        preview(resolved)
        return
    from registry.core import distributed
    from registry.runs.pretrain import pretrain

    pretrain(resolved, resume=resume, save=save)
    distributed.stop()


@main.command()
@click.option(
    "--recipe",
    required=True,
    metavar="PATH|NAME",
    shell_complete=completion.recipes,
    help="The recipe, with [data] and [classifier].",
)
@override
@click.option("--save", required=True, metavar="FILE", help="Where the feature network goes.")
def features(recipe: str, sets: tuple[str, ...], save: str) -> None:
    """Train the feature network of the Fréchet distance."""
    from registry.plugins.loading import load_plugins
    from registry.recipe.reading import expect, resolve
    from registry.recipe.resolved import FeaturesRecipe

    resolved = expect(resolve(recipe, load_plugins(), sets), FeaturesRecipe)
    from registry.runs.features import train_features

    train_features(resolved, save=save)


@main.command()
@click.argument("recipes", nargs=-1, required=True, metavar="RECIPE...", shell_complete=completion.recipes)
@override
@click.option("--loss", metavar="NAME", shell_complete=completion.losses, help="Check the recipe as swapped to this loss.")
@click.option("--open", "open_files", is_flag=True, help="Also read the teachers' files (this can download them): do they fit?")
def check(recipes: tuple[str, ...], sets: tuple[str, ...], loss: str | None, open_files: bool) -> None:
    """Validate recipes without running (or importing torch)."""
    from registry.plugins.loading import load_plugins
    from registry.recipe.doubts import doubts
    from registry.recipe.reading import resolve
    from registry.recipe.resolved import FeaturesRecipe, Recipe

    plugins, wrong = load_plugins(), 0
    for name in recipes:
        try:
            resolved = resolve(name, plugins, sets, loss)
            for other in resolved.swap if isinstance(resolved, Recipe) and loss is None else ():
                if len(plugins.owners("loss", other)) == 1:  # who has two of that name may not use it at all
                    resolve(name, plugins, [text for text in sets if not text.lstrip().startswith("swap.")], other)
            if open_files and isinstance(resolved, Recipe):
                from registry.runs.building import build

                build(resolved, plugins)
        except UserError as error:
            wrong += 1
            click.echo(printable(f"{name}: {error}" if isinstance(error, SettingError) else str(error)), err=True)
        else:
            where = one_line(resolved.path)
            click.echo(f"{where}: ok")
            if isinstance(resolved, Recipe) and (remark := resolved.teacher.config.remark()):
                click.echo(f"{where}: WARNING: [teacher] {one_line(remark)}")
            for doubt in [] if isinstance(resolved, FeaturesRecipe) else doubts(resolved):
                click.echo(f"{where}: WARNING: {one_line(doubt)}")
    if wrong:
        raise UserError(f"{wrong} of {len(recipes)} recipes cannot run")


def gibibytes(context: click.Context, option: click.Parameter, value: str | None) -> int | None:
    """Bytes of a GPU as it is sold: 80GB, which are 80 GiB."""
    from registry.cli.preview import GIB

    if value is None:
        return None
    found = re.fullmatch(r"([0-9]{1,4}(?:\.[0-9]{1,3})?)\s*(?:G|GB|GiB)?", value, re.IGNORECASE)
    if not found or not float(found[1]):
        raise click.BadParameter(f"{value!r} is no size of a GPU's memory; write e.g. 80GB")
    return int(float(found[1]) * GIB)


def finite(context: click.Context, option: click.Parameter, values: tuple[float, ...]) -> tuple[float, ...]:
    """Numbers, none of which is NaN."""
    if any(value != value for value in values):
        raise click.BadParameter("nan is no number of operations")
    return values


@main.command()
@click.argument("recipe", metavar="RECIPE", shell_complete=completion.recipes)
@override
@click.option("--loss", metavar="NAME", shell_complete=completion.losses, help="Plan the recipe as swapped to this loss.")
@click.option(
    "--gpu", "memory", metavar="SIZE", callback=gibibytes, help="A GPU's memory, e.g. 80GB: how many images fit at a time?"
)
@click.option("--gpus", type=click.IntRange(1, 4096), default=1, show_default=True, help="Devices, one process each.")
@click.option(
    "--tflops", type=click.FloatRange(1e-3, 1e5), callback=finite, multiple=True, default=(10, 30, 100), show_default=True,
    help="10^12 operations per second that a device reaches in practice; repeatable.",
)  # fmt: skip
@click.option(
    "--here", is_flag=True, help="Time the network on this machine for a few seconds, and say how long the run takes here."
)
def plan(
    recipe: str, sets: tuple[str, ...], loss: str | None, memory: int | None, gpus: int, tflops: tuple[float, ...], here: bool
) -> None:
    """Work, memory and time of a recipe's run, counted without a GPU and without the teacher's file.

    distill plan sid_cifar10_uncond --gpu 80GB --gpus 8
    """
    from registry.plugins.loading import load_plugins
    from registry.recipe.reading import resolve
    from registry.recipe.resolved import FeaturesRecipe

    plugins = load_plugins()
    resolved = resolve(recipe, plugins, sets, loss)
    if isinstance(resolved, FeaturesRecipe):
        raise UserError(f"{resolved.path}: the training of a feature network takes seconds; there is nothing to plan")
    from registry.cli.preview import report
    from registry.runs.plan import plan, reached

    found = plan(resolved, plugins, gpus, memory)
    rates = {f"{rate:6g} TFLOP/s": rate for rate in tflops}
    if here:
        rate = reached(resolved, plugins, found.at_a_time)
        rates = {f"{rate:.2g} TFLOP/s, as here": rate}
    report(found, resolved, gpus, memory, rates)
