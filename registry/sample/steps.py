"""How many steps a network is sampled with."""

from __future__ import annotations

from collections.abc import Sequence
from operator import index
from typing import Any, SupportsIndex, TypeGuard

from registry.core.errors import SettingError
from registry.recipe.tables import MOST_STEPS


def check_generator_steps(
    network: str, sigmas: Sequence[float], steps: int | None, nfe: int | None, doubt: str | None = None
) -> None:
    """Check that a generator is sampled with the steps that it was distilled with. Raises SettingError."""
    check_whole(steps, nfe)
    if nfe is not None and steps is not None and nfe != steps:
        raise SettingError(
            "nfe", f"a generator takes as many evaluations as steps (here {steps}); give steps or nfe, not both", nfe
        )
    for setting, asked in (("steps", steps), ("nfe", nfe)):
        if asked is not None and asked != len(sigmas):
            if doubt:
                raise SettingError(setting, f"{doubt}; it takes one evaluation; kind = denoiser says otherwise", asked)
            levels = ", ".join(f"{s:g}" for s in sigmas)
            raise SettingError(
                setting,
                f"{network} was distilled with {len(sigmas)} step{'s' * (len(sigmas) > 1)} (sigma {levels}) and needs that many; "
                f"for {asked}, distil again with steps = {asked}",
                asked,
            )


def heun_steps(resolution: int, steps: int | None, nfe: int | None) -> int:
    """Heun steps: `steps`, or from `nfe`, or EDM's default (18 up to 32 pixels per side, 40 above). Raises UserError."""
    check_whole(steps, nfe)
    if nfe is not None and nfe % 2 == 0:
        raise SettingError("nfe", f"n Heun steps take 2n − 1 evaluations, an odd number; give {nfe - 1} or {nfe + 1}", nfe)
    if nfe is not None and steps is not None and nfe != 2 * steps - 1:
        raise SettingError("nfe", f"{steps} Heun steps take {2 * steps - 1} evaluations; give steps or nfe, not both", nfe)
    n = (nfe + 1) // 2 if nfe is not None else steps or (18 if resolution <= 32 else 40)
    if n > MOST_STEPS:
        raise SettingError(
            "steps" if nfe is None else "nfe", f"must be at most {MOST_STEPS:,} Heun steps", steps if nfe is None else nfe
        )
    return n


def check_whole(steps: object, nfe: object) -> None:
    """Check that these are positive whole numbers, or None. Raises SettingError."""
    for setting, value in (("steps", steps), ("nfe", nfe)):
        if value is not None and not (is_whole(value) and index(value) >= 1):
            raise SettingError(setting, "must be a whole number, at least 1", value)


def is_whole(value: Any) -> TypeGuard[SupportsIndex]:
    """Whether it is a whole number: Python's or NumPy's, but no truth value and no span of time."""
    try:
        return not isinstance(value, bool) and index(value) is not None
    except TypeError:
        return False
