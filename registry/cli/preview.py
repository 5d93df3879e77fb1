"""--dry-run."""

from __future__ import annotations

import click

from registry.files.locate import whereabouts
from registry.recipe.resolved import PretrainRecipe, Recipe, dumps, plain


def preview(recipe: Recipe | PretrainRecipe) -> None:
    """Print the resolved recipe, and what would run."""
    click.echo(dumps(recipe.tables()).rstrip())
    images, batch = recipe.train.duration_kimg * 1000, recipe.train.batch
    click.echo(f"\n# {-int(-images // batch):,} iterations of {batch} images; runs in {recipe.log.outdir}/NNNNN-{recipe.path.stem}")
    source = plain(recipe.teacher.config).get("source") if isinstance(recipe, Recipe) else None
    if source is not None:
        click.echo(f"# the teacher: {whereabouts(source)}")
    if isinstance(recipe, Recipe) and (remark := recipe.teacher.config.remark()):
        click.echo(f"# WARNING: [teacher] {remark}")
    chosen = (recipe.teacher, recipe.noise, recipe.loss) if isinstance(recipe, Recipe) else (recipe.noise,)
    click.echo("# " + ", ".join(f"{c.kind} {c.name!r} of plugin {c.owner}" for c in (*chosen, *recipe.metrics)))
