"""The command that starts one process for each GPU."""

from __future__ import annotations

import logging
import os
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import click

from registry.cli.again import LAUNCHER, SAFE, takes_working_folder, typed
from registry.cli.group import PARENT, main
from registry.core.errors import Diverged, Lost, SettingError
from registry.core.interruption import heeded
from registry.core.joining import FOLDER_NOTE, TOLD

SHARED = ("pretrain", "generate", "evaluate")
"""The commands of which processes share the work; so does distilling."""
MOST = 1024
FINAL = (0, 1, 2, Diverged.code)
"""Done, a mistake, wrong usage, a run that has diverged: exit codes after which nothing is started again."""
SAVING = 270
"""Seconds that the processes have for a state after a signal. (Older torch gives them 30.)"""


@main.command(context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False})
@click.option("--processes", type=click.IntRange(1, MOST), help="How many.  [default: as many as there are GPUs]")
@click.option(
    "--max-restarts",
    type=click.IntRange(0, MOST),
    default=0,
    show_default=True,
    help="How often to start again when a process is lost.",
)
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED, metavar="COMMAND...")
def launch(processes: int | None, max_restarts: int, arguments: tuple[str, ...]) -> int:
    """Distil, pretrain, generate or evaluate in several processes of this machine, by torchrun.

    \b
    distill launch --recipe ipfm_ffhq_d128 --resume auto           one process for each GPU
    distill launch --processes 2 generate --network FILE --seeds 0-49999 --outdir images

    A signal reaches all processes, so that they save a state. The exit code is that of the process that failed first.
    """
    check_arguments(arguments)
    if max_restarts and arguments[0] not in ("generate", "evaluate") and resumed(arguments) is None:
        raise click.UsageError("--max-restarts needs --resume auto: what starts again would begin anew, not go on.")
    from registry.study.machine import cores, gpus

    count = processes or len(gpus())
    if not count:
        raise SettingError("processes", "there is no GPU here; say how many processes")
    os.environ.setdefault("OMP_NUM_THREADS", str(max(cores() // count, 1)))
    options = [
        *(["--processes", str(processes)] if processes else []),
        *(["--max-restarts", str(max_restarts)] if max_restarts else []),
    ]
    os.environ[LAUNCHER] = shlex.join([*typed(sys.argv[0]), "launch", *options])
    return run_all(count, max_restarts, arguments)


def check_arguments(arguments: tuple[str, ...]) -> None:
    """Check that this is a command whose work can be shared. Raises UsageError."""
    if not arguments:
        raise click.UsageError("Missing the command to run, such as: distill launch --recipe ipfm_ffhq_d128")
    first = arguments[0]
    if not first.startswith("-") and first not in SHARED:
        raise click.UsageError(f"'{first}' cannot be shared among processes; distilling, {', '.join(SHARED)} can.")
    if asks := [word for word in arguments if word in ("--version", "--help", "-h")]:
        raise click.UsageError(f"{asks[0]} is nothing to share among processes; ask without launch.")
    if late := [flag for flag in ("--processes", "--max-restarts") if flag in arguments]:
        raise click.UsageError(f"{late[0]} comes before the command: distill launch {late[0]} … {first} …")


def run_all(count: int, restarts: int, arguments: tuple[str, ...]) -> int:
    """Run a command in so many processes, and give their exit code. What went wrong they say themselves, once.

    If a process is lost, all start again, at most so often. A mistake, and a run that has diverged, would only come again.
    """
    load_all()
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as place:
        note = Path(place) / "folder"
        os.environ[FOLDER_NOTE] = str(note)
        words = arguments
        for again in range(restarts + 1):
            if again:
                words, how = from_the_newest(arguments, note)
                click.echo(f"distill: starting again ({again} of {restarts}){how}", err=True)
            code, stopped = run_once(count, words, Path(place))
            if stopped or code in FINAL or code - 128 in heeded():  # one process was told to stop, and saved a state
                break
    return code


def load_all() -> None:
    """Load what torchrun will, before there is a folder: a signal amid an import would leave it."""
    import encodings.idna  # noqa: F401
    import stringprep  # noqa: F401

    import torch.distributed.elastic.rendezvous.c10d_rendezvous_backend
    import torch.distributed.run  # noqa: F401


def resumed(arguments: Sequence[str]) -> tuple[int, str] | None:
    """Which argument of a run's command says what it goes on from, and what it says."""
    for i, word in reversed([*enumerate(arguments)]):  # the last one counts
        if word == "--resume" and i + 1 < len(arguments):
            return i + 1, arguments[i + 1]
        if word.startswith("--resume="):
            return i, word.removeprefix("--resume=")
    return None


def from_the_newest(arguments: tuple[str, ...], note: Path) -> tuple[tuple[str, ...], str]:
    """The same command, but a run goes on from the newest state in its own folder, if it has said in the `note` which that is: a
    newer run of the recipe is none of its business. And words that say so if it has no state there yet, and begins anew."""
    found = resumed(arguments)
    if found is None or not note.is_file():
        return arguments, ""
    (i, named), folder = found, Path(os.fsdecode(note.read_bytes()))
    alone = arguments[i] == named  # behind --resume, and not --resume=named
    if any(folder.glob("training-state-*.pt")):
        return (*arguments[:i], str(folder) if alone else f"--resume={folder}", *arguments[i + 1 :]), ""
    if named != "auto":
        return arguments, ""
    return (*arguments[: i - alone], *arguments[i + 1 :]), f"; anew, for there is no training state in {folder}"


def run_once(count: int, arguments: tuple[str, ...], place: Path) -> tuple[int, bool]:
    """Run a command in so many processes: their exit code, and whether a signal to this process ended them. They leave their notes
    in a place that is removed afterwards."""
    for name in [name for name in os.environ if name.startswith("PET_")]:  # torchrun's options, which are set here
        del os.environ[name]
    handled = ",".join(s.name for s in (*heeded(), signal.SIGQUIT))
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # a lost connection is told by us, without a C++ stack
    os.environ |= {"TORCHELASTIC_SIGNALS_TO_HANDLE": handled, PARENT: str(os.getpid())}  # the first is for older torch
    if not takes_working_folder():
        os.environ[SAFE] = "1"
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.run import parse_args, run

    if "--debug" not in arguments:
        logging.disable()  # torchrun tells of each process that it ends
    words = ["--standalone", f"--nproc-per-node={count}", "--max-restarts=0", "-m", "registry.cli", *arguments]
    settings = parse_args(words)
    settings.signals_to_handle, settings.shutdown_timeout, settings.log_dir = handled, SAVING, str(place)
    (place / TOLD).unlink(missing_ok=True)
    try:
        with left_at_a_second_ctrl_c(place):
            run(settings)
    except SignalException as error:
        if not (place / TOLD).exists():  # they were still loading
            click.echo("distill: interrupted", err=True)
        return 128 + error.sigval, True
    except ChildFailedError as error:
        codes = {rank: failure.exitcode for rank, failure in error.failures.items()}
        rank, code = first_failure(codes)
        if code < 0:
            click.echo(f"distill: process {rank} of {count} was ended by signal {-code}", err=True)
        elif code - 128 in heeded() and not (place / TOLD).exists():  # it was still loading
            click.echo("distill: interrupted", err=True)
        return (code if code > 0 else 128 - code), False
    return 0, False


@contextmanager
def left_at_a_second_ctrl_c(place: Path) -> Iterator[None]:
    """torchrun waits for its processes after a first Ctrl-C, and they may be amid a long iteration. At a second one they are
    killed, and this process ends. (A terminal's Ctrl-C does not reach them: their sessions are their own.)"""
    others, handlers = children(), {number: signal.getsignal(number) for number in (*heeded(), signal.SIGQUIT)}
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    before = signal.set_wakeup_fd(writer, warn_on_full_buffer=False)

    def watch() -> None:
        pressed = 0
        while number := os.read(reader, 1):
            pressed += number[0] == signal.SIGINT
            if pressed == 2:
                kill([*children() - others])
                shutil.rmtree(place, ignore_errors=True)
                os.write(2, b"distill: interrupted; the processes were ended at once\n")
                os._exit(128 + signal.SIGINT)

    watching = threading.Thread(target=watch, daemon=True)
    watching.start()
    try:
        yield
    finally:
        for number in handlers:
            signal.signal(number, lambda *_: None)
        outlast([*children() - others])
        for number, handler in handlers.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(before)
        os.close(writer)
        watching.join()
        os.close(reader)


def children() -> set[int]:
    """The numbers of this process's children."""
    own = Path("/proc/self/task")
    if (own / str(os.getpid()) / "children").is_file():
        found = set[int]()
        for task in own.iterdir():
            with suppress(OSError):  # a thread that has just ended
                found |= {*map(int, (task / "children").read_text().split())}
        return found
    try:
        listed = subprocess.run(["ps", "-A", "-o", "pid=,ppid="], capture_output=True, text=True, check=False).stdout.splitlines()
    except OSError:  # there is no ps
        return set()
    return {int(pid) for pid, parent in map(str.split, listed) if int(parent) == os.getpid()}


def outlast(pids: Sequence[int]) -> None:
    """Wait until processes have ended, which are told to once more: torchrun may have been left before it knew of them. Those that
    take too long are killed."""
    end, left = time.monotonic() + SAVING, [*pids]
    for pid in left:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGTERM)
    while left and time.monotonic() < end:
        left = [pid for pid in left if is_running(pid)]
        time.sleep(0.1 if left else 0)
    kill(left)


def kill(pids: Sequence[int]) -> None:
    """End children at once, with what they have started, and wait until they have ended: their locks are free then. (Not forever:
    one may wait for a disk.)"""
    for pid in pids:
        with suppress(ProcessLookupError):
            (os.killpg if os.getpgid(pid) == pid else os.kill)(pid, signal.SIGKILL)
    end, left = time.monotonic() + 5, [*pids]
    while left and time.monotonic() < end:
        left = [pid for pid in left if is_running(pid)]
        time.sleep(0.02 if left else 0)


def is_running(pid: int) -> bool:
    """Whether a child has not ended."""
    try:
        return os.waitpid(pid, os.WNOHANG)[0] == 0
    except ChildProcessError:
        return False


def first_failure(codes: Mapping[int, int]) -> tuple[int, int]:
    """The rank that failed first, and its exit code (minus the signal that killed it), of all that failed.

    The others were then ended by torchrun with SIGTERM, or noticed that one is gone, which are no failures of theirs. (Of one that
    was killed, another that noticed it has told.)
    """
    ended = (128 + signal.SIGTERM, -signal.SIGTERM)
    return min(codes.items(), key=lambda found: (found[1] in ended, found[1] < 0, found[1] == Lost.code, found[0]))
