"""--dry-run."""

from __future__ import annotations

import click

from registry.files.locate import whereabouts
from registry.recipe.resolved import PretrainRecipe, Recipe, dumps, plain
from registry.recipe.tables import whole_batches


def preview(recipe: Recipe | PretrainRecipe) -> None:
    """Print the resolved recipe, and what would run."""
    click.echo(dumps(recipe.tables()).rstrip())
    batch = recipe.train.batch
    game = whole_batches(recipe.train.duration_kimg, batch)
    warm_up = whole_batches(recipe.warmup.kimg, batch) if isinstance(recipe, Recipe) else 0
    if isinstance(recipe, Recipe) and warm_up:
        warm_up += whole_batches(recipe.warmup.student_kimg, batch)
        click.echo(f"\n# {warm_up:,} iterations of the warm-up and {game:,} of the game, of {batch} images", nl=False)
    else:
        click.echo(f"\n# {game:,} iterations of {batch} images", nl=False)
    click.echo(f"; runs in {recipe.log.outdir}/NNNNN-{recipe.path.stem}")
    source = plain(recipe.teacher.config).get("source") if isinstance(recipe, Recipe) else None
    if source is not None:
        click.echo(f"# the teacher: {whereabouts(source)}")
    if isinstance(recipe, Recipe) and (remark := recipe.teacher.config.remark()):
        click.echo(f"# WARNING: [teacher] {remark}")
    chosen = (recipe.teacher, recipe.noise, recipe.loss) if isinstance(recipe, Recipe) else (recipe.noise,)
    click.echo("# " + ", ".join(f"{c.kind} {c.name!r} of plugin {c.owner}" for c in (*chosen, *recipe.metrics)))
