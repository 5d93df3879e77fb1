"""The page of a run and of several: what is in it, and that it works in a browser."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from registry import UserError, distill, pretrain
from registry.measure.rows import in_text
from registry.plugins.loading import load_plugins
from registry.report.courses import charts
from registry.report.history import read_history, unlike_defaults
from registry.report.render import distinct_names, page, write_page
from tests.conftest import error_line

Here = Callable[..., subprocess.CompletedProcess[str]]
BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
SETS = {
    "warmup.kimg": 0.064, "warmup.pairs": 32, "warmup.student_kimg": 0.032, "train.duration_kimg": 0.096, "train.batch": 32,
    "log.tick_kimg": 0.032, "log.snapshot_ticks": 1, "log.grid": 3, "eval.samples": 60, "eval.snapshot_samples": 20, "eval.repeats": 2,
    "eval.teacher_steps": [2],
}  # fmt: skip


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two real runs of other rates."""
    outdir = tmp_path_factory.mktemp("runs")
    return [distill("quickstart", sets=SETS | {"train.lr": lr}, outdir=outdir).folder for lr in (5e-4, 1e-3)]


def numbers(html: str) -> Any:
    found = re.search(r'<script id="numbers" type="application/json">(.*?)</script>', html, re.S)
    assert found
    return json.loads(found[1])


def test_every_run_leaves_its_page(folders: list[Path]) -> None:
    html = (folders[0] / "report.html").read_text()
    assert (
        "The teacher digits_d128, distilled with the loss ipfm into a generator of one evaluation: finished at 0.192 kimg" in html
    )
    for caption in ("real images", "teacher, 35 evaluations", "teacher, 1 evaluation", "generator"):
        assert f"<figcaption>{caption}</figcaption>" in html, caption
    shown = len(list(folders[0].glob("fakes_*.png")))
    assert html.count("data-kimg=") == shown >= 2
    assert f'max="{shown - 1}"' in html
    assert len(re.findall(r"<img [^>]*alt=\"[^\"]+\"", html)) == html.count("<img ")
    assert "[train] batch" in html
    assert "floor: real images" in html


def test_a_run_that_ends_after_its_last_tick(folders: list[Path], tmp_path: Path) -> None:
    other = Path(shutil.copytree(folders[0], tmp_path / "run"))
    lines = (other / "stats.jsonl").read_text().splitlines(keepends=True)
    (other / "stats.jsonl").write_text("".join(lines[:-1]))
    run = read_history(other)
    assert max(line["Progress/kimg"]["mean"] for line in run.statistics) < run.kimg == 0.192
    assert run.state == "finished"


def test_the_page_needs_no_network_and_is_small(folders: list[Path]) -> None:
    html = (folders[0] / "report.html").read_text()
    assert not re.findall(r"(?:src|href)=[\"'](?!data:)", html)
    assert "@import" not in html
    without = re.sub(r"data:image/png;base64,[A-Za-z0-9+/=]+", "", html)
    assert len(without) < 200_000


def test_curves_are_those_of_the_files(folders: list[Path]) -> None:
    html = (folders[0] / "report.html").read_text()
    run = read_history(folders[0])
    titles = [chart.title for chart in charts([run], [run.name])]
    assert titles[:2] == ["frechet", "sliced_w2"]
    assert {"The generator's loss", "The student's loss", "The warm-up's loss", "Gap between teacher and student", "Speed"} <= {
        *titles
    }
    assert all(f"<h3>{title.replace(chr(39), '&#39;')}" in html for title in titles)
    drawn = numbers(html)["charts"]
    assert len(drawn) == len(titles)
    loss = drawn[titles.index("The student's loss")]["curves"][0]
    lines = [line for line in run.statistics if "Loss/student" in line]
    assert loss["kimg"] == [line["Progress/kimg"]["mean"] for line in lines]
    assert loss["y"] == [line["Loss/student"]["mean"] for line in lines]
    assert loss["time"] == sorted(loss["time"])
    assert [name for name, _ in drawn[0]["levels"]] == ["teacher, 3 evaluations", "floor"]


