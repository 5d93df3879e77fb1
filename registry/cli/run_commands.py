"""The commands that take a recipe: distill, pretrain, features, check."""

from __future__ import annotations

import click

from registry.cli.group import Group
from registry.cli.options import override, recipe_options
from registry.core.errors import UserError
from registry.core.version import version
from registry.files.locate import whereabouts
from registry.plugins.loading import load_plugins
from registry.recipe.reading import expect, resolve
from registry.recipe.resolved import FeaturesRecipe, PretrainRecipe, Recipe, dumps, plain


@click.group(cls=Group, invoke_without_command=True, context_settings={"help_option_names": ["-h", "--help"]})
@recipe_options
@click.option("--loss", metavar="NAME", help="Use another loss: sid, ipfm, or a plugin's; applies the recipe's [swap.NAME].")
@click.option("--fresh-teacher", is_flag=True, help="Measure the teacher again instead of using its kept numbers.")
@click.version_option(version(), prog_name="distill")
@click.pass_context
def main(
    context: click.Context,
    recipe: str | None,
    sets: tuple[str, ...],
    seed: int | None,
    outdir: str | None,
    resume: str | None,
    dry_run: bool,
    loss: str | None,
    fresh_teacher: bool,
) -> None:
    """Turn slow diffusion (EDM) and electrostatic (PFGM++) teachers into generators of one to four evaluations.

    \b
    distill --recipe quickstart                          distil the shipped digits teacher
    distill --recipe quickstart --loss sid               the same, with SiD
    """
    if context.invoked_subcommand is not None:
        return
    if recipe is None:
        if sets or loss or resume or dry_run or fresh_teacher or outdir or seed is not None:
            raise click.UsageError("Missing option '--recipe'.")
        click.echo(context.get_help())
        return
    plugins = load_plugins()
    resolved = expect(resolve(recipe, plugins, sets, loss, seed, outdir), Recipe)
    if dry_run:
        preview(resolved)
        return
    from registry.core import distributed
    from registry.runs.distill import distill

    distill(resolved, resume=resume, fresh_teacher=fresh_teacher)
    distributed.stop()


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
    plugins = load_plugins()
    resolved = expect(resolve(recipe, plugins, sets, None, seed, outdir), PretrainRecipe)
    if dry_run:
        preview(resolved)
        return
    from registry.core import distributed
    from registry.runs.pretrain import pretrain

    pretrain(resolved, resume=resume, save=save)
    distributed.stop()


@main.command()
@click.option("--recipe", required=True, metavar="PATH|NAME", help="The recipe, with [data] and [classifier].")
@override
@click.option("--save", required=True, metavar="FILE", help="Where the feature network goes.")
def features(recipe: str, sets: tuple[str, ...], save: str) -> None:
    """Train the feature network of the Fréchet distance."""
    resolved = expect(resolve(recipe, load_plugins(), sets), FeaturesRecipe)
    from registry.runs.features import train_features

    train_features(resolved, save=save)


@main.command()
@click.argument("recipes", nargs=-1, required=True, metavar="RECIPE...")
@override
@click.option("--loss", metavar="NAME", help="Check the recipe as swapped to this loss.")
def check(recipes: tuple[str, ...], sets: tuple[str, ...], loss: str | None) -> None:
    """Validate recipes without running (or importing torch)."""
    plugins, wrong = load_plugins(), 0
    for name in recipes:
        try:
            resolved = resolve(name, plugins, sets, loss)
        except UserError as error:
            wrong += 1
            click.echo(str(error), err=True)
        else:
            click.echo(f"{resolved.path}: ok")
    if wrong:
        raise UserError(f"{wrong} of {len(recipes)} recipes cannot run")


def preview(recipe: Recipe | PretrainRecipe) -> None:
    """Print the resolved recipe, and what would run."""
    click.echo(dumps(recipe.tables()).rstrip())
    images, batch = recipe.train.duration_kimg * 1000, recipe.train.batch
    click.echo(f"\n# {-int(-images // batch):,} iterations of {batch} images; runs in {recipe.log.outdir}/NNNNN-{recipe.path.stem}")
    source = plain(recipe.teacher.config).get("source") if isinstance(recipe, Recipe) else None
    if source is not None:
        click.echo(f"# the teacher: {whereabouts(source)}")
    chosen = (recipe.teacher, recipe.noise, recipe.loss) if isinstance(recipe, Recipe) else (recipe.noise,)
    click.echo("# " + ", ".join(f"{c.kind} {c.name!r} of plugin {c.owner}" for c in (*chosen, *recipe.metrics)))
