"""Gives every hostile file of these tests to the commands that open it, and measures: `python -m tests.hostile`.

Each call is a copy of this process (fork), so it need not load torch first. Counted are executions (a file that appears), tracebacks,
calls that take 10 s, memory beyond twice the file plus 512 MB, other exit codes than a refusal's, and anything left behind. Memory
is the peak of the call, less that of `inspect` on a small good file.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from rich.console import Console
from rich.table import Table
from safetensors.torch import save_file

from registry.files.bounds import STATE
from registry.files.formats import save_network
from registry.files.plain import load
from tests.conftest import HERE, ROOT, tiny_network
from tests.pickle_assembler import name, snapshot, stacked, state
from tests.soak import Run
from tests.test_bounds import OLD, WRONG, WRONG_STATES, changed
from tests.test_datasets import BAD_READS, BAD_SETS
from tests.test_hostile_bombs import BOMBS
from tests.test_hostile_calls import FUNCTIONS, NEAR_MISSES, UNKNOWN, WAYS, attack
from tests.test_hostile_values import REFUSED

SECONDS = 10.0
SPARE = 512 * 2**20
"""Bytes beyond twice the file's that a call may take."""
NETWORK = (
    ("inspect", "{}"),
    ("convert", "{}", "out.pt"),
    ("generate", "--network", "{}", "--seeds", "0", "--outdir", "out"),
)
STATES = (("inspect", "{}"), ("--recipe", "quickstart", "--resume", "{}"))
IMAGES = (("dataset", "{}", "out.zip"),)


@dataclass
class Group:
    """Hostile files of one origin: by kind, what writes the file or folder at a path."""

    files: dict[str, Callable[[Path], object]]
    calls: tuple[tuple[str, ...], ...] = NETWORK
    suffix: str = ".pkl"


@dataclass
class Found:
    """What was counted of a group."""

    files: int = 0
    calls: int = 0
    slowest: float = 0.0
    largest: int = 0
    """The most bytes beyond twice the file's."""
    problems: list[str] = field(default_factory=list)


def groups(canary: Path) -> dict[str, Group]:
    """All of them. A file whose code is run makes the canary."""
    calls = {f"{way}: {function}": bytes_of(snapshot(attack(way, function, canary))) for way in WAYS for function in FUNCTIONS}
    states = {f"{way}: {function}": bytes_of(state(attack(way, function, canary))) for way in WAYS for function in ("os.system",)}
    misses = {f"{how.__name__} {m}.{a}": bytes_of(snapshot(how(m, a))) for m, a in NEAR_MISSES for how in (stacked, name)}
    return {
        "calls": Group(calls),
        "calls in an archive": Group(states, (*NETWORK, *STATES[1:]), ".pt"),
        "almost allowed names": Group(misses),
        "only running would tell": Group({case: bytes_of(snapshot(value)) for case, value in UNKNOWN.items()}),
        "values": Group({case: bytes_of(content) for case, (content, _) in REFUSED.items()}),
        "bombs": Group({case: (lambda path, make=make: path.write_bytes(make())) for case, (make, _) in BOMBS.items()}),
        "our networks (.pt)": Group({case: as_pt(case) for case in WRONG}, suffix=".pt"),
        "our networks (.safetensors)": Group({case: as_safetensors(case) for case in WRONG if "weight" not in case}, suffix=".safetensors"),
        "our states": Group({f"{where} {i}": as_state(where, value) for i, (where, value) in enumerate(WRONG_STATES)}, STATES, ".pt"),
        "images and labels": Group(
            {case: into_folder(prepare, raw=True) for case, (prepare, args, _) in BAD_SETS.items() if case != "dest there"}
            | {f"{case}, read": into_folder(prepare, raw=False) for case, (prepare, _) in BAD_READS.items()},
            IMAGES, "",
        ),
    }  # fmt: skip


def bytes_of(content: bytes) -> Callable[[Path], object]:
    return lambda path: path.write_bytes(content)


def content() -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        save_network(Path(folder) / "n.pt", "generator", tiny_network(), {"D": 128.0, "sigma_init": 2.5})
        return load(Path(folder) / "n.pt", "generator") | {"format": OLD}


def as_pt(case: str) -> Callable[[Path], object]:
    where, value = WRONG[case]
    usual = content()
    if where.startswith("weights.model"):
        return lambda path: torch.save(usual | {"weights": usual["weights"] | {where.partition(".")[2]: value}}, path)
    return lambda path: torch.save(changed(usual, where, value), path)