def test_several_runs_on_one_page(folders: list[Path], here: Here, tmp_path: Path) -> None:
    done = here("report", *folders, "--output", tmp_path / "both.html")
    assert done.returncode == 0, done.stderr
    html = (tmp_path / "both.html").read_text()
    assert "What differs between the recipes" in html
    rows = re.findall(r"<code>(\[[^<]+)</code></td><td>([^<]*)</td><td>([^<]*)</td>", html)
    assert rows == [("[train] lr", "0.0005", "0.001")]
    assert [curve["label"] for curve in numbers(html)["charts"][0]["curves"]] == [folder.name for folder in folders]
    assert html.count("<figcaption>real images</figcaption>") == 1
    assert len(re.findall(r'<td class="name">teacher</td>', html)) == 1  # it is the same for both


def test_two_losses_and_two_teachers_on_one_page(folders: list[Path], tmp_path: Path) -> None:
    """Each run is compared with its own teacher: rows, grids and lines have the teacher's name."""
    other = distill("quickstart", loss="sid", sets=SETS, outdir=folders[0].parent).folder
    html = write_page([folders[0], other], tmp_path / "both.html").read_text()
    names = [f"{folders[0].name} (ipfm)", f"{other.name} (sid)"]
    drawn = numbers(html)
    assert drawn["names"] == names
    assert [curve["label"] for curve in drawn["charts"][0]["curves"]] == names
    levels = ["floor", "teacher digits_d128, 3 evaluations", "teacher digits_dinf, 3 evaluations"]
    assert sorted(name for name, _ in drawn["charts"][0]["levels"]) == levels
    assert "Dashed: what the final table has of the teacher and of real images." in html
    assert re.findall(r'<td class="name">([^<]*)</td><td>(\d*)</td>', html) == [
        (names[0], "1"), (names[1], "1"), ("teacher digits_d128", "3"), ("teacher digits_dinf", "3"), ("floor: real images", ""),
    ]  # fmt: skip
    assert re.findall("<figcaption>([^<]*)</figcaption>", html) == [
        "real images",
        *(f"teacher digits_{D}, {many}" for D in ("d128", "dinf") for many in ("35 evaluations", "1 evaluation")),
        *names,
    ]


def test_the_page_of_a_teacher_in_training(tmp_path: Path) -> None:
    """Real images beside the teacher's, and a metric at every snapshot; its network is the teacher's file so far."""
    sets = {
        "train.batch": 16, "train.duration_kimg": 0.064, "log.tick_kimg": 0.016, "log.snapshot_ticks": 2, "log.grid": 3,
        "eval.samples": 30, "eval.repeats": 1, "eval.snapshot_samples": 20, "eval.teacher_steps": [2],
    }  # fmt: skip
    pretrain("teachers/digits_d128", sets=sets, outdir=tmp_path, save=tmp_path / "mine.pt")
    (folder,) = (path for path in tmp_path.iterdir() if path.is_dir())
    html = (folder / "report.html").read_text()
    assert "trained on digits: finished at 0.064 kimg" in html
    assert re.findall("<figcaption>([^<]*)</figcaption>", html) == ["real images", "teacher"]
    assert "generator" not in html.partition("<h2>Images</h2>")[2].partition("<h2>Recipe</h2>")[0]
    measured = [json.loads(line) for path in folder.glob("metric-*.jsonl") for line in path.read_text().splitlines()]
    assert measured
    assert {line["kimg"] for line in measured} == {line["kimg"] for line in measured if (folder / line["snapshot_pkl"]).is_file()}
    levels = numbers(html)["charts"][0]["levels"]
    assert [name for name, _ in levels] == ["floor"]


