"""The space in which images are compared: the feature network that settings name, and real images in it."""

from __future__ import annotations

import functools
import hashlib
from contextlib import suppress
from pathlib import Path
from weakref import WeakValueDictionary

import torch
from torch import Tensor

from registry.api import Domain, SettingError, UserError, load_network, open_path
from registry.builtin import FeatureConfig
from registry.builtin.reference import ReferenceImages, reference_images
from registry.core import distributed
from registry.files.downloads import cache_folder
from registry.measure.classifier import Classifier, ClassifierFeatures
from registry.measure.distances import moments
from registry.measure.feature_network import FeatureNetwork
from registry.measure.inception import Statistics, open_inception, read_statistics
from registry.measure.torchscript import is_torchscript, open_torchscript
from registry.show.journal import Journal


def open_features(config: FeatureConfig, metric: str, domain: Domain) -> FeatureNetwork:
    """The feature network of a metric's settings, for the domain's images. Raises SettingError if it does not fit them."""
    scripted = config.features != "inception" and is_torchscript(open_path(config.features))
    for name, value in (("input", config.input), ("size", config.size)):
        if value is not None and not scripted:
            raise SettingError(name, f"is for TorchScript networks; {config.features} takes images as they are", value)
    if config.features == "inception":
        check_channels(domain, metric)
        return open_inception(config.inception, metric)
    if not scripted:
        return open_classifier(config.features, domain)
    check_channels(domain, metric)
    network = open_torchscript(open_path(config.features), config.input or "uint8", config.size)
    network.check(domain.image_shape)
    return network


def open_classifier(source: str, domain: Domain) -> ClassifierFeatures:
    """A classifier's hidden layer. Raises SettingError if the classifier is made for images of another shape."""
    net, _ = load_network(source, "classifier")
    assert isinstance(net, Classifier)
    made_for, (channels, resolution, _) = (net.conv0.in_channels, net.init_kwargs["img_resolution"]), domain.image_shape
    if made_for != (channels, resolution):
        problem = f"made for {made_for[0]} channels at resolution {made_for[1]}; the images have {channels} at {resolution}"
        raise SettingError("features", problem, source)
    return ClassifierFeatures(net, Path(source).stem)


def check_channels(domain: Domain, metric: str) -> None:
    if domain.image_shape[0] not in (1, 3):
        raise UserError(f"the metric {metric} takes grey or RGB images; these have {domain.image_shape[0]} channels")


class Real:
    """Real images, and their features in one network, which are computed when they are needed. `origin` is for people."""

    def __init__(self, images: ReferenceImages, network: FeatureNetwork, origin: str) -> None:
        self.images, self.network, self.origin = images, network, origin

    @functools.cached_property
    def hash(self) -> str:
        """Of the images as pixels."""
        pixels = self.images.pixels()
        digest = hashlib.sha256(str(tuple(pixels.shape)).encode())
        digest.update(pixels.contiguous().numpy().data)
        return digest.hexdigest()[:16]

    @functools.cached_property
    def rows(self) -> Tensor:
        """Features [n, d]. All processes must use this."""
        journal, device = Journal(), distributed.device()
        if self.network.slow:
            journal.log(f"{self.network.name} features of the {len(self.images)} images of {self.origin}")

        def embed(part: range) -> Tensor:
            return self.network.rows(self.images.part(part).x().to(device))

        with journal.progress("features of real images", len(self.images)) as bar:
            return torch.cat(distributed.share(len(self.images), self.network.batch, embed, bar.at))

    def kept_at(self) -> Path | None:
        """Where statistics that take long are kept, if there can be a cache."""
        with suppress(UserError):
            return cache_folder() / "statistics" / f"{self.hash}-{self.network.hash}.npz"
        return None

    def statistics(self) -> Statistics:
        """Mean and covariance of the features, from the cache if they are there. All processes must call this."""
        path = self.kept_at() if self.network.slow else None
        kept = _read_if_whole(path, self.network.dimension) if path else None
        known: Statistics | None = distributed.from_rank0(kept)
        if known is None:
            known = Statistics(*moments(self.rows), self.images.resolution, len(self.images), self.network.hash)
            if path and distributed.rank() == 0:
                _keep(known, path)
        return known


def real_images(reference: str, network: FeatureNetwork, domain: Domain, most: int | None = None, fewest: int = 2) -> Real:
    """The real images of a metric, or `most` of them at random. Raises SettingError if they are too few or have another shape."""
    images = reference_images(reference, domain)
    if len(images) < fewest:
        raise SettingError(
            "reference", f"has {len(images)} image{'s' * (len(images) != 1)}; at least {fewest} are needed", reference
        )
    real = Real(images if most is None else images.some(most), network, reference)
    return _in_use.setdefault((real.hash, network.hash), real)


_in_use: WeakValueDictionary[tuple[str, str], Real] = WeakValueDictionary()
"""Metrics share the features of the same images."""


def _read_if_whole(path: Path, dimension: int) -> Statistics | None:
    try:
        return read_statistics(str(path), dimension)
    except UserError:
        return None


def _keep(statistics: Statistics, path: Path) -> None:
    try:
        statistics.save(path)
    except UserError as error:
        Journal().log(f"the reference's statistics could not be saved: {error}")
