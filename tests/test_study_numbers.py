"""Studies without runs: grids, statistics against scipy and by hand, and reports of results that were written by hand."""

from __future__ import annotations

import csv
import json
import math
import re
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats

from registry.cli.study_commands import cell_command
from registry.core.errors import SettingError, UserError
from registry.plugins.loading import Plugins
from registry.study.cells import Cell, prepare, record
from registry.study.conduct import conduct, strict
from registry.study.definition import Study, checked, read_study
from registry.study.grid import as_text, axes_of, combinations, slugs, split_values
from registry.study.local import environment
from registry.study.sheets import estimate
from registry.study.statistics import Effect, averaged, band, common_end, holm, paired, t_test, value_at
from registry.study.summary import Summary
from tests.conftest import ROOT, error_line

Here = Callable[..., subprocess.CompletedProcess[str]]


# --- grids ---


def test_the_grid_is_the_product_and_every_combination_has_a_folder_of_its_own() -> None:
    axes = axes_of({"loss.alpha": [0.5, 1], "method": {"a": {"train.lr": 1e-3}, "b": {}}})
    found = combinations(axes, {"train.batch": 8}, (), {})
    assert [c.labels for c in found] == [("0.5", "a"), ("0.5", "b"), ("1", "a"), ("1", "b")]
    assert found[0].sets == ("train.batch=8", "loss.alpha=0.5", "train.lr=0.001")
    assert found[3].sets == ("train.batch=8", "loss.alpha=1")
    assert [c.slug for c in found] == [f"alpha-{a}_method-{m}" for a in ("0.5", "1") for m in "ab"]
    awkward = combinations(axes_of({"m": {"a b": {}, "a-b": {"x.y": 1}, "a/b": {"x.y": 2}, "é" * 200: {"x.y": 3}}}), {}, (), {})
    assert len({c.slug for c in awkward}) == 4
    assert slugs(["a"], [("t/x",)]) == slugs(["a"], [("t/x",), ("t-x",), ("T-X",)])[:1]  # of which the run may be there
    assert all(re.fullmatch(r"[\w.+-]{1,100}", c.slug, re.ASCII) for c in awkward)
    (alone,) = combinations((), {}, (), {})
    assert (alone.labels, alone.slug) == ((), "all")


def test_what_follows_a_key_comes_with_it_and_only_with_it() -> None:
    along = ("teacher.source=digits_d{noise.D}", "teacher.D={noise.D}")
    with_d = combinations(axes_of({"noise": {"D": [128.0, math.inf]}}), {}, along, {})
    assert [dict(c.settings) for c in with_d] == [
        {"teacher.source": "digits_d128", "teacher.D": 128, "noise.D": 128.0},
        {"teacher.source": "digits_dinf", "teacher.D": math.inf, "noise.D": math.inf},
    ]
    (fixed,) = combinations((), {"noise.D": 3, "teacher.source": "mine.pt"}, along, {})
    assert fixed.settings["teacher.source"] == "mine.pt", "what the study sets itself is stronger"
    assert fixed.settings["teacher.D"] == 3
    (without,) = combinations((), {"train.lr": 1}, along, {"noise": {"D": 128}})
    assert without.settings == {"train.lr": 1}


def test_a_setting_may_refer_to_what_another_one_is() -> None:
    (found,) = combinations((), {"eval.samples": "{train.batch}"}, (), {"train": {"batch": 256}})
    assert found.sets == ("eval.samples=256",)
    with pytest.raises(SettingError, match=r"neither the study nor the recipe sets train\.btach"):
        combinations((), {"eval.samples": "{train.btach}"}, (), {"train": {"batch": 256}})


@pytest.mark.parametrize(
    ("vary", "problem"),
    [
        ({"a.b": []}, "a.b has no values"),
        ({"a.b": [1, 1.0]}, "a.b has 1 twice"),
        ({"a": [1]}, "a is no key: write it as table.key"),
        ({"a.b": 3}, "a.b = 3: must be a list of values, or a table of named variants"),
        ({"m": {}}, "m has no values"),
        ({"m": {"x": 3}}, "m has a variant 'x' that is not a table of settings"),
        ({"m": {"x": {"lr": 3}}}, "m sets 'lr' in its variant 'x', which is no key"),
        ({"train.seed": [1, 2]}, "train.seed: a study has seeds of its own"),
        ({"a.b": [1], "m": {"x": {"a.b": 2}}}, "a.b is varied twice, by a.b and by m"),
        ({"a.b": list(range(21)), "a.c": list(range(20))}, "this study would have 2,100 runs; at most 2,000 are made"),
        ({f"a.k{i}": [1, 2] for i in range(200)}, f"this study would have {5 * 2**200:,} runs"),
    ],
)
def test_an_axis_that_makes_no_sense_is_refused(vary: dict[str, Any], problem: str) -> None:
    with pytest.raises(UserError, match=re.escape(f"x: vary: {problem}")):
        checked({"recipe": "quickstart", "vary": vary}, "x")


