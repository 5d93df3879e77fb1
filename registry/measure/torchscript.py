"""A feature network of the user's, such as DINOv2, exported as TorchScript. Its program runs in torch's interpreter."""

from __future__ import annotations

import functools
import hashlib
import zipfile
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from registry.core.errors import SettingError, UserError
from registry.measure.feature_network import FeatureNetwork, rgb
from registry.show.pictures import to_uint8

Input = Literal["uint8", "unit", "signed", "imagenet"]
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""Of ImageNet's training set, for pixels in [0, 1]: what most networks from torchvision, timm and DINOv2 expect."""


class ScriptedNetwork(FeatureNetwork):
    """A TorchScript program: RGB images [n, 3, size, size] -> features [n, d].

    `input` is what it takes: pixels as uint8, values in [0, 1] ("unit") or [−1, 1] ("signed"), or values in [0, 1] normalised
    with ImageNet's mean and standard deviation. Images are first rounded to pixels, as if they had been saved, and resized to
    `size` (bicubic, with antialiasing, as Pillow does it) unless that is None. Raises UserError if the file is no such program.
    """

    def __init__(self, path: Path, input: Input = "uint8", size: int | None = None) -> None:
        super().__init__()
        try:
            with open(path, "rb") as file:
                sha256 = hashlib.file_digest(file, "sha256").hexdigest()[:16]
            self.net = torch.jit.load(path, map_location="cpu").eval()
        except OSError as error:
            raise UserError(f"{path}: cannot be read: {error.strerror or error}") from None
        except (RuntimeError, ValueError):
            raise UserError(f"{path}: not a TorchScript program, or damaged") from None
        self.path, self.input, self.size = path, input, size
        self.hash = f"{sha256}-{input}-{size or 'as-is'}"
        self.details = {"features": path.name, "features_hash": sha256, "input": input}
        self.details |= {} if size is None else {"size": size, "resized": "bicubic, antialiased"}

    @torch.no_grad()
    def rows(self, images: Tensor) -> Tensor:
        self.net.to(images.device)
        with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
            return torch.cat([self.net(self.prepare(part)).float().flatten(1).cpu() for part in images.split(self.batch)])

    def prepare(self, images: Tensor) -> Tensor:
        """What the program is given: images [n, C, H, W] in [−1, 1] -> [n, 3, size, size], uint8 or float32."""
        pixels = rgb(to_uint8(images))
        if self.size is not None:
            resized = F.interpolate(pixels.float(), size=(self.size, self.size), mode="bicubic", antialias=True)
            pixels = resized.round().clip(0, 255).to(torch.uint8)
        if self.input == "uint8":
            return pixels
        unit = pixels.float() / 255
        if self.input == "imagenet":
            return (unit - unit.new_tensor(MEAN)[:, None, None]) / unit.new_tensor(STD)[:, None, None]
        return unit if self.input == "unit" else 2 * unit - 1

    def check(self, image_shape: tuple[int, int, int]) -> None:
        """Try it on images of this shape, which tells its dimension. Raises SettingError."""
        x = torch.linspace(-1, 1, 3).reshape(3, 1, 1, 1).expand(3, *image_shape)
        try:
            rows = self.rows(x)
            alone = torch.cat([self.rows(image) for image in x.split(1)])
        except (RuntimeError, AttributeError, TypeError) as error:
            problem = f"it cannot take {self.given(x)}: {str(error).strip().splitlines()[-1]}"
        else:
            problem = ""
            if rows.ndim != 2 or len(rows) != len(x):
                problem = f"gives {list(rows.shape)} for 3 images; a feature network gives one row per image"
            elif not rows.isfinite().all():
                problem = f"gives features that are not finite for {self.given(x)}"
            elif not torch.allclose(rows, alone, rtol=1e-2, atol=1e-2 * float(rows.abs().max())):
                problem = "gives an image other features in a batch than alone; save the network in eval mode"
        if problem:
            raise SettingError("features", problem, str(self.path))
        self.dimension = rows.shape[1]

    def given(self, images: Tensor) -> str:
        """What it is given for these images, in words."""
        x = self.prepare(images)
        return f"{str(x.dtype).removeprefix('torch.')} images of {'×'.join(map(str, x.shape[1:]))} (input = {self.input!r})"


def is_torchscript(path: Path) -> bool:
    """Whether a file is a TorchScript archive, judged by the names in it."""
    try:
        with zipfile.ZipFile(path) as archive:
            return any(name.endswith("/constants.pkl") for name in archive.namelist())
    except (OSError, zipfile.BadZipFile):
        return False


open_torchscript = functools.cache(ScriptedNetwork)
"""One network for all metrics that use it in the same way, so that they share its features."""
