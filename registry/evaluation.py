"""`distill evaluate`: the metrics of whatever a network's file samples, as the papers report them, with all that they depend on."""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.table import Table
from torch import nn

from registry import distributed, quality
from registry.api import Metric, Teacher, UserError
from registry.files import write_atomically
from registry.recipe import Choice, EvalConfig
from registry.report import Journal, check_outdir, duration
from registry.sampling import Sampler


def evaluate(
    sampler: Sampler,
    config: EvalConfig,
    choices: Sequence[Choice],
    output: Path | None = None,
    save_reference: Path | None = None,
    journal: Journal | None = None,
) -> dict[str, Any]:
    """Measure `config.repeats` sets of images, print the table, and give what is kept in `output` (a .json file).

    `config` and `choices` are those of `registry.recipe.resolve_evaluation`. By default the file lies beside the network's; a
    .jsonl file of the same name gets a line per measurement, as EDM writes them. `save_reference` is where the reference's
    Inception statistics go. Under torchrun all processes share the work, and the result does not depend on their number.
    Raises UserError.
    """
    journal, network = journal or Journal(), str(sampler.terms["network"])
    path = output or beside(network, choices)
    if path.suffix != ".json":
        raise UserError(f"--output {path}: the result is kept as .json")
    for setting, file in (("--output", path), ("--save-reference", save_reference)):
        if file is not None:
            check_outdir(file.parent, setting)
    if distributed.rank() == 0:
        path.parent.mkdir(parents=True, exist_ok=True)
    teacher = Teacher(nn.Identity(), float(sampler.terms["D"]), sampler.image_shape, sampler.label_dim, origin=network)
    metrics = [(choice, choice.make(choice.config, teacher)) for choice in choices]
    if save_reference is not None:
        keep_reference(metrics, save_reference, journal)

    row, start = quality.Row("measured", sampler.evaluations), time.monotonic()
    for repeat, (found, seconds) in enumerate(quality.repeats("network", sampler, metrics, config, journal)):
        row.add(found)
        told = "  ".join(f"{name} {found[column]:.5g}" for column, name in quality.headings(metrics, config.samples).items())
        journal.log(f"seeds {span(quality.seeds(config, repeat))}: {told}  ({duration(seconds)})")
        if distributed.rank() == 0:
            with open(path.with_suffix(".jsonl"), "a", encoding="utf-8") as lines:
                for choice, metric in metrics:
                    entry = quality.entry(choice, metric, found, config.samples, network, seconds)
                    entry |= {"seeds": span(quality.seeds(config, repeat)), "evaluations": sampler.evaluations}
                    entry |= {"sampler": sampler.terms, "compared_with": compared_with(metric), "timestamp": time.time()}
                    lines.write(json.dumps(entry) + "\n")

    content = {
        "network": network,
        "results": {quality.label(c, m, config.samples): {k: summary(row.values[k]) for k in m.columns} for c, m in metrics},
        "samples": config.samples,
        "seeds": [span(quality.seeds(config, repeat)) for repeat in range(config.repeats)],
        "evaluations": sampler.evaluations,
        "sampler": sampler.terms,
        "reference": config.reference,
        "metrics": {choice.name: compared_with(metric) for choice, metric in metrics},
        "device": str(sampler.device),
        "num_gpus": distributed.world_size(),
        "total_time": time.monotonic() - start,
        "date": time.strftime("%Y-%m-%d"),
        "versions": quality.versions(),
    }
    if distributed.rank() == 0:
        write_atomically(path, (json.dumps(content, indent=1) + "\n").encode())
        journal.console.print(numbers(row, metrics, config))
        journal.console.print(particulars(content))
    journal.log(f"kept in {path}")
    return content


def beside(network: str, choices: Sequence[Choice]) -> Path:
    """NETWORK.metric-fid.json beside a network's file; in the current folder if it is a URL or a bare name."""
    path = Path(network).expanduser()
    folder = path.parent if path.is_file() else Path()
    return folder / f"{path.stem.replace(':', '-')}.metric-{'-'.join(choice.name for choice in choices)}.json"


def keep_reference(metrics: quality.Metrics, path: Path, journal: Journal) -> None:
    """Write the reference's Inception statistics as .npz. Raises UserError."""
    found = next((metric.statistics for _, metric in metrics if hasattr(metric, "statistics")), None)
    if found is None or path.suffix != ".npz":
        raise UserError(f"--save-reference {path}: statistics are those of --metrics fid, and are kept as .npz")
    if distributed.rank() == 0:
        found.save(path)
    journal.log(f"the reference's statistics are in {path}")


def compared_with(metric: Metric) -> dict[str, Any]:
    """What a metric's numbers depend on besides the images."""
    return dict(getattr(metric, "about", None) or {"reference": getattr(metric, "fingerprint", None)})


def span(seeds: range) -> str:
    return f"{seeds[0]}-{seeds[-1]}"


def summary(values: list[float]) -> dict[str, Any]:
    """EDM's protocol reports the minimum of three."""
    spread = statistics.stdev(values) if len(values) > 1 else 0.0
    return {"values": values, "min": min(values), "mean": statistics.fmean(values), "std": spread}


def numbers(row: quality.Row, metrics: quality.Metrics, config: EvalConfig) -> Table:
    """Every repeat, the minimum, and mean ± standard deviation."""
    columns = quality.headings(metrics, config.samples)
    table = Table("seeds", *columns.values())
    for repeat in range(config.repeats):
        table.add_row(span(quality.seeds(config, repeat)), *(f"{row.values[c][repeat]:.5g}" for c in columns))
    table.add_section()
    table.add_row("minimum", *(f"{min(row.values[c]):.5g}" for c in columns))
    table.add_row("mean ± std", *(row.text(c) for c in columns))
    return table


def particulars(content: dict[str, Any]) -> Table:
    """What was compared, and how."""
    table = Table(box=None, show_header=False, pad_edge=False)
    for name, value in content["sampler"].items():
        table.add_row(name, ", ".join(map(str, value)) if isinstance(value, list) else str(value))
    table.add_row("evaluations", f"{content['evaluations']} per image")
    table.add_row("images", f"{content['samples']:,}, seeds {', '.join(content['seeds'])}")
    table.add_row("reference", str(content["reference"]))
    table.add_row("device", f"{content['device']}, {content['num_gpus']} process{'es' * (content['num_gpus'] > 1)}")
    for name, about in content["metrics"].items():
        table.add_row(name, ", ".join(f"{key.replace('_', ' ')} {value}" for key, value in about.items()))
    return table
