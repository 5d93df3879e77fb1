"""Between the loop and the run folder: ticks, snapshots, states and interruptions, and where to resume from."""

from __future__ import annotations

import json
import math
import re
import signal
import threading
import time
import tomllib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from registry import distributed, quality
from registry.api import Interrupted, Metric, UserError
from registry.edm.networks import EDMPrecond
from registry.files import save_network, write_atomically
from registry.pictures import save_curves, save_samples
from registry.recipe import Choice, EvalConfig, LogConfig, dumps
from registry.report import Journal, duration, memory_mb, new_run_folder
from registry.state import load_state, save_state


class Players(Protocol):
    """What both kinds of training have in common."""

    nimg: int
    device: torch.device

    @property
    def total(self) -> int: ...


class Desk:
    """Between the loop and the run folder: called after every iteration, it knows when something is due.

    Ticks are counted in images, so a resumed run has them where an uninterrupted one has.
    """

    def __init__(
        self,
        journal: Journal,
        log: LogConfig,
        run: Any,
        parts: Mapping[str, Any],
        tables: dict[str, Any],
        description: str,
        snapshot: Callable[[Desk], None],
    ) -> None:
        self.journal, self.log, self.run, self.parts, self.tables = journal, log, run, parts, tables
        self.description, self.snapshot = description, snapshot
        self.tallies: dict[str, Any] = {}
        self.about: dict[str, Any] = {}
        self.batch: int = tables["train"]["batch"]
        self.folder = Path()
        self.signal = 0
        self.snapshot_file = ""
        self._told: set[str] = set()
        self._said = ""

    @property
    def kimg(self) -> float:
        return float(self.run.nimg) / 1000

    def begin(self, state: Path | None) -> None:
        """Make the run folder, or step into the one that is resumed."""
        resolved = dumps(self.tables).encode()
        if state is None:
            folder = new_run_folder(Path(self.log.outdir), self.description) if distributed.rank() == 0 else None
            self.folder = distributed.from_rank0(folder)
            self.journal.open(self.folder)
            if distributed.rank() == 0:
                write_atomically(self.folder / "recipe.toml", resolved)
        else:
            self.run.nimg, old = load_state(state, self.parts)
            if game(old) != game(self.tables):
                other = "; ".join(differences(game(old), game(self.tables)))
                raise UserError(f"{state}: belongs to another run ({other}); leave --resume out to begin one of this recipe")
            self.folder = state.parent
            self.journal.open(self.folder)
            self.journal.forget_after(self.kimg)
            self.journal.log(f"resuming at {self.kimg:.3f} kimg from {state}")
            for difference in differences(old, self.tables):
                self.journal.log(f"changed since that state was written: {difference}")
            if distributed.rank() == 0:
                write_atomically(self.folder / "recipe.toml", resolved)
        self._since, self._tick_start = self.run.nimg, time.monotonic()

    @contextmanager
    def running(self) -> Iterator[None]:
        """While the loop runs: the progress bar, and signals that stop it after the iteration. A second one stops at once."""

        def stop(number: int, frame: Any) -> None:
            if self.signal:
                raise KeyboardInterrupt
            self.signal = number

        caught = (signal.SIGINT, signal.SIGTERM) if threading.current_thread() is threading.main_thread() else ()
        previous = {s: signal.signal(s, stop) for s in caught}
        try:
            with self.journal.progress(self.description, math.ceil(self.run.total / 1000 * 10) / 10) as self._bar:
                yield
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)

    def __call__(self, run: Players) -> bool:
        """After an iteration: tick, snapshot, state where they are due. True = stop."""
        now = time.monotonic()
        speed = (run.nimg - self._since) / max(now - self._tick_start, 1e-9)
        self._bar.at(round(self.kimg, 1), f"kimg  {speed:.0f} img/s  {self._said}")
        done = run.nimg >= run.total
        ticked = done or self.passed(1)
        if ticked:
            self.tick(int(self.kimg / self.log.tick_kimg), speed)
        if done or self.passed(self.log.snapshot_ticks):
            self.snapshot(self)
        if done or self.passed(self.log.state_ticks):
            self.state()
        if ticked:
            self._since, self._tick_start = run.nimg, time.monotonic()
        if not done and self.stopping():
            path = self.state()
            raise Interrupted(
                f"interrupted at {self.kimg:.3f} kimg; the state is kept, continue with --resume {path}", 128 + (self.signal or 2)
            )
        return False

    def passed(self, ticks: int) -> bool:
        """Whether this iteration's batch went over a multiple of that many ticks."""
        step = self.log.tick_kimg * 1000 * ticks
        return int(self.run.nimg / step) > int((self.run.nimg - self.batch) / step)

    def stopping(self) -> bool:
        """Whether a signal came to any process; several agree on it every eighth iteration only, since that makes them wait."""
        if distributed.world_size() == 1:
            return bool(self.signal)
        if self.run.nimg // self.batch % 8:
            return False
        return distributed.any_(bool(self.signal), self.run.device)

    def tick(self, ticks: int, speed: float) -> None:
        """One line of the log and of stats.jsonl."""
        entry: dict[str, Any] = {}
        said = []
        for name, tally in self.tallies.items():
            found = tally.read()
            entry[f"Loss/{name}"] = {k: found[k] for k in ("num", "mean", "std")}
            said.append(f"{name} {found['mean']:.4g}")
            for what, text in (
                ("dropped", "images with non-finite loss dropped"),
                ("repaired", "non-finite gradient values replaced"),
            ):
                entry[f"Guard/{name}_{what}"] = one(found[what])
                if found[what]:
                    said.append(f"WARNING {name}: {found[what]:.0f} {text}")
        memory = memory_mb(self.run.device)
        self._said = f"{'  '.join(said)}  {memory:.0f} MB"  # stands behind the bar until the next tick
        entry |= {
            "Progress/tick": one(ticks), "Progress/kimg": one(self.kimg),
            "Timing/img_per_sec": one(speed), "Resources/peak_mem_mb": one(memory),
        }  # fmt: skip
        self.journal.stats(entry)
        eta = (self.run.total - self.run.nimg) / max(speed, 1e-9)
        self.journal.log(
            f"kimg {self.kimg:<9.1f} {'  '.join(said)}  {speed:.0f} img/s  eta {duration(max(eta, 0))}  {memory:.0f} MB"
        )

    def state(self) -> Path:
        path = self.folder / f"training-state-{int(self.kimg):06d}.pt"
        save_state(path, self.parts, self.run.nimg, self.tables, self.about)
        return path

    def samples(self, images: Tensor, columns: int, real: Tensor | None = None, name: str | None = None) -> None:
        """A grid of samples (or a scatter plot of points)."""
        if distributed.rank() == 0:
            path = self.folder / (name or f"fakes_{int(self.kimg):06d}.png")
            self.picture(lambda: save_samples(path, images, columns, real))

    def network(self, kind: str, net: nn.Module) -> None:
        if distributed.rank() == 0:
            path = self.folder / f"{self.snapshot_name()}{'.pkl' if isinstance(net, EDMPrecond) else '.pt'}"
            self.snapshot_file = path.name
            save_network(path, kind, net, self.about | {"nimg": self.run.nimg, "versions": quality.versions()})

    def snapshot_name(self) -> str:
        """As EDM names snapshots, and as SiD does where the loss has an alpha."""
        alpha = self.tables.get("loss", {}).get("alpha")
        return f"network-snapshot-{f'{alpha:03f}-' if isinstance(alpha, int | float) else ''}{int(self.kimg):06d}"

    def metric(self, metrics: quality.Metrics, found: dict[str, float], samples: int, seconds: float) -> None:
        """One line of metric-NAME.jsonl per metric, and one of the log; the best snapshot so far is kept by the first metric."""
        for choice, metric in metrics:
            entry = quality.entry(choice, metric, found, samples, self.snapshot_file, seconds)
            self.journal.stats(entry | {"kimg": self.kimg}, f"metric-{choice.name}.jsonl")
        told = "  ".join(f"{name} {found[column]:.4g}" for column, name in quality.headings(metrics, samples).items())
        self.journal.log(f"kimg {self.kimg:<9.1f} {told}  ({samples} samples)")
        if distributed.rank() == 0 and metrics:
            self.keep_best(*metrics[0])

    def keep_best(self, choice: Choice, metric: Metric) -> None:
        """Copy the snapshot of the lowest distance to network-snapshot-best, if it is not that already.

        What counts is the lines that are there, so a resumed run forgets a best that came after its state.
        """
        lines, column = self.journal.read_stats(f"metric-{choice.name}.jsonl"), metric.columns[0]
        alike = [e for e in lines if all(e[key] == lines[-1][key] for key in ("metric", "samples"))]
        found = [e for e in alike if not math.isnan(e["results"][column])]
        if not found:
            return
        lowest = min(found, key=lambda e: float(e["results"][column]))
        snapshot, note = self.folder / lowest["snapshot_pkl"], self.folder / "best.json"
        best = {"kimg": lowest["kimg"], "metric": lowest["metric"], "column": column, "value": lowest["results"][column]}
        content = (json.dumps(best | {"file": snapshot.name}) + "\n").encode()
        if snapshot.is_file() and not (note.is_file() and note.read_bytes() == content):
            write_atomically(self.folder / f"network-snapshot-best{snapshot.suffix}", snapshot.read_bytes())
            write_atomically(note, content)

    def curves(self, losses: dict[str, str], metrics: quality.Metrics) -> None:
        """curves.png: every loss, and the first column of every metric, over kimg."""
        if distributed.rank() != 0:
            return
        stats = self.journal.read_stats()
        x = [entry["Progress/kimg"]["mean"] for entry in stats]
        panels: list[Any] = [
            (f"{name}'s loss", {name: (x, [entry[key]["mean"] for entry in stats])}, False) for name, key in losses.items()
        ]
        for choice, metric in metrics:
            lines = self.journal.read_stats(f"metric-{choice.name}.jsonl")
            column = metric.columns[0]
            panels.append((column, {column: ([e["kimg"] for e in lines], [e["results"][column] for e in lines])}, True))
        self.picture(lambda: save_curves(self.folder / "curves.png", panels, self.folder.name))

    def picture(self, draw: Callable[[], None]) -> None:
        """Draw, or say once what is missing: a run is not lost for want of a plotting library."""
        try:
            draw()
        except UserError as error:
            if str(error) not in self._told:
                self._told.add(str(error))
                self.journal.log(f"no picture: {error}")

    def quality(self, rows: list[quality.Row], metrics: quality.Metrics, config: EvalConfig) -> None:
        """The final table, printed and kept as quality.txt and quality.json."""
        if distributed.rank() != 0:
            return
        title = f"{self.kimg:g} kimg: {config.samples} samples, mean ± standard deviation of {config.repeats} sampling seeds"
        self.journal.table(quality.table(rows, metrics, title, config.samples), "quality.txt")
        content = {"samples": config.samples, "rows": [vars(row) for row in rows], "versions": quality.versions()}
        write_atomically(self.folder / "quality.json", (json.dumps(content, indent=1) + "\n").encode())


