"""Files that know whether they are whole, and what a run does with states that are not."""

from __future__ import annotations

import errno
import functools
import json
import os
import pickle
import random
import re
import resource
import shutil
import signal
import subprocess
import sys
import time
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

import pytest
import torch
from filelock import FileLock

from registry.core import seal
from registry.core.atomic import write_atomically
from registry.core.errors import UserError
from registry.core.interruption import Interruption, signalled
from registry.files.bounds import STATE
from registry.files.formats import convert_network, load_network, save_network, weights_hash
from registry.files.locate import newest_network
from registry.files.plain import load, problem, save
from registry.plugins.loading import load_plugins
from registry.recipe.reading import expect, resolve
from registry.recipe.resolved import Recipe
from registry.runs.building import build, build_generator, generator_facts
from registry.runs.checkpoints import restore_state
from registry.runs.distill import distill
from registry.runs.ending import interruptible
from registry.runs.folder import RunFolder, new_run_folder
from registry.runs.starting import start_or_resume
from registry.runs.states import Found, find_state
from registry.runs.training import Saved
from registry.show.journal import Journal
from registry.train import loop
from registry.train.step import MOMENTS
from tests.conftest import RECIPE, ROOT, environment, error_line, tiny_network

Here = Callable[..., subprocess.CompletedProcess[str]]
Write = Callable[..., Path]
SUFFIXES = ("pkl", "pt", "safetensors")
RELEASE_0_1 = ROOT / "tests" / "golden" / "release_0.1"
LONGER = (
    ("batch = 8", "batch = 256"),
    ("duration_kimg = 0.048", "duration_kimg = 4.096"),
    ("tick_kimg = 0.016", "tick_kimg = 1.024"),
)

METRICS = ("[eval]", '[eval]\nmetrics = ["sliced_wasserstein"]\nreference = "digits"')
METRIC = "metric-sliced_wasserstein.jsonl"


def flipped(path: Path, target: Path, seed: int) -> Path:
    """A copy of a file in which one bit, anywhere, is the other way round."""
    content, rng = bytearray(path.read_bytes()), random.Random(seed)
    content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
    target.write_bytes(content)
    return target


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small network in each of our formats."""
    folder = tmp_path_factory.mktemp("files")
    for suffix in SUFFIXES:
        save_network(folder / f"net.{suffix}", "generator", tiny_network(), {"D": 128.0})
    return folder


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_every_flipped_bit_of_a_network_is_noticed(suffix: str, files: Path, tmp_path: Path) -> None:
    whole = files / f"net.{suffix}"
    assert seal.is_whole(whole) is True
    load_network(whole)
    for seed in range(60):
        with pytest.raises(UserError, match="damaged"):
            load_network(flipped(whole, tmp_path / whole.name, seed))


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_damaged_network_is_not_called_safe(suffix: str, files: Path, here: Here, tmp_path: Path) -> None:
    for seed in range(8):
        done = here("inspect", flipped(files / f"net.{suffix}", tmp_path / f"net.{suffix}", seed))
        if done.returncode == 3:  # the bit is in the name of something that a pickle calls
            assert suffix == "pkl" and "DANGEROUS: loading it elsewhere would run" in done.stdout, done
        else:
            assert "damaged" in error_line(done)


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_file_without_its_end_is_damaged(suffix: str, files: Path, tmp_path: Path) -> None:
    whole = (files / f"net.{suffix}").read_bytes()
    for lost in (1, len(seal.TRAILER), len(seal.TEXT), len(whole) // 2):
        (tmp_path / f"cut.{suffix}").write_bytes(whole[:-lost])
        with pytest.raises(UserError, match="damaged"):
            load_network(tmp_path / f"cut.{suffix}")


def test_a_text_that_only_looks_like_a_seal_changes_nothing(files: Path, tmp_path: Path) -> None:
    """A pickle may hold the seal's text as a value; a seal is only at the end."""
    content = pickle.dumps({"about": seal.TEXT}, protocol=4) + b"\x00"
    (tmp_path / "other.pkl").write_bytes(content)
    assert seal.is_whole(tmp_path / "other.pkl") is None


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_the_same_network_gives_the_same_bytes(suffix: str, tmp_path: Path) -> None:
    for name in ("one", "two"):
        save_network(tmp_path / f"{name}.{suffix}", "generator", tiny_network(), {"D": 128.0, "note": ["a", 1]})
    assert (tmp_path / f"one.{suffix}").read_bytes() == (tmp_path / f"two.{suffix}").read_bytes()


def test_conversions_come_back_to_the_same_bytes(tmp_path: Path) -> None:
    """Texts that are one object in one reader's memory and two in another's are written alike."""
    save_network(
        tmp_path / "0.pkl", "generator", tiny_network(), {"D": 128.0, "teacher": "a", "recipe": {"train": {"a": ["a", "a"]}}}
    )
    found: dict[str, set[bytes]] = {}
    for i, suffix in enumerate(["pt", "pkl", "safetensors", "pt", "safetensors", "pkl", "pkl", "pt"], 1):
        (before,) = tmp_path.glob(f"{i - 1}.*")
        convert_network(str(before), str(tmp_path / f"{i}.{suffix}"))
        found.setdefault(suffix, set()).add((tmp_path / f"{i}.{suffix}").read_bytes())
    assert {suffix: len(contents) for suffix, contents in found.items()} == {"pt": 1, "pkl": 1, "safetensors": 1}


