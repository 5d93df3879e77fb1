"""A plugin's noise, teacher or metric that answers rightly at first and wrongly in mid-run is named, whatever torch would make of it."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import registry.builtin.metrics as metrics
from ipfm_plugin import teacher as teachers
from ipfm_plugin.loss import IPFMLoss
from ipfm_plugin.noise import ElectrostaticNoise
from registry.core.contracts import Tracker
from registry.core.errors import UserError
from registry.runs.distill import distill
from registry.runs.pretrain import pretrain
from tests.conftest import error_line, installed

Write = Callable[..., Path]
WRONG: dict[str, Callable[[Tensor], Any]] = {
    "nothing": lambda x: None,
    "a number": lambda x: 1.0,
    "a list": lambda x: x.tolist(),
    "one of all": lambda x: x[:1],
    "too few": lambda x: x[:-1],
    "a mean": lambda x: x.mean(),
    "one more dimension": lambda x: x[..., None],
    "whole numbers": lambda x: x.long(),
    "complex numbers": lambda x: x.to(torch.complex64),
    "truth values": lambda x: x > 0,
    "sparse": lambda x: x.detach().to_sparse(),
    "elsewhere": lambda x: x.to("meta"),
}


class Odd(ElectrostaticNoise):
    """Wrong from the fourth call of one method on."""

    def __init__(self, method: str, wrong: Callable[[Tensor], Any]) -> None:
        super().__init__(128.0)
        self.method, self.wrong, self.calls = method, wrong, 0

    def answer(self, method: str, x: Tensor) -> Any:
        self.calls += method == self.method
        return self.wrong(x) if method == self.method and self.calls > 3 else x

    def prior(self, *arguments: Any) -> Any:
        return self.answer("prior", super().prior(*arguments))

    def perturb(self, *arguments: Any) -> Any:
        return self.answer("perturb", super().perturb(*arguments))

    def student_sigma(self, *arguments: Any) -> Any:
        return self.answer("student_sigma", super().student_sigma(*arguments))

    def generator_sigma(self, *arguments: Any) -> Any:
        return self.answer("generator_sigma", super().generator_sigma(*arguments))


@pytest.mark.parametrize("wrong", WRONG)
@pytest.mark.parametrize("method", ["prior", "perturb", "student_sigma", "generator_sigma"])
def test_a_noise(method: str, wrong: str, recipe_file: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    noise = Odd(method, WRONG[wrong])
    monkeypatch.setattr("ipfm_plugin.noise.build", lambda config, domain: noise)
    with pytest.raises(UserError, match=rf"^plugin 'ipfm': noise 'electrostatic': {method}\([a-z, ]*\) must give "):
        distill(recipe_file(), sets={"eval.metrics": []})
    assert {"prior", "perturb", "student_sigma", "generator_sigma"}.isdisjoint(vars(noise)), "it is as it was"


SCALES: dict[str, Callable[[Tensor], Any]] = {
    "text": lambda s: "a",
    "a number for all": lambda s: s[:1],
    "whole numbers": lambda s: s.long(),
    "sparse": lambda s: s.to_sparse(),
    "of another kind": lambda s: s.as_subclass(type("T", (Tensor,), {})),
    "elsewhere": lambda s: s.to("meta"),
}


@pytest.mark.parametrize("when", [0, 30])
@pytest.mark.parametrize("odd", SCALES)
def test_a_kernel_with_an_odd_scale(odd: str, when: int, recipe_file: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    class OddScale(ElectrostaticNoise):
        calls = 0

        def scale(self, rng: Any) -> Any:
            self.calls += 1
            found = super().scale(rng)
            assert found is not None
            return SCALES[odd](found) if self.calls > when else found

    monkeypatch.setattr("ipfm_plugin.noise.build", lambda config, domain: OddScale(128.0))
    told = r"^plugin 'ipfm': noise 'electrostatic': scale\(rng\) must give real numbers \[\d+\] on cpu, or None, and gave "
    with pytest.raises(UserError, match=told):
        distill(recipe_file(), sets={"eval.metrics": []})


def test_a_noise_that_writes_into_its_images(recipe_file: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    class Writes(ElectrostaticNoise):
        def perturb(self, x: Tensor, *arguments: Any) -> Tensor:
            with torch.no_grad():
                x.mul_(0.9)
            return super().perturb(x, *arguments)

    monkeypatch.setattr("ipfm_plugin.noise.build", lambda config, domain: Writes(128.0))
    with pytest.raises(UserError, match="noise 'electrostatic': perturb writes to the images that it is given"):
        distill(recipe_file(), sets={"eval.metrics": []})


def test_a_noise_that_leaves_autocast_on(recipe_file: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    class Casts(ElectrostaticNoise):
        def perturb(self, *arguments: Any) -> Tensor:
            torch.set_autocast_enabled("cpu", True)
            return super().perturb(*arguments)

    monkeypatch.setattr("ipfm_plugin.noise.build", lambda config, domain: Casts(128.0))
    try:
        with pytest.raises(UserError, match="noise 'electrostatic': turned autocast on for all that follows"):
            distill(recipe_file(), sets={"eval.metrics": []})
    finally:
        torch.set_autocast_enabled("cpu", False)


@pytest.mark.parametrize("wrong", WRONG)
def test_a_teacher(wrong: str, recipe_file: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    build = teachers.build

    def odd(config: Any) -> Any:
        teacher = build(config)
        net, forward, calls = teacher.denoiser, teacher.denoiser.forward, iter(range(10**9))

        def answer(*arguments: Any, **others: Any) -> Any:
            found = forward(*arguments, **others)
            return WRONG[wrong](found) if next(calls) > 3 else found

        copied = teacher.copy
        monkeypatch.setattr(type(teacher), "copy", lambda self: without_hooks(copied(), forward))
        net.forward = answer  # type: ignore[method-assign]
        return teacher

    def without_hooks(net: nn.Module, forward: Any) -> nn.Module:
        vars(net).pop("forward", None)
        return net

    monkeypatch.setattr("ipfm_plugin.teacher.build", odd)
    with pytest.raises(UserError, match=r"^plugin 'ipfm': teacher 'pfgmpp': denoiser\(x, sigma, labels\) must give "):
        distill(recipe_file(), sets={"eval.metrics": []})


ODD_FACTS: dict[str, tuple[dict[str, Any], str]] = {
    "no origin": ({"origin": None}, "origin must be text, not None"),
    "an origin without letters": ({"origin": "\udcff"}, "origin must be text, not '\\udcff'"),
    "a number of weights": ({"weights": 3}, "weights must be text, not 3"),
    "no remarks": ({"remarks": None}, "remarks must be lines of text, not None"),
    "a number as a remark": ({"remarks": (1,)}, "remarks must be lines of text, not (1,)"),
    "a number for trainable": ({"trainable": 3}, "trainable must be None or make a network, not be a int"),
    "another network": ({"trainable": lambda: nn.Linear(2, 2)}, "trainable() must be called as (x, sigma, labels): "),
    "a number of images": ({"images": 3}, "images must be None or a tensor [M, 1, 8, 8], not a int"),
    "other images": ({"images": torch.zeros(2, 3, 8, 8)}, "images must be None or a tensor [M, 1, 8, 8], not a Tensor"),
    "a huge D": ({"D": 10**400}, "D must be a positive number, not 1000"),
    "a text as D": ({"D": "128"}, "D must be a positive number, not '128'"),
    "a text as path": ({"path": "teacher.pt"}, "path must be None or the pathlib.Path of its file, not 'teacher.pt'"),
    "a path of nothing": ({"path": Path()}, "path must be None or the pathlib.Path of its file, not PosixPath('.')"),
    "a file's weights without a hash": ({"weights": ""}, "path needs weights, a hash of them: numbers beside the file are theirs"),
    "huge classes": ({"label_dim": 10**400}, "label_dim must be 0 or a number of labels, not 1000"),
}


@pytest.mark.parametrize("odd", ODD_FACTS)
def test_what_a_teacher_says_of_itself(odd: str, recipe_file: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    facts, told = ODD_FACTS[odd]
    build = teachers.build
    monkeypatch.setattr("ipfm_plugin.teacher.build", lambda config: replace(build(config), **facts))
    with pytest.raises(UserError) as caught:
        distill(recipe_file(), sets={"eval.metrics": []})
    assert str(caught.value).startswith(f"plugin 'ipfm': teacher 'pfgmpp': {told}")


ODD_WEIGHTS: dict[str, Callable[[nn.Module], None]] = {
    "lazy": lambda net: net.add_module("odd", nn.LazyLinear(3)),
    "sparse": lambda net: net.register_buffer("odd", torch.eye(3).to_sparse()),
    "without numbers": lambda net: net.register_buffer("odd", torch.ones(2, device="meta")),
}


@pytest.mark.parametrize("odd", ODD_WEIGHTS)
def test_a_teacher_with_weights_that_are_none(odd: str, recipe_file: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    build = teachers.build

    def with_odd_weights(config: Any) -> Any:
        teacher = build(config)
        ODD_WEIGHTS[odd](teacher.denoiser)
        return teacher

    monkeypatch.setattr("ipfm_plugin.teacher.build", with_odd_weights)
    with pytest.raises(UserError, match=r"denoiser's state must hold plain tensors with numbers, and odd[.a-z]* is none"):
        distill(recipe_file(), sets={"eval.metrics": []})


def test_a_teacher_whose_copy_is_itself(recipe_file: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    """The student would train the teacher."""
    build = teachers.build

    def itself(config: Any) -> Any:
        teacher = build(config)
        return replace(teacher, trainable=lambda: teacher.denoiser)

    monkeypatch.setattr("ipfm_plugin.teacher.build", itself)
    with pytest.raises(UserError, match="a copy of its denoiser has weights of its own, and this one shares the teacher's"):
        distill(recipe_file(), sets={"eval.metrics": []})


def test_a_loss_that_goes_backward_itself(recipe_file: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    class Backward(IPFMLoss):
        def student(self, *arguments: Any) -> Tensor:
            values = super().student(*arguments)
            values.sum().backward()
            return values

    monkeypatch.setattr("ipfm_plugin.loss.build", lambda config, domain: Backward())
    with pytest.raises(UserError, match="loss 'ipfm': a loss must not go backward through its own graph: the host does"):
        distill(recipe_file(), sets={"eval.metrics": []})


def test_pretrain_too(recipe_file: Write, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("ipfm_plugin.noise.build", lambda config, domain: Odd("perturb", WRONG["one of all"]))
    with pytest.raises(UserError, match=r"^plugin 'ipfm': noise 'electrostatic': perturb\(x, sigma, rng\) must give "):
        pretrain("teachers/digits_d128", sets={"train.duration_kimg": 1, "train.batch": 32, "eval.metrics": []}, outdir=tmp_path)


@pytest.mark.parametrize("wrong", ["sparse", "elsewhere", "complex numbers"])
def test_a_metric(wrong: str, recipe_file: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    embed = metrics.SlicedWasserstein.embed
    monkeypatch.setattr(metrics.SlicedWasserstein, "embed", lambda self, x: WRONG[wrong](embed(self, x)))
    with pytest.raises(UserError, match="metric 'sliced_wasserstein': embed must give rows of plain real numbers, and gave"):
        distill(recipe_file(append='metrics = ["sliced_wasserstein"]\nreference = "digits"\n'))


def test_what_a_tracker_changes_is_undone(recipe_file: Write, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    class Careless(Tracker):
        def begin(self, folder: Path, recipe: Any, nimg: int) -> None:
            pass

        def numbers(self, nimg: int, values: Any) -> None:
            os.chdir("/")
            torch.set_autocast_enabled("cpu", True)
            torch.set_default_dtype(torch.float64)
            torch.set_default_device("meta")
            torch.manual_seed(1)
            torch.set_num_threads(1)
            torch.set_grad_enabled(False)

    wanted = distill(recipe_file(), seed=1).generator.sample(4)
    monkeypatch.setattr("registry.builtin.tensorboard.build", lambda config: Careless())
    found = distill(recipe_file(), seed=1, sets={"log.trackers": ["tensorboard"]})
    assert torch.equal(found.generator.sample(4), wanted)
    assert "WARNING" not in (tmp_path / found.folder / "log.txt").read_text()


BROKEN = """
from registry.api import Component, Config, Metric, hookimpl

