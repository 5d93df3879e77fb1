"""The model card: README.md of an exported folder, with the metadata that a hub reads."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from registry.core.errors import SettingError, UserError
from registry.core.templates import template
from registry.core.text import printable_values, shown
from registry.core.version import version
from registry.files.facts import NetworkFacts
from registry.files.locate import RECIPE, is_url, open_path, published, shipped
from registry.measure.protocol import in_words
from registry.measure.rows import Row
from registry.measure.saved import digest_of_learned
from registry.recipe.resolved import dumps
from registry.report.history import History, read_history

UNKNOWN = "unknown"
"""The hub's word for it."""
OURS = "apache-2.0"


@dataclass(frozen=True)
class Numbers:
    """What was measured of a network: the rows of its table, and how it was measured."""

    rows: list[Row] = field(default_factory=list)
    protocols: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """By column."""
    dataset: str = ""
    """The name of the real images."""

    @property
    def columns(self) -> list[str]:
        return list(dict.fromkeys(column for row in self.rows for column in row.values))


def card(name: str, facts: NetworkFacts, generator: Mapping[str, Any], license: str, numbers: Numbers) -> str:
    """The text of the card. `generator` is the folder's config.json."""
    channels, height, width = generator["image_shape"]
    steps, D, label_dim = len(generator["sigmas"]), generator["D"], generator["label_dim"]
    recipe = recipe_text(facts.recipe)
    loss = str(facts.table("loss").get("use", ""))
    evaluations = "one evaluation" if steps == 1 else f"{steps} evaluations"
    law = "diffusion (D = inf)" if D == "inf" else f"a PFGM++ model (D = {D:g})"
    own = next((row for row in numbers.rows if row.name in ("", "generator")), Row("", steps))
    measured = {c: own.mean(c) for c in own.values if math.isfinite(own.mean(c))} if numbers.dataset else {}
    known = {
        "images": f"{channels}×{height}×{width}" + (f", {label_dim} classes" if label_dim else ""),
        "evaluations of the network for an image": f"{steps}, at sigma = {', '.join(f'{s:.4g}' for s in generator['sigmas'])}",
        "D": D if D == "inf" else f"{D:g}",
        "teacher": text(name_of(facts.teacher or "")),
        "loss": text(loss),
        "made with the components": text(str(facts.others.get("components", ""))),
        "trained on": trained_on(facts),
    }
    fence = "`" * (1 + max(3, *(len(run) for run in re.findall("`+", recipe)), 0))
    return template(Path(__file__).with_name("card.md.j2")).render(
        name=text(name), name_yaml=json.dumps(shown(name)), dataset_yaml=json.dumps(shown(numbers.dataset)),
        task="unconditional-image-generation", license=license, licence=licence_line(license),
        tags=["distill", "few-step", *([loss] if re.fullmatch(r"[\w-]{1,40}", loss) else [])],
        what=f"A generator of {channels}×{height}×{width} images that takes {evaluations}, distilled from {law}.",
        channels=channels, height=height, width=width, label_dim=label_dim,
        facts=[(key, value) for key, value in known.items() if value],
        results=[(column, json.dumps(value), json.dumps(column)) for column, value in measured.items()],
        table=markdown(numbers), protocols=[(text(m), text(line)) for m, line in in_words(numbers.protocols.values()).items()],
        recipe=recipe.strip(), fence=fence, version=version(),
    )  # fmt: skip


def trained_on(facts: NetworkFacts) -> str:
    """How many images the generator has learned from."""
    if not facts.nimg:
        return ""
    return (
        f"{facts.nimg / 1000:,.6g} thousand images{', those of the warm-up included' if facts.table('warmup').get('kimg') else ''}"
    )


def markdown(numbers: Numbers) -> str:
    """The table."""
    if not numbers.rows:
        return ""
    lines = [["", "evaluations", *numbers.columns], ["---"] * (2 + len(numbers.columns))]
    lines += [[r.name, "" if r.evaluations is None else str(r.evaluations), *map(r.text, numbers.columns)] for r in numbers.rows]
    return "\n".join(f"| {' | '.join(map(text, line))} |" for line in lines)


