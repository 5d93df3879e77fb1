"""What else loading a network does: it leaves the random state alone, and our snapshots open in other projects, old and new."""

from __future__ import annotations

import math
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from registry.builtin.points import PointDenoiser
from registry.edm.networks import Precond, iDDPMPrecond
from registry.files.formats import load_network, save_network
from registry.files.teachers import teacher_from_file
from tests.conftest import HERE, environment, lively, tiny_network, tiny_preconditioned
from tests.test_files import write_stand_ins

OLD_PYTHON = os.environ.get("DISTILL_OLD_PYTHON", "")
"""A Python with an old torch: the projects whose scripts open our snapshots prescribe Python 3.8 and torch 1.12."""
NCSNPP: dict[str, Any] = dict(
    embedding_type="fourier", encoder_type="residual", channel_mult_noise=2, resample_filter=[1, 3, 3, 1], augment_dim=9
)
WIDE: dict[str, Any] = dict(channel_mult=[1, 2], attn_resolutions=[8])


def a_network(kind: str) -> Precond:
    """Small networks of every class, with attention and labels; the iDDPM one is an adm with two heads."""
    if kind in ("VP", "VE"):
        return tiny_preconditioned(f"{kind}Precond", label_dim=3, **WIDE)
    if kind == "iDDPM":
        with torch.random.fork_rng():
            torch.manual_seed(0)
            return lively(iDDPMPrecond(8, 1, 3, model_channels=64, channel_mult=[1, 2], num_blocks=1, attn_resolutions=[8, 4]))
    return tiny_network(label_dim=3, D=math.inf if kind == "EDM" else 128.0, **WIDE, **NCSNPP)


# --------------------------------------------------------------------------------------------------- the random state


FOREIGN = ["teacher_edm_ddpmpp.pkl", "teacher_edm_adm.pkl", "teacher_pfgmpp_ncsnpp.pkl", "training-state-ipfm-000512.pt"]


def unmoved(load: Callable[[], Any]) -> bool:
    """Whether a call leaves torch's random state as it was."""
    torch.manual_seed(5)
    before = torch.get_rng_state()
    load()
    return torch.equal(before, torch.get_rng_state())


def test_unmoved_would_notice_a_draw() -> None:
    assert not unmoved(lambda: tiny_network() and torch.rand(1))
    assert not unmoved(lambda: Precond(8, 1, 0, False, "SongUNet", {}, {}))


@pytest.mark.parametrize("name", FOREIGN)
def test_loading_a_foreign_file_leaves_the_random_state_alone(name: str) -> None:
    assert unmoved(lambda: load_network(HERE / "golden" / name))
    assert unmoved(lambda: teacher_from_file(str(HERE / "golden" / name), dropout=0.5, fp16=True).copy())


@pytest.mark.parametrize("suffix", [".pkl", ".pt", ".safetensors"])
def test_loading_our_files_leaves_the_random_state_alone(suffix: str, tmp_path: Path) -> None:
    nets: dict[str, Any] = {name: a_network(name) for name in ("EDM", "PFGM++", "VP", "iDDPM")}
    if suffix != ".pkl":
        nets["a plugin's"] = PointDenoiser((2, 1, 1))
    for name, net in nets.items():
        path = tmp_path / f"{name.replace(' ', '')}{suffix}"
        save_network(path, "denoiser", net, {})
        assert unmoved(lambda path=path: load_network(path)), name  # type: ignore[misc]


def test_loading_our_training_states_leaves_the_random_state_alone(recipe_file: Callable[..., Path]) -> None:
    from registry.runs.distill import distill

    (state,) = distill(str(recipe_file(("duration_kimg = 0.048", "duration_kimg = 0.008")))).folder.glob("training-state-*.pt")
    assert unmoved(lambda: load_network(state))
    assert unmoved(lambda: load_network(state, key="student"))


# ------------------------------------------------------------------------- snapshots in the environments of other projects


