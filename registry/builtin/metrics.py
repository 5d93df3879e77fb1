"""Metrics: Fréchet distance in a classifier's features, sliced Wasserstein distance of pixels, coverage of points."""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor

from registry.api import Domain, Metric, SettingError
from registry.builtin import CoverageConfig, FrechetConfig, SlicedWassersteinConfig
from registry.builtin.reference import half, reference_images
from registry.files.formats import load_network
from registry.measure.classifier import Classifier, embed
from registry.measure.distances import frechet_distance, moments, sliced_wasserstein


class Frechet(Metric):
    """Fréchet distance to all real images in classifier features, and the number of classes present.

    A class is present if it has at least 1 % of the images.
    """

    columns = ("frechet", "classes")

    def __init__(self, classifier: Classifier, real: Tensor) -> None:
        self.classifier, self.real = classifier, real
        self.features = embed(classifier, real)
        self.moments = moments(self.features)
        self.fingerprint = fingerprint(self.features)

    def embed(self, images: Tensor) -> Tensor:
        return embed(self.classifier, images.cpu())

    def compare(self, rows: Tensor) -> dict[str, float]:
        with torch.no_grad():
            predicted = self.classifier.logits(rows).argmax(1)
        classes = int((predicted.bincount() >= 0.01 * len(rows)).sum())
        return {"frechet": frechet_distance(*moments(rows), *self.moments), "classes": float(classes)}

    def floor(self, repeat: int) -> dict[str, float]:
        return self(half(self.real, repeat))


class SlicedWasserstein(Metric):
    """Sliced Wasserstein-2 distance of the pixels to all real images."""

    columns = ("sliced_w2",)

    def __init__(self, real: Tensor, projections: int) -> None:
        self.real, self.projections = real, projections
        self.fingerprint = fingerprint(real)

    def embed(self, images: Tensor) -> Tensor:
        return images.flatten(1).cpu()

    def compare(self, rows: Tensor) -> dict[str, float]:
        return {"sliced_w2": sliced_wasserstein(rows, self.real.flatten(1), self.projections)}

    def floor(self, repeat: int) -> dict[str, float]:
        return self(half(self.real, repeat))


class Coverage(Metric):
    """For a finite set: the distance to the nearest point, and the share of points with an image within `radius`."""

    columns = ("nearest", "reached")

    def __init__(self, real: Tensor, radius: float) -> None:
        self.real, self.radius = real, radius
        self.fingerprint = fingerprint(real)

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
    classifier, _ = load_network(config.features, "classifier")
    assert isinstance(classifier, Classifier)
    real = reference_images(config.reference, domain).x()
    made_for = (classifier.conv0.in_channels, classifier.init_kwargs["img_resolution"])
    if made_for != (real.shape[1], real.shape[2]):
        raise SettingError(
            "features",
            f"made for {made_for[0]} channels at resolution {made_for[1]}; the images have {real.shape[1]} at {real.shape[2]}",
            config.features,
        )
    return Frechet(classifier, real)


def build_sliced_wasserstein(config: SlicedWassersteinConfig, domain: Domain) -> SlicedWasserstein:
    return SlicedWasserstein(reference_images(config.reference, domain).x(), config.projections)


def build_coverage(config: CoverageConfig, domain: Domain) -> Coverage:
    return Coverage(reference_images(config.reference, domain).x(), config.radius)
