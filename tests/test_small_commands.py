"""What makes the command pleasant: the cache folder, completion, warnings of settings that do nothing, defaults that fit a run."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from registry import distill
from registry.plugins.loading import load_plugins
from registry.recipe.doubts import doubts
from registry.recipe.reading import resolve
from registry.recipe.resolved import PretrainRecipe, Recipe
from registry.recipe.tables import LogConfig
from registry.runs import threads
from registry.show.journal import Journal
from tests.conftest import ROOT, environment, error_line

Cli = Callable[..., subprocess.CompletedProcess[str]]


def test_the_cache_is_shown_and_cleared_but_for_what_is_the_users(cli: Cli, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    for name in (
        f"statistics/{'a' * 16}-{'b' * 16}.npz",
        "quality/b.quality.json",
        f"pairs/{'c' * 16}.pt",
        "statistics/my-own.npz",
        "quality/a/b.quality.json",
        "pairs/thesis.txt",
        "0123456789ab-teacher.pkl",
        "inception-2015-12-05.pt",
        "mine/x.pt",
    ):
        (cache / name).parent.mkdir(parents=True, exist_ok=True)
        (cache / name).write_bytes(b"0" * 2**20)
    env = {"DISTILL_CACHE_DIR": str(cache)}
    shown = cli("cache", env=env).stdout
    lines = {line.rsplit(maxsplit=3)[0].strip(): line.split()[-3:] for line in shown.splitlines()[2:]}
    assert lines["downloads"] == ["1", "1.0", "MiB"] and lines["yours: put here by hand"] == ["5", "5.0", "MiB"]
    assert cli("cache", "--clear", env=env).stdout.startswith("4.0 MiB removed from ")
    left = sorted(p.relative_to(cache).as_posix() for p in cache.rglob("*") if p.is_file())
    own = ["pairs/thesis.txt", "quality/a/b.quality.json", "statistics/my-own.npz"]
    assert left == ["inception-2015-12-05.pt", "mine/x.pt", *own]


def test_a_cache_folder_that_is_none(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for place, problem in (("file", "is no folder; set DISTILL_CACHE_DIR to one"), ("file/x", "cannot be used: Not a directory")):
        line = error_line(cli("cache", env={"DISTILL_CACHE_DIR": str(tmp_path / place)}))
        assert line.startswith(f"distill: the cache folder {tmp_path / place} {problem}")


def test_a_run_needs_no_cache_for_a_shipped_teachers_rows(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    sets = ["warmup.kimg=0", "train.duration_kimg=0.256", "eval.samples=50", "eval.repeats=1", "eval.teacher_steps=[1]"]
    words = [word for each in (*sets, "eval.snapshot_samples=0") for word in ("--set", each)]
    done = cli("--recipe", "quickstart", *words, "--outdir", tmp_path / "r", env={"DISTILL_CACHE_DIR": str(tmp_path / "file")})
    assert done.returncode == 0, done.stderr
    assert "the teacher's rows are not kept: the cache folder" in done.stdout
    assert (tmp_path / "r" / "00000-quickstart" / "quality.json").is_file()


@pytest.mark.parametrize(("words", "found"), [
    ("distill --recipe ipfm_c", "plain,ipfm_cifar10_d128"), ("distill --recipe quickstart --loss s", "plain,sid"),
    ("distill generate --network edm:c", "plain,edm:cifar10-uncond"), ("distill check teachers/digits_d3", "plain,teachers/digits_d3"),
    ("distill inspect some", "file,some"), ("distill study alp", "plain,alpha"), ("distill ex", "plain,export"),
])  # fmt: skip
def test_the_shell_completes(words: str, found: str) -> None:
    asked = {"_DISTILL_COMPLETE": "bash_complete", "COMP_WORDS": words, "COMP_CWORD": str(len(words.split()) - 1)}
    done = subprocess.run(
        [Path(sys.executable).with_name("distill")], env=environment(asked), capture_output=True, text=True, check=False
    )
    assert found in done.stdout.splitlines() and not done.stderr


@pytest.mark.parametrize(("words", "wanted", "unwanted"), [
    ("distill --recipe quick", "quickstart", "quick.txt"), ("distill --recipe t", "toy_2d", "teachers/digits_d3"),
    ("distill pretrain --recipe teach", "teachers/digits_d128", "quickstart"), ("distill generate --network digits_d1", "digits_d128", "digits_d1.toml"),
    ("distill --resume a", "auto", "quickstart"), ("distill --set train.du", "train.duration_kimg", "train.batch"),
    ("distill --set loss.a", "loss.alpha", "loss.use"), ("distill pretrain --set network.a", "network.arch", "network.D"),
    ("distill --recipe sid_c", "sid_cifar10_uncond", "sid_c.pt"),
])  # fmt: skip
def test_bash_has_names_and_files(words: str, wanted: str, unwanted: str, tmp_path: Path) -> None:
    """The function that bash gets is called as bash calls it."""
    for name in ("quick.txt", "digits_d1.toml", "sid_c.pt"):
        (tmp_path / name).touch()
    command = Path(sys.executable).with_name("distill")
    env = environment({"PATH": f"{command.parent}:{os.environ['PATH']}"})
    script = subprocess.run(
        [command], env=env | {"_DISTILL_COMPLETE": "bash_source"}, capture_output=True, text=True, check=True
    ).stdout
    asked = f'COMP_WORDS=({words}); COMP_CWORD={len(words.split()) - 1}; _distill_completion distill; printf "%s\\n" "${{COMPREPLY[@]}}"'
    done = subprocess.run(["bash", "-c", f"{script}\n{asked}"], cwd=tmp_path, env=env, capture_output=True, text=True, check=False)
    found = done.stdout.splitlines()
    assert wanted in found and unwanted not in found, done


def recipe(*sets: str, name: str = "quickstart") -> Recipe | PretrainRecipe:
    found = resolve(name, load_plugins(), sets)
    assert isinstance(found, Recipe | PretrainRecipe)
    return found


@pytest.mark.parametrize(("sets", "text"), [
    (["train.ema_rampup_ratio=0", "train.ema_halflife_kimg=5000"], "[train] ema_halflife_kimg = 5000: longer than the run"),
    (["log.snapshot_ticks=50000"], "[log] snapshot_ticks: 50000 × 6.4 kimg is longer than the run"),
    (["log.tick_kimg=0.01"], "[log] tick_kimg = 0.01: less than a batch of 128: every iteration is a tick"),
])  # fmt: skip
def test_settings_that_do_nothing_are_warned_of(sets: list[str], text: str, cli: Cli) -> None:
    assert any(doubt.startswith(text) for doubt in doubts(recipe(*sets)))
    checked = cli("check", "quickstart", *(word for s in sets for word in ("--set", s)))
    assert checked.returncode == 0 and f"WARNING: {text}" in checked.stdout


def test_a_teachers_rampup_that_never_ends_is_warned_of() -> None:
    (line,) = doubts(recipe("train.lr_rampup_kimg=1e6", name="teachers/digits_d3"))
    assert "which never reaches lr" in line


def test_no_shipped_recipe_is_warned_of() -> None:
    for path in (ROOT / "recipes").rglob("*.toml"):
        if path.parent.name not in ("studies", "features"):
            assert doubts(recipe(name=str(path))) == [], path


def test_what_is_not_set_fits_the_run() -> None:
    assert LogConfig().fitted(100_000, 256) == LogConfig() and LogConfig().fitted(0, 256) == LogConfig()
    short = LogConfig().fitted(48, 256)
    assert (short.tick_kimg, short.snapshot_ticks) == (0.48, 10)
    assert (
        LogConfig(tick_kimg=12).fitted(48, 256).tick_kimg == 12 and LogConfig(snapshot_ticks=7).fitted(48, 256).snapshot_ticks == 7
    )
    for kimg in (0.01, 1, 37, 800, 4999, 5000, 123_456):
        log = LogConfig().fitted(kimg, 128)
        between = log.tick_kimg * log.snapshot_ticks
        assert 0 < between <= kimg
        assert log.tick_kimg >= min(0.128, kimg) and (between >= 1 or log.tick_kimg * (log.snapshot_ticks + 1) > kimg)


def test_a_snapshot_has_no_more_images_than_the_final_table() -> None:
    few, set_ = (
        recipe("eval.samples=300", *more, name="teachers/digits_d3").eval for more in ((), ("eval.snapshot_samples=1000",))
    )
    assert (few.snapshot_samples, set_.snapshot_samples) == (300, 1000)


def test_a_teachers_rampup_is_a_share_of_a_short_run(recipe_file: Callable[..., Path], tmp_path: Path) -> None:
    text = (ROOT / "recipes" / "teachers" / "digits_d3.toml").read_text().replace("lr_rampup_kimg = 6.4\n", "")
    (tmp_path / "teacher.toml").write_text(text)
    found = recipe(name=str(tmp_path / "teacher.toml")).train
    assert found.lr_rampup_kimg == found.duration_kimg / 20  # type: ignore[union-attr]
    assert recipe("train.duration_kimg=1e6", name=str(tmp_path / "teacher.toml")).train.lr_rampup_kimg == 10_000  # type: ignore[union-attr]


class Lines(Journal):
    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []

    def log(self, text: str) -> None:
        self.lines.append(text)


@pytest.mark.parametrize(("one", "all_", "chosen"), [(0.1, 0.5, 1), (0.5, 0.1, 4), (0.5, 0.5, 4)])
def test_the_faster_number_of_threads_is_taken(one: float, all_: float, chosen: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The clock is ours: an iteration takes so long with one thread, and so long with four."""
    clock, used, before = [0.0], [], torch.get_num_threads()

    def iterations() -> Iterator[None]:
        for _ in range(12):
            used.append(torch.get_num_threads())
            clock[0] += one if used[-1] == 1 else all_
            yield

    monkeypatch.setattr(threads.time, "monotonic", lambda: clock[0])
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    journal = Lines()
    try:
        torch.set_num_threads(4)
        run = threads.Threads(None)
        assert len(list(threads.with_fastest_threads(iterations(), run, torch.device("cpu"), journal))) == 12
        assert used[:7] == [4, 4, 1, 4, 1, 4, 1] and set(used[7:]) == {chosen}
        assert "going on with " + ("one" if chosen == 1 else "4") in journal.lines[0]
        assert run.chosen == chosen
        used.clear()
        torch.set_num_threads(4)
        list(threads.with_fastest_threads(iterations(), run, torch.device("cpu"), journal))  # resumed
        assert set(used) == {chosen} and len(journal.lines) == 1
        used.clear()
        list(threads.with_fastest_threads(iterations(), threads.Threads(3, chosen), torch.device("cpu"), journal))
        assert set(used) == {3} and len(journal.lines) == 1
        torch.set_num_threads(4)
        assert len(list(threads.with_fastest_threads(iter([None] * 3), threads.Threads(None), torch.device("cpu"), journal))) == 3
    finally:
        torch.set_num_threads(before)


def test_a_fixed_number_of_threads_is_that_of_the_run_and_not_of_the_caller(
    recipe_file: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    from registry.train import loop

    seen: list[int] = []
    real: Any = loop.iteration
    monkeypatch.setattr(loop, "iteration", lambda run: (seen.append(torch.get_num_threads()), real(run))[1])
    before = torch.get_num_threads()
    distill(recipe_file(), sets={"train.threads": before + 1, "log.snapshot_ticks": 100})
    assert set(seen) == {before + 1} and torch.get_num_threads() == before


def test_a_recipes_name_is_shown_on_one_line_without_codes(cli: Cli, tmp_path: Path) -> None:
    for name in ("x\u202egpj.toml", "e\x1b[31mred\n.toml"):
        (tmp_path / name).write_text((ROOT / "recipes" / "quickstart.toml").read_text())
    done = cli("check", *sorted(tmp_path.glob("*.toml")))
    assert (done.returncode, done.stdout) == (0, f"{tmp_path}/e?[31mred?.toml: ok\n{tmp_path}/x?gpj.toml: ok\n")
