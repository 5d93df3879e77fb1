"""Breaks runs at random for as long as it is told, and counts what became of them: `python -m tests.soak --minutes 60`.

Every trial is a real process: a copy of this one (fork), so that it need not load torch first. What it must come to is what the
same run comes to that nothing happened to: the same states and the same snapshots, to the bit. `--seed` and a trial's number give
the same trial again, as far as time allows.
"""

from __future__ import annotations

import argparse
import builtins
import hashlib
import itertools
import os
import random
import re
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import matplotlib.pyplot  # noqa: F401  (loaded here, so that the copies need not load it)
import sklearn.datasets  # noqa: F401
import torch
import torch._dynamo
from rich.console import Console
from rich.table import Table

from registry.cli import main
from registry.files.formats import save_network
from registry.runs import distill  # noqa: F401
from registry.runs.states import states
from tests.conftest import RECIPE, ROOT, environment, grey_images, tiny_network

FEATURES = str(ROOT / "recipes" / "features" / "digits_features.toml")
CHANGES = (
    ("batch = 8", "batch = 512"), ("duration_kimg = 0.048", "duration_kimg = 2.048"), ("tick_kimg = 0.016", "tick_kimg = 1.024"),
    ("state_ticks = 1", "state_ticks = 1\nkeep_states = 2"), ("snapshot_ticks = 1", "snapshot_ticks = 2"),
)  # fmt: skip
"""Four iterations, two states, one snapshot."""
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP)
RUN = ("--recipe", "short.toml", "--resume", "auto")
MEASURED = ("--set", 'eval.metrics=["sliced_wasserstein"]', "--set", "eval.reference=digits", "--set", "eval.samples=3000")
READERS = (
    ("report", "runs/00000-short"), ("runs",), ("table", "runs/00000-short"), ("inspect", "runs/00000-short"),
    ("export", "runs/00000-short", "hub"), ("generate", "--network", "runs/00000-short", "--seeds", "0", "--outdir", "out"),
)  # fmt: skip
"""Commands that read a run's folder."""
COMMANDS = (
    ("dataset", "../pictures", "out.zip"),
    ("dataset", "../pictures", "out", "--resolution", "4"),
    ("generate", "--network", "../net.pt", "--seeds", "0-299", "--outdir", "out", "--format", "png", "--format", "npz"),
    ("convert", "../net.pt", "out.pkl"),
    ("convert", "../net.pt", "out.safetensors"),
    ("export", "../net.pt", "out"),
    ("features", "--recipe", FEATURES, "--set", "classifier.epochs=1", "--save", "out.pt"),
)
"""Commands that write `out`, in the same bytes each time."""
STOP_SECONDS, READ_SECONDS = 10.0, 20.0
TRIAL_SECONDS = 120.0


