"""Images from seeds: with the command as a user types it, and compared with the latents of PFGM++'s script."""

from __future__ import annotations

import fcntl
import json
import math
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from filelock import FileLock
from PIL import Image

from registry.builtin.noise import GaussianNoise
from registry.core.errors import SettingError, UserError
from registry.core.levels import heun_levels
from registry.core.streams import Streams, TorchStreams
from registry.edm.latents import pfgmpp_latents
from registry.files.formats import load_network, save_network
from registry.sample.generate import Form, claim, generate, parse_seeds, read_parts, write_part
from registry.sample.heun import heun
from registry.sample.opening import open_sampler
from registry.sample.sampler import Rng
from registry.sample.steps import heun_steps
from registry.show.pictures import to_uint8
from tests.conftest import HERE, environment, error_line, golden, tiny_network

Here = Callable[..., subprocess.CompletedProcess[str]]

Cli = Callable[..., subprocess.CompletedProcess[str]]
GOLDEN = HERE / "golden"


@pytest.fixture
def generator_file(tmp_path: Path) -> Path:
    """A two-step generator with three classes at D = 128."""
    about = {"D": 128.0, "sigma_init": 2.5, "sigmas": [2.5, 0.9], "steps": 2}
    about["recipe"] = {"noise": {"use": "electrostatic", "sigma_init": 2.5}}
    save_network(tmp_path / "two.pkl", "generator", tiny_network(label_dim=3), about)
    return tmp_path / "two.pkl"


def pixels(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): Image.open(p).tobytes() for p in sorted(folder.rglob("*.png"))}


# ----------------------------------------------------------------------------------------------------- the pieces


def test_a_folder_is_claimed_by_one_of_two_commands(tmp_path: Path) -> None:
    """They begin at once, with other settings."""

    def claims(folder: Path, both: threading.Barrier, seed: int) -> bool:
        both.wait()
        with suppress(SettingError):
            claim(folder, {"seed": seed})
            return True
        return False

    with ThreadPoolExecutor(2) as pool:
        for i in range(50):
            (tmp_path / str(i)).mkdir()
            both = threading.Barrier(2)
            assert sum(pool.map(partial(claims, tmp_path / str(i), both), range(2))) == 1


def test_seeds() -> None:
    assert parse_seeds("0-3,7, 10 - 11 ,5") == [0, 1, 2, 3, 7, 10, 11, 5]
    for text, wanted in (
        ("", "write numbers"),
        ("1-", "write numbers"),
        ("5-2", "5-2 is empty"),
        ("4294967296", "a seed must be below"),
        ("0-3,2-5", "2 comes twice"),
    ):
        with pytest.raises(UserError, match=wanted):
            parse_seeds(text)


@pytest.mark.parametrize("D", [128, 2048])
def test_golden_latents_of_the_pfgmpp_script(D: int) -> None:
    g = golden("kernel")
    before = torch.get_rng_state()
    found = pfgmpp_latents(g.at("prior/seeds").tolist(), (3, 8, 8), 80, D)
    torch.testing.assert_close(found, g.at(f"prior/d{D}/latents", torch.float64), rtol=1e-6, atol=0)
    assert torch.equal(torch.get_rng_state(), before)


def test_at_infinite_D_torchs_latents_equal_the_scripts() -> None:
    g = golden("kernel")
    assert torch.equal(
        GaussianNoise().prior((3, 8, 8), 1.0, TorchStreams(g.at("prior/seeds").tolist())), g.at("prior/dinf/latents")
    )


def test_heun_steps() -> None:
    assert (heun_steps(32, None, None), heun_steps(64, None, None)) == (18, 40)
    assert (heun_steps(32, None, 9), heun_steps(32, 7, None), heun_steps(32, 5, 9)) == (5, 7, 5)
    with pytest.raises(UserError, match="an odd number; give 9 or 11"):
        heun_steps(32, None, 10)
    with pytest.raises(UserError, match="6 Heun steps take 11 evaluations"):
        heun_steps(32, 6, 9)


