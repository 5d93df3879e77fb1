"""Inception features, class probabilities and statistics, as in EDM (clean-fid's mode legacy_tensorflow).

clean-fid does the arithmetic. This module finds its network (a file that the user provides, never a silent download into a
shared folder) and checks every file before it is used.
"""

from __future__ import annotations

import functools
import hashlib
import io
import re
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from registry.core.atomic import write_atomically
from registry.core.errors import SettingError, UserError
from registry.core.text import shown
from registry.files.downloads import cache_folder
from registry.files.locate import open_path
from registry.files.npz import read_npz
from registry.measure.feature_network import FeatureNetwork, rgb
from registry.show.pictures import to_uint8

MODE = "legacy_tensorflow"
NAME = "inception-2015-12-05.pt"
URL = "https://nvlabs-fi-cdn.nvidia.com/stylegan2-ada-pytorch/pretrained/metrics/" + NAME
DIMENSION = 2048


class Inception(FeatureNetwork):
    """The Inception-v3 of 2015. It takes raw pixels and resizes them itself (clean-fid's InceptionV3W; EDM's fid.py).

    Raises UserError if the file is not this network.
    """

    name, dimension = "Inception", DIMENSION

    def __init__(self, path: Path) -> None:
        from cleanfid.inception_torchscript import InceptionV3W

        super().__init__()
        try:
            with open(path, "rb") as file:
                self.hash = hashlib.file_digest(file, "sha256").hexdigest()[:16]
            with tempfile.TemporaryDirectory() as folder:  # clean-fid opens only a file of this name
                (Path(folder) / NAME).symlink_to(path.resolve())
                self.net = InceptionV3W(folder, download=False, resize_inside=True).eval().requires_grad_(False)
            self.features(torch.zeros(1, 3, 32, 32, dtype=torch.uint8))
        except OSError as error:
            raise UserError(f"{path}: cannot be read: {error.strerror or error}") from None
        except (RuntimeError, ValueError, AttributeError, TypeError, AssertionError):
            raise UserError(f"{path}: not clean-fid's Inception network, or damaged; download it from {URL}") from None
        self.path = path
        self.details = {"mode": MODE, "inception_hash": self.hash}

    @torch.no_grad()
    def features(self, pixels: Tensor, batch: int = 100) -> Tensor:
        """Features [n, 2048] on the CPU of pixels uint8 [n, C, H, W]. The network runs on their device; grey becomes RGB."""
        self.net.to(pixels.device)
        with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):  # the same features on every device
            return torch.cat([self.net(part).float().cpu() for part in rgb(pixels).split(batch)])

    def rows(self, images: Tensor) -> Tensor:
        """Features [n, 2048] of images [n, C, H, W] in [−1, 1], rounded as in EDM."""
        return self.features(to_uint8(images), self.batch)

    @torch.no_grad()
    def probabilities(self, images: Tensor) -> Tensor:
        """Class probabilities [n, classes] of images [n, C, H, W] in [−1, 1], on the CPU, without the bias of the last layer.

        Salimans et al. 2016 left the bias out, and so do all who follow them. Raises SettingError if the network cannot do this.
        """
        if "no_output_bias" not in [argument.name for argument in self.net.base.forward.schema.arguments]:
            problem = f"has no argument no_output_bias, so it gives features but no class probabilities; download it from {URL}"
            raise SettingError("inception", problem, str(self.path))
        self.net.to(images.device)
        with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
            parts = rgb(to_uint8(images)).split(self.batch)
            found = torch.cat([self.net.base(part, no_output_bias=True).float().cpu() for part in parts])
        if found.ndim != 2 or found.min() < 0 or (found.sum(1) - 1).abs().max() > 1e-3:
            raise SettingError("inception", f"its outputs are no class probabilities; download it from {URL}", str(self.path))
        return found


def open_inception(source: str | None, metric: str) -> Inception:
    """The network from a file or URL, or by default from the cache folder. Raises a UserError that says where to get it."""
    cleanfid_module()  # fail now, not after the sampling
    if source is not None:
        return _open(open_path(source))
    path = cache_folder() / NAME
    if not path.is_file():
        raise SettingError("inception", f"{metric} needs the Inception network: download {URL} to {path}, or give its path here")
    return _open(path)


_open = functools.cache(Inception)


# ---------------------------------------------------------------------------------------------------- statistics


LARGEST_MOMENT = 1e12
"""Distances square it twice."""