def licence_line(license: str) -> str:
    if license == UNKNOWN:
        return (
            "The teacher's licence is not known, and what holds for its weights may hold for these: look before you pass them on."
        )
    return f"The weights are under {license}."


def licence_of(source: str, asked: str | None) -> str:
    """The licence as a hub's identifier: the one that was `asked` for, or that of the teacher that the recipe names.

    Raises SettingError.
    """
    if asked is not None:
        if not re.fullmatch(r"[a-z0-9][a-z0-9.+-]{0,60}", asked):
            raise SettingError("license", "must be a hub's identifier, such as apache-2.0, mit or cc-by-nc-sa-4.0", asked)
        return asked
    found = published(source)
    if found is not None or is_url(source):
        return found.license if found else UNKNOWN
    return OURS if source and shipped() in open_path(source).parents else UNKNOWN


def numbers_of(file: Path, facts: NetworkFacts) -> Numbers:
    """What the run that wrote a network measured of it: its final table, or what was measured when the snapshot was made. Nothing
    that was measured of a run by another recipe."""
    nimg, learned = facts.nimg, digest_of_learned(facts.recipe) if facts.recipe else None
    if nimg is None or not (file.parent / RECIPE).is_file():
        return Numbers()
    try:
        history = read_history(file.parent)
    except UserError:
        return Numbers()
    if history.quality is not None and history.quality.nimg == nimg and agree(history.quality.learned_by, learned):
        rows = [Row(row.name, row.evaluations, dict(row.values)) for row in history.quality.rows]
        return Numbers(rows, history.quality.protocols, dataset_of(history))
    values = snapshot_values(history, nimg, learned)
    return Numbers([Row("generator", None, values)], {}, dataset_of(history)) if values else Numbers()


def dataset_of(history: History) -> str:
    """The name of the real images that the run was measured with; empty if it is not known."""
    of_all = history.table("eval")
    tables = [of_all, *(table for table in of_all.values() if isinstance(table, dict))]
    names = [name_of(str(table["reference"])) for table in tables if table.get("reference") not in (None, "teacher")]
    own = history.table("teacher").get("source")
    return names[0] if names else f"images of {name_of(str(own))}" if own else ""


def agree(measured: object, learned: str | None) -> bool:
    """Whether digests of recipes are the same, as far as both are known."""
    return measured is None or learned is None or measured == learned


def snapshot_values(history: History, nimg: int, learned: str | None) -> dict[str, list[float]]:
    """{column: values} that were measured at so many images of a run that has learned by this recipe."""
    found: dict[str, list[float]] = {}
    for lines in history.measurements.values():
        for line in lines:
            if abs(line["kimg"] * 1000 - nimg) < 1 and agree(line.get("learned_by"), learned):
                found |= {column: [result] for column, result in line["results"].items() if isinstance(result, int | float)}
    return found


def recipe_text(tables: Mapping[str, Any]) -> str:
    """The tables as TOML; nothing if a stranger's file has some that no recipe has."""
    try:
        return dumps(printable_values(without_places(tables))) if tables else ""
    except (AssertionError, TypeError, ValueError, RecursionError):
        return ""


def without_places(tables: Mapping[str, Any]) -> dict[str, Any]:
    """Tables with the names alone of absolute paths: where somebody's files lie is nobody's business."""
    return {k: without_places(v) if isinstance(v, Mapping) else name_of(v) if isinstance(v, str) else v for k, v in tables.items()}


def name_of(path: str) -> str:
    return Path(path).name if Path(path).is_absolute() else path


def text(value: str) -> str:
    """Text from a file, in Markdown."""
    return re.sub(r"([\\`*_{}\[\]<>#|])", r"\\\1", shown(value))
