"""What the shell completes: names of recipes, settings, losses, networks, and files."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import get_args, get_type_hints

import click
from click.shell_completion import CompletionItem

OWN_FOLDERS = {"distill": ".", "pretrain": "teachers", "features": "features", "study": "."}
"""Where the recipes of a command are, for those that run one kind only."""


def losses(context: click.Context, parameter: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """The losses of all plugins."""
    from registry.plugins.loading import load_plugins

    return items(load_plugins().names("loss"), incomplete)


def metrics(context: click.Context, parameter: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """The metrics of all plugins."""
    from registry.plugins.loading import load_plugins

    return items(load_plugins().names("metric"), incomplete)


def settings(context: click.Context, parameter: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """The settings of the command's recipes, as TABLE.KEY; those of components are of every plugin."""
    from registry.core.settings import Config
    from registry.plugins.component import Component
    from registry.plugins.loading import load_plugins
    from registry.recipe.resolved import Choice, FeaturesRecipe, PretrainRecipe, Recipe

    others: dict[str, type] = {"pretrain": PretrainRecipe, "features": FeaturesRecipe}
    plugins, configs = load_plugins(), list[tuple[str, type[Config]]]()
    for table, hint in get_type_hints(others.get(context.info_name or "", Recipe)).items():
        kinds = [kind for kind in get_args(hint) or (hint,) if isinstance(kind, type)]
        configs += [(table, kind) for kind in kinds if issubclass(kind, Config)]
        for owned in plugins.registered if Choice in kinds else ():
            if owned.kind == table and isinstance(owned.component, Component):
                configs.append((table, owned.component.config))
    return items({f"{table}.{key}" for table, config in configs for key in config.model_fields}, incomplete)


def recipes(context: click.Context, parameter: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """The shipped recipes that the command runs, and files."""
    from registry.files.locate import STUDIES, shipped

    found = (path.relative_to(shipped()) for path in shipped().rglob("*.toml") if path.parent.name != STUDIES)
    own = OWN_FOLDERS.get(context.info_name or "")
    names = [path.with_suffix("").as_posix() for path in found if own is None or path.parent.as_posix() == own]
    return or_files(names, incomplete, (".toml",))


def studies(context: click.Context, parameter: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """The shipped studies, and files."""
    from registry.files.locate import STUDIES, shipped

    return or_files([path.stem for path in (shipped() / STUDIES).glob("*.toml")], incomplete, (".toml",))


def networks(context: click.Context, parameter: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """The shipped and the published teachers, and files."""
    from registry.files.locate import shipped
    from registry.plugins.loading import load_plugins

    names = [path.stem for path in (shipped() / "teachers").glob("*.pt")]
    names += load_plugins().names("published")
    return or_files(names, incomplete, (".pkl", ".pt", ".safetensors"))


def states(context: click.Context, parameter: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """What a run is resumed from: auto, and files."""
    return or_files(["auto"], incomplete, (".pt",))


def items(names: Iterable[str], incomplete: str) -> list[CompletionItem]:
    return [CompletionItem(name) for name in sorted(names) if name.startswith(incomplete)]


def or_files(names: Iterable[str], incomplete: str, suffixes: tuple[str, ...]) -> list[CompletionItem]:
    """The names that fit, with the files of this folder that do; or else the shell completes a path by itself.

    Both at once are not possible: bash forgets the names when it is told to complete a path.
    """
    found = items(names, incomplete)
    if not found:
        return [CompletionItem(incomplete, type="file")]
    try:
        here = [path.name for path in Path().iterdir() if path.suffix in suffixes and not path.name.startswith(".")]
    except OSError:  # the folder is gone
        here = []
    return [*found, *items(here, incomplete)]
