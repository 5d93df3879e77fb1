"""Metrics in the features of any network: coverage, density, precision, recall, Inception score, Fréchet distance."""

from __future__ import annotations

import json
import math
import subprocess
import sys
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from registry.builtin import FrechetConfig, InceptionScoreConfig, PRDCConfig
from registry.builtin.inception_metrics import build_inception_score
from registry.builtin.metrics import build_frechet
from registry.builtin.neighbour_metrics import build_prdc
from registry.builtin.reference import half
from registry.core.contracts import Domain
from registry.core.errors import UserError
from registry.edm.datasets import load_images
from registry.files.formats import save_network
from registry.files.json_files import kept
from registry.measure import neighbours
from registry.measure.comparison import distinct
from registry.measure.distances import frechet_distance, inception_score, moments
from registry.measure.inception import DIMENSION
from registry.measure.measuring import measure
from registry.measure.neighbours import precision_recall_density_coverage
from registry.measure.rows import Row, best, spread, summary
from registry.measure.saved import QUALITY
from registry.measure.torchscript import MEAN, STD, ScriptedNetwork, is_torchscript
from registry.plugins.loading import Plugins
from registry.recipe.reading import resolve
from registry.recipe.resolved import Choice
from registry.recipe.tables import EvalConfig
from registry.runs.folder import RunFolder
from registry.runs.outputs import alike, keep_best, write_table
from registry.show.journal import Journal
from registry.testing import check_metric
from tests.conftest import environment, error_line, grey_images, tiny_network

Cli = Callable[..., subprocess.CompletedProcess[str]]
Write = Callable[..., Path]


class WholeInception(nn.Module):
    """What the Inception network's file offers: features, or class probabilities with and without the last bias."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(48, DIMENSION), nn.ReLU())
        self.output = nn.Linear(DIMENSION, 10)

    def forward(self, x: Tensor, return_features: bool = False, use_fp16: bool = False, no_output_bias: bool = False) -> Tensor:
        assert x.dtype == torch.uint8, "pixels arrive unchanged, not resized"
        assert x.shape[1] == 3
        features = self.layers((x.to(torch.float32) - 128) / 128)
        if return_features:
            return features
        logits = 20 * features @ self.output.weight.T
        return (logits if no_output_bias else logits + self.output.bias).softmax(1)


class OnlyFeatures(WholeInception):
    def forward(self, x: Tensor, return_features: bool = False) -> Tensor:
        return self.layers((x.to(torch.float32) - 128) / 128)


class Logits(WholeInception):
    def forward(self, x: Tensor, return_features: bool = False, use_fp16: bool = False, no_output_bias: bool = False) -> Tensor:
        return self.layers((x.to(torch.float32) - 128) / 128)


class Pooled(nn.Module):
    """A feature network of 12 features for float images of any size."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 12, 3), nn.BatchNorm2d(12)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.conv(x)).relu().mean((2, 3))


def scripted(net: nn.Module, path: Path) -> Path:
    with torch.random.fork_rng(), warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        torch.manual_seed(1)
        for p in net.parameters():
            nn.init.normal_(p, std=0.3)
        torch.jit.script(net.eval()).save(str(path))
    return path


@pytest.fixture(scope="session")
def inception_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return scripted(WholeInception(), tmp_path_factory.mktemp("inception") / "whole.pt")


@pytest.fixture(scope="session")
def pooled_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return scripted(Pooled(), tmp_path_factory.mktemp("features") / "pooled.pt")


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Forty grey 8×8 images in EDM's layout."""
    return grey_images(tmp_path_factory.mktemp("data"), 40)


def domain(shape: tuple[int, int, int] = (1, 8, 8)) -> Domain:
    return Domain(D=128.0, image_shape=shape, origin="network.pkl")


def random(n: int, *shape: int, seed: int = 0) -> Tensor:
    return torch.randn(n, *shape, generator=torch.Generator().manual_seed(seed))