class Run:
    """The command in a copy of this process. `before` is called in it first."""

    def __init__(self, cwd: Path, *words: str, before: Callable[[], object] = lambda: None) -> None:
        self.output = cwd / f"output-{time.monotonic_ns()}.txt"
        file = os.open(self.output, os.O_WRONLY | os.O_CREAT)
        sys.stdout.flush()
        self.pid = os.fork()
        if self.pid == 0:
            code = 1
            try:
                os.setsid()
                os.chdir(cwd)
                os.dup2(file, 1)
                os.dup2(file, 2)
                sys.stdout, sys.stderr = (os.fdopen(handle, "w", 1, errors="replace", closefd=False) for handle in (1, 2))
                for number in SIGNALS:
                    signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
                before()
                main(list(words))
            except SystemExit as stopped:
                code = int(stopped.code or 0)
            finally:
                sys.stdout.flush()
                sys.stderr.flush()
                os._exit(code)
        os.close(file)

    def send(self, number: int) -> None:
        os.kill(self.pid, number)

    def wait(self, seconds: float = TRIAL_SECONDS) -> int:
        """The exit code, or minus the signal that killed it."""
        return self.wait_and_measure(seconds)[0]

    def wait_and_measure(self, seconds: float) -> tuple[int, int]:
        """The exit code, or minus the signal that killed it, and the peak of its memory in bytes."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            pid, found, usage = os.wait4(self.pid, os.WNOHANG)
            if pid:
                assert "Traceback" not in self.text() and "a bug in distill" not in self.text(), self.text()
                return os.waitstatus_to_exitcode(found), usage.ru_maxrss * 1024
            time.sleep(0.01)
        os.kill(self.pid, signal.SIGKILL)
        os.waitpid(self.pid, 0)
        raise AssertionError(f"no end after {seconds:.0f} s: {self.text()}")

    def text(self) -> str:
        return self.output.read_text()


class Soak:
    """A run of four iterations, what it comes to, and all the ways to break it. Each way is one method and one trial."""

    def __init__(self, folder: Path, seed: int) -> None:
        self.folder, self.seed, self.slowest, self.kills = folder, seed, 0.0, 0
        os.environ["DISTILL_CACHE_DIR"] = str(folder / "cache")
        save_network(folder / "teacher.pt", "denoiser", tiny_network(), {"D": 128.0, "sigma_data": 0.5})
        text = RECIPE.format(teacher="../teacher.pt", outdir="runs")
        for old, new in CHANGES:
            assert old in text
            text = text.replace(old, new)
        (folder / "short.toml").write_text(text)
        save_network(folder / "net.pt", "generator", tiny_network(), {"D": 128.0, "sigma_init": 2.5})
        (folder / "pictures").mkdir()
        grey_images(folder / "pictures", 64)
        self.references: dict[tuple[str, ...], Path] = {}
        self.made: dict[tuple[str, ...], tuple[float, dict[str, str]]] = {}
        """Of other commands: the seconds that they take, and what they make."""
        start = time.monotonic()
        self.reference()
        self.seconds, self.calls = time.monotonic() - start, self.count_calls()

    def new(self, name: str) -> Path:
        """An empty folder with the recipe."""
        cwd = self.folder / name
        cwd.mkdir()
        shutil.copy(self.folder / "short.toml", cwd)
        return cwd

    def reference(self, *more: str) -> Path:
        """The run folder that nothing happened to."""
        if more not in self.references:
            cwd = self.new(f"reference{len(self.references)}")
            assert Run(cwd, *RUN, *more).wait() == 0
            self.references[more] = cwd / "runs" / "00000-short"
        return self.references[more]

    def finish(self, cwd: Path, *more: str) -> None:
        """Resume until the end; all must be as if nothing had happened."""
        resumed = Run(cwd, *RUN, *more)
        assert resumed.wait() == 0, resumed.text()
        self.compare(cwd, *more)

    def compare(self, cwd: Path, *more: str, lines: int = 2) -> None:
        """The run in a folder against the one that nothing happened to: weights, snapshots, and the number of its lines."""
        wanted, found = self.reference(*more), max(p for p in (cwd / "runs").iterdir() if states(p))
        a, b = (torch.load(states(p)[0], weights_only=True) for p in (wanted, found))
        assert a["nimg"] == b["nimg"], (a["nimg"], b["nimg"])
        assert equal(a["parts"], b["parts"]) and equal(a["rng"], b["rng"]), "other weights"
        for path in wanted.glob("network-snapshot-*.pkl"):
            assert (found / path.name).read_bytes() == path.read_bytes(), f"another {path.name}"
        assert not list(found.glob(".*.distill")), "left behind by a killed write"
        assert lines == 0 or (found / "stats.jsonl").read_text().count("\n") == lines, "lines of statistics"

    def count_calls(self) -> int:
        """System calls with which the whole run writes files."""
        cwd = self.new("calls")
        assert Run(cwd, *RUN, before=lambda: strike_at(None, cwd / "calls.txt")).wait() == 0
        return len((cwd / "calls.txt").read_text())

    def killed(self, cwd: Path, rng: random.Random) -> None:
        """SIGKILL at a random moment, up to three times."""
        for _ in range(rng.randint(1, 3)):
            run = Run(cwd, *RUN)
            time.sleep(rng.uniform(0, self.seconds))
            run.send(signal.SIGKILL)
            run.wait()
            self.kills += 1
        self.finish(cwd)

    def killed_in_a_write(self, cwd: Path, rng: random.Random) -> None:
        """SIGKILL at a system call of a write, or in the middle of it."""
        assert Run(cwd, *RUN, before=lambda: strike_at(rng.randrange(self.calls))).wait() == -signal.SIGKILL
        self.kills += 1
        self.finish(cwd)

    def signalled(self, cwd: Path, rng: random.Random) -> None:
        """A signal at a random moment, most of which a metric is measured in."""
        self.reference(*MEASURED)
        run, number = Run(cwd, *RUN, *MEASURED), rng.choice(SIGNALS)
        while not (cwd / "runs").is_dir() or not list(cwd.glob("runs/*/log.txt")):  # before that, signals just end it
            time.sleep(0.01)
        time.sleep(rng.uniform(0, 3))
        run.send(number)
        start = time.monotonic()
        code = run.wait(STOP_SECONDS)
        self.slowest = max(self.slowest, time.monotonic() - start)
        assert code in (0, 128 + number), (code, run.text())
        assert code == 0 or "--resume" in run.text(), run.text()
        self.finish(cwd, *MEASURED)

    def damaged_state(self, cwd: Path, rng: random.Random) -> None:
        """The newest state loses its end, or has a bit flipped or a page of zeros."""
        shutil.copytree(self.reference(), cwd / "runs" / "00000-short")
        newest = states(cwd / "runs" / "00000-short")[0]
        damage(newest, rng)
        self.finish(cwd)
        assert newest.with_name(newest.name + ".damaged").is_file()

    def damaged_folder(self, cwd: Path, rng: random.Random) -> None:
        """Some files of an unfinished run, but for states and snapshots, are damaged, gone, or something else. Whatever reads the
        folder ends with a reason, and the run goes on, at the latest when what is no file is gone."""
        folder = cwd / "runs" / "00000-short"
        shutil.copytree(self.reference(*MEASURED), folder)
        for last in (states(folder)[0], folder / "quality.json", folder / "quality.txt"):
            last.unlink()
        others = [p for p in folder.iterdir() if not p.name.startswith(("training-state", "network-snapshot", "run.lock"))]
        for path in rng.sample(sorted(others), rng.randint(1, 3)):
            harm(path, rng)
        reader = Run(cwd, *rng.choice(READERS))
        assert reader.wait(READ_SECONDS) in (0, 1), reader.text()
        resumed = Run(cwd, *RUN, *MEASURED)
        code = resumed.wait()
        assert code in (0, 1), resumed.text()
        if code == 1:
            assert resumed.text().count("distill: ") == 1, resumed.text()
            for path in others:
                remove_unless_file(path)
            resumed = Run(cwd, *RUN, *MEASURED)
            assert resumed.wait() == 0, resumed.text()
        self.compare(cwd, *MEASURED, lines=0)

    def other_command(self, cwd: Path, rng: random.Random) -> None:
        """A signal, or SIGKILL, at a random moment of another command than a run. The same command again comes to the same."""
        words = rng.choice(COMMANDS)
        if words not in self.made:
            alone = self.new(f"made{len(self.made)}")
            start = time.monotonic()
            assert Run(alone, *words).wait() == 0
            self.made[words] = time.monotonic() - start, fingerprints(alone)
        seconds, wanted = self.made[words]
        run, number = Run(cwd, *words), rng.choice((*SIGNALS, signal.SIGKILL))
        time.sleep(rng.uniform(0, 1.1 * seconds))
        run.send(number)
        start = time.monotonic()
        code = run.wait(STOP_SECONDS)
        self.slowest = max(self.slowest, time.monotonic() - start)
        assert code in (0, 128 + number, -number), (code, run.text())
        self.kills += number == signal.SIGKILL
        found = fingerprints(cwd)
        assert code or found == wanted, "another output"
        assert all(wanted.get(name) == value for name, value in found.items() if words[0] != "generate"), "half-written"
        if code:
            again = Run(cwd, *words)
            assert again.wait() == 0, again.text()
            assert fingerprints(cwd) == wanted, "another output"

    def damaged_network(self, cwd: Path, rng: random.Random) -> None:
        """A network's file with a flipped bit, a lost end or a page of zeros is refused."""
        file = cwd / f"net.{rng.choice(['pkl', 'pt', 'safetensors'])}"
        save_network(file, "generator", tiny_network(), {"D": 128.0, "sigma_init": 2.5})
        damage(file, rng)
        run = Run(cwd, "generate", "--network", file.name, "--seeds", "0", "--outdir", "out")
        assert run.wait() == 1, run.text()
        assert not (cwd / "out").exists()

    def full_disk(self, cwd: Path, rng: random.Random) -> None:
        """No file can be longer than this, until the run is resumed."""
        most = rng.randrange(100, 200_000)
        run = Run(cwd, *RUN, before=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (most, resource.RLIM_INFINITY)))
        assert run.wait() in (0, 1), run.text()
        self.finish(cwd)

    def small_disk(self, cwd: Path, rng: random.Random) -> None:
        """A disk that fills in mid-run, and is made larger."""
        size = rng.randrange(16, 1024)
        with mounted(cwd / "runs", "-t", "tmpfs", "-o", f"size={size}k") as remount:
            run = Run(cwd, *RUN)
            assert run.wait() in (0, 1), run.text()
            remount("size=64m")
            self.finish(cwd)

    def read_only_disk(self, cwd: Path, rng: random.Random) -> None:
        """The run's folder becomes read-only in mid-run, until the run has ended."""
        folder = cwd / "runs" / "00000-short"
        run = Run(cwd, *RUN)
        while not (folder / "stats.jsonl").is_file():
            time.sleep(0.001)
        time.sleep(rng.uniform(0, 0.2))
        with mounted(folder, "--bind") as remount:
            remount("bind,ro")
            assert run.wait() in (0, 1), run.text()
        self.finish(cwd)

    def folder_gone(self, cwd: Path, rng: random.Random) -> None:
        """The run's folder is renamed in mid-run, and comes back when the run has ended."""
        run = Run(cwd, *RUN)
        folder = cwd / "runs" / "00000-short"
        while not (folder / "stats.jsonl").is_file():
            time.sleep(0.001)
        time.sleep(rng.uniform(0, 0.2))
        folder.rename(cwd / "elsewhere")
        assert run.wait() in (0, 1), run.text()
        for other in (cwd / "runs").iterdir():  # it went on in one of that name, or beside one in which a write was on its way
            shutil.rmtree(other)
        (cwd / "elsewhere").rename(folder)
        self.finish(cwd)

    def clock_jumps(self, cwd: Path, rng: random.Random) -> None:
        """A stopped run's files get times of the past and of the future."""
        run = Run(cwd, *RUN)
        while not list(cwd.glob("runs/*/training-state-*.pt")):
            time.sleep(0.001)
        run.send(signal.SIGKILL)
        run.wait()
        self.kills += 1
        for path in cwd.rglob("*"):
            os.utime(path, (time.time() + rng.uniform(-1e7, 1e7),) * 2)
        self.finish(cwd)

    def killed_rank(self, cwd: Path, rng: random.Random) -> None:
        """One of torchrun's two processes is killed; torchrun starts them again, and they go on."""
        torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]

        def start(where: Path) -> subprocess.Popen[bytes]:
            words = [*torchrun, "--max-restarts=3", "-m", "registry.cli", *RUN, "--set", "train.timeout_minutes=0.5"]
            with open(where / "output.txt", "wb") as output:
                return subprocess.Popen(words, cwd=where, env=environment(), stdout=output, stderr=output)

        if ("two",) not in self.references:
            alone = self.new("reference-two")
            assert start(alone).wait(TRIAL_SECONDS) == 0
            self.references["two",] = alone / "runs" / "00000-short"
        run = start(cwd)
        end = time.monotonic() + TRIAL_SECONDS
        while not (ranks := children(run.pid)) or (rng.random() < 0.9 and run.poll() is None and not list(cwd.glob("runs/*/*.pt"))):
            assert time.monotonic() < end
            time.sleep(0.1)
        os.kill(rng.choice(ranks), signal.SIGKILL)
        self.kills += 1
        assert run.wait(TRIAL_SECONDS) == 0, (cwd / "output.txt").read_text()
        self.compare(cwd, "two")

    def trial(self, name: str, number: int) -> str:
        """One trial: '' if all went well, otherwise what did not. The folder is kept then. In half of them the states are written
        in the background."""
        cwd, rng = self.new(f"{number:05d}-{name}"), random.Random(f"{self.seed}/{number}")
        recipe = cwd / "short.toml"
        recipe.write_text(
            recipe.read_text().replace("keep_states", f"background_states = {rng.choice(['true', 'false'])}\nkeep_states")
        )
        try:
            getattr(self, name)(cwd, rng)
        except AssertionError as error:
            return f"{cwd}: {' '.join(str(error).split())[:1000]}"
        shutil.rmtree(cwd)
        return ""


