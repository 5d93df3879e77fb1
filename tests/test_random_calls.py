"""Random calls and random recipes: whatever is typed, the answer comes soon, in few lines, and is no bug of ours."""

from __future__ import annotations

import copy
import json
import math
import os
import shutil
import tempfile
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import pytest
import torch
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from registry.cli import main
from registry.files.formats import save_network
from tests.conftest import RECIPE, ROOT, grey_images, tiny_network
from tests.soak import Run

pytestmark = pytest.mark.slow
MOST = settings(  # others in each run: this is a search
    max_examples=500,
    derandomize=False,
    suppress_health_check=list(HealthCheck),
    phases=[Phase.explicit, Phase.reuse, Phase.generate],
)

ODD = [
    "", " ", "-", "--", "nan", "inf", "-inf", "1e308", "-1", "0", "1", "2", "7", "9" * 40, "9" * 5000, "0x10", "١٢", "日本語", "a\nb",
    "..", "/", "/dev/null", "/dev/zero", "/proc/self/mem", "http://[::1", "http://127.0.0.1:1/x.pkl", "edm:nothing", "digits", "quickstart",
    "a" * 5000, "a/" * 2000, "[1,2", "{}", "%s%n", "\x1b[2J", "\u202e", "~", "~nobody/x", "*", "net.pt", "net.pkl", "gen.safetensors", "images",
    "net.pt/x", "auto", "train.lr=1", "train.lr=nan", "loss.use=sid", "noise.D=0", "a.b.c=1", "=", "a=", "x.y=[[[", "0-3", "3-0", "0-", "1,,2",
    "generator", "heun", "png", "fid", "sliced_wasserstein", "frechet", "fid,fid", "sid", "ipfm", "cuda:99", "out", "out.json", "x.npz", "new.pt",
]  # fmt: skip
BASES: dict[str, list[str]] = {
    "": ["--recipe", "quickstart", "--dry-run"],
    "generate": ["--network", "gen.pt", "--seeds", "0-1", "--outdir", "out"],
    "evaluate": [
        "--network",
        "gen.pt",
        "--metrics",
        "sliced_wasserstein",
        "--reference",
        "digits",
        "--samples",
        "32",
        "--repeats",
        "1",
    ],
    "inspect": ["net.pkl"],
    "convert": ["net.pkl", "out.pt"],
    "dataset": ["images", "out.zip"],
    "pretrain": ["--recipe", "teachers/digits_d3", "--dry-run"],
    "study": ["alpha", "--dry-run"],
    "check": ["quickstart"],
    "plugins": [],
}
LONG = {"--samples", "--repeats", "--steps", "--nfe", "--batch"}
"""With any large number these run for long, and should."""


def options() -> Iterator[tuple[str, click.Parameter]]:
    """Every parameter of every command that is tried."""
    for name in BASES:
        for parameter in (main.commands[name] if name else main).params:
            if parameter.name not in ("help", "version", "debug"):
                yield name, parameter


@st.composite
def calls(draw: st.DrawFn) -> list[str]:
    """A call that works, with up to three parameters of the command given odd values, or left out."""
    name, first = draw(st.sampled_from(list(options())))
    words = list(BASES[name])
    command = main.commands[name] if name else main
    others = [p for p in command.params if p.name not in ("help", "version", "debug")]
    for parameter in [first, *draw(st.lists(st.sampled_from(others), max_size=2))]:
        flag = max(parameter.opts, key=len)
        numbers = ["0", "-1", "1", "2", "x", "", "1e9", "nan"]
        value = draw(st.sampled_from(numbers) if flag in LONG else st.one_of(st.sampled_from(ODD), st.text(max_size=20)))
        if isinstance(parameter, click.Argument):
            places = [i for i, word in enumerate(words) if not word.startswith("-")]
            if places:
                words[draw(st.sampled_from(places))] = value
        elif parameter.is_flag:
            words.append(flag)
        elif flag in words and draw(st.booleans()):
            words[words.index(flag) + 1] = value
        else:
            words += [flag, value]
    words = [word.replace("\0", "") for word in words]  # no system hands a NUL to a command
    return [*([name] if name else []), *words]


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("files")
    for suffix in ("pt", "pkl", "safetensors"):
        save_network(folder / f"net.{suffix}", "denoiser", tiny_network(), {"D": 128.0, "sigma_data": 0.5})
        save_network(folder / f"gen.{suffix}", "generator", tiny_network(), {"D": 128.0, "sigma_init": 2.5})
    (folder / "images").mkdir()
    grey_images(folder / "images", 5)
    return folder


def answer(cwd: Path, *words: str) -> int:
    """Run a call in a process of its own: it ends soon, with a code that is documented, and does not take the memory."""
    run = Run(cwd, *words)
    code = run.wait(300 if "--compile" in words else 30)  # a compiler takes its time, beside other work much of it
    text = run.text()
    assert code in (0, 1, 2, 3), (code, text)
    assert code == 0 or text.strip(), "an error without a word"
    assert all(c.isprintable() or c in "\n\t" or c in "".join(words) for c in text), repr(text)
    assert max(map(len, text.splitlines()), default=0) < 12_000, "a line without an end"
    return code


@given(words=calls())
@MOST
def test_random_calls(words: list[str], files: Path) -> None:
    with tempfile.TemporaryDirectory() as name:
        cwd = Path(name) / "here"
        shutil.copytree(files, cwd)
        answer(cwd, *words)


