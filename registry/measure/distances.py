"""Distances between sets of images, and scores of one set, as pure functions of tensors."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from registry.core.errors import UserError

PROJECTIONS = 512
"""Directions in which points are sorted at a time."""
BLOCK = 4096
"""Rows that are taken into float64 at a time: all of 50,000 rows of Inception's 2,048 numbers would take 0.8 GB, twice."""


def moments(features: Tensor) -> tuple[Tensor, Tensor]:
    """Mean [d] and covariance [d, d] (ddof 1) of features [n, d], n ≥ 2, in float64."""
    n, d = features.shape
    mean = torch.zeros(d, dtype=torch.float64, device=features.device)
    for rows in features.split(BLOCK):
        mean += rows.double().sum(0) / n
    products = torch.zeros(d, d, dtype=torch.float64, device=features.device)
    for rows in features.split(BLOCK):
        centred = rows.double() - mean
        products.addmm_(centred.T, centred)
    return mean, products / (n - 1)


def frechet_distance(mu_a: Tensor, sigma_a: Tensor, mu_b: Tensor, sigma_b: Tensor) -> float:
    """|mu_a − mu_b|² + tr(Σ_a + Σ_b − 2(Σ_a Σ_b)^½), the squared Fréchet distance of two Gaussians (Heusel et al. 2017).

    tr (Σ_a Σ_b)^½ is the sum of the square roots of the eigenvalues of the symmetric Σ_a^½ Σ_b Σ_a^½. NaN if a is not finite.
    """
    if not (mu_a.isfinite().all() and sigma_a.isfinite().all()):
        return math.nan  # images of a run that has diverged
    try:
        values, vectors = torch.linalg.eigh(sigma_a)
    except RuntimeError:  # torch's LinAlgError: features far beyond what a network gives
        raise UserError("the features' covariance has no eigenvalues that can be computed; is their network whole?") from None
    root_a = (vectors * values.clamp(min=0).sqrt()) @ vectors.T
    cross = torch.linalg.eigvalsh(root_a @ sigma_b @ root_a).clamp(min=0).sqrt().sum()
    return float((mu_a - mu_b).square().sum() + sigma_a.trace() + sigma_b.trace() - 2 * cross)


def frechet_distance_of_rows(rows: Tensor, mu: Tensor, sigma: Tensor) -> float:
    """The same for features [n, d] against a Gaussian, without their covariance: fast, and exact even if n < d makes it singular.

    Let X be the centred rows divided by √(n − 1), so XᵀX is their covariance. XᵀX Σ and X Σ Xᵀ have the same non-zero eigenvalues.
    """
    rows = rows.double()
    centred = (rows - rows.mean(0)) / (len(rows) - 1) ** 0.5
    cross = torch.linalg.eigvalsh(centred @ sigma @ centred.T).clamp(min=0).sqrt().sum()
    return float((rows.mean(0) - mu).square().sum() + centred.square().sum() + sigma.trace() - 2 * cross)


def sliced_wasserstein(a: Tensor, b: Tensor, projections: int = 512, seed: int = 0) -> float:
    """Sliced Wasserstein-2 distance of two point sets [n, d] and [m, d] (Bonneel et al. 2015).

    The root mean square, over fixed random directions, of the 1-D distance between the projections' quantile functions,
    compared at the midpoints of min(n, m) equal steps. Multiplied by √d, so shifting every value by c gives about c·√d.
    """
    d = a.shape[1]
    rng = torch.Generator().manual_seed(seed)
    directions = torch.nn.functional.normalize(torch.randn(d, projections, generator=rng), dim=0).to(a)
    points = (torch.arange(min(len(a), len(b)), device=a.device, dtype=a.dtype) + 0.5) / min(len(a), len(b))

    def quantiles(x: Tensor, part: Tensor) -> Tensor:
        ordered = in_order(x @ part)  # [n, projections]
        at = (points * len(x) - 0.5).clamp(0, len(x) - 1)
        low = at.floor().long()
        return torch.lerp(ordered[low], ordered[(low + 1).clamp(max=len(x) - 1)], (at - low)[:, None])

    squares = torch.zeros((), dtype=a.dtype, device=a.device)
    for part in directions.split(PROJECTIONS, dim=1):
        squares += (quantiles(a, part) - quantiles(b, part)).square().mean() * (part.shape[1] / projections)
    return float((d * squares).sqrt())


def in_order(x: Tensor) -> Tensor:
    """Each column of [n, d] in ascending order. On a processor NumPy sorts in a seventh of torch's time; it has no bfloat16."""
    if x.device.type != "cpu" or x.dtype == torch.bfloat16:
        return x.sort(dim=0).values
    return torch.from_numpy(np.sort(x.detach().numpy(), axis=0))


def inception_score(probabilities: Tensor, splits: int = 10) -> tuple[float, float]:
    """Mean and standard deviation over equal parts of exp(E KL(p(y|x) ‖ p(y))) (Salimans et al. 2016), higher is better.

    Class probabilities [n, classes], n ≥ splits, cut into parts in order. The deviation is that of the parts (ddof 0).
    """
    scores = []
    for i in range(splits):
        p = probabilities[i * len(probabilities) // splits : (i + 1) * len(probabilities) // splits].double()
        marginal = p.mean(0)
        scores.append((torch.xlogy(p, p) - torch.xlogy(p, marginal)).sum(1).mean().exp())
    found = torch.stack(scores)
    return float(found.mean()), float(found.std(correction=0))