def test_all_that_is_wrong_with_a_study_is_said_at_once() -> None:
    with pytest.raises(UserError) as caught:
        checked({"recipe": 3, "seeds": [1, 1], "set": ["lr"], "vary": {"a.b": [], "c": 1}, "sets": []}, "my.toml")
    assert str(caught.value).splitlines() == [
        "my.toml: recipe = 3: must be a valid string",
        "my.toml: seeds = [1, 1]: must be seeds, each once",
        "my.toml: set: 'lr' must be written as 'table.key=value'",
        "my.toml: vary: a.b has no values; c = 1: must be a list of values, or a table of named variants",
        "my.toml: sets is unknown (did you mean 'set'?); allowed: about, recipe, seeds, set, vary, measure, equal, slurm",
    ]


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("0.5,1", [0.5, 1]),
        ("3,43,inf", [3, 43, math.inf]),
        ("sid,ipfm", ["sid", "ipfm"]),
        ("[0.0, 0.99],[0.0, 0.999]", [[0.0, 0.99], [0.0, 0.999]]),
        ("'a,b',true", ["a,b", True]),
    ],
)
def test_values_on_the_command_line(text: str, values: list[Any]) -> None:
    assert split_values(text) == values
    assert all(split_values(as_text(v) if "," not in str(v) or isinstance(v, list) else f"'{v}'") == [v] for v in values)


@pytest.mark.parametrize("text", ["", ",", "1,", ",1", "1,,2"])
def test_a_missing_value_is_an_error(text: str) -> None:
    with pytest.raises(SettingError, match="a value is missing"):
        read_study(recipe="quickstart", vary=(f"loss.alpha={text}",))


@pytest.mark.parametrize("wrong", ["3", "[1, 2]", "'ab'"])
def test_what_is_typed_does_not_hide_that_a_file_is_wrong(wrong: str, tmp_path: Path) -> None:
    (tmp_path / "s.toml").write_text(f'recipe = "toy_2d"\nvary = {wrong}\n')
    with pytest.raises(UserError, match=r"vary = .*: must be a table"):
        read_study(str(tmp_path / "s.toml"), vary=("loss.alpha=0.5,1",))
    if wrong != "[1, 2]":
        (tmp_path / "s.toml").write_text(f'recipe = "toy_2d"\nset = {wrong}\n')
        with pytest.raises(UserError, match=r"set = .*: must be a list"):
            read_study(str(tmp_path / "s.toml"), sets=("train.lr=2",))


def test_what_is_typed_is_laid_over_the_file(tmp_path: Path) -> None:
    file = tmp_path / "s.toml"
    file.write_text('recipe = "toy_2d"\nseeds = "0-1"\nset = ["train.lr=1"]\n[vary]\nloss.alpha = [1, 2]\n')
    found = read_study(
        str(file), seeds="3,5-6", vary=("loss.alpha=0.5", "train.glr=1,2"), sets=("train.lr=2", "slurm.executor=local")
    )
    assert (found.recipe, found.seeds, found.fixed, found.scheduler) == (
        "toy_2d",
        (3, 5, 6),
        {"train.lr": 2},
        {"executor": "local"},
    )
    # An axis of the file is replaced under the name that it was typed with.
    assert [a.name for a in read_study(str(file)).axes] == ["loss.alpha"]
    assert [(a.name, len(a.variants)) for a in found.axes] == [("loss.alpha", 1), ("train.glr", 2)]
    (tmp_path / "study.toml").write_text(file.read_text())
    assert read_study(str(tmp_path)) == read_study(str(file)), "a folder stands for the study in it"


# --- statistics ---


