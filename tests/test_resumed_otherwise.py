"""A run is resumed from elsewhere than its end, or with other settings: what its folder says is true of what it holds."""

from __future__ import annotations

import json
import math
import os
import re
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from registry.core.errors import Interrupted, UserError
from registry.files.bounds import STATE
from registry.files.formats import load_network, save_network
from registry.files.plain import load, save
from registry.measure.comparison import read_results
from registry.recipe.texts import read_tables
from registry.runs.checkpoints import learned_otherwise
from registry.runs.distill import distill
from registry.runs.folder import RunFolder
from registry.runs.outputs import measure_snapshot
from registry.runs.pretrain import pretrain
from tests.conftest import grey_images, tiny_network
from tests.test_branches import METRICS, again, finished, run

__all__ = ["finished", "run"]
BOTH = 'eval.metrics=["sliced_wasserstein", "frechet"]'
PRETRAINED = {
    "train.duration_kimg": 2.048, "train.batch": 256, "log.tick_kimg": 1.024, "log.state_ticks": 1, "log.keep_states": 0, "eval.samples": 64,
    "eval.repeats": 1, "eval.snapshot_samples": 64, "network.model_channels": 16, "network.num_blocks": 1,
}  # fmt: skip


def kimgs(run: Path, metric: str = "sliced_wasserstein") -> list[int]:
    return [round(json.loads(line)["kimg"]) for line in (run / f"metric-{metric}.jsonl").read_text().splitlines()]


