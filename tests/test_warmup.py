"""The warm-up: its pairs are the teacher's, it is resumed and shared like the game, and it can be all there is."""

from __future__ import annotations

import json
import math
import os
import shutil
import signal
import subprocess
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from ipfm_plugin.loss import IPFMLoss
from ipfm_plugin.noise import ElectrostaticNoise
from registry.core.contracts import Teacher
from registry.core.errors import Interrupted, UserError
from registry.core.interruption import Interruption
from registry.core.streams import Streams
from registry.files.bounds import STATE
from registry.files.downloads import cache_folder
from registry.files.formats import load_network
from registry.files.plain import load, save
from registry.recipe.tables import TrainConfig, WarmupConfig
from registry.runs.checkpoints import read_state, restore_state, save_state
from registry.runs.distill import distill
from registry.runs.health import DEAD
from registry.sample.heun import heun_images
from registry.sample.pairs import made, teacher_pairs
from registry.show.journal import Journal
from registry.train import loop
from registry.train.generator import Generator
from registry.train.step import Adam
from registry.train.warmup import Pairs
from tests.conftest import environment, tiny_network
from tests.test_loop import everything

CPU = torch.device("cpu")
SHORT = [
    "train.batch=32", "warmup.kimg=0.128", "warmup.pairs=48", "warmup.nfe=5", "warmup.lr=1e-3", "warmup.student_kimg=0.064",
    "train.duration_kimg=0.128", "log.tick_kimg=0.032", "log.snapshot_ticks=100", "log.state_ticks=1", "log.grid=2", "eval.metrics=[]",
]  # fmt: skip


def teacher(label_dim: int = 0, D: float = 128.0) -> Teacher:
    return Teacher(tiny_network(label_dim=label_dim, D=D), D=D, image_shape=(1, 8, 8), label_dim=label_dim)


def pairs(sigmas: tuple[float, ...] = (2.5,), count: int = 20, nfe: int = 7, label_dim: int = 0) -> Pairs:
    return teacher_pairs(teacher(label_dim), ElectrostaticNoise(128.0), sigmas, count, nfe, CPU, Journal())


def test_a_pair_is_a_start_and_the_teachers_image_from_the_same_noise() -> None:
    found, noise = pairs(), ElectrostaticNoise(128.0)
    z = noise.prior((1, 8, 8), 1.0, Streams.derived("pairs", range(20)))
    torch.testing.assert_close(found.starts[0], 2.5 * z)
    images, _ = heun_images(teacher().denoiser, noise, (1, 8, 8), 0, 4, Streams(range(20)), z=80 * z)
    torch.testing.assert_close(found.images[0], images)


def test_pairs_of_several_levels_start_where_the_generator_does() -> None:
    """At a lower level, a start is an image of the level above at that level's distance, and has its own image."""
    found = pairs((2.5, 0.8, 0.1), count=400)
    assert found.starts.shape == found.images.shape == (3, 400, 1, 8, 8)
    for level, sigma in ((1, 0.8), (2, 0.1)):
        spread = (found.starts[level] - found.images[level - 1]).square().mean().sqrt().item()
        assert spread == pytest.approx(sigma * math.sqrt(128 / 126), rel=0.05)  # E[R²] = sigma²·D·N/(D − 2)
    near, far = ((found.images[k] - found.images[k - 1]).square().mean() for k in (2, 1))
    assert near < far  # less is changed at the lower level


def test_a_batch_takes_pairs_of_all_levels() -> None:
    found = pairs((2.5, 0.8), label_dim=3)
    batch = found.batch(Streams(range(200)))
    assert sorted(set(batch.sigma.tolist())) == pytest.approx([0.8, 2.5])
    for i in range(200):
        level = int(batch.sigma[i] < 1)
        index = int((found.starts[level] == batch.start[i]).flatten(1).all(1).nonzero())
        assert torch.equal(found.images[level, index], batch.image[i])
        assert batch.labels is not None and found.labels is not None
        assert torch.equal(found.labels[index], batch.labels[i])


