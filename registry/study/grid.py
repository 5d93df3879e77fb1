"""From axes to combinations of settings. Pure: nothing is read or run here."""

from __future__ import annotations

import hashlib
import itertools
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from registry.core.errors import SettingError, UserError
from registry.recipe.resolved import TomlEncoder
from registry.recipe.tables import PLACEHOLDER
from registry.recipe.texts import parse_set

Settings = dict[str, Any]
"""{'table.key': value}."""

LOSS = "loss.use"
"""The key that is not set but swapped, so that what a recipe swaps with the loss comes along."""

OWN = {"train.seed": "a study has seeds of its own", "log.outdir": "a study has a folder of its own"}


@dataclass(frozen=True)
class Variant:
    """One value of an axis: its name in tables, and what it sets."""

    label: str
    settings: Settings


@dataclass(frozen=True)
class Axis:
    """What is varied: one key with several values, or named variants that set several keys each."""

    name: str
    variants: tuple[Variant, ...]


@dataclass(frozen=True)
class Combination:
    """One variant of every axis, with all that is set then."""

    labels: tuple[str, ...]
    settings: Settings
    slug: str
    """A name for files, of letters, digits and a few marks."""
    origins: dict[str, str]
    """{key: the option that set it}, for errors: "set", "vary", or "vary AXIS:" of an axis that sets other keys, too."""

    @property
    def loss(self) -> str | None:
        """The loss that is asked for, if any."""
        return as_text(self.settings[LOSS]) if LOSS in self.settings else None

    @property
    def sets(self) -> tuple[str, ...]:
        """All other settings, as a command line has them."""
        return tuple(self._sets())

    @property
    def options(self) -> dict[str, str]:
        """{what is set, as a command line has it: the option that set it}."""
        return {text: self.origins[key] for text, key in self._sets().items()}

    def _sets(self) -> dict[str, str]:
        return {f"{key}={as_text(value)}": key for key, value in self.settings.items() if key != LOSS}


def axes_of(vary: Mapping[str, Any]) -> tuple[Axis, ...]:
    """The axes of a table, in its order. Raises ValueError with all that is wrong.

    `"loss.alpha" = [0.5, 1]` is an axis of values; `method = {a = {"train.lr" = 1}, b = {}}` one of named variants. A key that
    was written without quotation marks (`loss.alpha = [0.5, 1]`, which is {loss: {alpha: […]}}) is understood, too.
    """
    flat: dict[str, Any] = {}
    for name, value in vary.items():
        unquoted = isinstance(value, Mapping) and value and all(isinstance(v, list) for v in value.values())
        flat |= {f"{name}.{key}": v for key, v in value.items()} if unquoted else {name: value}
    found, wrong = [], []
    for name, value in flat.items():
        try:
            found.append(_axis(name, value))
        except ValueError as error:
            wrong.append(f"{name} {error}")
    by: dict[str, str] = {}
    keys = [(key, one.name) for one in found for key in sorted({k for v in one.variants for k in v.settings})]
    for key, axis in keys:
        if key in OWN:
            wrong.append(f"{axis}: {OWN[key]}" if key == axis else f"{axis} varies {key}, but {OWN[key]}")
        if by.setdefault(key, axis) != axis:
            wrong.append(f"{key} is varied twice, by {' and by '.join(sorted((axis, by[key])))}")
    if wrong:
        raise ValueError("; ".join(wrong))
    return tuple(found)


def _axis(name: str, value: Any) -> Axis:
    if isinstance(value, list):
        if not re.fullmatch(r"[\w-]+(\.[\w-]+)+", name):
            raise ValueError("is no key: write it as table.key")
        variants = [Variant(as_label(v), {name: v}) for v in value]
    elif isinstance(value, Mapping):
        for label, settings in value.items():
            if not isinstance(settings, Mapping):
                raise ValueError(f"has a variant {label!r} that is not a table of settings, such as {{ 'train.lr' = 1e-3 }}")
            if alone := [k for k in flattened(settings) if "." not in k]:
                raise ValueError(f"sets {alone[0]!r} in its variant {label!r}, which is no key: write it as table.key")
        variants = [Variant(label, flattened(settings)) for label, settings in value.items()]
    else:
        raise ValueError(f"= {value!r}: must be a list of values, or a table of named variants")
    if not variants:
        raise ValueError("has no values")
    if twice := [label for label, count in Counter(v.label for v in variants).items() if count > 1]:
        raise ValueError(f"has {twice[0]} twice")
    return Axis(name, tuple(variants))


def flattened(tables: Mapping[str, Any], above: str = "") -> Settings:
    """Nested tables as {'table.key': value}."""
    found: Settings = {}
    for key, value in tables.items():
        found |= flattened(value, f"{above}{key}.") if isinstance(value, Mapping) else {above + key: value}
    return found


