"""What is exported gives the generator's images where this package is not installed: a folder, ONNX, a program of torch.export."""

from __future__ import annotations

import ast
import json
import math
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from registry import load_generator
from registry.core.version import version
from registry.export.card import licence_of
from registry.export.graph import inputs
from registry.export.source import single_file
from registry.files.formats import save_network
from tests.conftest import environment, error_line, tiny_network

Here = Callable[..., subprocess.CompletedProcess[str]]
Cli = Callable[..., subprocess.CompletedProcess[str]]

ALONE = """
import sys
sys.modules.update(dict.fromkeys(("registry", "ipfm_plugin", "PIL", "pydantic")))  # an import of these fails
from modeling import load
import torch
generator = load(sys.argv[1])
torch.save([generator.sample(seeds=[0, 7, 2**40 + 3]), generator.images(5, batch=2)], sys.argv[2])
if generator.label_dim:
    torch.save(generator.sample(3, labels=[2, 0, 1]), sys.argv[2] + ".labels")
"""
KINDS = {
    "one step": (128.0, [2.5], 0), "diffusion": (math.inf, [2.5], 0), "two steps with classes": (3.0, [2.5, 0.9], 3),
}  # fmt: skip


def generator(path: Path, D: float, sigmas: list[float], label_dim: int) -> Path:
    about = {"D": D, "sigma_init": sigmas[0], "sigmas": sigmas, "nimg": 512_000}
    about["recipe"] = {"noise": {"use": "gaussian" if math.isinf(D) else "electrostatic", "sigma_init": sigmas[0]}}
    save_network(path, "generator", tiny_network(label_dim=label_dim, D=D), about)
    return path


@pytest.mark.parametrize("kind", KINDS)
def test_a_folder_is_sampled_without_this_package(kind: str, cli: Cli, tmp_path: Path) -> None:
    network = generator(tmp_path / "g.pt", *KINDS[kind])
    done = cli("export", network, tmp_path / "out", "--license", "mit")
    assert done.returncode == 0, done.stderr
    assert {p.name for p in (tmp_path / "out").iterdir()} == {
        "README.md", "config.json", "model.safetensors", "modeling.py", "samples.png",
    }  # fmt: skip
    words = [sys.executable, "-c", ALONE, str(tmp_path / "out"), str(tmp_path / "images.pt")]
    alone = subprocess.run(
        words,
        cwd=tmp_path / "out",
        env=environment({"PYTHONPATH": str(tmp_path / "out")}),
        capture_output=True,
        text=True,
        check=False,
    )
    assert alone.returncode == 0, alone.stderr
    sampler = load_generator(network)
    images, pixels = torch.load(tmp_path / "images.pt")
    torch.testing.assert_close(images, sampler.sample(seeds=[0, 7, 2**40 + 3]), rtol=0, atol=1e-6)
    assert np.abs(pixels.numpy().astype(int) - sampler.images(5)).max() <= 1
    if sampler.label_dim:
        labelled = torch.load(tmp_path / "images.pt.labels")
        torch.testing.assert_close(labelled, sampler.sample(3, labels=[2, 0, 1]), rtol=0, atol=1e-6)


@pytest.mark.parametrize(("suffix", "kind"), [(".onnx", "two steps with classes"), (".pt2", "one step")])
def test_a_function_gives_the_images_for_any_number_of_them(suffix: str, kind: str, cli: Cli, tmp_path: Path) -> None:
    network, out = generator(tmp_path / "g.pt", *KINDS[kind]), tmp_path / f"g{suffix}"
    done = cli("export", network, out)
    assert done.returncode == 0, done.stderr
    sampler = load_generator(network)
    for n in (1, 5):
        given = inputs(sampler, range(n))
        if suffix == ".onnx":
            import onnxruntime

            session = onnxruntime.InferenceSession(str(out))
            names = ("latents", "labels")[: len(given)]
            assert [i.name for i in session.get_inputs()] == list(names)
            found = torch.from_numpy(session.run(["images"], {k: t.numpy() for k, t in zip(names, given, strict=True)})[0])
            said = json.loads(session.get_modelmeta().custom_metadata_map["distill"])
        else:
            extra = {"distill.json": ""}
            program = torch.export.load(out, extra_files=extra)
            found, said = program.module()(*given), json.loads(extra["distill.json"])
        torch.testing.assert_close(found, sampler(range(n)), rtol=0, atol=1e-4)
        assert (said["D"], said["sigmas"], said["label_dim"]) == KINDS[kind]


def test_the_card_of_a_run_has_its_numbers_and_a_hub_takes_its_metadata(
    cli: Cli, recipe_file: Callable[..., Path], tmp_path: Path
) -> None:
    from huggingface_hub import ModelCard, ModelCardData

    recipe = recipe_file(append='metrics = ["sliced_wasserstein"]\nreference = "digits"\n')
    assert cli("--recipe", recipe, "--outdir", tmp_path / "runs").returncode == 0
    run = max((tmp_path / "runs").iterdir())
    done = cli("export", run, tmp_path / "my generator")
    assert "WARNING the teacher's licence is not known" in done.stdout
    card = ModelCard.load(tmp_path / "my generator" / "README.md")
    assert isinstance(card.data, ModelCardData)
    assert (card.data.license, card.data.library_name, card.data.tags) == ("unknown", "pytorch", ["distill", "few-step", "ipfm"])
    assert str(tmp_path) not in card.content, "where somebody's files lie is nobody's business"
    quality = json.loads((run / "quality.json").read_text())
    own = quality["rows"][0]["values"]
    assert card.data.eval_results is not None
    found = {r.metric_type: r.metric_value for r in card.data.eval_results}
    assert found == pytest.approx({column: float(np.mean(values)) for column, values in own.items()})
    assert {r.dataset_name for r in card.data.eval_results} == {"digits"}
    own = f"(ipfm {version()})"
    assert f"components: teacher pfgmpp {own}, noise electrostatic {own}, loss ipfm {own}" in card.content
    assert "| generator | 1 | " in card.content and "sliced\\_w2" in card.content


