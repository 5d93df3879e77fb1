"""The built-in plugin: EDM teachers, Gaussian noise, the SiD loss, and the metrics. It uses the hooks like any other plugin."""

from __future__ import annotations

import math
from typing import Any, Literal

from pydantic import Field, ValidationInfo, field_validator

from registry.api import (
    Component,
    Config,
    DataSource,
    Dimension,
    File,
    FileTeacherConfig,
    NetworkClass,
    NoiseConfig,
    Positive,
    Published,
    Reference,
    hookimpl,
)
from registry.files.paths import Features

EDM = "https://nvlabs-fi-cdn.nvidia.com/edm/pretrained/"
LICENSE = "cc-by-nc-sa-4.0"
"""Of EDM and its pretrained models."""
SONG = dict(arch="ddpmpp", model_channels=128, num_blocks=4, attn_resolutions=[16], augment_dim=9, label_dim=0)
CIFAR10: dict[str, Any] = SONG | dict(image_shape=[3, 32, 32], channel_mult=[2, 2, 2], dropout=0.13)
FFHQ: dict[str, Any] = SONG | dict(image_shape=[3, 64, 64], channel_mult=[1, 2, 2, 2], dropout=0.05)
IMAGENET: dict[str, Any] = dict(
    arch="adm", image_shape=[3, 64, 64], label_dim=1000, model_channels=192, channel_mult=[1, 2, 3, 4], num_blocks=3,
    attn_resolutions=[32, 16, 8], dropout=0.1,
)  # fmt: skip


def only_diffusion(D: float, what: str) -> str | None:
    """The `misfit` of a component that is defined only at D = inf."""
    return None if math.isinf(D) else f"{what} (D = inf)"


class EDMConfig(FileTeacherConfig):
    """[teacher] use = "edm": an EDM denoiser from a file, D = inf."""

    def known_D(self) -> float | None:
        return super().known_D() or math.inf

    def misfit(self, D: float) -> str | None:
        return only_diffusion(D, "is for diffusion teachers")


class AnalyticConfig(Config):
    """[teacher] use = "analytic": the exact denoiser of a finite set, any D."""

    points: str = Field("ring", description="the finite set: ring, spiral, grid (points in the plane), digits, or images")
    count: int = Field(8, ge=1, le=1_000_000, description="number of points in the plane, or of images taken from the set")
    D: Dimension = Field(math.inf, description="auxiliary dimension, a positive real or inf")
    sigma_data: Positive = Field(0.5, description="standard deviation of the data, assumed by the preconditioning")
    width: int = Field(128, ge=8, description="hidden units of the student's and the generator's network")
    depth: int = Field(3, ge=1, description="hidden layers of that network")
    warmup: int = Field(500, ge=0, description="iterations of fitting that network to the exact denoiser before distilling")
    seed: int = Field(0, ge=0, description="seed of that network")

    def known_D(self) -> float | None:
        return self.D


class GaussianConfig(NoiseConfig):
    """[noise] use = "gaussian": the kernel at D = inf."""

    def misfit(self, D: float) -> str | None:
        return only_diffusion(D, "is the kernel of diffusion")


class SiDConfig(Config):
    """[loss] use = "sid": Score identity Distillation, D = inf."""

    alpha: float = Field(1.0, allow_inf_nan=False, description="strength of the correction in L_alpha (SiD Eq. 23)")

    def misfit(self, D: float) -> str | None:
        return only_diffusion(D, "is defined for diffusion")


class InceptionConfig(Config):
    """What everything that uses the Inception network shares."""

    inception: File | None = Field(
        None, description="the network's file, inception-2015-12-05.pt; default: the one in the cache folder"
    )


class FeatureConfig(InceptionConfig):
    """What metrics that compare features share."""

    features: Features = Field("inception", description="feature network: inception, a classifier's file, or a TorchScript file")
    input: Literal["uint8", "unit", "signed", "imagenet"] | None = Field(
        None,
        description="what a TorchScript network takes: uint8 pixels (default), values in [0, 1] (unit) or [-1, 1] (signed), "
        "or values normalised with ImageNet's mean and standard deviation (imagenet)",
    )
    size: int | None = Field(None, ge=1, description="pixels a side that a TorchScript network takes; default: images as they are")


class FrechetConfig(FeatureConfig):
    """[eval.frechet]."""

    features: Features = Field("digits_features", description="feature network: a classifier's file, a TorchScript file, inception")
    reference: DataSource = Field("teacher", description="the real images: digits, a folder or ZIP, or the teacher's own")


class SlicedWassersteinConfig(Config):
    """[eval.sliced_wasserstein]."""

    reference: DataSource = Field("teacher", description="the real images: digits, a folder or ZIP, or the teacher's own")
    projections: int = Field(512, ge=1, description="number of random directions")


