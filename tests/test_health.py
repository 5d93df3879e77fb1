"""Runs that learn nothing any more: they are noticed, stopped or rolled back, and no network that is not finite is used."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from ipfm_plugin.loss import IPFMLoss
from registry.core.errors import Diverged, Interrupted, UserError
from registry.core.streams import Streams
from registry.files.bounds import STATE
from registry.files.formats import load_network, save_network
from registry.files.plain import load
from registry.runs.distill import distill
from registry.train.signs import signs
from tests.conftest import error_line, tiny_network
from tests.test_loop import distillation, run
from tests.test_signs import ticks_of

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


@pytest.mark.parametrize("what", ["loss_scaling", "generator_loss_scaling"])
def test_a_gradient_too_large_for_adam_does_not_freeze_a_network_unseen(what: str, here: Here, recipe_file: Write) -> None:
    """It is finite, but its square is not: the moments become infinite, and every step of that network 0."""
    done = here("--recipe", recipe_file(), "--set", f"train.{what}=1e25")
    player = "student" if what == "loss_scaling" else "generator"
    assert f"the run has diverged: Adam's moments of the {player} are not finite at" in error_line(done, 4)


def test_a_dead_run_with_a_damaged_state_has_diverged(recipe_file: Write, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def damage(*_: Any) -> None:
        for state in (tmp_path / "runs").rglob("training-state-*.pt"):
            content = bytearray(state.read_bytes())
            content[len(content) // 2] ^= 1
            state.write_bytes(content)

    class Harmed(Poisoned):
        def generator(self, *args: Any) -> Tensor:
            if self.step == 30:
                damage()
            return super().generator(*args)

    monkeypatch.setattr("ipfm_plugin.loss.build", lambda config, domain: Harmed(range(23, 10_000), 8))
    with pytest.raises(Diverged, match="the run has diverged: the generator's loss was not finite"):
        distill(str(recipe_file(*LONGER)), sets=["train.nonfinite=rollback", "log.snapshot_ticks=100"])


def test_a_rollback_past_a_damaged_state_says_so(recipe_file: Write, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    class Harmed(Poisoned):
        def generator(self, *args: Any) -> Tensor:
            if self.step == 40:
                (state,) = (tmp_path / "runs").rglob("training-state-000002.pt")
                state.write_bytes(state.read_bytes()[:-1000])
            return super().generator(*args)

    monkeypatch.setattr("ipfm_plugin.loss.build", lambda config, domain: Harmed(range(33, 49), 64))
    longer = (("duration_kimg = 0.048", "duration_kimg = 3"), ("tick_kimg = 0.016", "tick_kimg = 1"))
    slow = [*KEEP, "train.nonfinite=rollback", "train.batch=64", "train.batch_gpu=64", "eval.metrics=[]"]
    log = (distill(str(recipe_file(*longer)), sets=slow).folder / "log.txt").read_text()
    assert "training-state-000002.pt is damaged: its content is not what was written; it was renamed to" in log
    assert "back to 1.024 kimg, with other draws (rollback 1)" in log


def test_a_loss_that_gives_nothing_finite_in_its_first_step_is_told_so(recipe_file: Write, poison: Any, tmp_path: Path) -> None:
    poison(range(1, 2), 8)
    text = "the generator's loss was not finite for any image in its first step; there is no good state; look at the loss"
    with pytest.raises(Diverged, match=text):
        distill(str(recipe_file(*LONGER)))
    assert not list((tmp_path / "runs").rglob("*.pt"))


def test_a_part_of_the_first_batch_may_be_lost(recipe_file: Write, poison: Any) -> None:
    """The first of four parts of two images."""
    poison(range(1, 2), 2)
    log = (distill(str(recipe_file()), sets=["train.batch_gpu=2"]).folder / "log.txt").read_text()
    assert "WARNING generator: 2 images with non-finite loss dropped, the first at 0.000 kimg" in log


def test_a_run_whose_images_are_not_finite_at_the_end_has_diverged(here: Here, recipe_file: Write, tmp_path: Path) -> None:
    """Its last step left weights that are finite, but so large that the network's output is not."""
    done = here("--recipe", recipe_file(("duration_kimg = 0.048", "duration_kimg = 0.008")), "--set", "train.glr=1e30")
    assert error_line(done, 4) == "distill: the images of the generator are not finite at 0.008 kimg"
    (network,) = (tmp_path / "runs").rglob("network-snapshot-1*.pkl")
    line = error_line(here("generate", "--network", network, "--seeds", "0-3", "--outdir", tmp_path / "out"))
    assert line == f"distill: {network}: the image of seed 0 is not finite"


