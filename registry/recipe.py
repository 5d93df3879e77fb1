"""Recipes: TOML and overrides in, a validated frozen configuration out, and the resolved recipe written back.

All errors of a recipe are found before anything is built, and told at once, one line each: file, table, key, what was
found, what is allowed, the nearest right name. Nothing here imports torch.
"""

from __future__ import annotations

import itertools
import math
import re
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import toml
from pydantic import AfterValidator, BaseModel, Field, ValidationError, ValidationInfo, field_validator
from pydantic_core import ErrorDetails

from registry.api import Component, Config, DataSource, Dimension, Positive, Reference, UserError
from registry.plugins import Plugins
from registry.sources import locate_recipe, near


def _is_a_device(value: str) -> str:
    if not re.fullmatch(r"auto|cpu|cuda(:\d+)?", value):
        raise ValueError("must be auto, cpu, cuda or cuda:N")
    return value


C = TypeVar("C", bound=Config)
Tables = dict[str, Any]
Beta = Annotated[float, Field(ge=0, lt=1)]
Betas = Annotated[tuple[Beta, Beta], Field(strict=False)]
Device = Annotated[str, AfterValidator(_is_a_device)]
Ints = Annotated[tuple[int, ...], Field(strict=False)]

# -------------------------------------------------------------------------------------------- the tables of a recipe


class GeneratorConfig(Config):
    """[generator]: how many times the generator is applied, at which noise levels (IPFM Algorithm 2)."""

    steps: int = Field(1, ge=1, le=100, description="evaluations per image")
    schedule: Literal["uniform", "karras"] | Annotated[tuple[Positive, ...], Field(strict=False)] = Field(
        "uniform", description="noise levels from sigma_init down: uniform, karras, or a list that begins with sigma_init"
    )
    gradient: Literal["all", "last"] = Field(
        "all", description="train through all applications, or through a random one per image with those before it fixed"
    )
    recompute: bool = Field(False, description="compute activations again in the backward pass: less memory, more time")

    @field_validator("schedule", mode="before")
    @classmethod
    def _is_a_schedule(cls, value: Any, info: ValidationInfo) -> Any:
        steps = info.data.get("steps", 1)
        if isinstance(value, str) and value not in ("uniform", "karras"):
            raise ValueError("must be 'uniform', 'karras', or a list of noise levels")
        if isinstance(value, list | tuple) and len(value) != steps:
            raise ValueError(f"has {len(value)} noise levels, but steps = {steps}")
        if isinstance(value, list | tuple) and any(type(v) not in (int, float) or v <= 0 for v in value):
            raise ValueError("must be positive noise levels")
        if isinstance(value, list | tuple) and any(a <= b for a, b in itertools.pairwise(value)):
            raise ValueError("must be falling")
        return value

    def starts_elsewhere(self, sigma_init: float) -> str | None:
        """Why this schedule cannot serve a noise with this sigma_init, or None if it can."""
        if isinstance(self.schedule, str) or self.schedule[0] == sigma_init:
            return None
        return f"begins with {self.schedule[0]:g}, but [noise] sigma_init = {sigma_init:g}; they must agree"


class TrainConfig(Config):
    """[train]: the loop (IPFM Algorithm 1); names and defaults as in EDM and SiD."""

    batch: int = Field(256, ge=1, description="images per iteration, over all processes")
    batch_gpu: int | None = Field(None, ge=1, description="images at a time on one device; divides batch")
    duration_kimg: Positive = Field(description="length of the run, in thousands of generated images")
    student_steps: int = Field(1, ge=1, description="student steps per generator step")
    lr: Positive = Field(1e-5, description="the student's learning rate")
    glr: Positive = Field(1e-5, description="the generator's learning rate")
    lr_decay: float = Field(0.0, ge=0, le=1, description="last share of the run in which both rates fall to 0 (cosine)")
    betas: Betas = Field((0.0, 0.999), description="Adam's betas of the student")
    gbetas: Betas = Field((0.0, 0.999), description="Adam's betas of the generator")
    eps: Positive = Field(1e-8, description="Adam's epsilon; give 1e-6 for networks that run in float16")
    loss_scaling: Positive = Field(1.0, description="factor of the student's loss")
    generator_loss_scaling: Positive = Field(100.0, description="factor of the generator's loss")
    ema_halflife_kimg: float = Field(500.0, ge=0, allow_inf_nan=False, description="half-life of the generator's average")
    ema_rampup_ratio: float = Field(
        0.05, ge=0, description="the half-life is at most this share of the images seen; 0 = no such limit"
    )
    seed: int = Field(0, ge=0, lt=2**32, description="seed of everything random")
    device: Device = Field("auto", description="auto, cpu, cuda or cuda:N")