class PRDCConfig(FeatureConfig):
    """[eval.prdc]."""

    reference: DataSource = Field("teacher", description="the real images: digits, a folder or ZIP, or the teacher's own")
    nearest_k: int = Field(5, ge=1, description="the neighbour that a ball reaches; improved precision and recall use 3")
    images: int = Field(10_000, ge=2, description="images compared at most, of either side: memory grows with the square")

    def fewest_images(self) -> int:
        return self.nearest_k + 2

    @field_validator("images")
    @classmethod
    def _have_neighbours(cls, value: int, info: ValidationInfo) -> int:
        if value < info.data.get("nearest_k", 0) + 2:
            raise ValueError(f"must be at least nearest_k + 2 = {info.data['nearest_k'] + 2}")
        return value


class InceptionScoreConfig(InceptionConfig):
    """[eval.inception_score]."""

    splits: int = Field(10, ge=1, description="parts of the images: the score is their mean")

    def fewest_images(self) -> int:
        return max(2, self.splits)


class FIDConfig(InceptionConfig):
    """[eval.fid]."""

    reference: Reference = Field("teacher", description="real images, or their statistics: an .npz file or its URL")


class KIDConfig(InceptionConfig):
    """[eval.kid]."""

    reference: DataSource = Field("teacher", description="the real images: digits, a folder or ZIP, or the teacher's own")


class WandbConfig(Config):
    """[log.wandb]."""

    project: str = Field("distill", min_length=1, description="the project that the run belongs to")
    entity: str | None = Field(None, min_length=1, description="the user or team; by default the one that is logged in")
    mode: Literal["offline", "online"] = Field(
        "offline", description="offline: only into the run's folder, for `wandb sync` to send later; online: sent at once"
    )


class CoverageConfig(Config):
    """[eval.coverage]."""

    reference: Literal["teacher"] = Field("teacher", description="an exact teacher's own points")
    radius: Positive = Field(0.1, description="a point counts as reached if an image is closer than this")


@hookimpl
def register_teachers() -> list[Component]:
    return [
        Component("edm", EDMConfig, "registry.builtin.teacher:build", "an EDM denoiser (D = inf) from a file"),
        Component("analytic", AnalyticConfig, "registry.builtin.analytic:build", "the exact denoiser of a finite set, any D"),
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
            "fid", FIDConfig, "registry.builtin.inception_metrics:build_fid",
            "Fréchet Inception distance, as EDM measures it (clean-fid, mode legacy_tensorflow)",
        ),
        Component(
            "kid", KIDConfig, "registry.builtin.inception_metrics:build_kid",
            "kernel Inception distance to a data set (clean-fid, mode legacy_tensorflow)",
        ),
        Component(
            "inception_score", InceptionScoreConfig, "registry.builtin.inception_metrics:build_inception_score",
            "Inception score (higher is better), from the class probabilities of the same network",
        ),
        Component(
            "prdc", PRDCConfig, "registry.builtin.neighbour_metrics:build_prdc",
            "coverage, density, precision and recall (higher is better), in the features of any network",
        ),
        Component(
            "frechet", FrechetConfig, "registry.builtin.metrics:build_frechet",
            "Fréchet distance in the features of a classifier, with the number of classes present, or of a TorchScript network",
        ),
        Component(
            "sliced_wasserstein", SlicedWassersteinConfig, "registry.builtin.metrics:build_sliced_wasserstein",
            "sliced Wasserstein-2 distance of the pixels",
        ),
        Component(
            "coverage", CoverageConfig, "registry.builtin.metrics:build_coverage",
            "the share of an exact teacher's points that are reached, and how far images are from them",
        ),
    ]  # fmt: skip


@hookimpl
def register_trackers() -> list[Component]:
    return [
        Component("tensorboard", Config, "registry.builtin.tensorboard:build", "event files for TensorBoard, in the run's folder"),
        Component("wandb", WandbConfig, "registry.builtin.wandb:build", "Weights & Biases, offline unless it is asked for"),
    ]


@hookimpl
def register_published() -> list[Published]:
    files = {
        "edm:cifar10-uncond": ("edm-cifar10-32x32-uncond-vp.pkl", CIFAR10),
        "edm:cifar10-cond": ("edm-cifar10-32x32-cond-vp.pkl", CIFAR10 | {"label_dim": 10}),
        "edm:ffhq": ("edm-ffhq-64x64-uncond-vp.pkl", FFHQ),
        "edm:afhqv2": ("edm-afhqv2-64x64-uncond-vp.pkl", FFHQ | {"dropout": 0.25}),
        "edm:imagenet64-cond": ("edm-imagenet-64x64-cond-adm.pkl", IMAGENET),
    }
    return [Published(name, math.inf, EDM + file, network=network, license=LICENSE) for name, (file, network) in files.items()]


@hookimpl
def register_networks() -> list[NetworkClass]:
    return [
        NetworkClass("PointDenoiser", "registry.builtin.points:PointDenoiser", "a perceptron for points and tiny images"),
        NetworkClass("Classifier", "registry.measure.classifier:Classifier", "the feature network of the metric frechet"),
    ]