# -------------------------------------------------------------------------------------------------- what files say


@pytest.mark.parametrize(("rng", "streams"), [("distill", Streams), ("torch", TorchStreams), ("pfgmpp", TorchStreams)])
def test_whose_draws_a_seed_stands_for(rng: Rng, streams: type[Streams], tmp_path: Path) -> None:
    """At D = inf PFGM++'s are torch's. What was made by the one is not taken for what the other makes."""
    path = tmp_path / "net.pkl"
    save_network(path, "generator", tiny_network(D=math.inf, label_dim=3), {"D": math.inf, "sigma_init": 2.5, "sigmas": [2.5]})
    sampler = open_sampler(str(path), rng=rng)
    again = streams([5, 6])
    start = sampler.labelled([5, 6])[0], 2.5 * again.normal(sampler.domain.image_shape), again.one_hot(3)
    net, _ = load_network(str(path), "generator")
    with torch.no_grad():
        torch.testing.assert_close(start[0], net(start[1], torch.tensor(2.5), start[2]))
    assert sampler.settings["rng"] == {"distill": "philox"}.get(rng, rng)


@pytest.mark.parametrize("seeds", [[], [-1], [2**64], [1.5], ["1"]], ids=str)
def test_what_is_no_seed_is_refused(seeds: list[Any]) -> None:
    with pytest.raises(UserError, match=r"^seeds"):
        open_sampler("digits_d128", nfe=1)(seeds)


def test_seeds_may_be_numpys_or_torchs() -> None:
    sampler = open_sampler("digits_d128", nfe=1)
    wanted, others = sampler([3, 2**63]), sampler([3, 4])
    assert torch.equal(sampler(np.array([3, 2**63], dtype=np.uint64)), wanted)  # type: ignore[arg-type]
    assert torch.equal(sampler(torch.tensor([3, 4])), others)  # type: ignore[arg-type]


def test_a_pfgmpp_teacher_gives_the_scripts_images_for_a_seed() -> None:
    """The golden teacher, its script's latents and Heun's method: by hand and with the sampler."""
    source = str(GOLDEN / "teacher_pfgmpp_ncsnpp.pkl")
    sampler = open_sampler(source, nfe=5, rng="pfgmpp")
    assert (sampler.nfe, sampler.domain.image_shape, sampler.settings["kind"]) == (5, (3, 16, 16), "teacher")
    net, facts = load_network(source)
    wanted = heun(net, pfgmpp_latents([3, 1], (3, 16, 16), 80, facts.dimension()), heun_levels(3))
    torch.testing.assert_close(sampler([3, 1]).double(), wanted, rtol=0, atol=1e-5)
    assert not torch.allclose(open_sampler(source, nfe=5)([3, 1]).double(), wanted, atol=0.1)


def test_a_sid_snapshot_is_a_one_step_generator_without_a_flag() -> None:
    sampler = open_sampler(str(GOLDEN / "network-snapshot-1.200000-000512.pkl"))
    assert (sampler.nfe, sampler.settings["kind"], sampler.settings["sigmas"]) == (1, "generator", [2.5])
    net, _ = load_network(GOLDEN / "network-snapshot-1.200000-000512.pkl")
    z = 2.5 * Streams([5]).normal(sampler.domain.image_shape)
    with torch.no_grad():
        torch.testing.assert_close(sampler([5]), net(z, torch.tensor([2.5])))
    assert open_sampler(str(GOLDEN / "training-state-ipfm-000512.pt"), key="G_ema990", D=64.0).settings["D"] == 64.0