# ------------------------------------------------------------------------------------------------- pure functions


def by_hand(real: Tensor, rows: Tensor, k: int) -> dict[str, float]:
    """The definitions: sums over balls around each point that reach its k-th neighbour."""

    def radii(x: Tensor) -> Tensor:
        return torch.cdist(x, x).sort(1).values[:, k]  # the 0-th is the point itself

    x, y = real.double(), rows.double()
    within = torch.cdist(x, y)
    of_real, of_fake = within < radii(x)[:, None], within < radii(y)[None]
    return {
        "precision": float(of_real.any(0).double().mean()), "recall": float(of_fake.any(1).double().mean()),
        "density": float(of_real.double().sum(0).mean() / k), "coverage": float(of_real.any(1).double().mean()),
    }  # fmt: skip


@pytest.mark.parametrize("k", [1, 3, 5])
def test_precision_recall_density_coverage_are_their_definitions(k: int, capfd: pytest.CaptureFixture[str]) -> None:
    real, rows = random(60, 4), 0.7 * random(45, 4, seed=1) + 0.3
    found = precision_recall_density_coverage(real, rows, k)
    assert found == pytest.approx(by_hand(real, rows, k))
    assert 0.1 < found["coverage"] < 1 > found["precision"] > 0.1
    assert precision_recall_density_coverage(real, real, k) == pytest.approx(by_hand(real, real, k))
    collapsed = precision_recall_density_coverage(real, real[:1] + 1e-3 * rows, k)
    assert collapsed["precision"] == 1 > 0.2 > collapsed["coverage"]
    assert not any(capfd.readouterr()), "the package prints; we do not"


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "prdc", None)
    with pytest.raises(UserError, match=r"not installed: pip install 'distill-generators\[prdc\]'"):
        neighbours.prdc_module.__wrapped__()