def test_the_paired_test_is_scipys_on_logarithms() -> None:
    rng = np.random.default_rng(0)
    a, b = np.exp(rng.normal(size=(2, 6)))
    found = paired(dict(enumerate(a)), dict(enumerate(b)))
    assert found is not None
    wanted = stats.ttest_rel(np.log(a), np.log(b))
    interval = wanted.confidence_interval(0.95)
    assert found.scale == "ratio"
    assert found.n == 6
    assert found.p == pytest.approx(wanted.pvalue)
    assert found.estimate == pytest.approx(math.exp(np.mean(np.log(a) - np.log(b))))
    assert (found.low, found.high) == pytest.approx((math.exp(interval.low), math.exp(interval.high)))


def test_an_interval_may_be_wider_than_numbers_are() -> None:
    """One of two seeds has diverged."""
    found = paired({0: 1.0, 1: 1e60}, {0: 1.0, 1: 1.0})
    assert found is not None and found.high == math.inf and math.isclose(found.estimate, 1e30)


def test_the_paired_test_by_hand() -> None:
    """Ratios e, e, e³: mean of logarithms 5/3, standard error 2/3; t = 2.5 with two degrees of freedom, quantile 4.302653."""
    found = paired({0: math.e, 1: 2 * math.e, 2: math.e**3}, {0: 1.0, 1: 2.0, 2: 1.0, 3: 9.0})
    assert found is not None
    assert found.n == 3
    assert math.log(found.estimate) == pytest.approx(5 / 3)
    assert math.log(found.low) == pytest.approx(5 / 3 - 4.302653 * 2 / 3, rel=1e-6)
    assert found.p == pytest.approx(1 - 2.5 / math.sqrt(2.5**2 + 2), rel=1e-9)  # the law of t with two degrees of freedom


def test_numbers_that_are_not_positive_are_compared_by_their_difference() -> None:
    found = paired({0: 1.0, 1: 0.0}, {0: 0.5, 1: 0.25})
    assert found is not None
    assert (found.scale, found.estimate, found.n) == ("difference", 0.125, 2)


@pytest.mark.parametrize(
    ("effect", "text"),
    [
        (Effect("ratio", 1.0004, 1.0002, 1.0006, 0.01, 5), "1.0004 [1.0002, 1.0006]"),
        (Effect("ratio", 0.9, 0.81, 1.0, 0.05, 5), "0.9 [0.81, 1]"),
        (Effect("ratio", 1 + 1e-15, 1.0, 1.0, 1.0, 5), "1 [1, 1]"),
        (Effect("ratio", 0.5, math.nan, math.nan, math.nan, 1), "0.5"),
        (Effect("difference", 1.0004, 0.5, 1.5, 0.01, 5), "1 [0.5, 1.5]"),
    ],
)
def test_a_ratio_that_is_not_one_does_not_read_as_one(effect: Effect, text: str) -> None:
    assert estimate(effect) == text


def test_seeds_without_a_number_are_left_out() -> None:
    assert paired({0: 1.0, 1: math.nan}, {0: 2.0, 1: 1.0, 2: 1.0}).n == 1  # type: ignore[union-attr]
    assert paired({0: 1.0}, {1: 1.0}) is None
    one = paired({0: 1.0}, {0: 2.0})
    assert one is not None
    assert one.estimate == pytest.approx(0.5)
    assert math.isnan(one.p) and math.isnan(one.low)


def test_an_average_over_other_axes_counts_each_seed_once() -> None:
    pairs = [({0: 2.0, 1: 2.0}, {0: 1.0, 1: 1.0}), ({0: 8.0, 1: 4.0}, {0: 1.0, 1: 1.0})]
    found = averaged(pairs)
    assert found is not None
    logs = [math.log(4), math.log(math.sqrt(8))]  # per seed: the mean of log 2 and log 8, and of log 2 and log 4
    assert found.n == 2
    assert math.log(found.estimate) == pytest.approx(np.mean(logs))
    assert found.p == pytest.approx(stats.ttest_1samp(logs, 0).pvalue)


def test_no_spread_is_no_division_by_zero() -> None:
    assert t_test([0.0, 0.0, 0.0]) == (0.0, 0.0, 1.0)
    assert t_test([1.0, 1.0]) == (1.0, 1.0, 0.0)


