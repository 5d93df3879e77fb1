"""Files are written whole or not at all, and what killed writers leave is removed by the next one."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import FrameType

import pytest

from registry.core.atomic import new_folder, sweep, write_atomically
from registry.core.errors import UserError
from tests.conftest import environment

WRITER = """
import sys, time
from pathlib import Path
from types import FrameType
from registry.core.atomic import write_atomically

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
    other = tmp_path / ".other.pt.0123abcd.distill"
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
    names = ".hidden", ".env.template", ".x.pt.20261129", ".x.pt.ABCDEF01.distill", "x.pt.abcdef01.distill", ".abcdef01.distill"
    kept = [tmp_path / name for name in names]
    for path in kept:
        path.write_text("mine")
    (tmp_path / ".dir.pt.abcdef01.distill").mkdir()
    target = tmp_path / "target"
    target.write_text("mine")
    os.symlink(target, tmp_path / ".link.pt.abcdef01.distill")
    sweep(tmp_path)
    assert all(
        path.exists() for path in (*kept, target, tmp_path / ".dir.pt.abcdef01.distill", tmp_path / ".link.pt.abcdef01.distill")
    )


FILLER = """
import sys, time
from pathlib import Path
from types import FrameType
from registry.core.atomic import new_folder

with new_folder(Path(sys.argv[1])) as folder:
    (folder / "half").write_bytes(b"half")
    print("writing", flush=True)
    time.sleep(60)
"""


