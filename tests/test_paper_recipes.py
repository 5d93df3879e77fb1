"""The papers' recipes: their settings, and three iterations of each with a narrow teacher of the real architecture."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch

from registry.core.contracts import Teacher
from registry.core.errors import UserError
from registry.edm.architectures import ARCHITECTURES
from registry.edm.networks import EDMPrecond, UNetBlock
from registry.files.formats import load_network, save_network
from registry.files.locate import locate, open_path, published
from registry.plugins.component import Published
from registry.plugins.loading import Plugins, load_plugins
from registry.recipe.reading import expect, resolve
from registry.recipe.resolved import Recipe
from registry.runs.distill import distill
from tests.conftest import HERE, ROOT, environment


class Paper(NamedTuple):
    """One run from the papers. recipes/README.md lists what the IPFM paper leaves open."""

    teacher: str
    D: float
    batch: int
    lr: float
    alpha: float
    fp16: bool
    dropout: float
    ema_kimg: float
    duration_kimg: float
    augment: float
    beta1: float = 0.0


# fmt: off
PAPERS = {
    "sid_cifar10_uncond": Paper("edm:cifar10-uncond", math.inf, 256, 1e-5, 1.2, False, 0.13, 500, 500_000, 0.12),
    "sid_cifar10_cond": Paper("edm:cifar10-cond", math.inf, 256, 1e-5, 1.2, False, 0.13, 500, 800_000, 0.12),
    "sid_imagenet64": Paper("edm:imagenet64-cond", math.inf, 8192, 4e-6, 1.2, True, 0.1, 2000, 1_000_000, 0.0),
    "sid_ffhq64": Paper("edm:ffhq", math.inf, 512, 1e-5, 1.2, True, 0.05, 500, 500_000, 0.15, beta1=0.9),
    "sid_afhqv2": Paper("edm:afhqv2", math.inf, 512, 5e-6, 1.0, True, 0.05, 500, 500_000, 0.15),
    "ipfm_cifar10_d128": Paper("pfgmpp:cifar10_ncsnpp_D_128", 128, 256, 1e-5, 1.0, False, 0.0, 500, 30 * 256, 0.12),
    "ipfm_cifar10_d2048": Paper("pfgmpp:cifar10_ncsnpp_D_2048", 2048, 256, 1e-5, 1.0, False, 0.0, 500, 30 * 256, 0.12),
    "ipfm_cifar10_dinf": Paper("pfgmpp:cifar10_ncsnpp_D_inf", math.inf, 256, 1e-5, 1.0, False, 0.0, 500, 30 * 256, 0.12),
    "ipfm_ffhq_d128": Paper("pfgmpp:ffhq_ddpm_D_128", 128, 512, 1e-5, 1.0, True, 0.05, 500, 30 * 512, 0.15),
    "ipfm_ffhq_dinf": Paper("pfgmpp:ffhq_ddpm_D_inf", math.inf, 512, 1e-5, 1.0, True, 0.05, 500, 30 * 512, 0.15),
}
SWAPPED = {  # the teacher under the other paper's loss
    "sid_cifar10_uncond": "pfgmpp:cifar10_ncsnpp_D_128", "sid_cifar10_cond": "pfgmpp:cifar10_ncsnpp_D_2048_conditional",
    "sid_imagenet64": "edm:imagenet64-cond", "sid_ffhq64": "pfgmpp:ffhq_ddpm_D_128", "sid_afhqv2": "edm:afhqv2",
    "ipfm_cifar10_d128": "pfgmpp:cifar10_ncsnpp_D_inf", "ipfm_cifar10_d2048": "pfgmpp:cifar10_ncsnpp_D_inf",
    "ipfm_cifar10_dinf": "pfgmpp:cifar10_ncsnpp_D_inf", "ipfm_ffhq_d128": "pfgmpp:ffhq_ddpm_D_inf", "ipfm_ffhq_dinf": "pfgmpp:ffhq_ddpm_D_inf",
}
PUBLISHED = {r.component.name: r.component for r in load_plugins(()).registered if isinstance(r.component, Published)}
PFGMPP = {name: teacher.D for name, teacher in PUBLISHED.items() if name.startswith("pfgmpp:")}
URLS = {name: teacher.url for name, teacher in PUBLISHED.items() if teacher.url}


def D_of(source: str) -> float:
    """The dimension of a published teacher."""
    found = published(source)
    assert found
    return found.D


CIFAR = dict(img_resolution=32, channel_mult=[2, 2, 2], attn_resolutions=[16], augment_dim=9, model_channels=4)
FACES = dict(img_resolution=64, channel_mult=[1, 2, 2, 2], attn_resolutions=[16], augment_dim=9, model_channels=4)
NETWORKS: dict[str, dict[str, Any]] = {  # real except for model_channels and num_blocks, which are small; adm has attention from 64 channels up
    "edm:cifar10-uncond": ARCHITECTURES["ddpmpp"] | CIFAR,
    "edm:cifar10-cond": ARCHITECTURES["ddpmpp"] | CIFAR | dict(label_dim=10),
    "edm:ffhq": ARCHITECTURES["ddpmpp"] | FACES,
    "edm:afhqv2": ARCHITECTURES["ddpmpp"] | FACES,
    "edm:imagenet64-cond": ARCHITECTURES["adm"] | dict(
        img_resolution=64, channel_mult=[1, 2, 3, 4], attn_resolutions=[32, 16, 8], label_dim=1000, model_channels=16,
    ),
    **{name: ARCHITECTURES["ncsnpp"] | CIFAR | dict(label_dim=10 * name.endswith("_conditional")) for name in PFGMPP if "cifar10" in name},
    **{name: ARCHITECTURES["ddpmpp"] | FACES for name in PFGMPP if "ffhq" in name},
}
# fmt: on


def other(name: str) -> str:
    """The loss of the other paper."""
    return "ipfm" if name.startswith("sid") else "sid"


def resolved(name: str, plugins: Plugins, *sets: str, loss: str | None = None) -> Recipe:
    return expect(resolve(name, plugins, sets, loss), Recipe)


@pytest.fixture
def nothing_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder for teachers."""
    folder = tmp_path / "no teachers"
    folder.mkdir()
    monkeypatch.setenv("DISTILL_TEACHERS", str(folder))
    return folder


