"""What `[generator] recompute` costs and saves: peak memory and time of one generator step at K = 1, 2, 4.

python benchmarks/recompute.py [batch]

A ddpm++ network at 32×32 (channels 64 × 1, 2, 2; two blocks), forward and backward through all K applications. Every
measurement is a process of its own; medians of three, in turn.
"""

from __future__ import annotations

import statistics
import subprocess
import sys

MEASURE = """
import re, sys, time, torch
from registry.builtin.noise import GaussianNoise
from registry.core.levels import generator_levels
from registry.core.streams import Streams
from registry.edm.networks import EDMPrecond
from registry.train.generator import Generator
steps, recompute, batch = int(sys.argv[1]), sys.argv[2] == "yes", int(sys.argv[3])
torch.manual_seed(0)
net = EDMPrecond(32, 3, model_type="SongUNet", model_channels=64, channel_mult=[1, 2, 2], num_blocks=2, attn_resolutions=[16])
generator = Generator(net, GaussianNoise(), (3, 32, 32), sigmas=generator_levels(steps, "uniform", 2.5), recompute=recompute)
peak = lambda: int(re.search(r"VmHWM:\\s+(\\d+)", open("/proc/self/status").read())[1]) / 1024
generator(Streams(range(1)))[0].square().sum().backward()
before, start = peak(), time.perf_counter()
generator(Streams(range(batch)))[0].square().sum().backward()
print(time.perf_counter() - start, peak() - before)
"""


def main(batch: int) -> None:
    cells = [(steps, recompute) for steps in (1, 2, 4) for recompute in ("no", "yes") if steps > 1 or recompute == "no"]
    found: dict[tuple[int, str], list[tuple[float, float]]] = {cell: [] for cell in cells}
    for _ in range(3):  # in turn, so that the machine's moods fall on all of them
        for steps, recompute in cells:
            words = [sys.executable, "-c", MEASURE, str(steps), recompute, str(batch)]
            out = subprocess.run(words, capture_output=True, text=True, check=True).stdout.split()
            found[steps, recompute].append((float(out[0]), float(out[1])))
    base = [statistics.median(values) for values in zip(*found[1, "no"], strict=True)]
    print(f"batch {batch}\n\n| K | recompute | peak memory | × K = 1 | time | × K = 1 |\n|---|---|---|---|---|---|")
    for (steps, recompute), values in found.items():
        seconds, megabytes = (statistics.median(v) for v in zip(*values, strict=True))
        memory, time = f"{megabytes:.0f} MiB | {megabytes / base[1]:.2f}", f"{seconds:.1f} s | {seconds / base[0]:.2f}"
        print(f"| {steps} | {recompute} | {memory} | {time} |")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 8)
