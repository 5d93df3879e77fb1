"""The README's code is run as it stands there, with shorter settings."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from registry.plugins.loading import Plugins
from registry.recipe.reading import resolve
from registry.recipe.resolved import dumps
from tests.conftest import ROOT, environment

README = (ROOT / "README.md").read_text()
SHORT = '"train.duration_kimg=0.128", "eval.samples=60", "eval.teacher_steps=[2]", "eval.snapshot_samples=0"'


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, re.S)


def test_the_ten_lines_of_python(tmp_path: Path) -> None:
    code = blocks("python")[0]
    assert len([line for line in code.splitlines() if line]) <= 10
    assert '"train.duration_kimg=6.4"' in code
    code = code.replace('"train.duration_kimg=6.4"', SHORT)
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=environment(), capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "generator 1 " in done.stdout


def test_the_plugin_on_one_screen(tmp_path: Path, cli: Callable[..., subprocess.CompletedProcess[str]]) -> None:
    """The loss of the README, installed as a package, distils."""
    site = tmp_path / "site"
    info = site / "my_loss-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: my-loss\nVersion: 1.0\n")
    (entry,) = (b for b in blocks("toml") if "entry-points" in b)
    (info / "entry_points.txt").write_text("[distill]\n" + entry.splitlines()[-1].replace('"', "") + "\n")
    (site / "my_loss.py").write_text(blocks("python")[1])
    sets = [a for s in SHORT.replace('"', "").split(", ") for a in ("--set", s)]
    done = cli("--recipe", "quickstart", "--loss", "my_loss", "--set", "loss.beta=0.25", *sets, env={"PYTHONPATH": str(site)})
    assert done.returncode == 0, done.stderr
    assert "with loss 'my_loss'" in done.stdout
    wrong = cli("--recipe", "quickstart", "--loss", "my_loss", "--set", "loss.beta=-1", env={"PYTHONPATH": str(site)})
    assert "[loss] beta = -1: must be greater than or equal to 0" in wrong.stderr


def test_the_recipe_that_is_explained_is_the_quickstart(tmp_path: Path, plugins: Plugins) -> None:
    (text,) = (b for b in blocks("toml") if "[teacher]" in b)
    (tmp_path / "quickstart.toml").write_text(text)
    shown, shipped = resolve(str(tmp_path / "quickstart.toml"), plugins), resolve("quickstart", plugins)
    assert dumps(shown.tables()) == dumps(shipped.tables())


def test_commands_of_the_readme_exist() -> None:
    from registry.cli import main

    options = {o for c in [main, *main.commands.values()] for p in c.params for o in p.opts}
    for line in (line for b in blocks("sh") for line in b.splitlines() if line.startswith("distill ")):
        words = line.split("#")[0].split()
        assert words[1].startswith("--") or words[1] in main.commands, line
        assert {w for w in words if w.startswith("--")} <= options, line
