"""distill init: recipes to begin with, which run as they are written."""

from __future__ import annotations

import re
import subprocess
import tomllib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from registry import distill, load_teacher, pretrain
from registry.plugins.loading import load_plugins
from registry.recipe.reading import resolve
from registry.recipe.resolved import PretrainRecipe, Recipe
from tests.conftest import error_line

Here = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    folder = tmp_path / "my pictures"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for i in range(40):
        Image.fromarray(rng.integers(0, 256, (16, 16, 3), np.uint8)).save(folder / f"{i}.png")
    return folder


def test_from_pictures_to_a_generator(pictures: Path, here: Here, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    done = here("init", "--data", pictures, "--dim", "128")
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "  distill pretrain --recipe 'my pictures.toml' --save 'my pictures.pt'"
    short = {
        "train.batch": 8,
        "train.duration_kimg": 0.016,
        "log.grid": 2,
        "eval.samples": 20,
        "eval.snapshot_samples": 0,
        "eval.repeats": 1,
    }
    file = pretrain("my pictures.toml", sets=short, save="my pictures.pt")
    assert (load_teacher(file).image_shape, load_teacher(file).D) == ((3, 16, 16), 128.0)
    done = here("init", "flowers", "--teacher", file, "--data", pictures)
    assert done.returncode == 0, done.stderr
    measured = [tomllib.loads((tmp_path / f"{name}.toml").read_text())["eval"] for name in ("my pictures", "flowers")]
    assert [[table[key] for key in ("samples", "snapshot_samples")] for table in measured] == [[200, 200], [200, 200]]
    short |= {
        "warmup.kimg": 0.008,
        "warmup.pairs": 8,
        "warmup.student_kimg": 0.008,
        "train.duration_kimg": 0.008,
        "eval.teacher_steps": [2],
    }
    result = distill("flowers.toml", sets=short)
    assert result.generator.sample(2).shape == (2, 3, 16, 16)
    assert [row.name for row in result.rows][:2] == ["generator", "teacher"]


@pytest.mark.parametrize(
    ("teacher", "wanted"),
    [("digits_d128", "ipfm"), ("digits_dinf", "ipfm"), ("edm:imagenet64-cond", "ipfm"), ("pfgmpp:ffhq_ddpm_D_128", "ipfm")],
)
def test_every_teachers_recipe_is_valid(
    teacher: str, wanted: str, here: Here, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    done = here("init", "mine", "--teacher", teacher)
    assert done.returncode == 0, done.stderr
    recipe = resolve("mine.toml", load_plugins())
    assert isinstance(recipe, Recipe)
    assert recipe.loss.name == wanted
    assert recipe.warmup.kimg == (154 if "digits" in teacher else 0)
    text = (tmp_path / "mine.toml").read_text()
    assert "{" not in text
    assert re.search(r"^#   distill --recipe mine.toml$", text, re.M)


@pytest.mark.parametrize("D", ["inf", "128", "0.5"])
def test_every_dimension(D: str, pictures: Path, here: Here, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert here("init", "t", "--data", pictures, "--dim", D).returncode == 0
    recipe = resolve("t.toml", load_plugins())
    assert isinstance(recipe, PretrainRecipe)
    assert float(D) == recipe.network.D


def test_mistakes(pictures: Path, here: Here, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert "give --teacher FILE, or --data FOLDER, or both; see " in here("init").stderr
    assert "--data nothing: no such data set" in error_line(here("init", "--data", "nothing"))
    assert "nothing: no such file" in error_line(here("init", "--teacher", "nothing"))
    assert "--dim -1: must be a positive number, or inf" in error_line(here("init", "--data", pictures, "--dim", "-1"))
    assert "its images are 3×16×16, the teacher's 1×8×8" in error_line(here("init", "--teacher", "digits_d128", "--data", pictures))
    (tmp_path / "digits_d128.toml").write_text("mine")
    assert "digits_d128.toml: is there already" in error_line(here("init", "--teacher", "digits_d128"))
    assert (tmp_path / "digits_d128.toml").read_text() == "mine"
    assert {p.name for p in tmp_path.iterdir()} == {"my pictures", "digits_d128.toml"}