def one(value: float) -> dict[str, float]:
    """A single number in EDM's form of statistics."""
    return {"num": 1, "mean": value, "std": 0}


def differences(old: Mapping[str, Any], new: Mapping[str, Any], ignore: tuple[str, ...] = ("log", "eval")) -> list[str]:
    """What a resumed run does otherwise than the one that wrote its state."""
    found = []
    for table in sorted({*old, *new} - set(ignore)):
        a, b = old.get(table, {}), new.get(table, {})
        found += [f"[{table}] {key}: {a.get(key)} -> {b.get(key)}" for key in sorted({*a, *b}) if a.get(key) != b.get(key)]
    return found


def game(tables: Mapping[str, Any]) -> dict[str, Any]:
    """What a run is about: its components, and what they are made from. A state belongs to one game only."""
    about = ("use", "source", "D", "sigma_init", "arch", "labels", "steps", "schedule")
    kinds = ("teacher", "noise", "loss", "generator", "network", "data")
    return {kind: {key: tables[kind][key] for key in about if key in tables[kind]} for kind in kinds if kind in tables}


def find_state(resume: str | None, outdir: Path, description: str, tables: Mapping[str, Any]) -> Path | None:
    """The training state to resume from: 'auto' is the newest of the newest run of this recipe and game. Raises UserError."""
    if resume is None:
        return None
    if resume == "auto":
        name = re.compile(rf"\d{{5}}-{re.escape(description)}")
        runs = sorted((p for p in outdir.iterdir() if name.fullmatch(p.name)), reverse=True) if outdir.is_dir() else []
        return next((s for folder in runs if recorded_game(folder) == game(tables) and (s := newest_state(folder))), None)
    path = Path(resume).expanduser()
    if path.is_dir():
        state = newest_state(path)
        if state is None:
            raise UserError(f"--resume {resume}: there is no training-state-*.pt in this folder")
        return state
    if not path.is_file():
        raise UserError(f"--resume {resume}: no such file or folder; give 'auto', a training state, or a run folder")
    return path


def recorded_game(folder: Path) -> dict[str, Any] | None:
    """The game of a run folder, by its recipe.toml; None if that cannot be read."""
    try:
        return game(tomllib.loads((folder / "recipe.toml").read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return None


def newest_state(folder: Path) -> Path | None:
    return max(folder.glob("training-state-*.pt"), default=None, key=lambda p: p.name)
