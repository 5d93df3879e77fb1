"""[train] precision and compile: how passes are computed, and that nothing of it stays behind."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from registry.files.formats import load_network
from registry.plugins.loading import load_plugins
from registry.recipe.reading import expect, resolve
from registry.recipe.resolved import Recipe
from registry.runs.plan import plan
from registry.train.passes import Passes
from tests.conftest import environment, error_line, tiny_network
from tests.test_loop import distillation, everything, run

Here = Callable[..., subprocess.CompletedProcess[str]]
Write = Callable[..., Path]


def iterated(**train: Any) -> dict[str, torch.Tensor]:
    torch.manual_seed(1)
    return everything(run(distillation(label_dim=2, **train), 3))


@pytest.mark.parametrize("precision", ["fp32", "tf32", "fp16"])
def test_on_a_processor_only_bf16_is_another_precision(precision: str) -> None:
    kept, again = iterated(), iterated(precision=precision)
    assert all(torch.equal(again[name], kept[name]) for name in kept)


@pytest.mark.parametrize("options", [{}, {"memory": "lean"}, {"memory": "least", "batch_gpu": 4}], ids=str)
def test_bf16_is_float32_to_three_digits(options: dict[str, Any]) -> None:
    kept, again = iterated(**options), iterated(precision="bf16", **options)
    assert all(again[name].dtype == kept[name].dtype for name in kept)
    assert any(not torch.equal(again[name], kept[name]) for name in kept)
    start = {name: tensor.double() for name, tensor in everything(distillation(label_dim=2)).items()}
    a, b = (torch.cat([(found[name].double() - start[name]).flatten() for name in start]) for found in (kept, again))
    assert torch.nn.functional.cosine_similarity(a, b, dim=0) > 0.9  # Adam makes steps of small gradients, too
    assert abs(a.norm() / b.norm() - 1) < 0.05


def test_the_network_is_in_bf16_inside_and_its_images_are_not() -> None:
    net, seen = tiny_network(), list[torch.dtype]()
    net.model.dec["8x8_aux_conv"].register_forward_hook(lambda module, inputs, output: seen.append(output.dtype))
    x, sigma = torch.randn(2, 1, 8, 8), torch.tensor([0.5, 2.0])
    with Passes("bf16")(net):
        low = net(x, sigma)
    high = net(x, sigma)
    assert seen == [torch.bfloat16, torch.float32]
    assert low.dtype == high.dtype == torch.float32
    torch.testing.assert_close(low, high, rtol=0.05, atol=0.05)
    assert all(p.dtype == torch.float32 for p in net.parameters()) and net.unet_dtype is None


class Foreign(nn.Module):
    """Not one of EDM's networks."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Conv2d(1, 1, 3, padding=1)

    def forward(self, x: torch.Tensor, sigma: torch.Tensor, labels: torch.Tensor | None = None) -> torch.Tensor:
        found: torch.Tensor = self.layer(x)
        return found


@pytest.mark.parametrize("memory", ["full", "least"])
def test_networks_of_others_compute_under_autocast(memory: str) -> None:
    net, seen = Foreign(), list[torch.dtype]()
    net.layer.register_forward_hook(lambda module, inputs, output: seen.append(output.dtype))
    with Passes("bf16", memory=memory)(net, net):
        images = net(torch.randn(2, 1, 8, 8, requires_grad=True), torch.ones(2))
        images.sum().backward()
    assert set(seen) == {torch.bfloat16} and images.dtype == torch.float32
    assert net.layer.weight.grad is not None and net.layer.weight.grad.dtype == torch.float32
    assert "forward" not in vars(net)


def test_tensor_cores_are_used_inside_only() -> None:
    matmul, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    before = matmul.allow_tf32, cudnn.allow_tf32
    for precision, inside in (("tf32", (True, True)), ("fp32", (False, False)), (None, before)):
        with Passes(precision)(Foreign()):
            assert (matmul.allow_tf32, cudnn.allow_tf32) == inside
        with pytest.raises(ZeroDivisionError), Passes(precision)(Foreign()):
            _ = 1 / 0
        assert (matmul.allow_tf32, cudnn.allow_tf32) == before


def test_the_plan_counts_the_precision() -> None:
    def peak(*sets: str) -> int:
        recipe = expect(resolve("quickstart", load_plugins(), ("train.batch=16", *sets)), Recipe)
        return max(plan(recipe, load_plugins()).peaks.values())

    full, bf16, fp16 = peak(), peak("train.precision=bf16"), peak("train.precision=fp16")
    assert full == peak("train.precision=fp32") == peak("train.precision=tf32", "train.compile=true")
    assert bf16 == fp16 < 0.7 * full
    assert peak("teacher.fp16=true") == fp16  # by default as the file and its table say
    assert peak("teacher.fp16=true", "train.precision=fp32") == full


def test_a_run_in_bf16_leaves_the_files_of_any_run(here: Here, recipe_file: Write, tmp_path: Path) -> None:
    done = here("--recipe", recipe_file(), "--set", "train.precision=bf16", "--set", "train.memory=lean")
    assert done.returncode == 0, done.stderr
    (snapshot,) = (tmp_path / "runs").glob("*/network-snapshot-*000000.pkl")
    net, facts = load_network(str(snapshot), "generator")
    assert {p.dtype for p in net.parameters()} == {torch.float32}
    assert net.state_dict().keys() == tiny_network().state_dict().keys()
    assert facts.table("train")["precision"] == "bf16"


def test_without_a_compiler_compile_is_refused_in_one_line(recipe_file: Write, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "registry.cli", "--recipe", str(recipe_file()), "--set", "train.compile=true"],
        env=environment({"CXX": "/nowhere/c++", "TORCHINDUCTOR_CACHE_DIR": str(tmp_path / "cache")}), cwd=tmp_path,
        capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 1
    assert "compile = true: torch cannot compile the network here" in error_line(done)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")  # torch looks, and hides it where warnings are no errors
@pytest.mark.parametrize("options", [{}, {"memory": "lean"}, {"precision": "bf16"}], ids=str)
def test_compiled_it_learns_the_same_and_saves_the_same_names(options: dict[str, Any]) -> None:
    """But for the keys' biases, each third one: attention does not depend on them, so that Adam makes whole steps of rounding.

    In bf16 the compiled passes are rounded elsewhere, so that both are compared with float32: the compiled ones are no further from it.
    """
    game = distillation(label_dim=2, compile=True, **options)
    names = [*game.generator.net.state_dict()]
    torch.manual_seed(1)
    again = everything(run(game, 3))
    assert [*game.generator.net.state_dict()] == names == [*tiny_network(label_dim=2).state_dict()]
    assert not [m for net in (game.teacher, game.student.net, game.generator.net) for m in net.modules() if "forward" in vars(m)]
    kept = iterated(**options)
    if "precision" in options:
        exact = iterated()
        own, others = (sum((found[n].double() - exact[n].double()).square().sum() for n in exact) for found in (again, kept))
        assert 0 < own <= others
        return
    for name in kept:
        a, b = (found[name].reshape(-1, 3)[:, ::2] if name.endswith("qkv.bias") else found[name] for found in (again, kept))
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-5)
