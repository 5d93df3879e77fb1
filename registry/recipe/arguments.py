"""A recipe and what is laid over it, as Python code gives them; errors name the arguments."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Set
from numbers import Integral, Number, Real
from pathlib import Path
from typing import Any, TypeVar

from registry.core.errors import SettingError, UserError
from registry.core.text import shown, text_of
from registry.plugins.loading import Plugins
from registry.recipe.reading import Override, Reading, expect, laid_over, read_recipe
from registry.recipe.resolved import FeaturesRecipe, PretrainRecipe, Recipe
from registry.recipe.texts import DEEPEST, check_integers, parse_set

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
        reading = read_recipe(check_path("recipe", recipe), plugins)
    else:
        raise SettingError("recipe", "must be a path, the name of a shipped recipe, a run folder, or a dict of tables", recipe)
    if not isinstance(loss, str | None):
        raise SettingError("loss", "must be the name of a loss", loss)
    over = overrides(sets)
    over += [Override(["train", "seed"], seed, f"seed = {seed!r}")] if seed is not None else []
    if outdir is not None:
        folder = check_path("outdir", outdir)
        over.append(Override(["log", "outdir"], folder, f"outdir = {folder!r}"))
    return expect(laid_over(reading, over, loss, f"loss = {loss!r}"), kind)


def check_path(setting: str, path: object) -> str:
    """A path as text. Raises SettingError."""
    text = os.fspath(path) if isinstance(path, os.PathLike) else path
    if not isinstance(text, str):
        raise SettingError(setting, "must be a path", path)
    return text


def check_flag(setting: str, value: object) -> bool:
    """A yes or no. Raises SettingError."""
    if not isinstance(value, bool):
        raise SettingError(setting, "must be True or False", value)
    return value


def overrides(sets: Sets) -> list[Override]:
    """What `sets` asks for. Raises SettingError."""
    if isinstance(sets, str) or not isinstance(sets, Iterable):
        raise SettingError("sets", 'must be a dict, {"train.batch": 64}, or a list of texts, ["train.batch=64"]', sets)
    found = []
    for item in sets:
        if isinstance(sets, Mapping):
            keys, value = str(item).split("."), given(sets[item], "sets")
            origin = f"sets[{item!r}] = {shown(text_of(sets[item]), 60)}"
            if len(keys) < 2 or not all(key.strip() for key in keys):
                raise SettingError("sets", "write its keys as table.key, such as train.batch", str(item))
        else:
            try:
                keys, value = parse_set(item, "sets:")
            except (AttributeError, TypeError):  # it is no text
                raise SettingError("sets", "write it as table.key=value, such as train.batch=64", item) from None
            origin = f"sets: {item}"
        found.append(Override(keys, value, origin))
    return found


def tables_of(recipe: Mapping[str, Any]) -> dict[str, Any]:
    """A copy of a recipe's tables. Raises SettingError if they are none."""
    if not all(isinstance(name, str) and isinstance(table, Mapping) for name, table in recipe.items()):
        raise SettingError("recipe", 'as a dict, it holds tables: {"teacher": {"use": "edm", …}, …}')
    return {name: given(table, "recipe") for name, table in recipe.items()}


def given(value: Any, argument: str) -> Any:
    """`plain_value` of what was given for an argument. Raises SettingError if TOML has nothing like it."""
    try:
        plain = plain_value(value)
        check_integers(plain)
    except ValueError as error:
        raise SettingError(argument, str(error), value) from None
    return plain


def plain_value(value: Any, depth: int = 0) -> Any:
    """A value as TOML would give it: paths as texts, tuples as lists, NumPy's numbers as Python's. Raises ValueError."""
    if depth > DEEPEST:
        raise ValueError("is nested too deeply")
    if isinstance(value, Mapping):
        return {str(key): plain_value(v, depth + 1) for key, v in value.items()}
    if isinstance(value, list | tuple | range):
        return [plain_value(v, depth + 1) for v in value]
    if isinstance(value, Set):
        raise ValueError("has a set in it, whose entries have no order; write a list")
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if isinstance(value, Number) and not isinstance(value, bool | int | float):
        try:
            return int(value) if isinstance(value, Integral) else float(value) if isinstance(value, Real) else text_of(value)
        except (TypeError, ValueError, OverflowError):  # NumPy's spans of time; fractions beyond a float
            return text_of(value)
    return value
