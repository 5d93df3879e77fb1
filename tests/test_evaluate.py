"""FID and `distill evaluate`: the same number from the command, two processes, training and by hand; and all kinds of bad input."""

from __future__ import annotations

import json
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from registry.builtin import FIDConfig, KIDConfig
from registry.builtin.inception_metrics import build_fid, build_kid
from registry.core import distributed
from registry.core.contracts import Domain
from registry.core.errors import Interrupted, UserError
from registry.measure import inception
from registry.measure.distances import frechet_distance, frechet_distance_of_rows, moments
from registry.measure.fid import frechet_inception_distance
from registry.measure.inception import (
    DIMENSION,
    NAME,
    Inception,
    Statistics,
    open_inception,
    read_statistics,
)
from registry.sample.opening import open_sampler
from tests.conftest import environment, error_line, golden, grey_images

Cli = Callable[..., subprocess.CompletedProcess[str]]
Write = Callable[..., Path]
FEW = ["--samples", "12", "--batch", "5", "--device", "cpu"]


class StandIn(nn.Module):
    """What clean-fid expects of the Inception network's file: `layers`, and forward(x, return_features)."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(48, DIMENSION), nn.ReLU())

    def forward(self, x: Tensor, return_features: bool = False) -> Tensor:
        assert x.dtype == torch.uint8, "pixels arrive unchanged, not resized"
        assert x.shape[1] == 3
        return self.layers((x.to(torch.float32) - 128) / 128)


@pytest.fixture(scope="session")
def inception_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("inception") / "stand-in.pt"
    with torch.random.fork_rng():
        torch.manual_seed(1)
        torch.jit.script(StandIn()).save(str(path))
    return path


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Thirty grey 8×8 images in EDM's layout."""
    return grey_images(tmp_path_factory.mktemp("data"), 30)


def network(shape: tuple[int, int, int] = (1, 8, 8)) -> Domain:
    return Domain(D=128.0, image_shape=shape, origin="network.pkl")


def pixels_of(folder: Path) -> Tensor:
    return torch.stack([torch.from_numpy(np.array(Image.open(p))) for p in sorted(folder.glob("*.png"))])[:, None]


# ------------------------------------------------------------------------------------------------------- distance


