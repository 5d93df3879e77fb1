"""Odd recipes and odd calls: one line, soon, and nothing begun. None of them is called a bug of ours."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import ROOT, error_line

Here = Callable[..., subprocess.CompletedProcess[str]]
Write = Callable[..., Path]

TEXTS = {
    "nested lists": "a = " + "[" * 10_000 + "]" * 10_000,
    "nested tables": "a = " + "{b = " * 3000 + "1" + "}" * 3000,
    "a long key": ".".join(["a"] * 100_000) + " = 1",
    "a long header": "[" + ".".join(["a"] * 100_000) + "]",
    "a long number": "[train]\nbatch = " + "9" * 5000,
    "a long file": "# nothing\n" * 200_000,
    "control characters": "[tr\x1bain]",
    "a long word": "x" * 900_000,
}


@pytest.mark.parametrize("case", TEXTS)
def test_a_text_that_is_no_recipe(case: str, here: Here, tmp_path: Path) -> None:
    (tmp_path / "odd.toml").write_text(TEXTS[case])
    for command in (["check"], ["--dry-run", "--recipe"]):
        done = here(*command, tmp_path / "odd.toml")
        line = next(line for line in (done.stdout + done.stderr).splitlines() if "odd.toml: not" in line)
        assert done.returncode == 1 and len(line) < 1000 and line.isprintable()


CALLS = {
    "a seed of 5,000 digits": (["generate", "--network", "digits_d3", "--outdir", "o", "--seeds", "9" * 5000], "write numbers and ranges"),
    "a seed of twenty digits": (["generate", "--network", "digits_d3", "--outdir", "o", "--seeds", "18446744073709551616"], "a seed must be below 2^32"),
    "no address": (["inspect", "http://[::1"], "http://[::1: not an address"),
    "no address in a recipe": (["--dry-run", "--recipe", "quickstart", "--set", "teacher.source=http://[::1"], "[teacher] source = 'http://[::1': not an address"),
    "a longer run than ever": (["--recipe", "quickstart", "--set", "train.duration_kimg=1e308"], "duration_kimg = 1e+308: must be less than"),
    "a higher start than the teacher knows": (["--recipe", "quickstart", "--set", "noise.sigma_init=1e308"], "sigma_max = 80.0: must be at least sigma_init"),
    "a home of nobody": (["inspect", "~nosuchuser/x.pkl"], "~nosuchuser/x.pkl: no such file"),
    "a state in a home of nobody": (["--recipe", "quickstart", "--resume", "~nosuchuser/x"], "--resume ~nosuchuser/x: no such file or folder"),
    "images in a home of nobody": (["dataset", "~nosuchuser/x", "o.zip"], "~nosuchuser/x: no such folder or file"),
    "no recipe": (["--recipe", ""], "--recipe is empty; leave it out, or give it a value"),
    "steps without an end": (["generate", "--network", "digits_d3", "--outdir", "o", "--seeds", "0", "--steps", "1000000000"], "--steps 1000000000: must be at most 10,000 Heun steps"),
    "a hundred million points": (["--recipe", "toy_2d", "--set", "teacher.count=100000000"], "must be less than or equal to 1000000"),
    "no folder": (["--recipe", "quickstart", "--outdir", ""], "--outdir is empty; leave it out, or give it a value"),
    "no folder, in one word": (["generate", "--network", "digits_d3", "--seeds", "0", "--outdir="], "--outdir is empty"),
    "no folder in a recipe": (["--recipe", "quickstart", "--set", "log.outdir=''"], "[log] outdir = '': must not be empty"),
    "no network's name": (["generate", "--network", "digits_d3", "--key", "", "--seeds", "0", "--outdir", "o"], "--key is empty"),
    "no name": (["init", "", "--teacher", "digits_d3"], "an argument is empty"),
    "a folder for a recipe's name": (["init", ".", "--teacher", "digits_d3"], "name = '.': must be the name of a file"),
    "digits of another script": (["generate", "--network", "digits_d3", "--outdir", "o", "--seeds", "\u0663"], "write numbers and ranges"),
    "a negative factor": (["pretrain", "--recipe", "teachers/digits_d3", "--set", "network.channel_mult=[-1]"], "must be greater than or equal to 1"),
    "no factors": (["pretrain", "--recipe", "teachers/digits_d3", "--set", "network.channel_mult=[]"], "must have 1 to 16 entries"),
    "a wide network": (["pretrain", "--recipe", "teachers/digits_d3", "--set", "network.model_channels=1000000"], "must be less than or equal to 8192"),
    "a deep network": (["pretrain", "--recipe", "teachers/digits_d3", "--set", "network.num_blocks=1000000"], "must be less than or equal to 100"),
    "a wide classifier": (["features", "--recipe", "features/digits_features", "--set", "classifier.width=100000000", "--save", "f.pt"], "must be less than or equal to 4096"),
    "a study for a recipe": (["--recipe", str(ROOT / "recipes/studies/alpha.toml"), "--dry-run"], "is a study, not a recipe; to check it: distill study"),
    "a loss that does not exist": (["--recipe", "quickstart", "--loss", "sidd"], "--loss sidd: [loss] use = 'sidd': no loss is called"),
    "a swap that comes too late": (["--recipe", "quickstart", "--loss", "sid", "--set", "swap.sid.loss.alpha=-7"], "comes too late, for [swap.sid] is laid over already"),
    "a D that is not asked for": (["init", "new", "--teacher", "digits_d128", "--dim", "64"], "--dim 64: is that of a teacher to train"),
    "a page in a network's place": (["report", "no_run", "--output", "network-snapshot-best.pkl"], "--output network-snapshot-best.pkl: a page's name ends in .html"),
    "a number of 1,001 digits": (["--recipe", "quickstart", "--set", "train.rollbacks=1" + "0" * 1000], "it has a whole number of more than 64 bits"),
    "a number of 21 digits": (["--recipe", "quickstart", "--set", "eval.samples=1" + "0" * 20], "it has a whole number of more than 64 bits"),
    "a number of 21 digits in a list": (["--recipe", "quickstart", "--set", "eval.teacher_steps=[1" + "0" * 20 + "]"], "it has a whole number of more than 64 bits"),
    "a nested setting": (["--recipe", "quickstart", "--set", "train.batch=" + "[" * 5000], "its value is nested too deeply"),
}  # fmt: skip


@pytest.mark.parametrize("case", CALLS)
def test_an_odd_call(case: str, here: Here, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    words, wanted = CALLS[case]
    monkeypatch.chdir(tmp_path)
    assert wanted in error_line(here(*words))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["数字", "$\\nothing$", "a & b < c", "C:\\xray \\u12"])
def test_a_run_may_have_any_name(name: str, recipe_file: Callable[..., Path], here: Here, recwarn: pytest.WarningsRecorder) -> None:
    done = here("--recipe", recipe_file(name=f"{name}.toml"))
    assert done.returncode == 0, done.stderr
    assert not done.stderr and not [w for w in recwarn if "Glyph" in str(w.message)]


@pytest.mark.parametrize("part", ["4294967295", "9" * 18])
def test_a_part_that_is_far_too_large(part: str, here: Here, recipe_file: Write) -> None:
    line = error_line(here("--recipe", recipe_file(), "--set", f"train.batch_gpu={part}", "--dry-run"))
    assert line.endswith("must divide batch = 8; the next lower number that does is 8")


def test_a_line_break_in_a_name_is_no_line_break_in_an_error(here: Here) -> None:
    for words in (["table", "a\nb"], ["plan", "a\nb"], ["inspect", "a\nb"]):
        assert "a?b" in error_line(here(*words))


def test_a_folder_is_no_place_for_a_network(here: Here, tmp_path: Path) -> None:
    (tmp_path / "a.pt").mkdir()
    for command, recipe in (("features", "digits_features"), ("pretrain", "teachers/digits_d128")):
        assert (
            "--save" in (line := error_line(here(command, "--recipe", recipe, "--save", tmp_path / "a.pt")))
            and "is a folder" in line
        )


def test_a_recipes_name_need_not_be_text(cli: Here, recipe_file: Write, tmp_path: Path) -> None:
    """A byte that is not UTF-8, and a line's end, in a file's name."""
    path = os.fsencode(tmp_path) + b"/s\xff\n.toml"
    recipe_file().rename(os.fsdecode(path))
    done = cli("--recipe", os.fsdecode(path))
    assert done.returncode == 0, done.stderr
    assert len(list((tmp_path / "runs").rglob("curves.png"))) == 1


def test_what_another_loss_would_lay_over_is_checked_too(here: Here, tmp_path: Path) -> None:
    text = (ROOT / "recipes" / "quickstart.toml").read_text()
    (tmp_path / "mine.toml").write_text(text + "\n[swap.sid.generator]\nsteps = -1\n")
    done = here("check", tmp_path / "mine.toml")
    assert done.returncode == 1 and "steps = -1" in done.stderr, done


@pytest.mark.parametrize("word", ["--version", "--help"])
def test_what_is_asked_is_not_shared_among_processes(word: str, here: Here) -> None:
    done = here("launch", "--processes", "2", "--recipe", "quickstart", word)
    assert done.returncode == 2 and f"{word} is nothing to share among processes" in done.stderr


def test_a_list_in_place_of_a_table_is_told_of_once(here: Here, tmp_path: Path) -> None:
    text = (ROOT / "recipes" / "quickstart.toml").read_text()
    (tmp_path / "mine.toml").write_text(text.replace("[train]", "[[train]]"))
    assert "[train] is [{" in error_line(here("--dry-run", "--recipe", tmp_path / "mine.toml"))
