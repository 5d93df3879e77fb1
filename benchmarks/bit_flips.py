"""How many single flipped bits are noticed in files of ours.

python benchmarks/bit_flips.py [--states 300] [--networks 150] [--records 300] [--seed 0]

Every trial flips one random bit of a whole file. A network's is loaded; for a state it is asked which state a run would go on from.
A run's small files are read: what they say must be what they said before, or nothing.
"""

from __future__ import annotations

import argparse
import random
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from registry.core.errors import UserError
from registry.edm.architectures import build_network
from registry.files.formats import load_network, save_network
from registry.files.json_files import kept
from registry.files.json_lines import readable_lines
from registry.measure.saved import BEST, QUALITY
from registry.runs.distill import distill
from registry.runs.states import newest_whole, states

METRIC = "metric-sliced_wasserstein.jsonl"


def noticed(path: Path, rng: random.Random, read: Callable[[Path], object]) -> bool:
    """Whether reading the file with one bit flipped raises UserError. The file is as before afterwards."""
    whole = path.read_bytes()
    content = bytearray(whole)
    content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
    path.write_bytes(content)
    try:
        read(path)
        return False
    except UserError:
        return True
    finally:
        path.with_name(path.name + ".damaged").unlink(missing_ok=True)
        path.write_bytes(whole)


def same(path: Path, rng: random.Random, read: Callable[[Path], list[dict[str, Any]]]) -> bool:
    """Whether the file with one bit flipped says nothing that it did not say before. It is as before afterwards."""
    before, whole = read(path), path.read_bytes()
    content = bytearray(whole)
    content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
    path.write_bytes(content)
    found = read(path)
    path.write_bytes(whole)
    return all(any(record.items() <= now.items() for record in before) for now in found)


def record(schema: TypeAdapter[Any]) -> Callable[[Path], list[dict[str, Any]]]:
    """Reads a file of one record: in a list, which is empty if it is not believed."""
    return lambda path: [vars(found)] if (found := kept(path, schema)) else []


def lines(path: Path) -> list[dict[str, Any]]:
    return [{name: value for name, value in line.items() if name != "digest"} for line in readable_lines(path)]


def main(options: argparse.Namespace) -> None:
    rng, folder = random.Random(options.seed), Path(tempfile.mkdtemp())
    network = build_network("ddpmpp", 128.0, (1, 8, 8), 0, 0, model_channels=8, channel_mult=[1], num_blocks=1, attn_resolutions=[])
    for suffix in (".pt", ".pkl", ".safetensors"):
        save_network(folder / f"network{suffix}", "generator", network, {"D": 128.0, "sigma_init": 2.5})
        found = sum(noticed(folder / f"network{suffix}", rng, load_network) for _ in range(options.networks))
        print(f"networks, {suffix}: {found} of {options.networks}")
    sets = ["warmup.kimg=0", "train.batch=8", "train.duration_kimg=0.016", "eval.metrics=[]", "log.state_ticks=1"]
    (state,) = states(distill("quickstart", sets=sets, outdir=str(folder)).folder)
    found = sum(noticed(state, rng, lambda path: newest_whole(path.parent)) for _ in range(options.states))
    print(f"states: {found} of {options.states}")
    sets[3:4] = ['eval.metrics=["sliced_wasserstein"]', "eval.samples=16", "eval.snapshot_samples=16", "eval.teacher_steps=[]"]
    run = distill("quickstart", sets=sets, outdir=str(folder)).folder
    read = {"quality.json": record(QUALITY), "best.json": record(BEST), "stats.jsonl": lines, METRIC: lines}
    for name, how in read.items():
        found = sum(same(run / name, rng, how) for _ in range(options.records))
        print(f"{name}: {found} of {options.records}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--states", type=int, default=300)
    parser.add_argument("--networks", type=int, default=150, help="of each of the three formats")
    parser.add_argument("--records", type=int, default=300, help="of each of a run's small files")
    parser.add_argument("--seed", type=int, default=0)
    main(parser.parse_args())
