"""IPFM as a plugin: PFGM++ teachers, the electrostatic kernel at finite D, and the IPFM loss.

The mirror image of `registry.builtin`, found through the entry-point group `distill` like anybody's plugin.
"""

from __future__ import annotations

import math
from typing import Any

from pydantic import Field, ValidationInfo, field_validator

from registry.api import (
    Component,
    Config,
    Dimension,
    FileTeacherConfig,
    NoiseConfig,
    Published,
    hookimpl,
    published,
)

BY_HAND = 'take {} from the Google Drive folders that the README of https://github.com/Newbeeer/pfgmpp names under "Checkpoints"'
SONG = dict(model_channels=128, num_blocks=4, attn_resolutions=[16], augment_dim=9, label_dim=0)
CIFAR10: dict[str, Any] = SONG | dict(arch="ncsnpp", image_shape=[3, 32, 32], channel_mult=[2, 2, 2], dropout=0.13)
FFHQ: dict[str, Any] = SONG | dict(arch="ddpmpp", image_shape=[3, 64, 64], channel_mult=[1, 2, 2, 2], dropout=0.05)


class PFGMPPConfig(FileTeacherConfig):
    """[teacher] use = "pfgmpp": a PFGM++ denoiser from a file."""

    D: Dimension | None = Field(None, description="the teacher's dimension; must be the file's, inf if it says nothing")

    @field_validator("D")
    @classmethod
    def _check_published_D(cls, value: float | None, info: ValidationInfo) -> float | None:
        source = info.data.get("source", "")
        known = published(source)
        if known is None:
            return value
        if value is not None and value != known.D:
            raise ValueError(f"{source} has D = {known.D:g}")
        return known.D

    def known_D(self) -> float | None:
        return self.D


class ElectrostaticConfig(NoiseConfig):
    """[noise] use = "electrostatic": the kernel of every D."""

    D: Dimension | None = Field(None, description="dimension of the kernel; by default the teacher's")

    def misfit(self, D: float) -> str | None:
        return None if self.D is None or self.D == D else f"has D = {self.D:g}"


class IPFMConfig(Config):
    """[loss] use = "ipfm": Inverse Poisson Flow Matching."""

    alpha: float = Field(1.0, allow_inf_nan=False, description="½ = pure IPFM (Eq. 21), 1 = with the regularisation of Eq. 28")


@hookimpl
def register_teachers() -> list[Component]:
    return [Component("pfgmpp", PFGMPPConfig, "ipfm_plugin.teacher:build", "a PFGM++ denoiser (any D) from a file")]


@hookimpl
def register_noises() -> list[Component]:
    return [
        Component("electrostatic", ElectrostaticConfig, "ipfm_plugin.noise:build", "PFGM++ perturbation, exact for every D"),
    ]


@hookimpl
def register_losses() -> list[Component]:
    return [Component("ipfm", IPFMConfig, "ipfm_plugin.loss:build", "Inverse Poisson Flow Matching (any D)")]


@hookimpl
def register_published() -> list[Published]:
    teachers: dict[str, tuple[float, dict[str, Any]]] = {
        "cifar10_ncsnpp_D_128": (128.0, CIFAR10),
        "cifar10_ncsnpp_D_2048": (2048.0, CIFAR10),
        "cifar10_ncsnpp_D_inf": (math.inf, CIFAR10),
        "cifar10_ncsnpp_D_2048_conditional": (2048.0, CIFAR10 | {"label_dim": 10}),
        "ffhq_ddpm_D_128": (128.0, FFHQ),
        "ffhq_ddpm_D_inf": (math.inf, FFHQ),
    }
    return [
        Published(f"pfgmpp:{folder}", D, by_hand=BY_HAND.format(folder), network=network, license="cc-by-nc-sa-4.0")
        for folder, (D, network) in teachers.items()
    ]
