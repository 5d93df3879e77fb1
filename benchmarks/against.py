"""The training speed of this checkout against another one: python benchmarks/against.py FOLDER [--recipe RECIPE] [--rounds 7]

FOLDER is a checkout of another commit (git worktree add). Both train a recipe in turns, by default the quickstart of that checkout,
with one thread each. Prints images per second: medians of the ticks, and the median of the rounds' ratios.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).resolve().parents[1]
SHORT = {"train.duration_kimg": "6.4", "log.tick_kimg": "3.2", "log.snapshot_ticks": "1000", "eval.metrics": "[]"}


def img_per_sec(checkout: Path, recipe: Path) -> float:
    """Of a short run: the median of its ticks, without the first."""
    sets = [word for key, value in SHORT.items() for word in ("--set", f"{key}={value}")]
    with tempfile.TemporaryDirectory() as folder:
        words = [sys.executable, "-m", "registry.cli", "--recipe", str(recipe), "--outdir", folder, *sets]
        environment = {**os.environ, "PYTHONPATH": str(checkout), "OMP_NUM_THREADS": "1"}
        subprocess.run(words, cwd=checkout, env=environment, check=True, stdout=subprocess.DEVNULL)
        (statistics_,) = Path(folder).glob("*/stats.jsonl")
        lines = [json.loads(line) for line in statistics_.read_text().splitlines()]
    return statistics.median(line["Timing/img_per_sec"]["mean"] for line in lines[1:])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--recipe", type=Path)
    parser.add_argument("--rounds", type=int, default=7)
    arguments = parser.parse_args()
    other = arguments.folder.resolve()
    recipe = (arguments.recipe or other / "recipes" / "quickstart.toml").resolve()
    pairs = list[tuple[float, float]]()
    for i in range(arguments.rounds):
        pairs.append((img_per_sec(other, recipe), img_per_sec(HERE, recipe)))
        print(f"round {i + 1}: there {pairs[-1][0]:.0f}, here {pairs[-1][1]:.0f} img/s", file=sys.stderr)
    there, here = (statistics.median(values) for values in zip(*pairs, strict=True))
    ratios = [b / a for a, b in pairs]
    print(f"there {there:.0f} img/s, here {here:.0f} img/s, {statistics.median(ratios):.2f} times as fast", end=" ")
    print(f"({min(ratios):.2f} to {max(ratios):.2f}, {len(ratios)} rounds)")


if __name__ == "__main__":
    main()
