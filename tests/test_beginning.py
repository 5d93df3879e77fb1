"""The package that `distill new-plugin` writes: its tests pass as written, and a recipe runs with it."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import environment, error_line

Cli = Callable[..., subprocess.CompletedProcess[str]]


def installed(package: Path, name: str) -> dict[str, str]:
    """The environment in which the package is installed: what pip would write beside its source."""
    info = package / "src" / f"{name}-0.1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name.replace('_', '-')}\nVersion: 0.1.0\n")
    entry = (package / "pyproject.toml").read_text().partition("[project.entry-points.distill]\n")[2].partition("\n")[0]
    (info / "entry_points.txt").write_text("[distill]\n" + entry.replace('"', "") + "\n")
    return {"PYTHONPATH": str(package / "src")}


@pytest.mark.parametrize(("typed", "kind"), [("my-new_loss", "loss"), ("mean_image", "metric")])
def test_its_tests_pass_as_written_and_the_command_knows_it(typed: str, kind: str, cli: Cli, tmp_path: Path) -> None:
    name = typed.replace("-", "_")
    done = cli("new-plugin", typed, "--kind", kind)
    assert done.returncode == 0, done.stderr
    package = tmp_path / "a folder" / typed
    env = installed(package, name)
    tests = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", package],
        cwd=tmp_path, env=environment(env), capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert tests.returncode == 0, tests.stdout + tests.stderr
    assert name in cli("plugins", env=env).stdout
    if kind == "loss":
        recipe = package / "recipes" / f"{name}.toml"
        assert cli("check", recipe, env=env).stdout.endswith(f"{name}.toml: ok\n")
        short = ["--set", "train.duration_kimg=0.256", "--set", "eval.samples=50", "--set", "eval.teacher_steps=[2]"]
        run = cli("--recipe", recipe, *short, env=env)
        assert run.returncode == 0 and "with loss 'my_new_loss'" in run.stdout, run.stderr
    lint = subprocess.run([sys.executable, "-m", "ruff", "check", package], capture_output=True, text=True, check=False)
    assert lint.returncode == 0, lint.stdout


@pytest.mark.parametrize(("name", "text"), [
    ("My Loss", "must be small letters"), ("class", "must be small letters"), ("torch", "is the name of another package here"), ("registry", "is the name of another package here"),
    ("json", "is the name of another package here"), ("../up", "must be small letters"), ("taken", "is there already"),
])  # fmt: skip
def test_a_name_that_cannot_be_one_is_refused(name: str, text: str, cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "a folder" / "taken").mkdir()
    assert text in error_line(cli("new-plugin", name))
    assert [p.name for p in (tmp_path / "a folder").iterdir()] == ["taken"]


def test_a_plugin_without_a_hook_is_reported(cli: Cli, tmp_path: Path) -> None:
    info = tmp_path / "site" / "empty-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: empty\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[distill]\nempty = empty_plugin\n")
    (tmp_path / "site" / "empty_plugin.py").write_text("def register_losses():\n    return []\n")
    said = " ".join(cli("plugins", env={"PYTHONPATH": str(tmp_path / "site")}).stdout.split())
    assert "plugin empty 1.0 not loaded: brings nothing: none of its functions is marked with @hookimpl" in said