def test_inception_score_of_known_distributions() -> None:
    uniform, classes = torch.full((40, 7), 1 / 7), torch.eye(7).repeat(20, 1)
    assert inception_score(uniform, 4) == pytest.approx((1, 0), abs=1e-9)
    assert inception_score(classes, 4) == pytest.approx((7, 0), abs=1e-9)  # zeros are no trouble
    p = random(103, 7).softmax(1)
    parts = [p[i * 103 // 10 : (i + 1) * 103 // 10].double() for i in range(10)]
    scores = [math.exp(float((q * (q / q.mean(0)).log()).sum(1).mean())) for q in parts]
    assert inception_score(p, 10) == pytest.approx((np.mean(scores), np.std(scores)))


def test_numbers_of_a_run_that_diverged_are_not_numbers() -> None:
    """A generator whose images are NaN is a result: nothing fails, and what it has is no best value."""
    bad = torch.full((20, 1, 8, 8), math.nan)
    assert math.isnan(build_frechet(FrechetConfig(reference="digits"), domain())(bad)["frechet"])
    prdc = build_prdc(PRDCConfig(reference="digits", features="digits_features", images=20), domain())
    assert all(map(math.isnan, prdc(bad).values()))
    row = Row("generator", 1, {"fid": [1.0, math.nan, 2.0]})
    assert row.text("fid") == "nan ± nan"
    assert math.isnan(best([1.0, math.nan], higher=False)) and math.isnan(spread([1.0, math.inf]))
    assert summary([3.0, 1.0, 2.0]) == {"values": [3.0, 1.0, 2.0], "min": 1, "max": 3, "mean": 2, "std": 1}


# --------------------------------------------------------------------------------------------- Inception's classes


def test_inception_score_leaves_the_bias_out(inception_file: Path) -> None:
    metric = build_inception_score(InceptionScoreConfig(inception=str(inception_file), splits=3), domain())
    images = random(30, 1, 8, 8).clamp(-1, 1)
    pixels = (images * 127.5 + 128).clip(0, 255).to(torch.uint8).repeat(1, 3, 1, 1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        net = torch.jit.load(inception_file).eval()
    without, with_bias = (net(pixels, no_output_bias=flag).detach() for flag in (True, False))
    found = metric(images)
    assert (found["inception_score"], found["inception_score_std"]) == pytest.approx(inception_score(without, 3), rel=1e-5)
    assert abs(found["inception_score"] - inception_score(with_bias, 3)[0]) > 1e-4
    assert metric.details["splits"] == 3
    check_metric(metric, (1, 8, 8))


@pytest.mark.parametrize(
    ("net", "message"),
    [
        (OnlyFeatures, "has no argument no_output_bias, so it gives features but no class probabilities; download it from https"),
        (Logits, "its outputs are no class probabilities; download it from https"),
    ],
)
def test_networks_without_class_probabilities(net: type[nn.Module], message: str, tmp_path: Path) -> None:
    path = scripted(net(), tmp_path / "net.pt")
    with pytest.raises(UserError, match=message):
        build_inception_score(InceptionScoreConfig(inception=str(path)), domain())


# ------------------------------------------------------------------------------------------------ TorchScript files


def rewritten(source: Path, path: Path, change: Callable[[str, bytes], bytes], compression: int = zipfile.ZIP_STORED) -> Path:
    """A copy of a TorchScript file with its records changed, under correct checksums."""
    with zipfile.ZipFile(source) as archive:
        records = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, content in records.items():
            archive.writestr(name, change(name, content))
    return path


@pytest.mark.parametrize(("which", "nested"), [
    ("code/__torch__", b"x = " + b"(" * 20_000 + b"1" + b")" * 20_000), ("/data.pkl", b"\x80\x02N" + b"\x85" * 300_000 + b"."),
    ("/constants.pkl", b"\x80\x02" + b"(" * 300_000 + b"t" * 300_000 + b"."),
])  # fmt: skip
def test_a_program_that_is_nested_too_deeply_does_not_end_the_process(
    which: str, nested: bytes, pooled_file: Path, tmp_path: Path
) -> None:
    path = rewritten(
        pooled_file,
        tmp_path / "p.pt",
        lambda name, content: nested if which in name and not name.endswith("debug_pkl") else content,
    )
    with pytest.raises(UserError, match="not a TorchScript program, or damaged"):
        ScriptedNetwork(path)


def test_a_program_that_only_fills_the_memory(pooled_file: Path, tmp_path: Path) -> None:
    path = rewritten(
        pooled_file, tmp_path / "p.pt", lambda name, content: content + bytes(2**27) * ("/data/0" in name), zipfile.ZIP_DEFLATED
    )
    with pytest.raises(UserError, match="its records take far more than the file"):
        ScriptedNetwork(path)


class FailsLater(Pooled):
    def forward(self, x: Tensor) -> Tensor:
        if len(x) > 3:
            raise ValueError("too many")
        return self.conv(x).mean((2, 3))


def test_a_program_that_fails_later_is_named(tmp_path: Path) -> None:
    network = ScriptedNetwork(scripted(FailsLater(), tmp_path / "net.pt"), "unit")
    network.check((1, 8, 8))
    with pytest.raises(UserError, match=r"net.pt: this program fails: .*too many"):
        network.rows(torch.zeros(4, 1, 8, 8))


def test_what_a_torchscript_network_is_given(pooled_file: Path) -> None:
    images = torch.linspace(-1.2, 1.2, 2 * 64).reshape(2, 1, 8, 8)
    pixels = (images * 127.5 + 128).clip(0, 255).to(torch.uint8).repeat(1, 3, 1, 1)
    wanted = {
        "uint8": pixels,
        "unit": pixels / 255,
        "signed": pixels / 127.5 - 1,
        "imagenet": (pixels / 255 - torch.tensor(MEAN)[:, None, None]) / torch.tensor(STD)[:, None, None],
    }
    for input, values in wanted.items():
        found = ScriptedNetwork(pooled_file, input).prepare(images)  # type: ignore[arg-type]
        torch.testing.assert_close(found, values, rtol=1e-6, atol=1e-6)
    network = ScriptedNetwork(pooled_file, "imagenet")
    with torch.no_grad():
        torch.testing.assert_close(network.embed(images), network.net(wanted["imagenet"]))
    assert network.embed(images) is network.embed(images)
    assert ScriptedNetwork(pooled_file, "unit").hash != network.hash != ScriptedNetwork(pooled_file, "imagenet", 16).hash


@pytest.mark.parametrize("size", [5, 28])
def test_resizing_is_pillows(size: int, pooled_file: Path) -> None:
    pixels = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (2, 3, 12, 12), dtype=np.uint8))
    found = ScriptedNetwork(pooled_file, "unit", size).prepare(pixels / 127.5 - 1)
    for image, values in zip(pixels, found, strict=True):
        picture = Image.fromarray(image.permute(1, 2, 0).numpy()).resize((size, size), Image.Resampling.BICUBIC)
        torch.testing.assert_close(values.permute(1, 2, 0), torch.from_numpy(np.array(picture)) / 255)


def test_frechet_distance_in_a_torchscript_network(
    pooled_file: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DISTILL_CACHE_DIR", str(tmp_path / "cache"))
    config = FrechetConfig(features=str(pooled_file), input="imagenet", size=16, reference=str(data))
    metric = build_frechet(config, domain())
    assert metric.columns == ("frechet",)
    network, images, real = ScriptedNetwork(pooled_file, "imagenet", 16), random(25, 1, 8, 8), load_images(str(data)).x()
    expected = frechet_distance(*moments(network.rows(images)), *moments(network.rows(real)))
    assert metric(images)["frechet"] == pytest.approx(expected, rel=1e-6)
    assert metric(real)["frechet"] == pytest.approx(0, abs=1e-6)
    assert metric.floor(0)["frechet"] == pytest.approx(metric(half(real, 0))["frechet"], rel=1e-6)
    assert metric.details["features"] == "pooled.pt"
    assert (metric.details["input"], metric.details["size"], metric.details["reference_images"]) == ("imagenet", 16, 40)
    check_metric(metric, (1, 8, 8))
    (kept,) = (tmp_path / "cache" / "statistics").iterdir()
    before = kept.stat().st_mtime_ns
    assert build_frechet(config, domain()).fingerprint == metric.fingerprint
    assert kept.stat().st_mtime_ns == before
    assert build_frechet(config.model_copy(update={"size": 12}), domain()).fingerprint != metric.fingerprint


class Batchwise(Pooled):
    def forward(self, x: Tensor) -> Tensor:
        return (x - x.mean(0)).flatten(1)


class NotFinite(Pooled):
    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x).mean((2, 3)).log()


class OneRow(Pooled):
    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x).mean((0, 2, 3))


