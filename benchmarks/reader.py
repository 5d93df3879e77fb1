"""Reading a large snapshot: time and peak memory of the restricted reader against plain `pickle.load` of the same file.

python benchmarks/reader.py [megabytes]

The file is written by this script: a network of EDM's architecture of about that size, as a plain pickle of its state dict
(what `pickle.load` needs no foreign code for) and as our snapshot. Each reading is a process of its own; medians of seven.
"""

from __future__ import annotations

import os
import pickle
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

MEASURE = """
import re, sys, time, pickle, torch
peak = lambda: int(re.search(r"VmHWM:\\s+(\\d+)", open("/proc/self/status").read())[1])  # kB; of this process alone
from registry.edm.pickles import read_pickle
with open(sys.argv[2], "rb") as f:
    while f.read(1 << 24): pass  # from the page cache
before = peak()
start = time.perf_counter()
content = read_pickle(sys.argv[2]) if sys.argv[1] == "ours" else pickle.load(open(sys.argv[2], "rb"))
print(time.perf_counter() - start, (peak() - before) / 1024)
"""


def measure(how: str, path: Path) -> tuple[float, float]:
    out = subprocess.run(
        [sys.executable, "-c", MEASURE, how, str(path)], capture_output=True, text=True, check=True, env=os.environ
    )
    seconds, megabytes = map(float, out.stdout.split())
    return seconds, megabytes


def main(size: int) -> None:
    from registry.edm.networks import EDMPrecond
    from registry.edm.snapshots import snapshot

    channels = max(32, round((size / 3.55) ** 0.5 * 16 / 32) * 32)  # parameters grow with the square of the width
    net = EDMPrecond(32, 3, model_type="SongUNet", model_channels=channels, channel_mult=[2, 2, 2], num_blocks=4)
    with tempfile.TemporaryDirectory() as folder:
        plain, ours = Path(folder) / "plain.pkl", Path(folder) / "snapshot.pkl"
        plain.write_bytes(pickle.dumps({"ema": dict(net.state_dict())}))
        ours.write_bytes(snapshot(net, {}))
        print(f"{sum(p.numel() for p in net.parameters()):,} parameters; files of {plain.stat().st_size / 2**20:.0f} MiB")
        rows = {"pickle.load": [], "read_pickle, same file": [], "read_pickle, snapshot": []}
        for _ in range(7):  # in turn, so that the machine's moods fall on all of them
            rows["pickle.load"].append(measure("pickle", plain))
            rows["read_pickle, same file"].append(measure("ours", plain))
            rows["read_pickle, snapshot"].append(measure("ours", ours))
        base = statistics.median(s for s, _ in rows["pickle.load"])
        mebibytes = plain.stat().st_size / 2**20
        for name, found in rows.items():
            seconds = statistics.median(s for s, _ in found)
            memory = statistics.median(m for _, m in found)
            times = f"{seconds:6.2f} s  {seconds / base:5.2f} × pickle.load"
            print(f"{name:24s} {times}  {memory:7.0f} MiB  {memory / mebibytes:5.2f} × the file")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 300)
