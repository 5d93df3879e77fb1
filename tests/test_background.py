"""States that are written while training goes on."""

from __future__ import annotations

import resource
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from registry.core.errors import UserError
from registry.files.plain import problem
from registry.runs.background import Background, in_main_memory
from registry.runs.distill import distill
from registry.runs.states import states
from tests.conftest import environment
from tests.soak import CHANGES, Run

Write = Callable[..., Path]
BACKGROUND = "log.background_states=true"
QUICK = ("eval.samples=8", "eval.repeats=1")


def parts(folder: Path) -> dict[str, bytes]:
    """What is in the states of a run but for their recipes and times, as bytes."""
    found = {}
    for path in states(folder):
        state = torch.load(path, weights_only=True)
        torch.save({key: state[key] for key in ("parts", "networks", "rng", "nimg")}, folder / "parts.bin")
        found[path.name] = (folder / "parts.bin").read_bytes()
    return found


def test_states_written_in_the_background_are_the_same_files(recipe_file: Write) -> None:
    path = recipe_file(*CHANGES)
    here, beside = (parts(distill(path, sets=[*QUICK, *more]).folder) for more in ((), (BACKGROUND,)))
    assert len(here) == 2 and here == beside


def test_a_copy_shares_what_the_original_shares() -> None:
    a = torch.arange(12.0).view(3, 4)
    value = {"a": a, "row": a[1], "turned": a.T, "list": [a, 1, "x"], "pair": (None, a[:0]), "other": a.clone()}
    copy = in_main_memory(value)
    a += 1
    assert torch.equal(copy["turned"], (a - 1).T) and torch.equal(copy["row"], a[1] - 1) and copy["list"][1:] == [1, "x"]
    assert copy["turned"].stride() == a.T.stride() and isinstance(copy["pair"], tuple)
    addresses = [copy[k].untyped_storage().data_ptr() for k in ("a", "row", "turned", "other")]
    assert addresses[0] == addresses[1] == addresses[2] != addresses[3]
    assert addresses[0] != a.untyped_storage().data_ptr()


def test_the_work_goes_on_beside_and_its_error_is_raised_once() -> None:
    may_end, done = threading.Event(), list[int]()

    def work() -> None:
        assert may_end.wait(10)
        done.append(1)
        raise UserError("the disk is full")

    with Background() as background:
        background.begin(work)
        assert not background.failed() and not done
        may_end.set()
        with pytest.raises(UserError, match="the disk is full"):
            background.wait()
        background.wait()
        background.begin(lambda: done.append(2))
    assert done == [1, 2]


LEFT = """
import io, time, torch
from registry.cli.group import leave
from registry.runs.background import Background


class Slow(io.RawIOBase):
    def write(self, data):
        time.sleep(0.05)
        return len(data)


try:
    with Background() as background:
        background.begin(lambda: torch.save({str(i): torch.zeros(1000) for i in range(3000)}, Slow()))
        time.sleep(1)
        raise KeyboardInterrupt
except KeyboardInterrupt:
    leave(130)
"""


def test_a_second_ctrl_c_leaves_at_once_while_a_state_is_written() -> None:
    """Python's shutdown would tear the thread out of torch's C++, which crashes more often than not."""
    for _ in range(3):
        done = subprocess.run([sys.executable, "-c", LEFT], env=environment(), capture_output=True, text=True, check=False)
        assert (done.returncode, done.stderr) == (130, "")


def test_a_state_that_cannot_be_written_is_said_and_tried_again(tmp_path: Path, recipe_file: Write) -> None:
    """No file can be longer than 20 kB. The state of the end is waited for, so its error ends the run."""
    recipe_file(("state_ticks = 1", "state_ticks = 1\nbackground_states = true"), ("snapshot_ticks = 1", "snapshot_ticks = 100"))
    full = Run(
        tmp_path, "--recipe", "short.toml", "--resume", "auto",
        before=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, resource.RLIM_INFINITY)),
    )  # fmt: skip
    assert full.wait() == 1
    text = full.text()
    assert "cannot be written: File too large; the run goes on, and tries again when the next one is due" in text
    assert not list(tmp_path.glob("runs/*/training-state-*")) and not list(tmp_path.glob("runs/*/.training-state-*"))


def test_a_signal_waits_for_the_state_that_is_being_written(tmp_path: Path, recipe_file: Write) -> None:
    """The state in the background is whole when the run ends, and the one of the signal is the newest."""
    long = (("duration_kimg = 0.048", "duration_kimg = 1000"), ("state_ticks = 1", "state_ticks = 1\nbackground_states = true"))
    recipe_file(*long, ("snapshot_ticks = 1", "snapshot_ticks = 100000"))
    run = Run(tmp_path, "--recipe", "short.toml")
    while not list(tmp_path.glob("runs/*/training-state-*")):
        pass
    run.send(signal.SIGTERM)
    assert run.wait(10) == 128 + signal.SIGTERM, run.text()
    folder = next(tmp_path.glob("runs/*-short"))
    assert not list(folder.glob(".*.distill"))
    assert states(folder) and all(problem(path) is None for path in states(folder))