class Several(Pooled):
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        return x, x


class Complex(Pooled):
    def forward(self, x: Tensor) -> Tensor:
        return torch.view_as_complex(self.conv(x).mean((2, 3)).reshape(len(x), -1, 2))


class Nothing(Pooled):
    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x).mean((2, 3))[:, :0]


@pytest.mark.parametrize(
    ("net", "settings", "message"),
    [
        (Complex, {"input": "unit"}, "gives complex numbers"),
        (Nothing, {"input": "unit"}, "gives no features"),
        (Pooled, {}, "it cannot take uint8 images of 3×8×8 .input = 'uint8'.: RuntimeError: Input type"),
        (Pooled, {"input": "unit", "size": 2}, "it cannot take float32 images of 3×2×2 .input = 'unit'.: RuntimeError: Calc"),
        (Batchwise, {"input": "unit"}, "gives an image other features in a batch than alone; save the network in eval mode"),
        (NotFinite, {"input": "unit"}, "gives features that are not finite"),
        (OneRow, {"input": "unit"}, r"gives \[12\] for 3 images; a feature network gives one row per image"),
        (Several, {"input": "unit"}, "gives a tuple for 3 images; a feature network gives one row per image"),
    ],
)
def test_programs_that_are_no_feature_network(
    net: type[nn.Module], settings: dict[str, object], message: str, data: Path, tmp_path: Path
) -> None:
    path = scripted(net(), tmp_path / "net.pt")
    config = FrechetConfig.model_validate({"features": str(path), "reference": str(data), **settings})
    with pytest.raises(UserError, match=message) as raised:
        build_frechet(config, domain())
    assert "\n" not in str(raised.value)


