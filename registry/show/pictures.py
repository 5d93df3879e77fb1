"""Pictures of samples: pixels, grids, single images. Files are written whole or not at all."""

from __future__ import annotations

import io
import math
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from registry.core.atomic import write_atomically
from registry.show.figures import save_scatter


def to_uint8(images: Tensor) -> Tensor:
    """clip(x·127.5 + 128, 0, 255) as uint8, as EDM converts samples: [..., C, H, W]."""
    return (images * 127.5 + 128).clip(0, 255).to(torch.uint8)


def as_pixels(images: Tensor) -> np.ndarray:
    """Images [n, C, H, W] in [−1, 1] as uint8 [n, H, W, C]; points in the plane keep their values."""
    array = images if images.shape[1:] == (2, 1, 1) else to_uint8(images)
    return array.permute(0, 2, 3, 1).cpu().numpy()


def as_picture(pixels: np.ndarray) -> Image.Image:
    """One image [H, W, C] of 1 or 3 channels."""
    return Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels)


def grid(images: Tensor, columns: int, gap: int = 1, min_pixels: int = 512) -> Image.Image:
    """Images [n, C, H, W] in [−1, 1] as a grid. Small grids are enlarged by a whole factor without smoothing."""
    pixels = to_uint8(images.cpu())
    n, channels, height, width = pixels.shape
    rows = math.ceil(n / columns)
    canvas = torch.full((channels, rows * (height + gap) + gap, columns * (width + gap) + gap), 40, dtype=torch.uint8)
    for i, image in enumerate(pixels):
        y, x = gap + i // columns * (height + gap), gap + i % columns * (width + gap)
        canvas[:, y : y + height, x : x + width] = image
    array = canvas.permute(1, 2, 0).numpy()
    picture = Image.fromarray(array[..., 0] if channels == 1 else np.ascontiguousarray(array[..., :3]))
    factor = max(1, min_pixels // max(picture.size))
    return picture.resize((picture.width * factor, picture.height * factor), Image.Resampling.NEAREST)


def save_samples(path: Path, images: Tensor, columns: int, real: Tensor | None = None) -> None:
    """Save a grid of images; for points in the plane ([n, 2, 1, 1]), a scatter plot with the real ones. Raises UserError."""
    if images.shape[1:] == (2, 1, 1):
        save_scatter(path, images.flatten(1).cpu().numpy(), None if real is None else real.flatten(1).cpu().numpy())
    else:
        save_image(path, grid(images, columns))


def save_image(path: Path, picture: Image.Image, durable: bool = True) -> None:
    """Write a PNG file whole or not at all. Raises UserError."""
    buffer = io.BytesIO()
    picture.save(buffer, format="PNG")
    write_atomically(path, buffer.getvalue(), durable)
