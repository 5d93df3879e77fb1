"""Draws the pictures of method.md: `python docs/method.py`, a minute or two. All three come from exact denoisers or a real run."""

from __future__ import annotations

import itertools
import math
import tempfile
from pathlib import Path

import matplotlib
import numpy as np
import torch
from matplotlib import pyplot
from matplotlib.axes import Axes
from scipy.stats import t as student_t
from torch import Tensor

from ipfm_plugin.loss import ipfm_objective
from registry import distill, load_generator
from registry.core.streams import Streams
from registry.train.kernels import log_kernel

matplotlib.use("Agg")
FOLDER = Path(__file__).parent / "method"
DATA, TEACHER, STUDENT, GENERATED, GREY = "#222222", "#1f77b4", "#d95f02", "#7fb069", "#999999"
pyplot.rcParams.update({"font.size": 10, "axes.spines.top": False, "axes.spines.right": False, "savefig.dpi": 130})


def denoised(x: Tensor, points: Tensor, sigma: float, D: float) -> Tensor:
    """E[y | x_r = x] for y uniform on points [m, N]: x [n, N] -> [n, N]."""
    distance2 = ((x[:, None] - points) ** 2).sum(2)
    return log_kernel(distance2, torch.tensor(sigma), points.shape[1], D).softmax(1) @ points


def field_lines() -> None:
    """Trajectories dx/dsigma = (x − f*(x; sigma))/sigma to three points on a line, for three D. Each carries as many images."""
    points = torch.tensor([[-1.0], [0.2], [1.0]])
    sigmas = np.geomspace(4.0, 0.01, 500)
    figure, panels = pyplot.subplots(1, 3, figsize=(10, 3.6), sharey=True, layout="constrained")
    for panel, D in zip(panels, (1.0, 3.0, math.inf), strict=True):
        x = torch.from_numpy(sigmas[0] * student_t.ppf((np.arange(60) + 0.5) / 60, df=D)).float()[:, None]
        path = [x]
        for high, low in itertools.pairwise(sigmas):
            slope = (x - denoised(x, points, float(high), D)) / high
            middle = x + (low - high) * slope
            slope = (slope + (middle - denoised(middle, points, float(low), D)) / low) / 2  # Heun
            x = x + (low - high) * slope
            path.append(x)
        panel.plot(torch.cat(path, 1).T, sigmas, color=TEACHER, linewidth=0.7, alpha=0.8)
        panel.plot(points[:, 0], [0] * len(points), "o", color=DATA, clip_on=False, zorder=3)
        panel.set(title=f"D = {'∞ (diffusion)' if math.isinf(D) else f'{D:g}'}", xlabel="x", xlim=(-16, 16), ylim=(0, 4))
    panels[0].set_ylabel("sigma = r/√D")
    figure.savefig(FOLDER / "field_lines.png")
    pyplot.close(figure)


def ring(n: int = 8) -> Tensor:
    angles = torch.arange(n) * 2 * math.pi / n
    return torch.stack([angles.cos(), angles.sin()], 1)


def two_denoisers() -> None:
    """What teacher and student say at one perturbed point, and where the loss moves the image."""
    points = ring()
    made = torch.tensor([0.35, 0.1]) + 0.45 * torch.randn(400, 2, generator=torch.Generator().manual_seed(1))
    sigma, D = 0.5, 128.0
    figure, panels = pyplot.subplots(1, 2, figsize=(9.6, 5.2), layout="constrained")
    for panel, start, offset, title in (
        (panels[0], (-0.5, 0.3), (-0.45, 0.35), "one image"),
        (panels[1], None, None, "the mean over noise, for many images"),
    ):
        panel.plot(*made.T, ".", color=GENERATED, markersize=3, label="the generator's images")
        panel.plot(*points.T, "o", color=DATA, label="data")
        if start is not None and offset is not None:
            one_image(panel, torch.tensor([start]), torch.tensor([offset]), points, made, sigma, D)
        else:
            drift(panel, made[:40], points, made, sigma, D)
        panel.set(title=title, xlim=(-1.6, 1.6), ylim=(-1.5, 1.5), aspect="equal")
        panel.axis("off")
    known = {label: handle for panel in panels for handle, label in zip(*panel.get_legend_handles_labels(), strict=True)}
    figure.legend(known.values(), known.keys(), loc="outside lower center", ncols=3, frameon=False, fontsize=9)
    figure.savefig(FOLDER / "two_denoisers.png")
    pyplot.close(figure)


