"""How a run ended is seen in its folder, on its page, and in the list of runs."""

from __future__ import annotations

import html
import os
import random
import re
import resource
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from torch import Tensor

from ipfm_plugin.loss import IPFMLoss
from registry.core.errors import Diverged, Interrupted, UserError
from registry.core.interruption import Interruption
from registry.files.bounds import STATE
from registry.files.formats import load_network, weights_hash
from registry.files.plain import load
from registry.report.history import read_history
from registry.runs.distill import distill
from registry.runs.pretrain import pretrain
from registry.sample.heun import heun_samples
from registry.show.journal import Journal
from tests.conftest import error_line
from tests.test_health import KEEP, LONGER, Poisoned

Here = Callable[..., subprocess.CompletedProcess[str]]
Write = Callable[..., Path]


def test_a_run_that_failed_says_so_until_it_goes_on(
    here: Here, recipe_file: Write, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    recipe = str(recipe_file(*LONGER))
    with monkeypatch.context() as broken:
        broken.setattr("ipfm_plugin.loss.build", lambda config, domain: Poisoned(range(23, 1000), 8))
        with pytest.raises(Diverged):
            distill(recipe, sets=KEEP)
    (folder,) = (tmp_path / "runs").iterdir()
    why = "the run has diverged: the generator's loss was not finite for any image in its last 18 steps"
    assert (folder / "error.txt").read_text().startswith(why)
    assert read_history(folder).state == "failed"
    page = html.unescape((folder / "report.html").read_text())
    assert re.search(r"failed at 0\.\d+ of 0.4 kimg, after \d+s of training\.", page)
    assert f'<p class="failed">{why}' in page
    assert "failed, can be resumed" in " ".join(here("runs", tmp_path / "runs").stdout.split())
    assert distill(recipe, sets=KEEP, resume=str(folder)).folder == folder
    assert not (folder / "error.txt").exists() and read_history(folder).state == "finished"


def test_what_fails_after_a_signal_is_an_interruption(recipe_file: Write, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A scheduler signals all processes, and a loss that reads images in processes of its own loses them."""

    class Loses(Poisoned):
        def generator(self, *args: Any) -> Any:
            if (tmp_path / "runs" / "00000-short" / "training-state-000000.pt").is_file():
                os.kill(os.getpid(), signal.SIGTERM)
                raise RuntimeError("a worker exited unexpectedly")
            return super().generator(*args)

    monkeypatch.setattr("ipfm_plugin.loss.build", lambda config, domain: Loses(range(1000, 1001), 8))
    with pytest.raises(
        Interrupted, match="interrupted, and then RuntimeError: a worker exited unexpectedly; the last state"
    ) as end:
        distill(str(recipe_file()))
    assert end.value.code == 143 and end.value.state == str(tmp_path / "runs" / "00000-short" / "training-state-000000.pt")
    assert not (tmp_path / "runs" / "00000-short" / "error.txt").exists()


def test_the_page_of_an_interrupted_run_does_not_say_that_it_runs(
    recipe_file: Write, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    class Stops(IPFMLoss):
        def generator(self, *arguments: object) -> object:  # type: ignore[override]
            os.kill(os.getpid(), signal.SIGTERM)
            return super().generator(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr("ipfm_plugin.loss.build", lambda config, domain: Stops(1.0))
    with Interruption(), pytest.raises(Interrupted):
        distill(str(recipe_file(*LONGER)), sets=KEEP)
    (folder,) = (tmp_path / "runs").iterdir()
    assert read_history(folder).state == "stopped" and not (folder / "error.txt").exists()
    assert "stopped at" in (folder / "report.html").read_text()


def test_a_signal_on_a_full_disk_ends_the_run_as_a_signal_does(
    recipe_file: Write, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Its state cannot be written, and the one before is still there."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)

    class Fills(IPFMLoss):
        steps = 0

        def generator(self, *arguments: object) -> object:  # type: ignore[override]
            self.steps += 1
            if self.steps == 23:
                resource.setrlimit(resource.RLIMIT_FSIZE, (1000, before[1]))  # the disk takes no more
                os.kill(os.getpid(), signal.SIGTERM)
            return super().generator(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr("ipfm_plugin.loss.build", lambda config, domain: Fills(1.0))
    try:
        with Interruption(), pytest.raises(Interrupted, match=r"its state cannot be written .*; the one before is kept") as caught:
            distill(str(recipe_file(*LONGER)), sets=KEEP)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    (folder,) = (tmp_path / "runs").iterdir()
    assert caught.value.code == 128 + signal.SIGTERM and caught.value.state == str(folder / "training-state-000000.pt")
    monkeypatch.setattr("ipfm_plugin.loss.build", lambda config, domain: IPFMLoss(1.0))
    assert distill(str(recipe_file(*LONGER)), sets=KEEP, resume=caught.value.state).folder == folder


def test_a_teachers_training_does_not_go_on_with_other_images(here: Here, tmp_path: Path) -> None:
    folder = tmp_path / "images"
    folder.mkdir()
    draw = random.Random(0)
    for i in range(40):
        Image.frombytes("L", (8, 8), draw.randbytes(64)).save(folder / f"{i}.png")
    sets = {"data.source": str(folder), "data.labels": False, "train.batch": 8, "train.duration_kimg": 0.08, "log.tick_kimg": 0.04,
            "log.snapshot_ticks": 1, "eval.metrics": []}  # fmt: skip
    pretrain("teachers/digits_d128", sets=sets, outdir=tmp_path / "runs")
    Image.new("L", (8, 8)).save(folder / "7.png")
    with pytest.raises(UserError, match="images holds other images, classes or another order than when this run began"):
        pretrain("teachers/digits_d128", sets=sets | {"train.duration_kimg": 0.16}, outdir=tmp_path / "runs", resume="auto")


def test_a_resumed_run_says_all_that_is_different(recipe_file: Write, tmp_path: Path) -> None:
    recipe = recipe_file()
    first = distill(recipe, sets=["log.snapshot_ticks=1"])
    network = next(first.folder.glob("network-snapshot-*.pkl"))
    sets = {"generator.init": str(network), "log.keep_states": 7, "eval.samples": 77, "train.duration_kimg": 0.064}
    again = distill(recipe, sets=sets, resume=str(first.folder))
    log = (again.folder / "log.txt").read_text()
    for line in (
        f"[generator] init: None -> {network} (which has no effect on a run that goes on)",
        "[log] keep_states: 2 -> 7", "[eval] samples: 32 -> 77", "[train] duration_kimg: 0.048 -> 0.064",
    ):  # fmt: skip
        assert f"changed since that state was written: {line}" in log, log


def test_fp16_is_refused_where_it_would_be_fp32(here: Here, recipe_file: Write) -> None:
    line = error_line(here("--recipe", recipe_file(), "--set", "train.precision=fp16"))
    assert line.endswith("[train] precision = 'fp16': computes on a GPU only; on the CPU write 'fp32' or 'bf16'")


def test_a_log_that_ends_in_half_a_line_goes_on_with_a_line(tmp_path: Path) -> None:
    for before, after in (("kimg 0.1  los", "kimg 0.1  los\nresumed\n"), ("kimg 0.1\n", "kimg 0.1\nresumed\n"), ("", "resumed\n")):
        (tmp_path / "log.txt").write_text(before)
        journal = Journal()
        journal.open(tmp_path)
        journal.log("resumed")
        assert (tmp_path / "log.txt").read_text() == after


def test_a_signal_while_the_teacher_is_sampled_stops_the_run(recipe_file: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its grids come after the first iteration, and take long for a large teacher. They are drawn when the run goes on."""
    whole = distill(str(recipe_file()), seed=1).folder

    def signalled(*arguments: Any, **options: Any) -> Tensor:
        os.kill(os.getpid(), signal.SIGTERM)
        return heun_samples(*arguments, **options)

    monkeypatch.setattr("registry.runs.outputs.heun_samples", signalled)
    with pytest.raises(Interrupted) as caught:
        distill(str(recipe_file()), seed=1)
    assert caught.value.code == 128 + signal.SIGTERM and caught.value.state is not None
    folder = Path(caught.value.state).parent
    assert load(caught.value.state, STATE)["nimg"] == 2 * 8 and not list(folder.glob("teacher-*.png"))
    monkeypatch.setattr("registry.runs.outputs.heun_samples", heun_samples)
    assert distill(str(recipe_file()), resume=caught.value.state, seed=1).folder == folder
    pictures = {path.name: path.read_bytes() for path in whole.glob("teacher-*.png")}
    assert len(pictures) == 2 and pictures == {path.name: path.read_bytes() for path in folder.glob("teacher-*.png")}
    one, other = (load_network(next(each.glob("network-snapshot-1*")), "generator")[0] for each in (folder, whole))
    assert weights_hash(one) == weights_hash(other)
