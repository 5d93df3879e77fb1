"""From seeds to images to every metric's numbers, shared among processes."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from functools import partial

import torch
from torch import Tensor

from registry.core import distributed
from registry.measure.rows import Metrics, Row
from registry.recipe.tables import EvalConfig
from registry.show.journal import Journal

Sample = Callable[[range], Tensor]
"""Turns image seeds into images [n, C, H, W]."""


def measure(
    metrics: Metrics, sample: Sample, seeds: range, batch: int = 100, done: Callable[[int], None] | None = None
) -> dict[str, float]:
    """All metrics' numbers for the images of these seeds. Each process holds `batch` images in memory at once.

    A metric that compares fewer images gets the first ones. All processes must call this. They take batches in turn, and the
    result does not depend on their number.
    """
    seeds = seeds[: max((metric.most or len(seeds) for _, metric in metrics), default=0)]

    def rows(part: range) -> list[Tensor]:
        images = sample(seeds[part.start : part.stop]).float()
        return [metric.embed(images) for _, metric in metrics]

    parts = distributed.share(len(seeds), batch, rows, done)

    def numbers() -> dict[str, float]:
        found: dict[str, float] = {}
        for (_, metric), of_metric in zip(metrics, zip(*parts, strict=True), strict=True):
            found |= metric.compare(torch.cat(of_metric)[: metric.most])
        return found

    return distributed.by_rank0(numbers)


def seeds(config: EvalConfig, repeat: int) -> range:
    """The image seeds of one repeat: 0 … n−1, n … 2n−1, and so on, as EDM counts them."""
    return range(repeat * config.samples, (repeat + 1) * config.samples)


def repeats(
    name: str, sample: Sample, metrics: Metrics, config: EvalConfig, journal: Journal
) -> Iterator[tuple[dict[str, float], float]]:
    """Every repeat's numbers, and how many seconds it took."""
    for repeat in range(config.repeats):
        start = time.monotonic()
        with journal.progress(f"measuring the {name}, {repeat + 1} of {config.repeats}", config.samples) as bar:
            found = measure(metrics, sample, seeds(config, repeat), config.batch, bar.at)
        yield found, time.monotonic() - start


def measured(name: str, evaluations: int, sample: Sample, metrics: Metrics, config: EvalConfig, journal: Journal) -> Row:
    """The row for `sample`, with one value per repeat."""
    row = Row(name, evaluations)
    for found, _ in repeats(name, sample, metrics, config, journal):
        row.add(found)
    return row


def floor_row(metrics: Metrics, config: EvalConfig) -> Row:
    """The row for real images compared with real images."""
    row = Row("floor: real images", None)
    for repeat in range(config.repeats):
        for _, metric in metrics:
            row.add(distributed.by_rank0(partial(metric.floor, repeat)))
    return row
