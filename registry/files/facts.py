"""What a file tells about its network."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any


@dataclass(frozen=True)
class NetworkFacts:
    """What a network's file tells about it. What a file does not tell is None or empty.

    `told` are the facts that files of ours store (under "about"); the rest is found out when a file is read.
    """

    kind: str | None = None
    """denoiser, generator or classifier; None in foreign files, which do not tell."""
    D: float | None = None
    sigma_data: float | None = None
    label_dim: int | None = None
    image_shape: tuple[int, int, int] | None = None
    sigma_init: float | None = None
    sigmas: tuple[float, ...] | None = None
    """Noise levels sigma_K > … > sigma_1 of a generator."""
    teacher: str | None = None
    recipe: Mapping[str, Any] = field(default_factory=dict)
    """The tables of the recipe that it was trained with."""
    nimg: int | None = None
    """Images it was trained on."""
    others: Mapping[str, Any] = field(default_factory=dict)
    """Further facts of its file: steps, gradient, teacher_weights, recipe_hash, versions, data, held_out_accuracy, …"""
    # Found out while reading:
    key: str | None = None
    """Which network of a file that has several."""
    looks_like: str = "denoiser"
    """What a foreign file's layout suggests: denoiser or generator."""
    D_is_certain: bool = True
    """Whether the file itself says what D is; a foreign file that does not is taken for a diffusion model's."""

    @classmethod
    def of(cls, told: Mapping[str, Any], **found: Any) -> NetworkFacts:
        """From what a file stores, as plain values, and what reading it found out (which wins)."""
        known = {f.name for f in fields(cls)} - {"kind", "others", "key", "looks_like", "D_is_certain"}
        named = {k: v for k, v in told.items() if k in known}
        others = {k: v for k, v in told.items() if k not in known}
        for name in ("image_shape", "sigmas"):
            if name in named:
                named[name] = tuple(named[name])
        return replace(cls(**named, others=others), **found)

    def told(self) -> dict[str, Any]:
        """The facts that are stored in files of ours, as plain values."""
        own = {
            "D": self.D, "sigma_data": self.sigma_data, "sigma_init": self.sigma_init, "sigmas": self.sigmas,
            "image_shape": self.image_shape, "label_dim": self.label_dim, "teacher": self.teacher,
            "recipe": dict(self.recipe) or None, "nimg": self.nimg,
        }  # fmt: skip
        return {k: list(v) if isinstance(v, tuple) else v for k, v in own.items() if v is not None} | dict(self.others)

    def dimension(self) -> float:
        """D, which is inf where nothing is told."""
        return math.inf if self.D is None else float(self.D)

    def table(self, name: str) -> Mapping[str, Any]:
        """A table of the recipe that it was trained with; empty if it has none."""
        found = self.recipe.get(name, {})
        return found if isinstance(found, Mapping) else {}
