"""Numbers and pictures of a run in TensorBoard and Weights & Biases, read back from what they wrote."""

from __future__ import annotations

import csv
import json
import os
import signal
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from registry.builtin import WandbConfig
from registry.builtin.wandb import build, known_id
from registry.core.errors import UserError
from registry.runs.distill import distill
from tests.conftest import ROOT, environment, error_line, installed
from tests.test_readme import blocks

Write = Callable[..., Path]
Here = Callable[..., subprocess.CompletedProcess[str]]
TRACKED = ("[log]", '[log]\ntrackers = ["{}"]')
METRIC = ("[eval]", '[eval]\nmetrics = ["sliced_wasserstein"]\nreference = "digits"')


def tracked(*names: str) -> tuple[str, str]:
    return TRACKED[0], TRACKED[1].format('", "'.join(names))


def statistics(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "stats.jsonl").read_text().splitlines()]


def events(folder: Path) -> Any:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    found = EventAccumulator(str(folder / "tensorboard"), size_guidance={"images": 0, "scalars": 0})
    found.Reload()
    return found


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_tensorboard_shows_the_statistics_the_metric_and_the_grids(recipe_file: Write) -> None:
    folder = distill(recipe_file(tracked("tensorboard"), METRIC)).folder
    found = events(folder)
    for key in ("Loss/student", "Loss/generator", "Timing/train_sec"):
        wanted = [(round(1000 * line["Progress/kimg"]["mean"]), line[key]["mean"]) for line in statistics(folder)]
        assert [(e.step, pytest.approx(e.value)) for e in found.Scalars(key)] == wanted
    assert [e.step for e in found.Images("fakes")] == [0, 16, 32, 48]
    assert len(found.Images("real")) == 1 and {"real", "fakes", "teacher-035"} <= set(found.Tags()["images"])
    measured = [json.loads(line) for line in (folder / "metric-sliced_wasserstein.jsonl").read_text().splitlines()]
    column = next(iter(measured[0]["results"]))
    assert [e.value for e in found.Scalars(f"Metric/{column}")] == pytest.approx([m["results"][column] for m in measured])
    assert "[loss]" in found.Tensors("recipe/text_summary")[0].tensor_proto.string_val[0].decode()
    assert not [name for name in found.Tags()["scalars"] if name.startswith("Progress/")]


def test_a_resumed_run_leaves_out_what_came_after_its_state(recipe_file: Write) -> None:
    path = recipe_file(tracked("tensorboard"))
    sets = ["log.keep_states=0", "train.batch=512", "train.duration_kimg=2.048", "log.tick_kimg=1.024"]
    folder = distill(path, sets=sets).folder
    assert [e.step for e in events(folder).Scalars("Loss/student")] == [1024, 2048]
    first = events(folder).Scalars("Loss/student")[1].wall_time
    distill(path, sets=sets, resume=folder / "training-state-000001.pt")
    again = events(folder).Scalars("Loss/student")
    assert [e.step for e in again] == [1024, 2048] and again[1].wall_time > first


