"""The memory of an iteration: what `distill plan` counts, and what torch's allocator on the processor hands out, in one process and
with networks that are split over two.

python benchmarks/memory.py [--channels 64] [--images 32]

The quickstart's distillation with a network of three resolutions. Gradients and activations at their most, in MiB; torch's profiler
sees every allocation of torch's own, but not the work space of the libraries that it calls.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.profiler import ProfilerActivity, profile

from registry.edm.networks import EDMPrecond
from registry.files.formats import save_network
from registry.plugins.loading import load_plugins
from registry.recipe.reading import expect, resolve
from registry.recipe.resolved import Recipe
from registry.runs.building import build, build_generator
from registry.runs.plan import plan
from registry.train import loop

MODES = ("full", "lean", "least")
PROCESSES = 2


def recipe(folder: str, batch: int, memory: str, shard: bool) -> Recipe:
    sets = {"train.batch": batch, "train.student_steps": 1, "warmup.kimg": 0, "train.memory": memory, "train.shard": shard,
            "teacher.source": f"{folder}/teacher.pt"}  # fmt: skip
    return expect(resolve("quickstart", load_plugins(), [f"{key}={json.dumps(value)}" for key, value in sets.items()]), Recipe)


def allocated(wanted: Recipe) -> float:
    """The most MiB that the second iteration holds at a time."""
    teacher, noise, loss = build(wanted, load_plugins())
    generator = build_generator(wanted, teacher, noise)
    run = loop.Distillation(teacher, noise, loss, wanted.train, torch.device("cpu"), generator)
    loop.iteration(run)
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
        loop.iteration(run)
    with tempfile.TemporaryDirectory() as folder:
        profiled.export_chrome_trace(f"{folder}/trace.json")
        events = json.loads(Path(folder, "trace.json").read_text())["traceEvents"]
    now = most = 0
    for event in sorted((e for e in events if e.get("name") == "[memory]"), key=lambda e: e["ts"]):
        now += event["args"]["Bytes"]
        most = max(most, now)
    return most / 2**20


def one_of_several(rank: int, folder: str, images: int) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=PROCESSES)
    found = {memory: allocated(recipe(folder, images * PROCESSES, memory, True)) for memory in MODES}
    Path(folder, f"{rank}.json").write_text(json.dumps(found))
    dist.destroy_process_group()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--channels", type=int, default=64)
    parser.add_argument("--images", type=int, default=32, help="at a time, of one process")
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        shape: dict[str, Any] = {
            "model_channels": options.channels,
            "channel_mult": [1, 2, 2],
            "num_blocks": 2,
            "attn_resolutions": [],
        }
        net = EDMPrecond(8, 1, D=128.0, pfgmpp=True, model_type="SongUNet", dropout=0.0, **shape)
        save_network(Path(folder, "teacher.pt"), "denoiser", net, {"D": 128.0, "sigma_data": 0.5})
        split, whole = (
            partial(recipe, folder, n, shard=s) for n, s in ((options.images * PROCESSES, True), (options.images, False))
        )
        planned = {(memory, s): plan(make(memory=memory), load_plugins(), PROCESSES if s else 1) for memory in MODES
                   for s, make in ((False, whole), (True, split))}  # fmt: skip
        print(f"weights {planned['full', False].parameters * 4 / 2**20:.1f} MiB; {options.images} images at a time\n")
        print("| memory | networks | counted | allocated | ratio |\n|---|---|---:|---:|---:|")
        for memory in MODES:
            row("whole", memory, planned[memory, False].peaks, allocated(whole(memory=memory)))
        torch.multiprocessing.spawn(one_of_several, (folder, options.images), nprocs=PROCESSES)
        found = [json.loads(Path(folder, f"{rank}.json").read_text()) for rank in range(PROCESSES)]
        for memory in MODES:
            row(f"split over {PROCESSES}", memory, planned[memory, True].peaks, max(each[memory] for each in found))


def row(networks: str, memory: str, peaks: Any, measured: float) -> None:
    counted = max(peaks.values()) / 2**20
    print(f"| {memory} | {networks} | {counted:.1f} | {measured:.1f} | {counted / measured:.2f} |", flush=True)


if __name__ == "__main__":
    main()