def test_files_that_are_no_feature_network(pooled_file: Path, generator_file: Path, data: Path, tmp_path: Path) -> None:
    cut = tmp_path / "cut.pt"
    cut.write_bytes(pooled_file.read_bytes()[:-100])
    assert is_torchscript(pooled_file) and not is_torchscript(cut) and not is_torchscript(generator_file)
    for path in (cut, generator_file):
        with pytest.raises(UserError, match=path.name):
            build_frechet(FrechetConfig(features=str(path), reference=str(data)), domain())
    with pytest.raises(ValueError, match="no such file"):
        FrechetConfig(features="nowhere.pt")
    with pytest.raises(UserError, match="input = 'unit': is for TorchScript networks; digits_features takes images as they are"):
        build_frechet(FrechetConfig(reference="digits", input="unit"), domain())
    with pytest.raises(UserError, match="takes grey or RGB images; these have 2 channels"):
        build_frechet(FrechetConfig(features=str(pooled_file), reference=str(data)), domain((2, 8, 8)))


# ------------------------------------------------------------------------------------------------------------ prdc


def test_prdc_of_the_digits() -> None:
    """Real against real is near 1; a missing class lowers coverage and recall, noise lowers density and precision."""
    digits = load_images("digits")
    metric = build_prdc(PRDCConfig(reference="digits", features="digits_features"), domain())
    assert digits.classes is not None
    floor, missing, noisy = (
        metric.floor(0),
        metric(digits.x()[digits.classes > 4]),
        metric(digits.x() + 0.5 * random(1797, 1, 8, 8)),
    )
    assert list(floor) == ["coverage", "density", "precision", "recall"]
    assert all(0.9 < value < 1.1 for value in floor.values())
    assert missing["coverage"] < 0.6 and missing["recall"] < 0.75 and missing["precision"] == 1
    assert noisy["density"] < 0.6 and noisy["precision"] < 0.7
    assert metric.floor(0) == floor != metric.floor(1)
    check_metric(metric, (1, 8, 8))


def test_prdc_compares_at_most_so_many_images_of_either_side(plugins: Plugins, data: Path) -> None:
    config = PRDCConfig(reference=str(data), features="digits_features", images=15)
    metric = build_prdc(config, domain())
    assert (metric.most, len(metric.real.rows), metric.details["reference_images"]) == (15, 15, 15)
    assert torch.equal(build_prdc(config, domain()).real.rows, metric.real.rows)
    asked: list[int] = []

    def sample(seeds: range) -> Tensor:
        asked.extend(seeds)
        return torch.cat([random(1, 1, 8, 8, seed=seed) for seed in seeds])

    (owner,) = plugins.owners("metric", "prdc")
    choice = Choice("metric", owner.component, owner.owner, config)  # type: ignore[arg-type]
    found = measure([(choice, metric)], sample, range(5, 45), batch=10)
    assert asked == list(range(5, 20))
    assert found == metric(torch.cat([random(1, 1, 8, 8, seed=seed) for seed in range(5, 20)]))
    with pytest.raises(UserError, match="has 40 images; at least 42 are needed"):
        build_prdc(PRDCConfig(reference=str(data), features="digits_features", nearest_k=40), domain())
    with pytest.raises(ValueError, match="must be at least nearest_k"):
        PRDCConfig(nearest_k=9, images=10)


