"""What is around a run fails: disks, terminals, a plugin that changes weights, a process that is started again."""

from __future__ import annotations

import math
import os
import resource
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from filelock import FileLock
from torch import Tensor

from ipfm_plugin.loss import IPFMLoss
from registry.cli.process_commands import from_the_newest
from registry.core.errors import UserError
from registry.edm.image_files import files_below
from registry.files.bounds import STATE
from registry.files.plain import load
from registry.runs.clock import Clock
from registry.runs.distill import distill
from registry.runs.folder import RunFolder
from registry.runs.states import newest_whole
from registry.runs.ticks import Ticks
from registry.show.journal import Journal, Terminal
from registry.study.attempts import write_note
from registry.study.cells import Cell, Status, status
from registry.study.conduct import forget_failures
from registry.study.grid import Combination
from registry.train.step import own_image_numbers
from tests.conftest import ROOT, environment, error_line
from tests.test_health import KEEP, LONGER, Poisoned

Here = Callable[..., subprocess.CompletedProcess[str]]
Write = Callable[..., Path]


@pytest.mark.parametrize(("words", "code"), [(["check", "no_such_recipe"], 1), (["check"], 2), (["inspect", "/dev/null/x"], 1)])
def test_the_exit_code_is_the_same_where_nothing_can_be_printed(words: list[str], code: int) -> None:
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "registry.cli", *words], stderr=full, stdout=full, cwd=ROOT, env=environment(), check=False
        )
    assert done.returncode == code


