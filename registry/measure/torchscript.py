"""A feature network of the user's, such as DINOv2, exported as TorchScript. Its program runs in torch's interpreter."""

from __future__ import annotations

import functools
import hashlib
import re
import warnings
import zipfile
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from registry.core.errors import SettingError, UserError
from registry.core.text import shown
from registry.core.zips import content_of
from registry.measure.feature_network import FeatureNetwork, rgb
from registry.show.pictures import to_uint8

Input = Literal["uint8", "unit", "signed", "imagenet"]
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""Of ImageNet's training set, for pixels in [0, 1]: what most networks from torchvision, timm and DINOv2 expect."""


MARGIN, DEEPEST = 2**26, 500
"""Bytes that the records of a program may take beyond twice its file; brackets that may be open at a time."""


class ScriptedNetwork(FeatureNetwork):
    """A TorchScript program: RGB images [n, 3, size, size] -> features [n, d].

    `input` is what it takes: pixels as uint8, values in [0, 1] ("unit") or [−1, 1] ("signed"), or values in [0, 1] normalised
    with ImageNet's mean and standard deviation. Images are first rounded to pixels, as if they had been saved, and resized to
    `size` (Pillow's bicubic) unless that is None. Raises UserError if the file is no such program.
    """

    def __init__(self, path: Path, input: Input = "uint8", size: int | None = None) -> None:
        super().__init__()
        try:
            with open(path, "rb") as file:
                sha256 = hashlib.file_digest(file, "sha256").hexdigest()[:16]
            check_size(path)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                self.net = torch.jit.load(path, map_location="cpu").eval()
        except UserError:
            raise
        except OSError as error:
            raise UserError(f"{path}: cannot be read: {error.strerror or error}") from None
        except Exception:  # torch's own reader has many ways to fail
            raise UserError(f"{path}: not a TorchScript program, or damaged") from None
        self.path, self.name, self.input, self.size = path, path.name, input, size
        self.hash = f"{sha256}-{input}-{size or 'as-is'}"
        self.details = {"features": path.name, "features_hash": sha256, "input": input}
        self.details |= {} if size is None else {"size": size, "resized": "Pillow's bicubic"}

    @torch.no_grad()
    def rows(self, images: Tensor) -> Tensor:
        self.net.to(images.device)
        try:
            with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
                return torch.cat([self.net(self.prepare(part)).float().flatten(1).cpu() for part in images.split(self.batch)])
        except torch.OutOfMemoryError:
            raise
        except (RuntimeError, torch.jit.Error) as error:
            raise UserError(f"{self.path}: this program fails: {last_line(error)}") from None

    def prepare(self, images: Tensor) -> Tensor:
        """What the program is given: images [n, C, H, W] in [−1, 1] -> [n, 3, size, size], uint8 or float32."""
        pixels = rgb(to_uint8(images))
        if self.size is not None:
            pixels = resized(pixels, self.size)
        if self.input == "uint8":
            return pixels
        unit = pixels.float() / 255
        if self.input == "imagenet":
            return (unit - unit.new_tensor(MEAN)[:, None, None]) / unit.new_tensor(STD)[:, None, None]
        return unit if self.input == "unit" else 2 * unit - 1

    def check(self, image_shape: tuple[int, int, int]) -> None:
        """Try it on images of this shape, which tells its dimension. Raises SettingError."""
        images = torch.linspace(-1, 1, 3).reshape(3, 1, 1, 1).expand(3, *image_shape)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                problem = self.fault(images)
        except (RuntimeError, AttributeError, torch.jit.Error) as error:
            x = self.prepare(images)
            given = f"{str(x.dtype).removeprefix('torch.')} images of {'×'.join(map(str, x.shape[1:]))} (input = {self.input!r})"
            problem = f"it cannot take {given}: {last_line(error)}"
        if problem:
            raise SettingError("features", problem, str(self.path))
        self.dimension = self.rows(images).shape[1]

    @torch.no_grad()
    def fault(self, images: Tensor) -> str:
        """What is wrong with its answer for images [n, C, H, W]; empty if nothing is. Raises RuntimeError if it does."""
        answer = self.net(self.prepare(images))
        if not isinstance(answer, Tensor) or answer.ndim < 2 or len(answer) != len(images):
            what = list(answer.shape) if isinstance(answer, Tensor) else f"a {type(answer).__name__}"
            return f"gives {what} for {len(images)} images; a feature network gives one row per image"
        if answer.is_complex() or not answer[0].numel():
            return "gives complex numbers" if answer.is_complex() else "gives no features"
        rows = self.rows(images)
        if not rows.isfinite().all():
            return "gives features that are not finite"
        alone = torch.cat([self.rows(image) for image in images.split(1)])
        if not torch.allclose(rows, alone, rtol=1e-2, atol=1e-2 * float(rows.abs().max())):
            return "gives an image other features in a batch than alone; save the network in eval mode"
        return ""


def check_size(path: Path) -> None:
    """Check that a program takes not much more than its file, and that torch's reader, which recurs, has not to go too deep.

    Raises UserError.
    """
    with zipfile.ZipFile(path) as archive:
        if sum(entry.file_size for entry in archive.infolist()) > 2 * path.stat().st_size + MARGIN:
            raise UserError(f"{path}: its records take far more than the file: it holds nothing but its size")
        for entry in archive.infolist():
            text = re.search(r"\.(py|pkl)(?:\0|$)", entry.orig_filename.lower())  # torch takes names in any case, and up to a NUL
            if text and is_nested(content_of(archive, entry), text[1] == "py"):
                raise UserError(f"{path}: not a TorchScript program, or damaged")


def is_nested(record: bytes, code: bool) -> bool:
    """Whether there are more brackets open at a time in a text, or more tuples of one value in a pickle, than in any program."""
    if not code:
        return any(run * DEEPEST in record for run in (b"\x85", b"\x28", b"\x5d"))  # TUPLE1, MARK, EMPTY_LIST
    depth = deepest = 0
    for byte in re.findall(rb"[(\[{)\]}]", record):
        depth += 1 if byte in b"([{" else -1
        deepest = max(deepest, depth)
    return deepest > DEEPEST


def last_line(error: Exception) -> str:
    """What torch's interpreter says at last: the lines before it are those of the program."""
    return shown((str(error).strip().splitlines() or ["it fails"])[-1])


def resized(pixels: Tensor, size: int) -> Tensor:
    """uint8 [n, 3, H, W] -> [n, 3, size, size], exactly as Pillow does it, and so the same on every device."""
    arrays = pixels.permute(0, 2, 3, 1).cpu().numpy()
    pictures = [Image.fromarray(array).resize((size, size), Image.Resampling.BICUBIC) for array in arrays]
    return torch.from_numpy(np.stack([np.asarray(picture) for picture in pictures])).permute(0, 3, 1, 2).to(pixels.device)


def is_torchscript(path: Path) -> bool:
    """Whether a file is a TorchScript archive, judged by the names in it."""
    try:
        with zipfile.ZipFile(path) as archive:
            return any(name.endswith("/constants.pkl") for name in archive.namelist())
    except (OSError, zipfile.BadZipFile):
        return False


open_torchscript = functools.cache(ScriptedNetwork)
"""One network for all metrics that use it in the same way, so that they share its features."""