def one_image(panel: Axes, x: Tensor, offset: Tensor, points: Tensor, made: Tensor, sigma: float, D: float) -> None:
    x_r = x + offset
    f_star, f = denoised(x_r, points, sigma, D), denoised(x_r, made, sigma, D)
    panel.plot(*x.T, "o", color="#3a6b35", zorder=4)
    panel.annotate("x", x[0], xytext=(-12, -4), textcoords="offset points")
    panel.plot(*torch.cat([x, x_r]).T, ":", color=GREY)
    panel.plot(*x_r.T, "s", color=GREY, zorder=4)
    panel.annotate("x + noise of level sigma", x_r[0], xytext=(-8, 9), textcoords="offset points", color="#555555")
    for found, color, name in ((f_star, TEACHER, "teacher"), (f, STUDENT, "student")):
        panel.annotate("", found[0], xytext=x_r[0], arrowprops={"arrowstyle": "->", "color": color, "lw": 1.8})
        panel.plot([], [], color=color, label=f"what the {name} takes for the image")


def drift(panel: Axes, x: Tensor, points: Tensor, made: Tensor, sigma: float, D: float, draws: int = 400) -> None:
    """Minus the gradient of L_1 at x, teacher and student held fixed."""
    x = x.clone().requires_grad_()
    rng = Streams(range(draws))
    scale = (D / 2 / rng.gamma(D / 2)).sqrt().float()[:, None]
    noise = sigma * scale * rng.normal((2,))
    x_r = (x[:, None] + noise).reshape(-1, 2)
    f_star, f = denoised(x_r, points, sigma, D), denoised(x_r, made, sigma, D)
    loss = ipfm_objective(x.repeat_interleave(draws, 0), f_star, f, 1.0).sum() / draws
    (gradient,) = torch.autograd.grad(loss, x)
    start = x.detach()
    panel.quiver(*start.T, *(-gradient).T, color="#3a6b35", angles="xy", scale_units="xy", scale=1.2, width=0.005, zorder=4)
    panel.plot([], [], color="#3a6b35", label="where the generator's loss moves an image")


def moving_generator() -> None:
    """The toy's generator at its start and at snapshots of a run."""
    with tempfile.TemporaryDirectory() as folder:
        sets = {"log.outdir": folder, "log.snapshot_ticks": 1, "eval.metrics": [], "train.duration_kimg": 64, "log.tick_kimg": 4}
        run = distill("toy_2d", sets=sets).folder
        files = sorted(run.glob("network-snapshot-*.pt"), key=lambda path: int(path.stem.rpartition("-")[2]))
        chosen = [files[i] for i in (0, 1, 3, len(files) - 1)]
        figure, panels = pyplot.subplots(1, len(chosen), figsize=(11, 3.1), layout="constrained")
        for panel, file in zip(panels, chosen, strict=True):
            x = load_generator(file).sample(2000, batch=2000).flatten(1)
            panel.plot(*x.T, ".", color=GENERATED, markersize=2)
            panel.plot(*ring().T, "o", color=DATA, markersize=4)
            kimg = int(file.stem.rpartition("-")[2])
            panel.set(title=f"after {kimg},000 images", xlim=(-1.6, 1.6), ylim=(-1.6, 1.6), aspect="equal")
            panel.axis("off")
        figure.savefig(FOLDER / "generator.png")
        pyplot.close(figure)


if __name__ == "__main__":
    FOLDER.mkdir(exist_ok=True)
    field_lines()
    two_denoisers()
    moving_generator()
