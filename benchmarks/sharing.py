"""How much of an iteration's time shared images or shared evaluations save: python benchmarks/sharing.py [--recipe quickstart]
[--rounds 12]

The three kinds of iteration are interleaved in one process; two rounds before are not timed. Prints the median of the ratios to an
iteration that shares nothing, which came just before.
"""

from __future__ import annotations

import argparse
import statistics
import time

import torch

from registry.plugins.loading import load_plugins
from registry.recipe.reading import resolve
from registry.recipe.resolved import Recipe
from registry.runs.building import build, build_generator
from registry.train import loop

SHARING = {"nothing": [], "images": ["train.reuse_samples=true"], "evaluations": ["train.shared_pass=true"]}
WARM = 2


def distillation(recipe: str, sets: list[str]) -> loop.Distillation:
    """The recipe's run where the game begins, with the student as it is at first."""
    plugins = load_plugins()
    resolved = resolve(recipe, plugins, sets)
    assert isinstance(resolved, Recipe)
    teacher, noise, loss = build(resolved, plugins)
    generator = build_generator(resolved, teacher, noise)
    run = loop.Distillation(teacher, noise, loss, resolved.train, torch.device("cpu"), generator, None, resolved.warmup)
    run.nimg = run.game_start
    return run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--recipe", default="quickstart")
    parser.add_argument("--rounds", type=int, default=12)
    arguments = parser.parse_args()
    runs = {name: distillation(arguments.recipe, sets) for name, sets in SHARING.items()}
    times: dict[str, list[float]] = {name: [] for name in runs}
    for i in range(WARM + arguments.rounds):
        print(f"round {i + 1} of {WARM + arguments.rounds}", end="\r")
        for name, run in runs.items():
            start = time.perf_counter()
            loop.iteration(run)
            times[name].append(time.perf_counter() - start)
    for name, seconds in times.items():
        ratios = [own / other for own, other in zip(seconds[WARM:], times["nothing"][WARM:], strict=True)]
        low, high = min(seconds[WARM:]), max(seconds[WARM:])
        print(f"{name}: {statistics.median(seconds[WARM:]):.3f} s ({low:.3f} to {high:.3f}), × {statistics.median(ratios):.3f}")


if __name__ == "__main__":
    main()