def test_safetensors_files_are_sealed_whatever_the_length_of_their_header(tmp_path: Path) -> None:
    """Those of earlier versions may begin with any byte that is a multiple of eight, also with the one that pickles begin with."""
    path = tmp_path / "n.safetensors"
    save_network(path, "generator", tiny_network(), {"D": 128.0, "note": "x"})
    written = path.read_bytes()
    length = int.from_bytes(written[:8], "little")
    first_bytes = set()
    for longer in range(length, length + 256, 8):
        content = longer.to_bytes(8, "little") + written[8 : 8 + length] + b" " * (longer - length) + written[8 + length :]
        path.write_bytes(content)
        with open(path, "r+b") as file:
            seal.seal(file)
        first_bytes.add(path.read_bytes()[0])
        assert seal.is_whole(path) is True
        assert load_network(path)[1].others["note"] == "x"
    assert first_bytes == {*range(0, 256, 8)}


def test_a_sealed_snapshot_is_a_pickle_and_a_text(files: Path) -> None:
    """What reads on after the first pickle finds a second one, which is only the seal's text."""
    with open(files / "net.pkl", "rb") as file:
        file.seek(-len(seal.TRAILER), 2)
        text = pickle.load(file)
        assert text.startswith(seal.MARK.decode()) and not file.read()


def test_files_from_before_there_were_seals_are_checked_by_what_they_have(tmp_path: Path) -> None:
    old = next(RELEASE_0_1.rglob("training-state-*.pt"))
    assert seal.is_whole(old) is None and problem(old) is None
    weights = max(load(old, STATE)["parts"]["generator"]["net"].values(), key=lambda t: t.numel())
    content = bytearray(old.read_bytes())
    content[content.index(weights.numpy().tobytes()) + 5] ^= 1
    (tmp_path / "old.pt").write_bytes(content)
    assert problem(tmp_path / "old.pt") == "is damaged: its content is not what was written"
    with pytest.raises(UserError, match=r"old\.pt: is damaged: its content is not what was written"):
        load(tmp_path / "old.pt", STATE)


def test_the_networks_that_we_ship_have_seals() -> None:
    shipped = [*(ROOT / "recipes").rglob("*.pt")]
    assert len(shipped) >= 5 and all(seal.is_whole(path) for path in shipped)


