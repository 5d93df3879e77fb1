"""The papers' comparison at the scale of the digits: D ∈ {128, 2048, inf} × steps ∈ {1, 2, 4} × alpha ∈ {½, 1} × three seeds.

python benchmarks/digits_table.py [--jobs 2] [--kimg 25.6] [--glr-by-steps] [--outdir runs/digits_table]

Each cell is one run of the quickstart's recipe with `--loss ipfm` (at D = inf the electrostatic kernel is the Gaussian, and the
loss is SiD's), everything but D, steps, alpha and seed equal; `--glr-by-steps` divides the generator's rate by the steps.
Cells that are finished are not run again. Leaves the table in OUTDIR/table.md and table.json, and draws two pictures beside this
file: digits_table.png (distance against evaluations, the teachers' curves included) and digits_training.png (distance against
kimg); with `--glr-by-steps` digits_table_glr.png and digits_training_glr.png.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import statistics
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Any, NamedTuple

from rich.progress import MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

DIMENSIONS, STEPS, ALPHAS, SEEDS = ("128", "2048", "inf"), (1, 2, 4), (0.5, 1.0), (0, 1, 2)
TEACHER_STEPS = (5, 8, 12, 18)
COLORS = {"128": "#c8553d", "2048": "#2a7f9e", "inf": "#22303c"}
HERE = Path(__file__).parent


class Cell(NamedTuple):
    D: str
    steps: int
    alpha: float
    seed: int

    @property
    def name(self) -> str:
        return f"d{self.D}-steps{self.steps}-alpha{self.alpha:g}-seed{self.seed}"


CELLS = [Cell(*c) for c in itertools.product(DIMENSIONS, STEPS, ALPHAS, SEEDS)]


def command(cell: Cell, outdir: Path, kimg: float, glr_by_steps: bool = False) -> list[str]:
    """The command of one cell: a user could type it."""
    sets = {
        "teacher.source": f"digits_d{cell.D}", "teacher.D": cell.D, "loss.alpha": cell.alpha, "generator.steps": cell.steps,
        "train.duration_kimg": kimg, "train.ema_halflife_kimg": kimg / 8, "train.batch": 128,
        "log.tick_kimg": kimg / 8, "log.snapshot_ticks": 1, "log.state_ticks": 8,
        "eval.snapshot_samples": 2000, "eval.teacher_steps": "[18]",
    }  # fmt: skip
    if glr_by_steps:
        sets["train.glr"] = 3e-4 / cell.steps
    flags = [a for key, value in sets.items() for a in ("--set", f"{key}={value}")]
    where = ["--seed", str(cell.seed), "--outdir", str(outdir / cell.name)]
    return [sys.executable, "-m", "registry.cli", "--recipe", "quickstart", *flags, *where]


def finished(outdir: Path, cell: Cell) -> Path | None:
    """The run folder of a cell that ran to its end."""
    return next((p.parent for p in sorted((outdir / cell.name).glob("*/quality.json"))), None)


def run(cell: Cell, outdir: Path, kimg: float, glr_by_steps: bool) -> None:
    environment = os.environ | {"OMP_NUM_THREADS": "1"}  # one core a cell: two threads that compete are slower than one
    done = subprocess.run(command(cell, outdir, kimg, glr_by_steps), env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{cell.name}: {done.stderr.strip()}")


def run_all(outdir: Path, kimg: float, jobs: int, glr_by_steps: bool) -> None:
    """Cells seed by seed, so that a grid that is broken off has whole tables of fewer seeds."""
    waiting = sorted((c for c in CELLS if not finished(outdir, c)), key=lambda c: (c.seed, c.steps, c.D, c.alpha))
    columns = (
        TextColumn("{task.description}"),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("eta"),
        TimeRemainingColumn(),
    )
    with Progress(*columns) as bar, ThreadPoolExecutor(jobs) as pool:
        task = bar.add_task("cells", total=len(CELLS), completed=len(CELLS) - len(waiting))
        for future in as_completed([pool.submit(run, cell, outdir, kimg, glr_by_steps) for cell in waiting]):
            future.result()
            bar.advance(task)


def teacher_curves() -> dict[str, dict[int, list[float]]]:
    """Fréchet distance of each teacher by evaluations; kept rows are used where they are the same measurement."""
    from registry import load_plugins
    from registry.measure.teacher_rows import teacher_rows
    from registry.recipe.reading import expect, resolve
    from registry.recipe.resolved import Recipe
    from registry.runs.building import build, build_metrics
    from registry.show.journal import Journal

    curves = {}
    for D in DIMENSIONS:
        sets = [f"teacher.source=digits_d{D}", f"teacher.D={D}", f"eval.teacher_steps={list(TEACHER_STEPS)}"]
        plugins = load_plugins()
        recipe = expect(resolve("quickstart", plugins, sets), Recipe)
        teacher, noise, _ = build(recipe, plugins)
        rows = teacher_rows(teacher, noise, build_metrics(recipe.metrics, teacher), recipe.eval, Journal())
        curves[D] = {row.evaluations: row.values["frechet"] for row in rows if row.evaluations}
    return curves


def collect(outdir: Path) -> tuple[dict[Cell, float], dict[Cell, list[tuple[float, float]]], float]:
    """Final Fréchet distance of every finished cell (mean of the sampling seeds), its course over kimg, and the floor."""
    final, course, floor = {}, {}, float("nan")
    for cell in CELLS:
        folder = finished(outdir, cell)
        if folder is None:
            continue
        rows = json.loads((folder / "quality.json").read_text())["rows"]
        final[cell] = statistics.fmean(rows[0]["values"]["frechet"])
        floor = statistics.fmean(rows[-1]["values"]["frechet"])
        lines = [json.loads(line) for line in (folder / "metric-frechet.jsonl").read_text().splitlines()]
        course[cell] = [(line["kimg"], line["results"]["frechet"]) for line in lines]
    return final, course, floor


def over_seeds(values: dict[Cell, Any], D: str, steps: int, alpha: float) -> list[Any]:
    return [v for c, v in values.items() if (c.D, c.steps, c.alpha) == (D, steps, alpha)]


def spread(values: list[float]) -> str:
    """mean ± standard deviation, or what there is."""
    if not values:
        return "–"
    return f"{statistics.fmean(values):.2f}" + (f" ± {statistics.stdev(values):.2f}" if len(values) > 1 else "")


def table(final: dict[Cell, float], teachers: dict[str, dict[int, list[float]]]) -> str:
    """The analogue of IPFM's Table 1, in Markdown."""
    heads = [f"alpha {'½' if a == 0.5 else f'{a:g}'}, {k} step{'s' * (k > 1)}" for a in ALPHAS for k in STEPS]
    lines = ["| D | " + " | ".join(heads) + " | teacher, 35 |", "|---" * (len(heads) + 2) + "|"]
    for D in DIMENSIONS:
        cells = [spread(over_seeds(final, D, k, a)) for a in ALPHAS for k in STEPS]
        lines.append(f"| {D} | " + " | ".join(cells) + f" | {statistics.fmean(teachers[D][35]):.2f} |")
    return "\n".join(lines) + "\n"


