"""The picture of the README: what a seed looks like as the teacher's image, after the warm-up, and after the game.

python benchmarks/quickstart_picture.py runs/00000-quickstart docs/quickstart.png
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from matplotlib.figure import Figure
from torch import Tensor

from registry import load_plugins
from registry.core.streams import Streams
from registry.edm.datasets import load_images
from registry.files.formats import load_network
from registry.recipe.reading import expect, resolve
from registry.recipe.resolved import Recipe
from registry.runs.building import build, build_generator
from registry.sample.heun import heun_images
from registry.show.figures import INK, save_figure
from registry.show.pictures import grid
from registry.train.loop import whole_batches

SEEDS = range(16)


def main(folder: Path, target: Path) -> None:
    plugins = load_plugins()
    recipe = expect(resolve(str(folder / "recipe.toml"), plugins), Recipe)
    teacher, noise, _ = build(recipe, plugins)
    z = noise.prior(teacher.image_shape, 1.0, Streams(SEEDS))

    def teachers(steps: int) -> Tensor:
        return heun_images(teacher.denoiser, noise, teacher.image_shape, 0, steps, Streams(SEEDS), z=noise.sigma_max * z)[0]

    def generators(snapshot: Path) -> Tensor:
        generator = build_generator(recipe, teacher, noise)
        generator.net.load_state_dict(load_network(snapshot, "generator")[0].state_dict())
        return generator.sample(SEEDS)

    snapshots = sorted(p for p in folder.glob("network-snapshot-*.pkl") if "best" not in p.name)
    warm_up = whole_batches(recipe.warmup.kimg, recipe.train.batch) * recipe.train.batch
    warm = next(p for p in snapshots if int(p.stem.rpartition("-")[2]) == warm_up // 1000)
    real = load_images("digits").x()
    rows = {
        "start": z,
        "teacher, 9 evaluations": teachers(5),
        "teacher, 35 evaluations": teachers(18),
        "generator after the warm-up": generators(warm),
        "generator, 1 evaluation": generators(snapshots[-1]),
        "real digits": real[torch.randperm(len(real), generator=torch.Generator().manual_seed(0))[: len(SEEDS)]],
    }
    figure = Figure(figsize=(12, 5), layout="constrained")
    for ax, (title, images) in zip(figure.subplots(len(rows), 1), rows.items(), strict=True):
        ax.imshow(grid(images, len(SEEDS)), cmap="gray", vmin=0, vmax=255, interpolation="nearest")
        ax.text(-0.01, 0.5, title, color=INK, fontsize=11, ha="right", va="center", transform=ax.transAxes)
        ax.axis("off")
    save_figure(target, figure)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