def combinations(axes: Sequence[Axis], fixed: Settings, along: Iterable[str], recipe: Mapping[str, Any]) -> tuple[Combination, ...]:
    """Every combination of the axes' variants. Raises SettingError if the study itself does not add up.

    What is set, from weak to strong: `along` (where the study sets the keys that an entry names), `fixed`, the variants. Then
    every `{table.key}` in a value becomes what is set there, or else what the recipe's own tables say.
    """
    for key in fixed:
        if key in OWN:
            raise SettingError("set", OWN[key], f"{key}={as_text(fixed[key])}")
        by = next((axis.name for axis in axes if any(key in v.settings for v in axis.variants)), None)
        if by is not None:
            raise SettingError("set", f"{by} varies this key", f"{key}={as_text(fixed[key])}")
    inherited = flattened(recipe)
    products = list(itertools.product(*(axis.variants for axis in axes)))
    folders = slugs([axis.name for axis in axes], [tuple(v.label for v in variants) for variants in products])
    found = []
    for variants, folder in zip(products, folders, strict=True):
        own = fixed | {key: value for v in variants for key, value in v.settings.items()}
        following = [text for text in along if set(PLACEHOLDER.findall(text)) <= set(own)]
        keyed = {text.partition("=")[0].strip(): text for text in following}
        settings = {key: text.partition("=")[2] for key, text in keyed.items() if key not in own} | own
        filled = {key: fill(key, value, inherited | own) for key, value in settings.items()}
        axis_of = {key: axis.name for axis, v in zip(axes, variants, strict=True) for key in v.settings}
        causes = {key: next((p for p in PLACEHOLDER.findall(keyed.get(key, "")) if p in axis_of), key) for key in settings}
        origins = {key: option(key, axis_of.get(cause)) for key, cause in causes.items()}
        found.append(Combination(tuple(v.label for v in variants), filled, folder, origins))
    return tuple(found)


def option(key: str, axis: str | None) -> str:
    """Which option sets a key that an axis varies, if one does."""
    return "set" if axis is None else "vary" if axis == key else f"vary {axis}:"


def fill(key: str, value: Any, known: Settings) -> Any:
    """A value whose placeholders are replaced; it is then read as on a command line. Raises SettingError."""
    if not (isinstance(value, str) and PLACEHOLDER.search(value)):
        return value
    for name in PLACEHOLDER.findall(value):
        if name not in known:
            raise SettingError("set", f"neither the study nor the recipe sets {name}", f"{key}={value}")
    text = PLACEHOLDER.sub(lambda match: as_label(known[match[1]]), value)
    return parse_set(f"{key}={text}")[1]


def as_toml(value: Any) -> str:
    """A value as TOML."""
    return f"[{', '.join(map(as_toml, value))}]" if isinstance(value, list) else str(TomlEncoder().dump_value(value))


def as_text(value: Any) -> str:
    """A value as it is written on a command line: TOML, but a string without quotation marks where it survives that."""
    return value if isinstance(value, str) and parse_set(f"a.b={value}")[1] == value else as_toml(value)


def as_label(value: Any) -> str:
    """A value for people: 1 for 1.0, otherwise as on a command line."""
    return f"{value:.0f}" if isinstance(value, float) and value.is_integer() and abs(value) < 1e15 else as_text(value)


def slugs(names: Sequence[str], combinations: Sequence[tuple[str, ...]]) -> list[str]:
    """Names for the combinations' folders, each once: 'alpha-0.5_steps-2'. What would have the name of another before it gets a
    number, so that a value that is added behind changes no name."""
    last = [name.rpartition(".")[2] for name in names]
    short = [name if last.count(end) > 1 else end for name, end in zip(names, last, strict=True)]
    texts = ["_".join(f"{name}-{label}" for name, label in zip(short, labels, strict=True)) or "all" for labels in combinations]
    plain = [re.sub(r"[^\w.+-]+", "-", text, flags=re.ASCII)[:90] for text in texts]
    first = {slug.lower(): i for i, slug in reversed([*enumerate(plain)])}
    return [
        f"{slug}-{hashlib.sha256(text.encode()).hexdigest()[:6]}" if first[slug.lower()] < i or len(text) > 90 else slug
        for i, (text, slug) in enumerate(zip(texts, plain, strict=True))
    ]


def split_values(text: str) -> list[Any]:
    """'0.5,1,[1, 2],sid' -> [0.5, 1, [1, 2], 'sid']: values with commas between, each as on a command line."""
    parts = re.findall(r"(?:\[[^\]]*\]|\"[^\"]*\"|'[^']*'|[^,])+|(?<=,)(?=,|$)|^(?=,|$)", text)
    if not all(part.strip() for part in parts):
        raise UserError("a value is missing")
    return [parse_set(f"a.b={part}")[1] for part in parts]