# ---------------------------------------------------------------------------------------------------- resuming


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a finished run in `runs`, with states at 3 and 4 thousand images, and its recipe `short.toml`."""
    folder = tmp_path_factory.mktemp("finished")
    save_network(folder / "teacher.pt", "denoiser", tiny_network(), {"D": 128.0, "sigma_data": 0.5})
    text = RECIPE.format(teacher=folder / "teacher.pt", outdir=folder / "runs")
    for old, new in (*LONGER, METRICS):
        assert old in text
        text = text.replace(old, new)
    (folder / "short.toml").write_text(text)
    distill(str(folder / "short.toml"), sets=["log.snapshot_ticks=100", "eval.samples=4", "eval.repeats=1"])
    return folder


@pytest.fixture
def run_folder(finished: Path, tmp_path: Path) -> Path:
    """A copy of that run, and its recipe for runs beside it."""
    shutil.copytree(finished / "runs", tmp_path / "runs")
    (tmp_path / "short.toml").write_text(
        (finished / "short.toml").read_text().replace(str(finished / "runs"), str(tmp_path / "runs"))
    )
    return tmp_path / "runs" / "00000-short"


def harmed(path: Path, harm: str) -> None:
    content = path.read_bytes()
    if harm == "flipped":
        flipped(path, path, seed=1)
    elif harm == "page":
        path.write_bytes(content[:20_000] + bytes(4096) + content[24_096:])
    elif harm == "mark flipped":
        mark = len(content) - len(seal.TEXT)
        path.write_bytes(content[:mark] + bytes([content[mark] ^ 1]) + content[mark + 1 :])
    else:
        path.write_bytes(
            {"seal cut off": content[:-70], "truncated": content[: len(content) // 2], "empty": b"", "text": b"hello"}[harm]
        )


@pytest.mark.parametrize("harm", ["flipped", "page", "mark flipped", "seal cut off", "truncated", "empty", "text"])
def test_a_damaged_newest_state_is_set_aside_and_the_one_before_is_taken(
    harm: str, run_folder: Path, here: Here, tmp_path: Path
) -> None:
    last = run_folder / "training-state-000004.pt"
    content, snapshot = last.read_bytes(), run_folder / "network-snapshot-1.000000-000004.pkl"
    first = load_network(snapshot)[0].state_dict()
    snapshot.unlink()
    harmed(last, harm)
    done = here("--recipe", tmp_path / "short.toml", "--resume", "auto", "--set", "log.snapshot_ticks=100")
    assert done.returncode == 0, done.stderr
    log = (run_folder / "log.txt").read_text()
    assert (
        f"WARNING {last} is" in log
        and "it was renamed to training-state-000004.pt.damaged, and the state before it is taken" in log
    )
    assert "resuming at 3.072 kimg" in log
    assert last.with_name(last.name + ".damaged").read_bytes() != content
    again = load_network(snapshot)[0].state_dict()
    assert all(torch.equal(again[name], tensor) for name, tensor in first.items())


def test_a_run_that_goes_back_sets_its_later_states_aside(run_folder: Path, here: Here, tmp_path: Path) -> None:
    """Otherwise the states of the branch that it leaves would be the newest, and its own would be deleted as the oldest."""
    sets = ("--set", "log.snapshot_ticks=100", "--set", "train.duration_kimg=4.096")
    done = here("--recipe", tmp_path / "short.toml", "--resume", run_folder / "training-state-000003.pt", *sets)
    assert done.returncode == 0, done.stderr
    log = (run_folder / "log.txt").read_text()
    assert "later files of another branch were set aside: training-state-000004.pt.later, network-snapshot-" in log
    names = sorted(p.name for p in run_folder.glob("training-state-*"))
    assert names == ["training-state-000003.pt", "training-state-000004.pt", "training-state-000004.pt.later"]


def test_a_branch_that_is_left_leaves_no_newest_snapshot(run_folder: Path, here: Here, tmp_path: Path) -> None:
    """The run ends before it: its own last snapshot is the newest, and its own best one is the best."""
    state, sets = run_folder / "training-state-000003.pt", ("--set", "train.duration_kimg=3.584", "--set", "train.glr=1e-9")
    best = json.dumps({"kimg": 4.096, "metric": "frechet", "column": "frechet", "value": 0.0, "file": "x"})
    (run_folder / "best.json").write_text(best)
    (run_folder / "network-snapshot-best.pkl").write_bytes(b"of the branch that is left")
    done = here("--recipe", tmp_path / "short.toml", "--resume", state, *sets)
    assert done.returncode == 0, done.stderr
    assert newest_network(run_folder) == run_folder / "network-snapshot-1.000000-000003.pkl"
    left = {path.name for path in run_folder.glob("*.later")}
    assert {"network-snapshot-1.000000-000004.pkl.later", "fakes_000004.png.later", "best.json.later"} <= left
    assert (run_folder / "network-snapshot-best.pkl.later").read_bytes() == b"of the branch that is left"


def test_a_state_under_another_name_is_not_the_newest(run_folder: Path, here: Here, tmp_path: Path) -> None:
    wrong = run_folder / "training-state-000009.pt"
    shutil.copy(run_folder / "training-state-000003.pt", wrong)
    done = here("--recipe", tmp_path / "short.toml", "--resume", "auto")
    assert done.returncode == 0, done.stderr
    log = (run_folder / "log.txt").read_text()
    assert f"WARNING {wrong} is a state at 3.072 kimg under another name; it was renamed to {wrong.name}.damaged" in log
    assert "resuming at 4.096 kimg" in log


def test_a_pipe_that_is_named_like_a_state_is_not_waited_for(run_folder: Path, here: Here, tmp_path: Path) -> None:
    os.mkfifo(run_folder / "training-state-000009.pt")
    assert here("--recipe", tmp_path / "short.toml", "--resume", "auto").returncode == 0
    assert "training-state-000009.pt is not a file; it was renamed" in (run_folder / "log.txt").read_text()
    (run_folder / "log.txt").unlink()
    os.mkfifo(run_folder / "log.txt")
    line = error_line(here("--recipe", tmp_path / "short.toml", "--resume", "auto"))
    assert line == f"distill: {run_folder / 'log.txt'}: is not a file that lines can be added to"


DAMAGED_LINES = [b"[1]", b"5", b"null", b'{"Progress/kimg": null}', b'{"Progress/kimg": {"mean": "x"}}', b'{"Gap/all": 5}', b"\xff", b'{"a',
                 b'{"results": 1}', b'{"results": {"frechet": "x"}}', b'{"kimg": []}', b"[" * 100_000, b"{}", b'{"kimg": 0.001}', b'{"Loss/student": {"mean": 1.0}}', b'{"results": {}, "kimg": 0.001}',
                 b'{"Progress/kimg": {"mean": 1' + b"0" * 400 + b"}}", b'{"results": {"sliced_w2": 0.1}, "metric": "x", "kimg": 0.001}',
                 b'{"Progress/kimg": {"mean": 1.0}, "Images/variance": {"mean": 1' + b"0" * 400 + b"}}",
                 b'{"results": {"sliced_w2": 0.1}, "metric": "x", "kimg": 0.001, "snapshot_pkl": 3}',
                 b'{"results": {"sliced_w2": 0.0}, "metric": "x", "kimg": 0.001, "snapshot_pkl": "../../teacher.pt"}']  # fmt: skip
OTHER_COLUMN = b'{"results": {"other": 0.1}, "metric": "x", "kimg": 0.001, "snapshot_pkl": "x.pkl"}\n'


def test_a_state_that_may_not_be_read_is_not_called_damaged(
    run_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As root nothing is unreadable, so the system's answer to another user stands in for that."""
    opened = open

    def refused(file: Any, *arguments: Any, **settings: Any) -> Any:
        if Path(str(file)).name == "training-state-000004.pt":
            raise PermissionError(13, "Permission denied", str(file))
        return opened(file, *arguments, **settings)

    monkeypatch.setattr("builtins.open", refused)
    with pytest.raises(UserError, match=r"training-state-000004\.pt: cannot be read: Permission denied"):
        distill(str(tmp_path / "short.toml"), resume="auto")
    assert not [p for p in run_folder.iterdir() if p.name.endswith(".damaged")]


def test_a_run_does_not_go_on_with_another_teacher(run_folder: Path, here: Here, tmp_path: Path) -> None:
    """The recipe is the same: another file lies at the teacher's place."""
    recipe = tmp_path / "short.toml"
    teacher = Path(tomllib.loads(recipe.read_text())["teacher"]["source"])
    shutil.copy(teacher, tmp_path / "teacher.pt")
    recipe.write_text(recipe.read_text().replace(str(teacher), str(tmp_path / "teacher.pt")))
    own = run_folder / "recipe.toml"
    state = load(run_folder / "training-state-000004.pt", STATE)
    state["recipe"]["teacher"]["source"] = str(tmp_path / "teacher.pt")
    save(run_folder / "training-state-000004.pt", STATE, {k: v for k, v in state.items() if k not in ("format", "kind")})
    own.write_text(own.read_text().replace(str(teacher), str(tmp_path / "teacher.pt")))
    words = ("--recipe", recipe, "--resume", "auto", "--set", "log.snapshot_ticks=100", "--set", "train.duration_kimg=4.096")
    assert here(*words).returncode == 0
    other = tiny_network()
    torch.nn.init.ones_(next(other.parameters()))
    save_network(tmp_path / "teacher.pt", "denoiser", other, {"D": 128.0, "sigma_data": 0.5})
    assert "has other weights than when this run began" in error_line(here(*words))


