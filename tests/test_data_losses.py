"""A loss from a third-party package that uses real images and trains a small network of its own. The loop needs no change."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from registry.core.errors import SettingError
from registry.runs.states import states
from tests.conftest import environment, error_line

Cli = Callable[..., subprocess.CompletedProcess[str]]

PLUGIN = '''
"""IPFM's loss plus an adversarial one: a head that learns to tell real images from generated ones."""

from pydantic import Field

from registry.api import Component, Config, hookimpl


class HeadConfig(Config):
    width: int = Field(4, ge=1, description="channels of the head")
    weight: float = Field(0.1, ge=0, description="weight of the adversarial term; 0 needs no data")

    def wants_data(self) -> bool:
        return self.weight > 0


@hookimpl
def register_losses():
    return [Component("with_head", HeadConfig, "with_head_loss:build", "L_alpha and a discriminator on real images (any D)")]
'''

LOSS = """
import torch
from torch import nn
from torch.nn.functional import softplus

from registry.api import DenoisingGame


class WithHead(DenoisingGame, nn.Module):
    def __init__(self, width, weight, channels, sigma_data):
        super().__init__(sigma_data)
        self.weight = weight
        self.head = nn.Sequential(nn.Conv2d(channels, width, 3, padding=1), nn.SiLU(), nn.Conv2d(width, 1, 3, padding=1))

    def objective(self, x, f_star, f):
        return (f_star - f) * (f_star - x) - (f_star - f) ** 2

    def student(self, student, x, labels, noise, rng, real):
        assert real.x.shape == x.shape and not x.requires_grad
        adversarial = softplus(self.head(x)) + softplus(-self.head(real.x))
        return super().student(student, x, labels, noise, rng) + self.weight * adversarial

    def generator(self, teacher, student, x, labels, noise, rng, real):
        assert not any(p.requires_grad for p in self.parameters())
        return super().generator(teacher, student, x, labels, noise, rng) + self.weight * softplus(-self.head(x))


def build(config, domain):
    return WithHead(config.width, config.weight, domain.image_shape[0], domain.sigma_data)
"""


@pytest.fixture
def plugin(tmp_path: Path) -> dict[str, str]:
    """The environment in which the package with the loss is installed."""
    site = tmp_path / "site"
    info = site / "with_head-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: with-head\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[distill]\nwith_head = with_head\n")
    (site / "with_head.py").write_text(PLUGIN)
    (site / "with_head_loss.py").write_text(LOSS)
    return {"PYTHONPATH": str(site)}


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Twelve grey 8×8 images."""
    folder = tmp_path / "real images"
    folder.mkdir()
    pixels = np.random.default_rng(0).integers(0, 255, (12, 8, 8), dtype=np.uint8)
    for i, image in enumerate(pixels):
        Image.fromarray(image).save(folder / f"{i}.png")
    return folder


def state(folder: Path) -> dict[str, Any]:
    newest = states(next(folder.iterdir()))[0]
    assert newest
    loaded: dict[str, Any] = torch.load(newest, weights_only=True)
    return loaded


def equal(a: Any, b: Any) -> bool:
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(equal(a[k], b[k]) for k in a)
    if isinstance(a, list):
        return len(a) == len(b) and all(map(equal, a, b))
    return bool(a == b)


def test_it_trains_and_resumes_bit_for_bit(
    plugin: dict[str, str], data: Path, recipe_file: Callable[..., Path], tmp_path: Path, cli: Cli
) -> None:
    """An uninterrupted run and one that is resumed after a third of it give the same networks, head, moments and averages."""
    recipe = recipe_file(append=f'[data]\nsource = "{data}"\n[swap.with_head]\n')
    words = ["--recipe", recipe, "--loss", "with_head", "--outdir"]
    whole = cli(*words, tmp_path / "whole", env=plugin)
    assert whole.returncode == 0, whole.stderr
    part = cli(*words, tmp_path / "halves", "--set", "train.duration_kimg=0.016", env=plugin)
    assert part.returncode == 0, part.stderr
    first = state(tmp_path / "halves")
    rest = cli(*words, tmp_path / "halves", "--resume", "auto", env=plugin)
    assert rest.returncode == 0, rest.stderr
    assert "resuming at 0.016 kimg" in rest.stdout
    one, two = state(tmp_path / "whole"), state(tmp_path / "halves")
    assert equal(one["parts"], two["parts"])
    head = one["parts"]["student"]["companion"]
    assert set(head) == {"head.0.weight", "head.0.bias", "head.2.weight", "head.2.bias"}
    assert not any(torch.equal(head[k], first["parts"]["student"]["companion"][k]) for k in head), "the head learns"
    assert one["recipe"]["data"]["source"] == str(data)


def test_parts_of_a_batch_and_processes_see_the_same_real_images(
    plugin: dict[str, str], data: Path, recipe_file: Callable[..., Path], tmp_path: Path, cli: Cli
) -> None:
    recipe = recipe_file(append=f'[data]\nsource = "{data}"\n[swap.with_head]\n')
    found = []
    for name, sets in (("whole", []), ("parts", ["--set", "train.batch_gpu=2"])):
        done = cli("--recipe", recipe, "--loss", "with_head", "--outdir", tmp_path / name, *sets, env=plugin)
        assert done.returncode == 0, done.stderr
        lines = (next((tmp_path / name).iterdir()) / "stats.jsonl").read_text().splitlines()
        found.append([json.loads(line)["Loss/student"]["mean"] for line in lines])
    assert found[0] == pytest.approx(found[1], rel=1e-4)


def test_batch_norm_and_nan_in_one_of_two_processes(
    plugin: dict[str, str], data: Path, recipe_file: Callable[..., Path], tmp_path: Path
) -> None:
    """Running statistics are those of process 0; a first batch of which one process has nothing finite is half of a batch."""
    path = tmp_path / "site" / "with_head_loss.py"
    text = path.read_text().replace("nn.SiLU()", "nn.BatchNorm2d(width), nn.SiLU()")
    poisoned = "adversarial * (float('nan') if rank() == 1 and self.head[1].num_batches_tracked <= 2 else 1)"
    text = text.replace("* adversarial", f"* {poisoned}").replace(
        "import torch\n", "import torch\nfrom registry.core.distributed import rank\n"
    )
    path.write_text(text)
    recipe = recipe_file(append=f'[data]\nsource = "{data}"\n[swap.with_head]\n')
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m", "registry.cli"]
    words = ["--recipe", recipe, "--loss", "with_head", "--outdir", tmp_path / "runs", "--set", "train.timeout_minutes=1"]
    done = subprocess.run(
        [*torchrun, *map(str, words)],
        env=environment(plugin),
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=180,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "student: 4 images with non-finite loss dropped, the first at 0.000 kimg" in done.stdout
    head = state(tmp_path / "runs")["parts"]["student"]["companion"]
    assert head["head.1.num_batches_tracked"] > 2 and head["head.1.running_var"].isfinite().all()


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ("self.get_extra_state = lambda: {'seen': 1}", "state must hold tensors alone, and _extra_state is a dict"),
        ("self.extra = nn.Parameter(torch.zeros(2, dtype=torch.complex64))", "state must hold real numbers, and extra is complex"),
    ],
)
def test_a_loss_whose_state_has_no_place_in_files_is_refused(
    change: str, text: str, plugin: dict[str, str], data: Path, recipe_file: Callable[..., Path], tmp_path: Path, cli: Cli
) -> None:
    path = tmp_path / "site" / "with_head_loss.py"
    path.write_text(path.read_text().replace("        self.weight = weight\n", f"        self.weight = weight\n        {change}\n"))
    if "get_extra_state" in change:
        path.write_text(
            path.read_text()
            .replace(change, "pass")
            .replace("    def objective", "    def get_extra_state(self):\n        return {'seen': 1}\n\n    def objective")
        )
    recipe = recipe_file(append=f'[data]\nsource = "{data}"\n[swap.with_head]\n')
    message = error_line(cli("--recipe", recipe, "--loss", "with_head", env=plugin))
    assert f"loss 'with_head': the loss's {text}" in message
    assert not (tmp_path / "runs").exists()


def test_data_is_required_where_a_loss_wants_it_and_refused_elsewhere(
    plugin: dict[str, str], data: Path, recipe_file: Callable[..., Path], cli: Cli
) -> None:
    bare = recipe_file(append="[swap.with_head]\n")
    missing = error_line(cli("--recipe", bare, "--loss", "with_head", env=plugin))
    assert "[data] source is missing: loss 'with_head' learns from real images; name digits, or a folder or ZIP of them" in missing
    unwanted = cli("--recipe", bare, "--set", f"data.source={data}", "--dry-run", env=plugin)
    assert "[data] is not used: loss 'ipfm' needs no data; remove this table, or choose another loss" in error_line(unwanted)
    without = cli("--recipe", bare, "--loss", "with_head", "--set", "loss.weight=0.0", "--dry-run", env=plugin)
    assert without.returncode == 0, without.stderr  # its settings decide
    nowhere = cli("--recipe", bare, "--loss", "with_head", "--set", "data.source=nowhere", env=plugin)
    assert "[data] source = 'nowhere': no such data set" in error_line(nowhere)


def test_data_of_another_shape_is_refused(
    plugin: dict[str, str], data: Path, recipe_file: Callable[..., Path], cli: Cli, tmp_path: Path
) -> None:
    for path in data.iterdir():
        Image.open(path).resize((4, 4)).save(path)
    recipe = recipe_file(append=f'[data]\nsource = "{data}"\n[swap.with_head]\n')
    message = error_line(cli("--recipe", recipe, "--loss", "with_head", env=plugin))
    assert f"[data] source = '{data}': its images are 1×4×4, the teacher's 1×8×8" in message
    assert not (tmp_path / "runs").exists()


def test_the_checks_for_authors_accept_such_losses(plugin: dict[str, str]) -> None:
    code = (
        "from registry.api import RealBatch, Streams\n"
        "from registry.testing import build, check_loss, check_plugin\n"
        "check_plugin('with_head')\n"
        "teacher = build('teacher', 'pfgmpp', source='digits_d128')\n"
        "noise, loss = build('noise', 'electrostatic', teacher), build('loss', 'with_head', teacher)\n"
        "check_loss(loss, teacher, noise, RealBatch(Streams(range(4)).normal((1, 8, 8)), None))\n"
        "assert all(p.requires_grad for p in loss.parameters())\n"
    )
    done = subprocess.run([sys.executable, "-c", code], env=environment(plugin), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_a_setting_error_names_its_table_once() -> None:
    error = SettingError("source", "is no good", "x", "data")
    assert str(error) == "[data] source = 'x': is no good"
    assert str(SettingError("nfe", "is even", 4)) == "nfe = 4: is even"


def test_a_loss_that_hides_its_network_is_refused(
    plugin: dict[str, str], data: Path, recipe_file: Callable[..., Path], tmp_path: Path, cli: Cli
) -> None:
    """Without torch.nn.Module among its bases the head would stay random, and nobody would notice."""
    hidden = LOSS.replace("class WithHead(DenoisingGame, nn.Module)", "class WithHead(DenoisingGame)")
    (tmp_path / "site" / "with_head_loss.py").write_text(hidden)
    recipe = recipe_file(append=f'[data]\nsource = "{data}"\n[swap.with_head]\n')
    message = error_line(cli("--recipe", recipe, "--loss", "with_head", env=plugin))
    assert "its loss 'with_head' has a network in .head but is not a torch.nn.Module, so that network would not learn" in message
