"""The loop gives the same result for a batch and its parts, a run and its halves, one process and two; and its guards."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
import torch
from torch import Tensor

from ipfm_plugin.loss import IPFMLoss
from ipfm_plugin.noise import ElectrostaticNoise
from registry.core.contracts import Teacher
from registry.core.errors import UserError
from registry.core.streams import Streams
from registry.files.formats import load_network
from registry.recipe.tables import TrainConfig
from registry.runs.checkpoints import read_state, restore_state, save_state
from registry.runs.distill import distill
from registry.runs.states import states
from registry.train import loop
from registry.train.generator import Generator
from registry.train.step import Learner, cosine_rate, guard_gradients, mode, own_image_numbers, reduce
from tests.conftest import ROOT, environment, tiny_network

Write = Callable[..., Path]


def distillation(
    loss: Any = None, dropout: float = 0.0, label_dim: int = 0, dtype: torch.dtype = torch.float32, **train: Any
) -> loop.Distillation:
    net = tiny_network(label_dim=label_dim, dropout=dropout).to(dtype)
    options = TrainConfig(**({"batch": 8, "duration_kimg": 0.08, "lr": 1e-3, "glr": 1e-3} | train))
    noise = ElectrostaticNoise(128.0)
    teacher = Teacher(net, D=128.0, image_shape=(1, 8, 8), label_dim=label_dim)
    generator = Generator(teacher.copy(), noise, teacher.image_shape, teacher.label_dim)
    return loop.Distillation(teacher, noise, loss or IPFMLoss(1.0), options, torch.device("cpu"), generator)


def resume(path: Path, game: loop.Distillation) -> int:
    return restore_state(path, read_state(path, game.learned()), game.learned())


def run(game: loop.Distillation, iterations: int) -> loop.Distillation:
    for _ in range(iterations):
        loop.iteration(game)
    return game


def everything(game: loop.Distillation) -> dict[str, Tensor]:
    return {
        **{f"student.{k}": v for k, v in game.student.net.state_dict().items()},
        **{f"generator.{k}": v for k, v in game.generator.net.state_dict().items()},
        **{f"ema.{k}": v for k, v in game.average.state_dict().items()},
    }


@pytest.mark.parametrize("batch_gpu", [1, 2, 4])
@pytest.mark.parametrize("label_dim", [0, 3])
def test_accumulation_gives_the_same_as_the_whole_batch(batch_gpu: int, label_dim: int) -> None:
    whole = everything(run(distillation(dtype=torch.float64, label_dim=label_dim), 3))
    parts = everything(run(distillation(dtype=torch.float64, label_dim=label_dim, batch_gpu=batch_gpu), 3))
    for name, wanted in whole.items():
        torch.testing.assert_close(parts[name], wanted, rtol=0, atol=1e-9)


@pytest.mark.parametrize("options", [{}, {"lr_decay": 0.5, "student_steps": 2, "batch_gpu": 4}])
def test_resumed_equals_uninterrupted_bit_for_bit(tmp_path: Path, options: dict[str, Any]) -> None:
    """n + n iterations equal 2n, with dropout and labels."""
    torch.manual_seed(1)
    whole = run(distillation(dropout=0.3, label_dim=2, **options), 6)
    torch.manual_seed(1)
    first = run(distillation(dropout=0.3, label_dim=2, **options), 3)
    save_state(tmp_path / "state.pt", first.learned(), first.nimg, {})
    torch.manual_seed(99)
    torch.randn(7)
    second = distillation(dropout=0.3, label_dim=2, **options)
    second.nimg = resume(tmp_path / "state.pt", second)
    run(second, 3)
    assert second.nimg == whole.nimg
    assert all(torch.equal(a, everything(second)[name]) for name, a in everything(whole).items())


def test_a_state_does_not_grow_and_fits_only_its_networks(tmp_path: Path) -> None:
    game = run(distillation(), 1)
    sizes = []
    for i in range(3):
        with game.average.averaged():
            pass
        run(game, 1)
        save_state(tmp_path / f"{i}.pt", game.learned(), game.nimg, {})
        sizes.append((tmp_path / f"{i}.pt").stat().st_size)
    assert max(sizes) - min(sizes) < 1000
    with pytest.raises(UserError, match="does not fit this recipe's networks"):
        resume(tmp_path / "0.pt", distillation(label_dim=4))


def test_the_newest_state_is_the_one_with_the_most_images(tmp_path: Path) -> None:
    for name in ("training-state-000500.pt", "training-state-999999.pt", "training-state-1000000.pt", "training-state-copy.pt"):
        (tmp_path / name).touch()
    assert states(tmp_path)[0] == tmp_path / "training-state-1000000.pt"  # though as text it comes first


def test_seed_decides_everything() -> None:
    a, b, c = (everything(run(distillation(seed=seed), 2)) for seed in (0, 0, 1))
    assert all(torch.equal(a[k], b[k]) for k in a)
    assert not all(torch.equal(a[k], c[k]) for k in a)


def test_two_processes_equal_one(recipe_file: Write, tmp_path: Path) -> None:
    """torchrun with two ranks on the CPU gives the same networks as one process."""
    path = recipe_file()
    for command, outdir in (
        ([sys.executable, "-m", "registry.cli"], "one"),
        ([sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m", "registry.cli"], "two"),
    ):
        done = subprocess.run(
            [*command, "--recipe", str(path), "--outdir", str(tmp_path / outdir)],
            env=environment(), capture_output=True, text=True, timeout=180, check=False, cwd=tmp_path,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
    folders = [next((tmp_path / outdir).iterdir()) for outdir in ("one", "two")]
    assert all(len(list(p.parent.iterdir())) == 1 for p in folders)  # only rank 0 makes a folder
    one, two = (load_network(f / "network-snapshot-1.000000-000000.pkl", "generator")[0].state_dict() for f in folders)
    for name, wanted in one.items():
        if name.endswith("qkv.bias"):
            continue  # the softmax ignores the key's bias: its gradient is rounding noise, which Adam turns into full steps
        torch.testing.assert_close(two[name], wanted, rtol=0, atol=2e-5)
    for a, b in zip(*((json.loads(line) for line in (f / "stats.jsonl").read_text().splitlines()) for f in folders), strict=True):
        assert a["Loss/student"]["mean"] == pytest.approx(b["Loss/student"]["mean"], rel=1e-3)
        assert a["Loss/student"]["num"] == b["Loss/student"]["num"] == 2


class Poisoned(IPFMLoss):
    """A loss that is NaN for one image or has infinite gradients."""

    def __init__(self, what: str) -> None:
        super().__init__(1.0)
        self.what = what

    def generator(self, teacher: Any, student: Any, x: Tensor, labels: Any, noise: Any, rng: Streams) -> Tensor:
        values = super().generator(teacher, student, x, labels, noise, rng)
        if self.what == "image":
            return torch.cat([values[:1] * math.nan, values[1:]])
        x.register_hook(lambda g: torch.full_like(g, math.inf))
        return values


def test_images_that_are_not_finite_are_dropped_and_counted() -> None:
    game = run(distillation(Poisoned("image")), 2)
    found = game.generator.tally.read()
    assert (found["dropped"], found["repaired"]) == (2, 0)
    assert math.isfinite(found["mean"])
    assert all(v.isfinite().all() for v in everything(game).values())
    assert not torch.equal(
        everything(game)["generator.model.map_layer0.weight"], game.teacher.state_dict()["model.map_layer0.weight"]
    )


def test_gradients_that_are_not_finite_are_replaced_and_counted() -> None:
    game = run(distillation(Poisoned("gradient")), 2)
    assert game.generator.tally.read()["repaired"] > 100
    assert game.student.tally.read()["repaired"] == 0
    assert all(v.isfinite().all() for v in everything(game).values())


def test_repair_replaces_as_the_reference_does() -> None:
    p = torch.nn.Parameter(torch.zeros(4))
    p.grad = torch.tensor([math.nan, math.inf, -math.inf, 2.0])
    assert guard_gradients([p])[0] == 3
    assert p.grad.tolist() == [0, 1e5, -1e5, 2]


def test_reduce_sums_values_and_averages_over_the_whole_batch() -> None:
    values = torch.arange(24.0).reshape(2, 3, 2, 2)
    assert reduce(values, 8)[0] == values.sum() / 8


def test_guards_are_reported_in_the_log(recipe_file: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ipfm_plugin.loss.build", lambda config, domain: Poisoned("image"))
    result = distill(str(recipe_file()))
    assert "WARNING generator: 2 images with non-finite loss dropped" in (result.folder / "log.txt").read_text()
    first = json.loads((result.folder / "stats.jsonl").read_text().splitlines()[0])
    assert first["Guard/generator_dropped"]["mean"] == 2


def test_student_steps_and_which_networks_change() -> None:
    game = distillation(student_steps=3)
    teacher = {k: v.clone() for k, v in game.teacher.state_dict().items()}
    run(game, 2)
    assert game.student.optimiser.state[next(game.student.net.parameters())]["step"] == 6
    assert game.generator.optimiser.state[next(game.generator.net.parameters())]["step"] == 2
    assert all(torch.equal(teacher[k], v) for k, v in game.teacher.state_dict().items())
    assert not any(p.requires_grad or p.grad is not None for p in game.teacher.parameters())


def test_modes_are_those_of_the_reference_and_are_restored() -> None:
    """Each network is in train mode in its own step and in eval mode in the other's."""
    seen: list[tuple[bool, bool, bool]] = []

    class Watching(IPFMLoss):
        def student(self, student: Any, x: Tensor, *rest: Any) -> Tensor:
            seen.append((game.generator.net.training, student.training, x.requires_grad))
            return super().student(student, x, *rest)

        def generator(self, teacher: Any, student: Any, x: Tensor, *rest: Any) -> Tensor:
            seen.append((game.generator.net.training, student.training, x.requires_grad))
            assert not any(p.requires_grad for p in student.parameters())
            return super().generator(teacher, student, x, *rest)

    game = distillation(Watching(1.0))
    before = game.student.net.training
    run(game, 1)
    assert seen == [(False, True, False), (True, False, True)]
    assert game.student.net.training == before
    assert all(p.requires_grad for p in game.student.net.parameters())


