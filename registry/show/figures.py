"""Figures drawn with matplotlib in one style: curves over kimg, points in the plane."""

from __future__ import annotations

import io
import os
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from registry.core.atomic import write_atomically
from registry.core.errors import UserError
from registry.core.text import printable, shown
from registry.core.version import install

if TYPE_CHECKING:
    from matplotlib.figure import Figure

INK, ACCENT, SECOND, FAINT = "#22303c", "#c8553d", "#2a7f9e", "#c9d1d6"
LINES = (ACCENT, SECOND, INK, "#c99b2f", "#8a6fb0")
MOST_OF_LABEL = 28
"""Characters that fit beside a panel."""
MARGINS = (0.15, 0.6, 0.55)
"""Inches at the right, at the top (a title, and an axis's offset below it) and bottom. A layout that matplotlib works out itself
takes as long as the drawing."""


def save_figure(path: Path, figure: Figure) -> None:
    """Write a figure as PNG. Raises UserError."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110)
    write_atomically(path, buffer.getvalue())


@contextmanager
def drawing() -> Iterator[None]:
    """matplotlib as it comes, whatever settings its user has: figures look alike everywhere. Names of runs are drawn as they are:
    a $ begins no formula, and signs that the font lacks are boxes without a warning. Raises UserError if it cannot be used."""
    load_matplotlib()
    import matplotlib

    with matplotlib.rc_context(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        matplotlib.rcdefaults()
        matplotlib.rcParams["text.parse_math"] = False
        yield


def load_matplotlib() -> None:
    """Load it without the backend that the environment names for windows and notebooks, and that may be missing here. Raises
    UserError."""
    backend, first = os.environ.pop("MPLBACKEND", None), "matplotlib" not in sys.modules
    try:
        import matplotlib
    except ImportError:
        raise UserError(f"figures need matplotlib: {install('plots')}") from None
    except Exception as error:  # its user's settings cannot be read
        raise UserError(f"matplotlib cannot be used: {type(error).__name__}: {shown(error, 200)}") from None
    finally:
        if backend is not None:
            os.environ["MPLBACKEND"] = backend
    if backend and first:
        with suppress(ValueError):
            matplotlib.rcParams["backend"] = backend  # for what else may draw in this process


def _figure(rows: int, size: tuple[float, float], left: float) -> tuple[Figure, Any]:
    from matplotlib.figure import Figure

    figure, (width, height) = Figure(figsize=size), size
    right, top, bottom = MARGINS
    axes = figure.subplots(rows, 1, sharex=rows > 1, squeeze=False)[:, 0]
    figure.subplots_adjust(left / width, bottom / height, 1 - right / width, 1 - top / height, hspace=0.16)
    for ax in axes:
        ax.spines[["top", "right"]].set_visible(False)
        ax.spines[["left", "bottom"]].set_color(FAINT)
        ax.tick_params(colors=INK, labelsize=9)
        ax.grid(color=FAINT, linewidth=0.5, alpha=0.6)
        ax.set_axisbelow(True)
    return figure, axes


@drawing()
def save_scatter(path: Path, points: Any, real: Any = None) -> None:
    """Write a PNG of points in the plane [n, 2] and, if given, the real ones [m, 2]. Raises UserError."""
    figure, (ax,) = _figure(1, (6, 6), left=0.6)
    ax.scatter(points[:, 0], points[:, 1], s=6, color=SECOND, alpha=0.35, linewidths=0, label=f"generated ({len(points)})")
    if real is not None:
        ax.scatter(real[:, 0], real[:, 1], s=70, color=ACCENT, marker="x", linewidths=1.8, label=f"real ({len(real)})")
    ax.set(xlim=(-1.5, 1.5), ylim=(-1.5, 1.5), aspect="equal")
    ax.legend(loc="upper right", fontsize=9, frameon=False, labelcolor=INK)
    save_figure(path, figure)


@drawing()
def save_curves(path: Path, panels: Sequence[tuple[str, dict[str, tuple[list[float], list[float]]], bool]], title: str) -> None:
    """Write a PNG of stacked panels (axis label, {name: (kimg, values)}, logarithmic?) over kimg. Raises UserError."""
    panels = [p for p in panels if any(len(x) for x, _ in p[1].values())]
    if not panels:
        return
    width, left = 7.5, 0.95
    figure, axes = _figure(len(panels), (width, 1.1 + 2.3 * len(panels)), left)
    from matplotlib.ticker import LogLocator

    for ax, (label, curves, logarithmic) in zip(axes, panels, strict=True):
        for (name, (x, y)), color in zip(curves.items(), LINES, strict=False):
            ax.plot(x, y, color=color, linewidth=1.6, marker="o" if len(x) < 30 else None, markersize=3, label=printable(name))
        if logarithmic and all(v > 0 for _, y in curves.values() for v in y):
            ax.set_yscale("log")
            ax.yaxis.set_major_locator(LogLocator(subs=(1, 1.5, 2, 3, 5, 7)))
            ax.yaxis.set_major_formatter("{x:.4g}")  # of numbers that hardly change, three digits may be alike
            ax.yaxis.set_minor_formatter("")
        ax.set_ylabel(shown(label, MOST_OF_LABEL), color=INK, fontsize=10)
        if len(curves) > 1:
            ax.legend(fontsize=9, frameon=False, labelcolor=INK)
        ax.yaxis.set_label_coords(-0.75 * left / (width - left - MARGINS[0]), 0.5)
    axes[-1].set_xlabel("thousands of images (kimg)", color=INK, fontsize=10)
    figure.suptitle(printable(title), color=INK, fontsize=11)
    save_figure(path, figure)
