"""The package as a whole: its imports, the size of its files, and that it works as an installed wheel."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import sysconfig
import zipfile
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

from registry.plugins.loading import load_plugins
from tests.conftest import ROOT, environment

# From the lowest up. A folder may import from folders on lower floors, and within itself without cycles.
FLOORS = [
    {"core"}, {"plugins", "edm"}, {"files"}, {"recipe"}, {"show"}, {"train"}, {"sample"}, {"measure"}, {"report"}, {"export"}, {"runs"}, {"study"},
    {"", "api", "testing"}, {"builtin", "ipfm_plugin"}, {"cli"}, {"__main__"},
]  # fmt: skip
LONG = {"registry.edm.networks"}  # its source is embedded in one piece in the files that we write
MIRRORED = {"teacher", "noise", "loss", "__init__", "__main__"}  # our two plugins have files with the same names


def modules() -> dict[str, Path]:
    """Every module of both packages, by its full name."""
    found = {}
    for package in ("registry", "ipfm_plugin"):
        for path in (ROOT / package).rglob("*.py"):
            found[".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")] = path
    return found


def room(module: str) -> str:
    """The folder of registry that holds a module. api, testing and registry itself stand alone, as does the other package."""
    parts = module.split(".")
    return parts[0] if parts[0] != "registry" else parts[1] if len(parts) > 1 else ""


def imports(path: Path) -> set[str]:
    """Our modules that a file imports: at its top, inside functions and for type checkers. Modules only, not their names."""
    known, found = modules(), set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path}: imports are absolute here"
            assert node.module
            deeper = {f"{node.module}.{alias.name}" for alias in node.names} & set(known)
            found |= deeper
            if len(deeper) < len(node.names):
                found.add(node.module)
    return found & set(known)


def test_every_folder_is_on_one_floor() -> None:
    rooms = [name for floor in FLOORS for name in floor]
    assert len(rooms) == len(set(rooms))
    assert {room(name) for name in modules()} == set(rooms)


def test_every_import_goes_down_or_stays_in_its_folder() -> None:
    """This covers all import statements, including those inside functions."""
    floor = {name: i for i, names in enumerate(FLOORS) for name in names}
    wrong = [
        f"{name} (floor {floor[room(name)]}) imports {imported} (floor {floor[room(imported)]})"
        for name, path in modules().items()
        for imported in imports(path)
        if room(name) != room(imported) and floor[room(imported)] >= floor[room(name)]
    ]
    assert not wrong, "\n".join(wrong)


def test_there_are_no_import_cycles() -> None:
    graph = {name: imports(path) - {name} for name, path in modules().items()}
    try:
        list(TopologicalSorter(graph).static_order())
    except CycleError as error:
        pytest.fail(f"import cycle: {' -> '.join(error.args[1])}")


def test_cycles_and_upward_imports_would_be_found(tmp_path: Path) -> None:
    """The tests above rely on this: imports inside functions and for type checkers count."""
    file = tmp_path / "file.py"
    file.write_text(
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from registry.cli import main\n"
        "def f():\n    from registry.train import loop\n    import registry.runs.distill\n"
    )
    assert imports(file) == {"registry.cli", "registry.train.loop", "registry.runs.distill"}


def test_files_and_functions_are_short_enough_to_read() -> None:
    """Files have 4 to 400 lines, functions at most 60 (networks excepted), and no file name is used twice."""
    names: dict[str, list[str]] = {}
    for module, path in modules().items():
        text = path.read_text()
        names.setdefault(path.stem, []).append(module)
        assert 3 < len(text.splitlines()) <= 400 or module in LONG, f"{module} has {len(text.splitlines())} lines"
        assert ast.get_docstring(ast.parse(text)), f"{module} does not say what it is for"
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef) and module not in LONG:
                length = (node.end_lineno or 0) - node.lineno + 1
                assert length <= 60, f"{module}.{node.name} has {length} lines"
    twice = {name: where for name, where in names.items() if len(where) > 1 and name not in MIRRORED}
    assert not twice, twice


def test_the_host_contains_no_names_of_plugins_components() -> None:
    """No component's name appears outside its plugin: hints come from the registry, and the loop does not know its method."""
    brought = {
        entry.component.name
        for entry in load_plugins(blocked=()).registered
        if entry.kind in ("teacher", "noise", "loss", "published")
    }
    assert {"edm", "pfgmpp", "gaussian", "electrostatic", "sid", "ipfm"} <= brought
    brought -= {"edm"}  # also the name of a family of file formats
    for module, path in modules().items():
        if room(module) in ("builtin", "ipfm_plugin"):
            continue
        tree = ast.parse(path.read_text())
        docs = {
            ast.get_docstring(n, clean=False) for n in ast.walk(tree) if isinstance(n, ast.Module | ast.ClassDef | ast.FunctionDef)
        }
        found = {n.value for n in ast.walk(tree) if isinstance(n, ast.Constant) and isinstance(n.value, str)} - docs
        assert not brought & found - ALSO_OTHERWISE.get(module, set()), (module, brought & found)
        assert not any(i.split(".")[0] == "ipfm_plugin" or room(i) == "builtin" for i in imports(path)), module


