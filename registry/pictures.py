"""What is better seen than read: grids of samples, points in the plane, curves over kimg. Files are written atomically."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from registry.api import UserError
from registry.files import write_atomically

if TYPE_CHECKING:
    from matplotlib.figure import Figure

INK, ACCENT, SECOND, FAINT = "#22303c", "#c8553d", "#2a7f9e", "#c9d1d6"


def to_uint8(images: Tensor) -> Tensor:
    """clip(x·127.5 + 128, 0, 255) as EDM converts samples: [..., C, H, W]."""
    return (images * 127.5 + 128).clip(0, 255).to(torch.uint8)


def grid(images: Tensor, columns: int, gap: int = 1, min_pixels: int = 512) -> Image.Image:
    """Images [n, C, H, W] in [−1, 1] as a grid, small ones enlarged by a whole factor without smoothing."""
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
    """A grid of images; for points in the plane ([n, 2, 1, 1]) a scatter plot against the real ones."""
    if images.shape[1:] == (2, 1, 1):
        save_figure(path, _scatter(images.flatten(1).cpu().numpy(), None if real is None else real.flatten(1).cpu().numpy()))
    else:
        save_image(path, grid(images, columns))


def save_image(path: Path, picture: Image.Image) -> None:
    buffer = io.BytesIO()
    picture.save(buffer, format="PNG")
    write_atomically(path, buffer.getvalue())


def save_figure(path: Path, figure: Figure) -> None:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110)
    write_atomically(path, buffer.getvalue())


def _figure(rows: int, size: tuple[float, float]) -> tuple[Figure, Any]:
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise UserError("pictures of curves and points need matplotlib: pip install 'distill[plots]'") from None
    figure = Figure(figsize=size, layout="constrained")
    axes = figure.subplots(rows, 1, sharex=rows > 1, squeeze=False)[:, 0]
    for ax in axes:
        ax.spines[["top", "right"]].set_visible(False)
        ax.spines[["left", "bottom"]].set_color(FAINT)
        ax.tick_params(colors=INK, labelsize=9)
        ax.grid(color=FAINT, linewidth=0.5, alpha=0.6)
        ax.set_axisbelow(True)
    return figure, axes


def _scatter(points: Any, real: Any) -> Figure:
    figure, (ax,) = _figure(1, (6, 6))
    ax.scatter(points[:, 0], points[:, 1], s=6, color=SECOND, alpha=0.35, linewidths=0, label=f"generated ({len(points)})")
    if real is not None:
        ax.scatter(real[:, 0], real[:, 1], s=70, color=ACCENT, marker="x", linewidths=1.8, label=f"real ({len(real)})")
    ax.set(xlim=(-1.5, 1.5), ylim=(-1.5, 1.5), aspect="equal")
    ax.legend(loc="upper right", fontsize=9, frameon=False, labelcolor=INK)
    return figure


def save_curves(path: Path, panels: Sequence[tuple[str, dict[str, tuple[list[float], list[float]]], bool]], title: str) -> None:
    """Panels (label of the axis, {name: (kimg, values)}, logarithmic?) above each other, over kimg."""
    panels = [p for p in panels if any(len(x) for x, _ in p[1].values())]
    if not panels:
        return
    figure, axes = _figure(len(panels), (7.5, 1.1 + 2.3 * len(panels)))
    for ax, (label, curves, logarithmic) in zip(axes, panels, strict=True):
        for (name, (x, y)), color in zip(curves.items(), (ACCENT, SECOND, INK), strict=False):
            ax.plot(x, y, color=color, linewidth=1.6, marker="o" if len(x) < 30 else None, markersize=3, label=name)
        if logarithmic and all(v > 0 for _, y in curves.values() for v in y):
            ax.set_yscale("log")
            for axis_formatter in (ax.yaxis.set_major_formatter, ax.yaxis.set_minor_formatter):
                axis_formatter("{x:.3g}")
        ax.set_ylabel(label, color=INK, fontsize=10)
        if len(curves) > 1:
            ax.legend(fontsize=9, frameon=False, labelcolor=INK)
    figure.align_ylabels()
    axes[-1].set_xlabel("thousands of images (kimg)", color=INK, fontsize=10)
    figure.suptitle(title, color=INK, fontsize=11)
    save_figure(path, figure)