def test_a_part_with_a_train_of_its_own_is_asked() -> None:
    """As frozen parts have, by a class or by themselves."""

    class Frozen(torch.nn.Dropout):
        def train(self, mode: bool = True) -> Frozen:
            return super().train(False)

    alone = torch.nn.Dropout()
    alone.train = lambda mode=True: torch.nn.Module.train(alone, False)  # type: ignore[method-assign]
    for part in (Frozen().eval(), alone.eval()):
        net = torch.nn.Sequential(torch.nn.Dropout(), part).eval()
        with mode(net, train=True):
            assert [module.training for module in net] == [True, False]
        assert not any(module.training for module in net.modules())


def test_mode_restores_even_after_an_error() -> None:
    net = torch.nn.Sequential(torch.nn.Linear(1, 1), torch.nn.Dropout()).eval()
    net[0].train()
    with pytest.raises(RuntimeError), mode(net, train=True, grad=False):
        raise RuntimeError
    assert (net.training, net[0].training, net[1].training) == (False, True, False)
    assert net[0].weight.requires_grad


def test_learning_rate_falls_as_a_cosine_over_the_last_share() -> None:
    assert [cosine_rate(p, 0.5) for p in (0, 0.5)] == [1, 1]
    assert cosine_rate(0.75, 0.5) == pytest.approx(0.5)
    assert cosine_rate(1, 0.5) == pytest.approx(0)
    assert cosine_rate(1, 0) == 1


