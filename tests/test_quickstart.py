"""The quickstart and the toy keep their promises, with the README's commands. Each takes minutes: `make test-slow`."""

from __future__ import annotations

import json
import statistics
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from registry.files.formats import weights_hash
from registry.plugins.loading import Plugins
from tests.conftest import ROOT

Cli = Callable[..., subprocess.CompletedProcess[str]]


def rows(outdir: Path) -> dict[tuple[str, int | None], dict[str, float]]:
    (run,) = outdir.iterdir()
    found = json.loads((run / "quality.json").read_text())["rows"]
    return {(r["name"], r["evaluations"]): {c: statistics.fmean(v) for c, v in r["values"].items()} for r in found}


@pytest.mark.slow
@pytest.mark.parametrize("loss", ["ipfm", "sid"])
def test_quickstart(loss: str, cli: Cli, tmp_path: Path) -> None:
    done = cli("--recipe", "quickstart", "--loss", loss, "--outdir", tmp_path / "runs", timeout=1500)
    assert done.returncode == 0, done.stderr
    found = rows(tmp_path / "runs")
    generator, teacher, few = found["generator", 1], found["teacher", 35], found["teacher", 9]
    floor = next(values for (name, _), values in found.items() if name.startswith("floor"))
    assert generator["frechet"] <= 4 * teacher["frechet"]
    assert generator["frechet"] < few["frechet"] / 10
    assert generator["classes"] == 10
    assert teacher["frechet"] <= 1.5 * floor["frechet"]


@pytest.mark.slow
def test_toy_finds_all_points(cli: Cli, tmp_path: Path) -> None:
    done = cli("--recipe", "toy_2d", "--outdir", tmp_path / "runs", timeout=600)
    assert done.returncode == 0, done.stderr
    found = rows(tmp_path / "runs")
    assert found["generator", 1]["reached"] == 1
    assert found["generator", 1]["nearest"] < 0.15
    assert found["teacher", 35]["nearest"] < 0.01


@pytest.mark.parametrize("D", ["3", "43", "128", "inf"])
def test_kept_rows_belong_to_the_shipped_teachers(D: str, plugins: Plugins) -> None:
    """The numbers beside a shipped teacher belong to its weights and are within the promised 1.5 times the floor."""
    from registry.builtin.metrics import build_frechet
    from registry.files.teachers import teacher_from_file

    teacher = teacher_from_file(f"digits_d{D}")
    assert str(teacher.D) == str(float(D))
    kept = json.loads((ROOT / "recipes" / "teachers" / f"digits_d{D}.quality.json").read_text())
    assert {entry["measured"]["weights"] for entry in kept} == {weights_hash(teacher.denoiser)}
    assert {entry["measured"]["steps"] for entry in kept} == {18, 5}
    component = plugins.find("metric", "frechet").component
    metric = build_frechet(component.config(reference="digits"), teacher)  # type: ignore[arg-type]
    floor = statistics.fmean(metric.floor(repeat)["frechet"] for repeat in range(3))
    best = next(entry for entry in kept if entry["measured"]["steps"] == 18)
    assert statistics.fmean(best["row"]["values"]["frechet"]) <= 1.5 * floor