def test_too_few_images_are_found_before_a_run(recipe_file: Write, plugins: Plugins) -> None:
    path = recipe_file(
        append='metrics = ["prdc"]\nreference = "digits"\n[eval.prdc]\nfeatures = "digits_features"\nnearest_k = 15\n'
    )
    with pytest.raises(UserError, match=r"\[eval\] snapshot_samples = 16: the metric prdc with these settings needs at least 17"):
        resolve(str(path), plugins)
    assert resolve(str(path), plugins, ["eval.snapshot_samples=0"])


# ------------------------------------------------------------------------------------------------------ the commands


def test_all_metrics_from_one_process_from_two_and_in_one_table(
    cli: Cli, here: Cli, generator_file: Path, inception_file: Path, pooled_file: Path, data: Path, tmp_path: Path
) -> None:
    given = ["evaluate", "--network", generator_file, "--reference", data, "--inception", inception_file, "--device", "cpu",
             "--metrics", "fid,inception_score,prdc,frechet", "--set", f"frechet.features={pooled_file}", "--batch", "7",
             "--set", "frechet.input=unit", "--set", "frechet.size=12", "--set", "inception_score.splits=3"]  # fmt: skip
    one, two, few = (tmp_path / f"{name}.json" for name in ("one", "two", "few"))
    done = cli(*given, "--samples", "30", "--output", one)
    assert done.returncode == 0, done.stderr
    saved = json.loads(one.read_text())
    assert set(saved["results"]) == {"fid30_proxy", "inception_score30_proxy", "prdc", "frechet"}
    fid, coverage = saved["results"]["fid30_proxy"]["fid"], saved["results"]["prdc"]["coverage"]
    assert fid["min"] == min(fid["values"]) <= fid["mean"] <= fid["max"]
    assert "coverage" in saved["higher_is_better"] and "fid" not in saved["higher_is_better"]
    assert saved["protocols"]["recall"] == saved["protocols"]["coverage"]
    assert (
        saved["protocols"]["frechet"] | {"images": 30, "repeats": 3, "features": "pooled.pt", "input": "unit"}
        == (saved["protocols"]["frechet"])
    )
    for text in ("minimum", "maximum", "mean ± std", "nearest k 5", "splits 3", saved["protocols"]["frechet"]["features_hash"],
                 f"{fid['min']:.5g}", f"{coverage['max']:.5g}"):  # fmt: skip
        assert text in done.stdout

    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m", "registry.cli", *given]
    again = subprocess.run([*map(str, command), "--samples", "30", "--output", str(two)], env=environment(), capture_output=True,
                           text=True, timeout=120, check=False)  # fmt: skip
    assert again.returncode == 0, again.stderr
    assert json.loads(two.read_text())["results"] == saved["results"]

    alike = here("table", one, two)
    assert alike.returncode == 0
    assert "†" not in alike.stdout and "mode legacy_tensorflow" in alike.stdout
    assert here(*given, "--samples", "20", "--set", "prdc.nearest_k=3", "--output", few).returncode == 0
    unlike = " ".join(here("table", one, few).stdout.split())
    assert "†1 fid: images 20, not 30 †2" in unlike
    assert "prdc: images 20, not 30; nearest k 3, not 5" in unlike


