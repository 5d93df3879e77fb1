"""The example plugins as third parties would use them: separate packages, installed as wheels outside the repository."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import sysconfig
import textwrap
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import ROOT, environment

EXAMPLES = ("my_teacher", "my_loss")
SHORT = [
    "train.batch=8", "train.duration_kimg=0.016", "train.device=cpu", "log.tick_kimg=0.016", "log.state_ticks=1",
    "eval.samples=20", "eval.repeats=1", "eval.snapshot_samples=0", "eval.teacher_steps=[2]",
]  # fmt: skip
Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="module")
def elsewhere(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with copies of the examples and an environment `venv` in which the host and the examples are installed."""
    folder = tmp_path_factory.mktemp("else where")
    for name in EXAMPLES:
        shutil.copytree(ROOT / "examples" / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    for source in (ROOT, *(folder / name for name in EXAMPLES)):
        build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", folder / "wheels"]
        subprocess.run(build, cwd=source, check=True, capture_output=True)
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder / "venv"], check=True)
    site = next((folder / "venv").glob("lib/python*/site-packages"))
    (site / "dependencies.pth").write_text(sysconfig.get_paths()["purelib"] + "\n")  # .pth files there are not followed
    pip = [sys.executable, "-m", "pip", "--python", folder / "venv" / "bin" / "python", "install", "--quiet", "--no-deps"]
    subprocess.run([*pip, "--no-index", *(folder / "wheels").glob("*.whl")], check=True, capture_output=True)
    return folder


@pytest.fixture
def run(elsewhere: Path) -> Run:
    """Runs a command of that environment in a folder."""

    def command(*args: str | Path, cwd: Path = elsewhere) -> subprocess.CompletedProcess[str]:
        program = elsewhere / "venv" / "bin" / args[0]
        return subprocess.run(
            [str(program), *map(str, args[1:])], cwd=cwd, env=environment({"PYTHONPATH": ""}), capture_output=True, text=True
        )

    return command


def short(*more: str) -> list[str]:
    return [word for setting in (*SHORT, *more) for word in ("--set", setting)]


def test_they_are_listed_with_owner_and_version(run: Run) -> None:
    listed = run("distill", "plugins").stdout
    assert re.search(r"^teacher\n(?:  .*\n)*  vp +my_teacher 0\.1\.0 ", listed, re.MULTILINE), listed
    assert re.search(r"^loss\n(?:  .*\n)*  diff_instruct +my_loss 0\.1\.0 ", listed, re.MULTILINE), listed
    assert "not loaded" not in listed


def test_the_teacher_is_trained_distilled_resumed_and_sampled(elsewhere: Path, run: Run) -> None:
    folder = elsewhere / "my_teacher"
    recipe = "recipes/my_digits.toml"
    missing = run("distill", "check", recipe, cwd=folder)
    assert missing.returncode == 1
    assert "[teacher] source = 'my_digits.pt': no such file" in missing.stderr

    trained = run("python", "-m", "my_teacher.train", "my_digits.pt", "--iterations", "5", cwd=folder)
    assert trained.returncode == 0, trained.stderr
    assert run("distill", "check", recipe, cwd=folder).stdout.endswith("my_digits.toml: ok\n")
    other = run("distill", "check", recipe, "--set", "noise.use=electrostatic", "--set", "noise.D=128", cwd=folder)
    assert "has D = 128, but the teacher has D = inf" in other.stderr

    first = run("distill", "--recipe", recipe, *short('eval.metrics=["sliced_wasserstein"]'), cwd=folder)
    assert first.returncode == 0, first.stderr
    assert "distilling my_digits.pt (D = inf, 1×8×8, 0.10 M parameters) with loss 'sid'" in first.stdout
    further = run(
        "distill", "--recipe", recipe, *short("train.duration_kimg=0.032", "eval.metrics=[]"), "--resume", "auto", cwd=folder
    )
    assert further.returncode == 0, further.stderr
    assert "resuming at 0.016 kimg" in further.stdout
    (made,) = (folder / "runs").iterdir()
    left = {p.name for p in made.iterdir()}
    assert {"quality.txt.later", "fakes_init.png", "training-state-000000.pt", "network-snapshot-1.000000-000000.pt"} <= left
    (folder / "my_digits.pt").unlink()  # the plugin registers the network, so files of it open without the teacher's
    for name in ("network-snapshot-1.000000-000000.pt", "training-state-000000.pt"):
        where = ["--seeds", "0-3", "--format", "grid", "--outdir", f"images of {name}"]
        sampled = run("distill", "generate", "--network", made / name, *where, cwd=folder)
        assert sampled.returncode == 0, sampled.stderr
    assert len({(folder / f"images of {p}" / "grid.png").read_bytes() for p in left if "0000.pt" in p}) == 1


def test_the_loss_works_in_the_quickstart(elsewhere: Path, run: Run) -> None:
    done = run("distill", "--recipe", "quickstart", "--loss", "diff_instruct", *short("loss.weighting=kl", "warmup.kimg=0"))
    assert done.returncode == 0, done.stderr
    assert "with loss 'diff_instruct'" in done.stdout
    resolved = (elsewhere / "runs" / "00000-quickstart" / "recipe.toml").read_text()
    assert 'use = "diff_instruct"\nweighting = "kl"' in resolved
    assert "alpha" not in resolved.partition("[swap")[0]  # what a recipe swaps is kept, for another loss


def test_their_own_tests_pass(elsewhere: Path, run: Run) -> None:
    done = run("python", "-m", "pytest", "-q", "-p", "no:cacheprovider", *(elsewhere / name / "tests" for name in EXAMPLES))
    assert done.returncode == 0, done.stdout + done.stderr


def test_code_in_the_walk_through_is_taken_from_the_examples() -> None:
    """Every block that a comment attributes to a file appears in that file character for character, at some indentation."""
    text = (ROOT / "docs" / "plugins.md").read_text()
    excerpts = re.findall(r"<!-- from (\S+) -->\n```\w+\n(.*?)```", text, re.S)
    assert {Path(path).parts[1] for path, _ in excerpts} == set(EXAMPLES)
    for path, code in excerpts:
        source = (ROOT / path).read_text()
        assert any(textwrap.indent(code, " " * n) in source for n in (0, 4, 8)), f"{path} does not have:\n{code}"
    whole_files = re.findall(r"```python\n# my_tracker\.py\n", text)  # tests/test_trackers.py runs it
    named = sum(path.endswith(".py") for path, _ in excerpts) + len(whole_files)
    assert len(re.findall("```python", text)) == named, "every block names its file"