class PretrainConfig(Config):
    """[train] of a teacher: EDM's training, with the same noise objects as the distillation."""

    batch: int = Field(128, ge=1, description="images per iteration, over all processes")
    batch_gpu: int | None = Field(None, ge=1, description="images at a time on one device; divides batch")
    duration_kimg: Positive = Field(description="length of the run, in thousands of images")
    lr: Positive = Field(1e-3, description="learning rate")
    lr_rampup_kimg: float = Field(10_000.0, ge=0, allow_inf_nan=False, description="linear warm-up of the learning rate")
    lr_decay: float = Field(0.0, ge=0, le=1, description="last share of the run in which the rate falls to 0 (cosine)")
    betas: Betas = Field((0.9, 0.999), description="Adam's betas")
    eps: Positive = Field(1e-8, description="Adam's epsilon")
    ema_halflife_kimg: float = Field(500.0, ge=0, allow_inf_nan=False, description="half-life of the average")
    ema_rampup_ratio: float = Field(
        0.05, ge=0, description="the half-life is at most this share of the images seen; 0 = no such limit"
    )
    seed: int = Field(0, ge=0, lt=2**32, description="seed of everything random")
    device: Device = Field("auto", description="auto, cpu, cuda or cuda:N")


class DataConfig(Config):
    """[data]: images to train a teacher on."""

    source: DataSource = Field(description="digits (scikit-learn's), or a folder or ZIP in EDM's layout")
    labels: bool = Field(False, description="train a class-conditional teacher")


class NetworkConfig(Config):
    """[network]: the teacher's architecture, in EDM's terms."""

    arch: Literal["ddpmpp", "ncsnpp", "adm"] = "ddpmpp"
    D: Dimension = Field(description="auxiliary dimension the teacher is made for; inf is a diffusion model")
    model_channels: int = Field(128, ge=4)
    channel_mult: Ints = (1, 2, 2, 2)
    num_blocks: int = Field(4, ge=1)
    attn_resolutions: Ints = (16,)
    dropout: float = Field(0.13, ge=0, lt=1)
    use_fp16: bool = False


class ClassifierConfig(Config):
    """[classifier]: the feature network of the Fréchet distance, and its training."""

    width: int = Field(32, ge=1, description="channels of the first convolution; the second has twice as many")
    features: int = Field(64, ge=2, description="dimension of the feature space")
    epochs: int = Field(40, ge=1)
    batch: int = Field(64, ge=1)
    lr: Positive = 2e-3
    weight_decay: float = Field(1e-2, ge=0)
    noise: float = Field(0.1, ge=0, description="standard deviation of the noise added to the images")
    label_smoothing: float = Field(0.1, ge=0, lt=1)
    seed: int = Field(0, ge=0)


class LogConfig(Config):
    """[log]: what a run leaves behind, and when. A tick is one line of the log."""

    outdir: str = Field("runs", description="folder that run folders are made in")
    tick_kimg: Positive = Field(50.0, description="thousands of images per tick")
    snapshot_ticks: int = Field(50, ge=1, description="ticks between snapshots: network, grid, curves, metrics")
    state_ticks: int = Field(500, ge=1, description="ticks between training states")
    grid: int = Field(8, ge=1, le=64, description="the sample grid has grid × grid images")