KINDS = {
    "killed": 10, "killed_in_a_write": 15, "signalled": 4, "damaged_state": 8, "damaged_network": 12, "damaged_folder": 4,
    "other_command": 8, "full_disk": 3,
    "small_disk": 1, "read_only_disk": 1, "folder_gone": 1, "clock_jumps": 1, "killed_rank": 1,
}  # fmt: skip
"""The ways to break a run, and how often each comes."""


NEED_MOUNT = ("small_disk", "read_only_disk")


@contextmanager
def mounted(folder: Path, *options: str) -> Iterator[Callable[[str], None]]:
    """A file system mounted on a folder, or the folder on itself. Gives what changes its options."""
    folder.mkdir(exist_ok=True)
    source = str(folder) if "--bind" in options else "soak"
    subprocess.run(["mount", *options, source, str(folder)], check=True, capture_output=True)

    def remount(changed: str) -> None:
        end = time.monotonic() + TRIAL_SECONDS
        while subprocess.run(["mount", "-o", f"remount,{changed}", str(folder)], capture_output=True).returncode:
            assert time.monotonic() < end, f"{folder} could not be mounted with {changed}"
            time.sleep(0.001)  # nothing becomes read-only while a file in it is being written

    try:
        yield remount
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def may_mount() -> bool:
    """Whether this user may mount file systems."""
    with tempfile.TemporaryDirectory() as folder:
        try:
            with mounted(Path(folder), "--bind"):
                return True
        except (OSError, subprocess.CalledProcessError):
            return False


