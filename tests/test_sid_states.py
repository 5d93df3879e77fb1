"""SiD's training states: we go on from them, begin from their generators, and write states with which SiD's loop goes on."""

from __future__ import annotations

import copy
import math
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from registry.builtin.loss import SiDLoss
from registry.builtin.noise import GaussianNoise
from registry.core.contracts import Teacher
from registry.core.errors import UserError
from registry.core.streams import Streams
from registry.edm.pickles import read_pickle
from registry.edm.sid_states import read_sid_state
from registry.files.formats import load_network, save_network
from registry.files.handover import hand_over
from registry.plugins.loading import Plugins
from registry.recipe.reading import expect, resolve
from registry.recipe.resolved import Recipe
from registry.recipe.tables import TrainConfig
from registry.runs.building import build, build_generator
from registry.runs.checkpoints import load, restore_state
from registry.runs.distill import distill
from registry.runs.foreign import adopt
from registry.train import loop
from registry.train.generator import Generator
from tests.conftest import HERE, environment, error_line, golden, tiny_network
from tests.pickle_writer import persistent, write
from tests.test_files import write_stand_ins

Here = Callable[..., subprocess.CompletedProcess[str]]
GOLDEN = HERE / "golden"
STATES = {"sid": GOLDEN / "training-state-sid-000512.pt", "ipfm": GOLDEN / "training-state-ipfm-000512.pt"}
SHORT = ("train.batch=8", "log.grid=1", "eval.snapshot_samples=0", "log.tick_kimg=0.008", "log.snapshot_ticks=1000")


def players(teacher: Teacher, **settings: Any) -> loop.Distillation:
    """A distillation that has not begun."""
    config = TrainConfig(**({"batch": 8, "duration_kimg": 1.0, "device": "cpu"} | settings))
    noise = GaussianNoise()
    generator = Generator(teacher.copy(), noise, teacher.image_shape)
    return loop.Distillation(teacher, noise, SiDLoss(1.2), config, torch.device("cpu"), generator)


def teacher_of(source: Path, key: str | None = None) -> Teacher:
    net, _ = load_network(source, key=key)
    return Teacher(net, D=math.inf, image_shape=(1, 8, 8))


def parts_of(run: loop.Distillation) -> dict[str, Any]:
    return {"student": run.student, "generator": run.generator, "ema": run.average}


# ------------------------------------------------------------------------------------------------------ going on


@pytest.mark.parametrize("name", STATES)
def test_everything_that_training_changes_is_taken_bit_for_bit(name: str) -> None:
    g, run = golden(STATES[name].stem), players(teacher_of(STATES[name], "G_ema"))
    nimg, lines = adopt(STATES[name], parts_of(run), math.inf)
    assert nimg == 512_000
    for learner, key, adam in (
        (run.student, "fake_score", "fake_score_optimizer_state"), (run.generator, "G", "g_optimizer_state"),
    ):  # fmt: skip
        wanted = g.state(f"{key}/")
        assert learner.net.state_dict().keys() == wanted.keys()
        assert all(torch.equal(tensor, wanted[n]) for n, tensor in learner.net.state_dict().items())
        state = learner.optimiser.state_dict()["state"]
        for i, (n, _) in enumerate(learner.net.named_parameters()):
            for moment in ("step", "exp_avg", "exp_avg_sq"):
                assert torch.equal(state[i][moment], g.at(f"{adam}/{moment}/{n}").float()), (n, moment)
        assert learner.optimiser.param_groups[0]["fused"] is True  # the settings are ours, and so are rate and betas
    assert all(torch.equal(tensor, g.at(f"G_ema/{n}")) for n, tensor in run.average.state_dict().items())
    left = "; left out: G_ema990, G_ema995, G_ema999" if name == "ipfm" else ""
    assert lines[0].endswith(
        "student (fake_score), generator (G), average (G_ema), and both Adams (fake_score_optimizer_state, g_optimizer_state)"
        + left
    )
    assert lines[1:] == ["changed since that state was written: the generator's lr: 2e-05 -> 1e-05"]