def as_safetensors(case: str) -> Callable[[Path], object]:
    evil = changed(content(), *WRONG[case])
    metadata = {"distill": json.dumps({k: v for k, v in evil.items() if k != "weights"})}
    return lambda path: save_file({"a": torch.zeros(1)}, path, metadata)


def as_state(where: str, value: Any) -> Callable[[Path], object]:
    usual = load(next((HERE / "golden" / "release_0.1").rglob("training-state-*.pt")), STATE)
    return lambda path: torch.save(changed(usual, where, value), path)


def into_folder(prepare: Callable[[Path], Any], raw: bool) -> Callable[[Path], object]:
    """What a test prepares: a folder `raw` in the folder that it is given, or bad files beside two good ones."""

    def write(path: Path) -> None:
        path.mkdir()
        if raw:
            prepare(path)
            if (path / "raw").is_dir():
                for file in (path / "raw").iterdir():
                    file.rename(path / file.name)
                (path / "raw").rmdir()
            return
        for file in ("a.png", "b.png"):
            Image.new("L", (4, 4)).save(path / file)
        prepare(path)

    return write


def size(path: Path) -> int:
    return sum(p.stat().st_size for p in path.rglob("*") if p.is_file()) if path.is_dir() else path.stat().st_size


def usual_peak(folder: Path) -> int:
    """The peak of the memory of a call that reads a small good file."""
    save_network(folder / "good.pt", "denoiser", tiny_network(), {"D": 128.0, "sigma_data": 0.5})
    code, peak = Run(folder, "inspect", "good.pt").wait_and_measure(60)
    assert code == 0
    return peak


def attempt(path: Path, words: tuple[str, ...], canary: Path, usual: int, found: Found) -> Iterator[str]:
    """One call; what is wrong with how it ended."""
    outputs = [path.parent / place for place in ("out", "out.pt", "out.zip", "runs")]
    start = time.monotonic()
    run = Run(path.parent, *(word.format(path.name) for word in words))
    try:
        code, peak = run.wait_and_measure(SECONDS)
    except AssertionError as error:
        yield " ".join(str(error).split())[:300]
        return
    found.calls += 1
    found.slowest = max(found.slowest, time.monotonic() - start)
    beyond = peak - usual - 2 * size(path)
    found.largest = max(found.largest, beyond)
    if beyond > SPARE:
        yield f"{beyond / 2**20:.0f} MB beyond twice the file"
    if canary.exists():
        canary.unlink()
        yield "something was executed"
    if code not in ((0, 1, 3) if words[0] == "inspect" else (1,)):
        yield f"exit code {code}: {run.text()[-300:]}"
    if any(output.exists() for output in outputs):
        yield "left something behind"
    run.output.unlink()


def measure(every: int, console: Console) -> int:
    """Try every so many-th file of each group. Returns the number of problems."""
    torch.set_num_threads(1)
    os.environ["DISTILL_CACHE_DIR"] = tempfile.mkdtemp(prefix="cache-")
    table = Table("files", "kinds", "calls", "slowest", "most memory", "problems", title="hostile files", title_justify="left")
    problems = files = 0
    with tempfile.TemporaryDirectory(prefix="hostile-") as folder:
        canary, usual = Path(folder) / "canary", usual_peak(Path(folder))
        for title, group in groups(canary).items():
            found = Found()
            for number, (case, write) in enumerate(list(group.files.items())[::every]):
                where = Path(folder) / f"{title}-{number}"
                where.mkdir()
                path = where / f"file{group.suffix}"
                write(path)
                found.files += 1
                for words in group.calls:
                    found.problems += [f"{title}, {case}, {words[0]}: {p}" for p in attempt(path, words, canary, usual, found)]
            for problem in found.problems:
                console.print(problem, markup=False, soft_wrap=True)
            numbers = (found.files, found.calls, f"{found.slowest:.1f} s", f"{found.largest / 2**20:.0f} MB", len(found.problems))
            table.add_row(title, *map(str, numbers))
            problems, files = problems + len(found.problems), files + found.files
    console.print(table)
    console.print(f"{files} files; memory is what a call takes beyond twice its file")
    return problems


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--every", type=int, default=1, help="try every so many-th file only")
    given = parser.parse_args()
    os.chdir(ROOT)
    sys.exit(min(measure(given.every, Console()), 1))