def test_the_parts_of_a_run_are_marked(folders: list[Path]) -> None:
    begun = numbers((folders[0] / "report.html").read_text())["marks"]
    assert [(mark["name"], mark["kimg"]) for mark in begun] == [("student alone", 0.064), ("game", 0.096)]
    assert 0 < begun[0]["time"] <= begun[1]["time"]
    assert numbers(page([read_history(folder) for folder in folders]))["marks"] == []


def test_names_that_tell_runs_apart(folders: list[Path], tmp_path: Path) -> None:
    for name in ("a", "b"):
        shutil.copytree(folders[0], tmp_path / name / folders[0].name)
    runs = [read_history(tmp_path / name / folders[0].name) for name in ("a", "b")]
    assert distinct_names(runs) == ["a", "b"]
    assert distinct_names([read_history(folder) for folder in folders]) == [folder.name for folder in folders]


def test_a_run_that_was_stopped_and_strange_files(folders: list[Path], tmp_path: Path) -> None:
    folder = tmp_path / "00007-<b>&"
    shutil.copytree(folders[0], folder)
    for name in ("quality.json", "best.json", "report.html"):
        (folder / name).unlink()
    with open(folder / "stats.jsonl", "a") as file:
        file.write('{"Loss/student": {"mean": NaN}, "Progress/kimg": {"mean": 0.2}}\n{"cut off')
    (folder / "metric-strange.jsonl").write_text("[1, 2]\n\n")
    html = write_page([folder], tmp_path / "page.html").read_text()
    assert "stopped at 0.2 of 0.192 kimg" in html
    assert "<b>" not in html
    assert numbers(html)["names"] == ["00007-<b>&"]


@pytest.mark.parametrize(
    ("make", "problem"), [(False, "no such folder"), (True, "no run folder: it has neither recipe.toml nor stats.jsonl")]
)
def test_no_run(make: bool, problem: str, here: Here, tmp_path: Path) -> None:
    if make:
        (tmp_path / "empty").mkdir()
    assert problem in error_line(here("report", tmp_path / "empty"))
    assert not list(tmp_path.rglob("report.html"))


def test_what_is_unlike_the_defaults(folders: list[Path]) -> None:
    found = unlike_defaults(read_history(folders[0]), load_plugins())
    assert {("train", "batch"), ("train", "lr"), ("noise", "t_max"), ("log", "grid")} <= found
    assert not {("train", "seed"), ("train", "eps"), ("loss", "alpha"), ("generator", "steps")} & found


def test_a_single_value_has_no_spread() -> None:
    assert in_text([1.25]) == "1.25"
    assert in_text([1.0, 3.0]) == "2 ± 1.4"
    assert in_text([10.0, 10.0]) == "10"


def test_a_page_that_cannot_be_made_ends_no_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("registry.runs.outputs.write_report", lambda folder: 1 / 0)
    sets = {"warmup.kimg": 0, "train.batch": 8, "train.duration_kimg": 0.008, "eval.metrics": [], "log.grid": 1}
    result = distill("quickstart", sets=sets, outdir=tmp_path)
    assert "WARNING the page of the run cannot be made: division by zero" in (result.folder / "log.txt").read_text()
    with pytest.raises(UserError, match="no such folder"):
        read_history(tmp_path / "nothing")


TRIED = """<script>
const said = [];
addEventListener("error", (event) => said.push(event.message));
addEventListener("load", () => {
  const slider = document.querySelector(".snapshots input");
  const visible = () => [...slider.closest(".snapshots").querySelectorAll("img")].findIndex((image) => !image.hidden);
  const before = visible();
  slider.focus();
  slider.value = 0;
  slider.dispatchEvent(new Event("input", { bubbles: true }));
  const after = visible();
  const label = slider.getAttribute("aria-valuetext");
  const axis = () => document.querySelector(".u-legend .u-series .u-label").textContent;
  const first = axis();
  const values = [...document.querySelectorAll(".u-legend .u-value")].map((cell) => cell.textContent);
  document.querySelector("input[name=against][value=time]").click();
  const found = {
    values: values.filter((text) => text && text !== "--").length > values.length / 2,
    before, after, label, first, second: axis(), plots: document.querySelectorAll(".uplot canvas").length, errors: said,
    focused: document.activeElement === slider, wide: document.documentElement.scrollWidth <= innerWidth,
  };
  document.title = JSON.stringify(found);
});
</script>"""


