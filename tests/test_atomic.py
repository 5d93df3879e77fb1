"""Files are written whole or not at all, and what killed writers leave is removed by the next one."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from registry.files.atomic import sweep, write_atomically
from tests.conftest import environment

WRITER = """
import sys, time
from pathlib import Path
from registry.files.atomic import write_atomically

def slowly(file):
    file.write(b"half")
    file.flush()
    print("writing", flush=True)
    time.sleep(60)

write_atomically(Path(sys.argv[1]), slowly)
"""


def writer(path: Path) -> subprocess.Popen[str]:
    """A process in the middle of a write."""
    process = subprocess.Popen([sys.executable, "-c", WRITER, str(path)], env=environment(), text=True, stdout=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stdout.readline() == "writing\n"
    return process


@pytest.mark.parametrize("name", ["state.pt", "a [b] *.pt"])
def test_what_a_killed_writer_left_goes_with_the_next_write(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    process = writer(path)
    other = tmp_path / ".other.pt.abcdefgh"
    other.write_bytes(b"half")
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert len(list(tmp_path.iterdir())) == 2
    write_atomically(path, b"whole")
    assert {*tmp_path.iterdir()} == {path, other}, "that of another file is not touched"
    sweep(tmp_path)
    assert {*tmp_path.iterdir()} == {path}


def test_what_is_being_written_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "state.pt"
    process = writer(path)
    try:
        write_atomically(path, b"whole")
        sweep(tmp_path)
        assert len(list(tmp_path.iterdir())) == 2
    finally:
        process.kill()
        process.wait()
    assert path.read_bytes() == b"whole"


def test_only_what_is_ours_is_swept(tmp_path: Path) -> None:
    kept = [tmp_path / ".hidden", tmp_path / ".x.pt.ABCDEFGH", tmp_path / "x.pt.abcdefgh"]
    for path in kept:
        path.write_text("mine")
    (tmp_path / ".dir.pt.abcdefgh").mkdir()
    target = tmp_path / "target"
    target.write_text("mine")
    os.symlink(target, tmp_path / ".link.pt.abcdefgh")
    sweep(tmp_path)
    assert all(path.exists() for path in (*kept, target, tmp_path / ".dir.pt.abcdefgh", tmp_path / ".link.pt.abcdefgh"))
