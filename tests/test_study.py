"""Studies as a user types them: real runs in real processes, interrupted, killed, failing, side by side, as an array."""

from __future__ import annotations

import base64
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from registry.cli.study_commands import cell_command
from registry.core.errors import UserError
from registry.measure.saved import learned_by
from registry.plugins.loading import Plugins
from registry.report.history import PNG
from registry.study import attempts
from registry.study.attempts import write_note
from registry.study.cells import Cell, Status, prepare, read_attempt, run_folder, status
from registry.study.conduct import forget_failures
from registry.study.definition import read_study
from registry.study.grid import Combination
from registry.study.reuse import is_finished, recorded, reuse
from registry.study.slurm import Call, CellJob
from registry.study.sources import check_same_sources, sources, with_sources
from tests.conftest import environment, error_line

Here = Callable[..., subprocess.CompletedProcess[str]]

# The smallest runs: a few hundred images of points in the plane.
SMALL = (
    "train.batch=32", "train.duration_kimg=0.256", "train.student_steps=1", "train.lr_decay=0",
    "teacher.warmup=20", "teacher.width=8", "teacher.depth=1",
    "eval.samples=40", "eval.repeats=2", "eval.snapshot_samples=20", "eval.teacher_steps=[2]",
    "log.tick_kimg=0.064", "log.snapshot_ticks=2", "log.state_ticks=2",
)  # fmt: skip
METHODS = """
about = "Four toys: two learn, one diverges, one cannot run."
recipe = "toy_2d"
[vary.toy]
learns = {}
hurries = { "train.glr" = 1e-2 }
diverges = { "train.glr" = 1e30 }
fails = { "teacher.points" = "nowhere" }
"""


def without_digest(record: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in record.items() if name != "digest"}


def sets(*more: str) -> list[str]:
    return [word for text in (*SMALL, *more) for word in ("--set", text)]


def run(*words: str | Path, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "registry.cli", "study", *map(str, words)],
        cwd=cwd, env=environment(), capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip


@pytest.fixture(scope="module")
def toys(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished study of four runs, one of which has diverged and one has failed: its folder."""
    where = tmp_path_factory.mktemp("a study")
    (where / "toys.toml").write_text(METHODS)
    done = run("toys.toml", *sets(), "--seeds", "5", "--jobs", "2", cwd=where)
    assert (
        done.returncode == 1
        and done.stderr == "distill: --retry: 1 of 4 runs have failed, as is said above; with this they run again\n"
    )
    (where / "output.txt").write_text(done.stdout)
    return where / "runs" / "study-toys"


@pytest.fixture
def copied(toys: Path, tmp_path: Path) -> Path:
    """A copy of that study's folder, at the same path below another folder."""
    return Path(shutil.copytree(toys, tmp_path / "runs" / "study-toys"))


def test_failed_and_diverged_runs_are_results(toys: Path) -> None:
    content = json.loads((toys / "study.json").read_text())
    found = {cell["labels"][0]: cell for cell in content["cells"]}
    assert {name: cell["status"] for name, cell in found.items()} == {
        "learns": "done", "hurries": "done", "diverges": "diverged", "fails": "failed"
    }  # fmt: skip
    assert found["diverges"]["error"].startswith("the run has diverged: ")
    assert found["fails"]["error"].startswith("nowhere: no such data set")
    table = (toys / "table.md").read_text()
    assert "1 of 1 failed" in table and "1 of 1 diverged" in table
    assert "toy-fails, seed 5: failed (nowhere: no such data set" in (toys.parents[1] / "output.txt").read_text()


def test_every_run_is_one_that_a_user_could_type(toys: Path) -> None:
    content = json.loads((toys / "study.json").read_text())
    for cell in content["cells"]:
        assert cell["command"].startswith("distill --recipe toy_2d --set train.batch=32 ")
        assert "--seed 5 " in cell["command"]
        assert cell["attempt"]["threads"] == "1"
        assert set(cell["attempt"]["made_with"]) >= {"cpu", "python", "torch", "distill", "code"}
    values = [cell["rows"][0]["values"]["nearest"] for cell in content["cells"] if cell["status"] == "done"]
    assert values[0] != values[1]


def test_training_time_is_in_every_measurement_and_leaves_measuring_out(toys: Path) -> None:
    (folder,) = toys.glob("cells/toy-learns/seed-5/00000-*")
    seconds = [json.loads(line)["train_seconds"] for line in (folder / "metric-coverage.jsonl").read_text().splitlines()]
    assert len(seconds) == 2 and 0 < seconds[0] < seconds[1]
    ticks = [json.loads(line)["Timing/train_sec"]["mean"] for line in (folder / "stats.jsonl").read_text().splitlines()]
    assert len(ticks) == 4 and ticks == sorted(ticks)
    assert ticks[1] == seconds[0] and ticks[3] == seconds[1], "a tick and the measurement after it are at the same time of training"


def test_nothing_is_run_twice_and_reports_at_equal_time_need_no_runs(copied: Path, here: Here, monkeypatch: Any) -> None:
    monkeypatch.chdir(copied.parents[1])
    before = sorted(p for p in copied.rglob("*") if "cells" in p.parts)
    done = here("study", str(copied), "--equal", "time")
    assert done.returncode == 1 and "1 of 4 runs have failed" in done.stderr
    assert sorted(p for p in copied.rglob("*") if "cells" in p.parts) == before
    content = json.loads((copied / "study.json").read_text())
    ends = [cell["curve"][-1]["seconds"] for cell in content["cells"] if cell["status"] == "done"]
    assert content["time"] == min(ends)
    assert "s of training" in (copied / "table.md").read_text()


HUGE = "1" + "0" * 400
EDITED = {
    "attempt.json": ('"seconds": ', f'"seconds": {HUGE}, "before": '),
    "quality.json": ('"evaluations": ', f'"evaluations": {HUGE}, "before": '),
    "stats.jsonl": ('"Progress/kimg": {', f'"Progress/kimg": {{"mean": {HUGE}, "before": {{}}}}, "Progress/before": {{'),
    "quality.json, a name": ('"generator"', '"gene\\u001b[31mrator"'),
}  # fmt: skip


@pytest.mark.parametrize("what", EDITED)
def test_a_report_of_files_that_were_edited_is_no_bug_and_prints_no_control_characters(
    what: str, copied: Path, here: Here, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(copied.parents[1])
    old, new = EDITED[what]
    files = [p for p in copied.rglob(what.partition(",")[0]) if old in p.read_text()]
    assert files
    for path in files:
        path.write_text(path.read_text().replace(old, new))
    done = here("study", str(copied), "--report-only")
    assert done.returncode in (0, 1) and "bug" not in done.stderr, done.stderr
    assert "\x1b" not in done.stdout + done.stderr


def test_a_run_that_was_interrupted_while_it_was_loading_is_still_to_be_made(
    copied: Path, here: Here, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(copied.parents[1])
    (attempt,) = copied.glob("cells/*fails*/*/attempt.json")
    for number in (signal.SIGINT, signal.SIGTERM):
        attempt.write_text(json.dumps(json.loads(attempt.read_text()) | {"exit": -number}))
        assert here("study", str(copied), "--report-only").returncode == 0
        found = {cell["labels"][0]: cell["status"] for cell in json.loads((copied / "study.json").read_text())["cells"]}
        assert found["fails"] == "unfinished"


def test_a_run_that_another_study_has_made_is_copied(
    toys: Path, tmp_path: Path, plugins: Plugins, here: Here, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same recipe, seed, code and machine: nothing is left to run, and the numbers are those of the other study."""
    monkeypatch.chdir(tmp_path)
    words = ["--recipe", "toy_2d", "--vary", "train.glr=1e-3,1e-2", "--seeds", "5", *sets()]
    done = here("study", *words, "--reuse", toys.parent, "--outdir", "again")
    assert done.returncode == 0, done.stderr
    assert f"2 of 2 runs were copied from {toys.parent}" in (tmp_path / "again" / "log.txt").read_text()
    first, second = (json.loads((folder / "study.json").read_text())["cells"] for folder in (toys, tmp_path / "again"))
    assert [cell["rows"] for cell in first[:2]] == [cell["rows"] for cell in second]
    assert "copied from" in (tmp_path / "again" / "index.html").read_text()
    assert "is no folder" in error_line(here("study", *words, "--reuse", "nowhere"))

    study = read_study(None, recipe="toy_2d", vary=["train.glr=1e-3,1e-2,1e30"], seeds="5", sets=[*SMALL])
    cells = prepare(study, tmp_path / "third", plugins, cell_command)
    note = tmp_path / "again" / "cells" / "glr-0.01" / "seed-5" / "attempt.json"
    content = json.loads(note.read_text())
    content["made_with"]["code"] = "0123456789ab"
    note.write_text(json.dumps(content))
    seeds = tmp_path / "third" / "cells" / "glr-0.001"
    (seeds / ".seed-5.0123abcd.distill").mkdir(parents=True)  # of a copy that was killed
    other = tmp_path / "again" / "cells" / "glr-0.001" / "seed-5" / "elsewhere"
    for leads_to in ("nowhere", ".", "elsewhere", "/dev/zero", "attempt.json"):
        other.symlink_to(leads_to)
        with pytest.raises(UserError, match="elsewhere: cannot be copied: a study copies files and folders, and no links"):
            reuse(cells, tmp_path / "again")
        assert not list(seeds.iterdir())
        other.unlink()
    os.mkfifo(other)
    with pytest.raises(UserError, match="elsewhere: cannot be copied: "):
        reuse(cells, tmp_path / "again")
    other.unlink()
    assert [cell.combination.slug for cell in reuse(cells, tmp_path / "again")] == ["glr-0.001"]  # the other is by other code
    assert [cell.combination.slug for cell in reuse(cells, toys)] == ["glr-0.01"]  # the one that diverged is not copied


def test_a_run_that_was_resumed_by_hand_with_other_settings_is_no_result(
    copied: Path, plugins: Plugins, here: Here, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(copied.parents[1])
    done = next(path for path in sorted(copied.glob("cells/*/seed-*/0*-*/recipe.toml")) if (path.parent / "quality.json").is_file())
    recipe = done.read_text()
    assert "lr = 0.002\n" in recipe
    done.write_text(recipe.replace("lr = 0.002\n", "lr = 0.003\n", 1))
    line = error_line(here("study", str(copied), "--report-only"))
    assert "outdir" in line and "lr: 0.003 -> 0.002 (1 cell)" in line
    study = read_study(str(copied))
    cells = prepare(study, tmp_path / "third", plugins, cell_command)
    reused = {cell.folder.relative_to(tmp_path / "third") for cell in reuse(cells, copied)}
    assert reused and done.parents[1].relative_to(copied) not in reused

    done.write_text(recipe)  # as it was in the end, but not all the time
    quality = json.loads((done.parent / "quality.json").read_text())
    (done.parent / "quality.json").write_text(
        json.dumps(without_digest(quality) | {"changed": ["at 1 kimg: [train] lr: 0.002 -> 0.003"]})
    )
    assert here("study", str(copied), "--report-only").returncode == 0
    told = "was resumed by hand with other settings (at 1 kimg: [train] lr: 0.002 -> 0.003)"
    assert told in (copied / "study.json").read_text() and told in (copied / "index.html").read_text().replace("&gt;", ">")
    assert done.parents[1].relative_to(copied) not in {c.folder.relative_to(tmp_path / "third") for c in reuse(cells, copied)}
    of_study = prepare(study, copied, plugins, cell_command)
    cell = next(cell for cell in of_study if cell.folder == done.parents[1])
    forget_failures(of_study)
    assert status(cell)[0] is Status.UNFINISHED and cell.run_folder() is None
    assert (cell.folder / f"changed-{done.parent.name}").is_dir()


def test_a_table_of_another_length_is_not_the_cells(copied: Path, plugins: Plugins, here: Here, monkeypatch: Any) -> None:
    """Somebody made a table of the run before its end, or has gone on with it, and has then put the settings back."""
    monkeypatch.chdir(copied.parents[1])
    cells = prepare(read_study(str(copied)), Path("runs/study-toys"), plugins, cell_command)
    cell = next(cell for cell in cells if status(cell)[0] is Status.DONE)
    run = cell.run_folder()
    assert run is not None
    quality = json.loads((run / "quality.json").read_text())
    assert quality["nimg"] == cell.total and is_finished(cell, cell.folder)
    recipe = (run / "recipe.toml").read_text()
    assert "\nduration_kimg = 0.256\n" in recipe and "\nlr_decay = 0.0\n" in recipe
    for nimg, expected in ((cell.total - 32, Status.UNFINISHED), (cell.total + 32, Status.FAILED)):
        (run / "quality.json").write_text(json.dumps(without_digest(quality) | {"nimg": nimg}))
        (run / "recipe.toml").write_text(recipe.replace("\nduration_kimg = 0.256\n", f"\nduration_kimg = {nimg / 1000}\n"))
        assert here("study", str(copied), "--report-only").returncode == 0
        assert status(cell)[0] is expected
        assert not is_finished(cell, cell.folder)
    forget_failures(cells)
    assert status(cell)[0] is Status.UNFINISHED and (cell.folder / f"changed-{run.name}").is_dir()


def test_the_table_of_another_run_is_not_the_cells(copied: Path, plugins: Plugins, here: Here, monkeypatch: Any) -> None:
    monkeypatch.chdir(copied.parents[1])
    cells = prepare(read_study(str(copied)), Path("runs/study-toys"), plugins, cell_command)
    runs = [run for cell in cells if status(cell)[0] is Status.DONE and (run := cell.run_folder())]
    shutil.copy(runs[0] / "quality.json", runs[1] / "quality.json")
    done = next(cell for cell in cells if cell.run_folder() == runs[1])
    assert status(done) == (Status.FAILED, "its quality.json cannot be read, or is another run's")
    assert "quality.json: is the table of another run than the recipe.toml beside it" in error_line(here("table", runs[1]))
    assert here("table", runs[0]).returncode == 0
    forget_failures(cells)
    assert status(done)[0] is Status.UNFINISHED and (runs[1] / "quality.json.damaged").is_file()


def test_settings_that_teach_nothing_are_no_other_settings(copied: Path, here: Here, monkeypatch: Any) -> None:
    monkeypatch.chdir(copied.parents[1])
    done = next(path for path in sorted(copied.glob("cells/*/seed-*/0*-*/recipe.toml")) if (path.parent / "quality.json").is_file())
    recipe = done.read_text()
    assert '\nmemory = "full"\n' in recipe and "\nlr = 0.002\n" in recipe
    done.write_text(recipe.replace('\nmemory = "full"\n', '\nmemory = "lean"\n', 1))
    assert here("study", str(copied), "--report-only").returncode == 0
    assert here("study", str(copied), "--report-only", "--set", "train.batch_gpu=16").returncode == 0
    assert "\n[generator]\n" in recipe
    done.write_text(
        recipe.replace("\n[generator]\n", f'\n[generator]\ninit = "{next(done.parent.glob("network-snapshot-*"))}"\n', 1)
    )
    assert "[generator] init: " in error_line(here("study", str(copied), "--report-only")), "it may have begun there"
    done.write_text(recipe.replace("\nlr = 0.002\n", "\nlr = 0.003\n", 1))
    assert f"move {done.parent} away" in error_line(here("study", str(copied), "--report-only"))
    quality = without_digest(json.loads((done.parent / "quality.json").read_text()))
    changed = {"learned_by": learned_by(done), "changed": ["at 1 kimg: [train] lr: 0.002 -> 0.003"]}
    (done.parent / "quality.json").write_text(json.dumps(quality | changed))
    assert here("study", str(copied), "--report-only").returncode == 0
    assert "was resumed by hand with other settings (at 1 kimg: [train] lr" in (copied / "study.json").read_text()


def test_of_several_runs_that_are_the_same_a_finished_one_is_copied(copied: Path, plugins: Plugins, monkeypatch: Any) -> None:
    monkeypatch.chdir(copied.parents[1])
    begun = copied.with_name("study-zzz")
    shutil.copytree(copied, begun)
    for folder in begun.glob("cells/*/seed-*/0*-*"):
        shutil.rmtree(folder)
    cells = prepare(read_study(str(copied)), Path("runs/third"), plugins, cell_command)
    assert len(reuse(cells, copied.parent)) == 2


def test_a_changed_study_is_refused_with_what_differs(copied: Path, here: Here, monkeypatch: Any) -> None:
    monkeypatch.chdir(copied.parents[1])
    line = error_line(here("study", str(copied), "--set", "train.lr=1e-3", "--report-only"))
    assert "--outdir" in line or "outdir" in line
    assert "[train] lr: 0.002 -> 0.001 (4 cells)" in line


def test_digits_tell_what_a_run_would_read(tmp_path: Path) -> None:
    images, teacher = tmp_path / "images", tmp_path / "teacher.pt"
    (images / "00").mkdir(parents=True)
    (images / "00" / "a.png").write_bytes(b"1")
    (images / "dataset.json").write_bytes(b"labels")
    teacher.write_bytes(b"weights")
    tables = {"teacher": {"source": str(teacher)}, "eval": {"metrics": ["x"], "reference": str(images)}}
    seen = [sources(tables, {})]
    assert {*seen[0]} == {str(teacher), str(images)} and sources(tables, {}) == seen[0]
    assert sources({"log": {"outdir": str(tmp_path)}, "train": {"lr": 1}}, {}) == {}

    def changed(*paths: Path) -> bool:
        seen.append(sources(tables, {}))
        return {path for path, digits in seen[-1].items() if seen[-2][path] != digits} == {*map(str, paths)}

    for name in (".DS_Store", "README.md", "00/Thumbs.db"):  # no run reads these
        (images / name).write_bytes(b"1")
    assert changed()
    (images / "dataset.json").write_bytes(b"lables")
    assert changed(images)
    (images / "00" / "a.png").write_bytes(b"22")
    assert changed(images)
    (tmp_path / "more").mkdir()
    (images / "01").symlink_to(tmp_path / "more")
    (tmp_path / "more" / "b.png").write_bytes(b"1")
    assert changed(images)
    teacher.write_bytes(b"wieghts")
    assert changed(teacher)


def test_other_files_under_the_same_names_are_another_study(tmp_path: Path) -> None:
    """Their means would be of runs with different teachers."""
    teacher = tmp_path / "teacher.pt"
    teacher.write_bytes(b"weights")
    (tmp_path / "images").mkdir()
    tables = {"teacher": {"source": str(teacher)}, "eval": {"metrics": ["x"], "reference": str(tmp_path / "images")}}
    cells = [Cell(Combination((), {}, "a", {}), seed, tmp_path / f"cell-{seed}", (), (), tables) for seed in range(3)]
    for cell in with_sources(cells):
        cell.folder.mkdir()
        write_note(cell.folder, {"exit": 1, "sources": cell.sources})
    teacher.write_bytes(b"wieghts")
    check_same_sources(with_sources(cells), tmp_path)  # they have failed at once, and have nothing to keep
    for cell in cells[1:]:
        (cell.folder / "00000-run").mkdir()
        (cell.folder / "00000-run" / "training-state-000000.pt").touch()
    told = rf"{re.escape(str(teacher))} holds something else than when 2 runs \(a, seed 1, …\) began; put it back, move them away,"
    with pytest.raises(UserError, match=told):
        check_same_sources(with_sources(cells), tmp_path)
    teacher.write_bytes(b"weights")
    check_same_sources(with_sources(cells), tmp_path)


def test_runs_that_have_loaded_different_things_stand_in_no_table(copied: Path, here: Here, monkeypatch: Any) -> None:
    """Whatever the files hold by now."""
    monkeypatch.chdir(copied.parents[1])
    tables = [next(copied.glob(f"cells/toy-{name}/seed-5/*/quality.json")) for name in ("learns", "hurries")]
    quality = [json.loads(table.read_text()) for table in tables]
    assert len({text for each in quality if (text := each["made_from"]["teacher_weights"])}) == 1
    tables[-1].write_text(json.dumps(without_digest(quality[-1]) | {"made_from": {"teacher_weights": "0123456789abcdef"}}))
    line = error_line(here("study", str(copied), "--report-only"))
    assert "the teacher of toy-learns, seed 5 was another one than that of toy-hurries, seed 5, by the same name; move " in line
    assert f"{tables[-1].parents[1].relative_to(copied.parents[1])} away, and the same command makes it again" in line


def test_a_study_whose_teacher_was_damaged_goes_on_with_a_whole_one(recipe_file: Any, tmp_path: Path, here: Here) -> None:
    recipe, teacher = recipe_file(("samples = 32", "samples = 8")), tmp_path / "teacher.pt"
    text = recipe.read_text().replace("[eval]", '[eval]\nmetrics = ["sliced_wasserstein"]\nreference = "digits"')
    recipe.write_text(text)
    whole = teacher.read_bytes()
    teacher.write_bytes(whole[: len(whole) // 2])
    words = ["study", "--recipe", recipe, "--seeds", "1", "--outdir", tmp_path / "study"]
    done = here(*words)
    assert done.returncode == 1 and "1 of 1 runs have failed" in done.stderr, (done.stdout, done.stderr)
    teacher.write_bytes(whole)
    done = here(*words, "--retry")
    assert done.returncode == 0, (done.stdout, done.stderr)
    teacher.write_bytes(whole[: len(whole) // 2])
    line = error_line(here(*words))
    assert "teacher.pt holds something else than when 1 run (" in line


def test_retry_continues_failed_runs_and_begins_diverged_ones_anew(copied: Path, plugins: Plugins, monkeypatch: Any) -> None:
    monkeypatch.chdir(copied.parents[1])
    cells = prepare(read_study(str(copied)), Path("runs/study-toys"), plugins, cell_command)
    forget_failures(cells)
    assert {(c.combination.labels[0], status(c)[0]) for c in cells} == {
        ("learns", Status.DONE), ("hurries", Status.DONE), ("diverges", Status.UNFINISHED), ("fails", Status.UNFINISHED)
    }  # fmt: skip
    (kept,) = (copied / "cells" / "toy-diverges" / "seed-5").glob("diverged-00000-*")
    assert (kept / "log.txt").is_file()
    assert all(c.run_folder() is None for c in cells if c.combination.labels[0] == "diverges")


def wait_for(condition: Callable[[], object], seconds: float = 120) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.1)


@pytest.fixture
def started(tmp_path: Path) -> Iterator[Callable[[], subprocess.Popen[str]]]:
    """Starts a study of one long run in a process of its own; whatever is left is killed at the end."""
    words = [
        "--recipe",
        "toy_2d",
        *sets("train.duration_kimg=12.8", "log.snapshot_ticks=100", "log.state_ticks=20"),
        "--seeds",
        "3",
        "--outdir",
        "study",
    ]
    processes: list[subprocess.Popen[str]] = []

    def start() -> subprocess.Popen[str]:
        processes.append(subprocess.Popen(
            [sys.executable, "-m", "registry.cli", "study", *words], cwd=tmp_path, env=environment(), text=True,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        ))  # fmt: skip
        return processes[-1]

    yield start
    for process in processes:
        process.kill()
        process.communicate()
    pid = read_attempt(tmp_path / "study" / "cells" / "all" / "seed-3").get("pid")
    if isinstance(pid, int) and attempts.is_running(tmp_path / "study" / "cells" / "all" / "seed-3"):
        os.kill(pid, signal.SIGKILL)


def test_interrupted_with_ctrl_c_killed_and_continued(
    started: Callable[[], subprocess.Popen[str]], tmp_path: Path, here: Here, monkeypatch: Any
) -> None:
    """Ctrl-C reaches the run, which saves its state; kill -9 leaves the run behind, and the next study waits for it."""
    cell = tmp_path / "study" / "cells" / "all" / "seed-3"

    def ticks() -> int:
        return sum(len(p.read_text().splitlines()) for p in cell.glob("*/stats.jsonl"))

    def states() -> list[Path]:
        return sorted(cell.glob("*/training-state-*.pt"))

    first = started()
    wait_for(lambda: ticks() >= 2)
    monkeypatch.chdir(tmp_path)
    assert "another study is running in this folder" in error_line(here("study", "study"))
    first.send_signal(signal.SIGINT)
    out, err = first.communicate(timeout=120)
    assert first.returncode == 130, out + err
    assert err.strip() == "distill: interrupted with 0 of 1 cells done; the same command goes on from there"
    assert "stopping; waiting for all, seed 3" in out
    assert not attempts.is_running(cell)
    assert states(), "the run has saved its state"
    assert status_in(cell) == Status.UNFINISHED
    seconds = torch.load(states()[-1], weights_only=True)["seconds"]
    assert seconds > 0

    seen = ticks()
    second = started()
    wait_for(lambda: ticks() > seen)
    second.kill()
    second.communicate()
    assert attempts.is_running(cell), "kill -9 cannot be passed on"

    third = started()
    out, err = third.communicate(timeout=240)
    assert third.returncode == 0, out + err
    (found,) = json.loads((cell.parents[2] / "study.json").read_text())["cells"]
    assert found["status"] == "done"  # what was left running may have ended before the third began to look
    (folder,) = cell.glob("00000-toy_2d")  # one run folder: the second attempt went on in the first one's
    assert "resuming at" in (folder / "log.txt").read_text()
    lines = [json.loads(line) for line in (folder / "stats.jsonl").read_text().splitlines()]
    times = [line["Timing/train_sec"]["mean"] for line in lines]
    assert len(times) == 200 and times == sorted(times)
    assert times[-1] > seconds, "training time goes on counting"


def test_a_run_that_is_killed_alone_is_no_failure(started: Callable[[], subprocess.Popen[str]], tmp_path: Path) -> None:
    """As where memory runs out. The same command goes on with it."""
    cell = tmp_path / "study" / "cells" / "all" / "seed-3"
    first = started()
    wait_for(lambda: any(p.read_text().count("\n") > 20 for p in cell.glob("*/stats.jsonl")))
    os.kill(int(read_attempt(cell)["pid"]), signal.SIGKILL)
    _, err = first.communicate(timeout=120)
    assert (first.returncode, err) == (1, "distill: 1 of 1 runs were killed; the same command goes on with them\n")
    second = started()
    out, err = second.communicate(timeout=240)
    assert second.returncode == 0 and "1 of 1: all, seed 3: done" in out, out + err
    (folder,) = cell.glob("00000-toy_2d")
    assert "resuming at" in (folder / "log.txt").read_text()


def status_in(cell: Path) -> Status:
    """The status by the exit code alone."""
    code = read_attempt(cell)["exit"]
    return Status.UNFINISHED if code in (130, 143, -9, None) else Status.FAILED if code else Status.DONE


@pytest.mark.slow
def test_an_array_of_jobs_through_submitit(tmp_path: Path, plugins: Plugins) -> None:
    """submitit's executor for one machine, which is the same code as Slurm's but for who starts the jobs."""
    pytest.importorskip("submitit")
    done = run(
        "--recipe", "toy_2d", *sets("slurm.executor=local", "slurm.timeout_min=5"), "--vary", "teacher.points=ring,nowhere", "--seeds", "0",
        "--slurm", "--outdir", "array", cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 1 and "1 of 2 runs have failed" in done.stderr, done.stderr
    content = json.loads((tmp_path / "array" / "study.json").read_text())
    assert [cell["status"] for cell in content["cells"]] == ["done", "failed"]
    assert json.loads((tmp_path / "array" / "cells" / "points-ring" / "seed-0" / "job.json").read_text())["executor"] == "local"


def test_a_wrong_parameter_of_the_scheduler_is_named(tmp_path: Path, here: Here, monkeypatch: Any) -> None:
    pytest.importorskip("submitit")
    monkeypatch.chdir(tmp_path)
    line = error_line(here("study", "--recipe", "toy_2d", *sets("slurm.executor=local", "slurm.tiemout_min=5"), "--slurm"))
    assert "tiemout_min" in line


def test_a_job_that_the_scheduler_ends_saves_its_state_and_is_queued_again(tmp_path: Path, plugins: Plugins) -> None:
    pytest.importorskip("submitit")
    study = read_study(recipe="toy_2d", seeds="0", sets=(*SMALL, "train.duration_kimg=64"))
    (cell,) = prepare(study, tmp_path / "study", plugins, cell_command)
    job = CellJob(cell.folder, cell.command, cell.again, {})
    thread = threading.Thread(target=job)
    thread.start()
    wait_for(lambda: any(cell.folder.glob("*/stats.jsonl")))
    submission = job.checkpoint()
    thread.join()
    assert isinstance(submission.function, CellJob)
    assert submission.function.again[-2:] == ["--resume", "auto"]
    assert list(cell.folder.glob("*/training-state-*.pt"))
    assert status(cell)[0] is Status.UNFINISHED


@pytest.mark.parametrize("to", ["the job alone", "all of its processes"])
def test_submitit_queues_a_job_again_that_reaches_its_time_limit(to: str, tmp_path: Path, plugins: Plugins) -> None:
    """submitit's own process and handler, with a stand-in for scontrol. Slurm's signal reaches the run, too."""
    helpers = pytest.importorskip("submitit.helpers")
    study = read_study(recipe="toy_2d", seeds="0", sets=(*SMALL, "train.duration_kimg=64", "log.state_minutes=1000"))
    (cell,) = prepare(study, tmp_path / "study", plugins, cell_command)
    submission = helpers.DelayedSubmission(Call(), CellJob(cell.folder, cell.command, cell.again, {}))
    submission.set_timeout(0, 3)
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "scontrol").write_text(f'#!/bin/sh\necho "$@" >> "{tmp_path}/asked"\n')
    (tmp_path / "bin" / "scontrol").chmod(0o755)
    submission.dump(tmp_path / "77_0_submitted.pkl")
    slurm = {"SUBMITIT_EXECUTOR": "slurm", "SLURM_JOB_ID": "77", "SLURM_ARRAY_JOB_ID": "77", "SLURM_ARRAY_TASK_ID": "0"}
    env = environment({**slurm, "PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}"})
    command = [sys.executable, "-m", "submitit.core._submit", str(tmp_path)]
    job = subprocess.Popen(command, env=env, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    try:
        wait_for(lambda: any(cell.folder.glob("*/stats.jsonl")))
        run = read_attempt(cell.folder)["pid"]
        for pid in (job.pid, run) if to == "all of its processes" else (job.pid,):
            os.kill(pid, signal.SIGUSR2)
        told, _ = job.communicate(timeout=60)
    finally:
        job.kill()
    assert (tmp_path / "asked").read_text() == "requeue 77_0\n", told
    assert list(cell.folder.glob("*/training-state-*.pt")) and status(cell)[0] is Status.UNFINISHED
    again = helpers.DelayedSubmission.load(tmp_path / "77_0_submitted.pkl")
    assert isinstance(again.function, CellJob) and again.function.again[-2:] == ["--resume", "auto"]


@pytest.mark.parametrize(("answer", "code"), [("sbatch: error: invalid partition specified: gpu", 1), ("hello", 0)])
def test_a_scheduler_that_refuses_jobs_is_told_in_a_line(
    answer: str, code: int, tmp_path: Path, here: Here, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("submitit")
    (tmp_path / "bin").mkdir()
    for name in ("sbatch", "srun", "sacct", "scontrol"):
        text = f'#!/bin/sh\necho "{answer}"{" >&2" if code else ""}\nexit {code}\n' if name == "sbatch" else "#!/bin/sh\n"
        (tmp_path / "bin" / name).write_text(text)
        (tmp_path / "bin" / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    monkeypatch.chdir(tmp_path)
    done = here("study", "--recipe", "toy_2d", *sets("slurm.timeout_min=5"), "--slurm")
    *_, line = done.stderr.splitlines()  # submitit passes on what sbatch says
    assert done.returncode == 1 and "the scheduler does not take the jobs: " in line and answer in line


def test_a_pipe_in_a_cells_place_is_not_waited_for(tmp_path: Path) -> None:
    for name in (attempts.LOCK, attempts.OUTPUT, attempts.ERRORS):
        os.mkfifo(tmp_path / name)
        with pytest.raises(UserError, match=f"{name}: is no file; remove it"):
            attempts.begin(tmp_path, [sys.executable, "-c", "pass"], {}, {})
        (tmp_path / name).unlink()
        (tmp_path / "victim").write_text("my thesis")
        (tmp_path / name).symlink_to("victim")
        with pytest.raises(UserError, match=f"{name}: is a link; remove it"):
            attempts.begin(tmp_path, [sys.executable, "-c", "pass"], {}, {})
        assert (tmp_path / "victim").read_text() == "my thesis"
        (tmp_path / name).unlink()


@pytest.mark.parametrize("name", ["log.txt", "study.lock"])
def test_links_and_pipes_in_a_studys_folder(name: str, copied: Path, here: Here, monkeypatch: Any) -> None:
    monkeypatch.chdir(copied.parents[1])
    victim = copied.parents[1] / "victim.txt"
    victim.write_text("my thesis")
    (copied / name).unlink(missing_ok=True)
    (copied / name).symlink_to(victim)
    assert f"{name}: is a link; remove it" in error_line(here("study", str(copied)))
    assert victim.read_text() == "my thesis"
    (copied / name).unlink()
    os.mkfifo(copied / name)
    assert f"{name}: is no file; remove it" in error_line(here("study", str(copied)))


def test_another_study_does_not_go_into_a_studys_folder(copied: Path, here: Here, monkeypatch: Any) -> None:
    """Its report would have taken the place of the other's."""
    monkeypatch.chdir(copied.parents[1])
    before = (copied / "study.json").read_bytes()
    words = ["--recipe", "toy_2d", "--vary", "train.student_steps=1", "--seeds", "5", *sets(), "--outdir", copied]
    line = error_line(here("study", *words))
    assert "holds a study that varies " in line and "this one varies train.student_steps; give another folder" in line
    assert (copied / "study.json").read_bytes() == before


def test_the_words_of_an_attempt_are_shown_without_codes(copied: Path, here: Here, monkeypatch: Any) -> None:
    monkeypatch.chdir(copied.parents[1])
    note = next(copied.glob("cells/*/seed-*/attempt.json"))
    found = json.loads(note.read_text())
    found["made_with"] |= {"cpu": "\x1b[5m\u202eX"}
    note.write_text(json.dumps(found | {"exit": 4, "error": "\x1b[2JALL FINE\u202e" + "x" * 10**6}))
    done = here("study", str(copied), "--report-only")
    texts = [
        done.stdout,
        done.stderr,
        *((copied / name).read_text() for name in ("index.html", "results.csv", "study.json", "table.md")),
    ]
    assert "?[2JALL FINE?x" in texts[0] + texts[1]
    assert not any(code in text for text in texts for code in ("\x1b", "\u202e", "\\u001b", "\\u202e", "x" * 2000))


def test_an_attempt_is_written_down_whatever_the_clock_and_the_signal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The clock is set back meanwhile; and the signal is one of those that have no name."""
    attempt = attempts.begin(tmp_path, [sys.executable, "-c", "import os; os.kill(os.getpid(), 40)"], {}, {})
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now - 3600)
    attempt.process.wait(timeout=60)
    assert not attempt.poll()
    note = read_attempt(tmp_path)
    assert note["exit"] == -40 and note["error"] == "ended by signal 40" and 0 <= note["seconds"] < 60


@pytest.mark.parametrize("text", ["log = 3", "[[log]]\na = 1", "log = 1979-05-27", '[log]\n"a\\u0000b" = 1', "[log"])
def test_a_strange_recipe_in_a_folder_to_copy_from_is_passed_over(text: str, tmp_path: Path) -> None:
    cell = tmp_path / "cells" / "a" / "seed-0"
    cell.mkdir(parents=True)
    (cell / "recipe.toml").write_text(text)
    assert list(recorded(tmp_path)) == []


def test_an_empty_folder_is_no_run_of_a_cell(tmp_path: Path) -> None:
    for name in ("00000-short", "99999-short", "100000-short"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "recipe.toml").touch()
    (tmp_path / "100001-zzz").mkdir()
    assert run_folder(tmp_path) == tmp_path / "100000-short"


@pytest.mark.parametrize("what", ["a pipe", "a secret", "a large file"])
def test_what_is_no_grid_is_not_on_the_page(what: str, copied: Path, here: Here, monkeypatch: Any) -> None:
    monkeypatch.chdir(copied.parents[1])
    (copied.parents[1] / "secret.txt").write_text("a secret")
    grids = [path for path in copied.rglob("fakes_*.png") if path.name != "fakes_init.png"]
    assert grids
    for path in grids:
        path.unlink()
        if what == "a pipe":
            os.mkfifo(path)
        elif what == "a secret":
            path.symlink_to(copied.parents[1] / "secret.txt")
        else:
            with open(path, "wb") as file:
                file.write(PNG)
                file.truncate(1 << 30)
    done = here("study", str(copied), "--report-only")
    assert done.returncode == 0, done.stderr
    page = (copied / "index.html").read_text()
    assert len(page) < 5 << 20 and base64.b64encode(b"a secret").decode()[:10] not in page


def test_a_number_that_became_another_processs_gets_no_signal(tmp_path: Path) -> None:
    """attempt.json says which process to tell; it may be old, or somebody else's."""
    cell = tmp_path / "cell"
    ours = attempts.begin(cell, [sys.executable, "-c", "import time; time.sleep(60)"], {}, {})
    other = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    try:
        for pid in (other.pid, 0, -1, 1):
            attempts.write_note(cell, attempts.read_attempt(cell) | {"pid": pid})
            attempts.Leftover(cell).signal(signal.SIGTERM)
        time.sleep(0.5)
        assert other.poll() is None and attempts.is_running(cell)
        attempts.write_note(cell, attempts.read_attempt(cell) | {"pid": ours.process.pid})
        attempts.Leftover(cell).signal(signal.SIGTERM)
        assert ours.process.wait(20) == -signal.SIGTERM
    finally:
        for process in (other, ours.process):
            process.kill()
            process.wait()