def axes(rows: int, columns: int, size: tuple[float, float]) -> tuple[Any, Any]:
    from matplotlib.figure import Figure

    from registry.show.figures import FAINT, INK

    figure = Figure(figsize=size, layout="constrained")
    grid = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False)
    for ax in grid.flat:
        ax.spines[["top", "right"]].set_visible(False)
        ax.spines[["left", "bottom"]].set_color(FAINT)
        ax.tick_params(colors=INK, labelsize=9)
        ax.grid(color=FAINT, linewidth=0.5, alpha=0.6)
        ax.set_axisbelow(True)
        ax.set_yscale("log")
        ax.yaxis.set_major_formatter("{x:g}")
        ax.yaxis.set_minor_formatter("")
    return figure, grid


def title_of(alpha: float) -> str:
    return "alpha = ½ (pure IPFM)" if alpha == 0.5 else f"alpha = {alpha:g} (regularised)"


def draw_table(final: dict[Cell, float], teachers: dict[str, dict[int, list[float]]], floor: float, path: Path) -> None:
    """Distance against evaluations: generators (mean and range over training seeds) and teachers."""
    from registry.show.figures import FAINT, INK, save_figure

    figure, grid = axes(1, len(ALPHAS), (10, 4.2))
    for ax, alpha in zip(grid[0], ALPHAS, strict=True):
        for i, D in enumerate(DIMENSIONS):
            points = [(k, v) for k in STEPS if (v := over_seeds(final, D, k, alpha))]
            x = [k * 1.035 ** (i - 1) for k, _ in points]  # side by side, so that the ranges do not hide each other
            mean = [statistics.fmean(v) for _, v in points]
            bars = [
                [m - min(v) for m, (_, v) in zip(mean, points, strict=True)],
                [max(v) - m for m, (_, v) in zip(mean, points, strict=True)],
            ]
            ax.errorbar(
                x, mean, bars, color=COLORS[D], marker="o", markersize=4, linewidth=1.6, elinewidth=1, label=f"generator, D = {D}"
            )
            curve = sorted(teachers[D].items())
            ax.plot(
                [n for n, _ in curve], [statistics.fmean(v) for _, v in curve], color=COLORS[D], marker="s", markersize=3.5,
                linewidth=1.2, linestyle=(0, (4, 2)), label=f"teacher, D = {D}",
            )  # fmt: skip
        ax.axhline(floor, color=FAINT, linewidth=1.4)
        ax.annotate("real against real", (1, floor), xytext=(0, -11), textcoords="offset points", color=INK, fontsize=8)
        ax.set_xscale("log", base=2)
        ax.set_xticks([1, 2, 4, 9, 15, 23, 35], ["1", "2", "4", "9", "15", "23", "35"])
        ax.minorticks_off()
        ax.set_xlabel("network evaluations per image", color=INK, fontsize=10)
        ax.set_title(title_of(alpha), color=INK, fontsize=11)
    grid[0][0].set_ylabel("Fréchet distance", color=INK, fontsize=10)
    handles, labels = grid[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside right center", fontsize=9, frameon=False, labelcolor=INK)
    save_figure(path, figure)


def draw_training(course: dict[Cell, list[tuple[float, float]]], path: Path) -> None:
    """Distance against kimg, finite D against inf: mean over the training seeds, the range as a band."""
    from registry.show.figures import INK, save_figure

    figure, grid = axes(len(ALPHAS), len(STEPS), (11, 6))
    for (i, alpha), (j, steps) in itertools.product(enumerate(ALPHAS), enumerate(STEPS)):
        ax = grid[i][j]
        for D in DIMENSIONS:
            runs = over_seeds(course, D, steps, alpha)
            if not runs:
                continue
            x = [kimg for kimg, _ in runs[0]]
            columns = [[value for _, value in at] for at in zip(*runs, strict=True)]
            ax.plot(
                x,
                [statistics.fmean(c) for c in columns],
                color=COLORS[D],
                linewidth=1.6,
                marker="o",
                markersize=3,
                label=f"D = {D}",
            )
            ax.fill_between(x, [min(c) for c in columns], [max(c) for c in columns], color=COLORS[D], alpha=0.12, linewidth=0)
        ax.set_title(f"{steps} step{'s' * (steps > 1)}, {title_of(alpha)}", color=INK, fontsize=10)
    for ax in grid[-1]:
        ax.set_xlabel("thousands of images (kimg)", color=INK, fontsize=10)
    for row in grid:
        row[0].set_ylabel("Fréchet distance", color=INK, fontsize=10)
    grid[0][-1].legend(fontsize=9, frameon=False, labelcolor=INK)
    save_figure(path, figure)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", type=int, default=2, help="cells at a time, one core each")
    parser.add_argument("--kimg", type=float, default=25.6, help="thousands of images per cell")
    parser.add_argument("--glr-by-steps", action="store_true", help="the generator's rate is 3e-4/K; name an --outdir of its own")
    parser.add_argument("--outdir", type=Path, default=Path("runs/digits_table"))
    parser.add_argument("--report", action="store_true", help="run nothing: report the cells that are finished")
    options = parser.parse_args()
    if not options.report:
        run_all(options.outdir, options.kimg, options.jobs, options.glr_by_steps)
    teachers = teacher_curves()
    final, course, floor = collect(options.outdir)
    text = table(final, teachers)
    (options.outdir / "table.md").write_text(text)
    content = {
        "cells": [c._asdict() | {"frechet": v, "course": course[c]} for c, v in final.items()],
        "teachers": teachers,
        "floor": floor,
    }
    (options.outdir / "table.json").write_text(json.dumps(content, indent=1) + "\n")
    suffix = "_glr" if options.glr_by_steps else ""
    draw_table(final, teachers, floor, HERE / f"digits_table{suffix}.png")
    draw_training(course, HERE / f"digits_training{suffix}.png")
    print(text)


if __name__ == "__main__":
    main()