def test_a_run_goes_on_in_a_folder_of_its_own(recipe_file: Callable[..., Path], here: Here, tmp_path: Path) -> None:
    theirs = tmp_path / "theirs"
    theirs.mkdir()
    state = shutil.copy(STATES["sid"], theirs / "training-state-000512.pt")
    (theirs / "training-state-000011.pt").write_bytes(b"older")
    sets = [*SHORT, "teacher.use=edm", f"teacher.source={state}", "teacher.key=fake_score", "noise.use=gaussian", "loss.use=sid"]
    words = [w for s in sets for w in ("--set", s)]
    done = here("--recipe", recipe_file(), *words, "--resume", theirs, "--set", "train.duration_kimg=512.016")
    assert done.returncode == 0, done.stderr
    assert f"going on at 512 kimg from {state}: student (fake_score), generator (G)" in done.stdout
    assert sorted(p.name for p in theirs.iterdir()) == ["training-state-000011.pt", "training-state-000512.pt"]
    (run,) = (tmp_path / "runs").iterdir()
    ours = load(run / "training-state-000512.pt", "training state")
    assert ours["nimg"] == 512_016
    before, after = read_sid_state(Path(state)).adams["student"]["state"], ours["parts"]["student"]["optimiser"]["state"]
    assert (after[0]["step"], after[9]["step"]) == (before[0]["step"], before[9]["step"] + 2)  # 0 is for augmentation labels
    again = here("--recipe", recipe_file(), *words, "--resume", "auto", "--set", "train.duration_kimg=512.024")
    assert f"resuming at 512.016 kimg from {Path('runs') / run.name}".replace("runs", str(tmp_path / "runs")) in again.stdout
    assert [p.name for p in (tmp_path / "runs").iterdir()] == [run.name]


@pytest.fixture
def changed(tmp_path: Path) -> Callable[..., Path]:
    """Writes a state in SiD's layout of small networks, changed by a function, and gives its path."""

    def make(change: Callable[[dict[str, Any]], Any] | None = None, name: str = "training-state-000002.pt", **kwargs: Any) -> Path:
        net = tiny_network(**{"D": math.inf, **kwargs})
        adam = torch.optim.Adam(net.parameters(), lr=1e-5, betas=(0.0, 0.999))
        net(torch.ones(1, 1, 8, 8), torch.ones(1)).square().sum().backward()
        adam.step()
        content = {key: persistent(net) for key in ("fake_score", "G", "G_ema")}
        content |= {key: copy.deepcopy(adam.state_dict()) for key in ("fake_score_optimizer_state", "g_optimizer_state")}
        if change:
            change(content)
        (tmp_path / "foreign").mkdir(exist_ok=True)
        return write(tmp_path / "foreign" / name, content, "zip")

    return make


def spoil(what: str, value: Any) -> Callable[[dict[str, Any]], None]:
    return lambda content: content["g_optimizer_state"]["state"][1].update({what: value})


