"""Metrics: Fréchet distance of features, sliced Wasserstein distance of pixels, coverage of points."""

from __future__ import annotations

import hashlib
from typing import Any

import torch
from torch import Tensor

from registry.api import Domain, Metric
from registry.builtin import CoverageConfig, FrechetConfig, SlicedWassersteinConfig
from registry.builtin.feature_space import Real, open_features, real_images
from registry.builtin.reference import as_good_as, half, reference_images
from registry.measure.classifier import ClassifierFeatures
from registry.measure.distances import frechet_distance, moments, sliced_wasserstein
from registry.measure.feature_network import FeatureNetwork
from registry.measure.inception import Statistics


class Frechet(Metric):
    """Fréchet distance to the statistics of real images, in a network's features. `real` gives the floor, if they are known."""

    columns: tuple[str, ...] = ("frechet",)

    def __init__(self, network: FeatureNetwork, statistics: Statistics, real: Real | None = None) -> None:
        self.network, self.statistics, self.real = network, statistics, real
        self.details: dict[str, Any] = network.details | {"reference_hash": statistics.hash}
        self.details |= {} if statistics.num_images is None else {"reference_images": statistics.num_images}
        self.fingerprint = f"statistics {statistics.hash}, features {network.hash}"

    def embed(self, images: Tensor) -> Tensor:
        return self.network.embed(images)

    def compare(self, rows: Tensor) -> dict[str, float]:
        return {self.columns[0]: self.distance(rows)}

    def distance(self, rows: Tensor) -> float:
        """The distance of these features [n, d]."""
        return frechet_distance(*moments(rows), self.statistics.mu, self.statistics.sigma)

    def floor(self, repeat: int) -> dict[str, float]:
        return self.compare(half(self.real.rows, repeat)) if self.real else {}


class ClassifierFrechet(Frechet):
    """The same in a classifier's features, with the number of classes present: those with at least 1 % of the images."""

    columns = ("frechet", "classes")

    def __init__(self, network: ClassifierFeatures, real: Real) -> None:
        super().__init__(network, real.statistics(), real)
        self.classifier = network
        self.fingerprint = fingerprint(real.rows)

    def compare(self, rows: Tensor) -> dict[str, float]:
        return super().compare(rows) | {"classes": float(self.classifier.present(rows))}


class SlicedWasserstein(Metric):
    """Sliced Wasserstein-2 distance of the pixels to all real images."""

    columns = ("sliced_w2",)

    def __init__(self, real: Tensor, projections: int, exact: bool = False) -> None:
        self.real, self.projections, self.exact = real, projections, exact
        self.fingerprint = fingerprint(real)
        self.details = {"projections": projections, "reference": self.fingerprint}

    def embed(self, images: Tensor) -> Tensor:
        return images.flatten(1).cpu()

    def compare(self, rows: Tensor) -> dict[str, float]:
        return {"sliced_w2": sliced_wasserstein(rows, self.real.flatten(1), self.projections)}

    def floor(self, repeat: int) -> dict[str, float]:
        return self(as_good_as(self.real, self.exact, repeat))


class Coverage(Metric):
    """For a finite set: the distance to the nearest point, and the share of points with an image within `radius`."""

    columns = ("nearest", "reached")
    higher = ("reached",)

    def __init__(self, real: Tensor, radius: float) -> None:
        self.real, self.radius = real, radius
        self.fingerprint = fingerprint(real)
        self.details = {"radius": radius, "reference": self.fingerprint}

    def embed(self, images: Tensor) -> Tensor:
        return images.flatten(1).cpu()

    def compare(self, rows: Tensor) -> dict[str, float]:
        distances = torch.cdist(rows, self.real.flatten(1))
        reached = (distances.min(0).values < self.radius).double().mean()
        return {"nearest": float(distances.min(1).values.double().mean()), "reached": float(reached)}

    def floor(self, repeat: int) -> dict[str, float]:
        return self(self.real)


def fingerprint(values: Tensor) -> str:
    """Identifies the real images, or their features, on which saved numbers depend. Insensitive to rounding."""
    rounded = (values.flatten(1).double().mean(0) * 1e3).round().int()
    return f"{len(values)} images, {hashlib.sha256(rounded.numpy().tobytes()).hexdigest()[:12]}"


def build_frechet(config: FrechetConfig, domain: Domain) -> Frechet:
    network = open_features(config, "frechet", domain)
    real = real_images(config.reference, network, domain)
    if isinstance(network, ClassifierFeatures):
        return ClassifierFrechet(network, real)
    return Frechet(network, real.statistics(), real)


def build_sliced_wasserstein(config: SlicedWassersteinConfig, domain: Domain) -> SlicedWasserstein:
    real = reference_images(config.reference, domain)
    return SlicedWasserstein(real.x(), config.projections, real.exact)


def build_coverage(config: CoverageConfig, domain: Domain) -> Coverage:
    return Coverage(reference_images(config.reference, domain).x(), config.radius)
