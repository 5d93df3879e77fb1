"""Reading a recipe: TOML and overrides in, a resolved recipe out.

All errors in a recipe are reported together, before anything is built, one line each: file, table, key, what was found, what
is allowed, the closest correct name. Nothing here imports torch.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from pydantic import ValidationError
from pydantic.fields import FieldInfo

from registry.core.errors import Mistakes, UserError, near
from registry.core.settings import Config, NoiseConfig
from registry.core.text import cut, kind, shown, text_of
from registry.files.locate import locate_recipe
from registry.plugins.component import Component
from registry.plugins.loading import Plugins, Registered
from registry.recipe.problems import problems
from registry.recipe.resolved import LISTS, AnyRecipe, Choice, FeaturesRecipe, PretrainRecipe, Recipe, Tables
from registry.recipe.tables import (
    MOST_BATCH,
    ClassifierConfig,
    DataConfig,
    EvalConfig,
    GeneratorConfig,
    LogConfig,
    NetworkConfig,
    PretrainConfig,
    StudyConfig,
    TrainConfig,
    WarmupConfig,
    lengths,
)
from registry.recipe.texts import lay_over, parse_set, read_tables

C = TypeVar("C", bound=Config)


def resolve(
    name: str,
    plugins: Plugins,
    sets: Iterable[str] | Mapping[str, str] = (),
    loss: str | None = None,
    seed: int | None = None,
    outdir: str | None = None,
) -> AnyRecipe:
    """Read the recipe at a path (or shipped under a bare name) and lay the command line over it.

    Precedence: `sets` and flags > [swap.LOSS] > recipe > defaults. Raises UserError with all that is wrong. `sets` may be a mapping
    from a setting to the option that it was given by, which an error then names.
    """
    given = sets if isinstance(sets, Mapping) else dict.fromkeys(sets, "set")
    over = [Override(*parse_set(text), f"--{option} {text}") for text, option in given.items()]
    over += [Override(["train", "seed"], seed, f"--seed {seed}")] if seed is not None else []
    over += [Override(["log", "outdir"], outdir, f"--outdir {outdir}")] if outdir is not None else []
    return laid_over(read_recipe(name, plugins), over, loss, f"--loss {loss}")


class Override(NamedTuple):
    """A value that takes the place of a recipe's, and how it was given, for errors about it."""

    keys: list[str]
    value: Any
    origin: str


def read_recipe(name: str, plugins: Plugins) -> Reading:
    """The recipe at a path, or shipped under a bare name, not yet checked. Raises UserError."""
    path = locate_recipe(name)
    reading = Reading(path, read_tables(path), plugins)
    if isinstance(reading.tables.get("recipe"), str):
        raise UserError(f"{path}: is a study, not a recipe; to check it: distill study {path} --dry-run")
    return reading


def laid_over(reading: Reading, overrides: Iterable[Override], loss: str | None, origin: str) -> AnyRecipe:
    """The resolved recipe, with another loss, if one is given (in the way of `origin`), and these values over it."""
    if loss is not None:
        reading.swap(loss)
        reading.origins["loss", "use"] = origin
    for override in overrides:
        if loss is not None and override.keys[:2] == ["swap", loss]:
            raise UserError(f"{override.origin}: comes too late, for [swap.{loss}] is laid over already; set what is in it itself")
        reading.override(*override)
    if "classifier" in reading.tables:
        return reading.features()
    return reading.pretrain() if "network" in reading.tables else reading.distill()


COMMANDS: dict[type, str] = {
    Recipe: "distill --recipe",
    PretrainRecipe: "distill pretrain --recipe",
    FeaturesRecipe: "distill features --recipe",
}
R = TypeVar("R", Recipe, PretrainRecipe, FeaturesRecipe)


def expect(recipe: AnyRecipe, kind: type[R]) -> R:
    """The recipe, if it is of this kind. Raises UserError with the command that runs it."""
    if isinstance(recipe, kind):
        return recipe
    raise UserError(f"{recipe.path}: this recipe is run with: {COMMANDS[type(recipe)]} {recipe.path}")


