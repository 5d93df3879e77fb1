"""Starter recipes for what a user has: text with comments, from the templates in recipes/starters/."""

from __future__ import annotations

import json
import math
import shlex
from pathlib import Path

from registry.core.templates import template
from registry.files.locate import shipped

SMALL = 3 * 16 * 16
"""Values of an image that is small: the settings that were tried on the digits."""


def starter(kind: str, **values: object) -> str:
    """The text of a recipe."""
    return template(shipped() / "starters" / f"{kind}.toml.j2").render(values)


def distillation(
    file: str, source: str, D: float, image_shape: tuple[int, int, int], label_dim: int, data: str | None, count: int | None
) -> str:
    """A recipe that distils a teacher; `data` are `count` real images to measure with."""
    small = math.prod(image_shape) <= SMALL
    most = 5000 if small else 10_000
    return starter(
        "distill", file=shlex.quote(file), name=Path(source).name, shape=shape(image_shape), D=number(D), classes=label_dim,
        small=small, source=json.dumps(source, ensure_ascii=False), data=data and json.dumps(data, ensure_ascii=False),
        samples=samples(count, most), snapshot=samples(count, 1000), command=f"distill --recipe {shlex.quote(file)}",
    )  # fmt: skip


def pretraining(file: str, source: str, D: float, image_shape: tuple[int, int, int], count: int, classes: bool) -> str:
    """A recipe that trains a teacher on images: a network and a length that fit their size and number."""
    resolution = image_shape[1]
    level = 0 if resolution <= 16 else 1 if resolution <= 32 else 2
    kimg = (800, 10_000, 200_000)[level]
    saved = f"{Path(file).stem}.pt"
    return starter(
        "pretrain", name=Path(source).name, shape=shape(image_shape), D=number(D), count=f"{count:,}", saved=shlex.quote(saved),
        folder=shlex.quote(source), data=json.dumps(source, ensure_ascii=False), labels=str(classes).lower(),
        channels=(32, 64, 128)[level], mult=([1, 2], [1, 2, 2], [1, 2, 2, 2])[level], blocks=(1, 2, 4)[level],
        attention=max(resolution // 2, 4) if level < 2 else 16, dropout=(0.05, 0.1, 0.13)[level],
        kimg=kimg, rampup=f"{kimg / 100:g}",
        halflife=f"{kimg / 40:g}", samples=samples(count, 5000), snapshot=samples(count, 1000),
        command=f"distill pretrain --recipe {shlex.quote(file)} --save {shlex.quote(saved)}",
    )  # fmt: skip


def samples(count: int | None, most: int) -> int:
    """How many images are compared with so many real ones: as many, but neither very few nor more than `most`."""
    return most if count is None else min(max(count, 200), most)


def shape(image_shape: tuple[int, int, int]) -> str:
    return "×".join(map(str, image_shape))


def number(D: float) -> str:
    """D as TOML has it."""
    return "inf" if math.isinf(D) else f"{D:g}"
