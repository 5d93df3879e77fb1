"""Loads training images: EDM's data-set layout (folder or ZIP with dataset.json) and scikit-learn's digits."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import lzma
import os
import re
import zipfile
import zlib
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from registry.core.errors import UserError
from registry.core.text import cut, shown
from registry.core.version import install
from registry.core.zips import content_of
from registry.edm.image_files import SUFFIXES, files_below, open_picture

IMAGES = tuple(SUFFIXES)
MOST_CLASSES = 100_000
"""Labels become rows with one column for each class."""
MOST_LISTS = 1_000_000
"""In a dataset.json, beside two for each image."""
MOST_BYTES, MOST_RATIO, SMALL = 2**28, 30, 2**22
"""Of a ZIP's member when it is unpacked: bytes; times what it takes in the file, if it is not small."""

MOST_EMPTY, EMPTY_RATIO = 2**27, 100
"""Bytes of all images in memory, that may be many times those in the files: what is written on pictures is hard to pack."""
AT_A_TIME = 1024
"""Images that are put together at a time: the memory of few is in use twice."""
Told = Callable[[int, int], object]
"""Called with how many are done, and of how many."""


@dataclass(frozen=True)
class Images:
    """A set of images in memory: uint8 values [n, C, H, W], and class numbers [n] or None."""

    pixels: Tensor
    classes: Tensor | None
    origin: str
    levels: float = 127.5
    """x = pixels/levels − 1 lies in [−1, 1]."""

    def __len__(self) -> int:
        return len(self.pixels)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        _, c, h, w = self.pixels.shape
        return c, h, w

    @property
    def label_dim(self) -> int:
        return 0 if self.classes is None else int(self.classes.max()) + 1

    def hash(self) -> str:
        """A short hash of all values and classes."""
        digest = hashlib.blake2b(f"{tuple(self.pixels.shape)}{self.levels}".encode(), digest_size=8)
        for tensor in (self.pixels, *([] if self.classes is None else [self.classes])):
            digest.update(tensor.contiguous().numpy().data)
        found: str = digest.hexdigest()
        return found

    def x(self) -> Tensor:
        """All images as float32 in [−1, 1]: [n, C, H, W]."""
        return self.pixels.to(torch.float32) / self.levels - 1

    def one_hot(self, index: Tensor) -> Tensor | None:
        """Labels of the images at `index` [B] as one-hot rows [B, label_dim], or None without classes."""
        if self.classes is None:
            return None
        return torch.nn.functional.one_hot(self.classes[index], self.label_dim).to(torch.float32)


UNREADABLE = (
    zipfile.BadZipFile, zlib.error, lzma.LZMAError, EOFError, OSError, NotImplementedError, RuntimeError, ValueError,
)  # fmt: skip
"""What a damaged ZIP leads to: each kind of compression has errors of its own."""


def load_images(source: str, most: int | None = None, told: Told | None = None) -> Images:
    """Load `digits`, or a folder or uncompressed ZIP of square images in EDM's layout, or `most` of these.

    `told` is called now and then with how many are read, and of how many. Raises UserError.
    """
    if source == "digits":
        return _digits()
    path = Path(os.path.expanduser(source))
    if os.path.isdir(path):
        files = {p.relative_to(path).as_posix(): p for p in files_below(path)}
        return _read(str(path), list(files), lambda name: files[name].read_bytes(), most, told)
    if os.path.isfile(path) and zipfile.is_zipfile(path):
        try:
            with zipfile.ZipFile(path) as archive:
                check_members(archive, path)
                return _read(str(path), sorted(archive.namelist()), partial(member_of, archive), most, told)
        except UNREADABLE as error:
            raise UserError(f"{source}: is not a ZIP of images, or is damaged: {shown(error)}") from None
    if os.path.exists(path):
        what = "is a ZIP that is cut off or damaged" if was_zip(path) else "neither a folder nor a ZIP of images"
        raise UserError(f"{source}: {what}")
    raise UserError(f"{cut(source)}: no such data set; give 'digits', or a folder or ZIP of images in EDM's layout")


