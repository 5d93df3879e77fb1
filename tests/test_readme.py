"""The README and the pages of docs/: code runs as written there, with shorter settings; commands and links exist."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from registry.plugins.loading import Plugins
from registry.recipe.reading import resolve
from registry.recipe.resolved import dumps
from tests.conftest import ROOT, environment

PAGES = [ROOT / "README.md", ROOT / "CHANGELOG.md", ROOT / "recipes" / "README.md", ROOT / "benchmarks" / "RESULTS.md",
         *sorted((ROOT / "docs").glob("*.md")), *sorted((ROOT / "examples").glob("*/README.md"))]  # fmt: skip
SHORT = '"warmup.kimg=0", "train.duration_kimg=0.128", "eval.samples=60", "eval.teacher_steps=[2]", "eval.snapshot_samples=0"'


def blocks(language: str, page: Path = ROOT / "README.md") -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", page.read_text(), re.S)


def test_the_ten_lines_of_python(tmp_path: Path) -> None:
    code = blocks("python")[0]
    assert len([line for line in code.splitlines() if line]) <= 10
    asked = 'sets={"warmup.kimg": 0, "train.duration_kimg": 6.4}'
    assert asked in code
    code = code.replace(asked, f"sets=[{SHORT}]")
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=environment(), capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "generator 1 " in done.stdout


def test_the_page_on_python_runs_from_top_to_bottom(tmp_path: Path) -> None:
    code = "".join(blocks("python", ROOT / "docs" / "python.md"))
    asked = 'sets={"warmup.kimg": 0, "train.duration_kimg": 1.28}'
    assert asked in code
    code = code.replace(asked, f"sets=[{SHORT}]").replace('"duration_kimg": 0.64', '"duration_kimg": 0.128')
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=environment(), capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def test_the_plugin_on_one_screen(tmp_path: Path, cli: Callable[..., subprocess.CompletedProcess[str]]) -> None:
    """The README's loss, installed as a package, can be used to distil."""
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


@pytest.mark.parametrize("page", ["README.md", "docs/recipes.md"])
@pytest.mark.parametrize("loss", [None, "sid"])
def test_the_recipe_that_is_explained_is_the_quickstart(page: str, loss: str | None, tmp_path: Path, plugins: Plugins) -> None:
    (text,) = (b for b in blocks("toml", ROOT / page) if "[teacher]" in b and "duration_kimg" in b)
    if loss and "[swap.sid]" not in text:
        pytest.skip("this page leaves the swap out")
    (tmp_path / "quickstart.toml").write_text(text)
    shown, shipped = (resolve(name, plugins, loss=loss) for name in (str(tmp_path / "quickstart.toml"), "quickstart"))
    a, b = ({name: table for name, table in found.tables().items() if name != "swap"} for found in (shown, shipped))
    assert dumps(a) == dumps(b)


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.relative_to(ROOT).as_posix())
def test_commands_and_links_exist(page: Path) -> None:
    """Subcommands and options of every `distill …` line, and the target of every relative link, its heading included."""
    from registry.cli import main

    for line in (
        line for b in blocks("sh", page) for line in b.splitlines() if re.match(r"(distill|torchrun .*registry\.cli) ", line)
    ):
        words = line.split("#")[0].partition("registry.cli" if line.startswith("torchrun") else "distill")[2].split()
        if words[0] == "launch":  # the command that it runs comes after its own options
            own = {o for p in main.commands["launch"].params for o in p.opts}
            words = words[1:]
            while words[0] in own:
                words = words[2:]
        command = main.commands.get(words[0], main)
        assert words[0].startswith("--") or words[0] in main.commands, line
        known = {o for p in command.params for o in p.opts} | {"--help", "--version"}
        assert {w for w in words if w.startswith("--")} <= known, line
    for link in re.findall(r"\]\((?!https?://)([^)\s]+)\)", page.read_text()):
        path, _, heading = link.partition("#")
        target = page.parent / path if path else page
        assert target.exists(), f"{page}: {link}"
        if heading:
            found = {
                re.sub(r"[^\w\- ]", "", h.lower()).replace(" ", "-") for h in re.findall(r"^#+ (.*)$", target.read_text(), re.M)
            }
            assert heading in found, f"{page}: {link}"


def test_the_pages_of_settings_and_options_are_those_of_the_code() -> None:
    """`make docs` writes them."""
    made = subprocess.run(
        [sys.executable, "-c", "import runpy; pages = runpy.run_path('docs/reference.py')['PAGES']; print(pages['settings.md'](), pages['options.md'](), sep='\x01')"],
        cwd=ROOT, env=environment(), capture_output=True, text=True, check=True,
    )  # fmt: skip
    settings, _, options = made.stdout.rstrip("\n").partition("\x01")
    assert settings == (ROOT / "docs" / "settings.md").read_text(), "make docs"
    assert options + "\n" == (ROOT / "docs" / "options.md").read_text(), "make docs"
