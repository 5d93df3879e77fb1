"""The picture of the README: real digits, the teacher at 35 and 9 evaluations, and the one-step generator of a finished run.

python benchmarks/quickstart_picture.py runs/00000-quickstart docs/quickstart.png
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from matplotlib.figure import Figure

from registry import load_plugins
from registry.edm.datasets import load_images
from registry.files.formats import load_network
from registry.recipe.reading import expect, resolve
from registry.recipe.resolved import Recipe
from registry.runs.building import build
from registry.sample.heun import heun_samples
from registry.show.figures import INK, save_figure
from registry.show.pictures import grid
from registry.train.generator import Generator


def main(folder: Path, target: Path, side: int = 8) -> None:
    plugins = load_plugins()
    recipe = expect(resolve(str(folder / "recipe.toml"), plugins), Recipe)
    teacher, noise, _ = build(recipe, plugins)
    net, _ = load_network(max(folder.glob("network-snapshot-*.pkl")), "generator")
    real = load_images("digits").x()
    panels = {
        "real": real[torch.randperm(len(real), generator=torch.Generator().manual_seed(0))[: side**2]],
        "teacher, 35 evaluations": heun_samples(teacher.denoiser, noise, teacher, range(side**2), 18),
        "teacher, 9 evaluations": heun_samples(teacher.denoiser, noise, teacher, range(side**2), 5),
        "generator, 1 evaluation": Generator(net, noise, teacher.image_shape).sample(range(side**2)),
    }
    figure = Figure(figsize=(12, 3.35), layout="constrained")
    for ax, (title, images) in zip(figure.subplots(1, len(panels)), panels.items(), strict=True):
        ax.imshow(grid(images, side), cmap="gray", vmin=0, vmax=255, interpolation="nearest")
        ax.set_title(title, color=INK, fontsize=11, pad=4)
        ax.axis("off")
    save_figure(target, figure)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
