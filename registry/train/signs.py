"""Signs of convergence, measured on the generator's images without training on them.

At its inner maximum IPFM's objective (Eq. 21) is the gap E[w·|f* − f|²] between teacher and student, which is 0 where the
generator's images have the teacher's law. The student's own loss says how near the inner maximum is. Both are split by noise
level: fine detail at low levels, composition at high ones.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from registry.core import distributed
from registry.core.float64 import wide
from registry.core.streams import Streams
from registry.train.losses import denoising_loss_at, generator_weight
from registry.train.step import mode, own_image_numbers

if TYPE_CHECKING:
    from registry.train.loop import Distillation

EDGES = (0.1, 0.5, 2.0)
BANDS = ("sigma<0.1", "sigma 0.1-0.5", "sigma 0.5-2", "sigma>2")
IMAGES = 256
"""The most images that the signs are measured on."""
TURN = 1.5
"""A change of direction counts as a swing if the value has moved by this factor since the last one."""


@torch.no_grad()
def signs(run: Distillation) -> dict[str, float]:
    """Gap and student's loss (sums over values, means over images), all and by band; the average's distance from the generator;
    the variance of the generator's images (over images, mean over values).

    The same random numbers are drawn at every call, so values of different times can be compared. A band without images is left
    out. The random state and the networks are as they were. Before the student has learned, there is no gap to measure.
    """
    found = {"Average/distance": run.average.distance()}
    if run.nimg <= run.regression_end:
        return found
    world = distributed.world_size()
    count = min(run.train.batch, IMAGES) // world * world
    levels = torch.tensor(EDGES, device=run.device)
    dtype = wide(run.device)
    moments = torch.zeros((), dtype=dtype, device=run.device)  # becomes [2, C, H, W]
    sums = torch.zeros(2, len(BANDS), 2, dtype=dtype, device=run.device)  # gap and loss; band; number and sum
    with mode(run.generator.model, train=False), mode(run.student.net, train=False):
        for numbers in own_image_numbers(0, count, run.train.batch_gpu):
            rng = Streams.derived("signs", numbers, run.device)
            x, labels = run.generator(rng)
            moments = moments + torch.stack([x.to(dtype).sum(0), x.to(dtype).square().sum(0)])
            for kind, (sigma, value) in enumerate((gap(run, x, labels, rng), students_loss(run, x, labels, rng))):
                values = torch.stack([torch.ones_like(value), value], 1).to(dtype)
                sums[kind].index_add_(0, torch.bucketize(sigma, levels), values)
    for name, (numbers_, totals) in zip(("Gap", "StudentLoss"), distributed.sum_(sums).movedim(2, 1).tolist(), strict=True):
        found[f"{name}/all"] = sum(totals) / max(sum(numbers_), 1)
        found |= {f"{name}/{band}": t / n for band, n, t in zip(BANDS, numbers_, totals, strict=True) if n}
    mean, square = distributed.sum_(moments) / count
    return found | {"Images/variance": float((square - mean**2).mean())}


def gap(run: Distillation, x: Tensor, labels: Tensor | None, rng: Streams) -> tuple[Tensor, Tensor]:
    """Noise levels [B] of the generator's law, and w·|f* − f|² there, summed over values: [B]."""
    sigma = run.noise.generator_sigma(rng)
    x_r = run.noise.perturb(x, sigma, rng)
    f_star, f = run.teacher(x_r, sigma, labels), run.student(x_r, sigma, labels)
    return sigma, (generator_weight(x, f_star) * (f_star - f) ** 2).flatten(1).sum(1)


def students_loss(run: Distillation, x: Tensor, labels: Tensor | None, rng: Streams) -> tuple[Tensor, Tensor]:
    """Noise levels [B] of the student's law, and its denoising loss there, summed over values: [B]."""
    sigma = run.noise.student_sigma(rng)
    return sigma, denoising_loss_at(sigma, run.student.net, x, labels, run.noise, rng).flatten(1).sum(1)


def swings(values: Iterable[float]) -> list[float]:
    """The factors by which a series of positive values went up and down in turn, those above TURN: [1, 4, 2, 3] -> [4, 2, 1.5]."""
    logs = [math.log(value) for value in values if value > 0]
    found: list[float] = []
    direction, start, extreme = 0, 0.0, 0.0
    lowest = highest = logs[0] if logs else 0.0
    for value in logs:
        if direction == 0:
            lowest, highest = min(lowest, value), max(highest, value)
            if highest - lowest >= math.log(TURN):
                direction, start, extreme = (1, lowest, value) if value == highest else (-1, highest, value)
        elif direction * (value - extreme) > 0:
            extreme = value
        elif direction * (extreme - value) >= math.log(TURN):
            found.append(math.exp(abs(extreme - start)))
            direction, start, extreme = -direction, extreme, value
    return [*found, math.exp(abs(extreme - start))] if direction else found