REFUSED: dict[str, tuple[dict[str, Any], list[str], str]] = {
    "no generator": ({"change": lambda c: c.pop("G")}, [], "has no G, so it is no training state of SiD or its IPFM fork; it has fake_score, G_ema"),
    "no Adam": ({"change": lambda c: c.pop("g_optimizer_state")}, [], "has no g_optimizer_state"),
    "EDM's": ({"change": lambda c: [c.pop(k) for k in list(c) if k != "G"]}, [], "has no fake_score, G_ema, fake_score_optimizer_state"),
    "another Adam": ({"change": lambda c: c.update(g_optimizer_state={"state": {}})}, [], "[g_optimizer_state]: is no state of an Adam"),
    "fewer parameters": ({"change": lambda c: c["g_optimizer_state"]["param_groups"][0]["params"].pop()}, [], "parameters, but its network has"),
    "no moment": ({"change": spoil("exp_avg", None)}, [], "[g_optimizer_state]: lacks step, exp_avg, exp_avg_sq of parameter 1"),
    "other shape": ({"change": spoil("exp_avg", torch.zeros(3))}, [], "unlike the parameter"),
    "other channels": ({"model_channels": 12}, [], "its fake_score does not fit the teacher: model."),
    "other labels": ({"label_dim": 3}, [], "its fake_score does not fit the teacher: unknown model.map_label.weight"),
    "other sigma_data": ({"sigma_data": 0.25}, [], "its fake_score does not fit the teacher: its sigma_data is 0.25, not 0.5"),
    "other D": ({"D": 128.0}, [], "its networks have D = 128, the teacher has D = inf"),
    "no number": ({"name": "latest.pt"}, [], "the number of images is only in the name of such a file; call it training-state-KIMG.pt"),
    "over": ({}, ["train.duration_kimg=2"], "[train] duration_kimg = 2: "),
    "a warm-up": ({}, ["warmup.kimg=0.008", "warmup.pairs=8", "warmup.nfe=3"], "its generator is past any warm-up; go on from it without one"),
    "a generator of the recipe's": ({}, ["generator.init=teacher.pt"], "has a generator of its own; leave this out"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_a_state_that_does_not_fit_is_refused_before_anything_is_written(
    case: str, changed: Callable[..., Path], recipe_file: Callable[..., Path], here: Here, tmp_path: Path
) -> None:
    how, sets, wanted = REFUSED[case]
    words = [w for s in [*SHORT, "train.duration_kimg=2.008", *sets] for w in ("--set", s)]
    message = error_line(here("--recipe", recipe_file(D=math.inf), *words, "--resume", changed(**how)))
    assert wanted in message
    assert not (tmp_path / "runs").exists()
    assert len(list((tmp_path / "foreign").iterdir())) == 1


def test_a_flipped_bit_in_a_state_without_a_seal_is_noticed(changed: Callable[..., Path]) -> None:
    """A zip file has a checksum of every member."""
    path = changed()
    read_pickle(path)
    with zipfile.ZipFile(path) as archive:
        tensors = [member for member in archive.infolist() if "/data/" in member.filename]
        largest = max(tensors, key=lambda member: member.file_size)
        values = archive.read(largest)
    content = bytearray(path.read_bytes())
    content[content.index(values) + len(values) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(UserError, match="is damaged: the checksum of its member"):
        read_pickle(path)


def test_the_state_that_is_spoilt_above_fits(changed: Callable[..., Path], recipe_file: Callable[..., Path]) -> None:
    run = distill(str(recipe_file(D=math.inf)), sets=[*SHORT, "train.duration_kimg=2.008"], resume=str(changed()))
    assert "going on at 2 kimg from" in (run.folder / "log.txt").read_text()


def test_only_a_distillation_goes_on_from_it(changed: Callable[..., Path], tmp_path: Path) -> None:
    run = players(Teacher(tiny_network(D=math.inf), D=math.inf, image_shape=(1, 8, 8)))
    with pytest.raises(UserError, match="only a distillation can go on from it, not a run of denoiser, ema"):
        adopt(changed(), {"denoiser": run.student, "ema": run.average}, math.inf)
    run.student.companion = torch.nn.Linear(1, 1)
    with pytest.raises(UserError, match="the loss trains a network of its own, which such a state does not have"):
        adopt(changed(), parts_of(run), math.inf)


# ----------------------------------------------------------------------------------------- [generator] init

SID_SNAPSHOT = GOLDEN / "network-snapshot-1.200000-000512.pkl"


def resolved(path: Path, plugins: Plugins, *sets: str) -> Recipe:
    return expect(resolve(str(path), plugins, sets), Recipe)


@pytest.mark.parametrize(("file", "wanted"), [(SID_SNAPSHOT, "G_ema"), (STATES["sid"], "G_ema")], ids=["snapshot", "state"])
def test_a_generator_begins_with_the_weights_of_a_file(
    file: Path, wanted: str, recipe_file: Callable[..., Path], plugins: Plugins
) -> None:
    teacher = ["teacher.use=edm", f"teacher.source={STATES['sid']}", "teacher.key=fake_score", "noise.use=gaussian", "loss.use=sid"]
    recipe = resolved(recipe_file(), plugins, *SHORT, *teacher, f"generator.init={file}", "train.duration_kimg=0.008")
    generator, weights = (
        build_generator(recipe, *build(recipe, plugins)[:2]),
        golden("training-state-sid-000512").state(f"{wanted}/"),
    )
    assert all(torch.equal(t, weights[n]) for n, t in generator.net.state_dict().items())
    assert all(p.requires_grad for p in generator.net.parameters())
    result = distill(recipe)
    assert f"beginning with the generator {file.name}" in (result.folder / "log.txt").read_text()
    assert f'init = "{file}"' in (result.folder / "recipe.toml").read_text()


def test_a_generator_of_ours_begins_another_run(recipe_file: Callable[..., Path], plugins: Plugins) -> None:
    first = distill(str(recipe_file()), sets=[*SHORT, "train.duration_kimg=0.016"])
    (state,) = first.folder.glob("training-state-*.pt")
    recipe = resolved(recipe_file(), plugins, f"generator.init={state}")
    generator = build_generator(recipe, *build(recipe, plugins)[:2])
    average = first.generator.net.state_dict()  # the run leaves it with its averaged weights
    assert all(torch.equal(t, average[n]) for n, t in generator.net.state_dict().items())


def test_a_generator_of_another_architecture_is_refused(recipe_file: Callable[..., Path], here: Here, tmp_path: Path) -> None:
    recipe = recipe_file()
    message = error_line(here("--recipe", recipe, "--set", f"generator.init={SID_SNAPSHOT}"))
    assert f"[generator] init = '{SID_SNAPSHOT}': does not fit the teacher: missing " in message
    refused = here("check", recipe, "--set", "generator.init=nowhere.pkl").stderr
    assert "[generator] init = 'nowhere.pkl': no such file" in refused
    save_network(tmp_path / "wide.pt", "generator", tiny_network(16), {"D": 128.0})
    message = error_line(here("--recipe", recipe, "--set", f"generator.init={tmp_path / 'wide.pt'}"))
    assert "does not fit the teacher: its img_resolution is 16, not 8" in message
    assert not (tmp_path / "runs").exists()


# ------------------------------------------------------------------------------------------------- handing over


@pytest.fixture(scope="module")
def run_of_ours(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run of two iterations and a thousand images, with its teacher, recipe and state."""
    folder = tmp_path_factory.mktemp("ours")
    save_network(folder / "teacher.pkl", "denoiser", tiny_network(D=math.inf), {"D": math.inf})
    (folder / "r.toml").write_text(
        f'[teacher]\nuse = "edm"\nsource = "{folder / "teacher.pkl"}"\n[noise]\nuse = "gaussian"\n[loss]\nuse = "sid"\nalpha = 1.2\n'
        '[train]\nbatch = 500\nduration_kimg = 1\nlr = 1e-3\nglr = 2e-3\nlr_decay = 0.9\ndevice = "cpu"\n[log]\ngrid = 1\n'
    )
    distill(str(folder / "r.toml"), outdir=str(folder / "runs"))
    return folder


STATE = "runs/00000-r/training-state-000001.pt"


def test_a_state_of_ours_survives_the_way_through_sids_format(run_of_ours: Path, here: Here, tmp_path: Path) -> None:
    target = tmp_path / "training-state-000001.pt"
    done = here("convert", run_of_ours / STATE, target, "--as", "sid")
    assert done.returncode == 0, done.stderr
    assert f"{target}: SiD's training state at 1 kimg, D = inf, from {run_of_ours / STATE}" in done.stdout
    parts, theirs = load(run_of_ours / STATE, "training state")["parts"], read_sid_state(target)
    average = parts["generator"]["net"] | parts["ema"]
    for name, wanted in (("student", parts["student"]["net"]), ("generator", parts["generator"]["net"]), ("average", average)):
        found = theirs.networks[name].state_dict()
        assert found.keys() == wanted.keys() and all(torch.equal(found[n], wanted[n]) for n in wanted), name
    for name, rate in (("student", 1e-3), ("generator", 2e-3)):
        wanted = parts[name]["optimiser"]["state"]
        found = theirs.adams[name]["state"]
        assert found.keys() == wanted.keys() and all(torch.equal(found[i][m], wanted[i][m]) for i in wanted for m in wanted[i])
        (group,) = theirs.adams[name]["param_groups"]
        assert (group["lr"], tuple(group["betas"]), group["eps"], group["fused"]) == (rate, (0.0, 0.999), 1e-8, None)
    assert "written by SiD" in here("inspect", target).stdout
    with pytest.raises(UserError, match="expected a denoiser"):  # our own state says what it is
        load_network(run_of_ours / STATE, "denoiser")


def test_it_makes_no_difference_from_which_of_the_two_a_run_goes_on(run_of_ours: Path, tmp_path: Path) -> None:
    hand_over(str(run_of_ours / STATE), str(tmp_path / "training-state-000001.pt"))
    shutil.copytree(run_of_ours / "runs" / "00000-r", tmp_path / "00000-r")
    states = [tmp_path / "00000-r" / "training-state-000001.pt", tmp_path / "training-state-000001.pt"]
    recipe = str(run_of_ours / "r.toml")
    one, two = (distill(recipe, sets=["train.duration_kimg=2"], outdir=str(tmp_path / "runs"), resume=str(s)) for s in states)
    assert (one.folder, two.folder) == (tmp_path / "00000-r", tmp_path / "runs" / "00000-r")
    found, wanted = (load(r.folder / "training-state-000002.pt", "training state")["parts"] for r in (one, two))
    for name in ("student", "generator"):
        assert all(torch.equal(found[name]["net"][n], t) for n, t in wanted[name]["net"].items())
    assert all(torch.equal(found["ema"][n], t) for n, t in wanted["ema"].items())


# The beginning of SiD's loop and three of its iterations (SiD Algorithm 1, Eq. 23), written for this test, in float64.
LOOP = """
import copy, pickle, sys
import torch
data = torch.load(sys.argv[1], map_location=torch.device("cpu"), weights_only=False)
teacher = pickle.load(open(sys.argv[2], "rb"))["ema"].double()
draws = torch.load(sys.argv[3], weights_only=True)
assert not any(m.split(".")[0] in ("registry", "ipfm_plugin") for m in sys.modules)
assert set(data) == {"fake_score", "G", "G_ema", "fake_score_optimizer_state", "g_optimizer_state"}

def copy_params_and_buffers(src, dst):
    source = dict(src.named_parameters()) | dict(src.named_buffers())
    for name, tensor in [*dst.named_parameters(), *dst.named_buffers()]:
        tensor.copy_(source[name].detach()).requires_grad_(tensor.requires_grad)

nets = {}
for key in ("fake_score", "G", "G_ema"):
    nets[key] = copy.deepcopy(teacher).train().requires_grad_(True)  # as SiD does: new networks, then their contents
    with torch.no_grad():
        copy_params_and_buffers(data[key], nets[key])
student, G, G_ema = nets.values()
G_ema.eval().requires_grad_(False)
adams = {}
for net, key in ((student, "fake_score_optimizer_state"), (G, "g_optimizer_state")):
    adams[net] = torch.optim.Adam(net.parameters(), lr=1.0, betas=(0.5, 0.5))
    adams[net].load_state_dict(data[key])
nimg = 1000
for d in draws:
    x = G(d["z0"], 2.5).detach()
    s = d["sigma0"][:, None, None, None]
    loss = (s**2 + 0.25) / (s * 0.5)**2 * (student(x + s * d["noise0"], d["sigma0"]) - x)**2
    (loss.sum() / len(x)).backward()
    adams[student].step(), adams[student].zero_grad()
    student.eval().requires_grad_(False)
    x = G(d["z1"], 2.5)
    s = d["sigma1"][:, None, None, None]
    x_r = x + s * d["noise1"]
    real, fake = teacher(x_r, d["sigma1"]), student(x_r, d["sigma1"])
    weight = (x - real).abs().mean(dim=[1, 2, 3], keepdim=True).clip(min=1e-5).detach()
    loss = (real - fake) * ((real - x) - 1.2 * (real - fake)) / weight
    (100 * loss.sum() / len(x)).backward()
    adams[G].step(), adams[G].zero_grad()
    student.train().requires_grad_(True)
    beta = 0.5 ** (len(x) / max(min(500_000, 0.05 * nimg), 1e-8))
    for average, p in zip(G_ema.parameters(), G.parameters()):
        average.copy_(p.detach().lerp(average, beta))
    nimg += len(x)
torch.save({key: net.state_dict() for key, net in nets.items()}, sys.argv[4])
"""


class Drawn(GaussianNoise):
    """Gives the draws of a list, step by step: prior, level, noise."""

    def __init__(self, draws: list[dict[str, Tensor]]) -> None:
        super().__init__()
        self.steps = iter([(d[f"z{i}"], d[f"sigma{i}"], d[f"noise{i}"]) for d in draws for i in (0, 1)])

    def prior(self, shape: object, sigma: float, rng: Streams) -> Tensor:
        z, self.sigma, self.noise = next(self.steps)
        return z

    def student_sigma(self, rng: Streams) -> Tensor:
        return self.sigma

    generator_sigma = student_sigma

    def perturb(self, x: Tensor, sigma: Tensor, rng: Streams) -> Tensor:
        return x + sigma[:, None, None, None] * self.noise


def test_sids_loop_goes_on_from_our_state_as_ours_does(run_of_ours: Path, tmp_path: Path) -> None:
    """Opened by torch.load alone, with stand-ins for torch_utils; after three iterations all weights are equal to 1e-12."""
    rng = torch.Generator().manual_seed(0)
    draws = [
        {f"{what}{i}": torch.randn(shape, generator=rng, dtype=torch.float64) for i in (0, 1) for what, shape in (
            ("z", (4, 1, 8, 8)), ("sigma", (4,)), ("noise", (4, 1, 8, 8)))}
        for _ in range(3)
    ]  # fmt: skip
    draws = [{n: t.exp() if n[:-1] == "sigma" else 2.5 * t if n[0] == "z" else t for n, t in d.items()} for d in draws]
    torch.save(draws, tmp_path / "draws.pt")
    hand_over(str(run_of_ours / STATE), str(tmp_path / "training-state-000001.pt"))
    write_stand_ins(tmp_path)
    (tmp_path / "loop.py").write_text(LOOP)
    done = subprocess.run(
        [sys.executable, "loop.py", "training-state-000001.pt", str(run_of_ours / "teacher.pkl"), "draws.pt", "out.pt"],
        cwd=tmp_path, env=environment({"PYTHONPATH": ""}), capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    theirs = torch.load(tmp_path / "out.pt", weights_only=True)

    teacher = teacher_of(run_of_ours / "teacher.pkl")
    teacher.denoiser.double()
    run = players(teacher, batch=4, lr=1e-3, glr=2e-3)
    content = load(run_of_ours / STATE, "training state")
    run.nimg = restore_state(run_of_ours / STATE, content, parts_of(run))
    before = {n: t.clone() for n, t in run.generator.net.state_dict().items()}
    run.noise = run.generator.model.noise = Drawn(draws)  # type: ignore[assignment]
    for _ in range(3):
        loop.iteration(run)
    average = run.generator.net.state_dict() | run.average.state_dict()
    for key, ours in (("fake_score", run.student.net.state_dict()), ("G", run.generator.net.state_dict()), ("G_ema", average)):
        for name, tensor in ours.items():
            error = (theirs[key][name] - tensor).abs()
            if name.endswith("qkv.bias"):
                error = error[[i for i in range(len(error)) if i % 3 != 1]]  # the softmax ignores the key's bias
            assert error.max() < 1e-12, (key, name, error.max())
    assert max((before[n] - t).abs().max() for n, t in run.generator.net.state_dict().items()) > 1e-3


NOT_HANDED_OVER: dict[str, tuple[str, str, str]] = {
    "other name": (STATE, "state.pt", "state.pt: SiD takes the number of images from the name; call it training-state-000001.pt"),
    "other number": (STATE, "training-state-000002.pt", "call it training-state-000001.pt"),
    "a snapshot": ("teacher.pkl", "training-state-000001.pt", "is not a training state of distill"),
    "SiD's own": (str(STATES["sid"]), "training-state-000512.pt", "is not a training state of distill"),
    "a plugin's network": (str(GOLDEN / "release_0.1/run_folders/00001-toy/training-state-000002.pt"), "training-state-000002.pt",
                           "its networks are of class PointDenoiser; SiD's states hold EDM's networks"),
}  # fmt: skip


@pytest.mark.parametrize("case", NOT_HANDED_OVER)
def test_what_cannot_be_handed_over(case: str, run_of_ours: Path, here: Here, tmp_path: Path) -> None:
    source, target, wanted = NOT_HANDED_OVER[case]
    assert wanted in error_line(here("convert", run_of_ours / source, tmp_path / target, "--as", "sid"))
    assert not list(tmp_path.iterdir())


def test_a_state_is_not_overwritten_by_its_own_translation(run_of_ours: Path, here: Here) -> None:
    state = run_of_ours / STATE
    before = state.read_bytes()
    assert "is the state itself; give another folder" in error_line(here("convert", state, state, "--as", "sid"))
    assert state.read_bytes() == before
    done = here("convert", state, state, "--as", "sid", "--key", "ema")
    assert done.returncode == 2 and "leave --key and --kind out" in done.stderr
