"""Run folders with strange files: what reads them says so in a line, or leaves the strange part out."""

from __future__ import annotations

import json
import os
import shutil
import stat
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from registry import distill
from registry.core.atomic import write_atomically
from registry.core.errors import UserError
from registry.files.json_lines import read_lines
from registry.recipe.texts import read_tables
from tests.conftest import error_line

Here = Callable[..., subprocess.CompletedProcess[str]]
METRIC = "metric-sliced_wasserstein.jsonl"
HUGE = "1" + "0" * 400


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    sets = {
        "warmup.kimg": 0, "train.duration_kimg": 0.016, "train.batch": 8, "log.grid": 1, "eval.metrics": ["sliced_wasserstein"],
        "eval.samples": 8, "eval.snapshot_samples": 8, "eval.repeats": 1, "eval.teacher_steps": [2],
    }  # fmt: skip
    return distill("quickstart", sets=sets, outdir=tmp_path_factory.mktemp("runs")).folder


def statistics(key: str, value: str) -> str:
    return json.dumps({"Progress/kimg": {"mean": 0.016}} | {key: {"mean": "@"}}).replace('"@"', value)


def measurement(**changes: Any) -> str:
    return json.dumps({"results": {"sliced_w2": 1.0}, "kimg": 0.016} | changes)


BOTH = {"Progress/kimg": {"mean": 1}, "a/b": {"mean": 2}}
LINES = {
    "a time that is infinite": ("stats.jsonl", statistics("Timing/train_sec", "Infinity")),
    "a time that is no number": ("stats.jsonl", statistics("Timing/train_sec", "NaN")),
    "images that are infinite": ("stats.jsonl", statistics("Progress/kimg", "Infinity")),
    "images as a list": (METRIC, measurement(samples=[1])),
    "images as a text": (METRIC, measurement(samples="many")),
    "no images": (METRIC, measurement(samples=0)),
    "a measurement at no time": (METRIC, measurement(kimg=float("nan"))),
    "both at once": (METRIC, measurement(results=5, **BOTH)),
    "both, and nothing measured": (METRIC, measurement(results=None, **BOTH)),
}
FILES: dict[str, tuple[str, str]] = {
    "a column that is no text": (METRIC, '{"results": {"\\ud800": 1.0}, "kimg": 1}\n'),
    "a best value beyond all bounds": ("best.json", f'{{"value": {HUGE}, "kimg": 1, "column": "a"}}'),
    "a best snapshot beyond all bounds": ("best.json", f'{{"value": 1, "kimg": {HUGE}, "column": "a"}}'),
    "a recipe that TOML's writer cannot write": ("recipe.toml", 'foo = ["a", {b = 1}]\n[teacher]\nD = [1, {a = 07:32:00}]\n'),
    "a batch of thousands of digits": ("recipe.toml", f"[train]\nbatch = 0x{'f' * 6000}\n"),
    "a dimension of hundreds of digits": ("recipe.toml", f"[teacher]\nD = {HUGE}\n"),
    "a picture with a name of its own": ("teacher-abc.png", "no picture"),
    "a picture with other digits": ("teacher-²³.png", "no picture"),
    "a snapshot with other digits": ("fakes_٣.png", "no picture"),
}


@pytest.mark.parametrize("case", [*LINES, *FILES])
def test_a_page_and_the_list_of_runs_are_made_without_what_is_strange(
    case: str, finished: Path, here: Here, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "runs" / "00000-strange"
    shutil.copytree(finished, folder)
    if case in LINES:
        name, text = LINES[case]
        before = read_lines(folder / name)
        (folder / name).write_text(f"{text}\n{(folder / name).read_text()}{text}\n")
        assert read_lines(folder / name) == before
    else:
        name, text = FILES[case]
        if name == METRIC:
            (folder / "quality.json").unlink()
        (folder / name).write_text(text)
    for words in (("report", folder), ("runs",)):
        done = here(*words)
        assert done.returncode == 0, (words, done.stderr)
    assert "00000-strange" in done.stdout


def test_the_number_of_images_of_a_table_is_bounded(finished: Path, here: Here, tmp_path: Path) -> None:
    shutil.copytree(finished, tmp_path / "run")
    quality = tmp_path / "run" / "quality.json"
    quality.write_text(json.dumps(json.loads(quality.read_text()) | {"nimg": "@"}).replace('"@"', HUGE))
    assert here("report", tmp_path / "run").returncode == here("runs", tmp_path).returncode == 0


def test_a_recipe_shows_its_own_text(finished: Path, here: Here, tmp_path: Path) -> None:
    shutil.copytree(finished, tmp_path / "run")
    (tmp_path / "run" / "recipe.toml").write_text('# <b>mine</b>\nfoo = ["a", {b = 1}]\n')
    assert here("report", tmp_path / "run").returncode == 0
    assert "# &lt;b&gt;mine&lt;/b&gt;" in (tmp_path / "run" / "report.html").read_text()


def test_integers_have_64_bits(tmp_path: Path) -> None:
    (tmp_path / "large.toml").write_text(f"[train]\nbatch = [{{a = {2**63}}}]\n")
    with pytest.raises(UserError, match="it has a whole number of more than 64 bits"):
        read_tables(tmp_path / "large.toml")
    (tmp_path / "large.toml").write_text(f"batch = {2**63 - 1}\n")
    assert read_tables(tmp_path / "large.toml") == {"batch": 2**63 - 1}


def test_a_pipe_is_not_replaced_by_a_file(finished: Path, here: Here, tmp_path: Path) -> None:
    """Nor is a device, such as /dev/null for root."""
    pipe = tmp_path / "pipe.html"
    os.mkfifo(pipe)
    (tmp_path / "link.html").symlink_to(pipe)
    for path in (pipe, tmp_path / "link.html"):
        assert "is a device or a pipe; give the name of a file" in error_line(here("report", finished, "--output", path))
        with pytest.raises(UserError, match="is a device or a pipe"):
            write_atomically(path, b"")
    assert stat.S_ISFIFO(pipe.stat().st_mode)
    assert {path.name for path in tmp_path.iterdir()} == {"pipe.html", "link.html"}


def test_names_that_are_no_characters(finished: Path, here: Here, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copytree(finished, "r\udcff")
    assert here("report", "r\udcff").returncode == here("runs", tmp_path).returncode == 0
    assert "the name is not in UTF-8, which safetensors needs" in error_line(here("export", "r\udcff", "hub\udcff"))
    done = here("evaluate", "--network", "r\udcff", "--reference", "digits", "--metrics", "sliced_wasserstein", "--samples", "8")
    assert done.returncode == 0, done.stderr
    (saved,) = tmp_path.rglob("*.metric-*.json")
    assert here("table", saved).returncode == 0
