"""Several processes: they wait for each other, learn the same, and tell the user once what is wrong."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from registry.cli.process_commands import first_failure
from tests.conftest import ROOT, environment, error_line, installed

Write = Callable[..., Path]
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
COMMAND = [sys.executable, "-m", "registry.cli"]


def torchrun(*arguments: str | Path, cwd: Path) -> subprocess.CompletedProcess[str]:
    command = [*TORCHRUN, *map(str, arguments)]
    return subprocess.run(command, env=environment(), cwd=cwd, capture_output=True, text=True, timeout=180, check=False)


def process(rank: int, port: int, *arguments: str | Path, cwd: Path) -> subprocess.Popen[str]:
    """One of two processes without torchrun, as a scheduler starts them on two machines."""
    where = {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    command = [*COMMAND, *map(str, arguments)]
    return subprocess.Popen(command, env=environment() | where, cwd=cwd, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


@pytest.fixture
def port() -> int:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return int(server.getsockname()[1])


def test_a_users_error_is_told_once_and_is_the_reason_that_torchrun_gives(tmp_path: Path) -> None:
    done = torchrun("-m", "registry.cli", "--recipe", "quickstart", "--set", "train.lr=-1", cwd=tmp_path)
    assert done.returncode == 1
    assert len(re.findall(r"^distill: .*must be greater than 0", done.stderr, re.MULTILINE)) == 1
    assert "To enable traceback see" not in done.stderr  # what torchrun says if it was told no reason
    assert "traceback : --set train.lr=-1: [train] lr = -1: must be greater than 0\n" in done.stderr


def test_a_usage_error_is_told_once(tmp_path: Path) -> None:
    done = torchrun("-m", "registry.cli", "--recipee", "quickstart", cwd=tmp_path)
    assert len(re.findall(r"^distill: no such option", done.stderr, re.MULTILINE)) == 1


def test_an_error_of_one_process_is_told_though_the_other_has_none(recipe_file: Write, tmp_path: Path, port: int) -> None:
    """Process 1 sees no teacher. Process 0 would wait for it."""
    recipe = recipe_file()
    for rank in (0, 1):
        (tmp_path / f"{rank}").mkdir()
    shutil.copy(tmp_path / "teacher.pt", tmp_path / "0")
    recipe.write_text(
        recipe.read_text().replace(str(tmp_path / "teacher.pt"), "teacher.pt").replace("[train]", "[train]\ntimeout_minutes = 0.3")
    )
    shutil.copy(recipe, tmp_path / "1" / "recipe.toml")
    shutil.copy(recipe, tmp_path / "0" / "recipe.toml")
    both = [process(rank, port, "--recipe", "recipe.toml", "--outdir", "runs", cwd=tmp_path / f"{rank}") for rank in (0, 1)]
    texts = [p.communicate(timeout=120)[1] for p in both]
    assert "teacher.pt" in texts[1] or "teacher.pt" in texts[0], texts
    assert all(p.returncode for p in both)


@pytest.mark.parametrize(
    ("arguments", "unlike"),
    [
        (["--seed", "3"], "train.seed: 0 and 3"),
        (["--set", "loss.alpha=0.3", "--set", "eval.samples=99"], "loss.alpha: 1.0 and 0.3; eval.samples: "),
    ],
)  # fmt: skip
def test_processes_that_were_given_other_settings(
    arguments: list[str], unlike: str, recipe_file: Write, tmp_path: Path, port: int
) -> None:
    recipe = recipe_file()
    both = [process(rank, port, "--recipe", recipe, *arguments[: 99 * rank], cwd=tmp_path) for rank in (0, 1)]
    texts = [p.communicate(timeout=120)[1] for p in both]
    assert [p.returncode for p in both] == [1, 1]
    assert f"process 1 was not given the same as process 0: {unlike}" in "".join(texts)
    assert not (tmp_path / "runs").exists()


def test_processes_that_sample_other_networks(tmp_path: Path, port: int) -> None:
    names = ("digits_d128", "digits_dinf")
    words = ("--seeds", "0-3", "--outdir", "images", "--device", "cpu")
    both = [process(rank, port, "generate", "--network", names[rank], *words, cwd=tmp_path) for rank in (0, 1)]
    texts = [p.communicate(timeout=120)[1] for p in both]
    assert [p.returncode for p in both] == [1, 1]
    assert "process 1 was not given the same as process 0: network: " in "".join(texts)
    assert not (tmp_path / "images").exists()


def test_a_process_that_does_not_come_is_named(recipe_file: Write, tmp_path: Path, port: int) -> None:
    alone = process(0, port, "--recipe", recipe_file(), "--set", "train.timeout_minutes=0.05", cwd=tmp_path)
    error = alone.communicate(timeout=120)[1]
    assert alone.returncode == 1
    assert "process 1 of 2 did not join the others within 0.05 minutes" in error


def test_a_killed_process_ends_the_others(recipe_file: Write, tmp_path: Path, port: int) -> None:
    recipe = recipe_file(("duration_kimg = 0.048", "duration_kimg = 50"))
    both = [process(rank, port, "--recipe", recipe, "--outdir", tmp_path / "runs", cwd=tmp_path) for rank in (0, 1)]
    wait_for(tmp_path / "runs", "training-state-*.pt", both)
    both[1].send_signal(signal.SIGKILL)
    error = both[0].communicate(timeout=180)[1]
    assert both[0].returncode == 75, error
    assert "process 0 of 2: another process has ended, or does not answer" in error


def launch(*arguments: str | Path, cwd: Path) -> subprocess.Popen[str]:
    command = [*COMMAND, "launch", "--processes", "2", *map(str, arguments)]
    return subprocess.Popen(command, env=environment(), cwd=cwd, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


@pytest.mark.parametrize(
    ("words", "code", "error"),
    [
        (
            ["--recipe", "quickstart", "--set", "train.lr=-1"],
            1,
            "distill: --set train.lr=-1: [train] lr = -1: must be greater than 0",
        ),
        (["--recipe", "no_such_recipe"], 1, "distill: no_such_recipe: no such recipe"),
        (["--recipe", "toy_2d", "--outdir", "/proc/x"], 1, "distill: [log] outdir = '/proc/x': cannot be written"),
        (["--recipee", "quickstart"], 2, "distill: no such option '--recipee'"),
    ],
)
def test_launched_processes_tell_an_error_once_and_nothing_else_does(
    words: list[str], code: int, error: str, tmp_path: Path
) -> None:
    done = launch("--max-restarts", "2", *words, "--resume", "auto", cwd=tmp_path)  # which would only bring it again
    out, errors = done.communicate(timeout=120)
    assert (done.returncode, out) == (code, "")
    lines = errors.splitlines()
    assert len(lines) == 1 and lines[0].startswith(error), errors


@pytest.mark.parametrize("seconds", [0, 3])
def test_a_launch_that_is_interrupted_while_it_loads(seconds: float, recipe_file: Write, tmp_path: Path) -> None:
    """Nobody else may say so then; and what torchrun keeps is not left."""
    (tmp_path / "temporary").mkdir()
    command = [
        *COMMAND,
        "launch",
        "--processes",
        "2",
        "--recipe",
        str(recipe_file(("duration_kimg = 0.048", "duration_kimg = 500"))),
    ]
    places = environment({"TMPDIR": str(tmp_path / "temporary")})
    run = subprocess.Popen(command, env=places, cwd=tmp_path, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    try:
        wait_for(tmp_path, "tmp*", [run])
        time.sleep(seconds)
        run.send_signal(signal.SIGTERM)
        _, errors = run.communicate(timeout=120)
    finally:
        run.kill()
    assert run.returncode == 128 + signal.SIGTERM and re.fullmatch("distill: interrupted.*\n", errors), (run.returncode, errors)
    assert not [*(tmp_path / "temporary").glob("torchelastic*"), *(tmp_path / "temporary").glob("tmp*")]


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="the system does not list a process's children")
@pytest.mark.parametrize("which", [0, 1])
def test_a_launched_process_that_is_signalled_while_it_loads(which: int, recipe_file: Write, tmp_path: Path) -> None:
    run = launch("--recipe", recipe_file(("duration_kimg = 0.048", "duration_kimg = 500")), cwd=tmp_path)
    end = time.monotonic() + 120
    children: list[str] = []
    try:
        while len(children) < 2:
            assert run.poll() is None and time.monotonic() < end
            tasks = Path(f"/proc/{run.pid}/task").iterdir()
            children = [pid for task in tasks for pid in (task / "children").read_text().split() if catches(pid, signal.SIGTERM)]
            time.sleep(0.02)
        os.kill(int(children[which]), signal.SIGTERM)
        _, errors = run.communicate(timeout=120)
    finally:
        run.kill()
    assert run.returncode == 128 + signal.SIGTERM and re.fullmatch("distill: interrupted.*\n", errors), (run.returncode, errors)


def test_a_second_ctrl_c_leaves_a_launch_at_once(recipe_file: Write, tmp_path: Path) -> None:
    """Though one of its processes answers nothing, and their locks are free then."""
    run = launch("--recipe", recipe_file(("duration_kimg = 0.048", "duration_kimg = 500")), cwd=tmp_path)
    try:
        wait_for(tmp_path, "*/stats.jsonl", [run])
        tasks = Path(f"/proc/{run.pid}/task").iterdir()
        children = [int(pid) for task in tasks for pid in (task / "children").read_text().split()]
        os.kill(children[1], signal.SIGSTOP)
        run.send_signal(signal.SIGINT)
        time.sleep(2)
        assert run.poll() is None  # it waits for what is stopped
        run.send_signal(signal.SIGINT)
        _, errors = run.communicate(timeout=60)
    finally:
        run.kill()
    assert run.returncode == 130 and "distill: interrupted; the processes were ended at once\n" in errors
    assert not any(Path(f"/proc/{pid}").is_dir() for pid in children)


SIGNALLED = """
import os, signal, subprocess, sys
from registry.cli import main

