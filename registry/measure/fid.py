"""FID and KID, from Inception features. clean-fid does the arithmetic; as metrics of a recipe they are in `registry.builtin`."""

from __future__ import annotations

import contextlib
import io

import numpy as np
from torch import Tensor

from registry.measure.distances import frechet_distance, frechet_distance_of_rows, moments
from registry.measure.inception import cleanfid_module


def frechet_inception_distance(rows: Tensor, mu: Tensor, sigma: Tensor) -> float:
    """FID of features [n, d] against a mean [d] and covariance [d, d] (Heusel et al. 2017), with ddof 1 and in float64.

    Computed by clean-fid if n > d. With n ≤ d the covariance is singular and its product's matrix root need not exist, so we
    compute the distance without it.
    """
    if len(rows) <= rows.shape[1]:
        return frechet_distance_of_rows(rows, mu, sigma)
    found = moments(rows)
    with contextlib.redirect_stdout(io.StringIO()):  # it prints that it adds 1e-6 to the diagonals
        try:
            return float(cleanfid_module().frechet_distance(*(t.numpy() for t in (*found, mu, sigma))))
        except ValueError:  # the root is complex: duplicate images make the covariances singular
            return frechet_distance(*found, mu, sigma)


def kernel_inception_distance(rows: Tensor, real: Tensor) -> float:
    """KID of features [n, d] and [m, d] (Bińkowski et al. 2018): clean-fid's mean over 100 random subsets with a fixed seed."""
    state = np.random.get_state()
    np.random.seed(0)
    try:
        return float(cleanfid_module().kernel_distance(real.numpy(), rows.numpy()))
    finally:
        np.random.set_state(state)
