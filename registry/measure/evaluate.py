"""Measures a network's file as the papers do, and records everything that the numbers depend on."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.table import Table

from registry.core import distributed
from registry.core.atomic import check_folder, write_atomically
from registry.core.errors import SettingError, UserError
from registry.core.version import versions
from registry.files.json_files import with_digest
from registry.files.json_lines import append_line
from registry.measure.guarded import Guarded
from registry.measure.measuring import repeats, seeds
from registry.measure.protocol import compared_with, in_words, protocols
from registry.measure.rows import Metrics, Row, best, entry, headings, label, summary
from registry.recipe.resolved import Choice
from registry.recipe.tables import EvalConfig
from registry.sample.sampler import Sampler
from registry.show.journal import Journal, duration


def evaluate(
    sampler: Sampler,
    config: EvalConfig,
    choices: Sequence[Choice],
    output: Path | None = None,
    save_reference: Path | None = None,
    journal: Journal | None = None,
) -> dict[str, Any]:
    """Measure `config.repeats` sets of images, print the table, and return the content of `output` (a .json file).

    `config` and `choices` come from `registry.recipe.evaluation.resolve_evaluation`. By default the file is written beside the
    network's file. A .jsonl file of the same name gets one line per measurement, as in EDM. The reference's Inception statistics
    are saved to `save_reference`. Under torchrun, all processes share the work, and the result does not depend on their number.
    Raises UserError.
    """
    journal, network = journal or Journal(), sampler.domain.origin
    path = output or beside(network, choices)
    metrics_of = {choice.name: choice.config.model_dump() for choice in choices}
    distributed.agree(sampler.settings | {"output": str(path), "eval": config.model_dump() | metrics_of})
    if path.suffix != ".json":
        raise SettingError("output", "the result is saved as .json", str(path))
    for setting, file in (("output", path), ("save_reference", save_reference)):
        if file is not None:
            try:
                check_folder(file.parent, setting)
            except SettingError as error:
                if file is not output and file is path:  # nobody named it
                    raise UserError(f"{path}: {error.problem}; name another file for the result") from None
                raise
    lines = path.with_suffix(".jsonl")
    if lines.exists() and not lines.is_file():
        raise SettingError("output", f"{lines.name} beside it is not a file that lines can be added to", str(path))
    if distributed.rank() == 0:
        path.parent.mkdir(parents=True, exist_ok=True)
    metrics = [(choice, Guarded(choice, sampler.domain)) for choice in choices]
    if save_reference is not None:
        keep_reference(metrics, save_reference, journal)

    row, start = Row("measured", sampler.nfe), time.monotonic()
    for repeat, (found, seconds) in enumerate(repeats("network", sampler, metrics, config, journal)):
        row.add(found)
        numbers = "  ".join(f"{name} {found[column]:.5g}" for column, name in headings(metrics, config.samples).items())
        journal.log(f"seeds {span(seeds(config, repeat))}: {numbers}  ({duration(seconds)})")
        if distributed.rank() == 0:
            for choice, metric in metrics:
                line = entry(choice, metric, found, config.samples, network, seconds)
                line |= {"seeds": span(seeds(config, repeat)), "evaluations": sampler.nfe}
                try:
                    append_line(lines, line | {"sampler": sampler.settings, "timestamp": time.time()})
                except OSError as error:
                    raise UserError(f"{lines}: cannot be written: {error.strerror}") from None

    content = result(sampler, config, metrics, row) | {"total_time": time.monotonic() - start}
    if distributed.rank() == 0:
        text = json.dumps(with_digest(content), indent=1, ensure_ascii=False) + "\n"
        write_atomically(path, text.encode())
        journal.console.print(table_of_repeats(row, metrics, config))
        journal.console.print(particulars(content))
    journal.log(f"saved in {path}")
    return content


def result(sampler: Sampler, config: EvalConfig, metrics: Metrics, row: Row) -> dict[str, Any]:
    """What is saved from an evaluation: the numbers, and everything that they depend on."""
    return {
        "network": sampler.domain.origin,
        "results": {label(c, m, config.samples): {k: summary(row.values[k]) for k in m.columns} for c, m in metrics},
        "samples": config.samples,
        "seeds": [span(seeds(config, repeat)) for repeat in range(config.repeats)],
        "evaluations": sampler.nfe,
        "sampler": sampler.settings,
        "reference": config.reference,
        "metrics": {choice.name: compared_with(metric) for choice, metric in metrics},
        "protocols": protocols(metrics, config),
        "higher_is_better": [column for _, metric in metrics for column in metric.higher],
        "device": str(sampler.device),
        "num_gpus": distributed.world_size(),
        "date": time.strftime("%Y-%m-%d"),
        "versions": versions(),
    }


def beside(network: str, choices: Sequence[Choice]) -> Path:
    """NETWORK.metric-fid.json beside a network's file, or in the current folder if the network is a URL or a bare name."""
    path = Path(os.path.expanduser(network))
    folder = path.parent if path.is_file() else Path()
    return folder / f"{path.stem.replace(':', '-')}.metric-{'-'.join(choice.name for choice in choices)}.json"


def keep_reference(metrics: Metrics, path: Path, journal: Journal) -> None:
    """Save what the metrics compare with, for later use as a reference. Raises SettingError."""
    writing = path.suffix == ".npz" and distributed.rank() == 0
    if not distributed.from_rank0(writing and any(metric.save_reference(path) for _, metric in metrics)):
        raise SettingError("save_reference", "only the metric fid has statistics to save, and they are saved as .npz", str(path))
    journal.log(f"the reference's statistics are saved in {path}")


def span(seeds: range) -> str:
    return f"{seeds[0]}-{seeds[-1]}"


def table_of_repeats(row: Row, metrics: Metrics, config: EvalConfig) -> Table:
    """A line for every number: its repeats, their minimum (or maximum, where higher is better), and mean ± standard deviation."""
    columns, higher = headings(metrics, config.samples), {column for _, metric in metrics for column in metric.higher}
    extremes = [name for name, shown in (("minimum", columns.keys() - higher), ("maximum", columns.keys() & higher)) if shown]
    table = Table()
    for heading in ("seeds", *(span(seeds(config, repeat)) for repeat in range(config.repeats)), *extremes, "mean ± std"):
        table.add_column(heading, overflow="fold")
    for column, heading in columns.items():
        shown = "maximum" if column in higher else "minimum"
        most = [f"{best(row.values[column], column in higher):.5g}" if name == shown else "" for name in extremes]
        table.add_row(heading, *(f"{value:.5g}" for value in row.values[column]), *most, row.text(column))
    return table


def particulars(content: dict[str, Any]) -> Table:
    """A table of what was compared, and how."""
    table = Table(box=None, show_header=False, pad_edge=False)
    for name, value in content["sampler"].items():
        table.add_row(name, ", ".join(map(str, value)) if isinstance(value, list) else str(value))
    table.add_row("evaluations", f"{content['evaluations']} per image")
    table.add_row("images", f"{content['samples']:,}, seeds {', '.join(content['seeds'])}")
    if content["reference"] is not None:
        table.add_row("reference", content["reference"])
    table.add_row("device", f"{content['device']}, {content['num_gpus']} process{'es' * (content['num_gpus'] > 1)}")
    for name, protocol in in_words(content["protocols"].values()).items():
        table.add_row(name, protocol)
    return table
