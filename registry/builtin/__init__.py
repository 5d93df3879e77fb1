"""The built-in plugin: EDM teachers, Gaussian noise, the SiD loss, and the metrics. It uses the hooks like any other."""

from __future__ import annotations

import math
from typing import Literal

from pydantic import Field, field_validator

from registry.api import Component, Config, DataSource, Dimension, File, NoiseConfig, Positive, Reference, Source, hookimpl
from registry.sources import published_D


class FileConfig(Config):
    """A teacher's file, and what of it is to be otherwise; for teachers of any D."""

    source: Source = Field(description="the teacher's file: a path, a URL, or the name of a shipped or published teacher")
    key: str | None = Field(None, description="which network of the file, e.g. ema; by default averages come first")
    sha256: str | None = Field(None, pattern="^[0-9a-fA-F]{64}$", description="hash of the file, checked when it is downloaded")
    dropout: float | None = Field(None, ge=0, lt=1, description="of the student's and the generator's network; default: the file's")
    fp16: bool | None = Field(None, description="run all three networks in float16 on CUDA; default: as the file has it")


class EDMConfig(FileConfig):
    @field_validator("source")
    @classmethod
    def _is_a_diffusion_teacher(cls, value: str) -> str:
        D = published_D(value)
        if D is not None and math.isfinite(D):
            raise ValueError(f'is a PFGM++ teacher with D = {D:g}; write use = "pfgmpp"')
        return value


class AnalyticConfig(Config):
    points: str = Field("ring", description="the finite set: ring, spiral, grid (points in the plane), digits, or images")
    count: int = Field(8, ge=1, description="number of points in the plane, or of images taken from the set")
    D: Dimension = Field(math.inf, description="auxiliary dimension, a positive real or inf")
    sigma_data: Positive = Field(0.5, description="standard deviation that the preconditioning assumes")
    width: int = Field(128, ge=8, description="hidden units of the student's and the generator's network")
    depth: int = Field(3, ge=1, description="hidden layers of that network")
    warmup: int = Field(500, ge=0, description="iterations that fit that network to the exact denoiser beforehand")
    seed: int = Field(0, ge=0, description="seed of that network")


class GaussianConfig(NoiseConfig):
    def misfit(self, D: float) -> str | None:
        if math.isinf(D):
            return None
        return f'is the kernel at D = inf, but the teacher has D = {D:g}; write use = "electrostatic"'


class SiDConfig(Config):
    alpha: float = Field(1.0, allow_inf_nan=False, description="strength of the correction in L_alpha (SiD Eq. 23)")

    def misfit(self, D: float) -> str | None:
        if math.isinf(D):
            return None
        return f"is defined at D = inf, but the teacher has D = {D:g}; use --loss ipfm, or a teacher with D = inf"


class FrechetConfig(Config):
    features: Source = Field("digits_features", description="the feature network's file")
    reference: DataSource = Field("teacher", description="the real images: digits, a folder or ZIP, or the teacher's own")


class SlicedWassersteinConfig(Config):
    reference: DataSource = Field("teacher", description="the real images: digits, a folder or ZIP, or the teacher's own")
    projections: int = Field(512, ge=1, description="number of random directions")


class InceptionConfig(Config):
    inception: File | None = Field(None, description="the network inception-2015-12-05.pt; by default the one in the cache folder")


class FIDConfig(InceptionConfig):
    reference: Reference = Field("teacher", description="real images, or statistics of them: an .npz file or its URL")


class KIDConfig(InceptionConfig):
    reference: DataSource = Field("teacher", description="the real images: digits, a folder or ZIP, or the teacher's own")


class CoverageConfig(Config):
    reference: Literal["teacher"] = Field("teacher", description="an exact teacher's own points")
    radius: Positive = Field(0.1, description="a point counts as reached if an image lies nearer than this")


@hookimpl
def register_teachers() -> list[Component]:
    return [
        Component("edm", EDMConfig, "registry.builtin.teacher:build_edm", "an EDM denoiser (D = inf) from a file"),
        Component(
            "analytic", AnalyticConfig, "registry.builtin.teacher:build_analytic", "the exact denoiser of a finite set, any D"
        ),
    ]


@hookimpl
def register_noises() -> list[Component]:
    return [
        Component("gaussian", GaussianConfig, "registry.builtin.noise:build", "Gaussian perturbation (D = inf)"),
    ]


@hookimpl
def register_losses() -> list[Component]:
    return [
        Component("sid", SiDConfig, "registry.builtin.loss:build", "Score identity Distillation (D = inf)"),
    ]


@hookimpl
def register_metrics() -> list[Component]:
    return [
        Component(
            "fid", FIDConfig, "registry.builtin.fid:build_fid",
            "Fréchet Inception distance, as EDM measures it (clean-fid, mode legacy_tensorflow)",
        ),
        Component(
            "kid", KIDConfig, "registry.builtin.fid:build_kid",
            "kernel Inception distance to a data set (clean-fid, mode legacy_tensorflow)",
        ),
        Component(
            "frechet", FrechetConfig, "registry.builtin.metric:build_frechet",
            "Fréchet distance in the features of a small classifier, and the number of classes present",
        ),
        Component(
            "sliced_wasserstein", SlicedWassersteinConfig, "registry.builtin.metric:build_sliced_wasserstein",
            "sliced Wasserstein-2 distance of the pixels",
        ),
        Component(
            "coverage", CoverageConfig, "registry.builtin.metric:build_coverage",
            "which points of an exact teacher are reached, and how far images are from them",
        ),
    ]  # fmt: skip
