"""A plugin's metric, held to its contract: what it gives is checked where the host takes it, and what it changes is undone."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from numbers import Real
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from registry.core.contracts import Domain, Metric
from registry.core.errors import UserError, is_out_of_memory
from registry.core.interruption import dropped_at_a_signal
from registry.core.surroundings import surroundings_restored
from registry.core.text import is_text, kind, shown
from registry.recipe.resolved import Choice

LONGEST = 1000
"""Characters of a fingerprint."""


class Guarded(Metric):
    """The metric of a choice. Raises UserError, with the plugin's name, where it does not do what `Metric` asks for, and
    Interrupted at a signal."""

    def __init__(self, choice: Choice, domain: Domain) -> None:
        self.who = choice.who
        with surroundings_restored():
            metric = choice.make(domain)
        self.demand(isinstance(metric, Metric), f"its build must give a registry.api.Metric, not a {kind(metric)}")
        self.metric: Metric = metric
        names = metric.columns
        named = isinstance(names, tuple | list) and all(isinstance(name, str) and name.isprintable() and name for name in names)
        self.demand(
            named and 0 < len(names) == len({*names}) <= 50, "columns must be the names of its numbers, each once, at most 50"
        )
        higher = metric.higher
        right = isinstance(higher, tuple | list) and all(name in names for name in higher)
        self.demand(right, "higher must name some of its columns")
        self.columns, self.higher = tuple(names), tuple(higher)
        for name, number in (("most", metric.most), ("protocol", metric.protocol)):
            self.demand(number is None or (type(number) is int and number > 1), f"{name} must be None or a number of images")
        self.most, self.protocol, self.fingerprint = metric.most, metric.protocol, metric.fingerprint
        self.demand(self.fingerprint is None or is_text(self.fingerprint), "fingerprint must be None or text")
        short = self.fingerprint is None or (len(self.fingerprint) <= LONGEST and self.fingerprint.isprintable())
        self.demand(short, f"fingerprint must be one line of at most {LONGEST} characters")
        with self.told("details must be a dict of plain, finite values"):
            written = json.dumps(dict(metric.details), allow_nan=False, ensure_ascii=False)
        self.demand(all(isinstance(name, str) for name in metric.details), "details must have names that are text")
        self.demand(is_text(written), "details must hold text that can be written as UTF-8")
        self.demand(len(written) <= 100 * LONGEST, f"details must have at most {100 * LONGEST:,} characters")
        self.details = json.loads(written)  # as they are read again: a tuple has become a list
        self.width = 0
        """Numbers in a row, from the first one on."""
        self.code = code_of(type(metric))
        """A hash of the plugin's code: the formula may change, and the name stay."""

    def embed(self, images: Tensor) -> Tensor:
        with self.contained("while images were measured"):
            rows = self.metric.embed(images.clone())  # which are the next metric's, too
        self.demand(isinstance(rows, Tensor), f"embed must give rows [n, d], not a {kind(rows)}")
        self.demand(not rows.is_nested, "embed must give rows [n, d], not a nested tensor")
        right = rows.ndim == 2 and len(rows) == len(images)
        self.demand(right, f"embed must give a row for each of {len(images)} images, and gave {list(rows.shape)}")
        plain = rows.layout == torch.strided and not rows.is_meta and not rows.is_complex()
        self.demand(plain, f"embed must give rows of plain real numbers, and gave {rows.dtype}, {rows.layout} on {rows.device}")
        self.width = self.width or rows.shape[1]
        told = f"embed must give rows of the same length, and gave {rows.shape[1]} numbers after {self.width}"
        self.demand(rows.shape[1] == self.width, told)
        return rows.cpu()

    def compare(self, rows: Tensor) -> dict[str, float]:
        with self.contained("while a metric compared images"):
            return self.numbers("compare", self.metric.compare(rows))

    def floor(self, repeat: int) -> dict[str, float]:
        with self.contained("while a metric compared images"):
            found = self.metric.floor(repeat)
        return {} if found == {} else self.numbers("floor", found)

    @contextmanager
    def contained(self, when: str) -> Iterator[None]:
        """The plugin's own code: it is left at a signal, and changes nothing of what follows."""
        try:
            with surroundings_restored(), dropped_at_a_signal(when, sys._getframe(2)):
                yield
        except (MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
            need = "smaller settings, or fewer images (batch, samples), need less"
            raise UserError(f"{self.who}: there is not enough memory for it; {need} ({shown(error, 100)})") from error

    def save_reference(self, path: Path) -> bool:
        return bool(self.metric.save_reference(path))

    def numbers(self, method: str, found: Any) -> dict[str, float]:
        """What it gives, as a float for each of its columns."""
        wanted = f"{method} must give a number for each of {', '.join(self.columns)}"
        self.demand(isinstance(found, Mapping) and {*found} == {*self.columns}, f"{wanted}, and gave {short(found)}")
        right = all(isinstance(value, Real) and not isinstance(value, bool) for value in found.values())
        self.demand(right, f"{wanted}, and gave {short(found)}")
        with self.told(f"{wanted}, and gave one that is too large"):
            return {column: float(found[column]) for column in self.columns}

    def demand(self, right: bool, sentence: str) -> None:
        if not right:
            raise UserError(f"{self.who}: {sentence}")

    @contextmanager
    def told(self, sentence: str) -> Iterator[None]:
        try:
            yield
        except (TypeError, ValueError, OverflowError, RecursionError):
            raise UserError(f"{self.who}: {sentence}") from None


def code_of(kind: type) -> str | None:
    """A hash of the package that a class comes from, or None if it is ours or its code is not in files."""
    package = kind.__module__.partition(".")[0]
    if package == __name__.partition(".")[0]:
        return None
    try:
        spec = importlib.util.find_spec(package)
    except ValueError:  # __main__
        spec = None
    if spec is None or not spec.has_location or spec.origin is None:
        return None
    places = [Path(place) for place in spec.submodule_search_locations or ()]
    files = sorted(file for place in places for file in place.rglob("*.py")) if places else [Path(spec.origin)]
    return hashlib.sha256(b"\0".join(file.read_bytes() for file in files)).hexdigest()[:12]


def short(found: Any) -> str:
    """What was given instead, in a few words."""
    if not isinstance(found, Mapping):
        return f"a {kind(found)}"
    return ", ".join(f"{name} ({kind(value)})" for name, value in found.items())[:200] or "nothing"
