"""IPFM as a plugin: PFGM++ teachers, the electrostatic kernel at finite D, and the IPFM loss.

The mirror image of `registry.builtin`, found through the entry-point group `distill` like anybody's plugin.
"""

from __future__ import annotations

from pydantic import Field, ValidationInfo, field_validator

from registry.api import Component, Config, Dimension, NoiseConfig, hookimpl
from registry.builtin import FileConfig
from registry.sources import published_D


class PFGMPPConfig(FileConfig):
    D: Dimension | None = Field(None, description="the teacher's dimension; must agree with the file if that tells it")

    @field_validator("D")
    @classmethod
    def _is_the_published_one(cls, value: float | None, info: ValidationInfo) -> float | None:
        source = info.data.get("source", "")
        D = published_D(source)
        if None not in (value, D) and value != D:
            raise ValueError(f"{source} has D = {D:g}")
        return D if value is None else value


class ElectrostaticConfig(NoiseConfig):
    D: Dimension | None = Field(None, description="dimension of the kernel; by default the teacher's")

    def misfit(self, D: float) -> str | None:
        if self.D is None or self.D == D:
            return None
        return f"has D = {self.D:g}, but the teacher has D = {D:g}; leave D out of [noise] to take the teacher's"


class IPFMConfig(Config):
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