def test_pairs_are_made_once_and_only_for_what_they_depend_on(capsys: pytest.CaptureFixture[str]) -> None:
    def said(**options: object) -> str:
        pairs(count=11, **options)  # type: ignore[arg-type]
        return capsys.readouterr().out

    assert "making 11 pairs" in said()
    assert "pairs are from" in said()
    for other in (dict(nfe=9), dict(sigmas=(2.5, 1.0)), dict(label_dim=2)):
        assert "making" in said(**other)
    path = max((cache_folder() / "pairs").iterdir(), key=lambda p: p.stat().st_mtime)
    path.write_bytes(path.read_bytes()[:1000])  # damaged, so it is made again
    assert "making" in said(label_dim=2)
    assert "pairs are from" in said(label_dim=2)


@pytest.mark.parametrize("dtype", [torch.complex64, torch.bool, torch.int64, torch.float16, torch.float64])
def test_pairs_of_other_numbers_are_not_taken(dtype: torch.dtype, capsys: pytest.CaptureFixture[str]) -> None:
    """Such as those of a file that somebody has made over: it is whole, and names the same teacher."""
    pairs(count=13)
    path = max((cache_folder() / "pairs").iterdir(), key=lambda p: p.stat().st_mtime)
    content = load(path, "pairs")
    for name in ("starts", "images"):
        save(path, "pairs", content | {name: content[name].to(dtype)})
        capsys.readouterr()
        assert pairs(count=13).images.dtype == torch.float32
        assert "making 13 pairs" in capsys.readouterr().out


def test_the_regression_learns_the_pairs() -> None:
    """On an ODE image that is easy: the loss falls to a fraction, and the student is still the teacher."""
    made, noise, master = pairs(count=16), ElectrostaticNoise(128.0), teacher()
    train = TrainConfig(batch=16, duration_kimg=0, glr=1e-4)
    warmup = WarmupConfig(kimg=1.6, lr=3e-3)
    run = loop.Distillation(master, noise, IPFMLoss(), train, CPU, Generator(master.copy(), noise, (1, 8, 8)), warmup=warmup)
    run.pairs = made

    @torch.no_grad()
    def error() -> float:
        images = run.generator.net(made.starts[0], torch.tensor(2.5), None)
        return float((images - made.images[0]).square().mean())

    before = error()
    assert sum(1 for _ in loop.iterations(run)) == 100
    assert error() < 0.3 * before
    assert all(torch.equal(a, b) for a, b in zip(run.student.net.parameters(), master.denoiser.parameters(), strict=True))
    assert not run.regression.optimiser.state and not run.generator.optimiser.state  # the game begins with fresh moments


def small_run() -> loop.Distillation:
    """Four iterations of each phase, with labels."""
    master, noise = teacher(label_dim=2), ElectrostaticNoise(128.0)
    train = TrainConfig(batch=8, duration_kimg=0.032, lr=1e-3, glr=1e-3, lr_decay=0.5)
    warmup = WarmupConfig(kimg=0.032, lr=1e-3, student_kimg=0.032)
    generator = Generator(master.copy(), noise, (1, 8, 8), 2)
    run = loop.Distillation(master, noise, IPFMLoss(), train, CPU, generator, warmup=warmup)
    run.pairs = pairs(label_dim=2)
    return run


@pytest.mark.parametrize("stop", [2, 4, 6, 8, 10])
def test_resumed_in_any_phase_it_ends_where_an_uninterrupted_run_ends(tmp_path: Path, stop: int) -> None:
    whole, first, second = small_run(), small_run(), small_run()
    assert sum(1 for _ in loop.iterations(whole)) == 12
    for _ in zip(range(stop), loop.iterations(first), strict=False):
        pass
    save_state(tmp_path / "state.pt", first.learned(), first.nimg, {})
    content = read_state(tmp_path / "state.pt", second.learned())
    second.nimg = restore_state(tmp_path / "state.pt", content, second.learned())
    assert sum(1 for _ in loop.iterations(second)) == 12 - stop
    assert all(torch.equal(tensor, everything(second)[name]) for name, tensor in everything(whole).items())


