"""The real images that metrics compare with."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from registry.api import Domain, SettingError
from registry.show.images import read_images
from registry.show.pictures import to_uint8

DRAWS = 5000
"""Of an exact law, for a floor: as many as a measurement has by default."""


@dataclass(frozen=True)
class ReferenceImages:
    """Real images [M, C, H, W] on the CPU, exactly as in the data set or the teacher."""

    images: Tensor
    levels: float | None
    """For uint8 pixels: x = pixels/levels − 1. None if `images` are already in [−1, 1]."""
    exact: bool = False
    """Whether these are all images that there are, each with the same chance, and not a sample of a law."""

    def __len__(self) -> int:
        return len(self.images)

    @property
    def resolution(self) -> int:
        return self.images.shape[-1]

    def part(self, which: range) -> ReferenceImages:
        """A run of them."""
        return ReferenceImages(self.images[which.start : which.stop], self.levels, self.exact)

    def some(self, n: int) -> ReferenceImages:
        """All, or n at random, always the same."""
        if n >= len(self):
            return self
        order = torch.randperm(len(self), generator=torch.Generator().manual_seed(0))
        return ReferenceImages(self.images[order[:n]], self.levels)

    def x(self) -> Tensor:
        """The images in [−1, 1]: [M, C, H, W]."""
        return self.images if self.levels is None else self.images.to(torch.float32) / self.levels - 1

    def pixels(self) -> Tensor:
        """The images as uint8 [M, C, H, W], as EDM converts samples."""
        return self.images if self.levels == 127.5 else to_uint8(self.x())


def reference_images(reference: str, domain: Domain) -> ReferenceImages:
    """The images that `reference` names. Raises SettingError if there are none or they have another shape."""
    if reference == "teacher":
        if domain.images is None:
            raise SettingError("reference", f"the teacher {domain.origin} does not include its images; give a data set")
        found = ReferenceImages(domain.images.cpu(), None, exact=True)
    else:
        data = read_images(reference)
        found = ReferenceImages(data.pixels, data.levels)
    shape = tuple(found.images.shape[1:])
    if shape != tuple(domain.image_shape):
        its, wanted = ("×".join(map(str, s)) for s in (shape, domain.image_shape))
        raise SettingError("reference", f"its images are {its}; the network's are {wanted}", reference)
    return found


def as_good_as(real: Tensor, exact: bool, repeat: int) -> Tensor:
    """Images that are as good as real ones, others for each repeat: a random half of a sample, draws of an exact law."""
    if not exact:
        return half(real, repeat)
    return real[torch.randint(len(real), (DRAWS,), generator=torch.Generator().manual_seed(repeat))]


def half(real: Tensor, repeat: int) -> Tensor:
    """A random half of the real images, a different one for each repeat."""
    return halves(real, repeat)[0]


def halves(real: Tensor, repeat: int) -> tuple[Tensor, Tensor]:
    """A random half of the real images, and the others."""
    order = torch.randperm(len(real), generator=torch.Generator().manual_seed(repeat))
    cut = max(2, len(real) // 2)
    return real[order[:cut]], real[order[cut:]]
