"""Files written by version 0.1, before the code was moved into folders, still work: snapshots, states and recipes."""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from hashlib import blake2b
from pathlib import Path

import numpy as np
import pytest
import torch

from registry.core.errors import UserError
from registry.core.streams import Streams, TorchStreams
from registry.files.formats import load_network
from registry.plugins.loading import Plugins
from registry.recipe.reading import resolve
from registry.recipe.resolved import Recipe
from registry.runs.distill import distill
from registry.sample.opening import open_sampler
from tests.conftest import HERE

OLD = HERE / "golden" / "release_0.1"
RUN = "run_folders/00001-toy"


@pytest.mark.parametrize("file", ["generator.safetensors", "network-snapshot-1.000000-000000.pkl"])
def test_a_snapshot_has_the_same_facts_and_gives_the_same_images(file: str) -> None:
    _, facts = load_network(OLD / file, "generator")
    assert (facts.kind, facts.D, facts.sigma_init, facts.nimg, facts.image_shape) == ("generator", 128.0, 2.5, 48, (1, 8, 8))
    assert facts.others["steps"] == 2
    assert facts.table("noise")["use"] == "electrostatic"
    wanted = np.load(OLD / "generator_samples.npz")["arr_0"]
    images = open_sampler(str(OLD / file), rng="torch")(range(8))
    pixels = (images * 127.5 + 128).clip(0, 255).permute(0, 2, 3, 1).numpy()
    assert np.abs(pixels - wanted).max() < 1.01  # rounding to uint8


@pytest.mark.parametrize("file", ["training-state-000002.pt", "network-snapshot-1.000000-000002.pt"])
def test_a_state_and_a_snapshot_of_a_plugins_network_are_sampled(file: str) -> None:
    wanted = np.load(OLD / "toy_samples.npz")["arr_0"]
    found = open_sampler(str(OLD / RUN / file), rng="torch")(range(8)).permute(0, 2, 3, 1).numpy()
    np.testing.assert_allclose(found, wanted, atol=1e-5)


def drawn_as_then(purpose: str, indices: Iterable[int], device: torch.device | str = "cpu") -> Streams:
    """The draws of version 0.1: torch's generators, with seeds from a hash."""
    hashes = (blake2b(f"{purpose}/{i}".encode(), digest_size=4).digest() for i in indices)
    return TorchStreams((int.from_bytes(digest, "little") for digest in hashes), device)


def test_a_run_continues_from_its_state_to_the_same_result_with_the_draws_of_then(
    tmp_path: Path, plugins: Plugins, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Streams, "derived", drawn_as_then)
    folder = tmp_path / "00001-toy"
    shutil.copytree(OLD / RUN, folder)
    (folder / "training-state-000002.pt").unlink()
    recipe = shutil.copy(OLD / "toy.toml", tmp_path)
    result = distill(str(recipe), outdir=str(tmp_path), resume="auto")
    assert result.folder == folder
    one, two = (torch.load(f / "training-state-000002.pt", weights_only=True)["parts"] for f in (OLD / RUN, folder))
    for name in ("student", "generator"):
        for key, wanted in one[name]["net"].items():
            torch.testing.assert_close(two[name]["net"][key], wanted, rtol=0, atol=1e-5)
    for key, wanted in one["ema"].items():
        torch.testing.assert_close(two["ema"][key], wanted, rtol=0, atol=1e-5)


def test_its_resolved_recipe_is_read_and_belongs_to_the_same_run(plugins: Plugins) -> None:
    recipe = resolve(str(OLD / RUN / "recipe.toml"), plugins)
    assert isinstance(recipe, Recipe)
    assert (recipe.teacher.name, recipe.noise.name, recipe.loss.name, recipe.generator.steps) == ("analytic", "gaussian", "sid", 2)


def test_a_state_of_another_run_is_refused(tmp_path: Path) -> None:
    recipe = shutil.copy(OLD / "toy.toml", tmp_path)
    with pytest.raises(UserError, match="belongs to another run"):
        distill(str(recipe), sets=["generator.steps=1"], outdir=str(tmp_path), resume=str(OLD / RUN / "training-state-000001.pt"))