class Popen(subprocess.Popen):
    def __init__(self, *given, **named):
        super().__init__(*given, **named)
        if "registry.cli" in str(self.args):
            os.kill(os.getpid(), signal.SIGTERM)

subprocess.Popen = Popen
main()
"""


def test_a_launch_that_is_signalled_between_the_starts_of_two_processes(recipe_file: Write, tmp_path: Path) -> None:
    """torchrun does not know yet of the first."""
    words = ["launch", "--processes", "2", "--recipe", str(recipe_file(("duration_kimg = 0.048", "duration_kimg = 500")))]
    run = subprocess.Popen(
        [sys.executable, "-c", SIGNALLED, *words], env=environment(), cwd=tmp_path, text=True, stdout=subprocess.PIPE,
        stderr=subprocess.PIPE, start_new_session=True,
    )  # fmt: skip
    try:
        _, errors = run.communicate(timeout=120)
    finally:
        run.kill()
    assert (run.returncode, errors) == (128 + signal.SIGTERM, "distill: interrupted\n")


def test_a_launch_waits_for_no_process_but_its_own(recipe_file: Write, tmp_path: Path) -> None:
    """What a shell has started before it became the launcher."""
    words = shlex.join([*COMMAND, "launch", "--processes", "1", "--recipe", str(recipe_file())])
    shell = ["bash", "-c", f"sleep 600 >/dev/null 2>&1 & echo $! > sleeping; exec {words}"]
    done = subprocess.run(shell, env=environment(), cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    os.kill(int((tmp_path / "sleeping").read_text()), signal.SIGKILL)  # which was not ended


def catches(pid: str, number: int) -> bool:
    """Whether a process has a handler for a signal."""
    status = Path(f"/proc/{pid}/status").read_text()
    return bool(int(re.search(r"SigCgt:\s*(\w+)", status)[1], 16) >> (number - 1) & 1)  # type: ignore[index]


@pytest.mark.parametrize(
    ("words", "code", "error"),
    [
        (["launch"], 2, "distill: missing the command to run"),
        (["launch", "--processes", "0", "plugins"], 2, "distill: invalid value for '--processes'"),
        (["launch", "generate"], 1, "distill: --processes: there is no GPU here; say how many processes"),
        (["launch", "--processes", "2", "dataset", "a", "b.zip"], 2, "distill: 'dataset' cannot be shared among processes"),
        (["launch", "--recipe", "toy_2d", "--processes", "2"], 2, "distill: --processes comes before the command"),
    ],
)
@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_a_launch_that_cannot_begin(words: list[str], code: int, error: str, tmp_path: Path) -> None:
    done = subprocess.run(
        [*COMMAND, *words], env=environment(), cwd=tmp_path, capture_output=True, text=True, timeout=180, check=False
    )
    assert done.returncode == code
    assert done.stderr.splitlines()[-1].startswith(error)


def test_launched_processes_save_a_state_when_signalled(recipe_file: Write, tmp_path: Path) -> None:
    recipe = recipe_file(("duration_kimg = 0.048", "duration_kimg = 50"), ("state_ticks = 1", "state_ticks = 100000"))
    run = launch("--recipe", recipe, "--outdir", tmp_path / "runs", cwd=tmp_path)
    wait_for(tmp_path / "runs", "stats.jsonl", [run])
    run.send_signal(signal.SIGUSR1)
    error = run.communicate(timeout=180)[1]
    assert run.returncode == 128 + signal.SIGUSR1
    again = (
        rf"\S+ -m registry.* launch --processes 2 --recipe {re.escape(str(recipe))} --outdir {re.escape(str(tmp_path / 'runs'))}"
    )
    assert re.fullmatch(rf"distill: interrupted at \S+ kimg; the state is kept, continue with {again} --resume \S+\n", error), error
    assert len(list((tmp_path / "runs").glob("*/training-state-*.pt"))) == 1


def test_launched_processes_take_no_modules_from_the_working_folder(tmp_path: Path) -> None:
    """As the console script takes none; `python -m` alone would."""
    script = tmp_path / "bin" / "distill"
    script.parent.mkdir()
    script.write_text("from registry.cli import main\nmain()\n")
    (tmp_path / "click.py").write_text("raise SystemExit('a stranger was here')\n")
    words = [
        "launch",
        "--processes",
        "2",
        "generate",
        "--network",
        "digits_d3",
        "--steps",
        "2",
        "--seeds",
        "0-3",
        "--outdir",
        "out",
    ]
    done = subprocess.run(
        [sys.executable, str(script), *words],
        env=environment(),
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=180,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "a stranger was here" not in done.stdout + done.stderr and len(list((tmp_path / "out").glob("*.png"))) == 4


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells a process that its parent has ended")
def test_if_the_launcher_is_killed_the_processes_save_a_state_and_stop(recipe_file: Write, tmp_path: Path) -> None:
    recipe = recipe_file(("duration_kimg = 0.048", "duration_kimg = 50"), ("state_ticks = 1", "state_ticks = 100000"))
    run = launch("--recipe", recipe, "--outdir", tmp_path / "runs", cwd=tmp_path)
    wait_for(tmp_path / "runs", "stats.jsonl", [run])
    run.send_signal(signal.SIGKILL)
    error = run.communicate(timeout=180)[1]  # it ends when the last process has closed it
    assert re.fullmatch(r"distill: interrupted at \S+ kimg; the state is kept, continue with .* launch .* --resume \S+\n", error), (
        error
    )
    assert len(list((tmp_path / "runs").glob("*/training-state-*.pt"))) == 1


def test_a_launched_process_that_is_killed_ends_all(recipe_file: Write, tmp_path: Path) -> None:
    recipe = recipe_file(("duration_kimg = 0.048", "duration_kimg = 50"))
    run = launch("--recipe", recipe, "--outdir", tmp_path / "runs", cwd=tmp_path)
    wait_for(tmp_path / "runs", "stats.jsonl", [run])
    children = Path(f"/proc/{run.pid}/task/{run.pid}/children").read_text().split()
    os.kill(int(children[-1]), signal.SIGKILL)
    error = run.communicate(timeout=180)[1]
    assert (run.returncode, error.startswith("distill: process ")) in ((128 + signal.SIGKILL, True), (75, True)), error
    assert len(error.splitlines()) == 1


def test_launched_processes_start_again_when_one_is_lost(recipe_file: Write, tmp_path: Path) -> None:
    """The first time before there is a state, the second time beside another run of the recipe that is newer."""

    def lose_one() -> None:
        children = Path(f"/proc/{run.pid}/task/{run.pid}/children").read_text().split()
        os.kill(int(children[-1]), signal.SIGKILL)

    recipe, runs = (
        recipe_file(("duration_kimg = 0.048", "duration_kimg = 0.8"), ("state_ticks = 1", "state_ticks = 10")),
        tmp_path / "runs",
    )
    run = launch("--max-restarts", "2", "--recipe", recipe, "--outdir", runs, "--resume", "auto", cwd=tmp_path)
    wait_for(runs, "stats.jsonl", [run])
    lose_one()
    wait_for(runs, "training-state-*.pt", [run])
    (folder,) = {path.parent for path in runs.glob("*/training-state-*.pt")}
    newer = folder.with_name(folder.name.replace("00001", "00002"))  # of another seed, say
    newer.mkdir()
    for path in (max(folder.glob("training-state-*.pt")), folder / "recipe.toml"):
        shutil.copy(path, newer)
    before = {path.name: path.read_bytes() for path in newer.iterdir()}
    lose_one()
    out, errors = run.communicate(timeout=300)
    assert run.returncode == 0, errors
    anew, again = [line for line in errors.splitlines() if "starting again" in line]
    assert anew.endswith(f"(1 of 2); anew, for there is no training state in {runs / newer.name.replace('00002', '00000')}")
    assert again == "distill: starting again (2 of 2)" and "resuming at " in out, (out, errors)
    assert "kimg 0.8 " in (folder / "log.txt").read_text()
    assert {path.name: path.read_bytes() for path in newer.iterdir()} == before


def wait_for(outdir: Path, pattern: str, processes: list[subprocess.Popen[str]]) -> None:
    end = time.monotonic() + 120
    while not list(outdir.glob(f"*/{pattern}")):
        assert all(p.poll() is None for p in processes) and time.monotonic() < end
        time.sleep(0.05)


def test_resumed_without_a_shared_disk_both_go_on_from_the_state_of_process_0(
    recipe_file: Write, tmp_path: Path, port: int
) -> None:
    """Process 1 has an empty folder; the result is that of a resumption with a shared one, to the bit."""
    recipe = recipe_file()
    first = torchrun(
        "-m", "registry.cli", "--recipe", recipe, "--outdir", "runs", "--set", "train.duration_kimg=0.024", cwd=tmp_path
    )
    assert first.returncode == 0, first.stderr
    for name in ("shared", "apart"):
        shutil.copytree(tmp_path / "runs", tmp_path / name / "runs")
    (tmp_path / "empty").mkdir()
    again = ("--recipe", recipe, "--outdir", "runs", "--resume", "auto")
    done = torchrun("-m", "registry.cli", *again, cwd=tmp_path / "shared")
    assert done.returncode == 0, done.stderr
    both = [process(rank, port, *again, cwd=tmp_path / name) for rank, name in enumerate(("apart", "empty"))]
    for p in both:
        error = p.communicate(timeout=180)[1]
        assert p.returncode == 0, error
    assert not list((tmp_path / "empty").rglob("*.pt"))
    shared, apart = (next((tmp_path / name / "runs").iterdir()) for name in ("shared", "apart"))
    assert len(list((tmp_path / "apart" / "runs").iterdir())) == 1
    wanted, found = (torch.load(f / "training-state-000000.pt", weights_only=True) for f in (shared, apart))
    assert found["nimg"] == wanted["nimg"] == 48
    same = [torch.equal(t, found["parts"]["generator"]["net"][k]) for k, t in wanted["parts"]["generator"]["net"].items()]
    assert all(same)


AGREEMENT = """
import sys
import torch
from registry.core import distributed
from registry.core.errors import UserError
from registry.runs.health import check_agreement
from registry.train.step import Learner

