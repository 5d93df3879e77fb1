"""Real images for a batch."""

from __future__ import annotations

import torch
from torch import Tensor

from registry.core.contracts import RealBatch
from registry.core.streams import Streams
from registry.edm.datasets import Images


class RealImages:
    """A data set from which every stream draws one image, with replacement; with its class if `labels`."""

    def __init__(self, images: Images, labels: bool, device: torch.device) -> None:
        self.images, self.labels, self.device = images, labels, device
        self.x = images.x().to(device)

    def __len__(self) -> int:
        return len(self.images)

    def batch(self, rng: Streams) -> RealBatch:
        """One image for each of the B streams: x [B, C, H, W] in [−1, 1], and one-hot labels [B, label_dim] or None."""
        index = rng.integers(len(self.images))
        labels: Tensor | None = self.images.one_hot(index.cpu()) if self.labels else None
        return RealBatch(self.x[index], None if labels is None else labels.to(self.device))
