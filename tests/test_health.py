"""Runs that learn nothing any more: they are noticed, stopped or rolled back, and no network that is not finite is used."""

from __future__ import annotations

import math
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from ipfm_plugin.loss import IPFMLoss
from registry.core.errors import Diverged, UserError
from registry.core.streams import Streams
from registry.files.formats import load_network, save_network
from registry.files.plain import STATE, load
from registry.runs.distill import distill
from tests.conftest import error_line, tiny_network

Here = Callable[..., subprocess.CompletedProcess[str]]
Write = Callable[..., Path]
LONGER = (("duration_kimg = 0.048", "duration_kimg = 0.4"), ("tick_kimg = 0.016", "tick_kimg = 0.08"))
"""Fifty iterations, a tick and a state every ten."""
KEEP = ["log.keep_states=0", "log.snapshot_ticks=100"]


class Poisoned(IPFMLoss):
    """In some of the generator's steps, counted from 1, the loss of some images is not a number."""

    def __init__(self, steps: range, images: int) -> None:
        super().__init__()
        self.step, self.steps, self.images = 0, steps, images

    def generator(self, teacher: Any, student: Any, x: Tensor, labels: Any, noise: Any, rng: Streams) -> Tensor:
        self.step += 1
        values = super().generator(teacher, student, x, labels, noise, rng)
        return torch.cat([values[: self.images] * math.nan, values[self.images :]]) if self.step in self.steps else values


@pytest.fixture
def poison(monkeypatch: pytest.MonkeyPatch) -> Callable[[range, int], None]:
    return lambda steps, images: monkeypatch.setattr("ipfm_plugin.loss.build", lambda config, domain: Poisoned(steps, images))


@pytest.mark.parametrize("policy", ["replace", "stop"])
def test_a_run_whose_weights_blow_up_ends_with_an_exit_code_of_its_own(
    policy: str, here: Here, recipe_file: Write, tmp_path: Path
) -> None:
    done = here(
        "--recipe", recipe_file(*LONGER), "--set", "train.glr=1e38", "--set", "train.lr=1e38", "--set", f"train.nonfinite={policy}"
    )
    line = error_line(done, 4)
    assert line.startswith("distill: the run has diverged: ") and line.endswith("try smaller learning rates")
    assert not list((tmp_path / "runs" / "00000-short").glob("training-state-*")), "none of its states was good"
    assert not list((tmp_path / "runs" / "00000-short").glob("network-snapshot-*"))


def test_a_run_without_an_image_left_ends_and_keeps_the_states_from_before(recipe_file: Write, poison: Any) -> None:
    poison(range(23, 1000), 8)
    with pytest.raises(
        Diverged, match=r"the generator's loss was not finite for any image in its last 18 steps; the last good"
    ) as caught:
        distill(str(recipe_file(*LONGER)), sets=KEEP)
    assert caught.value.nimg == 320
    assert "training-state-000000.pt" in str(caught.value)


def test_a_few_bad_images_do_not_end_a_run_but_the_log_says_since_when(recipe_file: Write, poison: Any) -> None:
    poison(range(23, 50), 2)
    log = (distill(str(recipe_file(*LONGER)), sets=KEEP).folder / "log.txt").read_text()
    assert "WARNING generator: 16 images with non-finite loss dropped, the first at 0.176 kimg" in log


def test_stop_ends_at_the_first_bad_image(recipe_file: Write, poison: Any) -> None:
    poison(range(23, 24), 1)
    with pytest.raises(Diverged, match=r"stops at the first such value") as caught:
        distill(str(recipe_file(*LONGER)), sets=[*KEEP, "train.nonfinite=stop"])
    assert caught.value.nimg == 240


def test_a_rollback_goes_back_to_the_last_good_state_with_other_draws(recipe_file: Write, poison: Any) -> None:
    poison(range(23, 42), 8)
    folder = distill(str(recipe_file(*LONGER)), sets=[*KEEP, "train.nonfinite=rollback"]).folder
    log = (folder / "log.txt").read_text()
    assert "back to 0.160 kimg, with other draws (rollback 1)" in log
    assert load(folder / "training-state-000000.pt", STATE)["rollbacks"] == 1
    kimg = [line.split()[1] for line in log.splitlines() if line.startswith("kimg ") and "generator" in line]
    assert len((folder / "stats.jsonl").read_text().splitlines()) == 5 and len(kimg) >= 5


def test_rollbacks_are_counted(here: Here, recipe_file: Write, poison: Any) -> None:
    poison(range(23, 10_000), 8)
    done = here("--recipe", recipe_file(*LONGER), "--set", "train.nonfinite=rollback", "--set", "train.rollbacks=2")
    assert "the run has diverged after 2 rollbacks" in error_line(done, 4)


# ------------------------------------------------------------------------------------------ networks in files


@pytest.fixture
def sick(tmp_path: Path) -> Path:
    net = tiny_network()
    with torch.no_grad():
        net.model.map_layer1.weight[3, 4] = math.nan  # type: ignore[union-attr, index]
    save_network(tmp_path / "sick.pt", "generator", net, {"D": 128.0})
    return tmp_path / "sick.pt"


def test_a_network_that_is_not_finite_is_refused(sick: Path, here: Here, recipe_file: Write, tmp_path: Path) -> None:
    wanted = "its model.map_layer1.weight holds values that are not finite; the run that wrote it has diverged"
    with pytest.raises(UserError, match=wanted):
        load_network(sick)
    assert wanted in error_line(here("generate", "--network", sick, "--seeds", "0-3", "--outdir", tmp_path / "images"))
    assert wanted in error_line(here("--recipe", recipe_file(), "--set", f"teacher.source={sick}"))
    assert not (tmp_path / "images").exists() and not (tmp_path / "runs").exists()
