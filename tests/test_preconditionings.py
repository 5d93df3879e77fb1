"""VP, VE and iDDPM preconditionings: their numbers, their noise levels in the sampler, their files, and distilling them."""

from __future__ import annotations

import itertools
import json
import math
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from registry.builtin.noise import GaussianNoise
from registry.core.contracts import Domain, Noise
from registry.core.errors import UserError
from registry.core.settings import NoiseConfig
from registry.core.streams import Streams
from registry.edm.networks import PRECONDITIONINGS, EDMPrecond, Precond
from registry.edm.pickles import network_of, read_pickle
from registry.files.formats import load_network, save_network
from registry.files.teachers import teacher_from_file
from registry.runs.distill import distill
from registry.sample.heun import heun_samples, teacher_levels
from registry.sample.opening import open_sampler
from tests.conftest import HERE, golden, tiny_network, tiny_preconditioned
from tests.pickle_writer import persistent, refusal, write

Cli = Callable[..., subprocess.CompletedProcess[str]]
VP_FILE = HERE / "golden" / "teacher_edm_vpprecond.pkl"
OTHERS = ["VPPrecond", "VEPrecond", "iDDPMPrecond"]
SHAPE = (1, 8, 8)


def golden_network(name: str) -> tuple[Any, Precond]:
    g = golden("preconditionings")
    net = PRECONDITIONINGS[name](**g.meta["cases"][name]["kwargs"])
    net.load_state_dict(g.state(f"{name}/state/"))
    return g, net.eval()


@pytest.mark.parametrize("name", [*OTHERS, "EDMPrecond"])
def test_golden_outputs_and_gradients(name: str) -> None:
    g, net = golden_network(name)
    assert list(net.state_dict()) == list(g.state(f"{name}/state/"))
    x = g.at(f"{name}/x").requires_grad_()
    out = net(x, g.at(f"{name}/sigma"), g.at(f"{name}/class_labels"))
    (gradient,) = torch.autograd.grad((out * g.at(f"{name}/v")).sum(), x)
    for found, key, tolerance in ((out, "out", 1e-5), (gradient, "grad_x", 1e-5)):
        wanted = g.at(f"{name}/{key}")
        largest = wanted.abs().amax((1, 2, 3), keepdim=True)
        assert ((found - wanted).abs() <= tolerance * largest).all()


@pytest.mark.parametrize("name", [*OTHERS, "EDMPrecond"])
def test_golden_levels(name: str) -> None:
    """The ranges and constants that EDM's classes have as attributes, and how they round a level."""
    g = golden("preconditionings")
    net = PRECONDITIONINGS[name](**g.meta["cases"][name]["kwargs"])
    for attribute, value in g.meta["cases"][name]["attributes"].items():
        assert vars(net)[attribute] == pytest.approx(value, rel=1e-6)
    for dtype in (torch.float32, torch.float64):
        rounded = net.round_sigma(g.at(f"{name}/round_sigma_in", dtype))
        assert rounded.dtype == dtype
        torch.testing.assert_close(rounded, g.at(f"{name}/round_sigma_out", dtype), rtol=1e-5, atol=0)
    if name == "iDDPMPrecond":
        torch.testing.assert_close(net.u, g.at("iDDPMPrecond/state/u"), rtol=1e-5, atol=0)
        grid = torch.tensor([[0.02, 0.7], [5.0, 30.0]])
        assert torch.equal(net.round_sigma(grid).flatten(), net.round_sigma(grid.flatten()))


def test_vp_levels_are_those_of_its_process() -> None:
    net = tiny_preconditioned("VPPrecond")
    t = torch.linspace(0.05, 1, 20, dtype=torch.float64)
    sigma = torch.tensor([net.sigma(float(s)) for s in t], dtype=torch.float64)
    torch.testing.assert_close(net.time(sigma), t, rtol=1e-4, atol=0)
    assert net.sigma_max == net.sigma(1.0)


# ------------------------------------------------------------------------------------------------------- the sampler


