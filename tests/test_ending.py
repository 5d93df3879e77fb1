"""How a run ended is seen in its folder, on its page, and in the list of runs."""

from __future__ import annotations

import html
import os
import re
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from ipfm_plugin.loss import IPFMLoss
from registry.core.errors import Diverged, Interrupted
from registry.core.interruption import Interruption
from registry.report.history import read_history
from registry.runs.distill import distill
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
    assert re.search(rf"failed at 0\.\d+ of 0.4 kimg, after \d+s of training \({why}", page)
    assert "failed, can be resumed" in " ".join(here("runs", tmp_path / "runs").stdout.split())
    assert distill(recipe, sets=KEEP, resume=str(folder)).folder == folder
    assert not (folder / "error.txt").exists() and read_history(folder).state == "finished"


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
