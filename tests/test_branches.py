"""A run goes on from an older state, or from one that lies elsewhere: what the run leaves stays, and so does what is not its own."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from torch import Tensor

from ipfm_plugin.loss import IPFMLoss
from registry.core.errors import Interrupted, UserError
from registry.core.interruption import Interruption, heeded, undisturbed
from registry.files.formats import save_network
from registry.files.plain import save
from registry.report.history import is_locked
from registry.runs import ending, outputs
from registry.runs.distill import distill
from registry.runs.folder import RunFolder, new_run_folder
from registry.runs.outputs import measure_snapshot
from registry.runs.states import newest_whole, set_later_aside, states
from registry.show.journal import Journal
from registry.study.local import Signals
from tests.conftest import RECIPE, environment, tiny_network

Here = Callable[..., subprocess.CompletedProcess[str]]
Write = Callable[..., Path]
METRICS = ("[eval]", '[eval]\nmetrics = ["sliced_wasserstein"]\nreference = "digits"')
THOUSANDS = (
    METRICS,
    ("batch = 8", "batch = 256"),
    ("duration_kimg = 0.048", "duration_kimg = 3.072"),
    ("tick_kimg = 0.016", "tick_kimg = 1.024"),
)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a teacher, a recipe and a finished run with states at 1, 2 and 3 kimg."""
    folder = tmp_path_factory.mktemp("branches")
    save_network(folder / "teacher.pt", "denoiser", tiny_network(), {"D": 128.0, "sigma_data": 0.5})
    text = RECIPE.format(teacher=folder / "teacher.pt", outdir=folder / "runs")
    for old, new in THOUSANDS:
        text = text.replace(old, new)
    (folder / "short.toml").write_text(text)
    distill(str(folder / "short.toml"), sets=["log.keep_states=0"])
    return folder


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Path:
    """A copy of that run."""
    shutil.copytree(finished / "runs", tmp_path / "runs")
    return tmp_path / "runs" / "00000-short"


def again(finished: Path, run: Path, resume: Path | str, *sets: str) -> Path:
    return distill(
        str(finished / "short.toml"), sets=["log.keep_states=0", *sets], outdir=str(run.parent), resume=str(resume)
    ).folder


