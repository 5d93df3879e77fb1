"""Short forms of `make soak` and of `python -m tests.hostile`."""

from __future__ import annotations

import subprocess
import sys

from tests.conftest import ROOT, environment


def test_a_run_that_is_broken_in_every_way_ends_as_if_nothing_had_happened() -> None:
    soak = [sys.executable, "-m", "tests.soak", "--each", "1", "--seed", "3"]
    done = subprocess.run(soak, cwd=ROOT, env=environment(), capture_output=True, text=True, timeout=900, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_hostile_files_do_no_harm_to_any_command() -> None:
    """Every 25th file; all of them: python -m tests.hostile."""
    words = [sys.executable, "-m", "tests.hostile", "--every", "25"]
    done = subprocess.run(words, cwd=ROOT, env=environment(), capture_output=True, text=True, timeout=900, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