def equal(a: Any, b: Any) -> bool:
    """Whether two states hold the same values."""
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(equal(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(equal, a, b))
    return torch.equal(a, b) if isinstance(a, torch.Tensor) else bool(a == b)


def damage(path: Path, rng: random.Random) -> None:
    """Flip a bit, lose the end, or write zeros over a page."""
    content = bytearray(path.read_bytes())
    place = rng.randrange(len(content))
    kind = rng.choice(["bit", "bit", "bit", "bit", "end", "page"])
    if kind == "end":
        del content[place:]
    elif kind == "page" and any(content[place : place + 4096]):
        content[place : place + 4096] = bytes(len(content[place : place + 4096]))
    else:
        content[place] ^= 1 << rng.randrange(8)
    path.write_bytes(content)


def harm(path: Path, rng: random.Random) -> None:
    """Damage a file, or put something else in its place."""
    kind = rng.choice(["damage"] * 6 + ["empty", "gone", "pipe", "folder", "loop", "huge", "another"])
    other = rng.choice(sorted(p for p in path.parent.iterdir() if p.is_file() and p.stat().st_size < 2**24)).read_bytes()
    if kind == "damage" and path.stat().st_size:
        return damage(path, rng)
    if kind == "huge":
        return os.truncate(path, 2**35)
    path.unlink()
    match kind:
        case "empty":
            path.touch()
        case "pipe":
            os.mkfifo(path)
        case "folder":
            path.mkdir()
        case "loop":
            path.symlink_to(path.name)
        case "another":
            path.write_bytes(other)


def remove_unless_file(path: Path) -> None:
    """Remove a folder, a pipe or a link."""
    if path.is_dir():
        path.rmdir()
    elif path.is_symlink() or path.is_fifo():
        path.unlink()


def fingerprints(cwd: Path) -> dict[str, str]:
    """What a command has made there, but for what a killed write has left behind."""
    files = [p for p in cwd.rglob("*") if p.is_file() and "out" in {p.stem, p.relative_to(cwd).parts[0]}]
    return {str(p.relative_to(cwd)): hashlib.sha256(p.read_bytes()).hexdigest() for p in files if not p.name.endswith(".distill")}


def children(pid: int) -> list[int]:
    found = subprocess.run(["ps", "-o", "pid=", "--ppid", str(pid)], capture_output=True, text=True, check=False).stdout
    return list(map(int, found.split()))


def strike_at(number: int | None, note: Path | None = None) -> None:
    """From now on, count the system calls with which files are written, and die at this one. With a note, write a dot for each."""
    calls = itertools.count()
    handle = None if note is None else os.open(note, os.O_WRONLY | os.O_CREAT)

    def strikes() -> bool:
        if handle is not None:
            os.write(handle, b".")
        return next(calls) == number  # a thread of its own may write, too

    def counted(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            if strikes():
                os.kill(os.getpid(), signal.SIGKILL)
            return function(*args, **kwargs)

        return call

    class Written:
        """A file of which half of a write arrives."""

        def __init__(self, file: Any) -> None:
            self.file = file

        def __getattr__(self, name: str) -> Any:
            return getattr(self.file, name)

        def __enter__(self) -> Written:
            return self

        def __exit__(self, *error: Any) -> None:
            self.file.close()

        def write(self, data: bytes) -> int:
            if strikes():
                self.file.write(bytes(data)[: len(bytes(data)) // 2])
                self.file.flush()
                os.kill(os.getpid(), signal.SIGKILL)
            return int(self.file.write(data))

    open_ = builtins.open

    def opened(file: Any, mode: str = "r", *args: Any, **kwargs: Any) -> Any:
        return Written(counted(open_)(file, mode)) if mode == "x+b" else open_(file, mode, *args, **kwargs)

    builtins.open = opened
    for name in ("fsync", "replace", "mkdir", "unlink"):
        setattr(os, name, counted(getattr(os, name)))


@contextmanager
def soaking(seed: int) -> Iterator[Soak]:
    torch.set_num_threads(1)  # threads do not survive a fork
    folder = Path(tempfile.mkdtemp(prefix="soak-"))
    yield Soak(folder, seed)
    if not [p for p in folder.iterdir() if re.match(r"\d{5}-", p.name)]:
        shutil.rmtree(folder)


def in_turn(chosen: dict[str, int], minutes: float, seed: int, each: int | None) -> Iterator[str]:
    """Ways to break a run: drawn until the time is over, or each so many times."""
    if each is not None:
        yield from list(chosen) * each
        return
    order, end = random.Random(seed), time.monotonic() + 60 * minutes
    while time.monotonic() < end:
        yield order.choices(list(chosen), list(chosen.values()))[0]


def soak(chosen: dict[str, int], minutes: float, seed: int, each: int | None, console: Console) -> int:
    """Trials until the time is over, or until Ctrl-C. Returns the number of those that failed."""
    tried, failed, start = Counter[str](), Counter[str](), time.monotonic()

    def so_far() -> str:
        return f"{tried.total()} trials in {(time.monotonic() - start) / 60:.0f} minutes, {failed.total()} failed"

    with soaking(seed) as here:
        with suppress(KeyboardInterrupt), console.status(so_far()) as status:
            for name in in_turn(chosen, minutes, seed, each):
                problem = here.trial(name, tried.total())
                tried[name] += 1
                if problem:
                    failed[name] += 1
                    console.print(f"{name}: {problem}", markup=False, soft_wrap=True)
                status.update(so_far())
                if tried.total() % 25 == 0:
                    console.print(so_far())
        took = (time.monotonic() - start) / 60
        table = Table(
            "what happened", "trials", "as if nothing had", title=f"seed {seed}, {took:.0f} minutes", title_justify="left"
        )
        for name in chosen:
            table.add_row(name.replace("_", " "), str(tried[name]), str(tried[name] - failed[name]))
        console.print(table)
        console.print(
            f"{here.kills} kills; {here.calls} system calls of writes in a run; the slowest stop took {here.slowest:.1f} s"
        )
    return failed.total()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--each", type=int, help="each kind of trial so many times, instead of so many minutes")
    parser.add_argument("--kind", choices=list(KINDS), action="append", help="only this kind of trial; repeatable")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    os.chdir(ROOT)
    only = {name: KINDS[name] for name in given.kind or KINDS if name not in NEED_MOUNT or may_mount()}
    for name in set(given.kind or KINDS) - set(only):
        print(f"{name.replace('_', ' ')}: not tried, for this user may not mount file systems")
    sys.exit(min(soak(only, given.minutes, given.seed, given.each, Console()), 1))