def test_a_branch_that_is_stopped_at_its_last_snapshot_makes_it_later(
    finished: Path, run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The table of the branch that it left is of as many images, and is not its own."""
    lines = (run / "stats.jsonl").read_text().splitlines()

    def stopped(folder: RunFolder, metrics: Any, sample: Any, config: Any, file: Path, nimg: int, trained: float) -> None:
        if nimg == 3072:
            os.kill(os.getpid(), signal.SIGTERM)
        measure_snapshot(folder, metrics, sample, config, file, nimg, trained)

    monkeypatch.setattr("registry.runs.distill.measure_snapshot", stopped)
    with pytest.raises(Interrupted):
        again(finished, run, run / "training-state-000002.pt", "train.glr=1e-6")
    assert not (run / "quality.json").exists() and (run / "quality.json.later").is_file()
    monkeypatch.undo()
    again(finished, run, "auto", "train.glr=1e-6")
    (metric,) = run.glob("metric-*.jsonl")
    measured = [json.loads(line) for line in metric.read_text().splitlines()]
    assert [round(line["kimg"]) for line in measured] == [1, 2, 3] and (run / "quality.json").is_file()
    assert (run / "stats.jsonl.later").read_text().splitlines() == [lines[-1]], "what the branch that is left had learned"
    assert len((run / "stats.jsonl").read_text().splitlines()) == len(lines)


def test_copies_of_states_are_the_users(finished: Path, run: Path) -> None:
    copies = [run / f"training-state-{name}.pt" for name in ("before-my-change-000002", "keep-000001", "lr1e-3-000003", "3")]
    for copy in copies:
        shutil.copy(run / "training-state-000002.pt", copy)
    assert [path.name for path in states(run)] == [f"training-state-00000{n}.pt" for n in (3, 2, 1)]
    distill(
        str(finished / "short.toml"),
        sets=["log.keep_states=1"],
        outdir=str(run.parent),
        resume=str(run / "training-state-000002.pt"),
    )
    assert all(copy.is_file() for copy in copies)
    assert [path.name for path in states(run)] == ["training-state-000003.pt"]


def test_a_state_in_a_folder_of_the_users_goes_on_in_a_new_run(finished: Path, run: Path, tmp_path: Path) -> None:
    project = tmp_path / "project"
    project.mkdir()
    for number in (1, 2):
        shutil.copy(run / f"training-state-00000{number}.pt", project)
    for name in ("recipe.toml", "stats.jsonl", "report.html", "best.json", "error.txt", "log.txt", "curves.png"):
        (project / name).write_text("# mine\n")
    before = {path: path.read_bytes() for path in project.iterdir()}
    folder = again(finished, run, project / "training-state-000002.pt")
    assert folder == run.parent / "00001-short" and "resuming at 2.048 kimg" in (folder / "log.txt").read_text()
    assert {path: path.read_bytes() for path in project.iterdir()} == before
    assert "no run's folder; the run goes on in a new one" in (folder / "log.txt").read_text()
    last = [place / "training-state-000003.pt" for place in (run, folder)]
    assert again(finished, run, project).name == "00002-short", "a folder is not a run's because a state is in it"
    with pytest.raises(UserError, match="belongs to another run"):
        again(finished, run, project, "generator.steps=2")
    assert not (run.parent / "00003-short").exists()
    assert all(path.is_file() for path in last)


@pytest.mark.parametrize("answer", [errno.ENOSYS, errno.ENOLCK])
def test_a_disk_without_locks_is_told_of_and_no_lock_outlasts_its_run(
    answer: int, finished: Path, run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(answer, os.strerror(answer))

    monkeypatch.setattr(fcntl, "flock", refuse)
    for _ in range(2):
        again(finished, run, run / "training-state-000002.pt")
    assert (run / "log.txt").read_text().count("knows no locks; see to it that no other run writes there") == 2
    assert not is_locked(run)


def test_a_state_that_cannot_be_read_now_is_not_set_aside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    newer, older = (tmp_path / f"training-state-00000{n}.pt" for n in (2, 1))
    for path in (newer, older):
        save(path, "thing", {"content": [1, 2]})

    def answered(path: Path, *args: Any) -> Any:
        if Path(path) == newer:
            raise OSError(errno.EIO, os.strerror(errno.EIO), str(path))
        return open(path, *args)

    monkeypatch.setattr("registry.core.seal.open", answered, raising=False)
    monkeypatch.setattr("registry.runs.states.misnamed", lambda path: None)
    found = newest_whole(tmp_path)
    assert found.state == older and newer.is_file()
    assert found.remarks == (
        f"WARNING {newer} cannot be read: {os.strerror(errno.EIO)}; it stays where it is, and the state before it is taken",
    )
    assert set_later_aside(tmp_path, older, 1000, False) == [] and newer.is_file()


def test_a_snapshot_whose_files_cannot_be_read_again_ends_no_run(
    finished: Path, run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The disk gives an error once, as the best snapshot is looked for."""
    broken = [OSError(errno.EIO, os.strerror(errno.EIO), str(run / "metric-x.jsonl"))]
    keep_best = outputs.keep_best

    def once(*args: Any) -> None:
        if broken:
            raise broken.pop()
        keep_best(*args)

    monkeypatch.setattr(outputs, "keep_best", once)
    again(finished, run, run / "training-state-000001.pt")
    log = (run / "log.txt").read_text()
    assert (
        f"WARNING {run / 'metric-x.jsonl'}: {os.strerror(errno.EIO)}; the run goes on" in log and (run / "quality.json").is_file()
    )


def test_why_a_run_failed_is_written_before_another_may_go_on(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    held, write = list[bool](), ending.write_atomically

    def looks(path: Path, content: bytes) -> None:
        held.append(is_locked(run))
        write(path, content)

    monkeypatch.setattr(ending, "write_atomically", looks)
    ending.end(RunFolder(run, Journal()), UserError("the reason"))
    assert held == [True] and not is_locked(run) and (run / "error.txt").read_text() == "the reason\n"


def test_every_signal_of_several_in_a_write_counts() -> None:
    def twice() -> None:
        with undisturbed():
            for _ in range(2):  # the second Ctrl-C leaves at once
                signal.raise_signal(signal.SIGINT)

    with Interruption(), pytest.raises(KeyboardInterrupt):
        twice()


def test_a_study_notes_every_signal_that_asks_it_to_stop() -> None:
    for number in heeded():  # under nohup not SIGHUP
        with Signals() as signals:
            os.kill(os.getpid(), number)
            assert signals.number == number


@pytest.mark.parametrize(
    "what", ["a backend that is missing", "settings for a program that is missing", "settings that are no text"]
)
def test_the_settings_of_matplotlibs_user_end_no_run(what: str, recipe_file: Write, tmp_path: Path) -> None:
    """A shell in a notebook, for instance, names its own backend."""
    (tmp_path / "rc").write_bytes(b"text.usetex: True\n" if "program" in what else b"font.family: \xff\n")
    other = {"MPLBACKEND": "module://nowhere.backend"} if "backend" in what else {"MATPLOTLIBRC": str(tmp_path / "rc")}
    command = [sys.executable, "-m", "registry.cli", "--recipe", str(recipe_file())]
    done = subprocess.run(command, env=environment(other), cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    run = tmp_path / "runs" / "00000-short"
    assert (run / "curves.png").is_file() == ("text" not in what)
    assert ("no picture: matplotlib cannot be used: UnicodeDecodeError" in (run / "log.txt").read_text()) == ("text" in what)


def test_the_backend_that_an_environment_names_is_that_of_the_users_own_figures() -> None:
    """A notebook may distil before it draws."""
    twice = "from registry.show.figures import drawing\nfor _ in range(2):\n  with drawing(): pass\n"
    code = f"{twice}import matplotlib\nprint(matplotlib.get_backend())"
    done = subprocess.run([sys.executable, "-c", code], env=environment({"MPLBACKEND": "svg"}), capture_output=True, text=True)
    assert done.stdout == "svg\n", done.stderr


def test_a_users_file_in_the_place_of_the_teachers_rows_stays(recipe_file: Write, tmp_path: Path) -> None:
    mine = tmp_path / "teacher.quality.json"
    mine.write_text('{"mine": 1}')
    folder = distill(str(recipe_file(METRICS))).folder
    assert mine.read_text() == '{"mine": 1}'
    assert f"the teacher's rows are not saved: {mine} is there and holds none" in (folder / "log.txt").read_text()


class Moves(IPFMLoss):
    """While the generator learns, somebody renames the working folder."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.folder, self.step = folder, 0

    def generator(self, *args: Any) -> Tensor:
        self.step += 1
        if self.step == 3:
            self.folder.rename(self.folder.with_name("renamed"))
        if self.step == 5:
            shutil.rmtree(self.folder.with_name("renamed"))
        return super().generator(*args)


def test_a_working_folder_may_be_renamed_and_removed(recipe_file: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    monkeypatch.setattr("ipfm_plugin.loss.build", lambda config, domain: Moves(tmp_path / "work"))
    folder = distill(str(recipe_file())).folder
    monkeypatch.chdir(tmp_path)
    assert list(folder.glob("network-snapshot-*.pkl"))


class Unlocks(IPFMLoss):
    """In the generator's third step somebody removes the lock, and perhaps another run takes it at once."""

    def __init__(self, runs: Path, takes: bool) -> None:
        super().__init__()
        self.runs, self.takes, self.step = runs, takes, 0

    def generator(self, *args: Any) -> Tensor:
        self.step += 1
        if self.step == 3:
            (self.runs / "00000-short" / "run.lock").unlink()
            if self.takes:
                code = "import sys, filelock; lock = filelock.FileLock(sys.argv[1]); lock.acquire(); print(flush=True); sys.stdin.read()"
                self.other = subprocess.Popen(
                    [sys.executable, "-c", code, str(self.runs / "00000-short" / "run.lock")],
                    stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                )  # fmt: skip
                assert self.other.stdout is not None and self.other.stdout.readline()
        return super().generator(*args)


@pytest.mark.parametrize("takes", [False, True])
def test_a_lock_that_is_removed_is_taken_again_or_the_run_goes_on_elsewhere(
    takes: bool, recipe_file: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loss = Unlocks(tmp_path / "runs", takes)
    monkeypatch.setattr("ipfm_plugin.loss.build", lambda config, domain: loss)
    folder = distill(str(recipe_file())).folder
    log = (folder / "log.txt").read_text()
    if not takes:
        assert folder.name == "00000-short" and "run.lock was removed while this run goes on; it is there again" in log
        return
    loss.other.communicate()
    assert (
        folder.name == "00001-short" and "the folder of this run is gone, and another is in its place; the run goes on in " in log
    )
    assert list(folder.glob("training-state-*.pt")) and list((tmp_path / "runs" / "00000-short").glob("training-state-*.pt"))


def test_numbers_of_folders_have_no_end(recipe_file: Write, tmp_path: Path) -> None:
    (tmp_path / "runs" / "999999999-mine").mkdir(parents=True)
    assert [new_run_folder(tmp_path / "runs", "short").name for _ in range(2)] == ["1000000000-short", "1000000001-short"]
    folder = distill(str(recipe_file())).folder
    assert folder.name == "1000000002-short"
    assert distill(str(recipe_file()), resume="auto").folder == folder
    (tmp_path / "runs" / ("9" * 30 + "-mine")).mkdir()
    folder = distill(str(recipe_file())).folder
    assert folder.name == f"{10**30}-short" and distill(str(recipe_file()), resume="auto").folder == folder