def test_a_training_state_gives_its_levels(recipe_file: Callable[..., Path], cli: Cli, tmp_path: Path) -> None:
    done = cli("--recipe", recipe_file(("duration_kimg = 0.048", "duration_kimg = 0.016")), "--set", "generator.steps=2", "--set", "noise.sigma_init=3")  # fmt: skip
    assert done.returncode == 0, done.stderr
    (run,) = (tmp_path / "runs").iterdir()
    state, snapshot = next(run.glob("training-state-*.pt")), next(run.glob("network-snapshot-1*.pkl"))
    assert open_sampler(str(state)).settings["sigmas"] == open_sampler(str(snapshot)).settings["sigmas"] == [3.0, 1.501]
    torch.testing.assert_close(open_sampler(str(state))(range(3)), open_sampler(str(snapshot))(range(3)))


# ----------------------------------------------------------------------------------------------------- the command


def test_images_are_the_same_in_any_batch_and_number_of_processes(cli: Cli, generator_file: Path, tmp_path: Path) -> None:
    assert cli("generate", "--network", generator_file, "--seeds", "0-10", "--outdir", tmp_path / "a").returncode == 0
    assert cli("generate", "--network", generator_file, "--seeds", "0-10", "--outdir", tmp_path / "b", "--batch", 3).returncode == 0
    done = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m", "registry.cli", "generate",
         "--network", str(generator_file), "--seeds", "0-10", "--outdir", str(tmp_path / "c"), "--batch", "2", "--format", "png",
         "--format", "npz"],
        env=environment(), capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    a, b, c = (pixels(tmp_path / name) for name in "abc")
    assert list(a) == [f"{i:06d}.png" for i in range(11)]
    assert a == b == c
    with np.load(tmp_path / "c" / "samples.npz") as found:
        assert found["arr_0"].shape == (11, 8, 8, 1)
        assert [x.tobytes() for x in found["arr_0"]] == list(a.values())
        assert found["seeds"].tolist() == list(range(11))
    assert not (tmp_path / "c" / ".parts").exists()
    images = open_sampler(str(generator_file))(range(11))
    assert [x.numpy().tobytes() for x in to_uint8(images)] == list(a.values())