def test_a_last_snapshot_is_measured_though_an_older_table_is_there(
    finished: Path, run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The last state was damaged, and the run was then stopped while it measured the snapshot of its end again."""
    best = [path.read_bytes() for path in (run / "best.json", run / "network-snapshot-best.pkl")]

    def stopped(folder: RunFolder, metrics: Any, sample: Any, config: Any, file: Path, nimg: int, trained: float) -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        measure_snapshot(folder, metrics, sample, config, file, nimg, trained)

    (run / "training-state-000003.pt").write_bytes(b"")
    monkeypatch.setattr("registry.runs.distill.measure_snapshot", stopped)
    with pytest.raises(Interrupted):
        again(finished, run, "auto")
    assert (run / "quality.json.later").is_file() and not (run / "quality.json").exists()
    monkeypatch.undo()
    again(finished, run, "auto", BOTH)
    assert kimgs(run) == [1, 2, 3] and kimgs(run, "frechet") == [3]
    assert best == [path.read_bytes() for path in (run / "best.json", run / "network-snapshot-best.pkl")]


@pytest.mark.parametrize("sets", [(), ("train.lr=0.002",)])
def test_a_run_that_goes_on_has_no_table_until_its_end(
    sets: tuple[str, ...], finished: Path, run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """That of its former end would be believed to be its own, perhaps beside other settings."""
    before = json.loads((run / "quality.json").read_text())
    monkeypatch.setattr("registry.runs.distill.measure_snapshot", lambda *_: os.kill(os.getpid(), signal.SIGTERM))
    with pytest.raises(Interrupted):
        again(finished, run, "auto", "train.duration_kimg=9.216", *sets)
    assert json.loads((run / "quality.json.later").read_text()) == before and (run / "quality.txt.later").is_file()
    with pytest.raises(UserError, match="its run has not come to its end"):
        read_results(str(run))
    with pytest.raises(UserError, match="cannot be read: No such file"):
        read_results(str(run / "quality.jsn"))
    monkeypatch.undo()
    again(finished, run, "auto", "train.duration_kimg=4.096", *sets)
    assert read_results(str(run))[0].row.name == "generator"


@pytest.mark.parametrize("how", ["removed", "another"])
def test_the_best_snapshot_is_the_one_that_is_noted(how: str, finished: Path, run: Path) -> None:
    """Whoever was killed between the two files left the one of another snapshot."""
    metric, copy = run / "metric-sliced_wasserstein.jsonl", run / "network-snapshot-best.pkl"
    first, *others = map(json.loads, metric.read_text().splitlines())
    first["results"] |= {"sliced_w2": 0.0, "other": math.nan}  # no later one will be better
    del first["digest"]
    metric.write_text("".join(json.dumps(line) + "\n" for line in (first, *others)))
    again(finished, run, "auto", "train.duration_kimg=4.096")
    assert json.loads((run / "best.json").read_text())["kimg"] == first["kimg"]
    assert copy.read_bytes() == (run / first["snapshot_pkl"]).read_bytes()
    if how == "removed":
        copy.unlink()
    else:
        copy.write_bytes((run / others[0]["snapshot_pkl"]).read_bytes())
    again(finished, run, "auto", "train.duration_kimg=5.12")
    assert json.loads((run / "best.json").read_text())["kimg"] == first["kimg"]
    assert copy.read_bytes() == (run / first["snapshot_pkl"]).read_bytes()


def test_a_last_snapshot_that_is_gone_is_made_again(finished: Path, run: Path) -> None:
    before = {path.name: path.read_bytes() for path in run.glob("network-snapshot-*")}
    last = max(name for name in before if "best" not in name)
    (run / last).unlink()
    again(finished, run, "auto")
    assert {path.name: path.read_bytes() for path in run.glob("network-snapshot-*")} == before and kimgs(run) == [1, 2, 3]


def test_a_finished_run_keeps_the_recipe_that_it_was_trained_with(finished: Path, run: Path) -> None:
    before = read_tables(run / "recipe.toml")
    sets = ("train.seed=9", "train.glr=0.3", "train.duration_kimg=1", "loss.alpha=0.7", "eval.samples=50", BOTH)
    again(finished, run, "auto", *sets)
    now = read_tables(run / "recipe.toml")
    assert {name: table for name, table in now.items() if name not in ("log", "eval")} == {
        name: table for name, table in before.items() if name not in ("log", "eval")
    }
    assert now["eval"]["samples"] == 50 and before["eval"]["samples"] != 50
    assert "glr: 0.001 -> 0.3" in (run / "log.txt").read_text()
    state = torch.load(run / "training-state-000003.pt", weights_only=True)
    assert state["recipe"]["train"] == now["train"]


def test_a_run_that_ends_before_its_time_says_so(finished: Path, run: Path) -> None:
    again(finished, run, run / "training-state-000002.pt", "train.duration_kimg=1")
    assert read_tables(run / "recipe.toml")["train"]["duration_kimg"] == 2.048
    assert json.loads((run / "quality.json").read_text())["nimg"] == 2048 and (run / "quality.json.later").is_file()


def test_what_was_learned_otherwise_stands_in_the_table_for_good(finished: Path, run: Path) -> None:
    again(finished, run, run / "training-state-000001.pt", "train.glr=0.01", "train.duration_kimg=2.048")
    first = json.loads((run / "quality.json").read_text())["changed"]
    assert first == ["at 1.024 kimg: [train] glr: 0.001 -> 0.01"]
    again(finished, run, "auto")
    both = [*first, "at 2.048 kimg: [train] glr: 0.01 -> 0.001"]
    assert json.loads((run / "quality.json").read_text())["changed"] == both
    assert read_tables(run / "recipe.toml") == read_tables(finished / "runs" / run.name / "recipe.toml") | {
        "log": read_tables(run / "recipe.toml")["log"]
    }
    again(finished, run, "auto", "train.seed=3")
    assert json.loads((run / "quality.json").read_text())["changed"] == both, "a finished run learns nothing more"
    again(finished, run, run / "training-state-000001.pt")
    assert "changed" not in json.loads((run / "quality.json").read_text())


def test_another_length_is_another_branch_if_the_rates_fall_towards_its_end(finished: Path, run: Path) -> None:
    again(finished, run, run / "training-state-000002.pt", "train.lr_decay=1", "train.duration_kimg=4.096")
    (run / "training-state-000004.pt").unlink()
    before = (run / "network-snapshot-1.000000-000004.pkl").read_bytes()
    again(finished, run, "auto", "train.lr_decay=1", "train.duration_kimg=5.12")
    assert (run / "network-snapshot-1.000000-000004.pkl.later").read_bytes() == before
    assert (run / "network-snapshot-1.000000-000004.pkl").read_bytes() != before


def test_a_users_teacher_in_the_folder_of_a_generator_stays(finished: Path, run: Path) -> None:
    save_network(run / "teacher.pt", "denoiser", tiny_network(), {"D": 128.0, "nimg": 200_000})
    before = (run / "teacher.pt").read_bytes()
    again(finished, run, run / "training-state-000001.pt", "train.glr=0.01")
    assert (run / "teacher.pt").read_bytes() == before


def test_the_best_of_snapshots_of_one_name_stays(recipe_file: Callable[..., Path], tmp_path: Path) -> None:
    """They share a name within a thousand images, and a worse one has taken the place of the best."""
    recipe = recipe_file(METRICS)
    run = distill(str(recipe), sets=["train.glr=0.05", "log.snapshot_ticks=1"], outdir=str(tmp_path / "runs")).folder
    lines = [json.loads(line) for line in (run / "metric-sliced_wasserstein.jsonl").read_text().splitlines()]
    values = [line["results"]["sliced_w2"] for line in lines]
    best = json.loads((run / "best.json").read_text())
    assert len({line["snapshot_pkl"] for line in lines}) == 1 < len(lines) and best["value"] == min(values)
    assert values[-1] > best["value"], "the last one is the best: the test shows nothing"
    (copy,) = run.glob("network-snapshot-best.*")
    assert copy.read_bytes() != (run / lines[-1]["snapshot_pkl"]).read_bytes()


def test_lines_of_a_metric_that_is_not_measured_again_stay(finished: Path, run: Path) -> None:
    again(finished, run, run / "training-state-000001.pt", BOTH)
    assert kimgs(run, "frechet") == [1, 2, 3]
    (run / "training-state-000003.pt").unlink()
    again(finished, run, "auto", "eval.samples=60")
    assert kimgs(run, "frechet") == kimgs(run) == [1, 2, 3]
    again(finished, run, run / "training-state-000002.pt", "train.glr=0.01", 'eval.metrics=["frechet"]')
    assert kimgs(run, "frechet") == [1, 2, 3] and kimgs(run) == [1, 2]


def test_other_images_of_the_same_name_are_told_and_shown(finished: Path, tmp_path: Path) -> None:
    images = tmp_path / "images"
    images.mkdir()
    grey_images(images, 20)
    sets = (f"eval.reference={images}", "train.duration_kimg=1")
    run = distill(str(finished / "short.toml"), sets=sets, outdir=str(tmp_path / "runs")).folder
    shown = (run / "real.png").read_bytes()
    for image in images.iterdir():
        Image.new("L", (8, 8), 255).save(image)
    again(finished, run, run / "training-state-000001.pt", *sets, "train.duration_kimg=2")
    log = (run / "log.txt").read_text()
    assert re.search(
        r"WARNING sliced_wasserstein is measured otherwise than before: reference 20 images, \w+, not 20 images, \w+;", log
    )
    assert (run / "real.png").read_bytes() != shown


def test_the_teacher_of_a_branch_that_is_left_stays(tmp_path: Path) -> None:
    target = pretrain("teachers/digits_d128", sets=PRETRAINED, outdir=tmp_path)
    run, before = target.parent, target.read_bytes()
    other = pretrain(
        "teachers/digits_d128", sets=PRETRAINED | {"train.lr": 1e-5}, outdir=tmp_path, resume=run / "training-state-000001.pt"
    )
    assert other == target and target.read_bytes() != before
    assert (run / "teacher.pt.later").read_bytes() == before and (run / "teacher.quality.json.later").is_file()
    assert load_network(str(target), "denoiser")[1].table("train")["lr"] == 1e-5


TRAIN = {"glr": 1e-3, "duration_kimg": 3.0, "memory": "full", "rollbacks": 3, "timeout_minutes": 30.0, "lr_decay": 0.0, "seed": 0}


@pytest.mark.parametrize(
    ("before", "now", "told"),
    [
        (TRAIN, TRAIN | {"memory": "lean", "duration_kimg": 5.0, "threads": 4, "batch_gpu": 2}, []),
        ({"glr": 1e-3, "duration_kimg": 3.0, "lr_decay": 0.0}, TRAIN, []),  # of a version that did not know some settings
        (TRAIN, TRAIN | {"seed": 1, "precision": "bf16"}, ["[train] precision: None -> bf16", "[train] seed: 0 -> 1"]),
        (
            TRAIN | {"lr_decay": 0.5},
            TRAIN | {"lr_decay": 0.5, "duration_kimg": 5.0},
            ["[train] duration_kimg: 3.0 -> 5.0"],
        ),
        ({"lr": 1.0, "lr_rampup_kimg": 1.0}, {"lr": 1.0, "lr_rampup_kimg": 2.0}, []),
        ({"lr": 1.0, "lr_rampup_kimg": 1.0}, {"lr": 1.0, "lr_rampup_kimg": 3.0}, ["[train] lr_rampup_kimg: 2.048 -> 3.0"]),
    ],
)
def test_what_counts_as_learned_otherwise(before: dict[str, Any], now: dict[str, Any], told: list[str]) -> None:
    assert learned_otherwise({"train": before}, {"train": now}, 2048) == told


def test_a_warm_up_that_is_over_and_what_only_takes_memory_teach_nothing() -> None:
    before = {
        "train": TRAIN | {"batch": 1000},
        "warmup": {"kimg": 0.5, "student_kimg": 1.5, "lr": 1e-4},
        "generator": {"recompute": False},
    }
    now = before | {"warmup": before["warmup"] | {"lr": 2e-4}, "generator": {"recompute": True}}
    assert learned_otherwise(before, now, 3000) == []  # three batches
    assert learned_otherwise(before, now, 2999) == ["[warmup] lr: 0.0001 -> 0.0002"]
    assert learned_otherwise(before, before | {"train": before["train"] | {"batch": 4000}}, 3000) == ["[train] batch: 1000 -> 4000"]
    assert learned_otherwise(before | {"warmup": {"kimg": "x", "lr": 1e-4}}, now, 3000) == []  # edited by somebody


def test_what_a_branch_left_that_was_killed_before_its_first_state_is_not_taken_for_the_runs(finished: Path, run: Path) -> None:
    own = {path.name: path.read_bytes() for path in run.glob("network-snapshot-1*")}
    again(finished, run, run / "training-state-000001.pt", "train.glr=0.05", "train.duration_kimg=2.048")
    left = (run / "network-snapshot-1.000000-000002.pkl").read_bytes()
    for path in run.glob("*.later*"):
        path.unlink()
    for path in (run / "training-state-000002.pt", run / "quality.json", run / "quality.txt"):
        path.unlink()
    again(finished, run, "auto", "eval.snapshot_samples=0")
    assert (run / "network-snapshot-1.000000-000002.pkl.later").read_bytes() == left
    assert {path.name: path.read_bytes() for path in run.glob("network-snapshot-1*.pkl")} == own
    assert kimgs(run) == [1] and (run / "metric-sliced_wasserstein.jsonl.later").is_file()
    assert not (run / "best.json").exists() or json.loads((run / "best.json").read_text())["kimg"] == 1.024
    assert "changed" not in json.loads((run / "quality.json").read_text())
    assert "later files of another branch were set aside" in (run / "log.txt").read_text()


def test_lines_of_a_branch_stay_though_the_run_is_killed_while_it_leaves_it(
    finished: Path, run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("registry.runs.starting.set_table_aside", killed)
    with pytest.raises(KeyboardInterrupt):
        again(finished, run, run / "training-state-000001.pt", "train.glr=0.05")
    monkeypatch.undo()
    again(finished, run, run / "training-state-000001.pt", "train.glr=0.05", "train.duration_kimg=2.048")
    for name in ("stats.jsonl.later", "metric-sliced_wasserstein.jsonl.later"):
        assert len((run / name).read_text().splitlines()) == 2


@pytest.mark.parametrize("again_later", ["", ".2"])
def test_the_last_snapshot_of_another_branch_is_not_the_runs(again_later: str, finished: Path, run: Path) -> None:
    again(finished, run, run / "training-state-000001.pt", "train.glr=0.05")
    last = run / "network-snapshot-1.000000-000003.pkl"
    before = last.read_bytes()
    assert last.with_name(f"{last.name}.later").is_file()
    last.with_name(f"{last.name}.later").rename(last.with_name(f"{last.name}.later{again_later}"))
    last.unlink()
    again(finished, run, "auto", "train.glr=0.05")
    assert last.read_bytes() == before


def test_a_run_that_ends_before_its_time_has_a_snapshot_of_its_end(finished: Path, run: Path) -> None:
    """A signal's state has none of its own."""
    (run / "network-snapshot-1.000000-000002.pkl").unlink()
    content = load(run / "training-state-000002.pt", STATE)
    entries = {key: value for key, value in content.items() if key not in ("format", "kind")}
    save(run / "training-state-000002.pt", STATE, entries | {"snapshot_due": False})
    again(finished, run, run / "training-state-000002.pt", "train.duration_kimg=1")
    assert (run / "network-snapshot-1.000000-000002.pkl").is_file()


@pytest.mark.parametrize("metrics", [(), ("eval.metrics=[]",)], ids=["measured", "not measured"])
def test_a_finished_run_is_not_measured_with_another_noise(metrics: tuple[str, ...], finished: Path, run: Path) -> None:
    before = {path.name: path.read_bytes() for path in run.iterdir() if path.name not in ("log.txt", "error.txt")}
    with pytest.raises(UserError, match=r"is finished, and was trained otherwise \(\[noise\] rho: 7.0 -> 2.0\); put that back"):
        again(finished, run, "auto", "noise.rho=2", *metrics)
    assert {path.name: path.read_bytes() for path in run.iterdir() if path.name not in ("log.txt", "error.txt")} == before


def test_a_state_of_a_branch_that_was_left_begins_a_run_folder(finished: Path, run: Path) -> None:
    """Its own holds the files of the other branch."""
    again(finished, run, run / "training-state-000001.pt", "train.glr=0.02")
    before = {path.name: path.read_bytes() for path in run.iterdir()}
    other = again(finished, run, run / "training-state-000003.pt.later", "train.duration_kimg=4.096")
    assert other != run and kimgs(other) == [3, 4]  # the state of 3 kimg comes before its snapshot
    assert {path.name: path.read_bytes() for path in run.iterdir()} == before


def test_what_a_longer_run_left_is_kept_by_a_shorter_one(finished: Path, run: Path) -> None:
    """Though it was killed before it could save a state there."""
    last, best = run / "network-snapshot-1.000000-000003.pkl", (run / "best.json").read_bytes()
    before = last.read_bytes()
    for path in (run / "training-state-000002.pt", run / "training-state-000003.pt", run / "quality.json"):
        path.unlink()
    again(finished, run, "auto", "train.duration_kimg=2.048")
    assert kimgs(run) == [1, 2] and not last.exists()
    assert last.with_name(f"{last.name}.later").read_bytes() == before
    assert best in ((run / name).read_bytes() for name in ("best.json", "best.json.later") if (run / name).is_file())
    lines = (run / "metric-sliced_wasserstein.jsonl.later").read_text().splitlines()
    assert round(json.loads(lines[-1])["kimg"]) == 3


def test_a_run_whose_rates_had_not_fallen_when_it_ended_says_so(finished: Path, run: Path) -> None:
    again(finished, run, run / "training-state-000001.pt", "train.lr_decay=1")
    again(finished, run, run / "training-state-000002.pt", "train.lr_decay=1", "train.duration_kimg=1")
    assert json.loads((run / "quality.json").read_text())["changed"][-1] == "at 2.048 kimg: [train] duration_kimg: 3.072 -> 2.048"


def test_a_length_that_is_no_whole_batch_stays_as_it_was_given(finished: Path, run: Path) -> None:
    for _ in range(2):
        again(finished, run, run / "training-state-000001.pt", "train.duration_kimg=1.1")
        again(finished, run, "auto", "train.duration_kimg=1.1")
        assert read_tables(run / "recipe.toml")["train"]["duration_kimg"] == 1.1


def test_a_best_snapshot_that_cannot_be_copied_costs_no_table(finished: Path, run: Path) -> None:
    (run / "network-snapshot-best.pkl").unlink()
    (run / "network-snapshot-best.pkl").mkdir()
    (run / "quality.json").unlink()
    again(finished, run, "auto")
    assert json.loads((run / "quality.json").read_text())["nimg"] == 3072
    assert "the best snapshot is not kept this time" in (run / "log.txt").read_text()


@pytest.mark.parametrize("setting", ["loss.alpha=0.7", "noise.sigma_min=0.5", "train.glr=0.02"])
def test_a_snapshot_that_was_made_is_not_made_with_other_settings(setting: str, finished: Path, run: Path) -> None:
    """At the state's own number of images nothing was learned with them."""
    snapshot, grid = run / "network-snapshot-1.000000-000002.pkl", run / "fakes_000002.png"
    before = snapshot.read_bytes(), grid.read_bytes()
    lines = (run / "metric-sliced_wasserstein.jsonl").read_text().splitlines()
    again(finished, run, run / "training-state-000002.pt", setting)
    assert (snapshot.read_bytes(), grid.read_bytes()) == before
    assert [path.name for path in run.glob("network-snapshot-*-000002.*")] == [snapshot.name]
    assert (run / "metric-sliced_wasserstein.jsonl").read_text().splitlines()[:2] == lines[:2] and kimgs(run) == [1, 2, 3]
    assert (run / "metric-sliced_wasserstein.jsonl.later").read_text().splitlines() == lines[2:]


def test_a_snapshot_that_was_due_is_not_made_with_other_settings(finished: Path, run: Path) -> None:
    (run / "network-snapshot-1.000000-000002.pkl").unlink()
    again(finished, run, run / "training-state-000002.pt", "noise.sigma_min=0.5")
    assert not (run / "network-snapshot-1.000000-000002.pkl").exists()
    assert (
        "the snapshot at 2.048 kimg, which was due, is not made: it would be one of the settings before"
        in (run / "log.txt").read_text()
    )


def test_a_snapshot_that_was_made_is_not_measured_again(finished: Path, run: Path) -> None:
    for name in ("training-state-000003.pt", "quality.json"):
        (run / name).unlink()
    lines = (run / "metric-sliced_wasserstein.jsonl").read_text().splitlines()
    again(finished, run, "auto")
    assert (run / "metric-sliced_wasserstein.jsonl").read_text().splitlines()[:2] == lines[:2] and kimgs(run) == [1, 2, 3]
    assert not list(run.glob("*.later*")), "the run writes the rest again just so"


SETTINGS = ["log.snapshot_ticks=4", "log.tick_kimg=3", "eval.snapshot_samples=20", "eval.sliced_wasserstein.projections=32"]


@pytest.mark.parametrize("setting", SETTINGS)
def test_numbers_that_are_not_written_again_stay(setting: str, finished: Path, run: Path) -> None:
    """The run was killed after its last state, and goes on with fewer snapshots, or measures them otherwise."""
    best = json.loads((run / "best.json").read_text())["kimg"] > 1.1
    for name in ("training-state-000002.pt", "training-state-000003.pt", "quality.json"):
        (run / name).unlink()
    lines = (run / "metric-sliced_wasserstein.jsonl").read_text().splitlines()
    again(finished, run, "auto", setting)
    assert (run / "metric-sliced_wasserstein.jsonl.later").read_text().splitlines() == lines[1:]
    assert (run / "metric-sliced_wasserstein.jsonl").read_text().splitlines()[0] == lines[0]
    assert best == (run / "best.json.later").is_file() == (run / "network-snapshot-best.pkl.later").is_file()
    assert "metric-sliced_wasserstein.jsonl.later" in (run / "log.txt").read_text()
    assert (run / "stats.jsonl.later").is_file() == setting.startswith("log."), "the ticks are written again just so"


def test_a_later_snapshot_within_the_states_thousand_images_is_set_aside(finished: Path, run: Path) -> None:
    net, facts = load_network(str(run / "network-snapshot-1.000000-000002.pkl"))
    snapshot, grid = run / "network-snapshot-1.000000-000001.pkl", run / "fakes_000001.png"
    save_network(snapshot, "generator", net, facts.stored() | {"nimg": 1536})
    before = snapshot.read_bytes(), grid.read_bytes()
    again(finished, run, run / "training-state-000001.pt", "train.glr=0.02")
    assert (snapshot.with_name(f"{snapshot.name}.later").read_bytes(), grid.with_name(f"{grid.name}.later").read_bytes()) == before


def test_the_best_is_kept_though_the_run_was_killed_before_it_could(finished: Path, run: Path) -> None:
    """The next snapshot of the same thousand images takes its name. Or there is none that is measured."""
    best, line = (
        run / "network-snapshot-best.pkl",
        json.loads((run / "metric-sliced_wasserstein.jsonl").read_text().splitlines()[0]),
    )
    for name in ("training-state-000002.pt", "training-state-000003.pt", "quality.json", "best.json", best.name):
        (run / name).unlink()
    before = (run / line["snapshot_pkl"]).read_bytes()
    again(finished, run, "auto", "eval.snapshot_samples=0", "log.tick_kimg=0.768", "train.duration_kimg=1.792")
    assert (run / line["snapshot_pkl"]).read_bytes() != before, "the test's last snapshot does not take the name"
    assert load_network(best)[1].nimg == 1024 and best.read_bytes() == before
    note = json.loads((run / "best.json").read_text())
    assert (note["kimg"], note["value"]) == (line["kimg"], line["results"]["sliced_w2"])


def test_what_a_run_had_at_its_end_is_set_aside_by_a_longer_one(finished: Path, tmp_path: Path) -> None:
    """Its last state was damaged; the longer run has no snapshot there."""
    run = distill(str(finished / "short.toml"), sets=["train.duration_kimg=2.56", "log.keep_states=0"], outdir=str(tmp_path)).folder
    snapshot = run / "network-snapshot-1.000000-000002.pkl"
    before, line = snapshot.read_bytes(), (run / "metric-sliced_wasserstein.jsonl").read_text().splitlines()[-1]
    (run / "training-state-000002.pt").write_bytes(b"")
    again(finished, run, "auto", "train.duration_kimg=4.096")
    assert snapshot.with_name(f"{snapshot.name}.later").read_bytes() == before
    assert (run / "metric-sliced_wasserstein.jsonl.later").read_text().splitlines()[-1] == line
    assert kimgs(run) == [1, 2, 3, 4]


def test_a_later_state_within_the_same_thousand_images_is_set_aside(finished: Path, run: Path) -> None:
    """Resumed from a copy of an earlier one."""
    content = load(run / "training-state-000001.pt", STATE)
    entries = {key: value for key, value in content.items() if key not in ("format", "kind")}
    save(run / "keep.pt", STATE, entries)
    later = run / "training-state-000001.pt"
    save(later, STATE, entries | {"nimg": 1280})
    before = later.read_bytes()
    again(finished, run, run / "keep.pt", "train.glr=0.02")
    assert later.with_name(f"{later.name}.later").read_bytes() == before


def test_a_network_in_a_states_place_is_set_aside(finished: Path, run: Path) -> None:
    last = run / "training-state-000003.pt"
    save_network(last, "denoiser", tiny_network(), {"D": 128.0})
    again(finished, run, "auto")
    assert (
        "is no training state; it was renamed to training-state-000003.pt.damaged, and the state before it"
        in (run / "log.txt").read_text()
    )
    assert last.with_name(f"{last.name}.damaged").is_file() and load(last, STATE)["nimg"] == 3072