@dataclass
class Reading:
    """A recipe while it is read: its tables, and what is wrong with them so far. `finish` raises all errors at once."""

    path: Path
    tables: Tables
    plugins: Plugins
    errors: list[str] = field(default_factory=list)
    origins: dict[tuple[str, ...], str] = field(default_factory=dict)

    def swap(self, loss: str) -> None:
        """Use another loss, and lay the recipe's [swap.NAME] over it, if it has one (`--loss NAME`)."""
        swaps = self.tables.get("swap", {})
        top = dict(swaps[loss]) if isinstance(swaps, dict) and isinstance(swaps.get(loss), dict) else {}
        wrong = [name for name, values in top.items() if not isinstance(values, dict)]
        for name in wrong:
            self.wrong("swap", (loss, name), f"= {shown(text_of(top.pop(name)))}: must be a table")
        top["loss"] = top.get("loss", {}) | {"use": loss}
        for table, values in top.items():
            old, use = self.tables.get(table, {}), values.get("use")
            if isinstance(old, dict) and use is not None and use != old.get("use"):
                # Another component: of the old one's settings keep those that the new one has, too.
                known = fields_of(self.plugins.owners(table, use))
                self.tables = self.tables | {table: {k: v for k, v in old.items() if k in known}}
        self.tables = lay_over(self.tables, top)

    def override(self, keys: list[str], value: Any, origin: str) -> None:
        """Set one key. Errors about it begin with `origin` instead of the recipe's path."""
        nested: Any = value
        for key in reversed(keys):
            nested = {key: nested}
        self.tables = lay_over(self.tables, nested)
        self.origins[tuple(keys)] = cut(origin, 500)

    # `table`, `settings` and `choice` note what is wrong, and then return None.

    def table(self, name: str) -> Tables | None:
        """A copy of a table; empty if the recipe does not have it."""
        found = self.tables.get(name, {})
        if isinstance(found, dict):
            return dict(found)
        self.wrong(name, (), f"is {shown(text_of(found))}; it must be a table")
        return None

    def settings(self, table: str, cls: type[C], values: Tables | None = None) -> C | None:
        """The settings in a table, validated."""
        values = self.table(table) if values is None else values
        if values is None:
            return None
        try:
            return cls.model_validate(values, context={"folder": str(self.path.parent)})
        except ValidationError as error:
            for place, words in problems(error, cls).items():
                self.wrong(table, place, words)
            return None

    def choice(self, kind: str, table: str | None = None, use: str | None = None, values: Tables | None = None) -> Choice | None:
        """The component that a table names, with its settings, validated."""
        table = table or kind
        values = self.table(table) if values is None else values
        if values is None:
            return None
        use = values.pop("use", None) if use is None else use
        known = self.plugins.names(kind)
        if use is None:
            self.wrong(table, ("use",), f"is missing: name a {kind}; known: {', '.join(known)}")
            return None
        if not isinstance(use, str):
            self.wrong(table, ("use",), f"= {shown(text_of(use))}: must be the name of a {kind}; known: {', '.join(known)}")
            return None
        try:
            found = self.plugins.find(kind, use)
        except UserError as error:
            self.wrong(table, ("use",), f"= {use!r}: {error}")
            return None
        assert isinstance(found.component, Component)
        config = self.settings(table, found.component.config, values)
        origins = {keys[-1]: text for keys, text in self.origins.items() if ".".join(keys[:-1]) == table}
        return Choice(kind, found.component, found.owner, config, origins, found.version) if config else None

    def evaluation(self) -> tuple[EvalConfig | None, tuple[Choice, ...]]:
        """[eval], with a metric's own settings in [eval.NAME]."""
        config, own = self.with_tables_of("metric", EvalConfig)
        for name in config.metrics if config else ():
            fields = fields_of(self.plugins.owners("metric", name))
            if config and config.reference is not None and "reference" in fields:
                own[name] = {"reference": config.reference} | own.get(name, {})
        found = self.choices("metric", config.metrics if config else (), own)
        for metric in found:
            self.enough_images(metric, config)
        return config, found

    def logging(self) -> tuple[LogConfig | None, tuple[Choice, ...]]:
        """[log], with a tracker's own settings in [log.NAME]."""
        config, own = self.with_tables_of("tracker", LogConfig)
        return config, self.choices("tracker", config.trackers if config else (), own)

    def with_tables_of(self, kind: str, cls: type[C]) -> tuple[C | None, dict[str, Tables]]:
        """The settings of a table that may name several components of a kind, and the tables in it that are the components' own."""
        table, known = LISTS[kind], self.plugins.names(kind)
        values = self.table(table) or {}
        own = {name: values.pop(name) for name in list(values) if name not in cls.model_fields}
        config = self.settings(table, cls, values)
        for name, settings in own.items():
            if name not in known:
                allowed = ", ".join(cls.model_fields)
                self.wrong(table, (name,), f"is unknown{near(name, [*cls.model_fields, *known])}; allowed: {allowed}")
            elif not isinstance(settings, dict):
                self.wrong(table, (name,), f"= {shown(text_of(settings))}: must be a table of the {kind}'s settings")
        return config, {name: dict(settings) for name, settings in own.items() if isinstance(settings, dict)}

    def choices(self, kind: str, names: Iterable[str], own: Mapping[str, Tables]) -> tuple[Choice, ...]:
        """The components of a kind that a table names, each with its own settings."""
        table, known, found = LISTS[kind], self.plugins.names(kind), list[Choice | None]()
        for i, name in enumerate(names := tuple(names)):
            if name in names[:i]:
                self.wrong(table, (f"{kind}s",), f"names {name!r} more than once")
            elif self.plugins.owners(kind, name):
                found.append(self.choice(kind, f"{table}.{name}", use=name, values=dict(own.get(name, {}))))
            else:
                what = f"= [{name!r}]: no {kind} is called {name!r}{near(name, known)}; known: {', '.join(known)}"
                self.wrong(table, (f"{kind}s",), what)
        return tuple(choice for choice in found if choice)

    def enough_images(self, metric: Choice, config: EvalConfig | None) -> None:
        """[eval] must make as many images as the metric needs."""
        fewest = metric.config.fewest_images()
        if type(fewest) is not int:
            raise UserError(f"{metric.who}: fewest_images() must give a whole number, not a {kind(fewest)}")
        for key, n in (("samples", config.samples), ("snapshot_samples", config.snapshot_samples)) if config else ():
            if 0 < n < fewest:
                self.wrong("eval", (key,), f"= {n}: the metric {metric.name} with these settings needs at least {fewest} images")

    def distill(self) -> Recipe:
        """The recipe of a distillation. Raises UserError with all that is wrong."""
        teacher, noise, loss = self.choice("teacher"), self.choice("noise"), self.choice("loss")
        data = self.settings("data", DataConfig) if "data" in self.tables else None
        generator = self.settings("generator", GeneratorConfig)
        warmup = self.settings("warmup", WarmupConfig)
        train = self.settings("train", TrainConfig)
        (log, trackers), (evaluation, metrics) = self.logging(), self.evaluation()
        self.settings("study", StudyConfig)  # not a part of a run; only its errors are of interest here
        self.unknown_tables(("teacher", "noise", "loss", "data", "generator", "warmup", "train", "log", "eval", "swap", "study"))
        known = self.plugins.names("loss")
        swaps = self.table("swap") or {}
        for name in swaps:
            if name not in known and not self.plugins.failures:
                self.wrong("swap", (name,), f"is no loss{near(name, known)}; known: {', '.join(known)}")
            elif not isinstance(swaps[name], dict):
                self.wrong("swap", (name,), f"= {shown(text_of(swaps[name]))}: must be a table")
        self.divides(TrainConfig)
        if train and warmup and not any(lengths(warmup.kimg, 0, train.duration_kimg, train.batch)):
            nothing = "there is nothing to do without a warm-up ([warmup] kimg)"
            self.wrong("train", ("duration_kimg",), f"= {train.duration_kimg:g}: {nothing}")
        if generator and noise and isinstance(noise.config, NoiseConfig):
            reason = generator.starts_elsewhere(noise.config.sigma_init)
            if reason:
                self.wrong("generator", ("schedule",), reason)
        self.data_as_wanted(loss)
        D = teacher.config.known_D() if teacher else None
        for choice in (teacher, noise, loss):
            whose = "its source" if choice is teacher else "the teacher"
            reason = misfit(choice, D, whose, self.plugins) if choice and D is not None else None
            if choice and reason:
                self.wrong(choice.kind, ("use",), f"= {choice.name!r}: {reason}")
        self.finish()
        assert teacher and noise and loss and generator and warmup and train and log and evaluation
        log = log.fitted(train.duration_kimg + (warmup.kimg and warmup.kimg + warmup.student_kimg), train.batch)
        tables = teacher, noise, loss, data, generator, warmup, train, log, evaluation.fitted(), metrics, trackers, swaps
        return Recipe(self.path, *tables)

    def data_as_wanted(self, loss: Choice | None) -> None:
        """[data] must be there if the loss wants real images, and only then."""
        if loss is None:
            return
        if loss.config.wants_data() and "data" not in self.tables:
            what = f"is missing: loss {loss.name!r} learns from real images; name digits, or a folder or ZIP of them"
            self.wrong("data", ("source",), what)
        if "data" in self.tables and not loss.config.wants_data():
            self.wrong("data", (), f"is not used: loss {loss.name!r} needs no data; remove this table, or choose another loss")

    def pretrain(self) -> PretrainRecipe:
        """The recipe of a teacher's training. Raises UserError with all that is wrong."""
        data, network = self.settings("data", DataConfig), self.settings("network", NetworkConfig)
        noise = self.choice("noise")
        train = self.settings("train", PretrainConfig)
        (log, trackers), (evaluation, metrics) = self.logging(), self.evaluation()
        self.unknown_tables(("data", "network", "noise", "train", "log", "eval"))
        self.divides(PretrainConfig)
        reason = misfit(noise, network.D, "[network]", self.plugins) if noise and network else None
        if noise and reason:
            self.wrong("noise", ("use",), f"= {noise.name!r}: {reason}")
        self.finish()
        assert data and network and noise and train and log and evaluation
        log = log.fitted(train.duration_kimg, train.batch)
        return PretrainRecipe(self.path, data, network, noise, train.fitted(), log, evaluation.fitted(), metrics, trackers)

    def features(self) -> FeaturesRecipe:
        """The recipe of a feature network's training. Raises UserError with all that is wrong."""
        data, classifier = self.settings("data", DataConfig), self.settings("classifier", ClassifierConfig)
        self.unknown_tables(("data", "classifier"))
        self.finish()
        assert data and classifier
        return FeaturesRecipe(self.path, data, classifier)

    def divides(self, cls: type[TrainConfig] | type[PretrainConfig]) -> None:
        """batch_gpu must divide batch."""
        train = self.table("train") or {}
        batch, part = train.get("batch", cls.model_fields["batch"].default), train.get("batch_gpu")
        if type(batch) is int and type(part) is int and 0 < batch <= MOST_BATCH and part > 0 and batch % part:
            small = [d for d in range(1, math.isqrt(batch) + 1) if batch % d == 0]
            lower = max(d for d in (*small, *(batch // d for d in small)) if d <= part)
            self.wrong(
                "train", ("batch_gpu",), f"= {part}: must divide batch = {batch}; the next lower number that does is {lower}"
            )

    def unknown_tables(self, allowed: tuple[str, ...]) -> None:
        """There must be no other tables."""
        for name in self.tables:
            if name not in allowed:
                self.wrong(name, (), f"is no table of a recipe{near(name, list(allowed))}; tables: {', '.join(allowed)}")

    def wrong(self, table: str, keys: tuple[int | str, ...], text: str) -> None:
        """Note an error: `text` follows '[table] key'."""
        path = (*table.split("."), *map(str, keys))
        where = next((o for k, o in self.origins.items() if k == path[: len(k)]), str(self.path))
        key = " " + ".".join(shown(each, 100) for each in keys) if keys else ""
        line = f"{where}: [{shown(table, 100)}]{key} {text}"
        if line not in self.errors:  # a table that is none is looked at by several
            self.errors.append(line)

    def finish(self) -> None:
        """Raise UserError with all errors, one a line, if there are any."""
        if self.errors:
            raise Mistakes(self.errors)


def misfit(choice: Choice, D: float, whose: str, plugins: Plugins) -> str | None:
    """Why a component cannot serve dimension D, whose D it is, and which components would; None if it can."""
    reason = choice.config.misfit(D)
    if reason is None:
        return None
    serving = plugins.serving(choice.kind, D)
    hint = "with its default settings it would serve" if choice.name in serving else f"use {' or '.join(serving) or 'another'}"
    if choice.kind == "loss":
        hint += f", or a teacher that {choice.name} serves"
    return f"{reason}, but {whose} has D = {D:g}; {hint}"


def check_fit(recipe: Recipe, D: float, plugins: Plugins) -> None:
    """Check that teacher, noise and loss serve the D in the teacher's file. Raises UserError."""
    for choice in (recipe.teacher, recipe.noise, recipe.loss):
        reason = misfit(choice, D, "its file" if choice is recipe.teacher else "the teacher", plugins)
        if reason:
            raise UserError(f"{recipe.path}: [{choice.table_name}] use = {choice.name!r}: {reason}")


def fields_of(owners: list[Registered]) -> Mapping[str, FieldInfo]:
    """The settings of the component that owners register, if there is one."""
    component = owners[0].component if owners else None
    return component.config.model_fields if isinstance(component, Component) else {}
