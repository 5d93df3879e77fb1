"""FID, KID and Inception score: the numbers that the Inception network gives."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from registry.api import Domain, Metric, SettingError
from registry.builtin import FIDConfig, InceptionScoreConfig, KIDConfig
from registry.builtin.feature_space import Real, check_channels, real_images
from registry.builtin.metrics import Frechet
from registry.builtin.reference import half
from registry.core.text import shown
from registry.measure.distances import inception_score
from registry.measure.fid import frechet_inception_distance, kernel_inception_distance
from registry.measure.inception import Inception, Statistics, open_inception, read_statistics

PROTOCOL = 50_000
"""The number of images behind a published FID, KID or Inception score (EDM)."""


class FID(Frechet):
    """Fréchet Inception distance to the statistics of real images. `real` gives the floor, if the images are known."""

    columns = ("fid",)
    protocol = PROTOCOL

    def __init__(self, inception: Inception, statistics: Statistics, real: Real | None = None) -> None:
        super().__init__(inception, statistics, real)
        self.fingerprint = f"statistics {statistics.hash}, Inception {inception.hash}"

    def distance(self, rows: Tensor) -> float:
        return frechet_inception_distance(rows, self.statistics.mu, self.statistics.sigma)

    def save_reference(self, path: Path) -> bool:
        self.statistics.save(path)
        return True


class KID(Metric):
    """Kernel Inception distance to real images."""

    columns = ("kid",)
    protocol = PROTOCOL

    def __init__(self, inception: Inception, real: Real) -> None:
        self.inception, self.real = inception, real
        _ = real.rows  # compute these now, in all processes: later only one process compares
        self.details: dict[str, Any] = inception.details | {"reference_hash": real.hash, "reference_images": len(real.images)}
        self.fingerprint = f"images {real.hash}, Inception {inception.hash}"

    def embed(self, images: Tensor) -> Tensor:
        return self.inception.embed(images)

    def compare(self, rows: Tensor) -> dict[str, float]:
        return {"kid": kernel_inception_distance(rows, self.real.rows)}

    def floor(self, repeat: int) -> dict[str, float]:
        return self.compare(half(self.real.rows, repeat))


class InceptionScore(Metric):
    """Inception score: mean and standard deviation over parts of the images. It compares with no real images."""

    columns = ("inception_score", "inception_score_std")
    higher = ("inception_score",)
    protocol = PROTOCOL

    def __init__(self, inception: Inception, splits: int) -> None:
        self.inception, self.splits = inception, splits
        self.details: dict[str, Any] = inception.details | {"splits": splits}
        self.fingerprint = f"Inception {inception.hash}"

    def embed(self, images: Tensor) -> Tensor:
        return self.inception.probabilities(images)

    def compare(self, rows: Tensor) -> dict[str, float]:
        return dict(zip(self.columns, inception_score(rows, self.splits), strict=True))


def build_fid(config: FIDConfig, domain: Domain) -> FID:
    inception = open_inception(config.inception, "fid")
    check_channels(domain, "fid")
    if not config.reference.endswith(".npz"):
        real = real_images(config.reference, inception, domain)
        return FID(inception, real.statistics(), real)
    statistics = read_statistics(config.reference)
    named = re.search(r"(\d+)x\1\.npz$", config.reference)  # EDM's files state it only in their names
    resolution = statistics.img_resolution or (int(named[1]) if named else None)
    for what, stated, wanted in (
        ("from images at resolution", resolution, domain.image_shape[-1]),
        ("with another Inception file, with hash", statistics.inception, inception.hash),
    ):
        if stated is not None and stated != wanted:
            raise SettingError(
                "reference", f"its statistics were made {what} {shown(stated, 40)}, expected {wanted}", config.reference
            )
    return FID(inception, statistics)


def build_kid(config: KIDConfig, domain: Domain) -> KID:
    inception = open_inception(config.inception, "kid")
    check_channels(domain, "kid")
    return KID(inception, real_images(config.reference, inception, domain))


def build_inception_score(config: InceptionScoreConfig, domain: Domain) -> InceptionScore:
    inception = open_inception(config.inception, "inception_score")
    check_channels(domain, "inception_score")
    inception.probabilities(torch.zeros(2, *domain.image_shape))  # fail now, not after the sampling
    return InceptionScore(inception, config.splits)