def edm_sampler(net: Any, noise: Noise, seeds: range, steps: int, clip: bool = True) -> Tensor:
    """EDM Algorithm 1 with S_churn = 0 and levels as in its generate.py: in the network's range, rounded by the network."""
    low, high = (max(0.002, net.sigma_min), min(80, net.sigma_max)) if clip else (0.002, 80)
    i = torch.arange(steps, dtype=torch.float64)
    t = (high ** (1 / 7) + i / (steps - 1) * (low ** (1 / 7) - high ** (1 / 7))) ** 7
    t = torch.cat([net.round_sigma(t) if clip else t, torch.zeros(1)])
    x = noise.prior(SHAPE, 1.0, Streams(seeds)).double() * t[0]
    for now, following in itertools.pairwise(t):
        d = (x - net(x, now).double()) / now
        euler = x + (following - now) * d
        if following > 0:
            euler = x + (following - now) * (d / 2 + (euler - net(euler, following).double()) / following / 2)
        x = euler
    return x


@pytest.mark.parametrize("name", [*OTHERS, "EDM in a range"])
@torch.no_grad()
def test_the_sampler_stays_in_the_networks_range_as_edms_does(name: str) -> None:
    limits = dict(sigma_min=0.05, sigma_max=20.0)
    net: Any = tiny_network(D=math.inf, **limits) if name == "EDM in a range" else tiny_preconditioned(name)
    noise = GaussianNoise()
    images = heun_samples(net, noise, Domain(D=math.inf, image_shape=SHAPE), range(4), 6)
    wanted = edm_sampler(net, noise, range(4), 6)
    assert (images - wanted).abs().max() <= 1e-6 * wanted.abs().max()
    unlimited = edm_sampler(net, noise, range(4), 6, clip=False)
    changes = bool((images - unlimited).abs().max() > 1e-5 * wanted.abs().max())
    assert changes == (name != "VPPrecond")  # whose range holds EDM's levels


class Recorder(nn.Module):
    """A denoiser for N(0, ¼) that knows only some levels, as a plugin would write it."""

    def __init__(self, sigma_min: float, sigma_max: float) -> None:
        super().__init__()
        self.sigma_min, self.sigma_max = sigma_min, sigma_max
        self.asked: list[float] = []

    def round_sigma(self, sigma: Tensor) -> Tensor:
        return (10 * sigma).round() / 10

    def forward(self, x: Tensor, sigma: Tensor, labels: Tensor | None = None) -> Tensor:
        self.asked.append(float(sigma[0]))
        return x * 0.25 / (0.25 + sigma.reshape(-1, 1, 1, 1) ** 2)


def test_any_denoiser_with_a_range_is_sampled_within_it() -> None:
    denoiser, noise, domain = Recorder(0.3, 7.0), GaussianNoise(), Domain(D=math.inf, image_shape=SHAPE)
    heun_samples(denoiser, noise, domain, range(2), 5)
    assert (max(denoiser.asked), min(denoiser.asked), len(denoiser.asked)) == (7.0, pytest.approx(0.3), 9)
    assert all(sigma == pytest.approx(round(sigma, 1)) for sigma in denoiser.asked)
    inside = GaussianNoise(NoiseConfig(sigma_min=0.5, sigma_max=5.0))  # the recipe's range may be the narrower one
    levels = teacher_levels(denoiser, inside, 5)
    assert (float(levels[0]), float(levels[-2]), float(levels[-1])) == (5.0, 0.5, 0.0)
    with pytest.raises(UserError, match=r"knows noise levels from 90 to 100, but is to be sampled from 80 to 0\.002"):
        heun_samples(Recorder(90, 100), noise, domain, range(2), 5)


# ------------------------------------------------------------------------------------------------------------- files