@pytest.mark.skipif(BROWSER is None, reason="needs chromium")
@pytest.mark.parametrize(("width", "options"), [(1280, []), (420, []), (1280, ["--blink-settings=preferredColorScheme=0"])])
def test_the_page_in_a_browser(width: int, options: list[str], folders: list[Path], tmp_path: Path) -> None:
    html = page([read_history(folder) for folder in folders])
    path = tmp_path / "page.html"
    path.write_text(html.replace("<head>", f"<head>{TRIED}", 1))
    command = [str(BROWSER), "--headless", "--no-sandbox", "--disable-gpu", f"--window-size={width},900", "--virtual-time-budget=3000",
               f"--user-data-dir={tmp_path / 'profile'}", *options, "--dump-dom", path.as_uri()]  # fmt: skip
    dom = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout
    title = re.search(r"<title>(.*?)</title>", dom, re.S)
    assert title
    found = json.loads(title[1].replace("&quot;", '"').replace("&amp;", "&"))
    last = len(list(folders[0].glob("fakes_*.png"))) - 1
    assert found["errors"] == []
    assert (found["before"], found["after"], found["label"]) == (last, 0, "0 thousand images")
    assert (found["first"], found["second"]) == ("kimg", "training")
    assert found["plots"] == len(charts([read_history(folder) for folder in folders], ["a", "b"]))
    assert found["focused"] and found["values"]
    assert found["wide"]


def test_a_picture_that_is_no_grid_is_left_out(folders: list[Path], tmp_path: Path) -> None:
    """One of 32 GB was read whole, as far as the memory went."""
    folder = tmp_path / "00007-large"
    shutil.copytree(folders[0], folder)
    for name in ("real.png", "fakes_init.png"):
        with open(folder / name, "ab") as file:
            file.truncate(1 << 35)
    assert {"real", "fakes_init"}.isdisjoint(read_history(folder).pictures)
    assert write_page([folder], tmp_path / "page.html").stat().st_size < 5 << 20


@pytest.mark.parametrize("name", ["recipe.toml", "stats.jsonl"])
@pytest.mark.parametrize("kind", ["a device", "a pipe", "a large file"])
def test_what_is_no_file_of_a_run_is_not_waited_for(name: str, kind: str, tmp_path: Path, here: Here) -> None:
    run = tmp_path / "runs" / "00000-short"
    run.mkdir(parents=True)
    for file in ("recipe.toml", "stats.jsonl"):
        (run / file).write_text("")
    (run / name).unlink()
    if kind == "a device":
        (run / name).symlink_to("/dev/zero")
    elif kind == "a pipe":
        os.mkfifo(run / name)
    else:
        with open(run / name, "wb") as file_:
            file_.truncate(3 << 30)
    done = here("report", run)
    assert done.returncode in (0, 1) and "Traceback" not in done.stderr and "bug" not in done.stderr
    assert here("runs", tmp_path / "runs").returncode in (0, 1)


def test_a_recipe_with_control_characters_is_shown_without(tmp_path: Path) -> None:
    (tmp_path / "recipe.toml").write_text('[loss]\nuse = "\\u001b[31mred\\u0007"\n[eval]\nrepeats = "\\u0085"\n')
    write_page([tmp_path], tmp_path / "report.html")
    html = (tmp_path / "report.html").read_text()
    assert "?[31mred?" in html and "\x1b" not in html and "\x07" not in html
