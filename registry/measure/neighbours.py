"""Precision, recall, density and coverage, from distances to nearest neighbours. The package prdc does the arithmetic."""

from __future__ import annotations

import contextlib
import functools
import io
import math
from typing import Any

from torch import Tensor

from registry.core.errors import UserError
from registry.core.version import install


def precision_recall_density_coverage(real: Tensor, rows: Tensor, nearest_k: int) -> dict[str, float]:
    """The four numbers for features [n, d] against those of real images [m, d], with balls that reach the k-th neighbour.

    Precision and recall are Kynkäänniemi et al. 2019's, density and coverage Naeem et al. 2020's. Needs n, m ≥ nearest_k + 2, and
    12 bytes for each of the n² (or m²) pairs at a time. NaN if features are not finite.
    """
    if not rows.isfinite().all():
        return dict.fromkeys(("precision", "recall", "density", "coverage"), math.nan)
    with contextlib.redirect_stdout(io.StringIO()):  # it prints how many images there are
        found = prdc_module().compute_prdc(real.numpy(), rows.numpy(), nearest_k)
    return {name: float(value) for name, value in found.items()}


@functools.cache
def prdc_module() -> Any:
    """The package prdc. Raises UserError if it is not installed."""
    try:
        import prdc
    except ImportError:
        raise UserError(
            f"precision, recall, density and coverage need the package prdc, which is not installed: {install('prdc')}"
        ) from None
    return prdc