def test_damaged_lines_of_statistics_are_passed_over(run_folder: Path, here: Here, tmp_path: Path) -> None:
    before = len((run_folder / "stats.jsonl").read_bytes().splitlines())
    for name in ("stats.jsonl", METRIC):
        whole = (run_folder / name).read_bytes()
        (run_folder / name).write_bytes(b"\n".join([*DAMAGED_LINES, whole]) + b"\n".join(DAMAGED_LINES))
    with open(run_folder / METRIC, "ab") as file:
        file.write(b"\n" + OTHER_COLUMN)
    sets = ("--set", "train.duration_kimg=5.12", "--set", "log.snapshot_ticks=1")
    done = here("--recipe", tmp_path / "short.toml", "--resume", "auto", *sets)
    assert done.returncode == 0, done.stderr
    assert len((run_folder / "stats.jsonl").read_bytes().splitlines()) == before + 1


def test_if_no_state_is_whole_nothing_is_begun(run_folder: Path, here: Here, tmp_path: Path) -> None:
    for state in run_folder.glob("training-state-*.pt"):
        harmed(state, "flipped")
    line = error_line(here("--recipe", tmp_path / "short.toml", "--resume", "auto"))
    assert f"{run_folder}: none of its training states is whole" in line
    assert [p.name for p in (tmp_path / "runs").iterdir()] == [run_folder.name]


def test_a_damaged_state_that_was_named_is_refused_and_stays(run_folder: Path, here: Here, tmp_path: Path) -> None:
    state = run_folder / "training-state-000004.pt"
    harmed(state, "flipped")
    line = error_line(here("--recipe", tmp_path / "short.toml", "--resume", state))
    assert line == f"distill: {state}: is damaged: its content is not what was written"
    assert state.is_file()


def test_a_run_folder_without_its_recipe_is_resumed_by_its_states(run_folder: Path, here: Here, tmp_path: Path) -> None:
    (run_folder / "recipe.toml").unlink()
    done = here("--recipe", tmp_path / "short.toml", "--resume", "auto")
    assert done.returncode == 0, done.stderr
    assert "resuming at 4.096 kimg" in (run_folder / "log.txt").read_text()
    assert (run_folder / "recipe.toml").is_file()


@pytest.mark.parametrize("text", ["", "[teacher.x]\na = 1\n", "[train]\nbatch = 8\n"])
def test_a_recipe_that_lost_its_content_is_taken_from_the_states(text: str, run_folder: Path, here: Here, tmp_path: Path) -> None:
    (run_folder / "recipe.toml").write_text(text)
    done = here("--recipe", tmp_path / "short.toml", "--resume", "auto")
    assert done.returncode == 0, done.stderr
    assert "resuming at 4.096 kimg" in (run_folder / "log.txt").read_text()
    assert len(list((tmp_path / "runs").iterdir())) == 1


def test_auto_says_why_it_did_not_take_a_run(run_folder: Path, here: Here, tmp_path: Path) -> None:
    shutil.copytree(run_folder, tmp_path / "runs" / "00001-short")
    for state in (tmp_path / "runs" / "00001-short").glob("training-state-*"):
        state.unlink()
    done = here(
        "--recipe", tmp_path / "short.toml", "--resume", "auto", "--set", "noise.sigma_init=3", "--set", "train.duration_kimg=0.256"
    )
    assert done.returncode == 0, done.stderr
    log = (tmp_path / "runs" / "00002-short" / "log.txt").read_text()
    assert "nothing to resume" in log
    assert "00001-short: has no training state" in log
    assert f"not resumed: {run_folder}: is another run ([noise] sigma_init: 2.5 -> 3.0)" in log


def test_the_newest_states_are_kept_and_the_rest_deleted(run_folder: Path) -> None:
    assert sorted(p.name for p in run_folder.glob("training-state-*")) == ["training-state-000003.pt", "training-state-000004.pt"]


def test_a_state_is_saved_by_the_clock_too(recipe_file: Write) -> None:
    sets = ["log.state_ticks=1000", "log.snapshot_ticks=100", "log.keep_states=0", "eval.samples=4", "eval.repeats=1"]
    folder = distill(str(recipe_file(*LONGER)), sets=[*sets, "log.state_minutes=1e-4"]).folder
    kimg = [int(p.stem[-6:]) for p in folder.glob("training-state-*.pt")]
    assert sorted(kimg) == [0, 1, 2, 3, 4]


def test_what_killed_writes_left_is_swept(run_folder: Path, here: Here, tmp_path: Path) -> None:
    left = [run_folder / ".training-state-000005.pt.ab1234cd.distill", run_folder / ".stats.jsonl.0123456f.distill"]
    for path in left:
        path.write_bytes(b"half of")
    mine = run_folder / ".notes.personal"
    mine.write_text("not ours")
    assert here("--recipe", tmp_path / "short.toml", "--resume", "auto").returncode == 0
    assert not any(path.exists() for path in left) and mine.is_file()


def test_a_finished_run_says_that_it_is_finished(run_folder: Path, here: Here, tmp_path: Path) -> None:
    before = (run_folder / METRIC).read_text()
    assert here("--recipe", tmp_path / "short.toml", "--resume", "auto").returncode == 0
    assert "this run is finished; only its table is made again" in (run_folder / "log.txt").read_text()
    assert (run_folder / METRIC).read_text() == before