@pytest.fixture
def build(plugins: Plugins) -> Callable[..., Teacher]:
    def make(use: str, **settings: Any) -> Teacher:
        component = plugins.find("teacher", use).component
        teacher: Teacher = component.make(component.config.model_validate(settings))
        return teacher

    return make


# ------------------------------------------------------------------------------------------------------- settings


def test_all_pass_the_check_without_files_and_without_torch(nothing_there: Path) -> None:
    code = f"""
import sys
from registry.cli import main
for swap in [], ["--loss", "sid"], ["--loss", "ipfm"]:
    sys.argv = ["distill", "check", *{list(PAPERS)!r}, *swap]
    try: main()
    except SystemExit as end: assert not end.code
assert "torch" not in sys.modules
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment(), check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count(": ok") == 30
    assert not list(nothing_there.iterdir())


@pytest.mark.parametrize("name", PAPERS)
def test_settings_are_those_of_the_papers(name: str, plugins: Plugins) -> None:
    paper, recipe = PAPERS[name], resolved(name, plugins)
    teacher, noise, loss, train = recipe.teacher.table(), recipe.noise.table(), recipe.loss.table(), recipe.train
    assert (teacher["source"], teacher["dropout"], teacher["fp16"]) == (paper.teacher, paper.dropout, paper.fp16)
    assert teacher.get("D", math.inf) == D_of(paper.teacher) == paper.D
    assert (noise["use"], loss["use"]) == (("gaussian", "sid") if name.startswith("sid") else ("electrostatic", "ipfm"))
    assert (noise["sigma_init"], noise["t_max"], noise["sigma_min"], noise["sigma_max"], noise["rho"]) == (2.5, 800, 0.002, 80, 7)
    assert (noise["P_mean"], noise["P_std"], loss["alpha"], recipe.generator.steps) == (-1.2, 1.2, paper.alpha, 1)
    assert (train.batch, train.lr, train.glr, train.duration_kimg) == (paper.batch, paper.lr, paper.lr, paper.duration_kimg)
    assert (train.betas, train.gbetas, train.eps) == ((0, 0.999), (paper.beta1, 0.999), 1e-6 if paper.fp16 else 1e-8)
    assert (train.ema_halflife_kimg, train.ema_rampup_ratio, train.lr_decay) == (paper.ema_kimg, 0.05, 0)
    assert (train.augment, train.clip, train.gclip, recipe.warmup.kimg) == (paper.augment, None, None, 0)
    assert (train.loss_scaling, train.generator_loss_scaling, train.student_steps) == (1, 100, 1)
    data = next(d for d in ("cifar10-32x32", "imagenet-64x64", "ffhq-64x64", "afhqv2-64x64") if d[:4] in name)
    assert (recipe.eval.metrics, recipe.eval.samples, recipe.eval.repeats) == (("fid",), 50_000, 3)
    assert recipe.eval.reference == f"https://nvlabs-fi-cdn.nvidia.com/edm/fid-refs/{data}.npz"
    assert recipe.eval.teacher_steps == ((18,) if "cifar10" in name else (40,))
    assert train.batch_gpu and train.batch // 8 % train.batch_gpu == 0  # eight GPUs share it evenly


@pytest.mark.parametrize("name", [n for n in PAPERS if n.startswith("ipfm")])
def test_steps_and_regularisation_of_ipfm_are_set_on_the_command_line(name: str, plugins: Plugins) -> None:
    recipe = resolved(name, plugins, "generator.steps=4", "loss.alpha=0.5")
    assert (recipe.generator.steps, recipe.generator.schedule, recipe.loss.table()["alpha"]) == (4, "uniform", 0.5)


def test_the_recipe_whose_command_differs_from_the_papers_text_says_which_it_follows(plugins: Plugins) -> None:
    name = "ipfm_cifar10_d2048"
    assert resolved(name, plugins).train.student_steps == 1
    comment, setting = (ROOT / "recipes" / f"{name}.toml").read_text().partition("\n[")[0], "train.student_steps=2"
    assert "two student steps per generator step" in comment
    assert f"for two: --set {setting}" in comment
    assert resolved(name, plugins, setting).train.student_steps == 2


@pytest.mark.parametrize("name", PAPERS)
def test_a_swap_changes_teacher_noise_and_loss_only(name: str, plugins: Plugins) -> None:
    plain, swapped = (resolved(name, plugins, loss=loss).tables() for loss in (None, other(name)))
    changed = {table for table in plain if plain[table] != swapped[table]}
    assert {"noise", "loss"} <= changed <= {"teacher", "noise", "loss"}
    assert swapped["noise"] | {"use": 0} == plain["noise"] | {"use": 0}  # the levels do not change
    assert swapped["teacher"]["source"] == SWAPPED[name]
    assert {k: swapped["teacher"][k] for k in ("dropout", "fp16")} == {k: plain["teacher"][k] for k in ("dropout", "fp16")}
    assert swapped["loss"]["use"] == other(name)
    assert swapped["loss"]["alpha"] == (1.0 if math.isfinite(D_of(SWAPPED[name]) or 0) else plain["loss"]["alpha"])
    assert resolved(name, plugins, loss=plain["loss"]["use"]).tables() == plain


def test_the_table_of_recipes_names_all_of_them() -> None:
    text = (ROOT / "recipes" / "README.md").read_text()
    assert all(f"`{name}`" in text for name in PAPERS)
    assert {p.stem for p in (ROOT / "recipes").glob("*_*.toml")} == {*PAPERS, "digits_d128", "toy_2d"}


# ----------------------------------------------------------------------------------------------------- smoke runs


def narrow_teacher(source: str) -> EDMPrecond:
    """A random network like the published one with this name, but narrow and shallow."""
    D = D_of(source) or 0
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = EDMPrecond(img_channels=3, pfgmpp=math.isfinite(D), D=D, **(dict(num_blocks=1, dropout=0.2) | NETWORKS[source]))
        for p in net.parameters():  # with their initial values, most layers output zeros
            p.data.add_(0.05 * torch.randn_like(p))
    return net.eval()


@pytest.fixture(scope="module")
def shelf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A teacher for each published name: EDM's under their file names, PFGM++'s where the short names look for them."""
    folder = tmp_path_factory.mktemp("teachers")
    for source in NETWORKS:
        name = URLS[source].rpartition("/")[2] if source in URLS else f"{source.removeprefix('pfgmpp:')}.pkl"
        if source == "pfgmpp:ffhq_ddpm_D_128":
            name = "ffhq_ddpm_D_128/network-snapshot-200000.pkl"
        save_network(folder / name, "denoiser", narrow_teacher(source), {})
    return folder


