"""What a file says about its network."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any

from registry.core.errors import SettingError

CONVERTED = "the file that it was converted from does not say"


@dataclass(frozen=True)
class NetworkFacts:
    """What a network's file says about it. Facts that the file does not state are None or empty.

    `stored()` gives the facts that our files store (under "about"). The rest is determined when a file is read.
    """

    kind: str | None = None
    """denoiser, generator or classifier; None if neither the file nor the user says so, as for foreign files."""
    D: float | None = None
    sigma_data: float | None = None
    label_dim: int | None = None
    image_shape: tuple[int, int, int] | None = None
    sigma_init: float | None = None
    sigmas: tuple[float, ...] | None = None
    """Noise levels sigma_K > … > sigma_1 of a generator."""
    teacher: str | None = None
    recipe: Mapping[str, Any] = field(default_factory=dict)
    """The tables of the recipe that the network was trained with."""
    nimg: int | None = None
    """Number of images it was trained on."""
    others: Mapping[str, Any] = field(default_factory=dict)
    """Further facts from its file: steps, gradient, components, teacher_weights, recipe_hash, versions, data, …"""
    # Determined while reading:
    key: str | None = None
    """Which of the file's networks this is, if it has several."""
    looks_like: str = "denoiser"
    """What a file that does not state the kind is taken to hold: denoiser or generator."""
    assumed: Mapping[str, str] = field(default_factory=dict)
    """Which of kind and D the file leaves open, so that they are only assumed, and why they are."""

    @classmethod
    def of(cls, values: Mapping[str, Any], **found: Any) -> NetworkFacts:
        """Build from the plain values that a file stores and from what reading it determined; the latter takes precedence."""
        values = {k: v for k, v in values.items() if v is not None}
        known = {f.name for f in fields(cls)} - {"kind", "others", "key", "looks_like", "assumed"}
        named = {k: v for k, v in values.items() if k in known}
        others = {k: v for k, v in values.items() if k not in {*known, "assumed"}}
        for name in ("image_shape", "sigmas"):
            if name in named:
                named[name] = tuple(named[name])
        listed = values.get("assumed")
        assumed = {name: CONVERTED for name in ("kind", "D") if isinstance(listed, list) and name in listed}
        facts = replace(cls(**named, others=others), **found)
        facts = replace(facts, assumed={**facts.assumed, **assumed})
        return replace(facts, kind=None, looks_like=facts.kind) if facts.kind and "kind" in assumed else facts

    def told(self, kind: str | None, source: object) -> NetworkFacts:
        """The same with what the user says of the kind (None: nothing). Raises SettingError if the file says something else."""
        if kind is None:
            return self
        if self.kind not in (None, kind):
            raise SettingError("kind", f"{source} is a {self.kind}; leave this out", kind)
        return replace(self, kind=kind, assumed={name: why for name, why in self.assumed.items() if name != "kind"})

    def kind_in_doubt(self, source: object) -> str | None:
        """A sentence that says which kind is assumed and why; None if there is no doubt."""
        if self.kind is not None or "kind" not in self.assumed:
            return None
        return f"{source} does not say what it holds; it is taken to be a {self.looks_like}, because {self.assumed['kind']}"

    def stored(self) -> dict[str, Any]:
        """The facts that our files store, as plain values."""
        own = {
            "D": self.D, "sigma_data": self.sigma_data, "sigma_init": self.sigma_init, "sigmas": self.sigmas,
            "image_shape": self.image_shape, "label_dim": self.label_dim, "teacher": self.teacher,
            "recipe": dict(self.recipe) or None, "nimg": self.nimg, "assumed": list(self.assumed) or None,
        }  # fmt: skip
        return {k: list(v) if isinstance(v, tuple) else v for k, v in own.items() if v is not None} | dict(self.others)

    @property
    def D_is_certain(self) -> bool:
        """Whether the file itself states D. A foreign file that does not is assumed to hold a diffusion model."""
        return "D" not in self.assumed

    def dimension(self) -> float:
        """D, or inf if the file does not state it."""
        return math.inf if self.D is None else float(self.D)

    def table(self, name: str) -> Mapping[str, Any]:
        """A table of the recipe that the network was trained with, or an empty one."""
        found = self.recipe.get(name, {})
        return found if isinstance(found, Mapping) else {}