def test_a_table_of_runs_and_evaluations(cli: Cli, here: Cli, recipe_file: Write, data: Path, tmp_path: Path) -> None:
    """A run's table says how it was measured, its best snapshot is the one with the highest coverage, and tables can be joined."""
    append = f'metrics = ["prdc", "sliced_wasserstein"]\nreference = "{data}"\n[eval.prdc]\nfeatures = "digits_features"\n'
    done = cli("--recipe", recipe_file(append=append))
    assert done.returncode == 0, done.stderr
    (run,) = (tmp_path / "runs").iterdir()
    quality = json.loads((run / "quality.json").read_text())
    generator, _, floor = quality["rows"]
    assert generator["summary"]["recall"]["values"] == generator["values"]["recall"]
    assert floor["name"].startswith("floor")
    assert quality["higher_is_better"] == ["coverage", "density", "precision", "recall"]
    assert quality["protocols"]["sliced_w2"]["projections"] == 512
    assert quality["protocols"]["coverage"]["reference_hash"] in (run / "quality.txt").read_text()
    assert f"min {generator['summary']['sliced_w2']['min']:.3g}" in (run / "quality.txt").read_text()
    lines = [json.loads(line) for line in (run / "metric-prdc.jsonl").read_text().splitlines()]
    assert json.loads((run / "best.json").read_text())["value"] == max(line["results"]["coverage"] for line in lines)
    assert lines[0]["compared_with"]["nearest_k"] == 5

    snapshot = next(run.glob("network-snapshot-1*"))
    given = ["evaluate", "--network", snapshot, "--metrics", "sliced_wasserstein", "--reference", data, "--device", "cpu"]
    assert here(*given, "--samples", "32", "--repeats", "2", "--output", tmp_path / "same.json").returncode == 0
    assert here(*given, "--samples", "32", "--repeats", "3", "--output", tmp_path / "three.json").returncode == 0
    old = {"rows": [{"name": "generator [/b]", "evaluations": 1, "values": {"sliced_w2": [1, 2]}, "note": ""}]}
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / "quality.json").write_text(json.dumps(old))
    assert "†" not in here("table", run, tmp_path / "same.json").stdout
    shown = " ".join(here("table", run, tmp_path / "three.json", tmp_path / "old").stdout.split())
    assert "sliced_wasserstein: repeats 3, not 2" in shown
    assert "sliced_wasserstein: how it was measured is not recorded" in shown
    assert "[/b]" in shown


@pytest.mark.parametrize(
    ("sources", "names"),
    [
        (["/a/b/0-x"], ["0-x"]),
        (["/a/b/0-x", "/a/b/1-x"], ["0-x", "1-x"]),
        (["/s/D-3/seed-0/0-x", "/s/D-inf/seed-0/0-x"], ["D-3", "D-inf"]),
        (["/s/D-3/seed-0/0-x", "/s/D-3/seed-1/0-x", "/s/D-inf/seed-0/0-x"], ["D-3/seed-0", "D-3/seed-1", "D-inf/seed-0"]),
        (["0-x", "/a/0-x"], ["0-x", "a/0-x"]),
    ],
)
def test_sources_are_named_by_what_tells_them_apart(sources: list[str], names: list[str]) -> None:
    assert list(distinct(map(Path, sources)).values()) == names


