"""The Python API: what scripts and notebooks call."""

from __future__ import annotations

import pydoc
import signal
import subprocess
import sys
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import registry
from registry import Sampler, UserError, distill, load_generator, load_teacher, pretrain
from registry.core.streams import Streams
from registry.files.formats import save_network
from registry.runs.features import train_features
from tests.conftest import ROOT, environment, tiny_network

Write = Callable[..., Path]


@pytest.fixture(scope="module")
def classes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A generator with three classes and two noise levels."""
    path = tmp_path_factory.mktemp("generators") / "three.pkl"
    about = {"D": 128.0, "sigma_init": 3.0, "sigmas": [3.0, 1.0], "label_dim": 3}
    save_network(path, "generator", tiny_network(label_dim=3), about)
    return path


@pytest.fixture(scope="module")
def teacher() -> Sampler:
    return load_teacher("digits_d128", nfe=5)


def test_the_package_shows_what_it_has() -> None:
    assert {"distill", "pretrain", "load_generator", "load_teacher", "Sampler", "Result", "UserError", "__version__"} <= {
        *dir(registry)
    }
    text = pydoc.plain(pydoc.render_doc(registry))
    for name in ("distill(", "load_generator(", "load_teacher(", "pretrain(", "class Sampler", "VERSION"):
        assert name in text, name
    assert registry.__version__ == "0.1.0"


def test_importing_it_does_not_load_torch() -> None:
    code = "import sys, registry; dir(registry), registry.__version__; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], env=environment(), cwd=ROOT, check=False).returncode == 0


def test_what_a_sampler_says_of_itself(classes: Path, teacher: Sampler) -> None:
    generator = load_generator(classes)
    assert (generator.kind, generator.D, generator.image_shape, generator.label_dim) == ("generator", 128.0, (1, 8, 8), 3)
    assert (generator.nfe, generator.sigmas, generator.recipe, str(generator.device)) == (2, (3.0, 1.0), {}, "cpu")
    assert (teacher.kind, teacher.nfe, teacher.steps, len(teacher.sigmas)) == ("teacher", 5, 3, 3)
    assert teacher.sigmas[0] == 80.0
    assert repr(generator).startswith("<generator file ")
    html = generator._repr_html_()
    assert html.count("<img") == 1
    assert "data:image/png;base64," in html
    assert "Linear" not in html
    assert "<img" not in teacher._repr_html_()


def test_samples_are_those_of_the_seeds_however_they_are_asked_for(classes: Path) -> None:
    generator = load_generator(classes)
    whole = generator.sample(5)
    assert (whole.shape, whole.dtype) == ((5, 1, 8, 8), torch.float32)
    for seeds in (range(5), [0, 1, 2, 3, 4], np.arange(5), torch.arange(5)):
        assert torch.equal(generator.sample(seeds=seeds), whole)
    torch.testing.assert_close(generator.sample(seeds=3), whole[3:4], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(generator.sample(5, batch=2), whole, rtol=1e-5, atol=1e-6)
    assert torch.equal(generator.sample(5, nfe=2), whole)
    assert len(generator.sample()) == 16
    pixels = generator.images(5)
    assert (pixels.shape, pixels.dtype) == ((5, 8, 8, 1), np.uint8)
    assert np.array_equal(pixels, (whole * 127.5 + 128).clip(0, 255).to(torch.uint8).permute(0, 2, 3, 1).numpy())
    assert all(np.array_equal(np.asarray(picture), image[..., 0]) for picture, image in zip(generator.pil(5), pixels, strict=True))


def test_labels_in_all_forms(classes: Path) -> None:
    generator = load_generator(classes)
    rows = torch.eye(3)[[2, 0, 2, 1]]
    wanted = generator.sample(4, labels=rows)
    for labels in (
        [2, 0, 2, 1],
        (2, 0, 2, 1),
        np.array([2, 0, 2, 1]),
        torch.tensor([2, 0, 2, 1]),
        rows.numpy(),
        rows.long(),
        rows.tolist(),
    ):
        assert torch.equal(generator.sample(4, labels=labels), wanted)
    alike = generator.sample(4, labels=1)
    assert torch.equal(alike, generator.sample(4, labels=torch.tensor(1)))
    assert torch.equal(alike, generator.sample(4, labels=np.int64(1)))
    assert not torch.equal(alike, wanted)
    rng = Streams([7])
    generator.noise.prior((1, 8, 8), 3.0, rng)
    drawn = rng.one_hot(3)
    assert torch.equal(generator.sample(seeds=[7]), generator.sample(seeds=[7], labels=drawn))


WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "too high": ({"labels": 3}, "labels = 3: .* has the classes 0 to 2"),
    "negative": ({"labels": [0, -1]}, "labels = -1: .* has the classes 0 to 2"),
    "too few": ({"n": 3, "labels": [0, 1]}, "labels: there are 2 for 3 images"),
    "a fraction": ({"labels": 0.5}, "labels = 0.5: classes are whole numbers from 0 to 2"),
    "a truth": ({"labels": True}, "labels = true: classes are whole numbers"),
    "words": ({"labels": ["cat", "dog"]}, "labels = .*must be a class, a list or tensor of classes, or one-hot rows"),
    "not one-hot": ({"labels": [[0.5, 0.5, 0.0]] * 2}, "labels: a one-hot row has a single 1, and 0 elsewhere"),
    "wide": ({"labels": torch.eye(4)[:2]}, r"labels: one-hot rows must have the shape \(2, 3\), not \(2, 4\)"),
    "negative seed": ({"n": None, "seeds": [-1]}, "seeds = -1: must be whole numbers from 0 to"),
    "large seed": ({"n": None, "seeds": [2**64]}, "seeds = 18446744073709551616: must be whole numbers"),
    "too many seeds": ({"n": None, "seeds": range(10**12)}, "seeds: are more than 10,000,000; more are made in parts"),
    "a queue without seeds": ({"n": None, "seeds": deque()}, "seeds: there are none"),
    "half a seed": ({"n": None, "seeds": [0.5]}, "seeds = 0.5: must be whole numbers"),
    "no seeds": ({"n": None, "seeds": []}, "seeds: there are none"),
    "both": ({"seeds": [1]}, "seeds: give n or seeds, not both"),
    "none": ({"n": 0}, "n = 0: must be a whole number from 1 to 10,000,000"),
    "a million million": ({"n": 10**12}, "n = 1000000000000: must be a whole number from 1 to 10,000,000; more are made in parts"),
    "more than C can count": ({"n": 10**20}, "n = .*: must be a whole number from 1 to 10,000,000"),
    "nfe": ({"nfe": 3}, "nfe = 3: .* was distilled with 2 steps"),
    "nfe that is a text": ({"nfe": "2"}, "nfe = .*2.*: must be a whole number, at least 1"),
    "nfe that is no number": ({"nfe": float("nan")}, "nfe = .*: must be a whole number, at least 1"),
    "ragged seeds": ({"n": None, "seeds": [[1], [1, 2]]}, "seeds = .*: must be a whole number, or a list of them"),
    "seeds without values": ({"n": None, "seeds": torch.ones(2, dtype=torch.int64, device="meta")}, "seeds = .*: must be"),
    "batch": ({"batch": 0}, "batch = 0: must be a whole number, at least 1"),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_arguments_are_one_line_and_name_the_argument(case: str, classes: Path) -> None:
    arguments, problem = WRONG[case]
    with pytest.raises(UserError, match=problem) as found:
        load_generator(classes).sample(**({"n": 2} | arguments))
    assert "--" not in str(found.value)
    assert "\n" not in str(found.value)


def test_draws_that_nobody_knows_are_refused(classes: Path) -> None:
    with pytest.raises(UserError, match=r"rng = 'Torch': must be one of distill, torch, pfgmpp \(did you mean 'torch'\?\)"):
        load_generator(classes, rng="Torch")  # type: ignore[arg-type]


def test_a_network_without_classes_takes_no_labels(teacher: Sampler) -> None:
    with pytest.raises(UserError, match="labels = 1: digits_d128 was trained without classes"):
        teacher.sample(2, labels=1)


def test_a_teacher_takes_other_evaluations(teacher: Sampler) -> None:
    assert torch.equal(teacher.sample(2, nfe=7), load_teacher("digits_d128", nfe=7).sample(2))
    with pytest.raises(UserError, match="nfe = 4: n Heun steps take 2n − 1 evaluations, an odd number; give 3 or 5"):
        teacher.sample(2, nfe=4)


def test_the_other_loader_is_named(classes: Path) -> None:
    with pytest.raises(UserError, match=r"digits_d128 is a teacher, not a generator \(in Python: load_teacher\)"):
        load_generator("digits_d128")
    with pytest.raises(UserError, match=r"three\.pkl is a generator, not a teacher \(in Python: load_generator\)"):
        load_teacher(classes)
    with pytest.raises(UserError, match=r"digits_d12: no such file.*did you mean 'digits_d128'"):
        load_teacher("digits_d12")
    with pytest.raises(UserError, match="source = 3: must be the path of a file or a run folder, or a name"):
        load_teacher(3)  # type: ignore[arg-type]


def test_odd_arguments_of_a_loader_are_one_line() -> None:
    class Bytes:
        def __fspath__(self) -> bytes:
            return b"digits_d128"

    with pytest.raises(UserError, match=r"source = .*: must be the path of a file"):
        load_teacher(Bytes())  # type: ignore[arg-type]
    with pytest.raises(UserError, match=r"a…: (File name too long|no such file)"):
        load_teacher("a" * 5000)
    with pytest.raises(UserError, match=r"no such file"):
        load_teacher("~nosuchuser/teacher.pt")
    with pytest.raises(UserError, match=r"D = .*: must be a positive number, or inf"):
        load_teacher("digits_d128", D="x")  # type: ignore[arg-type]
    with pytest.raises(UserError, match=r"nfe = .*: must be a whole number"):
        load_teacher("digits_d128", nfe=[3])  # type: ignore[arg-type]
    with pytest.raises(UserError, match=r"nfe = .*: must be a whole number"):
        load_teacher("digits_d128", nfe=np.timedelta64(3, "s"))  # type: ignore[arg-type]
    with pytest.raises(UserError, match=r"precision = tensor.*: must be a text"):
        load_teacher("digits_d128", precision=torch.ones(2))  # type: ignore[arg-type]
    with pytest.raises(UserError, match=r"sigma_init = tensor.*: must be a positive number"):
        load_generator("digits_d128", sigma_init=torch.ones(2))  # type: ignore[arg-type]
    with pytest.raises(UserError, match=r"source = int without a text: must be the path of a file"):
        load_generator(10**5000)  # type: ignore[arg-type]
    with pytest.raises(UserError, match=r"compile = 'no': must be True or False"):
        load_teacher("digits_d128", compile="no")  # type: ignore[arg-type]
    with pytest.raises(UserError, match=r"device = .*: must be auto, cpu, cuda, cuda:N or mps"):
        load_teacher("digits_d128", device=None)  # type: ignore[arg-type]
    assert load_teacher("digits_d128", device=torch.device("cpu")).device.type == "cpu"


def test_the_default_type_is_the_callers_after_sampling_in_threads(teacher: Sampler) -> None:
    torch.set_default_dtype(torch.float64)
    try:
        with ThreadPoolExecutor(4) as pool:
            images = list(pool.map(lambda _: teacher.sample(1, nfe=3), range(40)))
        assert torch.get_default_dtype() == torch.float64
        assert all(torch.equal(image, images[0]) for image in images)
    finally:
        torch.set_default_dtype(torch.float32)


def test_moving_gives_the_sampler_back(teacher: Sampler) -> None:
    assert teacher.to("cpu") is teacher
    for device in ("nowhere", "cuda:99"):
        with pytest.raises(UserError, match="device = "):
            teacher.to(device)


TABLES: dict[str, Any] = {
    "teacher": {"use": "pfgmpp", "source": "digits_d128"},
    "noise": {"use": "electrostatic"},
    "loss": {"use": "ipfm"},
    "train": {"batch": 8, "duration_kimg": 0.016},
    "log": {"tick_kimg": 0.008, "grid": 2},
    "eval": {"metrics": []},
}


def test_a_recipe_as_tables_a_path_a_name_and_a_run_folder(tmp_path: Path) -> None:
    first = distill(TABLES, sets={"train.lr": 1e-4, "log.outdir": tmp_path / "runs"}, seed=3)
    assert first.folder == tmp_path / "runs" / "00000-recipe"
    assert (first.generator.kind, first.generator.D, first.generator.nfe) == ("generator", 128.0, 1)
    assert first.generator.recipe["train"]["lr"] == 1e-4
    assert first.generator.recipe["train"]["seed"] == 3
    again = distill(first.folder, outdir=tmp_path / "again")  # a Path
    assert again.folder.name == "00000-recipe"
    assert torch.equal(first.generator.sample(4), again.generator.sample(4))
    assert torch.equal(first.generator.sample(4), load_generator(first.folder).sample(4))
    other = distill(
        "quickstart", sets=["warmup.kimg=0", "train.batch=8", "train.duration_kimg=0.008", "eval.metrics=[]"], outdir=tmp_path
    )
    assert other.folder.name == "00000-quickstart"
    swapped = distill(other.folder, loss="sid", outdir=tmp_path)  # the resolved recipe keeps its [swap.sid]
    assert (swapped.folder.name, swapped.generator.D) == ("00001-quickstart", float("inf"))
    assert "<img" in other._repr_html_()


class Silent:
    def __repr__(self) -> str:
        raise RuntimeError


CIRCLE: list[dict[str, Any]] = [{}]
CIRCLE[0]["again"] = CIRCLE
MISTAKES: dict[str, tuple[dict[str, Any], str]] = {
    "setting": ({"sets": {"train.lr": -1}}, r"sets\['train.lr'\] = -1: \[train\] lr = -1: must be greater than 0"),
    "text": ({"sets": ["train.lr=-1"]}, r"sets: train.lr=-1: \[train\] lr = -1: must be greater than 0"),
    "unknown": ({"sets": {"train.speed": 1}}, r"sets\['train.speed'\] = 1: \[train\] speed is unknown"),
    "no table": ({"sets": {"lr": 1}}, "sets = 'lr': write its keys as table.key, such as train.batch"),
    "no value": ({"sets": ["train.lr"]}, "sets: train.lr: write it as table.key=value"),
    "a text": ({"sets": "train.lr=1"}, "sets = 'train.lr=1': must be a dict"),
    "loss": ({"loss": "sdi"}, r"loss = 'sdi': \[loss\] use = 'sdi': no loss is called 'sdi' \(did you mean 'sid'\?\)"),
    "seed": ({"seed": -1}, r"seed = -1: \[train\] seed = -1: must be greater than or equal to 0"),
    "recipe": ({"recipe": 3}, "recipe = 3: must be a path, the name of a shipped recipe, a run folder, or a dict of tables"),
    "values": ({"recipe": {"train": 3}}, "recipe: as a dict, it holds tables"),
    "name": ({"recipe": "quickstrat"}, "quickstrat: no such recipe.*did you mean 'quickstart'"),
    "kind": ({"recipe": "teachers/digits_d128"}, "this recipe is run with: distill pretrain"),
    "no sets": ({"sets": None}, "sets: must be a dict"),
    "a number": ({"sets": 5}, "sets = 5: must be a dict"),
    "bytes": ({"sets": [b"train.lr=1"]}, "sets = b'train.lr=1': write it as table.key=value"),
    "a set": ({"sets": {"train.betas": {0.1, 0.9}}}, "sets = .*: has a set in it, whose entries have no order"),
    "its own part": ({"sets": {"train.betas": CIRCLE}}, "sets = .*: is nested too deeply"),
    "its own table": ({"recipe": {"train": CIRCLE[0]}}, "recipe = .*: is nested too deeply"),
    "a long number": ({"sets": {"train.batch": 10**5000}}, "sets = int without a text: it has a whole number of more than 64 bits"),
    "a long number as a text": (
        {"sets": ["train.batch=" + "9" * 30]},
        "sets: train.batch=9*: it has a whole number of more than 64",
    ),
    "a span of time": ({"sets": {"train.batch": np.timedelta64(3, "s")}}, "batch = .*: must be a valid integer"),
    "a large fraction": ({"sets": {"train.lr": Fraction(10**400, 3)}}, "lr = .*: must be a valid number"),
    "a complex number": ({"sets": {"train.lr": np.complex64(1e-3)}}, "lr = .*: must be a valid number"),
    "without a text": ({"sets": {"train.lr": Silent()}}, "lr = Silent without a text: must be a valid number"),
    "a folder": ({"outdir": 5}, "outdir = 5: must be a path"),
    "a state": ({"resume": 5}, "resume = 5: must be a path"),
    "a word for yes": ({"fresh_teacher": "no"}, "fresh_teacher = 'no': must be True or False"),
    "losses": ({"loss": ["sid"]}, r"loss = \['sid'\]: must be the name of a loss"),
    "a long name": ({"recipe": "y" * 300}, "y*: no such recipe"),
    "a long source": ({"sets": {"teacher.source": "y" * 300}}, "source = '?y*…?.*"),
    "a long reference": ({"sets": {"eval.reference": "y" * 300}}, "reference = .*"),
    "pairs": ({"sets": {"warmup.pairs": 10**18}}, "pairs = 1000000000000000000: must be less than"),
}


@pytest.mark.parametrize("case", MISTAKES)
def test_mistakes_name_the_argument_and_no_flag(case: str, tmp_path: Path) -> None:
    arguments, problem = MISTAKES[case]
    with pytest.raises(UserError, match=problem) as found:
        distill(**({"recipe": "quickstart", "outdir": tmp_path / "runs"} | arguments))
    assert "--" not in str(found.value) or case == "kind"
    assert not (tmp_path / "runs").exists()


def test_nothing_of_the_caller_is_changed(tmp_path: Path) -> None:
    """Random state, default type and device, gradients, threads, and the answers to signals."""

    def state() -> list[Any]:
        return [
            torch.get_rng_state().tolist(), torch.get_default_dtype(), str(torch.get_default_device()), torch.is_grad_enabled(),
            torch.get_num_threads(), [signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP)],
            torch.backends.cudnn.benchmark, torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32,
            np.random.get_state()[1].tolist(),
        ]  # fmt: skip

    torch.manual_seed(17)
    np.random.seed(3)
    torch.set_default_dtype(torch.float64)
    try:
        with torch.device("meta"):
            before = state()
            distill(TABLES, outdir=tmp_path)
            load_generator(tmp_path / "00000-recipe").sample(2)
            assert state() == before
    finally:
        torch.set_default_dtype(torch.float32)


def test_a_teacher_in_python(tmp_path: Path) -> None:
    sets = {"train.batch": 8, "train.duration_kimg": 0.008, "eval.metrics": [], "log.tick_kimg": 0.008}
    file = pretrain("teachers/digits_d128", sets=sets, outdir=tmp_path, save=tmp_path / "mine.pt")
    assert load_teacher(file, nfe=3).sample(2).shape == (2, 1, 8, 8)


@pytest.mark.parametrize("save", [3, b"a.pt", "", "."])
def test_a_teacher_is_saved_where_a_path_says(save: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=r"^save = "):
        pretrain("teachers/digits_d128", sets={"train.duration_kimg": 0.008}, save=save)
    with pytest.raises(UserError, match=r"^save = "):
        train_features("features/digits_features", save=save)
    assert not list(tmp_path.iterdir())