def records(file: Path) -> Iterator[Any]:
    """What an offline run holds: a log of LevelDB's form, in blocks of 32 KiB, of messages."""
    from wandb.proto import wandb_internal_pb2

    content, at, message = file.read_bytes(), 7, b""
    assert content[:4] == b":W&B"
    while at < len(content):
        if 2**15 - at % 2**15 < 7:  # no room for a head: the block is filled with zeros
            at += 2**15 - at % 2**15
        _, length, kind = struct.unpack_from("<IHB", content, at)
        message += content[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # whole, or the last piece
            record = wandb_internal_pb2.Record()
            record.ParseFromString(message)
            yield record
            message = b""


def test_a_damaged_name_of_a_run_at_weights_and_biases_is_made_anew(tmp_path: Path) -> None:
    first = known_id(tmp_path)
    assert known_id(tmp_path) == first
    for damaged in (b"", b"\xff", b"another run"):
        (tmp_path / "wandb-id.txt").write_bytes(damaged)
        assert known_id(tmp_path) not in (first, damaged.decode(errors="replace"))
    (tmp_path / "wandb-id.txt").unlink()
    os.mkfifo(tmp_path / "wandb-id.txt")
    with pytest.raises(UserError, match="is a device or a pipe"):  # which is not waited for
        known_id(tmp_path)


def test_weights_and_biases_writes_an_offline_run_that_is_one_after_a_resumption(recipe_file: Write, here: Here) -> None:
    path = recipe_file(tracked("wandb"))
    for kimg in (0.032, 0.048):
        more = ("--set", "log.wandb.project=digits", "--set", f"train.duration_kimg={kimg}")
        done = here("--recipe", path, "--resume", "auto", *more)
        assert done.returncode == 0, done.stderr
        assert "WARNING" not in done.stdout and "wandb:" not in done.stdout + done.stderr
    folder = next((path.parent / "runs").glob("*-short"))
    runs = sorted((folder / "wandb").glob("offline-run-*/*.wandb"))
    assert len(runs) == 2
    known, rows, configs = set(), list[dict[str, Any]](), list[str]()
    for file in runs:
        for record in records(file):
            if record.WhichOneof("record_type") == "run":
                known.add((record.run.project, record.run.run_id))
                configs.append(str(record.run.config))
            if record.WhichOneof("record_type") == "history":
                rows.append({item.key or ".".join(item.nested_key): json.loads(item.value_json) for item in record.history.item})
    assert known == {("digits", (folder / "wandb-id.txt").read_text().strip())}
    assert any("glr" in config for config in configs)
    losses = [(row["kimg"], row["Loss/student"]) for row in rows if "Loss/student" in row]
    wanted = [(line["Progress/kimg"]["mean"], line["Loss/student"]["mean"]) for line in statistics(folder)]
    assert losses == [(pytest.approx(kimg), pytest.approx(loss)) for kimg, loss in wanted]
    assert [row["kimg"] for row in rows if "fakes.path" in row or "fakes" in row] == [0, 0.016, 0.032, 0.048]


def test_a_key_is_never_asked_for(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("NETRC", str(tmp_path / "none"))
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    with pytest.raises(UserError, match="no key for mode = 'online': set WANDB_API_KEY"):
        build(WandbConfig(mode="online"))
    (tmp_path / "netrc").write_text("machine api.wandb.ai login user password 0123456789\n")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    assert build(WandbConfig(mode="online")).config.mode == "online"


@pytest.mark.parametrize(("name", "package"), [("tensorboard", "TensorBoard"), ("wandb", "Weights & Biases")])
def test_a_missing_package_is_said_before_anything_is_written(name: str, package: str, recipe_file: Write) -> None:
    path = recipe_file(tracked(name))
    code = f"import sys; sys.modules['{name}'] = None; from registry.cli import main; main(['--recipe', {str(path)!r}])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment(), check=False)
    assert f"{package} is not installed: pip install 'distill-generators[{name}]'" in error_line(done)
    assert not (path.parent / "runs").exists()


def test_wrong_names_and_settings_are_told_with_the_nearest(recipe_file: Write, here: Here) -> None:
    done = here("check", recipe_file(tracked("tensorbord")))
    assert "[log] trackers = ['tensorbord']: no tracker is called 'tensorbord' (did you mean 'tensorboard'?)" in done.stderr
    assert "must be a table of the tracker's settings" in here("check", recipe_file(("[log]", "[log]\nwandb = 3"))).stderr
    assert "[log] trackres is unknown" in here("check", recipe_file(("[log]", "[log]\ntrackres = []"))).stderr
    done = here("check", recipe_file(tracked("wandb"), append='[log.wandb]\nmode = "always"\n'))
    assert "[log.wandb] mode" in done.stderr


FAILING = """
from registry.api import Component, Config, Tracker, hookimpl


class Deaf(Tracker):
    def begin(self, folder, recipe, nimg):
        print("begun", nimg)

    def numbers(self, nimg, values):
        raise ConnectionError("nobody\\x1b[2J answers")

    def picture(self, nimg, name, path):
        print("picture", name)

    def end(self):
        print("ended")


@hookimpl
def register_trackers():
    return [Component("deaf", Config, lambda config: Deaf(), "hears nothing")]
"""


def test_a_tracker_that_fails_is_left_out(recipe_file: Write, cli: Here) -> None:
    path = recipe_file(tracked("deaf"))
    done = cli("--recipe", path, env=installed(path.parent / "site", "deaf", FAILING))
    assert done.returncode == 0, done.stderr
    line = "tracker 'deaf' has failed (ConnectionError: nobody"
    assert done.stdout.count(line) == 1 and "the run goes on without it" in done.stdout and "\x1b[2J" not in done.stdout
    assert "begun 0" in done.stdout and "picture real" not in done.stdout and "ended" not in done.stdout
    assert 'trackers = [ "deaf",]' in next((path.parent / "runs").glob("*/recipe.toml")).read_text()


RUDE = """
import asyncio, sys
from registry.api import Component, Config, Tracker, hookimpl

class Unspeakable(Exception):
    def __str__(self): raise ValueError

class Quiet(Tracker):
    def begin(self, folder, recipe, nimg): pass
    def numbers(self, nimg, values): assert values
    def picture(self, nimg, name, path): pass
    def end(self): sys.exit(0)

class Clears(Quiet):
    def begin(self, folder, recipe, nimg):
        recipe["train"].clear(); recipe.clear()
    def numbers(self, nimg, values):
        values.clear(); sys.exit(0)

class Leaves(Quiet):
    def numbers(self, nimg, values): raise asyncio.CancelledError

class Mumbles(Quiet):
    def picture(self, nimg, name, path): raise Unspeakable

@hookimpl
def register_trackers():
    return [Component(made.__name__.lower(), Config, lambda config, made=made: made(), "a tracker") for made in (Clears, Leaves, Mumbles, Quiet)]
"""


FORKS = """
import os, sys
from registry.api import Component, Config, Tracker, hookimpl

class Forks(Tracker):
    def __init__(self, leave): self.leave = leave
    def begin(self, folder, recipe, nimg): pass
    def picture(self, nimg, name, path): pass
    def end(self): pass
    def numbers(self, nimg, values):
        pid = os.fork()
        if pid == 0:
            self.leave()
        else:
            print("ended with", os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))

def fails(): raise ValueError("in a copy")
def returns(): pass

@hookimpl
def register_trackers():
    return [Component(leave.__name__, Config, lambda config, leave=leave: Forks(leave), "a tracker") for leave in (sys.exit, fails, returns)]
"""


@pytest.mark.parametrize(("name", "code"), [("exit", 0), ("fails", 1), ("returns", 1)])
def test_a_copy_of_the_process_that_a_tracker_makes_is_no_second_run(
    name: str, code: int, recipe_file: Write, cli: Here, tmp_path: Path
) -> None:
    done = cli("--recipe", recipe_file(tracked(name)), env=installed(tmp_path / "site", "forks", FORKS))
    assert done.returncode == 0, done.stderr
    assert done.stdout.count(f"ended with {code}\n") == 3 and done.stdout.count("the run is in") == 1, done.stdout
    how = {"fails": "has ended by ValueError", "returns": "came back out of its code, and was ended"}
    told = f"distill: a copy of this process, made by a plugin, {how[name]}\n" if name in how else ""
    assert done.stderr == 3 * told
    folder = next((tmp_path / "runs").glob("*-short"))
    assert len(statistics(folder)) == 3 and not (folder / "error.txt").exists() and "has failed" not in done.stdout


def test_whatever_a_tracker_raises_or_clears_the_run_goes_on(recipe_file: Write, cli: Here, tmp_path: Path) -> None:
    env = installed(tmp_path / "site", "rude", RUDE)
    done = cli("--recipe", recipe_file(tracked("clears", "leaves", "mumbles", "quiet")), env=env)
    assert done.returncode == 0, done.stderr
    for name, reason in (
        ("clears", "SystemExit: 0"),
        ("leaves", "CancelledError: "),
        ("mumbles", "Unspeakable: Unspeakable without a text"),
    ):
        assert f"tracker '{name}' has failed ({reason}); the run goes on without it" in " ".join(done.stdout.split())
    assert len(statistics(next((tmp_path / "runs").glob("*-short")))) == 3


def test_the_tracker_of_the_documentation_keeps_a_table(recipe_file: Write, cli: Here) -> None:
    (text,) = (block for block in blocks("python", ROOT / "docs" / "plugins.md") if "class Table" in block)
    path = recipe_file(tracked("table"))
    done = cli("--recipe", path, env=installed(path.parent / "site", "my_tracker", text))
    assert done.returncode == 0 and "WARNING plugin" not in done.stdout, done.stdout + done.stderr
    with open(path.parent / "runs" / "numbers.csv") as file:
        rows = [row for row in csv.reader(file) if row[2] == "Loss/student"]
    assert [row[:2] for row in rows] == [["00000-short", "16"], ["00000-short", "32"], ["00000-short", "48"]]


def test_a_run_stops_although_a_server_does_not_answer(recipe_file: Write, tmp_path: Path) -> None:
    """The server's port is closed, and Weights & Biases would try for 90 seconds, and again at the end of the process."""
    env = environment({"WANDB_API_KEY": "a" * 40, "WANDB_BASE_URL": "http://127.0.0.1:1"})
    words = ["--recipe", str(recipe_file(tracked("wandb"))), "--set", 'log.wandb.mode="online"']
    run = subprocess.Popen(
        [sys.executable, "-m", "registry", *words], env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    try:
        while not list((tmp_path / "runs").rglob("wandb-id.txt")):
            assert run.poll() is None
            time.sleep(0.1)
        run.terminate()
        printed, _ = run.communicate(timeout=60)
    finally:
        run.kill()
    assert run.returncode == 128 + signal.SIGTERM
    assert "tracker 'wandb' has failed (UserError: its server has not answered)" in printed


def test_an_address_that_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.setenv("WANDB_BASE_URL", "http://[bad")
    with pytest.raises(UserError, match=r"WANDB_BASE_URL = http://.bad in the environment is no address"):
        build(WandbConfig(mode="online"))
