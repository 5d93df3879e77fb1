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

from registry import distributed
from registry.api import Metric, Teacher, UserError
from registry.builtin import FIDConfig, KIDConfig
from registry.builtin.metric import check_shape, half, own_images
from registry.downloads import cache_folder
from registry.edm.datasets import load_images
from registry.inception import (
    MODE,
    Inception,
    Statistics,
    frechet_inception_distance,
    kernel_inception_distance,
    open_inception,
    read_statistics,
)
from registry.metrics import moments
from registry.pictures import to_uint8
from registry.report import Journal

PROTOCOL = 50_000
"""Images that a published FID or KID is measured with (EDM)."""


class FID(Metric):
    """Fréchet Inception distance to statistics of real images; `real` gives the floor, where it is known."""

    columns = ("fid",)
    protocol = PROTOCOL

    def __init__(self, inception: Inception, statistics: Statistics, real: Real | None = None) -> None:
        self.inception, self.statistics, self.real = inception, statistics, real
        self.about: dict[str, Any] = {"mode": MODE, "reference_hash": statistics.hash, "inception_hash": inception.hash}
        self.about |= {} if statistics.num_images is None else {"reference_images": statistics.num_images}
        self.fingerprint = f"statistics {statistics.hash}, Inception {inception.hash}"

    def embed(self, images: Tensor) -> Tensor:
        return self.inception.embed(images)

    def compare(self, rows: Tensor) -> dict[str, float]:
        return {"fid": frechet_inception_distance(rows, self.statistics.mu, self.statistics.sigma)}

    def floor(self, repeat: int) -> dict[str, float]:
        return self.compare(half(self.real.rows, repeat)) if self.real else {}


class KID(Metric):
    """Kernel Inception distance to real images."""

    columns = ("kid",)
    protocol = PROTOCOL

    def __init__(self, inception: Inception, real: Real) -> None:
        self.inception, self.real = inception, real
        _ = real.rows  # now, with all processes: one alone compares
        self.about: dict[str, Any] = {"mode": MODE, "reference_hash": real.hash, "inception_hash": inception.hash}
        self.about |= {"reference_images": len(real.pixels)}
        self.fingerprint = f"images {real.hash}, Inception {inception.hash}"

    def embed(self, images: Tensor) -> Tensor:
        return self.inception.embed(images)

    def compare(self, rows: Tensor) -> dict[str, float]:
        return {"kid": kernel_inception_distance(rows, self.real.rows)}

    def floor(self, repeat: int) -> dict[str, float]:
        return self.compare(half(self.real.rows, repeat))


class Real:
    """Real images as Inception sees them: pixels uint8 [n, C, H, W], and what follows from them, when it is asked for."""

    def __init__(self, pixels: Tensor, inception: Inception, origin: str) -> None:
        self.pixels, self.inception, self.origin = pixels, inception, origin

    @functools.cached_property
    def hash(self) -> str:
        digest = hashlib.sha256(str(tuple(self.pixels.shape)).encode())
        digest.update(self.pixels.contiguous().numpy().data)
        return digest.hexdigest()[:16]

    @functools.cached_property
    def rows(self) -> Tensor:
        """Features [n, 2048]. All processes take part."""
        journal, device = Journal(), distributed.device()
        journal.log(f"Inception features of the {len(self.pixels)} images of {self.origin}")

        def embed(part: range) -> Tensor:
            return self.inception.features(self.pixels[part.start : part.stop].to(device))

        with journal.progress("Inception features of real images", len(self.pixels)) as bar:
            return torch.cat(distributed.share(len(self.pixels), 100, embed, bar.at))

    def statistics(self) -> Statistics:
        """Mean and covariance of the features, from the cache if they are there. All processes take part."""
        path = cache_folder() / "statistics" / f"{self.hash}-{self.inception.hash}.npz"
        known: Statistics | None = distributed.from_rank0(_read_if_whole(path))
        if known is None:
            known = Statistics(*moments(self.rows), self.pixels.shape[-1], len(self.pixels), self.inception.hash)
            if distributed.rank() == 0:
                _keep(known, path)
        return known


def build_fid(config: FIDConfig, teacher: Teacher) -> FID:
    inception = open_inception(config.inception, "fid")
    if not config.reference.endswith(".npz"):
        real = real_images(config.reference, inception, teacher, "fid")
        return FID(inception, real.statistics(), real)
    check_channels(teacher, "fid")
    statistics = read_statistics(config.reference)
    named = re.search(r"(\d+)x\1\.npz$", config.reference)  # EDM's files tell it by their names alone
    resolution = statistics.img_resolution or (int(named[1]) if named else None)
    for what, told, wanted in (
        ("images at resolution", resolution, teacher.image_shape[-1]),
        ("another Inception file, of hash", statistics.inception, inception.hash),
    ):
        if told is not None and told != wanted:
            raise UserError(f"[eval.fid] reference = {config.reference!r}: its statistics are of {what} {told}, wanted is {wanted}")
    return FID(inception, statistics)


def build_kid(config: KIDConfig, teacher: Teacher) -> KID:
    inception = open_inception(config.inception, "kid")
    return KID(inception, real_images(config.reference, inception, teacher, "kid"))


def real_images(reference: str, inception: Inception, teacher: Teacher, metric: str) -> Real:
    """The real images of a metric. Raises UserError if there are none, or if they have another shape."""
    check_channels(teacher, metric)
    if reference != "teacher":
        images = load_images(reference)
        pixels = images.pixels if images.levels == 127.5 else to_uint8(images.x())
    else:
        pixels = to_uint8(own_images(teacher, metric))
    check_shape(pixels, teacher, reference, metric)
    if len(pixels) < 2:
        raise UserError(f"[eval.{metric}] reference = {reference!r}: has {len(pixels)} image; a covariance takes 2 or more")
    real = Real(pixels, inception, reference)
    return _in_use.setdefault((real.hash, inception.hash), real)


_in_use: WeakValueDictionary[tuple[str, str], Real] = WeakValueDictionary()
"""FID and KID share the features of the same images."""


def check_channels(teacher: Teacher, metric: str) -> None:
    if teacher.image_shape[0] not in (1, 3):
        raise UserError(f"[eval.{metric}] takes grey or RGB images; these have {teacher.image_shape[0]} channels")


def _read_if_whole(path: Path) -> Statistics | None:
    try:
        return read_statistics(str(path))
    except UserError:
        return None


def _keep(statistics: Statistics, path: Path) -> None:
    try:
        statistics.save(path)
    except UserError as error:
        Journal().log(f"the reference's statistics could not be kept: {error}")