class Broken(Metric):
    columns = ("broken",)

    def embed(self, images):
        raise BrokenPipeError(32, "Broken pipe")

    def compare(self, rows):
        return {"broken": 1.0}

@hookimpl
def register_metrics():
    return [Component("broken", Config, lambda config, domain: Broken(), "talks to a server that is gone")]
"""


ENDS = {
    "an exit": ("import click\n        raise click.exceptions.Exit(0)", "Exit: 0"),
    "an exit by click": ("import click\n        click.Context(click.Command('x')).exit(0)", "Exit: 0"),
    "an abort": ("import click\n        raise click.Abort", "Abort"),
    "wrong usage": ("import click\n        raise click.UsageError('no')", "UsageError: no"),
    "an interruption": ("from registry.core.errors import Interrupted\n        raise Interrupted('no', 0)", "AssertionError: an interruption has the exit code"),
    "a file that ends too early": ("raise EOFError", "EOFError ("),
    "an error that exits": (
        "class E(Exception):\n            def __str__(self): raise SystemExit(0)\n        raise E", "E",
    ),
}  # fmt: skip


@pytest.mark.parametrize("end", ENDS)
def test_a_plugin_does_not_end_a_run_as_if_it_were_the_command(
    end: str, cli: Callable[..., subprocess.CompletedProcess[str]], recipe_file: Write, tmp_path: Path
) -> None:
    """With exit code 0, or without a word."""
    source, told = ENDS[end]
    env = installed(tmp_path / "site", "broken_pipe", BROKEN.replace('raise BrokenPipeError(32, "Broken pipe")', source))
    done = cli("--recipe", recipe_file(append='metrics = ["broken"]\n'), env=env)
    assert done.returncode == 1 and error_line(done).startswith(f"distill: plugin 'broken_pipe': {told}")


def test_a_broken_pipe_of_a_plugin_is_told(
    cli: Callable[..., subprocess.CompletedProcess[str]], recipe_file: Write, tmp_path: Path
) -> None:
    done = cli("--recipe", recipe_file(append='metrics = ["broken"]\n'), env=installed(tmp_path / "site", "broken_pipe", BROKEN))
    assert error_line(done).startswith("distill: plugin 'broken_pipe': BrokenPipeError: [Errno 32] Broken pipe (")