def was_zip(path: Path) -> bool:
    """Whether a file begins as a ZIP does."""
    if path.is_file():  # and no pipe, which would be waited for
        with suppress(OSError), open(path, "rb") as file:
            return file.read(4) == b"PK\3\4"
    return False


def member_of(archive: zipfile.ZipFile, name: str) -> bytes:
    """What the member of this name holds."""
    return content_of(archive, archive.getinfo(name))


def check_members(archive: zipfile.ZipFile, source: object) -> None:
    """Check that no member unpacks to much more than it takes in the file: few bytes can say that they hold gigabytes. And that no
    two have one name, of which only the last could be read."""
    names = Counter(archive.namelist())
    if twice := [name for name, count in names.items() if count > 1]:
        raise UserError(f"{source}: holds {shown(twice[0], 60)} more than once")
    if sum(member.compress_size for member in archive.infolist()) > os.path.getsize(str(archive.filename)):
        raise UserError(f"{source}: is not a ZIP of images, or is damaged: its members lie in each other")
    for member in archive.infolist():
        if member.file_size > min(MOST_BYTES, max(SMALL, MOST_RATIO * member.compress_size)):
            size = f"{member.file_size / 2**20:,.0f} MiB"
            raise UserError(f"{source}: its {shown(member.filename, 60)} would take {size}, which no image or list of labels does")


def _digits() -> Images:
    """The 1,797 real 8×8 digits that come with scikit-learn (UCI): 17 grey levels, ten classes."""
    package = importlib.util.find_spec("sklearn")
    if package is None or not package.submodule_search_locations:
        raise UserError(f"the digits come with scikit-learn, which is not installed: {install('digits')}")
    file = Path(package.submodule_search_locations[0]) / "datasets" / "data" / "digits.csv.gz"
    if os.path.isfile(file):  # to import scikit-learn takes a second
        rows = np.loadtxt(file, delimiter=",")
        images, target = rows[:, :-1].reshape(-1, 8, 8), rows[:, -1]
    else:
        from sklearn.datasets import load_digits

        images, target = load_digits().images, load_digits().target
    pixels = torch.from_numpy(images.astype(np.uint8))[:, None]
    return Images(pixels, torch.from_numpy(target.astype(np.int64)), "digits", levels=8.0)


STRIP = 256
"""Rows of a picture that are converted at a time."""


def grey_or_rgb(image: Image.Image) -> Image.Image:
    """The image with 8 bits per channel. Palettes, transparency and other bit depths are converted."""
    if image.mode in ("L", "RGB"):
        return image
    if image.mode.startswith("I"):  # 16 bits and more
        values = np.asarray(image)
        found = np.empty(values.shape, np.uint8)
        for i in range(0, len(values), STRIP):  # few bytes at a time
            found[i : i + STRIP] = (values[i : i + STRIP].clip(0, 65535).astype(np.uint32) + 128) // 257  # the nearest of 0 … 255
        return Image.fromarray(found)
    image.info.pop("transparency", None)  # it is dropped anyway, and Pillow would warn
    return image.convert("L" if image.mode in ("1", "F", "LA") else "RGB")


