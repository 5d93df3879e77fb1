"""The settings of an evaluation, from the options of a command instead of a recipe. Nothing here imports torch."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from registry.core.errors import UserError
from registry.core.text import cut
from registry.plugins.loading import Plugins
from registry.recipe.reading import Reading, fields_of
from registry.recipe.resolved import Choice
from registry.recipe.tables import EvalConfig
from registry.recipe.texts import parse_set


def resolve_evaluation(
    plugins: Plugins,
    metrics: Iterable[str],
    *,
    reference: str | None = None,
    inception: str | None = None,
    samples: int = 50_000,
    repeats: int = 3,
    batch: int = 100,
    sets: Iterable[str] = (),
) -> tuple[EvalConfig, tuple[Choice, ...]]:
    """[eval] and its metrics, from the options of `distill evaluate` instead of a recipe. Raises UserError.

    `sets` are settings of single metrics, such as "prdc.nearest_k=3".
    """
    reading = Reading(Path("distill evaluate"), {}, plugins)
    known = {name: plugins.owners("metric", name) for name in metrics}
    reading.override(["eval", "metrics"], list(known), f"--metrics {','.join(known)}")
    for key, value in (("samples", samples), ("repeats", repeats), ("batch", batch)):
        reading.override(["eval", key], value, f"--{key} {value}")
    if reference is not None:
        reading.override(["eval", "reference"], reference, f"--reference {reference}")
    for text in sets:
        (name, *keys), value = parse_set(text)
        if name not in known:
            raise UserError(f"--set {cut(text)}: {cut(name)!r} is none of the metrics: {', '.join(known)}")
        reading.override(["eval", name, *keys], value, f"--set {text}")
    for name, owners in known.items():
        fields = fields_of(owners)
        if reference is None and "reference" in fields and ("eval", name, "reference") not in reading.origins:
            raise UserError(
                f"--reference is missing: the real images that {name} compares with: a folder or ZIP, digits, or for fid alone "
                "their statistics (.npz, or its URL)"
            )
        if inception is not None and "inception" in fields:
            reading.override(["eval", name, "inception"], inception, f"--inception {inception}")
        reading.origins.setdefault(("eval", name, "reference"), f"--reference {reference}")
        reading.origins.setdefault(("eval", name, "inception"), "--inception")
    config, choices = reading.evaluation()
    reading.finish()
    assert config
    return config, choices