def test_the_exit_code_is_the_same_where_torchrun_cannot_be_told(recipe_file: Write, tmp_path: Path) -> None:
    """Its folder of temporary files may be gone after weeks."""
    alone = {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "MASTER_ADDR": "localhost", "MASTER_PORT": "1"}
    done = subprocess.run(
        [sys.executable, "-m", "registry.cli", "--recipe", str(tmp_path / "none.toml")],
        env=environment() | alone | {"TORCHELASTIC_ERROR_FILE": str(tmp_path / "gone" / "error.json")},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 1 and "Traceback" not in done.stderr


EARLY = """import os, signal, sys
class Presses:
    def find_spec(self, name, path=None, target=None):
        if name == "click":
            os.kill(os.getpid(), signal.SIGINT)
sys.meta_path.insert(0, Presses())
"""


def test_ctrl_c_while_the_command_is_being_loaded_is_no_traceback(tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text(EARLY)
    place = environment({"PYTHONPATH": os.pathsep.join([str(tmp_path), str(ROOT)])})
    command = [sys.executable, "-m", "registry", "recipes"]
    done = subprocess.run(command, env=place, cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (-signal.SIGINT, "", "")


def test_the_command_leaves_ctrl_c_as_it_was_until_it_begins() -> None:
    """Whoever loads it may be a plugin's worker, or a thread."""
    code = "import signal, threading\nbefore = signal.getsignal(signal.SIGINT)\nload = lambda: __import__('registry.__main__')\n"
    for how in ("load()", "thread = threading.Thread(target=load)\nthread.start()\nthread.join()"):
        command = [sys.executable, "-c", f"{code}{how}\nassert signal.getsignal(signal.SIGINT) is before"]
        done = subprocess.run(command, env=environment(), capture_output=True, text=True, check=False)
        assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("width", ["0", ""])
def test_a_terminal_without_a_width_is_printed_to(width: str) -> None:
    """As in some windows of a browser."""
    command, place = [sys.executable, "-m", "registry.cli", "inspect", "digits_d3"], environment({"COLUMNS": width})
    done = subprocess.run(command, env=place, capture_output=True, text=True, check=True)
    assert "digits_d3" in done.stdout


def test_a_thread_that_a_plugin_has_left_behind_is_told_of(tmp_path: Path) -> None:
    script = (
        "import threading, time\nfrom registry.cli import group\ngroup.PATIENCE = 0.5\n"
        "threading.Thread(target=time.sleep, args=(3,), name='uploads').start()\ngroup.leave(0)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], env=environment(), capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0 and done.stderr.count("\n") == 1 and "(uploads)" in done.stderr


@pytest.mark.parametrize("workers", ["deaf", "none"])
def test_what_a_plugin_does_at_the_end_is_done_though_its_workers_are_deaf(workers: str, tmp_path: Path) -> None:
    """After a signal: they are killed, and the process does not wait for them. Its own handlers run, for a while."""
    script = (
        "import atexit, multiprocessing, os, signal, sys, tempfile, time\nfrom registry.cli import group\n"
        "fork = multiprocessing.get_context('fork')\nready = fork.Event()\n"
        "def deaf():\n    signal.signal(signal.SIGTERM, signal.SIG_IGN)\n    ready.set()\n    time.sleep(60)\n"
        "worker = fork.Process(target=deaf)\nif sys.argv[2] == 'deaf': worker.start()\n"
        "if worker.pid: ready.wait()\nprint(worker.pid, flush=True)\n"
        "kept = tempfile.TemporaryDirectory(dir=sys.argv[1])\natexit.register(time.sleep, 60)\n"
        "atexit.register(print, 'uploaded', flush=True)\ngroup.leave(143)\n"
    )
    command = [sys.executable, "-c", script, str(tmp_path), workers]
    done = subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=120, check=False)
    pid, *said = done.stdout.splitlines()
    left = Path("/proc", pid, "stat")  # until whoever adopts orphans has taken note
    assert done.returncode == 143 and said == ["uploaded"] and (not left.exists() or " Z " in left.read_text()), done.stderr


def test_what_starts_again_goes_on_from_the_newest_state(tmp_path: Path) -> None:
    run, note = tmp_path / "00001-run", tmp_path / "note"
    run.mkdir()
    for named in ("old/training-state-000001.pt", "elsewhere"):
        words = ("--recipe", "r", "--resume", "auto", "--resume", named)
        assert from_the_newest(words, note) == (words, ""), "the run has not begun"
        note.write_text(str(run))
        assert from_the_newest(words, note) == (words, ""), "nothing was saved since"
        for auto in (("--resume", "auto"), ("--resume=auto",)):  # another run may be newer
            begun, how = from_the_newest(("--recipe", "r", *auto, "--seed", "1"), note)
            assert begun == ("--recipe", "r", "--seed", "1") and how == f"; anew, for there is no training state in {run}"
        (run / "training-state-000002.pt").touch()
        assert from_the_newest(words, note) == ((*words[:5], str(run)), "")
        for last in (f"--resume={named}", "--resume=auto"):
            assert from_the_newest(("--recipe", "r", last), note) == (("--recipe", "r", f"--resume={run}"), "")
        assert from_the_newest(("generate", "--seeds", "1"), note) == (("generate", "--seeds", "1"), "")
        note.unlink()
        (run / "training-state-000002.pt").unlink()


def test_what_would_begin_anew_is_not_started_again(here: Here) -> None:
    done = here("launch", "--processes", "1", "--max-restarts", "1", "--recipe", "quickstart")
    assert done.returncode == 2 and "--max-restarts needs --resume auto" in done.stderr


def test_a_rollback_on_a_full_disk_goes_on(recipe_file: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    """The statistics of the branch that it leaves cannot be cut off then."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)

    class Fills(Poisoned):
        def generator(self, *args: Any) -> Tensor:
            if self.step == 42:  # the state is of step 30, and a line of the statistics of step 40
                resource.setrlimit(resource.RLIMIT_FSIZE, (100, before[1]))
            if self.step == 60:
                resource.setrlimit(resource.RLIMIT_FSIZE, before)
            return super().generator(*args)

    monkeypatch.setattr("ipfm_plugin.loss.build", lambda config, domain: Fills(range(33, 51), 8))
    previous = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        folder = distill(str(recipe_file(*LONGER)), sets=["train.nonfinite=rollback", *KEEP]).folder
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, previous)
    state = load(folder / "training-state-000000.pt", STATE)
    assert (state["rollbacks"], state["nimg"]) == (1, 400) and list(folder.glob("network-snapshot-*.pkl"))


def test_after_a_refusal_auto_does_not_begin_anew(recipe_file: Write, here: Here, tmp_path: Path) -> None:
    """As a job does that is queued again."""
    recipe = recipe_file()
    assert here("--recipe", recipe).returncode == 0
    (folder,) = (tmp_path / "runs").iterdir()
    for state in folder.glob("training-state-*.pt"):
        state.write_bytes(state.read_bytes()[:-100])
    for _ in range(2):
        assert "none of its training states is whole" in error_line(here("--recipe", recipe, "--resume", "auto"))
    assert [p.name for p in (tmp_path / "runs").iterdir()] == [folder.name]


def test_a_damaged_state_that_cannot_be_renamed_is_passed_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a disk that has become read-only."""
    (tmp_path / "training-state-000001.pt").write_bytes(b"damaged")

    def refuse(*_: object) -> None:
        raise OSError(30, os.strerror(30))

    monkeypatch.setattr(Path, "rename", refuse)
    with pytest.raises(UserError, match="none of its training states is whole"):
        newest_whole(tmp_path)
    assert (tmp_path / "training-state-000001.pt").is_file()


def test_a_run_waits_for_who_looks_whether_it_goes_on(tmp_path: Path) -> None:
    looks = FileLock(tmp_path / "run.lock", thread_local=False)
    looks.acquire()
    threading.Timer(0.2, looks.release).start()
    RunFolder(tmp_path, Journal()).release()


def ended_without_a_terminal(journal: Journal, leader: int) -> None:
    with journal.progress("work", 10) as bar:
        bar.at(1)
        os.close(leader)
        raise UserError("the reason")


def test_a_terminal_that_is_gone_does_not_take_the_place_of_what_ends_the_work() -> None:
    leader, follower = os.openpty()
    with open(follower, "w") as file:
        journal = Journal(Terminal(file=file, force_terminal=True))
        with pytest.raises(UserError, match="the reason"):
            ended_without_a_terminal(journal, leader)
        os.dup2(os.open(os.devnull, os.O_WRONLY), file.fileno())  # so that it can be closed


class Retypes(IPFMLoss):
    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self.dtype, self.calls = dtype, 0

    def generator(self, teacher: Any, student: Any, *args: Any) -> Tensor:
        self.calls += 1
        if self.calls == 2:
            weight = next(student.parameters())
            weight.data = weight.data.to(self.dtype)
        return super().generator(teacher, student, *args)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_a_loss_that_changes_the_type_of_weights_is_told_so(
    dtype: torch.dtype, recipe_file: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ipfm_plugin.loss.build", lambda config, domain: Retypes(dtype))
    with pytest.raises(
        UserError, match=rf"a weight of the student, \S+ has become {str(dtype).removeprefix('torch.')} during the run"
    ):
        distill(str(recipe_file()))


class Hooks(IPFMLoss):
    def student(self, student: Any, *args: Any) -> Tensor:
        for weight in student.parameters():
            weight.register_post_accumulate_grad_hook(lambda p: p.data.fill_(0))
        return super().student(student, *args)


class Subclass(Tensor):
    pass


class GivesSubclass(IPFMLoss):
    def generator(self, *args: Any) -> Tensor:
        return super().generator(*args).as_subclass(Subclass)


def test_a_hook_that_gives_something_is_told_so(recipe_file: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ipfm_plugin.loss.build", lambda config, domain: Hooks())
    with pytest.raises(UserError, match="such a hook must give nothing"):
        distill(str(recipe_file()))


def test_a_loss_may_give_a_tensor_of_a_class_of_its_own(recipe_file: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ipfm_plugin.loss.build", lambda config, domain: GivesSubclass())
    assert list(distill(str(recipe_file())).folder.glob("network-snapshot-*.pkl"))


def test_links_that_lead_to_folders_again_and_again_are_refused(tmp_path: Path) -> None:
    for i in range(16):
        (tmp_path / f"{i}").mkdir()
        for link in "ab":
            (tmp_path / f"{i}" / link).symlink_to(tmp_path / f"{i + 1}")
    (tmp_path / "16").mkdir()
    (tmp_path / "16" / "x.png").touch()
    with pytest.raises(UserError, match="leads to its folders again more than"):
        files_below(tmp_path / "0")
    assert len(files_below(tmp_path / "12")) == 16


@pytest.mark.parametrize(("share", "batch_gpu"), [(256, 100), (8, 3), (7, None), (4, 8)])
def test_parts_of_a_batch_do_not_reach_beyond_it(share: int, batch_gpu: int | None) -> None:
    parts = list(own_image_numbers(10, share, batch_gpu))
    assert [i for part in parts for i in part] == list(range(10, 10 + share))
    assert all(len(part) <= (batch_gpu or share) for part in parts) and math.ceil(share / (batch_gpu or share)) == len(parts)


def test_a_run_that_goes_back_forgets_the_numbers_of_the_branch_that_it_leaves(tmp_path: Path) -> None:
    """The widest variance was one of images that had exploded."""
    folder = RunFolder(tmp_path, Journal())
    folder.write_recipe({})
    ticks = Ticks(folder, dict, 0.1, torch.device("cpu"), Clock())
    assert ticks.collapse(1.0) == []
    assert ticks.collapse(1000.0) == []
    assert ticks.collapse(1.0) != []
    ticks.forget()
    assert ticks.collapse(1.0) == []


def test_a_cell_whose_numbers_cannot_be_read_runs_again(tmp_path: Path) -> None:
    cell = Cell(Combination((), (), "alone", {}), 0, tmp_path / "cell", (), (), {"train": {"batch": 8, "duration_kimg": 1.0}})
    run = cell.folder / "00000-run"
    run.mkdir(parents=True)
    (run / "quality.json").write_text("no JSON")
    write_note(cell.folder, {"exit": 0, "error": "", "seconds": 1.0})
    assert status(cell)[0] is Status.FAILED
    forget_failures([cell])
    assert status(cell)[0] is Status.UNFINISHED and (run / "quality.json.damaged").is_file()