@pytest.mark.parametrize("name", OTHERS)
def test_a_network_survives_every_format(name: str, tmp_path: Path) -> None:
    net = tiny_preconditioned(name, label_dim=3, sigma_max=50.0) if name == "VEPrecond" else tiny_preconditioned(name, label_dim=3)
    if name == "iDDPMPrecond":
        net.u[500] *= 1.0001  # tensors come from the file, not from the constructor
    x, sigma = torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(0)), torch.tensor([0.5, 2.0])
    for suffix in (".pkl", ".pt", ".safetensors"):
        save_network(tmp_path / f"n{suffix}", "denoiser", net, {})
        again, facts = load_network(tmp_path / f"n{suffix}", "denoiser")
        assert type(again) is type(net)
        assert (again.sigma_min, again.sigma_max) == (net.sigma_min, net.sigma_max)
        assert again.init_kwargs == net.init_kwargs
        assert all(torch.equal(a, b) for a, b in zip(again.state_dict().values(), net.state_dict().values(), strict=True))
        assert torch.equal(again(x, sigma), net(x, sigma))
        assert facts.dimension() == math.inf
        teacher = teacher_from_file(str(tmp_path / f"n{suffix}"), dropout=0.25)
        assert (teacher.label_dim, teacher.sigma_data, teacher.image_shape) == (3, 0.5, SHAPE)
        copy = teacher.copy()
        assert type(copy) is type(net) and copy.init_kwargs["dropout"] == 0.25


@pytest.mark.parametrize("name", OTHERS)
def test_files_in_edms_own_layout(name: str, tmp_path: Path) -> None:
    net = tiny_preconditioned(name, label_dim=3)
    if name == "iDDPMPrecond":
        net.u[500] *= 1.0001  # tensors come from the file, not from the constructor
    path = write(tmp_path / "theirs.pkl", {"ema": persistent(net)})
    again, about = network_of(read_pickle(path)["ema"], path)
    assert type(again) is type(net)
    assert (about["D"], about["tells_D"], again.init_kwargs) == (math.inf, False, net.init_kwargs)
    assert all(torch.equal(a, b) for a, b in zip(again.state_dict().values(), net.state_dict().values(), strict=True))


