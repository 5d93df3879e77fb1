"""EDM's augmentation: golden numbers, what it does to a picture, and the student that is told of it."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from ipfm_plugin.loss import IPFMLoss
from registry.core.contracts import RealBatch, Teacher
from registry.core.errors import SettingError
from registry.core.streams import Streams
from registry.edm.augment import SYM6, Draws, apply, augment, draw, masked
from registry.files.formats import load_network
from registry.runs.distill import distill
from registry.runs.pretrain import pretrain
from registry.train import loop
from registry.train.data import augmented
from registry.train.generator import Generator
from tests.conftest import golden, tiny_network
from tests.test_loop import distillation, everything, run

CASES = ["p1_rgb16", "p012_rgb16", "p05_gray8", "p015_rgb32", "p0_rgb16"]


def golden_draws(g: SimpleNamespace, case: str) -> Draws:
    """The golden draws in our form."""

    def at(key: str) -> Tensor:
        return g.at(f"{case}/draws/{key}")

    frame = torch.where(at("aniso/u_r") < 0.5, (2 * at("aniso/r") - 1) * math.pi, 0)
    return Draws(
        torch.stack([at("xflip/w"), at("yflip/w")], 1).float(), at("scale/w"), (2 * at("rotate/w") - 1) * math.pi,
        at("aniso/w"), frame, at("translate/w").T,
        torch.stack([at("yflip/u"), at("scale/u"), at("rotate/u"), at("aniso/u"), at("translate/u")[0]], 1),
    )  # fmt: skip


def test_the_filter_is_pywavelets_sym6() -> None:
    assert torch.equal(SYM6, golden("augment").at("sym6"))


@pytest.mark.parametrize("case", CASES)
def test_images_and_labels_are_the_golden_ones(case: str) -> None:
    g = golden("augment")
    y, labels = apply(g.at(f"{case}/images"), masked(golden_draws(g, case), g.meta["cases"][case]["p"]))
    torch.testing.assert_close(y, g.at(f"{case}/out"), rtol=0, atol=1e-5)
    torch.testing.assert_close(labels, g.at(f"{case}/labels"), rtol=0, atol=1e-6)


def only(**operation: Any) -> Draws:
    """The draws of one image on which only one operation is applied."""
    nothing = Draws(torch.zeros(1, 2), *torch.zeros(4, 1), torch.zeros(1, 2), torch.zeros(1, 5))
    return nothing._replace(
        **{name: torch.as_tensor(value).reshape(1, *nothing._asdict()[name].shape[1:]) for name, value in operation.items()}
    )


@pytest.mark.parametrize(
    ("operation", "expected"),
    [
        (dict(flips=[1.0, 0.0]), lambda x: x.flip(3)),
        (dict(flips=[0.0, 1.0]), lambda x: x.flip(2)),
        (dict(angle=math.pi / 2), lambda x: x.rot90(1, (2, 3))),
        (dict(angle=math.pi), lambda x: x.flip(2, 3)),
        (dict(shift=[2.0, 0.0]), lambda x: torch.cat([x[..., :4].flip(3).roll(-0, 3), x[..., :12]], 3)),
    ],
    ids=["x-flip", "y-flip", "quarter turn", "half turn", "to the right by W/4"],
)
def test_each_operation_is_what_its_name_says(operation: dict[str, Any], expected: Callable[[Tensor], Tensor]) -> None:
    """On a smooth picture in the middle of the image, so that nothing is lost at the edges."""
    place = torch.linspace(-1, 1, 16)
    x = (
        torch.exp(-8 * ((place[:, None] - 0.2) ** 2 + (place[None] + 0.3) ** 2))
        + 0.5 * torch.exp(-8 * (place[:, None] ** 2 + (place[None] - 0.3) ** 2))
    )[None, None]
    y, _ = apply(x, only(**operation))
    wanted = expected(x)
    torch.testing.assert_close(y[..., 4:12, 5:12], wanted[..., 4:12, 5:12], rtol=0, atol=0.05)


def test_probabilities_and_laws() -> None:
    """4,000 draws at p = 0.3: how often each operation is applied, and the spread of its parameter."""
    labels = apply(torch.zeros(4000, 1, 2, 2), masked(draw(Streams(range(4000))), 0.3))[1]
    share = (labels != 0).float().mean(0)
    assert share.tolist() == pytest.approx([0.5, 0.15, 0.3, 0.3, 0.3, 0.3, 0.15, 0.3, 0.3], abs=0.03)
    for column in (2, 7, 8):
        values = labels[labels[:, column] != 0, column]
        assert values.mean().item() == pytest.approx(0, abs=0.1)
        assert values.std().item() == pytest.approx(1, abs=0.08)
    turned = labels[labels[:, 4] != 0]
    torch.testing.assert_close((turned[:, 3] + 1) ** 2 + turned[:, 4] ** 2, torch.ones(len(turned)))
    assert torch.equal(labels[:, 7] != 0, labels[:, 8] != 0)  # both directions together


def test_without_probability_nothing_is_done() -> None:
    x = torch.randn(5, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    y, labels = augment(x, 0.0, Streams(range(5)))
    assert torch.equal(y, x)
    assert not labels.any()


def test_an_image_does_not_depend_on_the_others() -> None:
    x = torch.randn(32, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    whole, labels = augment(x, 0.5, Streams(range(32)))
    for i in (0, 7, 31):
        alone, label = augment(x[i : i + 1], 0.5, Streams([i]))
        torch.testing.assert_close(alone, whole[i : i + 1], rtol=0, atol=1e-4)
        assert torch.equal(label, labels[i : i + 1])


def game(augment_dim: int = 9, **train: Any) -> loop.Distillation:
    """A run whose networks have inputs for augmentation labels."""
    run = distillation(dtype=torch.float64, **train)
    net = tiny_network(augment_dim=augment_dim).double()
    teacher = Teacher(net, D=128.0, image_shape=(1, 8, 8), augment_dim=augment_dim)
    generator = Generator(teacher.copy(), run.noise, teacher.image_shape)
    return loop.Distillation(teacher, run.noise, IPFMLoss(1.0), run.train, torch.device("cpu"), generator)


def test_the_student_is_told_what_was_done_to_its_images() -> None:
    told: list[Tensor] = []
    seen: list[Tensor] = []

    def student(x: Tensor, sigma: Tensor, labels: Tensor | None = None, augment_labels: Tensor | None = None) -> Tensor:
        assert augment_labels is not None
        told.append(augment_labels)
        return x

    x = torch.randn(6, 1, 8, 8)
    real = RealBatch(x.clone(), None)
    f, y, (batch,) = augmented(student, x, (real,), 0.8, Streams(range(6)))
    seen.append(f(y, torch.ones(6)))
    f(torch.cat([y, batch.x]), torch.ones(12))
    expected, labels = augment(x, 0.8, Streams(range(6)))
    assert torch.equal(seen[0], expected)
    assert torch.equal(batch.x, expected)  # the real images get the same operations
    assert torch.equal(told[0], labels)
    assert torch.equal(told[1], labels.repeat(2, 1))  # two batches at once


def test_the_student_learns_its_labels_and_the_generator_does_not_see_them() -> None:
    plain, shaken = game(), game(augment=0.9)
    run(plain, 1), run(shaken, 1)
    name = "model.map_augment.weight"
    moved = {
        who: (learner.net.state_dict()[name] - shaken.teacher.state_dict()[name]).abs().max().item()
        for who, learner in (("student", shaken.student), ("generator", shaken.generator))
    }
    assert moved["student"] > 0
    assert moved["generator"] == 0
    weights = everything(plain), everything(shaken)
    assert any(not torch.equal(tensor, weights[1][key]) for key, tensor in weights[0].items() if "map_augment" not in key)


def test_accumulation_gives_the_same_as_the_whole_batch() -> None:
    whole, parts = (everything(run(game(augment=0.5, batch_gpu=n), 2)) for n in (None, 2))
    for name, wanted in whole.items():
        torch.testing.assert_close(parts[name], wanted, rtol=0, atol=1e-6)


def test_a_network_without_inputs_for_labels_is_refused(recipe_file: Callable[..., Path]) -> None:
    with pytest.raises(
        SettingError, match=r"\[train\] augment = 0.12: the teacher's network has no inputs for augmentation labels"
    ):
        distill(str(recipe_file()), sets=["train.augment=0.12"])


def test_a_teacher_is_trained_with_augmentation_and_distilled_with_it(tmp_path: Path) -> None:
    """`pretrain` gives the network its inputs; the recipe of the distillation finds them there."""
    small = ["train.augment=0.3", "train.duration_kimg=0.256", "network.model_channels=4", "eval.metrics=[]"]
    path = pretrain("teachers/digits_d128", sets=small, outdir=str(tmp_path / "runs"), save=str(tmp_path / "teacher.pt"))
    net, _ = load_network(path)
    assert net.init_kwargs["augment_dim"] == 9  # type: ignore[operator, index]
    assert net.state_dict()["model.map_augment.weight"].abs().max() > 0
    short = [f"teacher.source={path}", "train.augment=0.3", "warmup.kimg=0", "train.duration_kimg=0.256", "eval.metrics=[]"]
    assert (distill("quickstart", sets=short, outdir=str(tmp_path / "out")).folder / "curves.png").is_file()