def test_holms_correction_by_hand() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.9, 0.8]) == [1.0, 1.0]
    with_nan = holm([0.02, math.nan, 0.03])
    assert (with_nan[0], with_nan[2]) == (0.04, 0.04) and math.isnan(with_nan[1])
    assert holm([]) == []


def test_values_between_two_points_are_on_a_straight_line_of_logarithms() -> None:
    curve = [(1.0, 4.0), (3.0, 1.0), (4.0, 1.0)]
    assert value_at(curve, 2.0) == pytest.approx(2.0)
    assert value_at(curve, 3.0) == pytest.approx(1.0)
    assert value_at([(0.0, 0.0), (2.0, 1.0)], 1.0) == 0.5
    assert math.isnan(value_at(curve, 0.5)) and math.isnan(value_at(curve, 4.5)) and math.isnan(value_at([], 1.0))
    assert value_at([(1.0, 7.0)], 1.0) == 7.0
    assert common_end([curve, [(0.0, 1.0), (3.5, 1.0)], []]) == 3.5


def test_a_band_is_the_range_over_the_runs() -> None:
    assert band([[(1.0, 1.0), (2.0, 4.0)], [(1.0, 3.0), (2.0, 2.0)]]) == [(1.0, 1.0, 2.0, 3.0), (2.0, 2.0, 3.0, 4.0)]
    apart = band([[(0.0, 1.0), (2.0, 1.0)], [(1.0, 2.0), (3.0, 2.0)]], places=3)
    np.testing.assert_allclose(apart, [(1.0, 1.0, 1.5, 2.0), (1.5, 1.0, 1.5, 2.0), (2.0, 1.0, 1.5, 2.0)])
    assert band([]) == band([[(0.0, 1.0)], [(1.0, 1.0)]]) == []


def test_jobs_share_cores_and_gpus() -> None:
    assert environment(0, 2, 2, [], None) == {"OMP_NUM_THREADS": "1"}
    assert environment(0, 1, 8, [], None) == {"OMP_NUM_THREADS": "8"}
    assert environment(0, 3, 2, [], None) == {"OMP_NUM_THREADS": "1"}
    assert environment(0, 1, 8, [], "3") == {"OMP_NUM_THREADS": "3"}
    assert [environment(slot, 4, 8, ["0", "GPU-b"], None)["CUDA_VISIBLE_DEVICES"] for slot in range(4)] == [
        "0",
        "GPU-b",
        "0",
        "GPU-b",
    ]


# --- reports of results that were written by hand ---


def study_of(**changes: Any) -> Study:
    tables: dict[str, Any] = {
        "recipe": "quickstart", "seeds": [0, 1, 2], "vary": {"loss.alpha": [0.5, 1], "generator.steps": [1, 2]},
    }  # fmt: skip
    return checked(tables | changes, "study")