distributed.start("cpu")
torch.manual_seed(0)
learner = Learner(torch.nn.Linear(300, 300), 8, 1e-3)
learner.accumulate(learner(torch.ones(4, 300)))
learner.step()
check_agreement({"student": learner}, 8)
weights, bit, what = learner.net.weight.data, int(sys.argv[1]), sys.argv[2]
tensor = weights if what == "weight" else learner.optimiser.state[learner.net.weight]["exp_avg"]
if distributed.rank() == 1 and what != "images":
    tensor.view(torch.int32)[7, 11] ^= 1 << bit
try:
    check_agreement({"student": learner}, 8 if distributed.rank() == 0 or what != "images" else 16)
    said = "nothing"
except UserError as error:
    said = str(error)
if distributed.rank() == 0:
    print("said:", said)
distributed.stop()
"""


@pytest.mark.parametrize(("bit", "what", "text"), [
    (0, "weight", "process 1 has another student"), (30, "moment", "process 1 has another student"), (0, "images", "other images"),
])  # fmt: skip
def test_a_single_bit_in_which_processes_differ_is_noticed(bit: int, what: str, text: str, tmp_path: Path) -> None:
    (tmp_path / "agreement.py").write_text(AGREEMENT)
    done = torchrun("agreement.py", str(bit), what, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert text in done.stdout


SHARE = """
from registry.core import distributed
from registry.core.errors import UserError

