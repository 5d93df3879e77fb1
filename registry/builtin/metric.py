"""Metrics: Fréchet distance in a classifier's features, sliced Wasserstein distance of pixels, coverage of points."""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor

from registry.api import Metric, Teacher, UserError
from registry.builtin import CoverageConfig, FrechetConfig, SlicedWassersteinConfig
from registry.edm.datasets import load_images
from registry.features import Classifier, embed
from registry.files import load_network
from registry.metrics import frechet_distance, moments, sliced_wasserstein


class Frechet(Metric):
    """Fréchet distance of classifier features to all real images, and how many classes the images fall into.

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
    """What kept numbers depend on besides the settings: the real images, or their features. Robust against rounding."""
    rounded = (values.flatten(1).double().mean(0) * 1e3).round().int()
    return f"{len(values)} images, {hashlib.sha256(rounded.numpy().tobytes()).hexdigest()[:12]}"


def half(real: Tensor, repeat: int) -> Tensor:
    """A random half of the real images, another one for every repeat."""
    order = torch.randperm(len(real), generator=torch.Generator().manual_seed(repeat))
    return real[order[: max(2, len(real) // 2)]]


def real_images(reference: str, teacher: Teacher, metric: str) -> Tensor:
    """The real images [M, C, H, W] of a metric. Raises UserError if there are none, or if they have another shape."""
    images = load_images(reference).x() if reference != "teacher" else own_images(teacher, metric)
    check_shape(images, teacher, reference, metric)
    return images


def own_images(teacher: Teacher, metric: str) -> Tensor:
    """The images that an exact teacher carries, on the CPU. Raises UserError."""
    if teacher.images is None:
        raise UserError(f"[eval.{metric}] reference: the teacher {teacher.origin} does not carry its images; name a data set")
    return teacher.images.cpu()


def check_shape(images: Tensor, teacher: Teacher, reference: str, metric: str) -> None:
    """Real images must have the shape of those that are measured. Raises UserError."""
    if tuple(images.shape[1:]) != tuple(teacher.image_shape):
        found, wanted = ("×".join(map(str, s)) for s in (images.shape[1:], teacher.image_shape))
        raise UserError(f"[eval.{metric}] reference = {reference!r}: its images are {found}, the network's are {wanted}")


def build_frechet(config: FrechetConfig, teacher: Teacher) -> Frechet:
    classifier, _ = load_network(config.features, "classifier")
    assert isinstance(classifier, Classifier)
    real = real_images(config.reference, teacher, "frechet")
    made_for = (classifier.conv0.in_channels, classifier.init_kwargs["img_resolution"])
    if made_for != (real.shape[1], real.shape[2]):
        raise UserError(
            f"[eval.frechet] features = {config.features!r}: made for {made_for[0]} channels at resolution {made_for[1]}, "
            f"the images have {real.shape[1]} at {real.shape[2]}"
        )
    return Frechet(classifier, real)


def build_sliced_wasserstein(config: SlicedWassersteinConfig, teacher: Teacher) -> SlicedWasserstein:
    return SlicedWasserstein(real_images(config.reference, teacher, "sliced_wasserstein"), config.projections)


def build_coverage(config: CoverageConfig, teacher: Teacher) -> Coverage:
    return Coverage(real_images(config.reference, teacher, "coverage"), config.radius)
