"""IPFM as a plugin: PFGM++ teachers, the electrostatic kernel at finite D, and the IPFM loss.

The mirror image of `registry.builtin`, found through the entry-point group `distill` like anybody's plugin.
"""

from __future__ import annotations

from pydantic import Field

from registry.api import Component, Config, Dimension, NoiseConfig, Source, hookimpl


class PFGMPPConfig(Config):
    source: Source = Field(description="the teacher's file: a path, a URL, or the name of a shipped or published teacher")
    key: str | None = Field(None, description="which network of the file, e.g. ema; by default averages come first")
    sha256: str | None = Field(None, pattern="^[0-9a-fA-F]{64}$", description="hash of the file, checked when it is downloaded")
    D: Dimension | None = Field(None, description="the teacher's dimension; must agree with the file if that tells it")


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
