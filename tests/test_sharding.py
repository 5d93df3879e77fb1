"""Networks that are split over two processes learn what whole ones learn in one process; states hold them whole."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from ipfm_plugin.loss import IPFMLoss
from ipfm_plugin.noise import ElectrostaticNoise
from registry.core.contracts import Teacher
from registry.core.sharding import gathered, is_split, whole
from registry.files.formats import load_network
from registry.recipe.tables import TrainConfig
from registry.runs.checkpoints import save_state
from registry.runs.health import fingerprint
from registry.train import loop
from registry.train.generator import Generator
from registry.train.recompute import blocks
from registry.train.signs import signs
from tests.conftest import environment, error_line, grey_images, installed, tiny_network
from tests.test_loop import everything, resume, run
from tests.test_processes import COMMAND

Here = Callable[..., subprocess.CompletedProcess[str]]


class WithCritic(nn.Module):
    """IPFM, with a network of its own that learns along with the student. It is not split."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(5)
        self.loss, self.critic = IPFMLoss(1.0), nn.Linear(1, 1).double()

    def student(self, student: Any, x: Tensor, labels: Any, noise: Any, rng: Any) -> Tensor:
        values: Tensor = self.loss.student(student, x, labels, noise, rng)
        return values + self.critic(x.reshape(-1, 1)).reshape(x.shape).square()

    def generator(self, *of: Any) -> Tensor:
        values: Tensor = self.loss.generator(*of)
        return values


PRETRAIN = """
[network]
D = 128
model_channels = 8
channel_mult = [1]
num_blocks = 1
attn_resolutions = []
[data]
source = "images"
[noise]
use = "electrostatic"
[train]
batch = 4
duration_kimg = 0.012
shard = true
[log]
grid = 2
"""

CASES: dict[str, dict[str, Any]] = {
    "plain": {},
    "parts of a batch": {"batch_gpu": 2},
    "clipped": {"clip": 1.0, "gclip": 0.1},
    "lean": {"memory": "lean"},
    "least": {"memory": "least", "student_steps": 2},
    "the same images": {"reuse_samples": True},
    "two steps": {"steps": 2},
    "two steps, computed again": {"steps": 2, "recompute": True},
    "two steps, the last": {"steps": 2, "gradient": "last"},
    "a companion": {"companion": True},
}
TWICE = 2


def game(
    shard: bool, steps: int = 1, gradient: Any = "all", recompute: bool = False, companion: bool = False, **train: Any
) -> loop.Distillation:
    net = tiny_network(label_dim=3, channel_mult=[1, 2]).double()
    teacher = Teacher(net, D=128.0, image_shape=(1, 8, 8), label_dim=3)
    noise, sigmas = ElectrostaticNoise(128.0), (2.5, 0.8)[:steps]
    generator = Generator(teacher.copy(), noise, teacher.image_shape, 3, sigmas, gradient, recompute)
    options = TrainConfig(**({"batch": 8, "duration_kimg": 0.08, "lr": 1e-3, "glr": 1e-3, "shard": shard} | train))
    return loop.Distillation(teacher, noise, WithCritic() if companion else IPFMLoss(1.0), options, torch.device("cpu"), generator)


def learned(which: loop.Distillation, moments: bool) -> dict[str, Any]:
    """What two iterations have come to, whole, in rank 0; and what they say of themselves."""
    run(which, TWICE)
    tally = which.generator.tally.read()
    seen = {"norm": tally["norm"], "mean": tally["mean"], **signs(which)}
    with which.averaged():
        images = which.generator.model.sample(range(3))
    adam = which.student.optimiser.state_dict()["state"] if moments else {}
    state = everything(which) | {f"adam.{i}.{k}": v for i, of in adam.items() for k, v in of.items()}
    return {"state": gathered(state), "seen": seen, "images": images}