def write_run(cell: Cell, values: list[float], steps: int, seconds: float = 10.0, slope: float = 1.0) -> None:
    """What a run leaves, as far as a report reads it: the final row, teacher and floor, a curve of three measurements."""
    record(cell)
    run = cell.folder / "00000-quickstart"
    run.mkdir()
    (cell.folder / "attempt.json").write_text(
        json.dumps({"exit": 0, "error": "", "seconds": 3.0, "threads": "1", "made_with": {"cpu": "x"}})
    )
    rows = [
        {"name": "generator", "evaluations": steps, "values": {"frechet": values, "classes": [10.0]}},
        {"name": "teacher", "evaluations": 35, "values": {"frechet": [0.2, 0.3, 0.25]}},
        {"name": "teacher", "evaluations": 9, "values": {"frechet": [90.0, 99.0, 93.0]}},
        {"name": "floor", "evaluations": None, "values": {"frechet": [0.25, 0.26, 0.24]}},
    ]
    (run / "quality.json").write_text(json.dumps({"columns": {"frechet": ["frechet", "classes"]}, "rows": rows}))
    lines = [{"kimg": k, "train_seconds": seconds * k / 3, "results": {"frechet": 8.0 * 2 ** (-slope * k)}} for k in (1, 2, 3)]
    (run / "metric-frechet.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    last = {"Progress/kimg": {"mean": 88.0}, "Timing/train_sec": {"mean": seconds}}
    (run / "stats.jsonl").write_text(json.dumps(last) + "\n")


def report(study: Study, folder: Path, plugins: Plugins) -> Summary:
    return conduct(study, folder, plugins, cell_command, typed="distill study", report_only=True)


def ratio_of(labels: tuple[str, ...], seed: int) -> float:
    """Made-up distances: alpha 1 has half of alpha ½; two steps have 0.9 of one, but only by chance."""
    noise = {0: 1.0, 1: 1.3, 2: 0.8}[seed]
    return noise * {"0.5": 2.0, "1": 1.0}[labels[0]] * {"1": 1.0, "2": (0.6, 1.1, 1.1)[seed]}[labels[1]] * (1 + 0.01 * seed)


@pytest.fixture
def written(tmp_path: Path, plugins: Plugins) -> Path:
    """A study's folder with a result for every cell: one has failed, one has diverged."""
    folder = tmp_path / "study"
    for cell in prepare(study_of(), folder, plugins, cell_command):
        labels = cell.combination.labels
        if (labels, cell.seed) == (("1", "2"), 2):
            record(cell)
            (cell.folder / "attempt.json").write_text(json.dumps({"exit": 1, "error": "no | space left", "seconds": 1.0}))
            continue
        mean = math.nan if (labels, cell.seed) == (("0.5", "1"), 1) else ratio_of(labels, cell.seed)
        write_run(cell, [0.9 * mean, 1.1 * mean], int(labels[1]), seconds=10.0 * int(labels[1]))
    return folder


def test_a_report_holds_means_tests_and_what_was_lost(written: Path, plugins: Plugins, capsys: pytest.CaptureFixture[str]) -> None:
    found = report(study_of(), written, plugins)
    group = found.group(("1", "1"))
    assert group.values["frechet"] == pytest.approx({s: ratio_of(("1", "1"), s) for s in (0, 1, 2)})
    assert group.mean("frechet") == pytest.approx(np.mean([ratio_of(("1", "1"), s) for s in (0, 1, 2)]))
    assert group.deviation("frechet") == pytest.approx(np.std([ratio_of(("1", "1"), s) for s in (0, 1, 2)], ddof=1))
    by = {(c.axis, c.at): c for c in found.comparisons}
    assert set(by) == {
        ("loss.alpha", None), ("loss.alpha", ("1",)), ("loss.alpha", ("2",)),
        ("generator.steps", None), ("generator.steps", ("0.5",)), ("generator.steps", ("1",)),
    }  # fmt: skip
    alpha = by["loss.alpha", ("1",)]
    assert (alpha.variant, alpha.reference, alpha.effect.n) == ("1", "0.5", 2), "the diverged seed is in no pair"
    assert alpha.effect.estimate == pytest.approx(0.5)
    assert by["loss.alpha", None].effect.n == 3
    assert by["loss.alpha", None].shown
    assert not by["generator.steps", None].shown
    text = (written / "table.md").read_text()
    assert "| 0.5 | 1 | 1.82 ± 0.26 | 2 | 88 | 10 | 1 of 3 diverged |" in text.replace("**", "")
    assert "1 of 3 failed" in text
    assert "failed: no | space left" in capsys.readouterr().out


def test_csv_json_and_page_say_the_same(written: Path, plugins: Plugins) -> None:
    found = report(study_of(), written, plugins)
    with open(written / "results.csv") as file:
        lines = list(csv.DictReader(file))
    assert len(lines) == 12
    assert [line["status"] for line in lines].count("done") == 10
    (lost,) = (line for line in lines if line["status"] == "failed")
    assert (lost["loss.alpha"], lost["generator.steps"], lost["seed"], lost["error"]) == ("1", "2", "2", "no | space left")
    first = next(line for line in lines if (line["loss.alpha"], line["generator.steps"], line["seed"]) == ("1", "1", "0"))
    assert float(first["frechet"]) == pytest.approx(1.0)
    content = json.loads((written / "study.json").read_text(), parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
    assert len(content["cells"]) == 12
    assert content["comparisons"][0]["effect"]["estimate"] == pytest.approx(found.comparisons[0].effect.estimate)
    page = (written / "index.html").read_text()
    for row in re.findall(r"[\d.]+ ± [\d.]+", (written / "table.md").read_text()):
        assert row in page
    assert "no | space left" in page
    assert not re.findall(r"(?:src|href)=\"(?!data:)", page), "everything is inside"
    assert page.count('class="light"') == page.count('class="dark"') == 3
    assert {p.name for p in written.glob("*.png")} == {f"frechet-{over}.png" for over in ("kimg", "time", "evaluations")}


def test_text_from_outside_cannot_become_a_part_of_the_page(written: Path, plugins: Plugins) -> None:
    (path,) = (p for p in written.glob("cells/*/*/attempt.json") if json.loads(p.read_text())["exit"])
    path.write_text(json.dumps({"exit": 1, "error": "<script>alert(1)</script>", "seconds": 1.0}))
    report(study_of(about="a <b>bold</b> claim"), written, plugins)
    page = (written / "index.html").read_text()
    assert "<script" not in page and "<b>" not in page
    assert "&lt;script&gt;" in page


def test_equal_time_reads_every_run_where_the_shortest_ends(tmp_path: Path, plugins: Plugins) -> None:
    """Two steps take twice the time: at ten seconds they are at half of their curve."""
    study = study_of(equal="time", seeds=[0, 1], vary={"generator.steps": [1, 2]})
    for cell in prepare(study, tmp_path, plugins, cell_command):
        steps = int(cell.combination.labels[0])
        write_run(cell, [1.0], steps, seconds=10.0 * steps)
    found = report(study, tmp_path, plugins)
    assert found.time == pytest.approx(10.0)
    assert found.group(("1",)).mean("frechet") == pytest.approx(8 * 2**-3)
    assert found.group(("2",)).mean("frechet") == pytest.approx(8 * 2**-1.5)  # between two measurements
    assert "after 10 s of training" in (tmp_path / "table.md").read_text()


def test_teachers_are_compared_over_sampling_seeds(tmp_path: Path, plugins: Plugins) -> None:
    study = study_of(measure="teacher", seeds=[0], vary={})
    (cell,) = prepare(study, tmp_path, plugins, cell_command)
    write_run(cell, [1.0], 1)
    found = report(study, tmp_path, plugins)
    assert found.axes == (("evaluations", ("35", "9")),)
    assert found.group(("9",)).values["frechet"] == {0: 90.0, 1: 99.0, 2: 93.0}
    (compared,) = found.comparisons
    assert (compared.variant, compared.reference, compared.effect.n) == ("9", "35", 3)
    assert compared.effect.estimate == pytest.approx(np.exp(np.mean(np.log([450, 330, 372]))))
    with pytest.raises(SettingError, match="teachers are not trained here"):
        report(study_of(measure="teacher", seeds=[0], vary={}, equal="time"), tmp_path, plugins)


def test_an_axis_may_be_named_evaluations(tmp_path: Path, plugins: Plugins) -> None:
    study = study_of(seeds=[0, 1], vary={"evaluations": {"1": {"generator.steps": 1}, "2": {"generator.steps": 2}}})
    for cell in prepare(study, tmp_path, plugins, cell_command):
        write_run(cell, [1.0], int(cell.combination.labels[0]))
    report(study, tmp_path, plugins)
    text = (tmp_path / "table.md").read_text()
    assert "over training seeds" in text and "| evaluations | frechet | n | kimg | training, s |" in text
    assert (tmp_path / "frechet-kimg.png").exists()


def test_a_changed_study_does_not_take_over_the_results_of_another(written: Path, plugins: Plugins) -> None:
    before = {p: p.read_bytes() for p in written.rglob("*") if p.is_file() and p.name != "study.lock"}
    with pytest.raises(SettingError, match=r"has runs with other settings: \[train\] lr: 0\.0005 -> 0\.002 \(12 cells\)"):
        report(study_of(set=["train.lr=2e-3"]), written, plugins)
    assert before == {p: p.read_bytes() for p in written.rglob("*") if p.is_file() and p.name != "study.lock"}
    wider = study_of(vary={"loss.alpha": [0.5, 1, 2], "generator.steps": [1, 2]}, seeds=[0, 1, 2, 3])
    found = report(wider, written, plugins)  # more values and seeds are no change of the others
    assert found.group(("1", "1")).values["frechet"].keys() == {0, 1, 2}
    assert "3 of 4 not run" not in (written / "table.md").read_text()
    assert "1 of 4 not run" in (written / "table.md").read_text()


def test_plain_values_become_strict_json() -> None:
    assert strict({1: [math.nan, (math.inf, 2)], "a": None}) == {"1": ["nan", ["inf", 2]], "a": None}


# --- the command's errors ---


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ["--recipe", "quickstart", "--vary", "loss.alhpa=1"],
            "--vary loss.alhpa=1: [loss] alhpa is unknown (did you mean 'alpha'?)",
        ),
        (
            ["--recipe", "quickstart", "--vary", "loss.alpha=one"],
            "--vary loss.alpha=one: [loss] alpha = 'one': must be a valid number",
        ),
        (["--recipe", "quickstart", "--vary", "loss.alpha="], "--vary loss.alpha=: a value is missing"),
        (["--recipe", "quickstart", "--vary", "alpha=1"], "--vary alpha=1: write it as table.key=value,value,…"),
        (["--recipe", "quickstart", "--seeds", "4-1"], "--seeds 4-1: 4-1 is empty; write the lower number first"),
        (["--recipe", "quickstart", "--set", "train.seed=1"], "--set train.seed=1: a study has seeds of its own"),
        (["--recipe", "quickstart", "--vary", "train.lr=1,2", "--set", "train.lr=3"], "--set train.lr=3: train.lr varies this key"),
        (["--recipe", "nothing"], "nothing: no such recipe"),
        (["--recipe", "teachers/digits_d128"], "this recipe is run with: distill pretrain"),
        (["--recipe", "quickstart", "--vary", "eval.metrics=[]"], "has no metrics, so a study has nothing to compare"),
        (["--recipe", "quickstart", "--vary", "loss.alpha=1,1.0"], "--vary: loss.alpha has 1 twice"),
        (
            ["--recipe", "quickstart", "--vary", "noise.D=5"],
            "--vary noise.D: teacher.source=digits_d5: [teacher] source = 'digits_d5'",
        ),
        (["--recipe", "quickstart", "--vary", "train.seed=1"], "--vary: train.seed: a study has seeds of its own"),
        (["no_such_study"], "no_such_study: no such study"),
        (["alpha", "--report-only"], "--outdir runs/study-alpha: has no runs of this study to report"),
    ],
)
def test_mistakes_are_one_line_and_leave_nothing(
    words: list[str], message: str, here: Here, tmp_path: Path, monkeypatch: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    assert message in error_line(here("study", *words))
    assert not list(tmp_path.iterdir())


def test_all_cells_recipes_are_checked_and_all_errors_said(here: Here, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    done = here("study", "--recipe", "quickstart", "--vary", "noise.D=5,128,6", "--vary", "train.batch=0,128")
    assert done.returncode == 1
    assert len(done.stderr.splitlines()) == 3, done.stderr
    for text in ("digits_d5", "digits_d6", "train.batch=0"):
        assert text in done.stderr


def test_two_combinations_that_are_the_same_run_are_refused(plugins: Plugins, tmp_path: Path) -> None:
    study = study_of(vary={"m": {"a": {"train.lr": 5e-4}, "b": {}}})
    with pytest.raises(SettingError, match="m-a and m-b are the same run"):
        prepare(study, tmp_path, plugins, cell_command)


def test_dry_run_prints_commands_that_a_user_could_type(here: Here, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    done = here("study", "--recipe", "quickstart", "--vary", "loss.use=ipfm,sid", "--seeds", "7", "--dry-run")
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [
        f"distill --recipe quickstart --loss {loss} --seed 7 --outdir runs/study-quickstart-use/cells/use-{loss}/seed-7" for loss in ("ipfm", "sid")
    ] + ["# 2 runs; the study's folder is runs/study-quickstart-use"]  # fmt: skip
    assert not list(tmp_path.iterdir())
    for line in done.stdout.splitlines()[:2]:
        assert here(*line.split()[1:], "--dry-run").returncode == 0


SHIPPED = sorted((ROOT / "recipes" / "studies").glob("*.toml"))


@pytest.mark.parametrize("path", SHIPPED, ids=lambda p: p.stem)
def test_shipped_studies_are_valid_and_say_what_they_ask(path: Path) -> None:
    study = read_study(path.stem)
    assert study == read_study(str(path))
    assert study.about


@pytest.mark.parametrize("path", SHIPPED, ids=lambda p: p.stem)
def test_all_runs_of_shipped_studies_have_a_valid_recipe(path: Path, plugins: Plugins, tmp_path: Path) -> None:
    cells = prepare(read_study(path.stem), tmp_path, plugins, cell_command)
    assert len({c.name for c in cells}) == len({c.folder for c in cells}) == len(cells) >= 3