def test_tally_has_mean_and_standard_deviation() -> None:
    learner = Learner(torch.nn.Linear(1, 1, bias=False), batch=2, lr=1e-3)
    weight = learner.net.weight
    for value in (1.0, 3.0):
        learner.accumulate((0 * weight + value).expand(2, 1).reshape(2, 1, 1, 1))
        learner.step()
    found = learner.tally.read()
    assert (found["num"], found["mean"], found["std"]) == (2, pytest.approx(2), pytest.approx(1))
    assert learner.tally.read()["num"] == 0


@pytest.mark.parametrize(("batch", "gpu", "parts"), [(8, None, [8]), (8, 4, [4, 4]), (6, 2, [2, 2, 2]), (4, 16, [4])])
def test_shares_cover_the_batch(batch: int, gpu: int | None, parts: list[int]) -> None:
    found = list(own_image_numbers(24, batch, gpu))
    assert [len(p) for p in found] == parts
    assert [i for p in found for i in p] == list(range(24, 24 + batch))


def test_no_data_set_is_opened(recipe_file: Write, tmp_path: Path) -> None:
    """A distillation without metrics never touches scikit-learn or a data set."""
    code = (
        "import sys, registry; opened = []\n"
        "sys.addaudithook(lambda e, a: opened.append(str(a[0])) if e == 'open' else None)\n"
        f"registry.distill({str(recipe_file())!r})\n"
        "assert not any('sklearn' in m for m in sys.modules)\n"
        "assert not (found := [f for f in opened if 'digits.csv' in f or 'dataset.json' in f]), found\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment(), capture_output=True, text=True, cwd=tmp_path, check=False
    )
    assert done.returncode == 0, done.stderr


def test_what_the_caller_has_set_in_torch_changes_no_run(recipe_file: Callable[..., Path], tmp_path: Path) -> None:
    recipe = str(recipe_file())

    def weights(number: int) -> dict[str, Tensor]:
        return distill(recipe, outdir=str(tmp_path / str(number))).generator.net.state_dict()

    wanted = weights(0)
    torch.set_default_dtype(torch.float64)
    try:
        found = [weights(1)]
        assert torch.get_default_dtype() == torch.float64
    finally:
        torch.set_default_dtype(torch.float32)
    for i, context in enumerate((torch.no_grad(), torch.inference_mode(), torch.autocast("cpu", torch.bfloat16)), 2):
        with context:
            found.append(weights(i))
    for other in found:
        assert all(torch.equal(other[name], wanted[name]) for name in wanted)


def test_a_batch_stays_in_train_and_the_plugins_loss(tmp_path: Path) -> None:
    """In one iteration, images are local variables in just five files of train/ and in the plugin's loss, apart from networks."""
    game, seen = distillation(), set()

    def trace(frame: FrameType, event: str, argument: object) -> Any:
        file = frame.f_code.co_filename
        if str(ROOT) in file and ("/registry/" in file or "/ipfm_plugin/" in file):
            values = frame.f_locals.values()
            if any(isinstance(v, Tensor) and v.ndim == 4 and v.shape[1:] == (1, 8, 8) for v in values):
                seen.add(Path(file).relative_to(ROOT).as_posix())
        return trace

    sys.settrace(trace)
    try:
        loop.iteration(game)
    finally:
        sys.settrace(None)
    inside = {name for name in seen if name.startswith("registry/train/")}
    assert inside == {f"registry/train/{name}.py" for name in ("loop", "data", "generator", "kernels", "losses", "step")}
    assert seen - inside == {"ipfm_plugin/loss.py", "registry/edm/networks.py"}
