"""FID and KID: Inception features of images against those of a data set, or against published statistics."""

from __future__ import annotations

import functools
import hashlib
import re
from pathlib import Path
from typing import Any
from weakref import WeakValueDictionary

import torch
from torch import Tensor

from registry.api import Domain, Metric, SettingError, UserError
from registry.builtin import FIDConfig, KIDConfig
from registry.builtin.reference import half, reference_images
from registry.core import distributed
from registry.files.downloads import cache_folder
from registry.measure.distances import moments
from registry.measure.fid import frechet_inception_distance, kernel_inception_distance
from registry.measure.inception import (
    MODE,
    Inception,
    Statistics,
    open_inception,
    read_statistics,
)
from registry.show.journal import Journal

PROTOCOL = 50_000
"""The number of images behind a published FID or KID (EDM)."""


class FID(Metric):
    """Fréchet Inception distance to the statistics of real images. `real` gives the floor, if the images are known."""

    columns = ("fid",)
    protocol = PROTOCOL

    def __init__(self, inception: Inception, statistics: Statistics, real: Real | None = None) -> None:
        self.inception, self.statistics, self.real = inception, statistics, real
        self.details: dict[str, Any] = {"mode": MODE, "reference_hash": statistics.hash, "inception_hash": inception.hash}
        self.details |= {} if statistics.num_images is None else {"reference_images": statistics.num_images}
        self.fingerprint = f"statistics {statistics.hash}, Inception {inception.hash}"

    def embed(self, images: Tensor) -> Tensor:
        return self.inception.embed(images)

    def compare(self, rows: Tensor) -> dict[str, float]:
        return {"fid": frechet_inception_distance(rows, self.statistics.mu, self.statistics.sigma)}

    def floor(self, repeat: int) -> dict[str, float]:
        return self.compare(half(self.real.rows, repeat)) if self.real else {}

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
        self.details: dict[str, Any] = {"mode": MODE, "reference_hash": real.hash, "inception_hash": inception.hash}
        self.details |= {"reference_images": len(real.pixels)}
        self.fingerprint = f"images {real.hash}, Inception {inception.hash}"

    def embed(self, images: Tensor) -> Tensor:
        return self.inception.embed(images)

    def compare(self, rows: Tensor) -> dict[str, float]:
        return {"kid": kernel_inception_distance(rows, self.real.rows)}

    def floor(self, repeat: int) -> dict[str, float]:
        return self.compare(half(self.real.rows, repeat))


class Real:
    """Real images as pixels uint8 [n, C, H, W], with their hash, features and statistics, computed when needed."""

    def __init__(self, pixels: Tensor, inception: Inception, origin: str) -> None:
        self.pixels, self.inception, self.origin = pixels, inception, origin

    @functools.cached_property
    def hash(self) -> str:
        digest = hashlib.sha256(str(tuple(self.pixels.shape)).encode())
        digest.update(self.pixels.contiguous().numpy().data)
        return digest.hexdigest()[:16]

    @functools.cached_property
    def rows(self) -> Tensor:
        """Features [n, 2048]. All processes must use this."""
        journal, device = Journal(), distributed.device()
        journal.log(f"Inception features of the {len(self.pixels)} images of {self.origin}")

        def embed(part: range) -> Tensor:
            return self.inception.features(self.pixels[part.start : part.stop].to(device))

        with journal.progress("Inception features of real images", len(self.pixels)) as bar:
            return torch.cat(distributed.share(len(self.pixels), 100, embed, bar.at))

    def statistics(self) -> Statistics:
        """Mean and covariance of the features, from the cache if they are there. All processes must call this."""
        path = cache_folder() / "statistics" / f"{self.hash}-{self.inception.hash}.npz"
        known: Statistics | None = distributed.from_rank0(_read_if_whole(path))
        if known is None:
            known = Statistics(*moments(self.rows), self.pixels.shape[-1], len(self.pixels), self.inception.hash)
            if distributed.rank() == 0:
                _keep(known, path)
        return known


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
            raise SettingError("reference", f"its statistics were made {what} {stated}, expected {wanted}", config.reference)
    return FID(inception, statistics)


def build_kid(config: KIDConfig, domain: Domain) -> KID:
    inception = open_inception(config.inception, "kid")
    check_channels(domain, "kid")
    return KID(inception, real_images(config.reference, inception, domain))


def real_images(reference: str, inception: Inception, domain: Domain) -> Real:
    """The real images of a metric. Raises SettingError if there are none or they have another shape."""
    pixels = reference_images(reference, domain).pixels()
    if len(pixels) < 2:
        raise SettingError("reference", f"has {len(pixels)} image; a covariance needs at least 2", reference)
    real = Real(pixels, inception, reference)
    return _in_use.setdefault((real.hash, inception.hash), real)


_in_use: WeakValueDictionary[tuple[str, str], Real] = WeakValueDictionary()
"""FID and KID share the features of the same images."""


def check_channels(domain: Domain, metric: str) -> None:
    if domain.image_shape[0] not in (1, 3):
        raise UserError(f"the metric {metric} takes grey or RGB images; these have {domain.image_shape[0]} channels")


def _read_if_whole(path: Path) -> Statistics | None:
    try:
        return read_statistics(str(path))
    except UserError:
        return None


def _keep(statistics: Statistics, path: Path) -> None:
    try:
        statistics.save(path)
    except UserError as error:
        Journal().log(f"the reference's statistics could not be saved: {error}")