def test_a_run_without_an_image_left_ends_and_keeps_the_states_from_before(recipe_file: Write, poison: Any) -> None:
    poison(range(23, 1000), 8)
    with pytest.raises(
        Diverged, match=r"the generator's loss was not finite for any image in its last 18 steps; the last good"
    ) as caught:
        distill(str(recipe_file(*LONGER)), sets=KEEP)
    assert caught.value.nimg == 320
    assert "training-state-000000.pt" in str(caught.value)


@pytest.mark.parametrize("key", ["loss_scaling", "generator_loss_scaling"])
@pytest.mark.parametrize("kimg", [0.048, 0.4])
def test_a_run_whose_gradients_are_all_replaced_has_diverged(kimg: float, key: str, here: Here, recipe_file: Write) -> None:
    """The losses are finite, and so are the weights: but nothing is learned."""
    done = here("--recipe", recipe_file(("duration_kimg = 0.048", f"duration_kimg = {kimg}")), "--set", f"train.{key}=1e300")
    who = "student" if key == "loss_scaling" else "generator"
    assert done.returncode == Diverged.code and f"most of the {who}'s gradient was not finite in its last " in done.stderr


@pytest.mark.parametrize(("lost", "diverges"), [(range(1, 7), True), (range(2, 7), False)])
def test_steps_that_are_lost_count_over_a_resumption(
    lost: range, diverges: bool, recipe_file: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In six steps. A whole run has diverged only if all of them were lost, and so has one that was interrupted after the third."""

    class Signalled(IPFMLoss):
        step = 0

        def generator(self, *args: Any) -> Tensor:
            Signalled.step += 1
            if Signalled.step == 3:
                os.kill(os.getpid(), signal.SIGUSR1)
            values = super().generator(*args)
            values.register_hook(lambda gradient: gradient * (math.nan if Signalled.step in lost else 1))
            return values

    monkeypatch.setattr("ipfm_plugin.loss.build", lambda config, domain: Signalled())
    recipe = str(recipe_file())
    with pytest.raises(Interrupted) as caught:
        distill(recipe)
    assert load(str(caught.value.state), STATE)["parts"]["generator"]["lost steps"] == 3 - lost.start + 1
    with pytest.raises(Diverged, match="in its last 6 steps") if diverges else nullcontext():
        distill(recipe, resume="auto")
    assert Signalled.step == 6


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


def test_what_came_before_a_rollback_is_set_aside(recipe_file: Write, poison: Any) -> None:
    """Its last snapshot may have been the best that the run ever has."""
    poison(range(23, 42), 8)
    folder = distill(str(recipe_file(*LONGER)), sets=["train.nonfinite=rollback", "log.snapshot_ticks=1"]).folder
    assert load_network(folder / "network-snapshot-1.000000-000000.pkl.later")[1].nimg == 240
    assert load_network(folder / "network-snapshot-1.000000-000000.pkl")[1].nimg == 400
    left = [json.loads(line)["Progress/kimg"]["mean"] for line in (folder / "stats.jsonl.later").read_text().splitlines()]
    assert left == [0.24]
    assert "later files were set aside: network-snapshot-" in (folder / "log.txt").read_text()


def test_a_signal_to_a_run_that_learns_nothing_keeps_the_good_state(recipe_file: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two of them would have pushed out both good states (keep_states = 2)."""

    class Signalled(Poisoned):
        def generator(self, *args: Any) -> Tensor:
            if self.step == 27:
                os.kill(os.getpid(), signal.SIGUSR1)
            return super().generator(*args)

    monkeypatch.setattr("ipfm_plugin.loss.build", lambda config, domain: Signalled(range(23, 10_000), 8))
    with pytest.raises(Interrupted) as caught:
        distill(str(recipe_file(*LONGER)), sets=["train.nonfinite=rollback", "log.snapshot_ticks=100"])
    assert caught.value.code == 128 + signal.SIGUSR1
    assert "where it had nothing left to learn from; the last good state is kept" in str(caught.value)
    assert caught.value.state is not None
    assert load(caught.value.state, STATE)["nimg"] == 160


def test_a_signal_before_the_first_state_saves_one_even_so(recipe_file: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    class Signalled(Poisoned):
        def generator(self, *args: Any) -> Tensor:
            if self.step == 5:
                os.kill(os.getpid(), signal.SIGUSR1)
            return super().generator(*args)

    monkeypatch.setattr("ipfm_plugin.loss.build", lambda config, domain: Signalled(range(3, 10_000), 8))
    with pytest.raises(Interrupted) as caught:
        distill(str(recipe_file(*LONGER)), sets=["log.snapshot_ticks=100"])
    assert caught.value.state is not None
    assert load(caught.value.state, STATE)["nimg"] == 48


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


WRONG: dict[str, tuple[Callable[[Tensor], Any], str]] = {
    "sparse": (lambda v: v.to_sparse(), r"gave them in another layout, for instance a sparse one"),
    "a mean": (lambda v: v.mean(), r"generator\(\) must give unreduced values of the images' shape, \(8, 1, 8, 8\), and gave .* of shape \(\)"),
    "one value an image": (lambda v: v.flatten(1).sum(1), r"of shape \(8,\)"),
    "a number": (lambda v: 1.0, "gave a float"),
    "no gradient": (lambda v: v.detach(), "without a gradient"),
    "on no device": (lambda v: torch.empty_like(v, device="meta", requires_grad=True), "on cpu, and gave them on meta"),
    "eight bits": (lambda v: v.to(torch.float8_e4m3fn), "gave torch.float8_e4m3fn of shape"),
    "another layout": (lambda v: v.to_mkldnn(), "in another layout"),
    "no numbers": (lambda v: FakeTensorMode().from_tensor(v.detach()), "gave a tensor without numbers"),
    "a gradient of another shape": (lambda v: WrongGradient.apply(v), "going backward from its values fails: RuntimeError: Function Wro"),
    "no way back": (lambda v: NoWayBack.apply(v), "going backward from its values fails: NotImplementedError"),
}  # fmt: skip


class NoWayBack(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: Tensor) -> Tensor:
        return values * 2


class WrongGradient(NoWayBack):
    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:  # type: ignore[override]
        return gradient[:, :, :2]


@pytest.mark.parametrize("case", WRONG)
def test_what_a_loss_gives_is_checked(case: str) -> None:
    change, text = WRONG[case]

    class Wrong(IPFMLoss):
        def generator(self, *args: Any) -> Tensor:
            return change(super().generator(*args))  # type: ignore[no-any-return]

    with pytest.raises(UserError, match=text):
        run(distillation(Wrong(1.0)), 1)


def test_a_loss_that_turns_gradients_off_is_told_so_and_others_are_not_touched() -> None:
    class Careless(IPFMLoss):
        def generator(self, *args: Any) -> Tensor:
            values = super().generator(*args)
            torch.set_grad_enabled(False)
            return values

    with pytest.raises(UserError, match=r"generator\(\) turned gradients off for all that follows"):
        run(distillation(Careless(1.0)), 1)
    assert torch.is_grad_enabled()


def test_a_loss_that_writes_to_the_teacher_ends_the_run(recipe_file: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    class Vandal(IPFMLoss):
        def generator(self, teacher: Any, *args: Any) -> Tensor:
            next(teacher.parameters()).data.mul_(1.001)
            return super().generator(teacher, *args)

    monkeypatch.setattr("ipfm_plugin.loss.build", lambda config, domain: Vandal(1.0))
    with pytest.raises(UserError, match=r"the teacher's weights have changed during the run"):
        distill(str(recipe_file()))


@pytest.mark.parametrize(("variances", "warned"), [([0.2, 0.3, 0.07], True), ([0.2, 0.3, 0.08], False), ([0.01, 0.2, 0.3], False)])
def test_the_log_says_that_images_become_alike(variances: list[float], warned: bool, tmp_path: Path) -> None:
    ticks = ticks_of(tmp_path, [{"Images/variance": v} for v in variances])
    assert ("the generator's images become alike: their variance is 0.07, and was 0.3" in ticks[-1]) == warned


def test_the_variance_is_that_of_the_generators_images() -> None:
    game = run(distillation(), 1)
    x, _ = game.generator(Streams.derived("signs", range(8)))
    assert signs(game)["Images/variance"] == pytest.approx(x.var(0, correction=0).mean().item(), rel=1e-5)