@pytest.mark.parametrize("case", ["a", "b"])
def test_golden_fid(case: str) -> None:
    """Through clean-fid (more images than features), and with a covariance that is singular."""
    g = golden("fid")
    a, b = g.at(f"{case}/features_a"), g.at(f"{case}/features_b")
    assert frechet_inception_distance(a, *moments(b)) == pytest.approx(g.at(f"{case}/fid").item(), rel=1e-6)
    assert frechet_distance_of_rows(a, *moments(b)) == pytest.approx(g.at(f"{case}/fid").item(), rel=1e-6)
    few = a[: a.shape[1] // 2]
    assert frechet_inception_distance(few, *moments(b)) == pytest.approx(frechet_distance(*moments(few), *moments(b)), rel=1e-6)
    assert frechet_inception_distance(few, *moments(few)) == pytest.approx(0, abs=1e-5)


def test_duplicate_images_are_handled(capfd: pytest.CaptureFixture[str]) -> None:
    """More images than features but a singular covariance: clean-fid or our fallback handles it, and nothing is printed."""
    rows = torch.randn(4, 16, generator=torch.Generator().manual_seed(0)).repeat(20, 1)
    assert frechet_inception_distance(rows, *moments(rows)) == pytest.approx(0, abs=1e-3)
    assert not any(capfd.readouterr())


def test_a_torchvision_that_does_not_load_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Except for the failure with a CPU-only torch, which does not affect clean-fid."""
    (tmp_path / "torchvision.py").write_text("raise OSError('libcudart.so.13: cannot open')")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "torchvision", raising=False)
    with pytest.raises(UserError, match=r"a torchvision that matches torch 2\S+: libcudart.so.13: cannot open"):
        inception.cleanfid_module.__wrapped__()


# --------------------------------------------------------------------------------------- features and statistics


def test_features_use_pixels_rounded_as_in_edm(inception_file: Path) -> None:
    inception = Inception(inception_file)
    images = torch.linspace(-1.2, 1.2, 5 * 64).reshape(5, 1, 8, 8)
    pixels = (images * 127.5 + 128).clip(0, 255).to(torch.uint8)
    rows = inception.embed(images)
    assert (rows.shape, rows.dtype) == ((5, DIMENSION), torch.float32)
    torch.testing.assert_close(rows, inception.net.base(pixels.repeat(1, 3, 1, 1), return_features=True))
    torch.testing.assert_close(inception.features(pixels.repeat(1, 3, 1, 1), batch=2), rows)
    assert inception.embed(images) is rows
    assert inception.embed(images + 0) is not rows


def test_statistics_of_a_data_set_are_cached(
    inception_file: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DISTILL_CACHE_DIR", str(tmp_path / "cache"))
    config = FIDConfig(reference=str(data), inception=str(inception_file))
    found = build_fid(config, network()).statistics
    mu, sigma = moments(Inception(inception_file).features(pixels_of(data)))
    torch.testing.assert_close((found.mu, found.sigma), (mu, sigma))
    (kept,) = (tmp_path / "cache" / "statistics").iterdir()
    kept.write_bytes(kept.read_bytes()[:1000])  # damaged: made again
    assert build_fid(config, network()).statistics.hash == found.hash
    Statistics(found.mu + 1, found.sigma, 8, 30, found.inception).save(kept)  # whole: used
    assert build_fid(config, network()).statistics.mu[0] == found.mu[0] + 1
    with np.load(kept, allow_pickle=False) as file:
        assert {k: file[k].item() for k in ("img_resolution", "num_images")} == {"img_resolution": 8, "num_images": 30}


def test_kid_and_fid_share_their_features(inception_file: Path, data: Path) -> None:
    fid = build_fid(FIDConfig(reference=str(data), inception=str(inception_file)), network())
    kid = build_kid(KIDConfig(reference=str(data), inception=str(inception_file)), network())
    assert fid.real is kid.real
    images = pixels_of(data) / 127.5 - 1
    far = -images.abs()
    assert kid.embed(images) is fid.embed(images)
    assert fid(images)["fid"] == pytest.approx(0, abs=1e-4)
    before = np.random.get_state()[1].copy()
    assert kid(far) == kid(far)
    assert (np.random.get_state()[1] == before).all()
    assert kid(far)["kid"] > max(kid(images)["kid"], 0)
    for metric in (fid, kid):
        assert metric.floor(0) == metric.floor(0) != metric.floor(1)
        assert metric.floor(0)[metric.columns[0]] < metric(far)[metric.columns[0]]


def write(path: Path, **arrays: object) -> Path:
    np.savez(path, **arrays)  # type: ignore[arg-type]
    return path


def bomb(path: Path, entry: bytes) -> Path:
    """A ZIP file with an entry that takes much more than the file."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("mu.npy", entry)
    return path


def header(shape: object) -> bytes:
    """The beginning of an array's entry that claims this shape."""
    text = f"{{'descr': '<f8', 'fortran_order': False, 'shape': {shape}, }}".encode()
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text


def test_files_that_are_not_statistics(tmp_path: Path) -> None:
    mu, sigma = np.zeros(DIMENSION), np.eye(DIMENSION)
    whole = write(tmp_path / "whole.npz", mu=mu, sigma=sigma)
    assert read_statistics(str(whole)).img_resolution is None  # EDM's files do not say
    (tmp_path / "cut.npz").write_bytes(whole.read_bytes()[:-5000])
    (tmp_path / "text.npz").write_text("hello")
    np.save(tmp_path / "array", mu)
    (tmp_path / "array.npy").rename(tmp_path / "array.npz")
    bad = {
        "cut.npz": "not an .npz file of numbers, or damaged",
        "text.npz": "not an .npz file of numbers, or damaged",
        "array.npz": "not an .npz file of numbers, or damaged",
        "nowhere.npz": "no such file",
        write(tmp_path / "keys.npz", mean=mu).name: "not a file of statistics: it has mean, expected mu and sigma",
        write(tmp_path / "object.npz", mu=np.array([{}]), sigma=sigma).name: "not an .npz file of numbers, or damaged",
        write(tmp_path / "other.npz", mu=mu[:64], sigma=np.eye(64)).name: r"another network: mu is \[64\], sigma \[64, 64\]",
        write(tmp_path / "nan.npz", mu=mu * np.nan, sigma=sigma).name: "values that are not finite",
        write(tmp_path / "text.npz", mu=np.array("mu"), sigma=sigma).name: "does not hold real numbers",
        bomb(tmp_path / "zeros.npz", entry=np.zeros(2**27, np.uint8).tobytes()).name: "more than the 65 MiB that are allowed",
        bomb(tmp_path / "claims.npz", entry=header((10**6, 10**6)) + b"0" * 100).name: "an array of another size than its entry",
        bomb(tmp_path / "deep.npz", entry=header("(" * 5000)).name: "not an .npz file of numbers",
        write(tmp_path / "void.npz", mu=np.zeros(DIMENSION, "V0"), sigma=sigma).name: "does not hold real numbers",
        write(tmp_path / "dates.npz", mu=np.zeros(DIMENSION, "datetime64[s]"), sigma=sigma).name: "does not hold real numbers",
        write(tmp_path / "complex.npz", mu=mu + 1j, sigma=sigma).name: "does not hold real numbers",
        write(tmp_path / "huge.npz", mu=mu + 1e308, sigma=sigma).name: r"values beyond ±1e\+12, which no features have",
        write(tmp_path / "skew.npz", mu=mu, sigma=sigma + np.eye(DIMENSION, k=1)).name: "no covariance: it is not symmetric",
        write(tmp_path / "negative.npz", mu=mu, sigma=-sigma).name: "no covariance: it has negative eigenvalues",
        write(tmp_path / "two.npz", mu=mu, sigma=sigma, img_resolution=[8, 8, 8]).name: "img_resolution must be one number above 0",
        write(tmp_path / "bytes.npz", mu=mu, sigma=sigma, num_images=b"50000").name: "num_images must be one number above 0",
        write(tmp_path / "none.npz", mu=mu, sigma=sigma, num_images=0).name: "num_images must be one number above 0",
        write(tmp_path / "hash.npz", mu=mu, sigma=sigma, inception=3).name: "inception must be one text",
    }
    for name, message in bad.items():
        with pytest.raises(UserError, match=message):
            read_statistics(str(tmp_path / name))


def test_statistics_of_few_images_or_in_float32_are_a_covariance(tmp_path: Path) -> None:
    """Their smallest eigenvalues are 0 but for rounding."""
    mu, sigma = moments(torch.randn(10, DIMENSION, generator=torch.Generator().manual_seed(0)) * 30 + 5)
    for dtype in (np.float64, np.float32):
        path = write(tmp_path / "few.npz", mu=mu.numpy().astype(dtype), sigma=sigma.numpy().astype(dtype))
        assert read_statistics(str(path)).mu[3] == pytest.approx(mu[3].item(), rel=1e-6)
    zero = write(tmp_path / "zero.npz", mu=np.zeros(DIMENSION), sigma=np.zeros((DIMENSION, DIMENSION)))
    assert read_statistics(str(zero)).sigma.sum() == 0


def test_references_that_do_not_fit(inception_file: Path, data: Path, tmp_path: Path) -> None:
    def fid(reference: Path, shape: tuple[int, int, int] = (1, 8, 8)) -> None:
        build_fid(FIDConfig(reference=str(reference), inception=str(inception_file)), network(shape))

    statistics = Statistics(torch.zeros(DIMENSION).double(), torch.eye(DIMENSION).double(), 32)
    statistics.save(tmp_path / "r32.npz")
    with pytest.raises(UserError, match="its statistics were made from images at resolution 32, expected 8"):
        fid(tmp_path / "r32.npz")
    Statistics(statistics.mu, statistics.sigma, inception="abc").save(tmp_path / "other.npz")
    with pytest.raises(UserError, match="its statistics were made with another Inception file, with hash abc, expected "):
        fid(tmp_path / "other.npz")
    with pytest.raises(UserError, match="takes grey or RGB images; these have 2 channels"):
        fid(tmp_path / "other.npz", (2, 1, 1))
    with pytest.raises(UserError, match="its images are 1×8×8; the network's are 3×8×8"):
        fid(data, (3, 8, 8))
    with pytest.raises(UserError, match="does not include its images; give a data set"):
        build_fid(FIDConfig(inception=str(inception_file)), network())
    (tmp_path / "one").mkdir()
    Image.new("L", (8, 8)).save(tmp_path / "one" / "a.png")
    with pytest.raises(UserError, match="has 1 image; at least 2 are needed"):
        fid(tmp_path / "one")


def test_files_that_are_not_the_inception_network(generator_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "text.pt").write_text("hello")
    torch.jit.script(nn.Linear(3, 3)).save(str(tmp_path / "linear.pt"))
    for name in (generator_file.name, "text.pt", "linear.pt"):
        with pytest.raises(UserError, match="not clean-fid's Inception network, or damaged; download it from https://"):
            open_inception(str(tmp_path / name), "fid")
    monkeypatch.setenv("DISTILL_CACHE_DIR", str(tmp_path))
    with pytest.raises(UserError, match=rf"download https://\S+ to {tmp_path / NAME}, or give its path"):
        open_inception(None, "fid")


# ------------------------------------------------------------------------------------------------------ the command


def fid_by_hand(a: Tensor, b: Tensor) -> float:
    """With centred A, B: tr (Σ_a Σ_b)^½ is the sum of the singular values of A Bᵀ/√((n−1)(m−1))."""
    A, B = a - a.mean(0), b - b.mean(0)
    cross = torch.linalg.svdvals(A @ B.T).sum() / ((len(a) - 1) * (len(b) - 1)) ** 0.5
    traces = A.square().sum() / (len(a) - 1) + B.square().sum() / (len(b) - 1)
    return float((a.mean(0) - b.mean(0)).square().sum() + traces - 2 * cross)


def test_fid_is_the_same_from_one_process_from_two_and_by_hand(
    cli: Cli, generator_file: Path, inception_file: Path, data: Path, tmp_path: Path
) -> None:
    given = ["evaluate", "--network", generator_file, "--reference", data, "--inception", inception_file, *FEW]
    done = cli(*given, "--metrics", "fid,sliced_wasserstein", "--save-reference", tmp_path / "stats.npz")
    assert done.returncode == 0, done.stderr
    one = json.loads((tmp_path / "generator.metric-fid-sliced_wasserstein.json").read_text())
    found = one["results"]["fid12_proxy"]["fid"]
    for text in ("fid12_proxy", "minimum", "mean ± std", "0-11, 12-23, 24-35", "legacy_tensorflow", one["sampler"]["weights"],
                 one["metrics"]["fid"]["inception_hash"], one["metrics"]["fid"]["reference_hash"]):  # fmt: skip
        assert text in done.stdout
    assert one["sampler"] | {"D": 128.0, "kind": "generator", "sigmas": [2.5]} == one["sampler"]
    assert set(one["results"]) == {"fid12_proxy", "sliced_wasserstein"}

    inception, sampler = Inception(inception_file), open_sampler(str(generator_file), device="cpu")
    real = inception.features(pixels_of(data)).double()
    by_hand = [fid_by_hand(inception.embed(sampler(range(i, i + 12))).double(), real) for i in (0, 12, 24)]
    assert found["values"] == pytest.approx(by_hand, rel=1e-5)
    assert found["min"] == min(found["values"])
    assert found["std"] == pytest.approx(np.std(by_hand, ddof=1), rel=1e-3)

    # Two processes with the saved statistics give exactly the same numbers.
    given[given.index(data)] = tmp_path / "stats.npz"
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m", "registry.cli", *given]
    two = subprocess.run([*map(str, command)], env=environment(), capture_output=True, text=True, timeout=120, check=False)
    assert two.returncode == 0, two.stderr
    assert two.stdout.count("minimum") == 1
    of_two = json.loads((tmp_path / "generator.metric-fid.json").read_text())
    assert of_two["results"]["fid12_proxy"]["fid"] == found
    lines = [json.loads(line) for line in (tmp_path / "generator.metric-fid.jsonl").read_text().splitlines()]
    assert [line["results"]["fid"] for line in lines] == found["values"]
    assert {"metric", "num_gpus", "snapshot_pkl", "total_time", "timestamp"} <= set(lines[0])
    assert (lines[0]["metric"], lines[0]["num_gpus"]) == ("fid12_proxy", 2)


def test_training_measures_the_same_number_and_keeps_the_best_snapshot(
    cli: Cli, recipe_file: Write, inception_file: Path, data: Path, tmp_path: Path
) -> None:
    append = f'metrics = ["fid"]\nreference = "{data}"\nbatch = 5\n[eval.fid]\ninception = "{inception_file}"\n'
    path = recipe_file(("duration_kimg = 0.048", "duration_kimg = 0.032"), ("repeats = 2", "repeats = 1"), append=append)
    checked = cli("check", path)
    assert checked.returncode == 0, checked.stderr
    done = cli("--recipe", path)
    assert done.returncode == 0, done.stderr
    (run,) = (tmp_path / "runs").iterdir()
    assert "fid32_proxy" in (run / "quality.txt").read_text()
    floor = json.loads((run / "quality.json").read_text())["rows"][-1]
    assert len(floor["values"]["fid"]) == 1

    def lines() -> list[dict[str, object]]:
        return [json.loads(line) for line in (run / "metric-fid.jsonl").read_text().splitlines()]

    values = [line["results"]["fid"] for line in lines()]  # type: ignore[index]
    assert (lines()[-1]["metric"], len(values)) == ("fid16_proxy", 2)
    best = json.loads((run / "best.json").read_text())
    assert (best["value"], best["column"]) == (min(values), "fid")
    snapshot = run / "network-snapshot-1.000000-000000.pkl"  # one file: all snapshots fall within the first thousand images
    if values[-1] == min(values):
        assert (run / "network-snapshot-best.pkl").read_bytes() == snapshot.read_bytes()

    output = tmp_path / "a folder" / "to be made" / "again.json"
    again = cli("evaluate", "--network", snapshot, "--reference", data, "--inception", inception_file, "--samples", "16",
                "--repeats", "1", "--batch", "5", "--device", "cpu", "--output", output)  # fmt: skip
    assert again.returncode == 0, again.stderr
    assert json.loads(output.read_text())["results"]["fid16_proxy"]["fid"]["min"] == pytest.approx(values[-1], rel=1e-6)

    # A resumed run knows the best value so far from its lines.
    text = (run / "metric-fid.jsonl").read_text()
    first = json.loads(text.splitlines()[0])
    first |= {"results": {"fid": -1.0}, "snapshot_pkl": "deleted.pkl"}
    del first["digest"]
    (run / "metric-fid.jsonl").write_text(json.dumps(first) + "\n" + text)
    kept = (run / "best.json").read_text()
    resumed = cli("--recipe", path, "--resume", run, "--set", "train.duration_kimg=0.048")
    assert resumed.returncode == 0, resumed.stderr
    assert len(lines()) == 4
    assert (run / "best.json").read_text() == kept


def test_a_recipe_with_published_statistics_is_checked_without_internet_and_torch(recipe_file: Write) -> None:
    url = "https://nvlabs-fi-cdn.nvidia.com/edm/fid-refs/cifar10-32x32.npz"
    path = recipe_file(append=f'metrics = ["fid"]\nreference = "{url}"\n')
    code = f"import sys; sys.argv = ['distill', 'check', {str(path)!r}]\nfrom registry.cli import main\ntry: main()\nexcept SystemExit as e: assert not e.code\nassert not {{'torch', 'cleanfid'}} & set(sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment(), check=False)
    assert done.returncode == 0, done.stderr
    assert path.name in done.stdout


def test_bad_input_is_one_line(here: Cli, generator_file: Path, inception_file: Path, data: Path, tmp_path: Path) -> None:
    (tmp_path / "damaged.npz").write_text("hello")
    np.savez(
        tmp_path / "ffhq-64x64.npz", mu=np.zeros(2048), sigma=np.zeros((2048, 2048))
    )  # as EDM's files: only the name states the resolution
    ok = {"--network": generator_file, "--reference": data, "--inception": inception_file}
    cases: list[tuple[dict[str, object], str]] = [
        ({"--reference": None}, "--reference is missing: the real images that fid compares with: a folder or ZIP, digits"),
        ({"--reference": "nowhere"}, "--reference nowhere: [eval] reference = 'nowhere': no such data set"),
        ({"--reference": tmp_path / "damaged.npz"}, "damaged.npz: not an .npz file of numbers, or damaged"),
        ({"--reference": tmp_path / "damaged.npz", "--metrics": "kid"}, "image statistics work only with the metric fid"),
        ({"--samples": 1}, "--samples 1: [eval] samples = 1: must be greater than or equal to 2"),
        ({"--metrics": "fidd"}, "no metric is called 'fidd' (did you mean 'fid'?)"),
        ({"--inception": "nowhere.pt"}, "--inception nowhere.pt: [eval.fid] inception = 'nowhere.pt': no such file"),
        ({"--reference": tmp_path / "ffhq-64x64.npz"}, "its statistics were made from images at resolution 64, expected 8"),
        ({"--inception": None}, "--inception: fid needs the Inception network: download https://"),
        ({"--output": "result.txt"}, "--output result.txt: the result is saved as .json"),
        ({"--save-reference": "x.npz", "--metrics": "sliced_wasserstein"}, "only the metric fid has statistics to save"),
    ]  # fmt: skip
    for changes, message in cases:
        given = [str(a) for k, v in (ok | changes).items() if v is not None for a in (k, v)]
        assert message in error_line(here("evaluate", *given, "--device", "cpu")), changes
    assert not list(tmp_path.glob("*.metric-*"))


@pytest.mark.slow
def test_two_processes_in_training_measure_the_same_as_one(
    recipe_file: Write, inception_file: Path, data: Path, tmp_path: Path
) -> None:
    """FID and KID against a data set whose features all processes compute, with the best snapshot and the floor."""
    append = f'metrics = ["fid", "kid"]\nreference = "{data}"\nbatch = 5\n[eval.fid]\ninception = "{inception_file}"\n[eval.kid]\ninception = "{inception_file}"\n'  # fmt: skip
    path = recipe_file(("duration_kimg = 0.048", "duration_kimg = 0.032"), append=append)
    found = []
    for processes in (1, 2):
        cache, outdir = tmp_path / f"cache{processes}", tmp_path / f"runs{processes}"
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
        command += ["-m", "registry.cli", "--recipe", str(path), "--outdir", str(outdir), "--fresh-teacher"]
        env = environment({"DISTILL_CACHE_DIR": str(cache)})
        done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=300, check=False)
        assert done.returncode == 0, done.stderr
        (run,) = outdir.iterdir()
        found.append([json.loads((run / "quality.json").read_text())["rows"], json.loads((run / "best.json").read_text())])
    for one, two in zip(found[0][0], found[1][0], strict=True):
        assert one["name"] == two["name"]
        for column in ("fid", "kid"):
            assert two["values"][column] == pytest.approx(one["values"][column], rel=1e-3)
    assert found[1][1]["value"] == pytest.approx(found[0][1]["value"], rel=1e-3)


def test_a_signal_to_a_command_that_only_measures_ends_it_as_a_signal_does() -> None:
    """`distill evaluate` notes no signals: the command raises Interrupted where it is."""

    def work(part: range) -> int:
        if part.start:
            raise Interrupted("interrupted", 143)
        return part.start

    with pytest.raises(Interrupted) as caught:
        distributed.share(6, 2, work)
    assert caught.value.code == 143
