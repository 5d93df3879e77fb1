"""A recipe and what is laid over it, as Python code gives them; errors name the arguments."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from numbers import Integral, Number, Real
from pathlib import Path
from typing import Any, TypeVar

from registry.core.errors import SettingError, UserError
from registry.core.text import shown
from registry.plugins.loading import Plugins
from registry.recipe.reading import Override, Reading, expect, laid_over, read_recipe
from registry.recipe.resolved import FeaturesRecipe, PretrainRecipe, Recipe
from registry.recipe.texts import parse_set

Given = str | os.PathLike[str] | Mapping[str, Any]
"""A recipe's path, the name of a shipped one, a run folder, or its tables."""
Sets = Mapping[str, Any] | Iterable[str]
"""Settings that are laid over a recipe: {"train.batch": 64}, or ["train.batch=64"] as on the command line."""
R = TypeVar("R", Recipe, PretrainRecipe, FeaturesRecipe)


def recipe_of(
    kind: type[R],
    recipe: Given | R,
    plugins: Plugins,
    sets: Sets = (),
    loss: str | None = None,
    seed: int | None = None,
    outdir: str | os.PathLike[str] | None = None,
) -> R:
    """The resolved recipe of this kind. Raises UserError with all that is wrong."""
    if isinstance(recipe, kind):
        if sets or loss is not None or seed is not None or outdir is not None:
            raise UserError("a resolved recipe is taken as it is; give sets, loss, seed and outdir where it is resolved")
        return recipe
    if isinstance(recipe, Mapping):
        reading = Reading(Path("recipe"), tables_of(recipe), plugins)
    elif isinstance(recipe, str | os.PathLike):
        reading = read_recipe(os.fspath(recipe), plugins)
    else:
        raise SettingError("recipe", "must be a path, the name of a shipped recipe, a run folder, or a dict of tables", recipe)
    over = overrides(sets)
    over += [Override(["train", "seed"], seed, f"seed = {seed!r}")] if seed is not None else []
    over += [Override(["log", "outdir"], os.fspath(outdir), f"outdir = {os.fspath(outdir)!r}")] if outdir is not None else []
    return expect(laid_over(reading, over, loss, f"loss = {loss!r}"), kind)


def overrides(sets: Sets) -> list[Override]:
    """What `sets` asks for. Raises SettingError."""
    if isinstance(sets, str):
        raise SettingError("sets", 'must be a dict, {"train.batch": 64}, or a list of texts, ["train.batch=64"]', sets)
    found = []
    for item in sets:
        if isinstance(sets, Mapping):
            keys, value, origin = str(item).split("."), plain_value(sets[item]), f"sets[{item!r}] = {shown(repr(sets[item]), 60)}"
            if len(keys) < 2 or not all(key.strip() for key in keys):
                raise SettingError("sets", "write its keys as table.key, such as train.batch", str(item))
        else:
            try:
                keys, value = parse_set(item)
            except (UserError, AttributeError):
                raise SettingError("sets", "write it as table.key=value, such as train.batch=64", item) from None
            origin = f"sets: {item}"
        found.append(Override(keys, value, origin))
    return found


def tables_of(recipe: Mapping[str, Any]) -> dict[str, Any]:
    """A copy of a recipe's tables. Raises SettingError if they are none."""
    if not all(isinstance(name, str) and isinstance(table, Mapping) for name, table in recipe.items()):
        raise SettingError("recipe", 'as a dict, it holds tables: {"teacher": {"use": "edm", …}, …}')
    return {name: plain_value(table) for name, table in recipe.items()}


def plain_value(value: Any) -> Any:
    """A value as TOML would give it: paths as texts, tuples as lists, NumPy's numbers as Python's."""
    if isinstance(value, Mapping):
        return {str(key): plain_value(v) for key, v in value.items()}
    if isinstance(value, list | tuple | range):
        return [plain_value(v) for v in value]
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if isinstance(value, Number) and not isinstance(value, bool | int | float):
        return int(value) if isinstance(value, Integral) else float(value) if isinstance(value, Real) else value
    return value