ALSO_OTHERWISE = {
    "registry.cli.options": {"pfgmpp"},  # --rng pfgmpp: the latents of PFGM++'s script, in edm/latents.py
    "registry.sample.sampler": {"pfgmpp"},
    "registry.files.describe": {"pfgmpp"},  # a key of that project's pickles
    "registry.edm.architectures": {"pfgmpp"},
    "registry.edm.networks": {"pfgmpp"},
    "registry.edm.pickles.edm_network": {"pfgmpp"},
    "registry.files.formats": {"pfgmpp"},
}


def test_only_the_command_and_the_recipe_reader_know_flags_and_tables() -> None:
    """Other messages name only a setting; the command and the recipe reader add `--flag` or `[table]`."""
    for module, path in modules().items():
        if room(module) in ("cli", "recipe"):
            continue
        tree = ast.parse(path.read_text())
        docs = {
            ast.get_docstring(n, clean=False) for n in ast.walk(tree) if isinstance(n, ast.Module | ast.ClassDef | ast.FunctionDef)
        }
        for text in {n.value for n in ast.walk(tree) if isinstance(n, ast.Constant) and isinstance(n.value, str)} - docs:
            assert not re.search(r"(^|[\s(`])--[a-z]", text), (module, text)
            assert not re.search(r"\[(teacher|noise|loss|data|generator|train|log|eval|network|classifier|swap)[\].]", text), (
                module,
                text,
            )


def test_attributes_are_not_looked_up_by_guessed_names() -> None:
    """What the host needs from a plugin's object is in its contract: getattr and hasattr are used only on modules."""
    for module, path in modules().items():
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in ("getattr", "hasattr"):
                where = f"{module}:{node.lineno}"
                assert where.split(":")[0] in MAY_GUESS, where


MAY_GUESS = {
    "registry", "registry.api",  # the module that a lazy name is in
    "registry.edm.networks",  # a function that torch has only from 2.0 on
    "registry.plugins.component", "registry.plugins.loading",  # "module:function"; pluggy's hooks by name
    "registry.testing",  # the methods of a noise, one after the other
}  # fmt: skip


def test_plugins_import_only_from_the_api() -> None:
    """The examples and the IPFM plugin need only `registry.api` and `registry.testing`."""
    files = [*(ROOT / "ipfm_plugin").glob("*.py"), *(ROOT / "examples").rglob("*.py")]
    assert len(files) > 8
    for path in files:
        assert {i for i in imports(path) if i.startswith("registry")} <= {"registry.api", "registry.testing"}, path
    for block in re.findall(
        r"```python\n(.*?)```", "".join((ROOT / f).read_text() for f in ("README.md", "docs/plugins.md")), re.S
    ):
        for line in re.findall(r"^\s*(?:from|import) registry.*$", block, re.M):
            assert re.match(r"\s*from registry(\.api|\.testing)? import", line), line


