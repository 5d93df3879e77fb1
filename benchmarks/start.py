"""How long commands take to start, and a run to its first iteration: python benchmarks/start.py. Medians of interleaved rounds."""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
import time

CALLS = {
    "python -c pass": ["-c", "pass"],
    "import torch": ["-c", "import torch"],
    "distill --help": ["-m", "registry", "--help"],
    "distill plugins": ["-m", "registry", "plugins"],
    "distill check": ["-m", "registry", "check", "quickstart"],
}
AT_ONCE = ["warmup.kimg=0", "warmup.student_kimg=0", "train.duration_kimg=0.2", "log.tick_kimg=0.128", "eval.metrics=[]"]
"""The quickstart begins with the game, and every iteration is a tick."""
MARKS = {"distilling ": "its networks are built", "kimg ": "its first iteration is done"}


def seconds(words: list[str]) -> float:
    """Of a command, from its start to its end."""
    start = time.monotonic()
    subprocess.run([sys.executable, *words], check=True, stdout=subprocess.DEVNULL)
    return time.monotonic() - start


def milestones() -> dict[str, float]:
    """Of the quickstart, from its start to the first line that begins with each of `MARKS`."""
    found = dict[str, float]()
    with tempfile.TemporaryDirectory() as folder:
        words = ["-u", "-m", "registry", "--recipe", "quickstart", "--outdir", folder]
        command = [sys.executable, *words, *(word for text in AT_ONCE for word in ("--set", text))]
        start = time.monotonic()
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as run:
            assert run.stdout is not None
            for line in run.stdout:
                for mark, name in MARKS.items():
                    if line.startswith(mark):
                        found.setdefault(f"quickstart: {name}", time.monotonic() - start)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=11)
    rounds = parser.parse_args().rounds
    taken = dict[str, list[float]]()
    for i in range(rounds + 1):
        found = {name: seconds(words) for name, words in CALLS.items()} | milestones()
        for name, value in found.items() if i else ():  # the first fills the disk's cache
            taken.setdefault(name, []).append(value)
        print(f"round {i} of {rounds}", file=sys.stderr)
    print("| | s | range |\n|---|---:|---|")
    for name, values in taken.items():
        print(f"| {name} | {statistics.median(values):.2f} | {min(values):.2f} to {max(values):.2f} |")


if __name__ == "__main__":
    main()
