"""What all code of a process shares, such as the working folder, stays as it was, whatever a component of a run does."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from ipfm_plugin.loss import IPFMLoss
from ipfm_plugin.noise import ElectrostaticNoise
from registry.builtin import tensorboard
from registry.core.errors import UserError
from registry.runs.distill import distill

Write = Callable[..., Path]
CHANGES = {
    "the working folder": lambda folder: os.chdir(folder),
    "torch's default type to torch.float64": lambda _: torch.set_default_dtype(torch.float64),
    "torch's default device to meta": lambda _: torch.set_default_device("meta"),
    "Python's limit of recursion to 700": lambda _: sys.setrecursionlimit(700),
    "what is done at the signal SIGTERM": lambda _: signal.signal(signal.SIGTERM, signal.SIG_IGN),
    "what is done at the signal SIGUSR1": lambda _: signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1]),
}


class Changes(IPFMLoss):
    """In the generator's third step, something is changed for all."""

    def __init__(self, change: Callable[[Path], object], folder: Path) -> None:
        super().__init__()
        self.change, self.folder, self.step = change, folder, 0

    def generator(self, *args: Any) -> Tensor:
        self.step += 1
        values = super().generator(*args)
        if self.step == 3:
            self.change(self.folder)
        return values


@pytest.fixture
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder beside the runs of the working folder."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "elsewhere").mkdir()
    return tmp_path / "elsewhere"


def shared() -> tuple[object, ...]:
    handler, blocked = signal.getsignal(signal.SIGTERM), signal.pthread_sigmask(signal.SIG_BLOCK, ())
    return os.getcwd(), torch.get_default_dtype(), torch.get_default_device(), sys.getrecursionlimit(), handler, blocked


@pytest.mark.parametrize("what", CHANGES)
def test_a_loss_that_changes_what_all_share_is_told_so(
    what: str, elsewhere: Path, recipe_file: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = shared()
    monkeypatch.setattr("ipfm_plugin.loss.build", lambda config, domain: Changes(CHANGES[what], elsewhere))
    with pytest.raises(UserError, match=f"the loss, the noise or the teacher has changed {what}"):
        distill(str(recipe_file()), outdir="runs")
    assert shared() == before
    (folder,) = (tmp_path / "runs").iterdir()
    assert what in (folder / "error.txt").read_text() and not any(elsewhere.iterdir())
    monkeypatch.undo()
    monkeypatch.chdir(tmp_path)
    assert distill(str(recipe_file()), outdir="runs", resume="auto").folder.name == folder.name


def test_an_error_of_ours_after_such_a_change_is_its_consequence(
    recipe_file: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The step draws more after the noise has changed the device, and was called a bug in distill."""

    class Elsewhere(ElectrostaticNoise):
        drawn = 0

        def prior(self, *args: Any) -> Tensor:
            self.drawn += 1
            if self.drawn == 5:
                torch.set_default_device("meta")
            return super().prior(*args)

    before = shared()
    monkeypatch.setattr("ipfm_plugin.noise.build", lambda config, domain: Elsewhere(domain.D))
    with pytest.raises(UserError, match="has changed torch's default device to meta"):
        distill(str(recipe_file()), outdir=str(tmp_path / "runs"))
    assert shared() == before


@pytest.mark.parametrize("what", CHANGES)
def test_what_changes_while_a_component_is_built_is_put_back(
    what: str, elsewhere: Path, recipe_file: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As the import of a library may do."""
    before = shared()

    def build(config: Any, domain: Any) -> IPFMLoss:
        CHANGES[what](elsewhere)
        return IPFMLoss()

    monkeypatch.setattr("ipfm_plugin.loss.build", build)
    assert distill(str(recipe_file()), outdir="runs").folder.is_dir()
    assert shared() == before and not any(elsewhere.iterdir())


@pytest.mark.parametrize("what", CHANGES)
def test_what_a_trackers_build_changes_is_put_back(
    what: str, elsewhere: Path, recipe_file: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run with one that changes the working folder went into another folder."""
    pytest.importorskip("tensorboard")
    before, build = shared(), tensorboard.build

    def odd(config: Any) -> Any:
        CHANGES[what](elsewhere)
        return build(config)

    monkeypatch.setattr("registry.builtin.tensorboard.build", odd)
    found = distill(str(recipe_file()), sets={"log.trackers": ["tensorboard"], "eval.metrics": []}, outdir="runs").folder
    assert (found / "recipe.toml").is_file()
    assert shared() == before and not any(elsewhere.iterdir())
