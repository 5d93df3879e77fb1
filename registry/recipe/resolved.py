"""A resolved recipe: nothing in it is missing or unknown. It can be written back as TOML."""

from __future__ import annotations

import json
import math
import re
import tomllib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import toml
from pydantic import BaseModel

from registry.core.contracts import Domain
from registry.core.errors import SettingError, UserError
from registry.core.settings import Config
from registry.core.text import text_of
from registry.files.locate import RECIPE
from registry.plugins.component import Component
from registry.recipe.tables import (
    ClassifierConfig,
    DataConfig,
    EvalConfig,
    GeneratorConfig,
    LogConfig,
    NetworkConfig,
    PretrainConfig,
    TrainConfig,
    WarmupConfig,
    lengths,
)

Tables = dict[str, Any]


TABLE_NAMES: dict[type[Config], str] = {
    GeneratorConfig: "generator", WarmupConfig: "warmup", TrainConfig: "train", PretrainConfig: "train", DataConfig: "data",
    NetworkConfig: "network", ClassifierConfig: "classifier", LogConfig: "log", EvalConfig: "eval",
}  # fmt: skip


LISTS = {"metric": "eval", "tracker": "log"}
"""Kinds of which a recipe may name several: the table that names them."""


@contextmanager
def settings_of(config: Config | Choice) -> Iterator[None]:
    """A SettingError raised in here gets the table of the recipe that these settings stand in."""
    try:
        yield
    except SettingError as error:
        error.table = error.table or (config.table_name if isinstance(config, Choice) else TABLE_NAMES[type(config)])
        raise


@dataclass(frozen=True)
class Choice:
    """A component that a recipe names, with its validated settings."""

    kind: str
    component: Component
    owner: str
    config: Config
    origins: Mapping[str, str] = field(default_factory=dict)
    """By key: how a setting was given, if not in the recipe (`--reference cifar10.zip`)."""
    version: str = ""
    """Of the plugin."""

    @property
    def name(self) -> str:
        return self.component.name

    @property
    def table_name(self) -> str:
        """The table of the recipe that its settings stand in."""
        return f"{LISTS[self.kind]}.{self.name}" if self.kind in LISTS else self.kind

    @property
    def who(self) -> str:
        """Whose it is, for errors."""
        return f"plugin {self.owner!r}: {self.kind} {self.name!r}"

    @property
    def origin(self) -> str:
        """What it is and whose, for who meets its work elsewhere: loss ipfm (ipfm 0.1.0)."""
        return f"{self.kind} {self.name} ({self.owner} {self.version})"

    def make(self, *domain: Domain) -> Any:
        """Build the component. What it changes meanwhile for all code, such as the working folder, is then as before. Raises
        UserError, with the plugin's name if it fails in any other way."""
        from registry.core.surroundings import settings_restored  # torch, which recipes are read without

        try:
            with settings_of(self), settings_restored():
                made = self.component.make(self.config, *domain)
        except SettingError as error:
            if error.setting in self.origins:
                raise UserError(f"{self.origins[error.setting]}: {error.problem}") from error
            raise
        except UserError:
            raise
        except Exception as error:
            reason = f"{type(error).__name__}: {' '.join(text_of(error, str).split())}"
            raise UserError(f"plugin {self.owner!r}: its {self.kind} {self.name!r} cannot be built: {reason}") from error
        if made is None:
            raise UserError(f"plugin {self.owner!r}: its {self.kind} {self.name!r} cannot be built: its build gives nothing")
        return made

    def table(self) -> Tables:
        """Its table in a recipe."""
        return {"use": self.name, **plain(self.config)}


@dataclass(frozen=True)
class Recipe:
    """A distillation, resolved: nothing in it is missing or unknown."""

    path: Path
    teacher: Choice
    noise: Choice
    loss: Choice
    data: DataConfig | None
    """Real images, for a loss that wants them."""
    generator: GeneratorConfig
    warmup: WarmupConfig
    train: TrainConfig
    log: LogConfig
    eval: EvalConfig
    metrics: tuple[Choice, ...]
    trackers: tuple[Choice, ...] = ()
    swap: Tables = field(default_factory=dict)
    """What comes along with another loss; kept, so that the recipe in a run's folder can be swapped, too."""

    @property
    def name(self) -> str:
        """Of its run folders."""
        return name_of(self.path)

    def tables(self) -> Tables:
        """The resolved recipe as plain tables: what is written to the run folder and reads back to the same recipe."""
        return {
            "teacher": self.teacher.table(),
            "noise": self.noise.table(),
            "loss": self.loss.table(),
            **({"data": plain(self.data)} if self.data else {}),
            "generator": plain(self.generator),
            **({"warmup": plain(self.warmup)} if self.warmup.kimg else {}),
            "train": plain(self.train),
            "log": log_tables(self.log, self.trackers),
            "eval": eval_tables(self.eval, self.metrics),
            **({"swap": self.swap} if self.swap else {}),
        }