# Runs with Python 3.8. Opens snapshots as the scripts of EDM, PFGM++ and SiD do, and rebuilds their networks.
SCRIPT = """
import copy, glob, inspect, pickle, sys
import torch
function, inputs, results = sys.argv[1:]
if function == "removed":
    del torch.nn.functional.scaled_dot_product_attention

def song(img_resolution, in_channels, out_channels, label_dim=0, augment_dim=0, model_channels=128, channel_mult=[1,2,2,2],
         channel_mult_emb=4, num_blocks=4, attn_resolutions=[16], dropout=0.10, label_dropout=0, embedding_type="positional",
         channel_mult_noise=1, encoder_type="standard", decoder_type="standard", resample_filter=[1,1]): pass

class EDMsOwn:  # the class of this name in EDM's repository knows no other arguments
    def __init__(self, img_resolution, img_channels, label_dim=0, use_fp16=False, sigma_min=0, sigma_max=float("inf"),
                 sigma_data=0.5, model_type="DhariwalUNet", **model_kwargs):
        song(img_resolution, img_channels, img_channels, label_dim=label_dim, **model_kwargs)

def open_snapshot(path):
    torch.manual_seed(7)
    state = torch.get_rng_state()
    with open(path, "rb") as f:
        net = pickle.load(f)["ema"]
    assert torch.equal(torch.get_rng_state(), state), "loading has drawn from the random state"
    return net

def images(net):
    with torch.no_grad():
        return net(given["x"], given["sigma"], given["labels"]).clone()

given, found = torch.load(inputs), {}
for path in sorted(glob.glob("*.pkl")):
    net = open_snapshot(path)
    assert not any(m.split(".")[0] in ("registry", "ipfm_plugin") for m in sys.modules)
    found[path] = images(net)
    assert torch.equal(images(copy.deepcopy(net)), found[path])
    twin = type(net)(*net.init_args, **net.init_kwargs).eval()  # as EDM's documentation says, and then:
    theirs = dict(list(net.named_parameters()) + list(net.named_buffers()))
    ours = dict(list(twin.named_parameters()) + list(twin.named_buffers()))
    assert list(theirs) == list(ours)
    assert not torch.equal(images(twin), found[path])
    for name, tensor in ours.items():
        tensor.detach().copy_(theirs[name])
    assert torch.equal(images(twin), found[path])
    with open(path + ".again", "wb") as f:
        pickle.dump({"ema": twin}, f)
    again = open_snapshot(path + ".again")
    assert torch.equal(images(again), found[path])
    assert (again.sigma_min, again.sigma_max) == (net.sigma_min, net.sigma_max)
    if path == "EDM.pkl":
        EDMsOwn(*net.init_args, **net.init_kwargs)
    if path == "PFGM++.pkl":
        assert (net.init_kwargs["D"], net.init_kwargs["pfgmpp"], net.D, net.N, net.pfgmpp) == (128.0, True, 128.0, 64, True)
    trained = copy.deepcopy(net).train().requires_grad_(True)  # a network to go on with, as in SiD's loop
    trained(given["x"], given["sigma"], given["labels"]).square().sum().backward()
    assert all(torch.isfinite(p.grad).all() for p in trained.parameters() if p.grad is not None)
print(sys.version.split()[0], torch.__version__)
torch.save(found, results)
"""
KINDS = ["EDM", "PFGM++", "VP", "VE", "iDDPM"]
ROUNDING = 16 * torch.finfo(torch.float32).eps
"""Of attention whose sums are in another order: 1.002e-6 of the largest value was seen, on a processor with AVX2 alone."""


def open_elsewhere(python: str, function: str, folder: Path) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """Snapshots of all kinds, opened by another Python with stand-ins for torch_utils and dnnlib: our images and theirs."""
    rng = torch.Generator().manual_seed(0)
    given = {
        "x": 3 * torch.randn(4, 1, 8, 8, generator=rng),
        "sigma": torch.tensor([0.1, 0.5, 2.5, 20.0]),
        "labels": torch.eye(3)[[0, 1, 2, 0]],
    }
    torch.save(given, folder / "given.pt")
    ours = {}
    for kind in KINDS:
        net = a_network(kind)
        save_network(folder / f"{kind}.pkl", "generator", net, {})
        ours[f"{kind}.pkl"] = net(given["x"], given["sigma"], given["labels"]).detach()
    write_stand_ins(folder)
    (folder / "script.py").write_text(SCRIPT)
    done = subprocess.run(
        [python, "script.py", function, "given.pt", "out.pt"],
        cwd=folder, capture_output=True, text=True, env=environment({"PYTHONPATH": ""}), check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return ours, torch.load(folder / "out.pt", weights_only=True)


@pytest.mark.parametrize("function", ["there", "removed"])
def test_snapshots_open_in_other_projects(function: str, tmp_path: Path) -> None:
    """With this torch, and without the function for attention, which torch 1.12 does not have."""
    ours, theirs = open_elsewhere(sys.executable, function, tmp_path)
    for name, images in ours.items():
        assert (theirs[name] - images).abs().max() <= (0 if function == "there" else ROUNDING) * images.abs().max(), name
    for kind in KINDS:  # what that script has written again
        net, facts = load_network(tmp_path / f"{kind}.pkl.again")
        assert type(net) is type(a_network(kind))
        assert (128 if kind == "PFGM++" else math.inf) == facts.D
        for name, tensor in a_network(kind).state_dict().items():
            assert torch.equal(tensor, net.state_dict()[name])


@pytest.mark.skipif(not OLD_PYTHON, reason="DISTILL_OLD_PYTHON does not name a Python with an old torch (3.8 and torch 1.12)")
def test_snapshots_open_in_other_projects_with_an_old_torch(tmp_path: Path) -> None:
    ours, theirs = open_elsewhere(OLD_PYTHON, "there", tmp_path)
    for name, images in ours.items():
        assert (theirs[name] - images).abs().max() <= ROUNDING * images.abs().max(), name
    assert load_network(tmp_path / "PFGM++.pkl.again")[1].D == 128


def test_the_travelling_source_is_python_3_8() -> None:
    import ast

    from registry.edm import networks

    ast.parse(Path(networks.__file__).read_text(), feature_version=(3, 8))