def test_the_card_of_a_snapshot_has_what_was_measured_of_it(cli: Cli, recipe_file: Callable[..., Path], tmp_path: Path) -> None:
    """Of one that is not the run's last, or whose run has not ended."""
    from huggingface_hub import ModelCard

    recipe = recipe_file(append='metrics = ["sliced_wasserstein"]\nreference = "digits"\n')
    assert cli("--recipe", recipe, "--outdir", tmp_path / "runs").returncode == 0
    run = max((tmp_path / "runs").iterdir())
    (run / "quality.json").unlink()
    lines = [json.loads(line) for line in (run / "metric-sliced_wasserstein.jsonl").read_text().splitlines()]
    assert lines
    done = cli("export", run / lines[-1]["snapshot_pkl"], tmp_path / "out")
    assert done.returncode == 0, done.stderr
    card = ModelCard.load(tmp_path / "out" / "README.md")
    assert {r.metric_type: r.metric_value for r in card.data.eval_results} == pytest.approx(lines[-1]["results"])


@pytest.mark.parametrize("what", ["the network", "the lines"])
def test_the_card_has_no_number_of_another_run(what: str, here: Cli, recipe_file: Callable[..., Path], tmp_path: Path) -> None:
    recipe = recipe_file(append='metrics = ["sliced_wasserstein"]\nreference = "digits"\n')
    first, second = tmp_path / "first" / "00000-short", tmp_path / "second" / "00000-short"
    for run, lr in ((first, 1e-3), (second, 2e-3)):
        assert here("--recipe", recipe, "--outdir", run.parent, "--set", f"train.lr={lr}").returncode == 0
    if what == "the lines":
        (first / "quality.json").unlink()
    for file in second.glob("network-snapshot-*" if what == "the network" else "metric-*"):
        shutil.copy(file, first)
    assert here("export", first, tmp_path / "out").returncode == 0
    assert "value:" not in (tmp_path / "out" / "README.md").read_text()
    assert here("export", second, tmp_path / "right").returncode == 0
    assert "value:" in (tmp_path / "right" / "README.md").read_text()


def test_the_teachers_licence_is_known_where_it_is_published() -> None:
    assert licence_of("edm:ffhq", None) == licence_of("pfgmpp:ffhq_ddpm_D_128", None) == "cc-by-nc-sa-4.0"
    assert licence_of("digits_d128", None) == "apache-2.0"
    assert licence_of("/somewhere/teacher.pkl", None) == licence_of("https://example.org/a.pkl", None) == "unknown"
    assert licence_of("edm:ffhq", "mit") == "mit"


def test_the_single_file_has_every_name_once() -> None:
    tree = ast.parse(single_file())
    defined = [node.name for node in tree.body if isinstance(node, ast.ClassDef | ast.FunctionDef)]
    defined += [t.id for node in tree.body if isinstance(node, ast.Assign) for t in node.targets if isinstance(t, ast.Name)]
    assert len(defined) == len(set(defined)) > 30
    modules = {node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    modules |= {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    assert {name.partition(".")[0] for name in modules} <= {*sys.stdlib_module_names, "torch", "safetensors", "torch_utils"}


def test_what_cannot_be_exported_is_refused_and_nothing_is_left(cli: Cli, tmp_path: Path) -> None:
    network = generator(tmp_path / "g.pt", *KINDS["one step"])
    four = tmp_path / "four.pt"
    save_network(four, "generator", tiny_network(channels=4), {"D": 128.0, "sigma_init": 2.5})
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.txt").write_text("mine")
    (tmp_path / "dir.onnx").mkdir()
    (tmp_path / "link").symlink_to("elsewhere")
    cases = [
        (("digits_d128", "a"), "is a teacher"),
        ((network, "full"), "is there already; give a new folder, or remove it"),
        ((network, "link"), "is there already; give a new folder, or remove it"),
        ((network, "g.SafeTensors"), "are written by `distill convert`"),
        ((network, "g.safetensors"), "are written by `distill convert`"),
        ((network, "g.tar"), "is no format to export to; give a name in .onnx or .pt2, or a folder's"),
        ((network, "dir.onnx"), "is a folder"),
        ((network, "b", "--license", "My own!"), "must be a hub's identifier, such as apache-2.0"),
        ((network, "b.onnx", "--license", "mit"), "is for the card of a folder"),
        ((four, "c"), "a folder is for pictures, and these images are 4×8×8"),
    ]
    before = {p.name for p in tmp_path.iterdir()}
    for (source, out, *more), text in cases:
        assert text in error_line(cli("export", source, tmp_path / str(out), *more))
    assert {p.name for p in tmp_path.iterdir()} == before
    assert (tmp_path / "full" / "thesis.txt").read_text() == "mine"