def _read(origin: str, names: list[str], read: Callable[[str], bytes], most: int | None = None, told: Told | None = None) -> Images:
    pictures = [n for n in names if n.lower().endswith(IMAGES)]
    pictures = pictures[:: max(len(pictures) // most, 1)][:most] if most else pictures
    if not pictures:
        raise UserError(f"{origin}: no images in it ({', '.join(IMAGES)})")
    blocks, block = list[np.ndarray](), list[np.ndarray]()
    shape: tuple[int, ...] = ()
    packed = unpacked = 0
    for i, name in enumerate(pictures, 1):
        try:
            content = read(name)
            array = np.asarray(grey_or_rgb(open_picture(content)))
        except Exception as error:
            reason = re.sub(r"<_io.BytesIO object at \w+>", "it", shown(error)) or type(error).__name__
            raise UserError(f"{origin}: {shown(name)} is not a readable image: {reason}") from None
        array = array[None] if array.ndim == 2 else array.transpose(2, 0, 1)
        if array.shape[1] != array.shape[2]:
            raise UserError(f"{origin}: {name} is {array.shape[2]}×{array.shape[1]}; images must be square")
        shape = shape or array.shape
        if array.shape != shape:
            raise UserError(f"{origin}: {name} has shape {array.shape}, {pictures[0]} has {shape}; all must have the same shape")
        packed, unpacked = packed + len(content), unpacked + array.nbytes
        if unpacked > max(MOST_EMPTY, EMPTY_RATIO * packed):
            raise UserError(
                f"{origin}: its images take {unpacked / packed:,.0f} times the memory that they take in the file: they are empty"
            )
        block.append(array.astype(np.uint8))
        if len(block) == AT_A_TIME or i == len(pictures):
            blocks.append(np.stack(block))
            block.clear()
        if told:
            told(i, len(pictures))
    return Images(torch.from_numpy(_joined(blocks)), _classes(origin, names, pictures, read), origin)


def _joined(blocks: list[np.ndarray]) -> np.ndarray:
    """The images of all blocks [b, C, H, W] as one array [n, C, H, W].

    The list is emptied on the way, so that no two copies of everything are in memory.
    """
    rows = sum(map(len, blocks))
    found, at = np.empty((rows, *blocks[0].shape[1:]), np.uint8), 0
    for _ in range(len(blocks)):
        block = blocks.pop(0)
        found[at : at + len(block)] = block
        at += len(block)
    return found


def _classes(origin: str, names: list[str], pictures: list[str], read: Callable[[str], bytes]) -> Tensor | None:
    if "dataset.json" not in names:
        return None
    of = readable_labels(origin, read("dataset.json"), pictures)
    return None if of is None else torch.tensor([of[n] for n in pictures])


def whole_number(value: Any) -> int:
    """A class number of a dataset.json. Raises ValueError if it is none."""
    if type(value) is not int and not (type(value) is float and value.is_integer()):
        raise ValueError(f"{value!r} is no class number")
    return int(value)


def readable_labels(origin: str, content: bytes, pictures: Sequence[str]) -> dict[str, int] | None:
    """The class numbers by file name in a dataset.json, or None if it has no labels. Raises UserError if a picture has none."""
    if content.count(b"[") + content.count(b"{") > MOST_LISTS + 2 * len(pictures):
        raise UserError(f"{origin}: dataset.json holds far more lists than there are images")
    if content.count(b",") > 2 * MOST_LISTS + 8 * len(pictures):
        raise UserError(f"{origin}: dataset.json holds far more values than there are images")
    try:
        labels: Any = json.loads(content)["labels"]
        pairs = None if labels is None else [(str(name), whole_number(number)) for name, number in labels]
    except (ValueError, KeyError, TypeError, OverflowError, RecursionError) as error:
        raise UserError(f"{origin}: dataset.json is not EDM's {{'labels': [[name, class], …]}}: {shown(repr(error))}") from None
    found = None if pairs is None else dict(pairs)
    if found is not None and pairs is not None and len(found) != len(pairs):
        twice = next(name for name, count in Counter(name for name, _ in pairs).items() if count > 1)
        raise UserError(f"{origin}: dataset.json has {shown(twice, 60)} more than once")
    wrong = next((label for label in (found or {}).values() if not 0 <= label < MOST_CLASSES), None)
    if wrong is not None:
        raise UserError(f"{origin}: dataset.json has the class {shown(wrong, 30)}; classes are 0 to {MOST_CLASSES - 1:,}")
    missing = [] if found is None else [name for name in pictures if name not in found]
    if missing:
        raise UserError(f"{origin}: dataset.json has no label for {shown(missing[0])} ({len(missing)} images have none)")
    return found
