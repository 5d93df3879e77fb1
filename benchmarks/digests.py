"""Digests of what the code computes, to show that a change of structure changes no number.

python benchmarks/digests.py before.json          # on the old commit
python benchmarks/digests.py after.json before.json   # on the new one: prints what differs, exit code 1 if anything does

Twenty iterations each of the digits' recipes (IPFM, SiD, two steps with both gradients, accumulation, two processes), of the
toy and of a teacher's training, then a generated and an evaluated set. Everything is run as a user types it, one thread a
process. A digest covers every tensor of the training state, every pixel, every number of the table. It is the same on one
machine with one torch; another processor may add up in another order.
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch

SHORT = [
    "train.duration_kimg=2.56", "log.tick_kimg=1.28", "log.snapshot_ticks=1", "eval.samples=200", "eval.repeats=1",
    "eval.snapshot_samples=100", "eval.teacher_steps=[3]", "train.device=cpu",
]  # fmt: skip
GAME = ["--recipe", "quickstart", "--set", "warmup.kimg=0"]
WARM_UP = ["warmup.kimg=1.28", "warmup.pairs=64", "warmup.nfe=5", "warmup.student_kimg=0.64"]
RUNS: dict[str, tuple[int, list[str]]] = {
    "ipfm": (1, GAME),
    "sid": (1, [*GAME, "--loss", "sid"]),
    "two steps, all": (1, [*GAME, "--set", "generator.steps=2"]),
    "two steps, last": (1, [*GAME, "--set", "generator.steps=2", "--set", "generator.gradient=last"]),
    "three steps, karras": (1, [*GAME, "--set", "generator.steps=3", "--set", "generator.schedule=karras"]),
    "accumulation": (1, [*GAME, "--set", "train.batch_gpu=32"]),
    "two student steps": (1, [*GAME, "--set", "train.student_steps=2"]),
    "two processes": (2, GAME),
    "clipping": (1, [*GAME, "--set", "train.clip=10", "--set", "train.gclip=100"]),
    "warm-up": (1, ["--recipe", "quickstart", *(word for setting in WARM_UP for word in ("--set", setting))]),
    "toy": (1, ["--recipe", "toy_2d", "--set", "teacher.warmup=20"]),
    "pretrain": (1, ["pretrain", "--recipe", "teachers/digits_d128"]),
}


def command(processes: int, *words: str) -> None:
    """`distill WORDS` in processes of their own."""
    start = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"] if processes > 1 else []
    done = subprocess.run(
        [sys.executable, *start, "-m", "registry.cli", *words], env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    if done.returncode:
        raise SystemExit(f"{' '.join(words)}: {done.stderr}")


def digest(value: Any, sha: Any) -> None:
    """Feed tensors, arrays and plain values to a hash, dictionaries in the order of their keys."""
    if isinstance(value, dict):
        for key in sorted(value, key=str):
            sha.update(str(key).encode())
            digest(value[key], sha)
    elif isinstance(value, list | tuple):
        for item in value:
            digest(item, sha)
    elif isinstance(value, torch.Tensor):
        sha.update(f"{tuple(value.shape)}{value.dtype}".encode() + value.contiguous().numpy().tobytes())
    elif isinstance(value, np.ndarray):
        sha.update(f"{value.shape}{value.dtype}".encode() + value.tobytes())
    else:
        sha.update(repr(value).encode())


def of(value: Any) -> str:
    sha = hashlib.sha256()
    digest(value, sha)
    return sha.hexdigest()[:16]


def run_all(folder: Path) -> dict[str, str]:
    """The digests by name."""
    found: dict[str, str] = {}
    for name, (processes, words) in RUNS.items():
        outdir = folder / name.replace(" ", "-").replace(",", "")
        sets = [w for s in SHORT for w in ("--set", s)]
        command(processes, *words, *sets, "--outdir", str(outdir))
        run = next(outdir.iterdir())
        state = torch.load(max(run.glob("training-state-*.pt")), weights_only=True)
        found[f"{name}: weights and moments"] = of(state["parts"])
        found[f"{name}: random states"] = of([r["torch"] for r in state["rng"]])
        table = json.loads((run / "quality.json").read_text())
        found[f"{name}: table"] = of([row["values"] for row in table["rows"]])
        stats = [json.loads(line) for line in (run / "stats.jsonl").read_text().splitlines()]
        found[f"{name}: losses"] = of([{k: v for k, v in line.items() if k.startswith("Loss/")} for line in stats])
        grids = sorted(run.glob("fakes_*.png"))
        found[f"{name}: grids"] = of({p.name: p.read_bytes() for p in grids})
        print(name, found[f"{name}: weights and moments"], flush=True)
    for name, network in (
        ("generator", str(max((folder / "two-steps-all").rglob("network-snapshot-*.pkl")))),
        ("teacher", "digits_d128"),
    ):
        where, extra = folder / f"images-{name}", ["--nfe", "9"] * (name == "teacher")
        command(
            1,
            "generate",
            "--network",
            network,
            "--seeds",
            "0-63",
            "--format",
            "npz",
            "--format",
            "png",
            "--outdir",
            str(where),
            *extra,
        )
        found[f"{name}: images"] = of(dict(np.load(where / "samples.npz")))
        found[f"{name}: PNGs"] = of({p.name: p.read_bytes() for p in sorted(where.glob("*.png"))})
        output, metrics = folder / f"{name}.json", ["--metrics", "frechet,sliced_wasserstein"]
        sizes = ["--samples", "300", "--repeats", "2", "--reference", "digits"]
        command(1, "evaluate", "--network", network, *extra, *metrics, *sizes, "--output", str(output))
        found[f"{name}: evaluation"] = of(json.loads(output.read_text())["results"])
    return found


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        os.environ["DISTILL_CACHE_DIR"] = str(Path(folder) / "cache")
        found = run_all(Path(folder))
    Path(sys.argv[1]).write_text(json.dumps(found, indent=1) + "\n")
    if len(sys.argv) > 2:
        wanted = json.loads(Path(sys.argv[2]).read_text())
        other = [name for name in {**wanted, **found} if wanted.get(name) != found.get(name)]
        print("\n".join(other) or f"all {len(found)} digests are the same")
        sys.exit(bool(other))


if __name__ == "__main__":
    main()
