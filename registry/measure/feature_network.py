"""What a network is to a metric that compares features: images in, one row of features per image out."""

from __future__ import annotations

import weakref
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


class FeatureNetwork(ABC):
    """Turns images into features. Metrics that use the same network one after the other share its last result."""

    name: str
    """What people call it."""
    hash: str
    """Identifies the network, and what is done to the images before it sees them."""
    details: dict[str, Any]
    """The same for people and files, as plain values."""
    dimension: int
    """How many features an image has."""
    slow = True
    """Whether the features of many real images take so long that their statistics are worth keeping."""
    batch = 100
    """How many images it takes at a time."""

    def __init__(self) -> None:
        nothing: Callable[[], Tensor | None] = lambda: None  # noqa: E731
        self._last = nothing, 0, torch.empty(0)

    @abstractmethod
    def rows(self, images: Tensor) -> Tensor:
        """Features [n, d], float32 on the CPU, of images [n, C, H, W] in about [−1, 1] on any device."""

    def embed(self, images: Tensor) -> Tensor:
        """The same, remembered until it is asked for other images."""
        seen, version, rows = self._last
        if seen() is not images or version != images._version:
            rows = self.rows(images)
            self._last = weakref.ref(images), images._version, rows
        return rows


def rgb(images: Tensor) -> Tensor:
    """Images [n, 1 or 3, H, W] -> [n, 3, H, W]; grey is repeated."""
    return images.repeat(1, 3 // images.shape[1], 1, 1)