SHORT = ("train.batch=2", "train.batch_gpu=2", "train.duration_kimg=0.006", "train.device=cpu", "log.tick_kimg=0.002", "log.grid=2",
         "log.snapshot_ticks=10", "eval.metrics=[]")  # fmt: skip


@pytest.mark.parametrize("swap", [False, True], ids=["own", "swapped"])
@pytest.mark.parametrize("name", PAPERS)
def test_three_iterations(
    name: str, swap: bool, shelf: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("DISTILL_TEACHERS", str(shelf))
    monkeypatch.setattr("registry.runs.outputs.save_curves", lambda *_: None)  # takes longer than the run
    monkeypatch.setattr("registry.runs.outputs.MOST_OF_TEACHER", 1)
    source = SWAPPED[name] if swap else PAPERS[name].teacher
    file = [f"teacher.source={shelf / URLS[source].rpartition('/')[2]}"] if source in URLS else []
    few = ["generator.steps=2", "loss.alpha=0.5"] if name == "ipfm_cifar10_d2048" else []
    result = distill(name, sets=[*SHORT, *file, *few], loss=other(name) if swap else None, outdir=str(tmp_path))
    entries = [json.loads(line) for line in (result.folder / "stats.jsonl").read_text().splitlines()]
    assert len(entries) == 3
    assert all(math.isfinite(entry[f"Loss/{who}"]["mean"]) for entry in entries for who in ("student", "generator"))
    assert entries[-1]["Loss/generator"]["mean"] != 0  # the student differs from the teacher
    assert not any(entry[f"Guard/{who}_dropped"]["mean"] for entry in entries for who in ("student", "generator"))

    (snapshot,) = result.folder.glob("network-snapshot-*.pkl")
    net, facts = load_network(snapshot, "generator")
    assert isinstance(net, EDMPrecond)
    assert (facts.D, facts.sigma_init, facts.others["steps"]) == (D_of(source), 2.5, 1 + len(few[:1]))
    assert (net.use_fp16, net.init_kwargs["dropout"]) == (PAPERS[name].fp16, PAPERS[name].dropout)
    assert {k: net.init_kwargs.get(k, 0) for k in NETWORKS[source]} == NETWORKS[source]
    images = result.generator.sample(seeds=[7])
    assert images.shape == (1, 3, net.img_resolution, net.img_resolution)
    assert images.isfinite().all()
    assert all(torch.equal(a, b) for a, b in zip(net.parameters(), result.generator.net.parameters(), strict=True))
    assert f"D = {D_of(source):g}" in capsys.readouterr().out


# ----------------------------------------------------------------------------------------- teachers that are fetched by hand


def test_a_teacher_is_found_as_a_file_or_as_the_newest_file_of_a_folder(nothing_there: Path) -> None:
    name, stem = "pfgmpp:ffhq_ddpm_D_128", "ffhq_ddpm_D_128"
    (nothing_there / stem).mkdir()
    for file in (
        f"{stem}/training-state-009000.pt", f"{stem}/training-state-100000.pt", f"{stem}/network-snapshot-100000.pkl", f"{stem}.pt", f"{stem}.pkl",
    ):  # fmt: skip
        (nothing_there / file).write_bytes(b"")
        assert open_path(name) == nothing_there / file  # each takes precedence over the ones before it


def test_without_a_teachers_folder_the_cache_is_searched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DISTILL_TEACHERS", raising=False)
    monkeypatch.setenv("DISTILL_CACHE_DIR", str(tmp_path))
    (tmp_path / "cifar10_ncsnpp_D_inf.pt").write_bytes(b"")
    assert open_path("pfgmpp:cifar10_ncsnpp_D_inf") == tmp_path / "cifar10_ncsnpp_D_inf.pt"


def test_a_file_written_by_pfgmpp_is_opened_by_its_short_name(build: Callable[..., Teacher], nothing_there: Path) -> None:
    golden = HERE / "golden" / "teacher_pfgmpp_converted.pkl"  # a training state, pickled again
    (nothing_there / "ffhq_ddpm_D_128.pkl").write_bytes(golden.read_bytes())
    teacher = build("pfgmpp", source="pfgmpp:ffhq_ddpm_D_128")
    assert (teacher.D, teacher.path, teacher.provenance["key"]) == (128, nothing_there / "ffhq_ddpm_D_128.pkl", "ema")


@pytest.mark.parametrize("name", PFGMPP)
def test_a_teacher_that_is_not_downloaded_yet(name: str, nothing_there: Path, tmp_path: Path) -> None:
    assert locate(name) == name
    with pytest.raises(UserError) as caught:
        open_path(name)
    assert str(caught.value).startswith(
        f"{name}: not downloaded yet, and it must be downloaded by hand: take {name[7:]} from the Google Drive"
    )
    assert f"and put it at {nothing_there / name[7:]}.pkl (or .pt, or a folder" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_run_without_its_teacher_leaves_nothing(nothing_there: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"github\.com/Newbeeer/pfgmpp"):
        distill("ipfm_ffhq_d128", sets=["train.device=cpu"], outdir=str(tmp_path / "runs"))
    assert not (tmp_path / "runs").exists()


# fmt: off
WRONG = {
    "near name": (["teacher.source=pfgmpp:ffhq_D_128"], "[teacher] source = 'pfgmpp:ffhq_D_128': no such file (did you mean 'pfgmpp:ffhq_ddpm_D_128'?)"),
    "no prefix": (["teacher.source=cifar10_ncsnpp_D_128"], "(did you mean 'pfgmpp:cifar10_ncsnpp_D_128'?)"),
    "no name": (["teacher.source=pfgmpp:lsun"], "published: edm:afhqv2, edm:cifar10-cond, edm:cifar10-uncond, edm:ffhq, edm:imagenet64-cond, pfgmpp:"),
    "other D": (["teacher.source=pfgmpp:ffhq_ddpm_D_inf"], "[teacher] D = 128: pfgmpp:ffhq_ddpm_D_inf has D = inf"),
    "EDM's": (["teacher.source=edm:ffhq"], "[teacher] D = 128: edm:ffhq has D = inf"),
    "dropout": (["teacher.dropout=1"], "[teacher] dropout = 1: must be less than 1"),
    "fp16": (["teacher.fp16=1"], "[teacher] fp16 = 1: must be true or false"),
}
# fmt: on


@pytest.mark.parametrize("case", WRONG)
def test_a_wrong_teacher_is_reported_before_anything_is_opened(case: str, plugins: Plugins, nothing_there: Path) -> None:
    sets, wanted = WRONG[case]
    with pytest.raises(UserError) as caught:
        resolve("ipfm_ffhq_d128", plugins, sets)
    assert wanted in str(caught.value)
    assert "\n" not in str(caught.value)


def test_edms_plugin_refuses_a_name_of_finite_dimension(plugins: Plugins) -> None:
    with pytest.raises(
        UserError, match=r"'edm': is for diffusion teachers \(D = inf\), but its source has D = 128; use analytic or pfgmpp"
    ):
        resolve("sid_ffhq64", plugins, ["teacher.source=pfgmpp:ffhq_ddpm_D_128"])
    assert resolve("sid_ffhq64", plugins, ["teacher.source=pfgmpp:ffhq_ddpm_D_inf"])


def test_a_published_name_determines_D(plugins: Plugins) -> None:
    config = plugins.find("teacher", "pfgmpp").component.config
    assert [config.model_validate({"source": name}).D for name in PFGMPP] == list(PFGMPP.values())  # type: ignore[attr-defined]
    assert config.model_validate({"source": "digits_d128"}).D is None  # type: ignore[attr-defined]


# -------------------------------------------------------------------------------- settings that override the file


def dropouts(net: torch.nn.Module) -> set[float]:
    return {float(m.dropout) for m in net.modules() if isinstance(m, UNetBlock)}


def outputs(net: torch.nn.Module) -> torch.Tensor:
    x = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        return net(x, torch.tensor([0.5, 2.0]))


@pytest.mark.parametrize("suffix", [".pkl", ".pt", ".safetensors"])
def test_dropout_applies_only_to_student_and_generator(suffix: str, build: Callable[..., Teacher], tmp_path: Path) -> None:
    source = str(HERE / "golden" / "teacher_edm_ddpmpp.pkl")
    plain, teacher = build("edm", source=source), build("edm", source=source, dropout=0.4)
    assert dropouts(plain.denoiser) == dropouts(plain.copy()) == dropouts(teacher.denoiser) == {0.13}
    assert teacher.provenance == plain.provenance
    before = torch.get_rng_state()
    student = teacher.copy()
    assert torch.equal(torch.get_rng_state(), before)  # no random numbers were drawn for weights that are then replaced
    assert dropouts(student) == {0.4}
    assert torch.equal(outputs(student), outputs(teacher.denoiser))
    assert torch.equal(outputs(teacher.denoiser), outputs(plain.denoiser))
    assert not torch.equal(outputs(student.train()), outputs(student))
    assert all(p.requires_grad for p in student.parameters()) and not any(p.requires_grad for p in teacher.denoiser.parameters())
    assert {p.data_ptr() for p in student.parameters()}.isdisjoint(p.data_ptr() for p in teacher.denoiser.parameters())

    save_network(tmp_path / f"student{suffix}", "generator", student, {"D": math.inf})
    again, _ = load_network(tmp_path / f"student{suffix}", "generator")
    assert isinstance(again, EDMPrecond)
    assert (dropouts(again), again.init_kwargs["dropout"]) == ({0.4}, 0.4)
    assert torch.equal(outputs(again), outputs(student.eval()))


@pytest.mark.parametrize("fp16", [True, False])
def test_fp16_applies_to_all_three_networks(fp16: bool, build: Callable[..., Teacher], tmp_path: Path) -> None:
    source = str(HERE / "golden" / "teacher_edm_adm.pkl")  # a file that says float16
    teacher = build("edm", source=source, fp16=fp16, dropout=0.0)
    assert build("edm", source=source).denoiser.use_fp16 is True
    assert teacher.denoiser.use_fp16 is teacher.copy().use_fp16 is fp16
    assert teacher.weights == build("edm", source=source).weights
    save_network(tmp_path / "net.pkl", "generator", teacher.copy(), {})
    again, _ = load_network(tmp_path / "net.pkl", "generator")
    assert isinstance(again, EDMPrecond)
    assert again.use_fp16 is again.init_kwargs["use_fp16"] is fp16


@pytest.mark.skipif(not torch.cuda.is_available(), reason="float16 is used on CUDA only")
def test_fp16_runs_in_float16(build: Callable[..., Teacher]) -> None:
    source = str(HERE / "golden" / "teacher_edm_ddpmpp.pkl")
    nets = [build("edm", source=source, fp16=fp16).denoiser.cuda() for fp16 in (False, True)]
    x, sigma = torch.randn(2, 3, 16, 16, device="cuda"), torch.tensor([0.5, 2.0], device="cuda")
    full, half = (net(x, sigma) for net in nets)
    assert 0 < (full - half).abs().max() < 0.01


def test_a_file_of_another_D_is_refused(build: Callable[..., Teacher]) -> None:
    """This includes EDM's files, which do not state D: using one as a PFGM++ teacher would be a silent mistake."""
    for source, D in (
        ("digits_dinf", 128.0),
        ("digits_d128", math.inf),
        (str(HERE / "golden" / "teacher_pfgmpp_ncsnpp.pkl"), 64.0),
        (str(HERE / "golden" / "teacher_edm_ddpmpp.pkl"), 128.0),
    ):
        with pytest.raises(UserError, match=r"D = .*: .* was trained with D = "):
            build("pfgmpp", source=source, D=D)


def test_a_dry_run_says_where_the_teacher_comes_from(
    here: Callable[..., subprocess.CompletedProcess[str]], nothing_there: Path
) -> None:
    by_hand = here("--recipe", "ipfm_ffhq_d128", "--dry-run").stdout
    assert (
        "# the teacher: pfgmpp:ffhq_ddpm_D_128: not downloaded yet, and it must be downloaded by hand: take ffhq_ddpm_D_128 from"
        in by_hand
    )
    assert f"put it at {nothing_there / 'ffhq_ddpm_D_128'}.pkl" in by_hand
    assert (
        f"# the teacher: downloaded from {URLS['edm:ffhq']} when the run starts"
        in here("--recipe", "sid_ffhq64", "--dry-run").stdout
    )
    assert "digits_d128.pt" in here("--recipe", "quickstart", "--dry-run").stdout