@dataclass(frozen=True)
class PretrainRecipe:
    """The training of a teacher, resolved."""

    path: Path
    data: DataConfig
    network: NetworkConfig
    noise: Choice
    train: PretrainConfig
    log: LogConfig
    eval: EvalConfig
    metrics: tuple[Choice, ...]
    trackers: tuple[Choice, ...] = ()

    @property
    def name(self) -> str:
        """Of its run folders."""
        return name_of(self.path)

    def tables(self) -> Tables:
        """See Recipe.tables."""
        return {
            "data": plain(self.data),
            "network": plain(self.network),
            "noise": self.noise.table(),
            "train": plain(self.train),
            "log": log_tables(self.log, self.trackers),
            "eval": eval_tables(self.eval, self.metrics),
        }


@dataclass(frozen=True)
class FeaturesRecipe:
    """The training of a feature network, resolved."""

    path: Path
    data: DataConfig
    classifier: ClassifierConfig

    def tables(self) -> Tables:
        """See Recipe.tables."""
        return {"data": plain(self.data), "classifier": plain(self.classifier)}


AnyRecipe = Recipe | PretrainRecipe | FeaturesRecipe


UNTRAINED = ("log", "eval", "swap")
"""The tables that say where a run is logged and how it is measured, and which were swapped in."""


UNLEARNED = {
    "train": {"batch_gpu", "memory", "compile", "shard", "device", "threads", "rollbacks", "timeout_minutes"},
    "generator": {"recompute"},
}
"""Settings that change how the same is learned, by table."""


def without_unlearned(tables: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """A recipe without the settings that change only how the same is learned."""
    named = {name: table for name, table in tables.items() if isinstance(table, Mapping)}
    return {name: {k: v for k, v in table.items() if k not in UNLEARNED.get(name, ())} for name, table in named.items()}


def training_tables(recipe: Recipe | PretrainRecipe) -> Tables:
    """The part of the recipe that a network's file holds: all but where the run was logged and how it was measured."""
    return {name: table for name, table in recipe.tables().items() if name not in UNTRAINED}


def parts(recipe: Recipe | PretrainRecipe) -> tuple[int, int, int]:
    """Images of the warm-up's regression, of the student alone after it, and of the rest, in whole batches."""
    if isinstance(recipe, PretrainRecipe):
        return lengths(0, 0, recipe.train.duration_kimg, recipe.train.batch)
    return lengths(recipe.warmup.kimg, recipe.warmup.student_kimg, recipe.train.duration_kimg, recipe.train.batch)


def name_of(path: Path) -> str:
    """The name of a recipe: its file's, or for the recipe.toml of a run folder NNNNN-NAME that NAME. It becomes part of a folder's
    name and of lines, so that what cannot be printed becomes "_"."""
    run = re.fullmatch(r"\d{5,}-(.+)", path.absolute().parent.name, re.DOTALL)
    return "".join(c if c.isprintable() else "_" for c in (run[1] if path.name == RECIPE and run else path.stem))


def eval_tables(config: EvalConfig, metrics: Iterable[Choice]) -> Tables:
    """[eval] as tables; what a metric takes from [eval] itself is not repeated, so that overriding it there is enough."""
    shared = plain(config)
    own = {m.name: {k: v for k, v in plain(m.config).items() if k != "reference" or v != config.reference} for m in metrics}
    return shared | {name: table for name, table in own.items() if table}


def log_tables(config: LogConfig, trackers: Iterable[Choice]) -> Tables:
    """[log] as tables, with those of its trackers."""
    return plain(config) | {tracker.name: table for tracker in trackers if (table := plain(tracker.config))}


def plain(config: BaseModel) -> Tables:
    """Settings as plain TOML values, without those that are unset."""
    return config.model_dump(mode="python", exclude_none=True, round_trip=True) | {
        name: list(value) for name, value in config if isinstance(value, tuple)
    }


class TomlEncoder(toml.TomlEncoder):  # type: ignore[misc]
    """toml's own writes a backslash before an x as something else."""

    def __init__(self) -> None:
        super().__init__(dict)
        self.dump_funcs[str] = partial(json.dumps, ensure_ascii=False)  # a string of JSON is one of TOML


def dumps(tables: Tables) -> str:
    """Tables as TOML; asserts that the text reads back as the same tables."""
    text: str = toml.dumps(tables, TomlEncoder())
    assert _same(tomllib.loads(text), tables), "the resolved recipe does not survive being written"
    return text


def _same(a: Any, b: Any) -> bool:
    if isinstance(a, Mapping) and isinstance(b, Mapping):
        return a.keys() == b.keys() and all(_same(a[k], b[k]) for k in a)
    if isinstance(a, list) and isinstance(b, list):
        return len(a) == len(b) and all(map(_same, a, b))
    return bool(a == b) or (isinstance(a, float) and isinstance(b, float) and math.isnan(a) and math.isnan(b))