class Together(TorchDispatchMode):
    """While it is entered, the most weights of networks that are together in this process at a time."""

    def __init__(self, *networks: nn.Module) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.networks, self.most, self.calls = networks, 0, 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.calls += 1
        if self.calls % 20 == 0:
            weights = [p for net in self.networks for p in net.parameters() if not is_split(p)]
            self.most = max(self.most, sum(p.numel() for p in weights))
        return func(*args, **(kwargs or {}))


def together(memory: Any) -> int:
    """In the generator's step."""
    which = run(game(True, memory=memory), 1)
    with Together(which.teacher, which.student.net, which.generator.net) as seen:
        loop.generator_gradient(which)
    return seen.most


def both(rank: int, folder: str) -> None:
    """What one of two processes does: every case, and a run that is saved and resumed."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    found: dict[str, Any] = {name: learned(game(True, **case), moments=name == "plain") for name, case in CASES.items()}
    first, second = run(game(True), 1), game(True)
    save_state(Path(folder) / "state.pt", first.learned(), first.nimg, {})
    dist.barrier()
    second.nimg = resume(Path(folder) / "state.pt", second)
    found["resumed"] = gathered(everything(run(second, TWICE - 1)))
    found["held"] = {name: sum(p.to_local().numel() if is_split(p) else p.numel() for p in net.parameters()) for name, net in
                     (("teacher", second.teacher), ("student", second.student.net), ("generator", second.generator.net))}  # fmt: skip
    found["together"] = {memory: together(memory) for memory in ("full", "lean", "least")}
    before = fingerprint(second.teacher.state_dict())
    with whole(second.teacher) as net:
        found["class"] = type(net).__name__
        found["whole"] = {k: v.clone() for k, v in net.state_dict().items()}
    found["unchanged"] = fingerprint(second.teacher.state_dict()) == before
    torch.save(found, Path(folder) / f"{rank}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("processes")
    torch.multiprocessing.spawn(both, (str(path),), nprocs=2)
    return path


@pytest.fixture(scope="module")
def results(folder: Path) -> list[dict[str, Any]]:
    return [torch.load(folder / f"{rank}.pt") for rank in (0, 1)]


def same(found: dict[str, Tensor], wanted: dict[str, Tensor]) -> None:
    assert found.keys() == wanted.keys()
    for name, value in wanted.items():
        torch.testing.assert_close(found[name], value, rtol=0, atol=1e-8, msg=lambda text, name=name: f"{name}: {text}")


@pytest.mark.parametrize("name", CASES)
def test_split_networks_learn_what_whole_ones_do(name: str, results: list[dict[str, Any]]) -> None:
    wanted = learned(game(False, **CASES[name]), moments=name == "plain")
    same(results[0][name]["state"], wanted["state"])
    for found in results:
        assert found[name]["seen"] == pytest.approx(wanted["seen"], rel=1e-8)
        torch.testing.assert_close(found[name]["images"], wanted["images"], rtol=0, atol=1e-8)  # of the average, whole everywhere


def test_each_process_holds_about_half(results: list[dict[str, Any]]) -> None:
    count = sum(p.numel() for p in game(False).teacher.parameters())
    for found in results:
        assert found["held"] == pytest.approx(dict.fromkeys(found["held"], count / 2), rel=0.1)
    for name in results[0]["held"]:
        assert sum(found["held"][name] for found in results) == count


def test_few_weights_come_together_at_a_time(results: list[dict[str, Any]]) -> None:
    """Also where activations are computed again in the backward pass: those of a block and of the rest of its network."""
    net = game(False).teacher
    units = [sum(p.numel() for p in block.parameters()) for block in blocks(net)]
    largest, rest = max(units), sum(p.numel() for p in net.parameters()) - sum(units)
    for found in results:
        for memory, most in found["together"].items():
            assert 0 < most <= 2 * largest + rest, memory
    assert 2 * largest + rest < 0.7 * (sum(units) + rest)


def test_a_resumed_run_equals_an_uninterrupted_one(results: list[dict[str, Any]]) -> None:
    wanted = run(game(False), TWICE)
    same(results[0]["resumed"], everything(wanted))


def test_a_state_of_split_networks_is_one_of_whole_networks(folder: Path) -> None:
    """It goes on in one process with whole networks, and names the network's own class."""
    second = game(False)
    second.nimg = resume(folder / "state.pt", second)
    same(everything(run(second, TWICE - 1)), everything(run(game(False), TWICE)))
    assert torch.load(folder / "state.pt")["networks"]["student"]["class"] == "EDMPrecond"


