"""What is allowed in a recipe, and hardly meant."""

from __future__ import annotations

from registry.recipe.resolved import PretrainRecipe, Recipe, parts
from registry.recipe.tables import PretrainConfig


def length(recipe: Recipe | PretrainRecipe) -> float:
    """Thousands of images of the whole run, the warm-up included."""
    return sum(parts(recipe)[:2]) / 1000 + recipe.train.duration_kimg


def doubts(recipe: Recipe | PretrainRecipe) -> list[str]:
    """Settings that do nothing in a run of this length, each in a line that begins with its table."""
    train, log, kimg = recipe.train, recipe.log, length(recipe)
    found, longer = [], f"longer than the run ({kimg:g} kimg)"
    if train.ema_halflife_kimg > kimg and not train.ema_rampup_ratio:
        setting = f"[train] ema_halflife_kimg = {train.ema_halflife_kimg:g}"
        found.append(f"{setting}: {longer}, and ema_rampup_ratio = 0: the average stays near the first weights")
    if isinstance(train, PretrainConfig) and train.lr_rampup_kimg > kimg:
        found.append(f"[train] lr_rampup_kimg = {train.lr_rampup_kimg:g}: {longer}, which never reaches lr")
    if log.tick_kimg * log.snapshot_ticks > kimg:
        between = f"{log.snapshot_ticks} × {log.tick_kimg:g} kimg"
        found.append(f"[log] snapshot_ticks: {between} is {longer}: the only snapshot is that of its end")
    if log.tick_kimg * 1000 < train.batch:
        found.append(f"[log] tick_kimg = {log.tick_kimg:g}: less than a batch of {train.batch}: every iteration is a tick")
    return found
