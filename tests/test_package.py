"""The package as a whole: what imports what, what it weighs, and that it works as a wheel anywhere."""

from __future__ import annotations

import ast
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest

from tests.conftest import ROOT, environment

# From the lowest floor up; a module imports from its own floor or lower ones only.
FLOORS = [
    {"api", "sources"},
    {"edm.networks", "edm.datasets", "edm.archive", "edm.pickles", "edm.snapshots", "edm.latents", "streams", "distributed", "ema"},
    {"hookspecs", "plugins", "recipe", "noise", "denoising", "analytic", "features", "metrics", "descent", "downloads"},
    {"files", "sampling", "generator", "pictures", "state", "report", "inception"},
    {"describe", "builtin", "builtin.teacher", "builtin.noise", "builtin.loss", "builtin.metric", "builtin.fid", "quality"},
    {"loop", "pretrain", "desk", "generate", "evaluation", "testing"},
    {"run"},
    {"cli", ""},
]


def modules() -> dict[str, Path]:
    found = {}
    for path in (ROOT / "registry").rglob("*.py"):
        name = ".".join(path.relative_to(ROOT / "registry").with_suffix("").parts).removesuffix("__init__").removesuffix(".")
        found[name] = path
    return found


def imports(path: Path, lazily: bool = False) -> set[str]:
    """Modules that a file imports at its top (or anywhere)."""
    tree = ast.parse(path.read_text())
    nodes = ast.walk(tree) if lazily else tree.body
    found: set[str] = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module)
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def test_no_floor_imports_from_a_higher_one() -> None:
    known = modules()
    floor = {name: i for i, names in enumerate(FLOORS) for name in names}
    assert {n for n in known if n != "edm"} == set(floor), "every module has its floor"
    for name, path in known.items():
        if name == "edm":
            continue
        for imported in imports(path):
            inside = imported.removeprefix("registry.") if imported.startswith("registry.") else None
            if inside in floor:
                assert floor[inside] <= floor[name], (
                    f"registry.{name} (floor {floor[name]}) imports {imported} (floor {floor[inside]})"
                )


def test_the_host_never_imports_the_plugin() -> None:
    for path in modules().values():
        assert not any(i.split(".")[0] == "ipfm_plugin" for i in imports(path, lazily=True)), path


@pytest.mark.parametrize("name", ["loop", "descent", "generator", "state", "pretrain", "denoising"])
def test_the_loop_knows_no_method_by_name(name: str) -> None:
    """No component's name, no D: the contracts are enough."""
    strings = {
        n.value
        for n in ast.walk(ast.parse(modules()[name].read_text()))
        if isinstance(n, ast.Constant) and isinstance(n.value, str)
    }
    docs = {ast.get_docstring(n, clean=False) for n in ast.walk(ast.parse(modules()[name].read_text()))
            if isinstance(n, ast.Module | ast.ClassDef | ast.FunctionDef)}  # fmt: skip
    assert not {"sid", "ipfm", "edm", "pfgmpp", "gaussian", "electrostatic"} & (strings - docs)


def test_importing_the_packages_does_not_import_torch() -> None:
    code = "import sys, registry, registry.api, ipfm_plugin, registry.builtin; assert 'torch' not in sys.modules; assert callable(registry.distill)"
    subprocess.run([sys.executable, "-c", code], check=True, env=environment())


def test_shipped_files_are_small_and_plain() -> None:
    import torch

    for path in (ROOT / "recipes").rglob("*.pt"):
        assert path.stat().st_size < 1_000_000
        assert torch.load(path, weights_only=True)["format"] == "distill/1"
        assert path.with_suffix(".toml").is_file(), "its recipe lies beside it"


def test_the_wheel_works_in_a_fresh_environment_elsewhere(tmp_path: Path) -> None:
    """Build it, install it outside the repository, and distil a shipped recipe by its bare name."""
    dist, elsewhere = tmp_path / "dist", tmp_path / "else where"
    elsewhere.mkdir()
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", dist], cwd=ROOT, check=True, capture_output=True
    )
    (wheel,) = dist.glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    assert "registry/recipes/quickstart.toml" in names
    assert "registry/recipes/teachers/digits_d128.pt" in names
    assert any(n.endswith("licenses/LICENSE") for n in names)
    assert not [n for n in names if n.startswith(("tests", "recipes", "benchmarks"))]

    venv = tmp_path / "venv"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", venv], check=True)
    site = next(venv.glob("lib/python*/site-packages"))
    # The dependencies come from the environment of these tests; the package itself does not (path files there are not followed).
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
    short = ["--set", "train.duration_kimg=0.016", "--set", "train.batch=8", "--set", "eval.samples=20", "--set", "eval.snapshot_samples=0",
             "--set", "eval.teacher_steps=[2]", "--set", "train.device=cpu"]  # fmt: skip
    for recipe in (["--recipe", "quickstart"], ["--recipe", "quickstart", "--loss", "sid"]):
        done = run(distill, *recipe, *short)
        assert done.returncode == 0, done.stderr
    assert sorted(p.name for p in (elsewhere / "runs").iterdir()) == ["00000-quickstart", "00001-quickstart"]