def test_a_whole_copy_is_the_network_as_it_was(results: list[dict[str, Any]]) -> None:
    for found in results:
        assert found["class"] == "EDMPrecond"
        assert found["unchanged"]
        same(found["whole"], game(False).teacher.state_dict())


@pytest.mark.parametrize("other", ["compile", "shared_pass"])
def test_what_does_not_work_with_it_is_refused(other: str, here: Here) -> None:
    line = error_line(here("--dry-run", "--recipe", "quickstart", "--set", "train.shard=true", "--set", f"train.{other}=true"))
    assert f"[train] shard = True: does not work with {other}; leave one of them out" in line


def test_the_command_distils_with_split_networks(recipe_file: Callable[..., Path], tmp_path: Path) -> None:
    """Grids, snapshots, the table: processes that measure shares of different sizes do not wait for each other's weights."""
    recipe = recipe_file(
        append='metrics = ["sliced_wasserstein"]\nreference = "digits"\n[warmup]\nkimg = 0.016\npairs = 20\nnfe = 3\n'
    )
    done = subprocess.run(
        [*COMMAND, "launch", "--processes", "2", "--recipe", str(recipe), "--set", "train.shard=true", "--set", "eval.batch=20"],
        env=environment(), cwd=tmp_path, capture_output=True, text=True, timeout=180, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    folder = next((tmp_path / "runs").iterdir())
    names = {path.name for path in folder.iterdir()}
    assert {"fakes_init.png", "real.png", "quality.json", "report.html", "network-snapshot-best.pkl"} <= names
    net, facts = load_network(str(folder / "network-snapshot-best.pkl"), "generator")
    assert type(net).__name__ == "EDMPrecond"
    assert facts.recipe["train"]["shard"] is True
    assert (folder / "stats.jsonl").read_text().count("Gap/all") == 3


LEAVES = """import contextlib, os, socket, time
from registry.api import hookimpl

@hookimpl
def register_losses():
    import registry.runs.distill as distill
    go_on = distill.take_up

    def leaves(*arguments):
        if os.environ["RANK"] == "1":
            for handle in os.listdir("/proc/self/fd"):
                with contextlib.suppress(OSError):
                    socket.socket(fileno=int(handle)).shutdown(socket.SHUT_RDWR)
            time.sleep(5)
        go_on(*arguments)

    distill.take_up = leaves
    return []
"""


def test_a_process_that_is_lost_before_the_first_iteration_is_told_of(recipe_file: Callable[..., Path], tmp_path: Path) -> None:
    """Split networks have messages of their own, also for the first pictures."""
    env = environment(installed(tmp_path / "site", "leaves", LEAVES))
    command = [*COMMAND, "launch", "--processes", "2", "--recipe", str(recipe_file()), "--set", "train.shard=true"]
    done = subprocess.run(command, env=env, cwd=tmp_path, capture_output=True, text=True, timeout=180, check=False)
    assert done.returncode and "process 0 of 2: another process has ended, or does not answer" in done.stderr, done.stderr


def test_a_teacher_is_trained_split(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    grey_images(tmp_path / "images", 12)
    (tmp_path / "teacher.toml").write_text(PRETRAIN)
    done = subprocess.run(
        [*COMMAND, "launch", "--processes", "2", "pretrain", "--recipe", "teacher.toml"],
        env=environment(), cwd=tmp_path, capture_output=True, text=True, timeout=180, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found, _ = load_network(str(next((tmp_path / "runs").rglob("teacher.pt"))), "denoiser")
    assert all(p.isfinite().all() for p in found.parameters())