def test_existing_images_are_not_made_again(here: Cli, generator_file: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    args = ["generate", "--network", generator_file, "--outdir", out, "--batch", 2]
    assert here(*args, "--seeds", "0-5").returncode == 0
    whole = pixels(out)
    (out / "000003.png").unlink()
    before = {p: p.stat().st_mtime_ns for p in out.glob("*.png")}
    done = here(*args, "--seeds", "0-7")
    assert "5 of 8 images already exist" in done.stdout
    assert {p: p.stat().st_mtime_ns for p in before} == before
    assert {k: v for k, v in pixels(out).items() if k in whole} == whole
    assert len(pixels(out)) == 8


def test_what_is_no_whole_image_is_made_again(here: Cli, generator_file: Path, tmp_path: Path) -> None:
    """As after a power failure, or of another size or kind."""
    out = tmp_path / "out"
    args = ["generate", "--network", generator_file, "--outdir", out, "--seeds", "0-6"]
    assert here(*args).returncode == 0
    whole = pixels(out)
    (out / "000000.png").write_bytes((out / "000000.png").read_bytes()[:-20])
    (out / "000001.png").write_bytes(b"no image")
    (out / "000002.png").write_bytes(b"")
    Image.new("L", (9, 8)).save(out / "000003.png")
    Image.new("L", (8, 8)).save(out / "000004.png", format="JPEG")
    (out / "000005.png").write_bytes((out / "000005.png").read_bytes()[:-1])
    done = here(*args, "--precision", "fp32")  # which it has without being told
    assert "1 of 7 images already exist" in done.stdout, done.stderr
    assert pixels(out) == whole


def test_parts_of_an_interrupted_run_are_used(here: Cli, generator_file: Path, tmp_path: Path) -> None:
    """The work folder as a killed process leaves it: one whole part and damaged ones."""
    out = tmp_path / "out"
    args = ["generate", "--network", generator_file, "--outdir", out, "--format", "npz", "--seeds", "0-4"]
    assert here(*args).returncode == 0
    whole = np.load(out / "samples.npz")["arr_0"]
    (out / ".parts").mkdir()
    kept = out / ".parts" / f"{1:016x}.npz"
    np.savez(kept, seeds=np.array([1, 3]), arr_0=np.stack([whole[1], 255 - whole[3]]), labels=np.array([0, 0]))
    for i, content in enumerate((kept.read_bytes()[:300], b"PK\x03\x04 and no more", b""), 2):  # cut, damaged, empty
        (out / ".parts" / f"{i:016x}.npz").write_bytes(content)
    for name in ("mine.npz", "mine.txt"):
        (out / ".parts" / name).write_text("a user's own")
    done = here(*args)
    assert done.returncode == 0, done.stderr
    assert "2 of 5 images already exist" in done.stdout
    again = np.load(out / "samples.npz")["arr_0"]
    assert np.array_equal(again[[0, 1, 2, 4]], whole[[0, 1, 2, 4]])
    assert np.array_equal(again[3], 255 - whole[3])  # taken from the part, not made again
    assert {path.name for path in (out / ".parts").iterdir()} == {"mine.npz", "mine.txt"}
    assert "5 of 5 images already exist" in here(*args).stdout


def test_a_finished_npz_is_used_by_the_next_call(here: Cli, generator_file: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    args = ["generate", "--network", generator_file, "--outdir", out, "--format", "npz"]
    assert here(*args, "--seeds", "0-4").returncode == 0
    first = dict(np.load(out / "samples.npz"))
    sampler = open_sampler(str(generator_file))
    _, labels = sampler.labelled(range(5))
    assert labels is not None
    assert first["labels"].tolist() == labels.argmax(1).tolist()  # drawn and saved
    assert "5 of 7 images already exist" in here(*args, "--seeds", "0-6", "--format", "grid").stdout
    again = dict(np.load(out / "samples.npz"))
    assert np.array_equal(again["arr_0"][:5], first["arr_0"])
    assert again["labels"].shape == (7,)
    assert "7 of 7 images already exist" in here(*args, "--seeds", "0-6").stdout


@pytest.mark.parametrize("labels", [None, [0, 1, 3, 0], [-1, 0, 0, 0]])
def test_an_npz_with_other_labels_than_the_network_has_is_made_anew(
    labels: list[int] | None, here: Cli, generator_file: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    args = ["generate", "--network", generator_file, "--outdir", out, "--format", "npz"]
    assert here(*args, "--seeds", "0-3").returncode == 0
    first = dict(np.load(out / "samples.npz"))
    other = {name: array for name, array in first.items() if name != "labels"}
    np.savez(out / "samples.npz", **other, **({} if labels is None else {"labels": np.array(labels)}))
    done = here(*args, "--seeds", "0-3")
    assert done.returncode == 0 and "already exist" not in done.stdout
    assert np.load(out / "samples.npz")["labels"].tolist() == first["labels"].tolist()


def test_images_that_vanish_in_the_meantime_are_missed(
    generator_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sampler, out, calls = open_sampler(str(generator_file)), tmp_path / "out", 0
    make = sampler.labelled

    def emptied(*arguments: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == 3:  # those of the first batch are written by now
            (out / "000000.png").unlink()
        return make(*arguments)

    monkeypatch.setattr(sampler, "labelled", emptied)
    with pytest.raises(UserError, match=r"out: images that were written are gone: 1, e\.g\. that of seed 0"):
        generate(sampler, range(8), out, batch=2)


def test_a_seed_that_no_process_made_is_reported(tmp_path: Path) -> None:
    form = Form(np.zeros((0, 8, 8, 1), np.uint8), label_dim=0)
    write_part(tmp_path, [0, 1], np.zeros((2, 8, 8, 1), np.uint8), None)
    with pytest.raises(UserError, match=r"2 images are missing, e\.g\. for seed 2; do all processes see this folder"):
        read_parts(tmp_path, range(4), form)


def test_a_set_that_grows_has_each_image_once(here: Cli, generator_file: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    args = ["generate", "--network", generator_file, "--outdir", out, "--batch", 512]
    assert here(*args, "--seeds", "0-4").returncode == 0
    (out / "000003.png").write_bytes(b"")  # as a power failure leaves it
    assert "4 of 1001 images already exist" in here(*args, "--seeds", "0-1000").stdout
    assert len(pixels(out)) == 1001
    assert here(*args, "--seeds", "0-4").stdout.startswith("5 of 5 images already exist")


def test_classes_grids_and_folders(here: Cli, generator_file: Path, tmp_path: Path) -> None:
    done = here("generate", "--network", generator_file, "--seeds", "0-5", "--class", 2, "--outdir", tmp_path / "two", "--format", "grid", "--format", "npz")  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert np.load(tmp_path / "two" / "samples.npz")["labels"].tolist() == [2] * 6
    assert Image.open(tmp_path / "two" / "grid.png").size[0] >= 400
    sampler = open_sampler(str(generator_file))
    wanted = to_uint8(sampler(range(6), sampler.one_hot(2, 6)))
    assert np.array_equal(np.load(tmp_path / "two" / "samples.npz")["arr_0"][:, None, :, :, 0], wanted.numpy())
    assert here("generate", "--network", generator_file, "--seeds", "0-1000", "--outdir", tmp_path / "many", "--batch", 512).returncode == 0  # fmt: skip
    assert (tmp_path / "many" / "000000" / "000999.png").is_file()
    assert (tmp_path / "many" / "001000" / "001000.png").is_file()


def test_a_shipped_teacher_is_opened_by_its_name(cli: Cli, tmp_path: Path) -> None:
    done = cli(
        "generate", "--network", "digits_dinf", "--nfe", 9, "--seeds", "0-3", "--outdir", tmp_path / "out", "--format", "npz"
    )
    assert done.returncode == 0, done.stderr
    assert "4 images (9 evaluations each)" in done.stdout
    terms = json.loads((tmp_path / "out" / "generate.json").read_text())
    assert (terms["kind"], terms["D"], terms["steps"]) == ("teacher", "inf", 5)


BAD = {
    "other steps": (["--steps", "4"], "was distilled with 2 steps (sigma 2.5, 0.9) and needs that many; for 4, distil again with steps = 4"),
    "other evaluations": (["--nfe", "35"], "was distilled with 2 steps"),
    "another solver": (["--sampler", "heun"], "is a generator; leave this out"),
    "another start": (["--sigma-init", "5"], "starts at 2.5; leave this out"),
    "another D": (["--dim", "64"], "was trained with D = 128; leave this out"),
    "no D": (["--network", str(GOLDEN / "network-snapshot-1.200000-000512.pkl"), "--dim", "0"], "--dim 0: must be a positive number, or inf"),
    "too many": (["--seeds", "0-4000000000"], "more than 10,000,000 images; split them among several folders"),
    "class out of range": (["--class", "3"], "has the classes 0 to 2"),
    "no classes": (["--network", "digits_d128", "--class", "1"], "--class 1: digits_d128 was trained without classes, so none can be given"),
    "a teacher as generator": (["--network", "digits_d128", "--sampler", "generator"], "is a denoiser; leave this out"),
    "even evaluations": (["--network", "digits_d128", "--nfe", "10"], "--nfe 10: n Heun steps take 2n − 1 evaluations"),
    "device": (["--device", "tpu"], "--device tpu: must be auto, cpu, cuda, cuda:N or mps"),
    "seeds": (["--seeds", "a-b"], "--seeds a-b: write numbers and ranges"),
    "no such file": (["--network", "nowhere.pkl"], "nowhere.pkl: no such file"),
    "no network": (["--network", "digits_features"], "is a classifier, expected a denoiser or generator"),
    "outdir": (["--outdir", "/proc/nowhere"], "--outdir /proc/nowhere: cannot be written"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_line_and_leaves_nothing(case: str, here: Cli, generator_file: Path, tmp_path: Path) -> None:
    args, wanted = BAD[case]
    assert wanted in error_line(
        here("generate", "--network", generator_file, "--seeds", "0-3", "--outdir", tmp_path / "out", *args)
    )
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["000002.png", "samples.npz"])
def test_images_of_which_nothing_says_what_made_them_are_not_taken(
    name: str, here: Cli, generator_file: Path, tmp_path: Path
) -> None:
    """Such as those of another project, which are named alike."""
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / name).write_bytes(b"other")
    words = ["generate", "--network", generator_file, "--seeds", "0-3", "--outdir", tmp_path / "out", "--format", "png"]
    line = error_line(here(*words, "--format", "npz"))
    assert f"has {name}, and no generate.json that says what made it; give another folder" in line
    assert [p.name for p in (tmp_path / "out").iterdir()] == [name]


def test_a_folder_of_other_images_is_refused(here: Cli, generator_file: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert here("generate", "--network", generator_file, "--seeds", "0-1", "--outdir", out).returncode == 0
    message = error_line(here("generate", "--network", generator_file, "--seeds", "0-1", "--outdir", out, "--class", "1"))
    assert f"--outdir {out}: has images made with other settings (class: None there, 1 now); give another folder" in message


def test_points_in_the_plane_are_not_written_as_png(here: Cli, tmp_path: Path) -> None:
    from registry.builtin.points import PointDenoiser

    save_network(tmp_path / "points.pt", "generator", PointDenoiser((2, 1, 1), 8, 1), {"D": 128.0, "sigma_init": 2.5})
    args = ["generate", "--network", tmp_path / "points.pt", "--seeds", "0-20", "--outdir", tmp_path / "out"]
    assert "images of shape 2×1×1 cannot be shown as pictures; use npz or grid" in error_line(here(*args))
    assert here(*args, "--format", "npz", "--format", "grid").returncode == 0
    assert np.load(tmp_path / "out" / "samples.npz")["arr_0"].dtype == np.float32
    assert Image.open(tmp_path / "out" / "grid.png").size[0] > 400


def test_two_commands_do_not_gather_in_one_folder(here: Here, generator_file: Path, tmp_path: Path) -> None:
    call = ("generate", "--network", generator_file, "--seeds", "0-3", "--format", "npz", "--outdir", tmp_path / "out")
    (tmp_path / "out" / ".parts").mkdir(parents=True)
    with FileLock(tmp_path / "out" / ".parts" / "lock"):
        assert "another process is making images here" in error_line(here(*call))
    assert here(*call).returncode == 0
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["generate.json", "samples.npz"]


def test_what_a_killed_command_was_writing_is_swept(here: Cli, generator_file: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    args = ["generate", "--network", generator_file, "--seeds", "0-3", "--outdir", out]
    assert here(*args).returncode == 0
    old, new = out / ".000002.png.abcd0123.distill", out / ".000003.png.abcd0124.distill"
    for path in (old, new):
        path.write_bytes(b"half")
    with open(new) as file:  # somebody is writing that one
        fcntl.flock(file, fcntl.LOCK_EX)
        assert here(*args).returncode == 0
    assert not old.exists() and new.exists()


def test_a_folder_in_which_nothing_was_made_is_free_again(here: Cli, generator_file: Path, tmp_path: Path) -> None:
    net = tiny_network(label_dim=3)
    torch.nn.init.constant_(next(net.model.parameters()), 1e30)
    save_network(tmp_path / "sick.pkl", "generator", net, {"D": 128.0, "sigma_init": 2.5})
    words = ["--seeds", "0-3", "--outdir", tmp_path / "out", "--format", "npz", "--format", "png"]
    assert "is not finite" in error_line(here("generate", "--network", tmp_path / "sick.pkl", *words))
    assert here("generate", "--network", generator_file, *words).returncode == 0
