"""A plugin of distill: diffusion networks that predict epsilon or v under DDPM's discrete noise, as teachers.

Nothing here imports torch, so that `distill check` and `distill plugins` stay instantaneous.
"""

from __future__ import annotations

import math
from typing import Literal

from pydantic import Field

from registry.api import Component, Config, NetworkClass, Positive, Source, hookimpl


class VPConfig(Config):
    source: Source = Field(description="the checkpoint: a state dict of SomebodysUNet, saved with torch.save")
    parametrisation: Literal["epsilon", "velocity"] = Field("epsilon", description="what the network predicts")
    channels: int = Field(16, ge=1, description="width of the network")
    resolution: int = Field(8, ge=2, multiple_of=2, description="height and width of the images")
    steps: int = Field(1000, ge=2, description="steps T of the schedule, the network's t being 0 … T − 1")
    beta_first: Positive = Field(1e-4, lt=1, description="beta of the first step; linear in between (DDPM)")
    beta_last: Positive = Field(0.02, lt=1, description="beta of the last step")

    def known_D(self) -> float:
        """So `distill check` sees a noise or loss that does not fit, before anything is built."""
        return math.inf


@hookimpl
def register_teachers() -> list[Component]:
    return [Component("vp", VPConfig, "my_teacher.teacher:build", "a network of epsilon or v under DDPM's noise (D = inf)")]


@hookimpl
def register_networks() -> list[NetworkClass]:
    return [NetworkClass("VPDenoiser", "my_teacher.teacher:VPDenoiser", "SomebodysUNet in EDM's coordinates")]