def test_the_statistics_and_the_curves_say_which_phase_it_was(tmp_path: Path) -> None:
    folder = distill("quickstart", sets=SHORT, outdir=str(tmp_path)).folder
    lines = [json.loads(line) for line in (folder / "stats.jsonl").read_text().splitlines()]
    phases = [sorted(key for key in line if key.startswith("Loss/")) for line in lines]
    assert phases == [["Loss/regression"]] * 4 + [["Loss/student"]] * 2 + [["Loss/generator", "Loss/student"]] * 4
    assert ["Gap/all" in line for line in lines] == [False] * 4 + [True] * 6  # before, the student is the teacher
    recipe = tomllib.loads((folder / "recipe.toml").read_text())
    assert recipe["warmup"] == {"kimg": 0.128, "pairs": 48, "nfe": 5, "lr": 1e-3, "betas": [0.9, 0.999], "student_kimg": 0.064}


def test_without_pairs_to_learn_there_is_no_warm_up(tmp_path: Path) -> None:
    """`warmup.kimg = 0` leaves the student's part out, too."""
    folder = distill("quickstart", sets=[*SHORT, "warmup.kimg=0", "warmup.student_kimg=12.8"], outdir=str(tmp_path)).folder
    first, *_ = (json.loads(line) for line in (folder / "stats.jsonl").read_text().splitlines())
    assert sorted(key for key in first if key.startswith("Loss/")) == ["Loss/generator", "Loss/student"]
    assert "warmup" not in tomllib.loads((folder / "recipe.toml").read_text())


def test_a_dry_run_counts_the_warm_up(here: Callable[..., subprocess.CompletedProcess[str]]) -> None:
    done = here("--recipe", "quickstart", "--dry-run")
    assert "# 1,304 iterations of the warm-up and 200 of the game, of 128 images; runs in runs/" in done.stdout


