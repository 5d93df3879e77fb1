"""The images of a batch: real ones, and what the student is shown."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import one_hot

from registry.core.contracts import Denoiser, RealBatch
from registry.core.streams import Streams
from registry.edm.augment import apply, draw, masked
from registry.edm.datasets import Images


class RealImages:
    """A data set from which every stream draws one image, with replacement; with its class if `labels`."""

    def __init__(self, images: Images, labels: bool, device: torch.device) -> None:
        self.images, self.labels, self.device = images, labels, device
        self.x = images.x().to(device)
        self.classes = images.classes.to(device) if labels and images.classes is not None else None

    def __len__(self) -> int:
        return len(self.images)

    def batch(self, rng: Streams) -> RealBatch:
        """One image for each of the B streams: x [B, C, H, W] in [−1, 1], and one-hot labels [B, label_dim] or None."""
        index = rng.integers(len(self.images))
        labels = None if self.classes is None else one_hot(self.classes[index], self.images.label_dim).to(torch.float32)
        return RealBatch(self.x[index], labels)


def augmented(
    student: Denoiser, x: Tensor, real: tuple[RealBatch, ...], p: float, rng: Streams
) -> tuple[Denoiser, Tensor, tuple[RealBatch, ...]]:
    """Images x [B, C, H, W], and real ones if there are any, after EDM's augmentation; and the student, told what was done.

    The i-th real image gets the operations of the i-th generated one. So does each of several batches that a loss shows the
    student at once. With p = 0 all are as they were, and nothing is drawn.
    """
    if not p:
        return student, x, real
    draws = masked(draw(rng), p)
    x, told = apply(x, draws)

    def informed(x: Tensor, sigma: Tensor, labels: Tensor | None = None) -> Tensor:
        denoised: Tensor = student(x, sigma, labels, augment_labels=told.repeat(len(x) // len(told), 1))  # type: ignore[call-arg]
        return denoised

    return informed, x, tuple(batch._replace(x=apply(batch.x, draws)[0]) for batch in real)