def test_the_best_snapshot_among_those_measured_alike(
    plugins: Plugins, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = RunFolder(tmp_path, Journal())
    metric = build_prdc(PRDCConfig(reference=str(data), features="digits_features"), domain())
    (owner,) = plugins.owners("metric", "prdc")
    choice = Choice("metric", owner.component, owner.owner, PRDCConfig())  # type: ignore[arg-type]
    for kimg, coverage, reference in (
        (1, 0.9, "other"),
        (2, 0.3, "this"),
        (3, 0.5, "this"),
        (4, math.nan, "this"),
        (5, 0.4, "this"),
    ):
        save_network(tmp_path / f"{kimg}.pkl", "generator", tiny_network(), {"D": 128.0, "nimg": 1000 * kimg})
        line = {"metric": "prdc", "samples": 16, "results": {"coverage": coverage}, "snapshot_pkl": f"{kimg}.pkl", "kimg": kimg}
        folder.append(line | {"compared_with": {"reference": reference}}, "metric-prdc.jsonl")
    keep_best(folder, [(choice, metric)], 5000)
    assert (tmp_path / "network-snapshot-best.pkl").read_bytes() == (tmp_path / "3.pkl").read_bytes()
    assert json.loads((tmp_path / "best.json").read_text())["value"] == 0.5
    keep_best(folder, [(choice, metric)], 2000)  # a run that was resumed comes to the best one again
    assert (tmp_path / "network-snapshot-best.pkl").read_bytes() == (tmp_path / "3.pkl").read_bytes()
    (tmp_path / "network-snapshot-best.pkl").unlink()
    (tmp_path / "3.pkl").write_bytes((tmp_path / "3.pkl").read_bytes()[:-100])
    keep_best(folder, [(choice, metric)], 5000)
    assert (
        f"WARNING {tmp_path / '3.pkl'}: cannot be read, or does not say how many images it has seen; the best snapshot is not kept"
        in capsys.readouterr().out
    )
    assert not (tmp_path / "network-snapshot-best.pkl").exists()
    old = [{"metric": "prdc", "samples": 16, "kimg": kimg} for kimg in (1, 2)]  # as version 0.1 wrote them
    assert alike([]) == [] and alike(old) == old and alike([*old, old[0] | {"compared_with": {}}])[:2] == old


def test_a_table_is_read_whatever_a_plugin_calls_its_weights(tmp_path: Path) -> None:
    facts = {"teacher_weights": "three\nlines\n" * 100, "data_hash": None}
    write_table(RunFolder(tmp_path, Journal()), [Row("generator", 1)], (), EvalConfig(), 5000, facts)
    quality = kept(tmp_path / "quality.json", QUALITY)
    assert quality is not None and [*quality.made_from] == ["teacher_weights"]


def test_bad_input_is_one_line(here: Cli, generator_file: Path, inception_file: Path, data: Path, tmp_path: Path) -> None:
    np.savez(tmp_path / "stats.npz", mu=np.zeros(DIMENSION), sigma=np.zeros((DIMENSION, DIMENSION)))
    ok = ["evaluate", "--network", generator_file, "--inception", inception_file, "--device", "cpu"]
    cases: list[tuple[list[str | Path], str]] = [
        (["--metrics", "prdc", "--reference", tmp_path / "stats.npz"], "image statistics work only with the metric fid"),
        (["--metrics", "prdc"], "--reference is missing: the real images that prdc compares with"),
        (["--metrics", "prdc", "--reference", data, "--samples", "6"], "the metric prdc with these settings needs at least 7 images"),
        (["--metrics", "inception_score", "--samples", "9"], "inception_score with these settings needs at least 10 images"),
        (["--metrics", "fid", "--reference", data, "--set", "prdc.nearest_k=3"], "'prdc' is none of the metrics: fid"),
        (["--metrics", "prdc", "--reference", data, "--set", "prdc.nearest=3"], "nearest is unknown (did you mean 'nearest_k'?)"),
        (["--metrics", "prdc", "--reference", data, "--set", "prdc.features=nowhere.pt"], "features = 'nowhere.pt': no such file"),
        (["--metrics", "frechet", "--reference", data, "--set", "frechet.size=3"], "--set frechet.size=3: is for TorchScript"),
    ]  # fmt: skip
    for given, message in cases:
        assert message in error_line(here(*ok, *given)), given
    for name, content in (("text", "hello"), ("list", "[1]"), ("other", '{"rows": [{"name": 1}]}'),
                          ("text values", '{"rows": [{"name": "a", "evaluations": 1, "values": {"fid": ["x"]}}]}'),
                          ("no metric", '{"protocols": {"fid": {}}, "rows": []}'),
                          ("too large", '{"rows": [{"name": "a", "evaluations": 1, "values": {"fid": [1' + 400 * "0" + "]}}]}"),
                          ("no values", '{"network": "a", "evaluations": 1, "results": {"fid": {"fid": {"values": []}}}}')):  # fmt: skip
        (tmp_path / f"{name}.json").write_text(content)
        assert "neither a result of `distill evaluate` (.json) nor a run's quality.json" in error_line(
            here("table", tmp_path / f"{name}.json")
        )
    assert "quality.json: cannot be read: No such file" in error_line(here("table", tmp_path))