def test_the_api_defines_nothing() -> None:
    """Every name in `registry.api` exists and is defined in another module."""
    import registry.api

    for name in registry.api.__all__:
        found = getattr(registry.api, name)
        assert getattr(found, "__module__", "registry.files") != "registry.api", name


def test_importing_the_packages_does_not_import_torch() -> None:
    code = "import sys, registry, registry.api, ipfm_plugin, registry.builtin; assert 'torch' not in sys.modules; assert callable(registry.distill)"
    subprocess.run([sys.executable, "-c", code], check=True, env=environment())


def test_shipped_files_are_small_and_plain() -> None:
    import torch

    for path in (ROOT / "recipes").rglob("*.pt"):
        assert path.stat().st_size < 1_000_000
        assert torch.load(path, weights_only=True)["format"] == "distill/2"
        assert path.with_suffix(".toml").is_file(), "its recipe is beside it"


def test_the_wheel_works_in_a_fresh_environment_elsewhere(tmp_path: Path) -> None:
    """Build the wheel, install it outside the repository, and run a shipped recipe by its bare name."""
    dist, elsewhere = tmp_path / "dist", tmp_path / "else where"
    elsewhere.mkdir()
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", dist], cwd=ROOT, check=True, capture_output=True
    )
    (wheel,) = dist.glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    assert "registry/recipes/quickstart.toml" in names
    assert {"registry/recipes/teachers/digits_d128.pt", "registry/recipes/studies/alpha.toml", "registry/study/page.html"} <= {
        *names
    }
    assert {"registry/report/page_of_runs.html", "registry/report/page_of_runs.js", "registry/report/uplot/uPlot.iife.min.js"} <= {
        *names
    }
    assert "registry/recipes/starters/distill.toml.j2" in names
    assert any(n.endswith("licenses/LICENSE") for n in names)
    assert any(n.endswith("uplot/LICENSE") for n in names)
    assert not [n for n in names if n.startswith(("tests", "recipes", "benchmarks"))]

    venv = tmp_path / "venv"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", venv], check=True)
    site = next(venv.glob("lib/python*/site-packages"))
    # The dependencies come from the tests' environment, but the package itself does not (.pth files there are not followed).
    (site / "dependencies.pth").write_text(sysconfig.get_paths()["purelib"] + "\n")
    pip = [sys.executable, "-m", "pip", "--python", venv / "bin" / "python", "install", "--quiet", "--no-deps", "--no-index", wheel]
    subprocess.run([str(a) for a in pip], check=True, capture_output=True)

    def run(*args: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*args], cwd=elsewhere, env=environment({"PYTHONPATH": ""}), capture_output=True, text=True, check=False
        )

    where = run(str(venv / "bin" / "python"), "-c", "import registry, ipfm_plugin; print(registry.__file__, ipfm_plugin.__file__)")
    assert where.stdout.count(str(venv)) == 2, where.stdout + where.stderr
    distill = str(venv / "bin" / "distill")
    listed = run(distill, "plugins")
    assert "electrostatic" in listed.stdout
    assert "not loaded" not in listed.stdout
    short = ["--set", "warmup.kimg=0", "--set", "train.duration_kimg=0.016", "--set", "train.batch=8", "--set", "eval.samples=20", "--set", "eval.snapshot_samples=0",
             "--set", "eval.teacher_steps=[2]", "--set", "train.device=cpu"]  # fmt: skip
    for recipe in (["--recipe", "quickstart"], ["--recipe", "quickstart", "--loss", "sid"]):
        done = run(distill, *recipe, *short)
        assert done.returncode == 0, done.stderr
    assert sorted(p.name for p in (elsewhere / "runs").iterdir()) == ["00000-quickstart", "00001-quickstart"]
