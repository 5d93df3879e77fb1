"""Files of ours that ask for too much, or hold something else than they should: refused soon, and without the memory."""

from __future__ import annotations

import json
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from registry.core import seal
from registry.core.atomic import write_atomically
from registry.core.errors import UserError
from registry.edm.datasets import readable_labels
from registry.files.bounds import STATE
from registry.files.formats import load_network, save_network
from registry.files.plain import load, problem
from tests.conftest import HERE, environment, error_line, tiny_network

Here = Callable[..., subprocess.CompletedProcess[str]]
OLD = "distill/1"
"""The mark of files without a seal: what strangers' files would have."""


@pytest.fixture(scope="module")
def content(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    path = tmp_path_factory.mktemp("content") / "n.pt"
    save_network(path, "generator", tiny_network(), {"D": 128.0, "sigma_init": 2.5})
    return load(path, "generator") | {"format": OLD}


def changed(content: dict[str, Any], where: str, value: Any) -> dict[str, Any]:
    """The content with one entry, such as 'network.kwargs.model_channels', replaced, or removed if the value is ...."""
    first, _, rest = where.partition(".")
    if rest:
        return content | {first: changed(content[first], rest, value)}
    return {k: v for k, v in content.items() if k != first} if value is ... else content | {first: value}


def nested(depth: int) -> Any:
    value: Any = 0
    for _ in range(depth):
        value = [value]
    return value


WRONG: dict[str, tuple[str, Any]] = {
    "wide": ("network.kwargs.model_channels", 16384),
    "long": ("network.kwargs.num_blocks", 100_000),
    "negative": ("network.kwargs.model_channels", -1),
    "a text for a number": ("network.kwargs.model_channels", "many"),
    "many levels": ("network.kwargs.channel_mult", [1] * 5000),
    "no levels": ("network.kwargs.channel_mult", []),
    "unknown argument": ("network.kwargs.surprise", 1),
    "no class": ("network.class", ...),
    "class of another type": ("network.class", 5),
    "unknown class": ("network.class", "os.system"),
    "no network": ("network", ...),
    "no weights": ("weights", ...),
    "weights of another type": ("weights", [1, 2]),
    "a weight that is none": ("weights.model.map_layer0.weight", 1.0),
    "no about": ("about", ...),
    "steps": ("about.steps", 10**9),
    "image shape": ("about.image_shape", [1, 10**6, 10**6]),
    "image shape of two": ("about.image_shape", [8, 8]),
    "D of another type": ("about.D", "inf"),
    "D = 0": ("about.D", 0.0),
    "sigma_init": ("about.sigma_init", float("inf")),
    "sigmas": ("about.sigmas", [1.0] * 2000),
    "recipe of another type": ("about.recipe", "quickstart"),
    "nimg": ("about.nimg", -5),
    "assumed": ("about.assumed", {"D": 1}),
    "kind": ("kind", ["generator"]),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_network_file_that_asks_for_too_much_is_refused(case: str, content: dict[str, Any], tmp_path: Path) -> None:
    where, value = WRONG[case]
    if where.startswith("weights.model"):
        evil = content | {"weights": content["weights"] | {where.partition(".")[2]: value}}
    else:
        evil = changed(content, where, value)
    torch.save(evil, tmp_path / "n.pt")
    with pytest.raises(UserError, match=r"n\.pt: "):
        load_network(tmp_path / "n.pt")


@pytest.mark.parametrize("case", [c for c in WRONG if "weight" not in c])
def test_so_is_a_safetensors_file(case: str, content: dict[str, Any], tmp_path: Path) -> None:
    evil = changed(content, *WRONG[case])
    metadata = {"distill": json.dumps({k: v for k, v in evil.items() if k != "weights"})}
    save_file({"a": torch.zeros(1)}, tmp_path / "n.safetensors", metadata)
    with pytest.raises(UserError, match=r"n\.safetensors: "):
        load_network(tmp_path / "n.safetensors")


WRONG_STATES: list[tuple[str, Any]] = [
    ("nimg", "many"), ("nimg", ...), ("parts", []), ("parts.generator", 1), ("networks", ...), ("rng", 5), ("recipe", {"train": 1}),
    ("recipe", nested(50)), ("about.steps", 10**9), ("seconds", -1.0),
    ("about.teacher_weights", torch.zeros(3)), ("about.data_hash", torch.zeros(0)),
]  # fmt: skip


@pytest.mark.parametrize(("where", "value"), WRONG_STATES)
def test_a_state_that_is_none_is_refused(where: str, value: Any, tmp_path: Path) -> None:
    state = load(next((HERE / "golden" / "release_0.1").rglob("training-state-*.pt")), STATE)
    torch.save(changed(state, where, value), tmp_path / "training-state-000001.pt")
    with pytest.raises(UserError, match="is no file as distill writes them"):
        load(tmp_path / "training-state-000001.pt", STATE)


SMALL = """
import resource, sys, time
from registry.files.formats import load_network
from registry.core.errors import UserError
import registry.edm.networks
before, start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.monotonic()
for path in sys.argv[1:]:
    try:
        load_network(path)
    except UserError as error:
        print(error)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


def test_a_tiny_file_takes_little_memory(content: dict[str, Any], tmp_path: Path) -> None:
    """Under 600 bytes of metadata that describe networks of gigabytes."""
    paths = []
    for i, (where, value) in enumerate((("model_channels", 16384), ("num_blocks", 100_000), ("channel_mult", [4096]))):
        evil = changed({k: v for k, v in content.items() if k != "weights"}, f"network.kwargs.{where}", value)
        paths.append(tmp_path / f"{i}.safetensors")
        save_file({"a": torch.zeros(1)}, paths[-1], {"distill": json.dumps(evil)})
    done = subprocess.run(
        [sys.executable, "-c", SMALL, *map(str, paths)], env=environment(), capture_output=True, text=True, timeout=120, check=True
    )
    *lines, kilobytes = done.stdout.splitlines()
    assert len(lines) == 3 and all("its network cannot be built: it has" in line for line in lines)
    assert int(kilobytes) < 512 * 1024


UNUSUAL: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "sparse": lambda w: w.to_sparse(),
    "quantised": lambda w: torch.quantize_per_tensor(w, 0.1, 0, torch.qint8),
    "nested": lambda w: torch.nested.nested_tensor([torch.zeros(2), torch.zeros(3)]),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", UNUSUAL)
def test_tensors_that_only_torch_knows_are_refused_as_inspect_says(kind: str, here: Here, tmp_path: Path) -> None:
    """torch's own reader of plain tensors admits them, and nothing here can use them."""
    save_network(tmp_path / "net.pt", "denoiser", tiny_network(), {"D": 128.0})
    content = torch.load(tmp_path / "net.pt", weights_only=True)
    name = next(name for name, weights in content["weights"].items() if weights.ndim == 4)
    content["weights"][name] = UNUSUAL[kind](content["weights"][name])
    write_atomically(tmp_path / "net.pt", lambda file: (torch.save(content, file), seal.seal(file)))
    assert here("inspect", tmp_path / "net.pt").returncode == (3 if kind == "nested" else 1)
    message = error_line(here("generate", "--network", tmp_path / "net.pt", "--seeds", "0", "--outdir", tmp_path / "out"))
    assert "not a plain-tensor file written by distill, or damaged (it refers to torch." in message
    assert not (tmp_path / "out").exists()


def test_a_compressed_file_is_not_unpacked(tmp_path: Path) -> None:
    """torch's reader would: a megabyte of it can hold a gigabyte."""
    save_network(tmp_path / "net.pt", "denoiser", tiny_network(), {"D": 128.0})
    with zipfile.ZipFile(tmp_path / "net.pt") as old, zipfile.ZipFile(tmp_path / "packed.pt", "w", zipfile.ZIP_DEFLATED) as new:
        for member in old.namelist():
            new.writestr(member, old.read(member))
    with open(tmp_path / "packed.pt", "r+b") as file:
        seal.seal(file)
    assert problem(tmp_path / "packed.pt") is None
    with pytest.raises(UserError, match=r"has the compressed or encrypted member .*, which torch.save never writes"):
        load(tmp_path / "packed.pt", "denoiser")


def test_a_list_of_labels_is_no_longer_than_its_images_need() -> None:
    content = b'{"labels": null, "x": [' + b"{}," * 1_000_001 + b"{}]}"
    with pytest.raises(UserError, match="holds far more lists than there are images"):
        readable_labels("set", content, ["a.png"])
