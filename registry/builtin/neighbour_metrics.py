"""Coverage, density, precision and recall: which images lie near real ones, and the other way round."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from registry.api import Domain, Metric
from registry.builtin import PRDCConfig
from registry.builtin.feature_space import Real, open_features, real_images
from registry.builtin.reference import halves
from registry.measure.feature_network import FeatureNetwork
from registry.measure.neighbours import prdc_module, precision_recall_density_coverage


class PRDC(Metric):
    """Coverage (the first, since a generator of a few good images has it low), density, precision and recall."""

    columns = ("coverage", "density", "precision", "recall")
    higher = columns

    def __init__(self, network: FeatureNetwork, real: Real, nearest_k: int, most: int) -> None:
        self.network, self.real, self.nearest_k, self.most = network, real, nearest_k, most
        _ = real.rows  # compute these now, in all processes: later only one process compares
        self.details: dict[str, Any] = network.details | {"nearest_k": nearest_k}
        self.details |= {"reference_hash": real.hash, "reference_images": len(real.images)}
        self.fingerprint = f"images {real.hash}, features {network.hash}"

    def embed(self, images: Tensor) -> Tensor:
        return self.network.embed(images)

    def compare(self, rows: Tensor) -> dict[str, float]:
        return self.near(self.real.rows, rows)

    def near(self, real: Tensor, rows: Tensor) -> dict[str, float]:
        """The four numbers of features [n, d] against those of real images [m, d]."""
        found = precision_recall_density_coverage(real, rows, self.nearest_k)
        return {column: found[column] for column in self.columns}

    def floor(self, repeat: int) -> dict[str, float]:
        """A half of the real images against the other half: an image is its own nearest neighbour."""
        a, b = halves(self.real.rows, repeat)
        return self.near(b, a) if min(len(a), len(b)) >= self.nearest_k + 2 else {}


def build_prdc(config: PRDCConfig, domain: Domain) -> PRDC:
    prdc_module()  # fail now, not after the sampling
    network = open_features(config, "prdc", domain)
    real = real_images(config.reference, network, domain, config.images, config.fewest_images())
    return PRDC(network, real, config.nearest_k, config.images)
