"""Files of torch.save that are few bytes, and would stall or fill the memory of whoever opens, compares or prints what is in them."""

from __future__ import annotations

import subprocess
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from registry.core import seal
from registry.core.errors import UserError
from registry.files.bounds import check_values
from registry.files.formats import save_network
from registry.files.plain import load
from tests.conftest import error_line, tiny_network

Here = Callable[..., subprocess.CompletedProcess[str]]
P = 2**61 - 1
"""Python's hash of a multiple of this is 0."""


def doubled(levels: int) -> bytes:
    """A tuple that holds a tuple twice, which holds a tuple twice, and so on."""
    return b"Nq\0" + b"".join(bytes([0x68, i]) * 2 + b"\x86q" + bytes([i + 1]) for i in range(levels))


def long(number: int) -> bytes:
    return b"\x8a\x0a" + number.to_bytes(10, "little", signed=True)


def entry(key: str) -> bytes:
    return b"X" + len(key).to_bytes(4, "little") + key.encode()


BOMBS = {
    "a key": (lambda: doubled(60) + b"}h\x3cNs.", "keys other than text and small whole numbers"),
    "a kind": (lambda: doubled(60) + b"}(" + entry("format") + entry("distill/1") + entry("kind") + b"h\x3cu.", "too many times"),
    "numbers of values": (lambda: b"}" + b"".join(b"p%d\n" % (k * P) for k in range(1, 40_000)) + b".", "it numbers a value"),
    "keys that collide": (lambda: b"}(" + b"".join(long(k * P) + b"N" for k in range(1, 60_000)) + b"u.", "keys other than text"),
}


@pytest.mark.parametrize("case", BOMBS)
def test_a_small_file_stalls_nobody(case: str, here: Here, tmp_path: Path) -> None:
    make, problem = BOMBS[case]
    with zipfile.ZipFile(tmp_path / "bomb.pt", "w") as file:
        file.writestr("archive/data.pkl", b"\x80\x02" + make())
        file.writestr("archive/version", "3\n")
        file.writestr("archive/byteorder", "little")
    assert problem in error_line(here("inspect", tmp_path / "bomb.pt"))
    assert problem in error_line(here("generate", "--network", tmp_path / "bomb.pt", "--seeds", "0", "--outdir", tmp_path / "out"))


def test_what_holds_itself_or_others_often() -> None:
    wide: list[Any] = [list(range(1000)) for _ in range(900)]
    check_values({"a": wide}, "x.pt")
    circle: list[Any] = []
    circle.append(circle)
    deep: Any = ()
    for _ in range(10_000):
        deep = [deep]
    for nested in (circle, deep):
        with pytest.raises(UserError, match=r"x.pt: is no file as distill writes them: it is nested too deeply"):
            check_values(nested, "x.pt")
    deep = ()
    for i in range(40):
        deep = {"a": deep, "b": deep} if i % 2 else (deep, deep)
    with pytest.raises(UserError, match=r"x.pt: is no file as distill writes them: its lists and tables hold each other too many"):
        check_values(deep, "x.pt")


@pytest.fixture
def network(tmp_path: Path) -> Callable[..., Path]:
    """A sealed network's file of ours, with other entries."""

    def write(change: Callable[[dict[str, Any]], object]) -> Path:
        path = tmp_path / "net.pt"
        save_network(path, "generator", tiny_network(), {"D": 128.0, "sigma_data": 0.5, "sigma_init": 2.5, "recipe": {"loss": {}}})
        content = load(path, "generator")
        change(content)
        with path.open("w+b") as file:
            torch.save(content, file)
            seal.seal(file)
        return path

    return write


CHANGES: dict[str, tuple[Callable[[dict[str, Any]], object], str]] = {
    "a loss that is no table": (lambda c: c["about"].update(recipe={"loss": (1, 2)}), "about.recipe.loss"),
    "no tables": (lambda c: c["about"].update(recipe={"train": "x", "loss": 5}), "about.recipe.train"),
    "no dropout": (lambda c: c["network"]["kwargs"].update(dropout=float("nan")), "dropout"),
    "much dropout": (lambda c: c["network"]["kwargs"].update(dropout=2.0), "dropout"),
}


@pytest.mark.parametrize("case", CHANGES)
def test_a_network_with_odd_entries_is_told_in_one_line(
    case: str, here: Here, network: Callable[..., Path], tmp_path: Path
) -> None:
    change, where = CHANGES[case]
    path = network(change)
    line = error_line(here("generate", "--network", path, "--seeds", "0-1", "--outdir", tmp_path / "out"))
    assert "is no file as distill writes them" in line and where in line
    inspected = here("inspect", path)
    assert inspected.returncode in (0, 1) and "a bug in distill" not in inspected.stderr


CONTRADICTIONS: dict[str, tuple[Callable[[dict[str, Any]], object], str]] = {
    "other images": (
        lambda c: c["about"].update(image_shape=[1, 9, 9]),
        "contradicts itself: it says that its images are (1, 9, 9), and its network's are (1, 8, 8)",
    ),
    "classes": (
        lambda c: c["about"].update(label_dim=10), "contradicts itself: it says that its classes are 10, and its network's are 0"
    ),
    "complex weights": (
        lambda c: c.update(weights={k: v.to(torch.complex64) for k, v in c["weights"].items()}), "is complex"
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", CONTRADICTIONS)
def test_a_network_that_contradicts_its_file_is_not_sampled(
    case: str, here: Here, network: Callable[..., Path], tmp_path: Path
) -> None:
    change, what = CONTRADICTIONS[case]
    assert what in error_line(here("generate", "--network", network(change), "--seeds", "0-1", "--outdir", tmp_path / "out"))
