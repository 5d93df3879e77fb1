"""Random numbers from counters: Philox 4×32-10 (Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3").

A number depends on its key and counter only, so any of them can be had at any time, in any order and on any device. All is
written in operations that integer arithmetic and IEEE 754 define to the last bit, so a graphics card gives the same numbers as a
processor. The arrays are NumPy's or torch's, and `xp` is the one module or the other: on a processor NumPy starts an operation in
a third of torch's time, which is what counts for small batches.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

Words = Sequence[Any]
"""Four arrays of 32-bit words, as int64 in [0, 2^32)."""
MASK = 2**32 - 1
MULTIPLIERS, WEYL, ROUNDS = (0xD2511F53, 0xCD9E8D57), (0x9E3779B9, 0xBB67AE85), 10
LOG2, SQRT_HALF, EXPONENT = math.log(2), 0x3FE6A09E667F3BCD, 52
"""ln 2; the bits of √½ in float64, and where its exponent begins."""
# Long enough for errors below 1e-11: a law of random numbers is not seen to differ at that.
LOG_SERIES = [2 / (2 * n + 1) for n in range(7)]
SIN_SERIES = [(-1) ** n / math.factorial(2 * n + 1) for n in range(7)]
COS_SERIES = [(-1) ** n / math.factorial(2 * n) for n in range(7)]


def philox(counter: Words, key: tuple[int, int]) -> Words:
    """Four random words for a counter of four words, whose shapes are broadcast."""
    c0, c1, c2, c3 = counter
    for i in range(ROUNDS):
        k0, k1 = ((k + i * w) & MASK for k, w in zip(key, WEYL, strict=True))
        p0, p1 = c0 * MULTIPLIERS[0], c2 * MULTIPLIERS[1]  # what wraps around at 64 bits is masked below
        c0, c1, c2, c3 = (p1 >> 32 ^ c1 ^ k0) & MASK, p1 & MASK, (p0 >> 32 ^ c3 ^ k1) & MASK, p0 & MASK
    return c0, c1, c2, c3


def inside_unit(xp: Any, word: Any) -> Any:
    """Uniform in (0, 1), one of 2^32 values, in float64."""
    return (xp.asarray(word, dtype=xp.float64) + 0.5) * 2.0**-32


def uniform53(xp: Any, high: Any, low: Any) -> Any:
    """Uniform in [0, 1), one of 2^53 values, in float64."""
    return xp.asarray((high << 21) + (low >> 11), dtype=xp.float64) * 2.0**-53


def normals(xp: Any, a: Any, b: Any) -> Any:
    """Two independent standard normals [2, …] in float64 for two words […]; none is above 6.8 (Box and Muller 1958)."""
    radius = xp.sqrt(-2.0 * log(xp, inside_unit(xp, a)))
    cos, sin = cos_and_sin(xp, b)
    return xp.stack([radius * cos, radius * sin])


def gamma(xp: Any, concentration: float, words: Words, boost: Any) -> Any:
    """Gamma(concentration, rate 1) in float64 [B], from words [B, n] and uniforms `boost` in (0, 1) [B].

    Of 2n tries the first that is accepted (Marsaglia and Tsang 2000). Each is with a chance above 0.95: all of eight fail once in
    10^10 draws. Below a concentration of 1 a power is taken, whose last bits are the device's.
    """
    d = concentration - 1 / 3 if concentration >= 1 else concentration + 2 / 3
    x, u = normals(xp, words[0], words[1]), inside_unit(xp, xp.stack(words[2:]))
    cube = 1.0 + x / math.sqrt(9 * d)
    inside = cube > 0
    v = xp.where(inside, cube * cube * cube, 1.0)
    log_u, log_v = log(xp, xp.stack([u, v]))
    accepted = inside & (log_u < 0.5 * x * x + d - d * v + d * log_v)
    *tries, (_, first) = [(accepted[i, :, j], v[i, :, j]) for j in range(v.shape[2]) for i in (0, 1)]
    for good, value in reversed(tries):
        first = xp.where(good, value, first)
    return d * first if concentration >= 1 else d * first * boost ** (1 / concentration)


def log(xp: Any, x: Any) -> Any:
    """ln x of normal, positive float64 values, to about 1e-12."""
    bits = x.view(xp.int64)
    exponent = (bits - SQRT_HALF) >> EXPONENT
    m = (bits - (exponent << EXPONENT)).view(xp.float64)  # in [√½, √2)
    s = (m - 1.0) / (m + 1.0)
    return xp.asarray(exponent, dtype=xp.float64) * LOG2 + s * series(LOG_SERIES, s * s)


def cos_and_sin(xp: Any, word: Any) -> tuple[Any, Any]:
    """cos and sin of the angle 2π·word/2^32 − π, to about 1e-12."""
    quarter = (xp.asarray(word, dtype=xp.float64) - 2.0**31) * (math.pi / 2**33)  # of the angle: in [−π/4, π/4)
    square = quarter * quarter
    cos, sin = series(COS_SERIES, square), quarter * series(SIN_SERIES, square)
    for _ in range(2):
        cos, sin = 1.0 - 2.0 * sin * sin, 2.0 * sin * cos
    return cos, sin


def series(coefficients: list[float], x: Any) -> Any:
    """Σ coefficients[n]·x^n (Horner)."""
    total = x * coefficients[-1]
    for c in coefficients[-2:0:-1]:
        total += c
        total *= x
    total += coefficients[0]
    return total