def filler(path: Path) -> subprocess.Popen[str]:
    """A process in the middle of filling a folder."""
    process = subprocess.Popen([sys.executable, "-c", FILLER, str(path)], env=environment(), text=True, stdout=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stdout.readline() == "writing\n"
    return process


def test_a_folder_that_was_being_filled_goes_with_its_killed_writer(tmp_path: Path) -> None:
    target = tmp_path / "a [b] *"
    process = filler(target)
    process.send_signal(signal.SIGKILL)
    process.wait()
    (left,) = tmp_path.iterdir()
    others = {".other.abcdef01.distill", ".a [b] *.original", ".a [b] *.20261129"}
    for name in others:
        (tmp_path / name).mkdir()
    with new_folder(target) as folder:
        assert not left.exists()
        (folder / "whole").write_bytes(b"whole")
    assert {p.name for p in tmp_path.iterdir()} == {target.name, *others}
    assert [p.name for p in target.iterdir()] == ["whole"]


def fill_twice(target: Path) -> None:
    with new_folder(target) as slow:
        (slow / "slow").write_bytes(b"1")
        with new_folder(target) as fast:
            assert fast != slow and slow.exists()
            (fast / "fast").write_bytes(b"2")


def test_of_two_that_fill_a_folder_one_wins_and_the_other_says_so(tmp_path: Path) -> None:
    target = tmp_path / "out"
    with pytest.raises(UserError, match="was made by another process in the meantime"):
        fill_twice(target)
    assert [p.name for p in tmp_path.iterdir()] == ["out"] and [p.name for p in target.iterdir()] == ["fast"]


def fill_and_fail(target: Path) -> None:
    with new_folder(target) as folder:
        (folder / "half").write_bytes(b"half")
        raise ZeroDivisionError


def test_a_folder_whose_writer_fails_is_gone(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError):
        fill_and_fail(tmp_path / "out")
    assert not list(tmp_path.iterdir())


SWEEPER = """
import sys
import time
from pathlib import Path
from types import FrameType
from registry.core.atomic import sweep

print("sweeping", flush=True)
while True:
    sweep(Path(sys.argv[1]))
"""


def test_a_sweep_never_takes_a_living_writers_file(tmp_path: Path) -> None:
    """Two processes for some hundred writes: one in six failed when a file could be swept before it was locked, or after."""
    words = [sys.executable, "-c", SWEEPER, str(tmp_path)]
    sweeper = subprocess.Popen(words, env=environment(), text=True, stdout=subprocess.PIPE)
    try:
        assert sweeper.stdout is not None and sweeper.stdout.readline() == "sweeping\n"
        for i in range(800):
            write_atomically(tmp_path / "state.pt", str(i).encode(), durable=False)
    finally:
        sweeper.kill()
        sweeper.wait()
    assert (tmp_path / "state.pt").read_bytes() == b"799"


def test_a_new_file_takes_nobodys_place(tmp_path: Path) -> None:
    path = tmp_path / "x.toml"
    write_atomically(path, b"first", new=True)
    with pytest.raises(UserError, match="was made by another process in the meantime; it is left as it is"):
        write_atomically(path, b"second", new=True)
    assert path.read_bytes() == b"first" and [p.name for p in tmp_path.iterdir()] == ["x.toml"]
    assert path.stat().st_nlink == 1


SAVER = """
import sys
from pathlib import Path
from types import FrameType
import torch
from registry.cli import main
from registry.files.bounds import STATE
from registry.files.plain import save

path = Path(sys.argv[1])

@main.command("save")
def command():
    tensors = {str(i): torch.zeros(1000) for i in range(3000)}
    print("saving", flush=True)
    while True:
        save(path, STATE, {"parts": tensors})

main(["save"])
"""


@pytest.mark.parametrize("delay", [0.05, 0.21, 0.33, 0.48])
def test_a_signal_while_torch_writes_a_file_is_answered_when_it_is_written(delay: float, tmp_path: Path) -> None:
    """An exception in what torch's C++ calls became "a bug in distill", or ended the process."""
    process = subprocess.Popen(
        [sys.executable, "-c", SAVER, str(tmp_path / "a.pt")],
        env=environment(),
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert process.stdout is not None and process.stdout.readline() == "saving\n"
    time.sleep(delay)
    process.send_signal(signal.SIGTERM)
    error = process.communicate(timeout=60)[1]
    assert (process.returncode, error) == (128 + signal.SIGTERM, "distill: interrupted\n")
    assert {p.name for p in tmp_path.iterdir()} <= {"a.pt"}


@pytest.mark.parametrize("function", ["write_atomically", "new_folder"])
def test_a_signal_in_the_moment_in_which_a_temporary_is_there_leaves_none(function: str, tmp_path: Path) -> None:
    """Its exception comes after the place was made, and before the block that would remove it was entered."""

    def interrupt(frame: FrameType, event: str, arg: object) -> None:
        if event == "c_return" and arg is next and frame.f_code.co_name == "__enter__" and list(tmp_path.iterdir()):
            sys.setprofile(None)
            raise KeyboardInterrupt

    def work() -> None:
        if function == "write_atomically":
            write_atomically(tmp_path / "file", b"content")
        else:
            with new_folder(tmp_path / "folder"):
                pass

    try:
        sys.setprofile(interrupt)
        work()
    except KeyboardInterrupt as error:
        kept = error  # with its traceback, and so with all that is in it
    finally:
        sys.setprofile(None)
    assert kept and list(tmp_path.iterdir()) == []


AMIDST = """
import os, signal, sys
from pathlib import Path
from registry.cli.group import interrupt
from registry.core.atomic import new_folder, write_atomically
signal.signal(signal.SIGTERM, interrupt)
sys.path.insert(0, sys.argv[1])
with new_folder(Path("folder")) as part:
    (part / "a").write_text("a")
    if os.fork() == 0:
        os._exit(0)  # what another process ends with is not its parent's
    assert os.wait()[1] == 0 and len(list(Path(".").iterdir())) == 1
    write_atomically(Path("file"), lambda file: __import__("slow"))
"""


def test_a_signal_in_the_middle_of_an_import_leaves_nothing_half_written(tmp_path: Path) -> None:
    """It ends the process at once: what is imported may take an exception for an error of its own."""
    (tmp_path / "modules").mkdir()
    slow = "import os, signal, time\nassert len(os.listdir('.')) == 2\nos.kill(os.getpid(), signal.SIGTERM)\ntime.sleep(60)\n"
    (tmp_path / "modules" / "slow.py").write_text(slow)
    (tmp_path / "out").mkdir()
    words = [sys.executable, "-c", AMIDST, tmp_path / "modules"]
    done = subprocess.run(words, cwd=tmp_path / "out", env=environment(), capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (128 + signal.SIGTERM, "distill: interrupted\n")
    assert not list((tmp_path / "out").iterdir())
