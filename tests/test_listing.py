"""distill runs, distill recipes, and the command as a module."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from registry import distill
from registry.files.locate import shipped
from tests.conftest import environment, error_line

Here = Callable[..., subprocess.CompletedProcess[str]]
SETS = {"warmup.kimg": 0, "train.batch": 8, "train.duration_kimg": 0.016, "log.tick_kimg": 0.008, "eval.samples": 20,
        "eval.snapshot_samples": 20, "eval.repeats": 1, "eval.teacher_steps": [2], "log.grid": 1}  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run, one that was stopped, and other things."""
    folder = tmp_path_factory.mktemp("listed")
    first = distill("quickstart", sets=SETS, outdir=folder).folder
    stopped = folder / "00001-quickstart"
    shutil.copytree(first, stopped)
    (stopped / "quality.json").unlink()
    (folder / "notes.txt").write_text("x")
    (folder / "empty").mkdir()
    return folder


def test_runs_are_listed(folder: Path, here: Here) -> None:
    done = here("runs", folder)
    assert done.returncode == 0, done.stderr
    rows = [line.split() for line in done.stdout.splitlines()]
    assert rows[0] == ["run", "loss", "D", "K", "kimg", "best", "state"]
    assert [row[:7] for row in rows[1:] if row[0][:4] == "0000"] == [
        ["00000-quickstart", "ipfm", "128", "1", "0.016", "of", "0.016"],
        ["00001-quickstart", "ipfm", "128", "1", "0.016", "of", "0.016"],
    ]
    text = " ".join(done.stdout.split())
    assert "finished" in text
    assert "stopped, can" in text
    assert "be resumed" in text
    assert "frechet" in text


def test_no_runs(here: Here, tmp_path: Path) -> None:
    assert "there are no runs in it" in error_line(here("runs", tmp_path))
    assert "no such folder" in error_line(here("runs", tmp_path / "nothing"))


def test_recipes_are_listed(here: Here) -> None:
    done = here("recipes")
    assert done.returncode == 0, done.stderr
    headings = ("distill --recipe NAME", "distill pretrain --recipe NAME", "distill features --recipe NAME", "distill study NAME")
    assert [line for line in done.stdout.splitlines() if line.startswith("distill ")] == list(headings)
    names = [line.split()[0] for line in done.stdout.splitlines() if line[:1].strip() and line not in headings]
    wanted = {
        p.stem if p.parent.name == "studies" else p.relative_to(shipped()).with_suffix("").as_posix()
        for p in shipped().rglob("*.toml")
    }
    assert {*names} == wanted
    row = next(line for line in done.stdout.splitlines() if line.startswith("quickstart"))
    assert " here " in row
    assert "not here" in next(line for line in done.stdout.splitlines() if line.startswith("sid_ffhq64"))


@pytest.mark.parametrize("module", ["registry", "registry.cli"])
def test_the_command_as_a_module(module: str, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", module, "--version"], env=environment(), cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout) == (0, "distill, version 0.1.0\n")