def test_two_processes_make_the_same_pairs_and_generator(tmp_path: Path) -> None:
    networks = []
    for name, launcher in (("one", []), ("two", ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"])):
        sets = [a for text in (*SHORT, "train.duration_kimg=0", "warmup.student_kimg=0") for a in ("--set", text)]
        cache = environment() | {"DISTILL_CACHE_DIR": str(tmp_path / f"cache {name}")}
        done = subprocess.run(
            [sys.executable, *launcher, "-m", "registry.cli", "--recipe", "quickstart", *sets, "--outdir", str(tmp_path / name)],
            env=cache, capture_output=True, text=True, timeout=180, check=False, cwd=tmp_path,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        assert len(list((tmp_path / f"cache {name}" / "pairs").iterdir())) == 1
        networks.append(load_network(next((tmp_path / name).glob("*/network-snapshot-*.pkl")))[0].state_dict())
    for name, tensor in networks[0].items():
        if name.endswith("qkv.bias"):
            continue  # the softmax ignores the key's bias: its gradient is rounding noise, which Adam turns into full steps
        torch.testing.assert_close(networks[1][name], tensor, rtol=0, atol=5e-5)


@pytest.mark.parametrize(
    ("sets", "message"),
    [
        (["train.duration_kimg=0", "warmup.kimg=0"], r"\[train\] duration_kimg = 0: there is nothing to do without a warm-up"),
        (["warmup.kimg=1", "warmup.nfe=6"], r"nfe = 6: must be odd"),
        (["warmup.kimg=-1"], r"kimg = -1: must be greater than or equal to 0"),
        (["warmup.kmig=1"], r"kmig is unknown \(did you mean 'kimg'\?\)"),
    ],
)
def test_nonsense_is_refused(sets: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        distill("quickstart", sets=sets)


def test_a_resumed_regression_has_the_recipes_settings() -> None:
    """Its optimiser is saved without a network, which is the generator's."""
    before, after = (torch.nn.Linear(2, 1) for _ in range(2))
    saved = Adam(before.parameters(), lr=1.0, betas=(0.9, 0.999))
    before(torch.ones(1, 2)).sum().backward()
    saved.step()
    resumed = Adam(after.parameters(), lr=2.0, betas=(0.0, 0.1), eps=1e-3)
    resumed.load_state_dict(saved.state_dict())
    assert (resumed.param_groups[0]["betas"], resumed.param_groups[0]["eps"]) == ((0.0, 0.1), 1e-3)
    moments = [state["exp_avg"] for state in resumed.state.values()]
    assert [float(m.abs().max()) > 0 for m in moments] == [True, True]


def test_making_pairs_is_left_between_two_evaluations() -> None:
    asked, evaluations = teacher(), 0
    denoiser = asked.denoiser

    def evaluate(x: torch.Tensor, sigma: torch.Tensor, labels: torch.Tensor | None = None) -> torch.Tensor:
        nonlocal evaluations
        evaluations += 1
        if evaluations == 3:
            os.kill(os.getpid(), signal.SIGTERM)
        images: torch.Tensor = denoiser(x, sigma, labels)
        return images

    denoiser_that_is_signalled = torch.nn.Module()
    denoiser_that_is_signalled.forward = evaluate  # type: ignore[assignment]
    with Interruption(), pytest.raises(Interrupted) as stop:
        made(
            Teacher(denoiser_that_is_signalled, D=128.0, image_shape=(1, 8, 8), label_dim=0), ElectrostaticNoise(128.0), (2.5,),
            600, 23, CPU, Journal(),
        )  # fmt: skip
    assert stop.value.code == 143
    assert evaluations == 3


class Shakes(IPFMLoss):
    """The run is told to stop in the student's second step. Once it goes on, its newest state is one of the regression, and the
    generator's loss is not a number for a while."""

    def __init__(self, early: Path, runs: Path) -> None:
        super().__init__()
        self.early, self.runs, self.students, self.generators = early, runs, 0, 0

    def student(self, *args: Any) -> torch.Tensor:
        self.students += 1
        if self.students == 2:
            os.kill(os.getpid(), signal.SIGTERM)
        return super().student(*args)

    def generator(self, *args: Any) -> torch.Tensor:
        self.generators += 1
        if self.generators == 2:
            (newest,) = self.runs.glob("*/training-state-*.pt")
            shutil.copy(self.early, newest)
        return super().generator(*args) * (math.nan if 2 <= self.generators < 2 + DEAD else 1)


def test_a_run_resumed_after_the_regression_can_go_back_into_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its pairs were not needed until then. (The newer states may have been found damaged meanwhile.)"""
    runs, longer = tmp_path / "runs", ["train.duration_kimg=0.64", "train.nonfinite=rollback", "log.state_ticks=1000"]
    short = distill(
        "quickstart", sets=[*SHORT, "warmup.kimg=0.064", "train.duration_kimg=0"], outdir=str(tmp_path / "short")
    ).folder
    (early,) = short.glob("training-state-*.pt")
    content = load(early, STATE)
    save(early, STATE, {key: value for key, value in content.items() if key not in ("format", "kind")} | {"nimg": 96})
    loss = Shakes(early, runs)
    monkeypatch.setattr("ipfm_plugin.loss.build", lambda config, domain: loss)
    with pytest.raises(Interrupted):
        distill("quickstart", sets=[*SHORT, *longer], outdir=str(runs))
    folder = distill("quickstart", sets=[*SHORT, *longer], outdir=str(runs), resume="auto").folder
    log = (folder / "log.txt").read_text()
    assert "resuming at 0.192 kimg" in log and "back to 0.096 kimg, with other draws (rollback 1)" in log
    assert (end := load(folder / "training-state-000000.pt", STATE))["rollbacks"] == 1 and end["nimg"] == 128 + 64 + 640


def test_the_length_of_a_run_that_ends_before_its_time_is_the_games(tmp_path: Path) -> None:
    """Its recipe says what was done, so that it counts as finished by that recipe, too."""
    folder = distill("quickstart", sets=SHORT, outdir=tmp_path).folder
    distill("quickstart", sets=[*SHORT, "train.duration_kimg=0.032"], outdir=tmp_path, resume=folder)
    assert tomllib.loads((folder / "recipe.toml").read_text())["train"]["duration_kimg"] == 0.128
    content = load(folder / "training-state-000000.pt", STATE)
    entries = {key: value for key, value in content.items() if key not in ("format", "kind")}
    longer = {**content["recipe"], "train": content["recipe"]["train"] | {"duration_kimg": 9.0}}
    save(folder / "training-state-000000.pt", STATE, entries | {"recipe": longer})
    distill("quickstart", sets=[*SHORT, "train.duration_kimg=0.032", "train.batch=64"], outdir=tmp_path, resume=folder)
    assert tomllib.loads((folder / "recipe.toml").read_text())["train"]["duration_kimg"] == 0.128
    distill(folder, outdir=tmp_path, resume=folder)
    assert load(folder / "training-state-000000.pt", STATE)["nimg"] == content["nimg"]