VALUES = st.one_of(
    st.booleans(), st.integers(), st.sampled_from([0, -1, 2**31, 2**63 - 1, 10**300]), st.floats(),
    st.sampled_from([math.inf, -math.inf, math.nan, 1e308, 1e-308, 0.5]), st.sampled_from(ODD), st.text(max_size=20), st.just("a\0b"),
    st.lists(st.one_of(st.integers(), st.floats(), st.text(max_size=5)), max_size=5),
    st.dictionaries(st.text(max_size=5), st.one_of(st.integers(), st.text(max_size=5)), max_size=3),
)  # fmt: skip
SHIPPED = sorted(p for p in (ROOT / "recipes").rglob("*.toml") if "studies" not in p.parts)
STUDIES = sorted((ROOT / "recipes" / "studies").glob("*.toml"))


def as_toml(value: Any) -> str:
    """A value as TOML writes it inline."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{as_toml(key)} = {as_toml(v)}" for key, v in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(as_toml, value)) + "]"
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    return str(value).lower() if isinstance(value, bool) else repr(value)


@st.composite
def recipes(draw: st.DrawFn, shipped: list[Path]) -> str:
    """A shipped recipe of which up to three entries are other ones, at any depth."""
    tables = tomllib.loads(draw(st.sampled_from(shipped)).read_text())
    for _ in range(draw(st.integers(1, 3))):
        at: Any = tables
        while True:
            key = draw(st.sampled_from([*at, "new"]))
            if not isinstance(at.get(key), dict) or not at[key] or draw(st.integers(0, 5)) == 0:
                break
            at = at[key]
        what = draw(st.sampled_from(["value", "value", "value", "gone", "table"]))
        if what == "gone":
            at.pop(key, None)
        else:
            at[key] = draw(VALUES) if what == "value" else copy.deepcopy(tables)
    return "\n".join(f"{as_toml(key)} = {as_toml(value)}" for key, value in tables.items())


@given(
    text=recipes(SHIPPED), command=st.sampled_from([["check"], ["--dry-run", "--recipe"], ["pretrain", "--dry-run", "--recipe"]])
)
@MOST
def test_random_recipes(text: str, command: list[str]) -> None:
    with tempfile.TemporaryDirectory() as name:
        (Path(name) / "odd.toml").write_text(text, encoding="utf-8", errors="surrogatepass")
        answer(Path(name), *command, "odd.toml")


@given(text=recipes(STUDIES))
@MOST
def test_random_studies(text: str) -> None:
    with tempfile.TemporaryDirectory() as name:
        (Path(name) / "odd.toml").write_text(text, encoding="utf-8", errors="surrogatepass")
        answer(Path(name), "study", "odd.toml", "--dry-run")
        assert set(os.listdir(name)) - {"odd.toml"} == {p for p in os.listdir(name) if p.startswith("output-")}


@pytest.fixture(scope="module")
def run_folder(files: Path) -> Path:
    """A finished run of the small teacher, beside its recipe."""
    text = RECIPE.format(teacher="net.pt", outdir="runs")
    (files / "short.toml").write_text(text)
    run = Run(files, "--recipe", "short.toml")
    assert run.wait() == 0, run.text()
    return next((files / "runs").iterdir())


TENSORS = st.sampled_from([
    torch.zeros(0), torch.zeros(()), torch.zeros(3, dtype=torch.uint8), torch.full((4,), math.nan), torch.zeros(2, 2).to_sparse(),
    torch.zeros(3, dtype=torch.complex64), torch.zeros(1).expand(10**9), torch.zeros(5, dtype=torch.bool), torch.zeros(10**6),
])  # fmt: skip


@st.composite
def changes(draw: st.DrawFn) -> list[tuple[list[int], str, Any]]:
    """Where to go in nested values (numbers of entries), what to do there, and with which value."""
    way = st.lists(st.integers(0, 50), min_size=1, max_size=6)
    what = st.sampled_from(["value", "value", "value", "gone"])
    return draw(st.lists(st.tuples(way, what, st.one_of(VALUES, TENSORS)), min_size=1, max_size=3))


def changed(content: Any, way: list[int], what: str, value: Any) -> Any:
    """The content with one entry replaced or gone."""
    if not way or not isinstance(content, dict | list | tuple) or not content:
        return value
    keys = list(content) if isinstance(content, dict) else range(len(content))
    key = keys[way[0] % len(keys)]
    new: Any = dict(content) if isinstance(content, dict) else list(content)
    if what == "gone" and len(way) == 1:
        del new[key]
    else:
        new[key] = changed(content[key], way[1:], what, value)
    return new if not isinstance(content, tuple) else tuple(new)


@given(changes=changes(), state=st.booleans())
@MOST
def test_random_files_of_ours(changes: list[tuple[list[int], str, Any]], state: bool, files: Path, run_folder: Path) -> None:
    """Our own kinds of files with entries of another kind: refused in a line, or of use."""
    source = next(run_folder.glob("training-state-*.pt")) if state else files / "gen.pt"
    content = torch.load(source, weights_only=True) | {"format": "distill/1"}  # without a seal
    for way, what, value in changes:
        content = changed(content, way, what, value)
    with tempfile.TemporaryDirectory() as name:
        cwd = Path(name)
        for path in ("net.pt", "short.toml"):
            shutil.copy(files / path, cwd)
        torch.save(content, cwd / "odd.pt")
        answer(cwd, "inspect", "odd.pt")
        answer(cwd, "generate", "--network", "odd.pt", "--seeds", "0", "--outdir", "out")
        if state:
            code = answer(cwd, "--recipe", "short.toml", "--resume", "odd.pt", "--set", "train.duration_kimg=0.064")
            assert code in (0, 1)
