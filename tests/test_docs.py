"""The pages that say what to type, typed from top to bottom with shorter runs; and the site of all pages."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

from tests.conftest import ROOT, environment

Cli = Callable[..., subprocess.CompletedProcess[str]]
SHORT = {
    "distill --recipe": "eval.samples=60 eval.repeats=1 eval.teacher_steps=[2] eval.snapshot_samples=0",
    "distill --recipe quickstart": "train.duration_kimg=0.256 warmup.kimg=0.256 warmup.pairs=128 warmup.nfe=3 warmup.student_kimg=0.128",
    "distill pretrain": "eval.samples=24 eval.repeats=1 eval.teacher_steps=[2] eval.snapshot_samples=0 train.batch=16 train.duration_kimg=0.064",
    "distill --recipe flowers": "train.batch=16 train.duration_kimg=0.064 warmup.kimg=0",
}
"""By what a command begins with: settings with which it takes a second."""


def type_(page: str, cwd: Path, cli: Cli) -> str:
    """Type the blocks of a page one after the other in a folder; gives all that was printed."""
    printed = ""
    for language, block in re.findall(r"```(sh|python)\n(.*?)```", (ROOT / "docs" / page).read_text(), re.S):
        for line in [block] if language == "python" else block.splitlines():
            if language == "python":
                words = [sys.executable, "-c", line]
                done = subprocess.run(words, cwd=cwd, env=environment(), capture_output=True, text=True, check=False)
            else:
                sets = " ".join(more for start, more in SHORT.items() if line.startswith(start)).split()
                words = [
                    *shlex.split(line.replace("--resolution 32", "--resolution 8"), comments=True)[1:],
                    *(word for one in sets for word in ("--set", one)),
                ]
                done = cli(*words)
            assert done.returncode == 0, f"{line}\n{done.stdout}\n{done.stderr}"
            printed += done.stdout
    return printed


def test_the_tutorial(tmp_path: Path, cli: Cli) -> None:
    cwd = tmp_path / "a folder"
    printed = type_("tutorial.md", cwd, cli)
    assert {p.name for p in cwd.iterdir()} >= {"teacher-35", "teacher-9", "generator", "a-digit.png", "both.html", "digits.onnx"}
    assert (cwd / "digits-generator" / "modeling.py").is_file() and "10 runs" in printed


def test_images_of_your_own(tmp_path: Path, cli: Cli) -> None:
    cwd, rng = tmp_path / "a folder", np.random.default_rng(0)
    (cwd / "photos").mkdir()
    for i in range(24):
        Image.fromarray(rng.integers(0, 256, (12, 14, 3), dtype=np.uint8)).save(cwd / "photos" / f"{i}.png")
    type_("own_data.md", cwd, cli)
    assert len(list((cwd / "images").glob("*.png"))) == 1 and (cwd / "flowers_teacher.pt").is_file()


def test_the_site_is_made_without_a_warning_and_needs_no_network(tmp_path: Path) -> None:
    """Links to pages, headings and files are checked by --strict."""
    words = [sys.executable, "-m", "mkdocs", "build", "--quiet", "--strict", "--site-dir", tmp_path / "site"]
    done = subprocess.run(
        words, cwd=ROOT, env=os.environ | {"NO_MKDOCS_2_WARNING": "1"}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    pages = list((tmp_path / "site").glob("*.html"))
    assert len(pages) > len(list((ROOT / "docs").glob("*.md")))
    loaded = re.findall(r'<(?:script|link|img|iframe)[^>]+(?:src|href)="(https?://[^"]+)"', "".join(p.read_text() for p in pages))
    assert not loaded
    assert (tmp_path / "site" / "source" / "registry" / "train" / "loop.py.txt").read_text() == (
        ROOT / "registry" / "train" / "loop.py"
    ).read_text()
