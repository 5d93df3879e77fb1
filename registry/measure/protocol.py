"""What numbers depend on besides the images: two numbers may stand in one table only if it is the same, or with a mark."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from registry.core.contracts import Metric
from registry.core.text import printable
from registry.measure.guarded import Guarded
from registry.recipe.resolved import Choice
from registry.recipe.tables import EvalConfig

Protocol = Mapping[str, Any]
"""Plain values by name: metric, images, repeats, and the metric's own: mode, settings, hashes."""


def compared_with(metric: Metric) -> dict[str, Any]:
    """What a metric's numbers depend on besides the images and how many there are."""
    own = metric.details or {"reference": metric.fingerprint}
    known = {**own, "code": metric.code if isinstance(metric, Guarded) else None}
    return {name: value for name, value in known.items() if value is not None}


def protocols(metrics: Sequence[tuple[Choice, Metric]], config: EvalConfig) -> dict[str, dict[str, Any]]:
    """{column: protocol} of numbers that are measured as `config` says."""
    found: dict[str, dict[str, Any]] = {}
    for choice, metric in metrics:
        images = min(config.samples, metric.most or config.samples)
        mine = {"metric": choice.name, "images": images, "repeats": config.repeats} | compared_with(metric)
        found |= dict.fromkeys(metric.columns, mine)
    return found


def difference(found: Protocol, wanted: Protocol) -> str:
    """What is unlike, in words: "images 5000, not 50000"; empty if nothing is. A name with its hash beside it does not count."""
    if not found and wanted:
        return "how it was measured is not recorded"
    names = [name for name in {**wanted, **found} if f"{name}_hash" not in {**wanted, **found}]
    return "; ".join(
        unlike(words(name), found.get(name), wanted.get(name)) for name in names if found.get(name) != wanted.get(name)
    )


def unlike(name: str, found: Any, wanted: Any) -> str:
    """One difference in words; None is absent."""
    if wanted is None:
        return f"with {name} {found}"
    return f"without {name} {wanted}" if found is None else f"{name} {found}, not {wanted}"


def in_words(protocols: Iterable[Protocol]) -> dict[str, str]:
    """{metric: its protocol as a line}: "images 50000, repeats 3, mode legacy_tensorflow, …"."""
    return {p["metric"]: printable(", ".join(f"{words(k)} {v}" for k, v in p.items() if k != "metric")) for p in protocols}


def words(name: str) -> str:
    return name.replace("_", " ")