REFUSED: dict[str, tuple[str, dict[str, Any], dict[str, Any], str]] = {
    "another range": ("VPPrecond", {"sigma_max": 50.0}, {}, "do not fit its network: sigma_max is 50.0, not 152.16"),
    "levels": ("iDDPMPrecond", {"C_1": 0.5}, {}, "C_1 is 0.5, not 0.001"),
    "many levels": ("iDDPMPrecond", {}, {"M": 10**9}, "argument M is wrong"),
    "other levels": ("iDDPMPrecond", {"M": 500}, {"M": 500}, "u is [1001] torch.float32, not [501] torch.float32"),
    "an argument of another": ("VEPrecond", {}, {"beta_d": 19.9}, "argument beta_d is wrong: Extra inputs are not permitted"),
    "positional": ("VPPrecond", {"_init_args": (8,) * 10}, {}, "other than img_resolution, img_channels, label_dim, use_fp16, beta_d"),
    "endless": ("VEPrecond", {"sigma_max": math.inf}, {}, "argument sigma_max is wrong"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_a_network_that_does_not_fit_is_refused(case: str, tmp_path: Path) -> None:
    name, attributes, arguments, reason = REFUSED[case]
    record = persistent(tiny_preconditioned(name))
    record.state.update(attributes)
    record.state["_init_kwargs"].update(arguments)
    assert reason in refusal(write(tmp_path / "theirs.pkl", {"ema": record}))


def test_a_script_can_narrow_the_range_of_a_ve_network(tmp_path: Path) -> None:
    record = persistent(tiny_preconditioned("VEPrecond"))
    record.state["sigma_max"] = 50.0
    path = write(tmp_path / "theirs.pkl", {"ema": record})
    assert network_of(read_pickle(path)["ema"], path)[0].sigma_max == 50


def test_a_vp_snapshot_of_edm_is_a_teacher(here: Cli, tmp_path: Path) -> None:
    net, facts = load_network(VP_FILE)
    assert (type(net).__name__, facts.kind, facts.looks_like) == ("VPPrecond", None, "denoiser")
    done = here("convert", VP_FILE, tmp_path / "vp.safetensors")
    assert done.returncode == 0, done.stderr
    first, second = (open_sampler(str(path), steps=4) for path in (VP_FILE, tmp_path / "vp.safetensors"))
    assert torch.equal(first(range(2)), second(range(2)))
    assert first.settings["levels"] == [0.002, 80.0, 7.0]
    done = here("inspect", tmp_path / "vp.safetensors")
    assert "0.000977–152" in done.stdout
    assert "VPPrecond" in done.stdout


def test_levels_are_part_of_what_images_depend_on(tmp_path: Path) -> None:
    save_network(tmp_path / "ve.pt", "denoiser", tiny_preconditioned("VEPrecond"), {})
    assert open_sampler(str(tmp_path / "ve.pt"), steps=3).settings["levels"] == [0.02, 80.0, 7.0]


# --------------------------------------------------------------------------------------------------------- distilling


@pytest.fixture
def recipe(recipe_file: Callable[..., Path], tmp_path: Path) -> Callable[[str], Path]:
    """A short SiD recipe with a teacher of this class."""

    def write(name: str) -> Path:
        save_network(tmp_path / "other.pkl", "denoiser", tiny_preconditioned(name), {})
        return recipe_file(
            ('use = "pfgmpp"', 'use = "edm"'), ("teacher.pt", "other.pkl"), ('"electrostatic"', '"gaussian"'), ('"ipfm"', '"sid"'),
            ("duration_kimg = 0.048", "duration_kimg = 0.016"),
        )  # fmt: skip

    return write


LOWEST = {"VPPrecond": None, "VEPrecond": "0.02", "iDDPMPrecond": "0.00642234"}


@pytest.mark.parametrize("name", OTHERS)
def test_distilling_a_teacher_within_its_levels(name: str, recipe: Callable[[str], Path], tmp_path: Path) -> None:
    path, lowest = str(recipe(name)), LOWEST[name]
    if lowest:
        with pytest.raises(UserError, match=rf"^\[noise\] sigma_min: leads to .* 0\.002, but the teacher knows {lowest} to "):
            distill(path)
        assert not (tmp_path / "runs").exists()
    result = distill(path, sets=[f"noise.sigma_min={lowest}"] if lowest else [])
    net, facts = load_network(next(result.folder.glob("network-snapshot-1*.pkl")), "generator")
    assert (type(net).__name__, facts.sigma_init) == (name, 2.5)
    lines = [json.loads(line) for line in (result.folder / "stats.jsonl").read_text().splitlines()]
    assert all(math.isfinite(line[f"Loss/{who}"]["mean"]) for line in lines for who in ("student", "generator"))
    teacher = load_network(tmp_path / "other.pkl")[0]
    moved = [k for k, v in teacher.state_dict().items() if not torch.equal(v, net.state_dict()[k])]
    assert "model.map_layer0.weight" in moved and "u" not in moved


def test_check_can_open_the_teachers_file(here: Cli, recipe: Callable[[str], Path]) -> None:
    path, known = recipe("VEPrecond"), ["--set", "noise.sigma_min=0.02"]
    assert here("check", path).stdout.endswith(": ok\n")  # this opens no file
    assert here("check", "--open", path, *known).stdout.endswith(": ok\n")
    assert here("check", "--open", path, *known, "--set", "noise.sigma_max=200").returncode == 0  # t_max keeps below 100
    for sets, setting, level in (
        ((), "[noise] sigma_min", "0.002"),
        ((*known, "--set", "noise.sigma_max=2000"), "[noise] t_max", "583.4"),
        ((*known, "--set", "noise.sigma_init=101", "--set", "noise.sigma_max=102"), "[noise] sigma_init", "101"),
        ((*known, "--set", "generator.schedule=[2.5,0.01]", "--set", "generator.steps=2"), "[generator] schedule", "0.01"),
    ):
        done = here("check", "--open", path, *sets)
        assert done.returncode == 1
        wanted = f"{path}: {setting}: leads to the noise level {level}, but the teacher knows 0.02 to 100 only"
        assert done.stderr.splitlines()[0] == wanted


def test_a_range_that_a_script_has_set_is_kept(tmp_path: Path) -> None:
    net = tiny_network(D=math.inf)
    net.sigma_max = 40.0
    save_network(tmp_path / "n.pkl", "denoiser", net, {})
    again, _ = load_network(tmp_path / "n.pkl")
    assert isinstance(again, EDMPrecond)
    assert (again.sigma_max, again.init_kwargs["sigma_max"]) == (40.0, 40.0)
