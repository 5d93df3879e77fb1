"""Paired comparisons over seeds, their correction, and values at equal time. Pure.

Distances are positive, and their spread grows with their size. So it is their ratio that is estimated: the logarithms are
compared by a paired t test. Numbers that are not all positive are compared by their difference.
"""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from scipy import stats

Values = Mapping[int, float]
"""By seed."""


@dataclass(frozen=True)
class Effect:
    """How a number differs from the reference's: its ratio or difference, the 95 % interval, and the paired test's p."""

    scale: Literal["ratio", "difference"]
    estimate: float
    low: float
    high: float
    p: float
    n: int
    """Number of seeds; with one there are no interval and no test (NaN)."""


def paired(value: Values, reference: Values) -> Effect | None:
    """The effect over the seeds that both have; None if there are none."""
    return averaged([(value, reference)])


def averaged(pairs: Iterable[tuple[Values, Values]]) -> Effect | None:
    """The effect averaged over several pairs of values and references. A seed is one observation, its own mean over the pairs.

    Values that are not finite are left out. With all values positive, logarithms are averaged and tested.
    """
    by_seed: dict[int, list[tuple[float, float]]] = {}
    for value, reference in pairs:
        for seed in sorted({*value} & {*reference}):
            if math.isfinite(value[seed]) and math.isfinite(reference[seed]):
                by_seed.setdefault(seed, []).append((value[seed], reference[seed]))
    if not by_seed:
        return None
    positive = all(v > 0 for couples in by_seed.values() for couple in couples for v in couple)
    differences = [
        statistics.fmean(math.log(a) - math.log(b) if positive else a - b for a, b in couples) for couples in by_seed.values()
    ]
    low, high, p = t_test(differences)
    estimate = statistics.fmean(differences)
    if positive:
        return Effect("ratio", exponential(estimate), exponential(low), exponential(high), p, len(differences))
    return Effect("difference", estimate, low, high, p, len(differences))


def exponential(logarithm: float) -> float:
    """The number of this natural logarithm; infinity if it is too large a one: of two seeds, intervals are wide."""
    try:
        return math.exp(logarithm)
    except OverflowError:
        return math.inf


def t_test(differences: Sequence[float]) -> tuple[float, float, float]:
    """The 95 % interval of the mean, and the p of the hypothesis that it is 0 (two-sided)."""
    if len(differences) < 2:
        return math.nan, math.nan, math.nan
    mean = statistics.fmean(differences)
    if max(differences) - min(differences) < 1e-12:  # no spread but rounding: scipy would divide by zero
        return mean, mean, 1.0 if abs(mean) < 1e-12 else 0.0
    test = stats.ttest_1samp(differences, 0.0)
    interval = test.confidence_interval(0.95)
    return float(interval.low), float(interval.high), float(test.pvalue)


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's correction: p values that may be compared with 5 % however many they are. NaNs are no tests, and stay."""
    tested = sorted((p, i) for i, p in enumerate(p_values) if not math.isnan(p))
    corrected, highest = list(p_values), 0.0
    for rank, (p, i) in enumerate(tested):
        highest = max(highest, min(1.0, p * (len(tested) - rank)))
        corrected[i] = highest
    return corrected


Curve = Sequence[tuple[float, float]]
"""(place, value), places rising."""


def value_at(curve: Curve, place: float) -> float:
    """The value at a place between two points, on a straight line between their logarithms (or the values, unless positive).

    NaN outside the curve: nothing is extrapolated.
    """
    for x, y in curve:
        if x == place:
            return y
    for (x0, y0), (x1, y1) in itertools.pairwise(curve):
        if x0 < place < x1:
            share = (place - x0) / (x1 - x0)
            if y0 > 0 and y1 > 0:
                return math.exp((1 - share) * math.log(y0) + share * math.log(y1))
            return (1 - share) * y0 + share * y1
    return math.nan


def common_end(curves: Iterable[Curve]) -> float:
    """The last place that all curves reach; NaN without curves."""
    return min((curve[-1][0] for curve in curves if curve), default=math.nan)


def band(curves: Sequence[Curve], places: int = 60) -> list[tuple[float, float, float, float]]:
    """(place, lowest, mean, highest) over curves, where all of them have values: at their own points if those are the same."""
    curves = [c for c in curves if c]
    if not curves:
        return []
    own = [[x for x, _ in c] for c in curves]
    first, last = max(xs[0] for xs in own), min(xs[-1] for xs in own)
    if last < first:
        return []
    same = all(xs == own[0] for xs in own)
    at = own[0] if same else [first + (last - first) * i / (places - 1) for i in range(places)]
    found = []
    for x in at:
        values = [y for y in (value_at(c, x) for c in curves) if math.isfinite(y)]
        if values:
            found.append((x, min(values), statistics.fmean(values), max(values)))
    return found