@dataclass(frozen=True)
class Statistics:
    """Mean [d] and covariance [d, d] (float64, ddof 1) of the features of real images, with known facts about them."""

    mu: Tensor
    sigma: Tensor
    img_resolution: int | None = None
    num_images: int | None = None
    inception: str | None = None
    """Hash of the feature network, which is Inception's file in statistics for the FID."""

    @functools.cached_property
    def hash(self) -> str:
        return hashlib.sha256(self.mu.numpy().tobytes() + self.sigma.numpy().tobytes()).hexdigest()[:16]

    def save(self, path: Path) -> None:
        """Save as .npz: `mu` and `sigma`, which EDM's scripts read, and the known facts about the images. Raises UserError."""
        known: dict[str, Any] = {"img_resolution": self.img_resolution, "num_images": self.num_images, "inception": self.inception}
        known = {k: v for k, v in known.items() if v is not None}
        buffer = io.BytesIO()
        np.savez(buffer, mu=self.mu.numpy(), sigma=self.sigma.numpy(), **known)
        write_atomically(path, buffer.getvalue())


def read_statistics(source: str, dimension: int = DIMENSION) -> Statistics:
    """Read statistics of so many features from an .npz file (EDM's or ours) or its URL. Raises UserError."""
    found = read_npz(open_path(source), source, 16 * (dimension + 1) ** 2 + 2**20)
    if not {"mu", "sigma"} <= set(found):
        names = shown(", ".join(found) or "nothing")
        raise UserError(f"{source}: not a file of statistics: it has {names}, expected mu and sigma")
    if any(found[k].dtype.kind not in "fiu" for k in ("mu", "sigma")):
        raise UserError(f"{source}: not a file of statistics: its mu or sigma does not hold real numbers")
    mu, sigma = (torch.from_numpy(np.asarray(found[k], dtype=np.float64)) for k in ("mu", "sigma"))
    known: dict[str, Any] = {}
    for fact, letters, what in (("img_resolution", "iu", "number"), ("num_images", "iu", "number"), ("inception", "U", "text")):
        if fact in found:
            if found[fact].dtype.kind not in letters or found[fact].shape or (what == "number" and found[fact] < 1):
                raise UserError(f"{source}: its {fact} must be one {what}{' above 0' * (what == 'number')}")
            known[fact] = found[fact].item()
            if what == "text" and not known[fact].isascii():  # its bytes may be no characters at all
                raise UserError(f"{source}: its {fact} is no hash of a file")
    if mu.shape != (dimension,) or sigma.shape != (dimension, dimension):
        raise UserError(
            f"{source}: statistics of another network: mu is {list(mu.shape)}, sigma {list(sigma.shape)}; "
            f"{'Inception' if dimension == DIMENSION else 'this one'} has {dimension} features"
        )
    if not (mu.isfinite().all() and sigma.isfinite().all()):
        raise UserError(f"{source}: its mu or sigma has values that are not finite")
    if problem := no_moments(mu, sigma):
        raise UserError(f"{source}: {problem}")
    return Statistics(mu, sigma, **known)


def no_moments(mu: Tensor, sigma: Tensor) -> str | None:
    """Why no features have this mean [d] and covariance [d, d]; None if some have. Rounding to float32 is allowed for."""
    largest = sigma.abs().max()
    if max(mu.abs().max(), largest) > LARGEST_MOMENT:
        return f"its mu or sigma has values beyond ±{LARGEST_MOMENT:g}, which no features have"
    if (sigma - sigma.T).abs().max() > 1e-4 * largest:
        return "its sigma is no covariance: it is not symmetric"
    if torch.linalg.cholesky_ex(sigma + (1e-4 * largest + 1e-12) * torch.eye(len(sigma), dtype=sigma.dtype)).info:
        return "its sigma is no covariance: it has negative eigenvalues"
    return None


@functools.cache
def cleanfid_module() -> Any:
    """clean-fid's module fid, which imports torchvision. Raises UserError if torchvision cannot be imported.

    With a CPU-only torch, PyPI's torchvision cannot be imported, because its compiled operators do not load. clean-fid uses none
    of them, so declaring the missing names is enough.
    """
    while True:
        try:
            import torchvision  # noqa: F401
        except (ImportError, RuntimeError, OSError) as error:
            missing = re.fullmatch(r"operator (torchvision::q?nms) does not exist", str(error))
            if not missing:
                reason = " ".join(str(error).split())
                raise UserError(f"clean-fid needs a torchvision that matches torch {torch.__version__}: {reason}") from None
            torch.library.define(missing[1], "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        else:
            import cleanfid.fid

            return cleanfid.fid
