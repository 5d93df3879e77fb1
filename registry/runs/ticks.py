"""Ticks: one line in the log and in stats.jsonl, and the text behind the progress bar."""

from __future__ import annotations

import math
import resource
import sys
from collections import deque
from collections.abc import Callable, Mapping
from typing import Any

import torch

from registry.files.json_lines import STATISTICS, readable_lines
from registry.runs.clock import Clock
from registry.runs.folder import RunFolder
from registry.show.journal import duration
from registry.train.signs import swings
from registry.train.step import Learner

WINDOW, SWINGS = 12, 4
"""A gap that swings this many times in the last so many ticks oscillates."""
COLLAPSED = 0.25
"""Images whose variance is below this share of the largest in the run are too much alike."""
Learners = Callable[[], Mapping[str, Learner]]
"""Who learns at present, by the name of its loss."""
Signs = Callable[[], dict[str, float]]
"""Further numbers for stats.jsonl."""


class Ticks:
    """Speed, losses, gradients and guards since the last tick, signs of convergence, and the peak memory of the run."""

    def __init__(
        self,
        folder: RunFolder,
        learners: Learners,
        tick_kimg: float,
        device: torch.device,
        clock: Clock,
        signs: Signs = dict[str, float],
    ) -> None:
        self.folder, self.learners, self.tick_kimg, self.device, self.signs = folder, learners, tick_kimg, device, signs
        self.clock = clock
        self._gaps: deque[float] = deque(maxlen=WINDOW + 1)
        self._widest: float | None = None
        self.note = ""
        """The text of the last tick, shown behind the progress bar."""

    def forget(self) -> None:
        """The run goes back to an earlier tick; what came before that is read again."""
        self._gaps.clear()
        self._widest = None

    def begin(self, nimg: int) -> None:
        """Start timing the next tick."""
        self._since, self._start = nimg, self.clock.now()

    def speed(self, nimg: int) -> float:
        """Images per second of training."""
        return (nimg - self._since) / max(self.clock.now() - self._start, 1e-9)

    def record(self, nimg: int, total: int) -> None:
        """Write the line, and reset the counts."""
        entry: dict[str, Any] = {}
        said = []
        for name, learner in self.learners().items():
            found = learner.tally.read()
            entry[f"Loss/{name}"] = {k: found[k] for k in ("num", "mean", "std")}
            entry[f"Gradient/{name}"] = single(found["norm"])
            said.append(f"{name} {found['mean']:.4g}")
            for what, text in (
                ("dropped", "images with non-finite loss dropped"),
                ("repaired", "non-finite gradient values replaced"),
            ):
                entry[f"Guard/{name}_{what}"] = single(found[what])
                if found[what]:
                    said.append(f"WARNING {name}: {found[what]:.0f} {text}{self.since(found, nimg) if what == 'dropped' else ''}")
        signs = self.signs()
        entry |= {name: single(value) for name, value in signs.items()}
        if "Gap/all" in signs:
            said.append(f"gap {signs['Gap/all']:.4g}")
            said += self.oscillation(signs["Gap/all"])
        said += self.collapse(signs.get("Images/variance", math.nan))
        speed, memory, kimg = self.speed(nimg), memory_mb(self.device), nimg / 1000
        entry |= {
            "Progress/tick": single(int(kimg / self.tick_kimg)), "Progress/kimg": single(kimg),
            "Timing/img_per_sec": single(speed), "Timing/train_sec": single(self.clock.now()),
            "Resources/peak_mem_mb": single(memory),
        }  # fmt: skip
        self.folder.append(entry)
        self.note = f"{'  '.join(said)}  {memory:.0f} MB"
        eta = duration(max((total - nimg) / max(speed, 1e-9), 0))
        self.folder.journal.log(f"kimg {kimg:<9.1f} {'  '.join(said)}  {speed:.0f} img/s  eta {eta}  {memory:.0f} MB")

    def since(self, found: Mapping[str, float], nimg: int) -> str:
        """In which iteration of this tick the first image was dropped, and how many images the run had seen."""
        begun = self._since + (nimg - self._since) * (found["first"] - 1) / found["num"]
        return f", the first at {begun / 1000:.3f} kimg"

    def oscillation(self, gap: float) -> list[str]:
        """A warning if the gap goes up and down, in a list."""
        if not self._gaps:  # the first tick since the start or a resumption
            self._gaps.extend(line["Gap/all"]["mean"] for line in self.earlier() if "Gap/all" in line)
        self._gaps.append(gap)
        factors = swings(self._gaps)
        if len(factors) < SWINGS:
            return []
        return [f"WARNING the gap oscillates: {len(factors)} swings in {WINDOW} ticks, by a factor of {max(factors):.2g} at most"]

    def earlier(self) -> list[dict[str, Any]]:
        """The lines so far; none if the disk does not give them now."""
        return readable_lines(self.folder.path / STATISTICS)

    def collapse(self, variance: float) -> list[str]:
        """A warning if the generator's images have become much more alike, in a list."""
        if math.isnan(variance):
            return []
        if self._widest is None:  # the first tick since the start or a resumption
            earlier = [line["Images/variance"]["mean"] for line in self.earlier() if "Images/variance" in line]
            self._widest = max(earlier, default=variance)
        self._widest = max(self._widest, variance)
        if variance >= COLLAPSED * self._widest:
            return []
        return [f"WARNING the generator's images become alike: their variance is {variance:.2g}, and was {self._widest:.2g}"]


def single(value: float) -> dict[str, float]:
    """A single number in EDM's form of statistics."""
    return {"num": 1, "mean": value, "std": 0}


def memory_mb(device: torch.device) -> float:
    """Peak memory of the device, or of the process on the CPU, in MiB."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)