class EvalConfig(Config):
    """[eval]: how quality is measured, at snapshots and at the end. [eval.NAME] holds a metric's own settings."""

    metrics: Annotated[tuple[str, ...], Field(strict=False)] = Field((), description="metrics, the first one is drawn")
    reference: Reference | None = Field(
        None, description="the real images, for every metric that takes them; for fid alone also statistics (.npz, or its URL)"
    )
    samples: int = Field(5000, ge=2, description="images per measurement; published FIDs have 50000")
    batch: int = Field(100, ge=1, description="images that a process has in memory at a time")
    repeats: int = Field(3, ge=1, description="sampling seeds of the final table: mean and spread")
    snapshot_samples: int = Field(1000, ge=0, description="images of the metric at a snapshot; 0 = not measured")
    teacher_steps: Annotated[tuple[Annotated[int, Field(ge=1)], ...], Field(strict=False)] = Field(
        (18, 5), description="the teacher's sampler in the final table: Heun steps"
    )

    @field_validator("snapshot_samples")
    @classmethod
    def _is_a_set(cls, value: int) -> int:
        if value == 1:
            raise ValueError("must be 0, or at least 2: one image is no distribution")
        return value


# ---------------------------------------------------------------------------------------------------- the result


@dataclass(frozen=True)
class Choice:
    """A component that a recipe names, with its validated settings."""

    kind: str
    component: Component
    owner: str
    config: Config

    @property
    def name(self) -> str:
        return self.component.name

    def make(self, *args: Any) -> Any:
        """Build the component. Raises UserError, with the plugin's name if it fails in any other way."""
        try:
            return self.component.make(*args)
        except (UserError, KeyboardInterrupt):
            raise
        except Exception as error:
            reason = f"{type(error).__name__}: {' '.join(str(error).split())}"
            raise UserError(f"plugin {self.owner!r}: its {self.kind} {self.name!r} cannot be built: {reason}") from error

    def table(self) -> Tables:
        return {"use": self.name, **plain(self.config)}


