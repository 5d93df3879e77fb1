"""Starts the command `distill` without the seconds that torch takes to load: `python -m tests.warm SOCKET` loads everything once,
and every call is a copy of that process (fork), with its own arguments, folder, environment and output."""

from __future__ import annotations

import atexit
import contextlib
import importlib
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path

MOST = 2**20
LOADED = (
    "torch", "matplotlib.pyplot", "sklearn.datasets", "registry.cli", "registry.builtin.metrics", "registry.builtin.inception_metrics",
    "registry.runs.distill", "registry.runs.pretrain",
)  # fmt: skip


class Warm:
    """Such a process, and the commands that are started from it."""

    def __init__(self, folder: Path, env: Mapping[str, str]) -> None:
        self.address = folder / "warm"
        self.process = subprocess.Popen([sys.executable, "-m", "tests.warm", self.address], env=dict(env))
        while not self.address.exists():
            assert self.process.poll() is None
            time.sleep(0.02)

    def run(self, args: Sequence[str], cwd: Path, env: Mapping[str, str], timeout: float) -> subprocess.CompletedProcess[str]:
        """Run the command to its end. Raises subprocess.TimeoutExpired."""
        request = json.dumps({"args": args, "cwd": os.fspath(cwd), "env": dict(env)}).encode(errors="surrogateescape")
        assert len(request) < MOST
        with (
            tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err, open(os.devnull, "rb") as nothing,
            socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as link,
        ):  # fmt: skip
            link.connect(os.fspath(self.address))
            socket.send_fds(link, [request], [nothing.fileno(), out.fileno(), err.fileno()])
            pid = int(link.recv(MOST))
            link.settimeout(timeout)
            try:
                status = int(link.recv(MOST))
            except TimeoutError:
                os.kill(pid, signal.SIGKILL)
                raise subprocess.TimeoutExpired(list(args), timeout) from None
            texts = []
            for file in (out, err):
                file.seek(0)
                texts.append(file.read().decode())
        return subprocess.CompletedProcess(list(args), os.waitstatus_to_exitcode(status), *texts)

    def stop(self) -> None:
        self.process.kill()
        self.process.wait()


def serve(address: str) -> None:
    """Answer calls for ever: a process for each, and one that waits for it."""
    for name in LOADED:
        importlib.import_module(name)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # those who wait are not waited for
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
        listener.bind(f"{address}.new")
        listener.listen(16)
        os.rename(f"{address}.new", address)
        while True:
            link, _ = listener.accept()
            if os.fork() == 0:
                listener.close()
                answer(link)
            link.close()


def answer(link: socket.socket) -> None:
    """Start the command, tell its process number, and then how it ended."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    message, handles, *_ = socket.recv_fds(link, MOST, 3)
    pid = os.fork()
    if pid == 0:
        link.close()
        for own, handle in enumerate(handles):
            os.dup2(handle, own)
            os.close(handle)
        call(**json.loads(message))
    with contextlib.suppress(OSError):  # nobody may be there any more
        link.send(str(pid).encode())
        link.send(str(os.waitpid(pid, 0)[1]).encode())
    os._exit(0)


def call(args: list[str], cwd: str, env: dict[str, str]) -> None:
    """The command, in this process, to its end."""
    code = 1
    try:
        os.setsid()
        os.chdir(cwd)
        os.environ.clear()
        os.environ.update(env)
        sys.stdin, sys.stdout, sys.stderr = open(0), open(1, "w", 1), open(2, "w", 1)  # noqa: SIM115
        sys.argv = ["distill", *args]
        sys.path[:0] = [path for path in env.get("PYTHONPATH", "").split(os.pathsep) if path and path not in sys.path]
        from registry.cli import main

        main()
        code = 0
    except SystemExit as stopped:
        code = stopped.code if isinstance(stopped.code, int) else int(stopped.code is not None)
    except BaseException:
        traceback.print_exc()
    finally:
        atexit._run_exitfuncs()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


if __name__ == "__main__":
    serve(sys.argv[1])