# ---------------------------------------------------------------------------------------------------------- signals


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP])
def test_a_signal_while_a_snapshot_is_measured_saves_a_state_and_the_snapshot_is_made_later(
    number: signal.Signals, recipe_file: Write, tmp_path: Path
) -> None:
    """The snapshot would take minutes. After resuming, with fewer images, it is made first, and then the run ends as it would have."""
    path = recipe_file(METRICS)
    words = [sys.executable, "-m", "registry.cli", "--recipe", str(path), "--set", "log.snapshot_ticks=2"]
    slow = subprocess.Popen(
        [*words, "--set", "eval.snapshot_samples=2000000"],
        preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_DFL),
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    folder = tmp_path / "runs" / "00000-short"
    deadline = time.monotonic() + 120
    while not (folder / "network-snapshot-1.000000-000000.pkl").is_file():  # written just before it is measured
        assert slow.poll() is None and time.monotonic() < deadline, slow.communicate()
        time.sleep(0.02)
    slow.send_signal(number)
    try:
        out, err = slow.communicate(timeout=180)
    finally:
        slow.kill()
    assert slow.returncode == 128 + number, (out, err)
    assert err.startswith("distill: interrupted at 0.032 kimg; the state is kept, continue with ")
    state = load(folder / "training-state-000000.pt", STATE)
    assert (state["nimg"], state["snapshot_due"]) == (32, True)

    done = subprocess.run([*words, "--resume", "auto"], env=environment(), capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    measured = [json.loads(line)["kimg"] for line in (folder / METRIC).read_text().splitlines()]
    assert measured == [0.032, 0.048]


def test_a_signal_while_a_teachers_snapshot_is_measured(tmp_path: Path) -> None:
    """It is the same in `distill pretrain`."""
    sets = {
        "train.batch": 16, "train.duration_kimg": 0.048, "log.tick_kimg": 0.016, "log.snapshot_ticks": 2, "log.grid": 1,
        "log.outdir": str(tmp_path), "eval.samples": 20, "eval.repeats": 1, "eval.teacher_steps": [2],
    }  # fmt: skip
    words = [sys.executable, "-m", "registry.cli", "pretrain", "--recipe", "teachers/digits_d128"]
    words += [word for key, value in sets.items() for word in ("--set", f"{key}={value}")]
    slow = subprocess.Popen(
        [*words, "--set", "eval.snapshot_samples=2000000"], env=environment(), stderr=subprocess.PIPE, text=True
    )
    folder = tmp_path / "00000-digits_d128"
    deadline = time.monotonic() + 120
    while not (folder / "network-snapshot-000000.pkl").is_file():
        assert slow.poll() is None and time.monotonic() < deadline, slow.communicate()
        time.sleep(0.02)
    slow.send_signal(signal.SIGTERM)
    try:
        _, err = slow.communicate(timeout=180)
    finally:
        slow.kill()
    assert slow.returncode == 128 + signal.SIGTERM, err
    resumed = [*words, "--resume", "auto", "--set", "eval.snapshot_samples=20"]
    done = subprocess.run(resumed, env=environment(), capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    assert [json.loads(line)["kimg"] for line in (folder / "metric-frechet.jsonl").read_text().splitlines()] == [0.032, 0.048]
    assert (folder / "network-snapshot-best.pkl").is_file()


def test_a_second_ctrl_c_leaves_at_once() -> None:
    with Interruption(), pytest.raises(KeyboardInterrupt):  # noqa: PT012
        os.kill(os.getpid(), signal.SIGUSR1)
        os.kill(os.getpid(), signal.SIGTERM)
        assert signalled() == signal.SIGUSR1
        with Interruption():
            os.kill(os.getpid(), signal.SIGINT)
            os.kill(os.getpid(), signal.SIGINT)
    assert signalled() == 0


def test_a_folder_that_may_not_be_read_is_not_said_to_have_no_state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Root may read everything, so the system's answer is that to another user."""
    (tmp_path / "00003-short").mkdir()
    assert find_state("auto", tmp_path, "short", {}).remarks == (f"not resumed: {tmp_path / '00003-short'}: has no training state",)
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    assert find_state("auto", tmp_path, "short", {}).remarks == (f"not resumed: {tmp_path / '00003-short'}: may not be read",)


@pytest.mark.parametrize("first", [signal.SIGTERM, signal.SIGUSR1])
def test_it_does_so_after_other_signals_and_wherever_the_first_came(first: signal.Signals) -> None:
    with Interruption(), pytest.raises(KeyboardInterrupt):  # noqa: PT012
        os.kill(os.getpid(), first)
        os.kill(os.getpid(), signal.SIGINT)
        assert signalled() == first
        with Interruption():
            os.kill(os.getpid(), signal.SIGINT)


def test_two_runs_never_write_into_one_folder(run_folder: Path, here: Here, tmp_path: Path) -> None:
    with FileLock(run_folder / "run.lock"):
        line = error_line(here("--recipe", tmp_path / "short.toml", "--resume", "auto"))
    assert line == f"distill: {run_folder}: another process is writing into this run; stop it first, or begin another run"
    assert here("--recipe", tmp_path / "short.toml", "--resume", "auto").returncode == 0


def test_a_killed_run_leaves_no_lock(recipe_file: Write, here: Here, tmp_path: Path) -> None:
    path = recipe_file(("duration_kimg = 0.048", "duration_kimg = 80"))
    words = [sys.executable, "-m", "registry.cli", "--recipe", str(path)]
    run = subprocess.Popen(words, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    folder = tmp_path / "runs" / "00000-short"
    deadline = time.monotonic() + 120
    while not list(folder.glob("training-state-*.pt")):
        assert run.poll() is None and time.monotonic() < deadline, run.communicate()
        time.sleep(0.02)
    assert "another process is writing" in error_line(here("--recipe", path, "--resume", "auto"))
    run.kill()
    run.wait()
    assert here("--recipe", path, "--resume", "auto", "--set", "train.duration_kimg=0.016").returncode == 0


def test_a_run_whose_folder_is_renamed_says_that_it_goes_on_in_a_new_one(recipe_file: Write, tmp_path: Path) -> None:
    path = recipe_file(("duration_kimg = 0.048", "duration_kimg = 100"), ("state_ticks = 1", "state_ticks = 1000"))
    words = [sys.executable, "-m", "registry.cli", "--recipe", str(path)]
    run = subprocess.Popen(words, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    folder = tmp_path / "runs" / "00000-short"
    try:
        for file in (folder / "stats.jsonl", None, folder / "stats.jsonl"):
            deadline = time.monotonic() + 120
            while file and not file.is_file():
                assert run.poll() is None and time.monotonic() < deadline, sorted(tmp_path.rglob("*"))
                time.sleep(0.01)
            if file is None:
                folder.rename(tmp_path / "elsewhere")
        with pytest.raises(UserError, match="another process is writing into this run"):
            RunFolder(folder, Journal())
    finally:
        run.terminate()
        run.communicate(timeout=120)
    assert (
        "WARNING the folder of this run was gone; the run goes on in a new folder of that name" in (folder / "log.txt").read_text()
    )
    assert len(list(folder.glob("training-state-*.pt"))) == 1


def test_a_disk_that_fills_and_is_emptied_again_costs_no_run(recipe_file: Write, tmp_path: Path) -> None:
    """States and snapshots cannot be written for a while. The log says so, the older state stays, and the run ends well."""
    path = recipe_file(("duration_kimg = 0.048", "duration_kimg = 1.6"), ("tick_kimg = 0.016", "tick_kimg = 0.08"))
    words = [sys.executable, "-m", "registry.cli", "--recipe", str(path)]
    run = subprocess.Popen(words, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    log = tmp_path / "runs" / "00000-short" / "log.txt"

    def wait_for(text: str) -> None:
        deadline = time.monotonic() + 120
        while not (log.is_file() and text in log.read_text()):
            assert run.poll() is None and time.monotonic() < deadline, run.communicate()
            time.sleep(0.01)

    wait_for("kimg 0.2 ")  # then the state of the tick before is there
    resource.prlimit(run.pid, resource.RLIMIT_FSIZE, (30_000, -1))
    wait_for("cannot be written: File too large; the run goes on")
    assert load(log.parent / "training-state-000000.pt", STATE)["nimg"] < 1600
    resource.prlimit(run.pid, resource.RLIMIT_FSIZE, (-1, -1))
    out, err = run.communicate(timeout=240)
    assert run.returncode == 0, (out, err)
    assert load(log.parent / "training-state-000001.pt", STATE)["nimg"] == 1600


def test_a_signal_while_the_folder_is_made_is_answered_by_the_run(tmp_path: Path) -> None:
    """At once it would leave a folder without a state and without a word."""

    def start() -> RunFolder:
        folder = RunFolder(tmp_path, Journal())
        os.kill(os.getpid(), signal.SIGUSR1)
        return folder

    with interruptible(start):
        assert signalled() == signal.SIGUSR1
    assert not signalled()


def test_a_write_that_cannot_even_be_tidied_up_says_why_it_failed(tmp_path: Path) -> None:
    """As on a disk that has become read-only in the middle of a write: the temporary file cannot be removed either."""
    folder = tmp_path / "run"

    def content(file: BinaryIO) -> None:
        folder.rename(tmp_path / "elsewhere")
        folder.write_text("a file, where the folder was")
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    with pytest.raises(UserError, match=r"state\.pt: cannot be written: Read-only file system"):
        write_atomically(folder / "state.pt", content)


def test_a_disk_that_stays_full_ends_a_run_with_one_line(recipe_file: Write, tmp_path: Path) -> None:
    path = recipe_file(("duration_kimg = 0.048", "duration_kimg = 0.4"), ("tick_kimg = 0.016", "tick_kimg = 0.08"))
    full = lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (30_000, 30_000))  # noqa: E731
    done = subprocess.run(
        [sys.executable, "-m", "registry.cli", "--recipe", str(path)],
        env=environment(), capture_output=True, text=True, timeout=120, check=False, preexec_fn=full,
    )  # fmt: skip
    assert error_line(done).endswith("training-state-000000.pt: cannot be written: File too large")
    assert not [p for p in (tmp_path / "runs" / "00000-short").iterdir() if p.name.startswith(".")]


def test_a_folder_that_is_another_runs_by_now_is_left_alone(tmp_path: Path) -> None:
    folder = RunFolder.new(tmp_path, "short", Journal())
    folder.write_recipe({"train": {"batch": 8}})
    folder.path.rename(tmp_path / "moved")
    (tmp_path / "00000-short").mkdir()
    (tmp_path / "00000-short" / "training-state-000004.pt").write_bytes(b"another run's")
    folder.write("notes", b"ours")
    folder.release()
    assert folder.path == tmp_path / "00001-short"
    assert {path.name for path in (tmp_path / "00000-short").iterdir()} == {"training-state-000004.pt"}
    assert (
        f"the folder of this run is gone, and another is in its place; the run goes on in {folder.path}"
        in (folder.path / "log.txt").read_text()
    )
    assert (folder.path / "notes").read_bytes() == b"ours" and (folder.path / "recipe.toml").is_file()


def test_a_folder_that_is_gone_when_a_picture_is_drawn_is_made_anew(tmp_path: Path) -> None:
    folder = RunFolder.new(tmp_path, "short", Journal())
    folder.write_recipe({"train": {"batch": 8}})
    shutil.rmtree(folder.path)
    folder.picture(lambda place: (place / "fakes.png").write_bytes(b"picture"), "fakes.png")
    folder.append({"Progress/kimg": {"num": 1, "mean": 1.0, "std": 0}})
    folder.release()
    assert folder.path == tmp_path / "00000-short" and [path.name for path in tmp_path.iterdir()] == ["00000-short"]
    assert {"fakes.png", "stats.jsonl", "recipe.toml"} <= {path.name for path in folder.path.iterdir()}


def test_run_numbers_go_on_beyond_five_digits(tmp_path: Path) -> None:
    for name in ("99999-short", "100000-short"):
        (tmp_path / name).mkdir()
    assert new_run_folder(tmp_path, "short") == tmp_path / "100001-short"


@pytest.mark.parametrize("name", ["run.lock", "log.txt", "stats.jsonl"])
@pytest.mark.parametrize("kind", ["a link", "a folder"])
def test_what_is_no_file_of_the_folder_is_not_written_to(name: str, kind: str, tmp_path: Path) -> None:
    """Two runs would not see each other's lock; lines would be added to a file elsewhere."""
    (tmp_path / "elsewhere").write_text("a user's own\n")
    (tmp_path / "run" / name).parent.mkdir()
    (tmp_path / "run" / name).symlink_to(tmp_path / "elsewhere") if kind == "a link" else (tmp_path / "run" / name).mkdir()
    with pytest.raises(UserError, match=f"{name}: is "):
        RunFolder(tmp_path / "run", Journal())
    assert (tmp_path / "elsewhere").read_text() == "a user's own\n"


def test_an_old_state_that_cannot_be_deleted_does_not_stop_a_run(recipe_file: Write, tmp_path: Path) -> None:
    sets = ["log.keep_states=1", "log.tick_kimg=1.024", "train.batch=512", "train.duration_kimg=2.048"]
    folder = distill(str(recipe_file()), sets=sets).folder
    (folder / "training-state-000001.pt").mkdir()
    distill(str(recipe_file()), sets=[*sets, "train.duration_kimg=3.072"], resume=str(folder))
    assert "training-state-000001.pt: cannot be deleted: " in (folder / "log.txt").read_text()
    assert (folder / "training-state-000003.pt").is_file()


def test_a_run_that_only_goes_on_longer_keeps_its_later_snapshots(recipe_file: Write) -> None:
    """As after a kill, where snapshots are made more often than states: they are of the same branch."""
    sets = ["log.tick_kimg=1.024", "log.state_ticks=2", "train.batch=512", "train.duration_kimg=3.072"]
    folder = distill(str(recipe_file()), sets=sets).folder
    (folder / "training-state-000003.pt").unlink()
    snapshot = folder / "network-snapshot-1.000000-000003.pkl"
    for more, aside in (["log.grid=3", "train.duration_kimg=4.096"], False), (["train.glr=1e-9"], True):
        for state in folder.glob("training-state-000004.pt"):
            state.unlink()
        before = snapshot.read_bytes()
        distill(str(recipe_file()), sets=[*sets, *more], resume=str(folder / "training-state-000002.pt"))
        assert bool(list(folder.glob("*.later"))) == aside
    assert snapshot.with_name(snapshot.name + ".later").read_bytes() == before


def other_teacher(path: Path, what: str) -> None:
    """The same weights in a file that says something else of them."""
    net, facts = load_network(path, "denoiser")
    about = facts.stored() | ({"D": 64.0} if what == "D" else {"sigma_data": 2.0} if what == "sigma_data" else {})
    changes: dict[str, dict[str, Any]] = {
        "its sigma_data": {"sigma_data": 2.0}, "dropout": {"dropout": 0.5}, "tuples": {"channel_mult": (1,), "sigma_data": 0.5},
    }  # fmt: skip
    if changed := changes.get(what):
        twin = type(net)(**{**net.init_kwargs, **changed})  # type: ignore[arg-type, dict-item]
        twin.load_state_dict(net.state_dict())
        net = twin
    save_network(path, "denoiser", net, about)


@pytest.mark.parametrize("what", ["D", "sigma_data", "its sigma_data", "dropout", "tuples"])
def test_a_run_does_not_go_on_with_a_teacher_of_the_same_weights_that_means_another(
    what: str, recipe_file: Write, tmp_path: Path
) -> None:
    recipe = str(recipe_file())
    folder = distill(recipe).folder
    other_teacher(tmp_path / "teacher.pt", what)
    if what in ("dropout", "tuples"):  # how it learns, not what it is; and no difference at all
        distill(recipe, resume=str(folder), sets=["train.duration_kimg=0.064"])
        changed = "changed since that state was written: the student's dropout: 0.0 -> 0.5" in (folder / "log.txt").read_text()
        assert changed == (what == "dropout")
        return
    with pytest.raises(UserError, match=r"training-state-000000\.pt: .* when this run began"):
        distill(recipe, resume=str(folder), sets=["train.duration_kimg=0.064"])


ODD_STATES: dict[str, tuple[tuple[Any, ...], Any]] = {
    "an average of text": (("parts", "ema"), {"x": "text"}),
    "a moment of text": (("parts", "student", "optimiser", "state", 0, "exp_avg"), "text"),
    "a moment of another shape": (("parts", "student", "optimiser", "state", 0, "exp_avg"), torch.zeros(1)),
    "a moment too many": (("parts", "generator", "optimiser", "state", 10_000), dict.fromkeys(MOMENTS, torch.zeros(1))),
    "other groups": (("parts", "student", "optimiser", "param_groups"), []),
    "a tensor in the recipe": (("recipe", "train", "lr"), torch.zeros(2)),
}


@pytest.mark.parametrize("odd", ODD_STATES)
def test_a_whole_state_with_odd_entries_is_refused(odd: str, recipe_file: Write, tmp_path: Path) -> None:
    recipe = str(recipe_file())
    state = distill(recipe).folder / "training-state-000000.pt"
    content = load(state, STATE)
    del content["format"], content["kind"]
    (*way, last), value = ODD_STATES[odd]
    functools.reduce(lambda of, key: of[key], way, content)[last] = value
    save(state, STATE, content)
    with pytest.raises(UserError, match=re.escape(str(state))):
        distill(recipe, resume=str(state), sets=["train.duration_kimg=0.064"])


LAYOUTS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "one number for all": lambda zeros: torch.zeros(1).expand(zeros.shape),
    "a number for each row": lambda zeros: zeros[..., :1].clone().expand(zeros.shape),
    "at the end of its memory": lambda zeros: torch.zeros(zeros.numel())[-1:].expand(zeros.shape),
    "the other way round": lambda zeros: (
        zeros.permute(*reversed(range(zeros.ndim))).contiguous().permute(*reversed(range(zeros.ndim)))
    ),
}


def test_moments_lie_in_memory_as_adam_takes_them(recipe_file: Write) -> None:
    """torch's fused Adam goes through them as if they were dense, and wrote beyond their end."""
    recipe = str(recipe_file())
    state = distill(recipe).folder / "training-state-000000.pt"
    content = load(state, STATE)
    del content["format"], content["kind"]
    ends = []
    for lay in (torch.clone, *LAYOUTS.values()):
        for learner in ("student", "generator"):
            for moments in content["parts"][learner]["optimiser"]["state"].values():
                moments |= {name: lay(torch.zeros(moments[name].shape)) for name in ("exp_avg", "exp_avg_sq")}
        save(state, STATE, content)
        ends.append(weights_hash(distill(recipe, resume=str(state), sets=["train.duration_kimg=0.064"]).generator.net))
        state.unlink()
    assert len(set(ends)) == 1


def test_the_recipes_settings_of_adam_are_those_of_a_resumed_run(recipe_file: Write) -> None:
    recipe = str(recipe_file())
    state = distill(recipe).folder / "training-state-000000.pt"
    content = load(state, STATE)
    del content["format"], content["kind"]
    ends = []
    for changed in ({}, {"maximize": True, "weight_decay": 1e6, "amsgrad": "x"}):
        content["parts"]["generator"]["optimiser"]["param_groups"][0] |= changed
        save(state, STATE, content)
        ends.append(weights_hash(distill(recipe, resume=str(state), sets=["train.duration_kimg=0.064"]).generator.net))
        (state.parent / "training-state-000000.pt").unlink()
    assert ends[0] == ends[1]


def test_a_state_that_was_saved_while_the_run_was_being_built_is_not_left_behind(recipe_file: Write, tmp_path: Path) -> None:
    """As if the run that wrote it had ended between the search for a state and the taking of the lock."""
    recipe = expect(resolve(str(recipe_file(*LONGER)), load_plugins(), ["log.keep_states=0", "log.snapshot_ticks=4"]), Recipe)
    folder = distill(recipe).folder
    older, newest = (folder / f"training-state-{kimg:06d}.pt" for kimg in (2, 4))
    teacher, noise, loss = build(recipe, load_plugins())
    generator = build_generator(recipe, teacher, noise)
    run = loop.Distillation(teacher, noise, loss, recipe.train, torch.device("cpu"), generator)
    parts = {"student": run.student, "generator": run.generator, "ema": run.average}
    saved = Saved(parts, recipe.tables(), generator_facts(recipe, teacher, noise, generator))
    opened = start_or_resume(recipe, run, saved, "auto", Found(older), Journal())
    opened.release()
    assert run.nimg == 4096
    assert f"resuming at 4.096 kimg from {newest}" in (folder / "log.txt").read_text()
    assert not list(folder.glob("*.later"))


@pytest.mark.skipif(shutil.which("setpriv") is None or os.geteuid() != 0, reason="takes root's rights away")
def test_a_lock_that_may_not_be_opened_is_not_passed_over(recipe_file: Write, tmp_path: Path) -> None:
    path = recipe_file()
    folder = distill(str(path)).folder
    before = (folder / "recipe.toml").read_bytes()
    for file in (folder, *folder.iterdir()):
        os.chown(file, 1000, 1000)
        file.chmod(0o777 if file == folder else 0o644)
    words = ["setpriv", "--bounding-set", "-dac_override,-dac_read_search,-chown,-fowner", sys.executable, "-m", "registry.cli"]
    done = subprocess.run([*words, "--recipe", str(path), "--resume", str(folder), "--set", "train.duration_kimg=0.1"],
                          cwd=tmp_path, env=environment(), capture_output=True, text=True, check=False)  # fmt: skip
    assert "run.lock: cannot be locked: Permission denied; another run may write here" in error_line(done)
    assert (folder / "recipe.toml").read_bytes() == before


def test_random_states_of_another_kind_are_told_in_a_line(tmp_path: Path) -> None:
    for states in (
        [{"torch": torch.zeros(3), "cuda": []}],
        [{"cuda": []}],
        [{"torch": torch.zeros(3, dtype=torch.uint8), "cuda": []}],
    ):
        with pytest.raises(UserError, match="its random states are none of torch's"):
            restore_state(tmp_path / "s.pt", {"rng": states, "nimg": 0, "parts": {}}, {})


def test_a_link_to_a_state_leads_to_its_run(run_folder: Path, here: Here, tmp_path: Path) -> None:
    (tmp_path / "latest.pt").symlink_to(run_folder / "training-state-000004.pt")
    before = {p.name for p in tmp_path.iterdir()}
    done = here("--recipe", tmp_path / "short.toml", "--resume", tmp_path / "latest.pt")
    assert done.returncode == 0, done.stderr
    assert "resuming at 4.096 kimg" in (run_folder / "log.txt").read_text()
    assert {p.name for p in tmp_path.iterdir()} == before
