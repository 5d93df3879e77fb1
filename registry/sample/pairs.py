"""The pairs of a warm-up: made from the teacher once, by all processes together, and kept in the cache folder."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from registry.core import distributed
from registry.core.contracts import Noise, Teacher
from registry.core.errors import UserError
from registry.core.streams import Streams
from registry.files.bounds import PAIRS
from registry.files.downloads import cache_folder
from registry.files.formats import weights_hash
from registry.files.plain import load, save
from registry.sample.heun import depends_on, heun, teacher_levels
from registry.show.journal import Journal
from registry.train.warmup import Pairs

PART = 256
"""Pairs that a process makes at a time."""


def teacher_pairs(
    teacher: Teacher, noise: Noise, sigmas: Sequence[float], count: int, nfe: int, device: torch.device, journal: Journal
) -> Pairs:
    """`count` pairs at each level of `sigmas` (highest first), with `nfe` evaluations of the teacher each, on the device.

    They depend on the teacher, the noise and these numbers only, not on a run's seed, so that runs share them.
    """
    wanted = provenance(teacher, noise, sigmas, count, nfe)
    name = hashlib.sha256(json.dumps(wanted, sort_keys=True).encode()).hexdigest()[:16]
    path = cache_folder() / PAIRS / f"{name}.pt"
    shape, labels_shape = (len(sigmas), count, *teacher.image_shape), (count, teacher.label_dim)
    content = distributed.from_rank0(kept(path, wanted, shape, labels_shape) if distributed.rank() == 0 else None)
    if content is None:
        content = made(teacher, noise, sigmas, count, nfe, device, journal) | {"provenance": wanted}
        if distributed.rank() == 0:
            keep(path, content, journal)
    else:
        journal.log(f"the warm-up's {count} pairs are from {path}")
    labels = content["labels"]
    return Pairs(
        content["starts"].to(device), content["images"].to(device), tuple(sigmas), None if labels is None else labels.to(device)
    )


def provenance(teacher: Teacher, noise: Noise, sigmas: Sequence[float], count: int, nfe: int) -> dict[str, Any]:
    """Everything that the pairs depend on, as plain values."""
    return depends_on(teacher.denoiser, noise) | {
        "teacher": teacher.origin,
        "weights": teacher.weights or weights_hash(teacher.denoiser),
        "sigmas": list(sigmas),
        "pairs": count,
        "nfe": nfe,
    }


def kept(path: Path, wanted: dict[str, Any], shape: tuple[int, ...], labels_shape: tuple[int, int]) -> dict[str, Any] | None:
    """The pairs in a file, if it holds these: starts and images of a shape, and labels of another unless there are no classes."""
    if not path.is_file():
        return None
    try:
        content = load(path, PAIRS)
    except UserError:
        return None
    starts, images, labels = content["starts"], content["images"], content["labels"]
    fits = starts.shape == images.shape == shape and (labels is None if not labels_shape[1] else labels.shape == labels_shape)
    numbers = all(t.dtype == torch.float32 and t.isfinite().all() for t in (starts, images, labels) if t is not None)
    return content if content["provenance"] == wanted and fits and numbers else None


def keep(path: Path, content: dict[str, Any], journal: Journal) -> None:
    """Save pairs in the cache; if that is not possible, say so."""
    try:
        save(path, PAIRS, content)
    except UserError as error:
        journal.log(f"the pairs could not be kept: {error}")


def at_levels(sigmas: Sequence[float]) -> str:
    """How many levels, if several."""
    return f", at each of {len(sigmas)} levels" if len(sigmas) > 1 else ""


@torch.no_grad()
def made(
    teacher: Teacher, noise: Noise, sigmas: Sequence[float], count: int, nfe: int, device: torch.device, journal: Journal
) -> dict[str, Any]:
    """{starts, images [K, P, C, H, W], labels [P, label_dim] or None}, on the CPU."""
    journal.log(f"making {count} pairs for the warm-up: {nfe} evaluations of the teacher each" + at_levels(sigmas))
    with journal.progress("making pairs", count) as bar:
        parts = distributed.share(count, PART, lambda part: part_of_pairs(teacher, noise, sigmas, nfe, part, device), bar.at)
    starts, images, labels = zip(*parts, strict=True)
    return {
        "starts": torch.cat(starts, 1),
        "images": torch.cat(images, 1),
        "labels": None if labels[0] is None else torch.cat(labels),
    }


def part_of_pairs(
    teacher: Teacher, noise: Noise, sigmas: Sequence[float], nfe: int, part: range, device: torch.device
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Pairs number `part` at all K levels: starts and images [K, n, C, H, W], labels [n, label_dim] or None."""
    rng = Streams.derived("pairs", part, device)
    z = noise.prior(teacher.image_shape, 1.0, rng)
    labels = rng.one_hot(teacher.label_dim)
    steps = (nfe + 1) // 2

    def end_of_ode(x: Tensor, levels: Tensor) -> Tensor:
        return heun(teacher.denoiser, x, levels, labels, shared=True).float()

    levels = teacher_levels(teacher.denoiser, noise, steps)
    starts, images = [sigmas[0] * z], [end_of_ode(float(levels[0]) * z, levels)]
    for sigma in sigmas[1:]:
        starts.append(noise.perturb(images[-1], torch.full((len(z),), sigma, device=device), rng))
        images.append(end_of_ode(starts[-1], teacher_levels(teacher.denoiser, noise, steps, sigma)))
    return torch.stack(starts).cpu(), torch.stack(images).cpu(), None if labels is None else labels.cpu()