@dataclass(frozen=True)
class Recipe:
    """A distillation, resolved: nothing in it is missing or unknown."""

    path: Path
    teacher: Choice
    noise: Choice
    loss: Choice
    generator: GeneratorConfig
    train: TrainConfig
    log: LogConfig
    eval: EvalConfig
    metrics: tuple[Choice, ...]

    def tables(self) -> Tables:
        """The resolved recipe as plain tables: what is written to the run folder and reads back to the same recipe."""
        return {
            "teacher": self.teacher.table(),
            "noise": self.noise.table(),
            "loss": self.loss.table(),
            "generator": plain(self.generator),
            "train": plain(self.train),
            "log": plain(self.log),
            "eval": measuring(self.eval, self.metrics),
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

    def tables(self) -> Tables:
        """See Recipe.tables."""
        return {
            "data": plain(self.data),
            "network": plain(self.network),
            "noise": self.noise.table(),
            "train": plain(self.train),
            "log": plain(self.log),
            "eval": measuring(self.eval, self.metrics),
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


def measuring(config: EvalConfig, metrics: Iterable[Choice]) -> Tables:
    """[eval] as tables; what a metric has from [eval] itself is not said twice, so that overriding it there is enough."""
    shared = plain(config)
    own = {m.name: {k: v for k, v in plain(m.config).items() if k != "reference" or v != config.reference} for m in metrics}
    return shared | {name: table for name, table in own.items() if table}


def plain(config: BaseModel) -> Tables:
    """Settings as plain TOML values; what is unset is left out."""
    return config.model_dump(mode="python", exclude_none=True, round_trip=True) | {
        name: list(value) for name, value in config if isinstance(value, tuple)
    }


# ------------------------------------------------------------------------------------------------------- reading


def read_tables(path: Path) -> Tables:
    """A TOML file as plain tables. Raises UserError with line and column."""
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except tomllib.TOMLDecodeError as error:
        raise UserError(f"{path}: not valid TOML: {error}") from None
    except UnicodeDecodeError:
        raise UserError(f"{path}: not a text file in UTF-8, so not a recipe") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from None


def parse_set(text: str) -> tuple[list[str], Any]:
    """'table.key=value' -> (['table', 'key'], value), the value read as TOML, or as a string if it is none."""
    key, equals, value = text.partition("=")
    keys = [part.strip() for part in key.split(".")]
    if not equals or len(keys) < 2 or not all(keys):
        raise UserError(f"--set {text}: write it as table.key=value, e.g. --set train.batch=128")
    try:
        return keys, tomllib.loads(f"value = {value}")["value"]
    except tomllib.TOMLDecodeError:
        return keys, value.strip()


def lay_over(base: Mapping[str, Any], top: Mapping[str, Any]) -> Tables:
    """`top` over `base`, table by table."""
    merged = dict(base)
    for key, value in top.items():
        both = isinstance(value, Mapping) and isinstance(merged.get(key), Mapping)
        merged[key] = lay_over(merged[key], value) if both else value
    return merged


def resolve(
    name: str,
    plugins: Plugins,
    sets: Iterable[str] = (),
    loss: str | None = None,
    seed: int | None = None,
    outdir: str | None = None,
) -> Recipe | PretrainRecipe | FeaturesRecipe:
    """Read the recipe at a path (or shipped under a bare name) and lay the command line over it.

    Precedence: `sets` and flags > [swap.LOSS] > recipe > defaults. Raises UserError with all that is wrong.
    """
    path = locate_recipe(name)
    reading = _Reading(path, read_tables(path), plugins)
    if loss is not None:
        reading.swap(loss)
    for text in sets:
        keys, value = parse_set(text)
        reading.override(keys, value, f"--set {text}")
    if seed is not None:
        reading.override(["train", "seed"], seed, f"--seed {seed}")
    if outdir is not None:
        reading.override(["log", "outdir"], outdir, f"--outdir {outdir}")
    if "classifier" in reading.tables:
        return reading.features()
    return reading.pretrain() if "network" in reading.tables else reading.distill()


COMMANDS: dict[type, str] = {
    Recipe: "distill --recipe",
    PretrainRecipe: "distill pretrain --recipe",
    FeaturesRecipe: "distill features --recipe",
}
R = TypeVar("R", Recipe, PretrainRecipe, FeaturesRecipe)


def expect(recipe: Recipe | PretrainRecipe | FeaturesRecipe, kind: type[R]) -> R:
    """The recipe, if it is of this kind. Raises UserError with the command that runs it."""
    if isinstance(recipe, kind):
        return recipe
    raise UserError(f"{recipe.path}: this recipe is run with: {COMMANDS[type(recipe)]} {recipe.path}")


def resolve_evaluation(
    plugins: Plugins,
    metrics: Iterable[str],
    *,
    reference: str | None = None,
    inception: str | None = None,
    samples: int = 50_000,
    repeats: int = 3,
    batch: int = 100,
) -> tuple[EvalConfig, tuple[Choice, ...]]:
    """What a recipe's [eval] would say, from the options of `distill evaluate`. Raises UserError with all that is wrong."""
    reading = _Reading(Path("distill evaluate"), {}, plugins)
    known = {name: plugins.owners("metric", name) for name in metrics}
    reading.override(["eval", "metrics"], list(known), f"--metrics {','.join(known)}")
    for key, value in (("samples", samples), ("repeats", repeats), ("batch", batch)):
        reading.override(["eval", key], value, f"--{key} {value}")
    if reference is not None:
        reading.override(["eval", "reference"], reference, f"--reference {reference}")
    for name, owners in known.items():
        fields = owners[0].component.config.model_fields if owners else {}
        if reference is None and "reference" in fields:
            raise UserError(
                f"--reference is missing: the real images that {name} compares with: a folder or ZIP, digits, or for fid alone "
                "their statistics (.npz, or its URL)"
            )
        if inception is not None and "inception" in fields:
            reading.override(["eval", name, "inception"], inception, f"--inception {inception}")
        reading.origins[("eval", name, "reference")] = f"--reference {reference}"
    config, choices = reading.evaluation()
    reading.finish()
    assert config
    return config, choices


@dataclass
class _Reading:
    """A recipe on its way from tables to configuration; collects what is wrong."""

    path: Path
    tables: Tables
    plugins: Plugins
    errors: list[str] = field(default_factory=list)
    origins: dict[tuple[str, ...], str] = field(default_factory=dict)

    def swap(self, loss: str) -> None:
        """--loss NAME: lay [swap.NAME] over the recipe, if it has one, and use that loss."""
        swaps = self.tables.get("swap", {})
        top = dict(swaps.get(loss, {})) if isinstance(swaps, dict) else {}
        top["loss"] = {"use": loss} | top.get("loss", {})
        for table, values in top.items():
            old, use = self.tables.get(table, {}), values.get("use") if isinstance(values, dict) else None
            if isinstance(old, dict) and use is not None and use != old.get("use"):
                # Of the component that leaves, only the keys that the one that comes knows too are kept.
                owners = self.plugins.owners(table, use)
                known = owners[0].component.config.model_fields if owners else {}
                self.tables = self.tables | {table: {k: v for k, v in old.items() if k in known}}
        self.tables = lay_over(self.tables, top)

    def override(self, keys: list[str], value: Any, origin: str) -> None:
        nested: Any = value
        for key in reversed(keys):
            nested = {key: nested}
        self.tables = lay_over(self.tables, nested)
        self.origins[tuple(keys)] = origin

    # Each of the next four gives None after noting what is wrong.

    def table(self, name: str) -> Tables | None:
        found = self.tables.get(name, {})
        if isinstance(found, dict):
            return dict(found)
        self.wrong(name, (), f"is {found!r}; it must be a table")
        return None

    def settings(self, table: str, cls: type[C], values: Tables | None = None) -> C | None:
        values = self.table(table) if values is None else values
        if values is None:
            return None
        try:
            return cls.model_validate(values, context={"folder": str(self.path.parent)})
        except ValidationError as error:
            for detail in error.errors(include_url=False):
                self.wrong(table, detail["loc"], describe(detail, cls))
            return None

    def choice(self, kind: str, table: str | None = None, use: str | None = None, values: Tables | None = None) -> Choice | None:
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
            self.wrong(table, ("use",), f"= {use!r}: must be the name of a {kind}; known: {', '.join(known)}")
            return None
        try:
            found = self.plugins.find(kind, use)
        except UserError as error:
            self.wrong(table, ("use",), f"= {use!r}: {error}")
            return None
        config = self.settings(table, found.component.config, values)
        return Choice(kind, found.component, found.owner, config) if config else None

    def evaluation(self) -> tuple[EvalConfig | None, tuple[Choice, ...]]:
        """[eval], with a metric's own settings in [eval.NAME]."""
        values = self.table("eval") or {}
        own = {name: values.pop(name) for name in list(values) if name not in EvalConfig.model_fields}
        config = self.settings("eval", EvalConfig, values)
        chosen = config.metrics if config else ()
        for name, table in own.items():
            if name not in self.plugins.names("metric"):
                allowed = [*EvalConfig.model_fields, *self.plugins.names("metric")]
                self.wrong("eval", (name,), f"is unknown{near(name, allowed)}; allowed: {', '.join(EvalConfig.model_fields)}")
            elif not isinstance(table, dict):
                self.wrong("eval", (name,), f"= {table!r}: must be a table of the metric's settings")
        metrics = []
        for name in chosen:
            if not self.plugins.owners("metric", name):
                known = self.plugins.names("metric")
                self.wrong(
                    "eval",
                    ("metrics",),
                    f"= [{name!r}]: no metric is called {name!r}{near(name, known)}; known: {', '.join(known)}",
                )
                continue
            settings = dict(own[name]) if isinstance(own.get(name), dict) else {}
            fields = self.plugins.owners("metric", name)[0].component.config.model_fields
            if config and config.reference is not None and "reference" in fields:
                settings = {"reference": config.reference} | settings
            metrics.append(self.choice("metric", f"eval.{name}", use=name, values=settings))
        return config, tuple(m for m in metrics if m)

    def distill(self) -> Recipe:
        teacher, noise, loss = self.choice("teacher"), self.choice("noise"), self.choice("loss")
        generator = self.settings("generator", GeneratorConfig)
        train, log = self.settings("train", TrainConfig), self.settings("log", LogConfig)
        evaluation, metrics = self.evaluation()
        self.unknown_tables(("teacher", "noise", "loss", "generator", "train", "log", "eval", "swap"))
        known = self.plugins.names("loss")
        for name in self.table("swap") or {}:
            if name not in known and not self.plugins.failures:
                self.wrong("swap", (name,), f"is no loss{near(name, known)}; known: {', '.join(known)}")
        self.divides(TrainConfig)
        sigma_init = getattr(noise.config, "sigma_init", None) if noise else None
        reason = generator.starts_elsewhere(sigma_init) if generator and sigma_init else None
        if reason:
            self.wrong("generator", ("schedule",), reason)
        D = getattr(teacher.config, "D", None) if teacher else None
        for choice in (noise, loss):
            reason = choice.config.misfit(D) if choice and D is not None else None
            if choice and reason:
                self.wrong(choice.kind, ("use",), f"= {choice.name!r}: {reason}")
        self.finish()
        assert teacher and noise and loss and generator and train and log and evaluation
        return Recipe(self.path, teacher, noise, loss, generator, train, log, evaluation, metrics)

    def pretrain(self) -> PretrainRecipe:
        data, network = self.settings("data", DataConfig), self.settings("network", NetworkConfig)
        noise = self.choice("noise")
        train, log = self.settings("train", PretrainConfig), self.settings("log", LogConfig)
        evaluation, metrics = self.evaluation()
        self.unknown_tables(("data", "network", "noise", "train", "log", "eval"))
        self.divides(PretrainConfig)
        reason = noise.config.misfit(network.D) if noise and network else None
        if noise and reason:
            self.wrong("noise", ("use",), f"= {noise.name!r}: {reason}".replace("the teacher has", "[network] has"))
        self.finish()
        assert data and network and noise and train and log and evaluation
        return PretrainRecipe(self.path, data, network, noise, train, log, evaluation, metrics)

    def features(self) -> FeaturesRecipe:
        data, classifier = self.settings("data", DataConfig), self.settings("classifier", ClassifierConfig)
        self.unknown_tables(("data", "classifier"))
        self.finish()
        assert data and classifier
        return FeaturesRecipe(self.path, data, classifier)

    def divides(self, cls: type[TrainConfig] | type[PretrainConfig]) -> None:
        train = self.table("train") or {}
        batch, part = train.get("batch", cls.model_fields["batch"].default), train.get("batch_gpu")
        if type(batch) is int and type(part) is int and batch > 0 and part > 0 and batch % part:
            lower = max(d for d in range(1, part + 1) if batch % d == 0)
            self.wrong(
                "train", ("batch_gpu",), f"= {part}: must divide batch = {batch}; the next lower number that does is {lower}"
            )

    def unknown_tables(self, allowed: tuple[str, ...]) -> None:
        for name in self.tables:
            if name not in allowed:
                self.wrong(name, (), f"is no table of a recipe{near(name, list(allowed))}; tables: {', '.join(allowed)}")

    def wrong(self, table: str, keys: tuple[int | str, ...], text: str) -> None:
        path = (*table.split("."), *map(str, keys))
        where = next((o for k, o in self.origins.items() if k == path[: len(k)]), str(self.path))
        key = " " + ".".join(map(str, keys)) if keys else ""
        self.errors.append(f"{where}: [{table}]{key} {text}")

    def finish(self) -> None:
        if self.errors:
            raise UserError("\n".join(self.errors))


def describe(error: ErrorDetails, config: type[Config]) -> str:
    """One of pydantic's errors in a person's words, to follow '[table] key'."""
    kind, found, message = error["type"], error["input"], error["msg"]
    fields = config.model_fields
    if kind == "extra_forbidden":
        return f"is unknown{near(str(error['loc'][-1]), list(fields))}; allowed: {', '.join(fields)}"
    if kind == "missing":
        about = fields[str(error["loc"][-1])].description if str(error["loc"][-1]) in fields else None
        return "is missing" + (f": {about}" if about else "")
    message = message.removeprefix("Value error, ").removeprefix("Input should be ")
    message = {"a valid tuple": "a list, written as [a, b]", "a valid boolean": "true or false"}.get(message, message)
    message = message if kind == "value_error" else f"must be {message}"
    return f"= {found!r}: {message}"


# ------------------------------------------------------------------------------------------------------- writing


def dumps(tables: Tables) -> str:
    """Tables as TOML, read back and compared: what is written is what was resolved, or an error."""
    text: str = toml.dumps(tables)
    assert _same(tomllib.loads(text), tables), "the resolved recipe does not survive being written"
    return text


def _same(a: Any, b: Any) -> bool:
    if isinstance(a, Mapping) and isinstance(b, Mapping):
        return a.keys() == b.keys() and all(_same(a[k], b[k]) for k in a)
    if isinstance(a, list) and isinstance(b, list):
        return len(a) == len(b) and all(map(_same, a, b))
    return bool(a == b) or (isinstance(a, float) and isinstance(b, float) and math.isnan(a) and math.isnan(b))