distributed.start("cpu")

def work(part):
    if 5 in part:
        raise UserError("image 5 is broken")
    return list(part)

assert distributed.share(4, 1, work) == [[0], [1], [2], [3]]
try:
    distributed.share(20, 1, work)
    text = "nothing"
except UserError as error:
    text = str(error)
print("\\n" + repr(distributed.gather(text)), flush=True)
distributed.stop()
"""


def test_an_error_in_shared_work_reaches_all_processes(tmp_path: Path) -> None:
    (tmp_path / "share.py").write_text(SHARE)
    done = torchrun("share.py", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "['image 5 is broken', 'image 5 is broken']" in done.stdout


SCONTROL = """#!/bin/bash
echo "$@" >> "{log}"
"""


@pytest.mark.parametrize("sent", [signal.SIGUSR1, signal.SIGTERM])
def test_the_slurm_script_saves_a_state_and_goes_on(sent: signal.Signals, recipe_file: Write, tmp_path: Path) -> None:
    """The script's shell alone is signalled, as sbatch does with B:USR1. `scontrol` is a stand-in that writes down what it is told."""
    recipe = recipe_file(("duration_kimg = 0.048", "duration_kimg = 50"), ("state_ticks = 1", "state_ticks = 100000"))
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "scontrol").write_text(SCONTROL.format(log=tmp_path / "asked.txt"))
    (tmp_path / "bin" / "scontrol").chmod(0o755)
    path = f"{tmp_path / 'bin'}:{Path(sys.executable).parent}:{os.environ['PATH']}"
    job = environment({"PATH": path, "SLURM_JOB_ID": "77", "SLURM_GPUS_ON_NODE": "2"})

    def start(*arguments: str) -> subprocess.Popen[str]:
        command = ["bash", str(ROOT / "examples" / "slurm.sh"), "--recipe", str(recipe), *arguments]
        return subprocess.Popen(command, env=job, cwd=tmp_path, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)

    first = start()
    wait_for(tmp_path / "runs", "stats.jsonl", [first])
    first.send_signal(sent)
    out, error = first.communicate(timeout=120)
    (folder,) = (tmp_path / "runs").iterdir()
    (state,) = folder.glob("training-state-*.pt")
    assert len(re.findall(r"^distill: interrupted at .* continue with .* --resume", error, re.MULTILINE)) == 1, error
    asked = tmp_path / "asked.txt"
    assert asked.read_text() == "requeue 77\n" if sent == signal.SIGUSR1 else not asked.exists()  # otherwise Slurm does it
    nimg = torch.load(state, weights_only=True)["nimg"]
    done = start("--set", f"train.duration_kimg={nimg / 1000 + 0.016}")
    out, error = done.communicate(timeout=120)
    assert done.returncode == 0, error
    assert f"resuming at {nimg / 1000:.3f} kimg" in out
    assert len(list((tmp_path / "runs").iterdir())) == 1


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize(("rank", "address"), [(0, "127.0.0.1"), (1, "127.0.0.1"), (0, "nobody.invalid")])
def test_a_process_that_waits_for_the_others_answers_signals(rank: int, address: str, number: int, tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    alone = {"WORLD_SIZE": "2", "RANK": str(rank), "LOCAL_RANK": "0", "MASTER_ADDR": address, "MASTER_PORT": str(port)}
    run = subprocess.Popen(
        [sys.executable, "-m", "registry.cli", "--recipe", "quickstart"], cwd=tmp_path, env=environment(alone), text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )  # fmt: skip
    status = Path(f"/proc/{run.pid}/maps")
    deadline = time.monotonic() + 120
    while "libtorch_cpu" not in status.read_text() and time.monotonic() < deadline:  # torch is being loaded
        time.sleep(0.1)
    worked = -100
    while (now := clock_ticks(run.pid)) > worked + 5 and time.monotonic() < deadline:  # it waits for others when it works no more
        worked = now
        time.sleep(2)
    run.send_signal(number)
    try:
        out, err = run.communicate(timeout=60)
    finally:
        run.kill()
    assert run.returncode == 128 + number, (out, err)
    assert err.strip() == "distill: interrupted"


POOLS = """
import multiprocessing
from concurrent.futures import ProcessPoolExecutor
from registry.api import Component, Config, Metric, hookimpl

class Pools(Metric):
    columns = ("pools",)
    pool = None

    def embed(self, images):
        return images.flatten(1).mean(1, keepdim=True)

    def compare(self, rows):
        self.pool = self.pool or ProcessPoolExecutor(2, multiprocessing.get_context("fork"))
        return {"pools": float(sum(self.pool.map(abs, rows.flatten().tolist())))}

@hookimpl
def register_metrics():
    return [Component("pools", Config, lambda config, domain: Pools(), "keeps its workers")]
"""


def test_workers_that_a_plugin_keeps_end_with_their_process(recipe_file: Write, tmp_path: Path) -> None:
    env = environment(installed(tmp_path / "site", "pools", POOLS))
    words = ["launch", "--processes", "2", "--recipe", str(recipe_file(append='metrics = ["pools"]\n'))]
    done = subprocess.run([*COMMAND, *words], env=env, cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    end = time.monotonic() + 20
    while left := [line for path in Path("/proc").glob("[0-9]*/cmdline") if str(tmp_path).encode() in (line := words_of(path))]:
        assert time.monotonic() < end, left
        time.sleep(0.1)


POOLED = """
import multiprocessing
from ipfm_plugin.loss import IPFMLoss
from registry.api import Component, Config, hookimpl

class Pooled(IPFMLoss):
    pool = None

    def objective(self, x, f_star, f):
        self.pool = self.pool or multiprocessing.get_context("fork").Pool(2)
        self.pool.map(abs, range(20))
        return super().objective(x, f_star, f)

@hookimpl
def register_losses():
    return [Component("pooled", Config, lambda config, domain: Pooled(), "has workers")]
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGUSR1])
def test_a_run_whose_loss_has_workers_ends_at_a_signal_and_so_do_they(number: int, recipe_file: Write, tmp_path: Path) -> None:
    """A pool's own way to end waits for a lock that an ended worker may have held."""
    recipe = recipe_file(('use = "ipfm"', 'use = "pooled"'), ("duration_kimg = 0.048", "duration_kimg = 500"))
    run = subprocess.Popen(
        [*COMMAND, "--recipe", str(recipe)], env=environment(installed(tmp_path / "site", "pooled", POOLED)), cwd=tmp_path, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True,
    )  # fmt: skip
    try:
        wait_for(tmp_path / "runs", "stats.jsonl", [run])
        (os.kill if number == signal.SIGTERM else os.killpg)(run.pid, number)
        out, errors = run.communicate(timeout=60)
    finally:
        run.kill()
    assert run.returncode == 128 + number and "the state is kept" in errors, (out, errors)
    end = time.monotonic() + 20
    while left := [line for path in Path("/proc").glob("[0-9]*/cmdline") if str(tmp_path).encode() in (line := words_of(path))]:
        assert time.monotonic() < end, left
        time.sleep(0.1)


def words_of(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:  # it has just ended
        return b""


def clock_ticks(pid: int) -> int:
    """For how long a process has worked."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return int(fields[11]) + int(fields[12])


def test_ranks_count_from_0(tmp_path: Path) -> None:
    alone = {"WORLD_SIZE": "2", "RANK": "2", "LOCAL_RANK": "0", "MASTER_ADDR": "no.such.host.invalid", "MASTER_PORT": "1"}
    done = subprocess.run(
        [sys.executable, "-m", "registry.cli", "--recipe", "quickstart"], cwd=tmp_path, env=environment(alone), capture_output=True,
        text=True, timeout=120, check=False,
    )  # fmt: skip
    assert error_line(done).endswith("RANK = 2 and WORLD_SIZE = 2 in the environment: ranks count from 0")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_in_the_middle_of_an_import_ends_the_command(number: int, tmp_path: Path) -> None:
    """Otherwise whoever imports may take it for another error, or pass over it."""
    (tmp_path / "sends_a_signal.py").write_text(f"import os\nfor _ in range(3):\n    os.kill(os.getpid(), {number:d})\n")
    code = (
        "import signal\nfrom registry.cli.group import answer_signals, interrupt\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\nanswer_signals(signal.SIG_DFL, interrupt)\n"
        "try:\n    import sends_a_signal\nexcept BaseException as error:\n    print(repr(error))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=environment(), capture_output=True, text=True, timeout=120, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (128 + number, "", "distill: interrupted\n")


def test_a_launched_process_whose_launcher_is_gone_ends_at_once(tmp_path: Path) -> None:
    env = environment({"DISTILL_LAUNCHER": "1"})  # not our parent's number
    done = subprocess.run(
        [*COMMAND, "--recipe", "quickstart"], cwd=tmp_path, env=env, capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (143, "", "")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("codes", "first"),
    [
        ({0: 1, 1: 143}, (0, 1)),  # an error, and torchrun ended the other
        ({0: 143, 1: -9}, (1, -9)),  # killed at its start
        ({0: -15, 1: -9}, (1, -9)),
        ({0: 75, 1: -9}, (0, 75)),  # process 0 noticed, and told of it
        ({0: 75, 1: 1}, (1, 1)),
        ({0: 143, 1: 143}, (0, 143)),
        ({1: -15}, (1, -15)),
    ],
)
def test_which_process_failed_first(codes: dict[int, int], first: tuple[int, int]) -> None:
    assert first_failure(codes) == first


COUNTING = """
import sys
import torch
from ipfm_plugin.loss import IPFMLoss
from ipfm_plugin.noise import ElectrostaticNoise
from registry.core import distributed
from registry.core.contracts import Teacher
from registry.recipe.tables import TrainConfig
from registry.runs.health import check_agreement
from registry.train import loop
from registry.train.generator import Generator
from tests.conftest import tiny_network

class Counts(IPFMLoss, torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.head = torch.nn.Linear(1, 1)
        self.register_buffer("scale", torch.zeros(()))
    def student(self, student, x, *args):
        return super().student(student, x, *args) + 0 * self.head(x.mean().reshape(1, 1)).sum()
    def generator(self, teacher, student, x, *args):
        self.scale += x.detach().abs().mean()
        return super().generator(teacher, student, x, *args)

distributed.start("cpu")
torch.manual_seed(0)
noise = ElectrostaticNoise(128.0)
teacher = Teacher(tiny_network(), D=128.0, image_shape=(1, 8, 8))
generator = Generator(teacher.copy(), noise, teacher.image_shape)
run = loop.Distillation(teacher, noise, Counts(), TrainConfig(batch=8, duration_kimg=1.0), torch.device("cpu"), generator)
for _ in range(2):
    loop.iteration(run)
    check_agreement({"student": run.student}, run.nimg)
assert run.loss.scale > 0
distributed.stop()
"""


def test_what_a_loss_counts_in_the_generators_step_is_that_of_process_0(tmp_path: Path) -> None:
    (tmp_path / "counting.py").write_text(COUNTING)
    done = torchrun("counting.py", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
