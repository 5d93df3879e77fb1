"""torch's settings and random states, which belong to the caller: they change nothing of our work, and our work changes nothing of
them."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from typing import Any, NamedTuple

import torch

from registry.core.interruption import SIGNALS


@contextmanager
def usual_torch() -> Iterator[None]:
    """Gradients on, no autocast, float32 on the CPU by default, whatever the caller has set; as it was afterwards."""
    with ExitStack() as stack:
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.enable_grad())
        for device, enabled in autocasts().items():
            if enabled:
                stack.enter_context(torch.autocast(device, enabled=False))
        if torch.get_default_device().type != "cpu":
            stack.enter_context(torch.device("cpu"))
        stack.enter_context(_float32)
        yield


class _Float32:
    """float32 by default. All threads share torch's default, so the last one that leaves gives it back."""

    def __init__(self) -> None:
        self._lock, self._inside, self._before = threading.Lock(), 0, torch.float32

    def __enter__(self) -> None:
        with self._lock:
            if not self._inside:
                self._before = torch.get_default_dtype()
            self._inside += 1
            torch.set_default_dtype(torch.float32)

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._inside -= 1
            if not self._inside:
                torch.set_default_dtype(self._before)


_float32 = _Float32()


@contextmanager
def torch_left_alone() -> Iterator[None]:
    """torch's random states, its threads, and how CUDA computes products and convolutions, are afterwards as they were."""
    before, flags, threads = random_states(), cuda_flags(), torch.get_num_threads()
    try:
        yield
    finally:
        restore_random_states(before)
        set_cuda_flags(*flags)
        torch.set_num_threads(threads)


@contextmanager
def surroundings_restored() -> Iterator[None]:
    """What a plugin does that measures or tells of a run changes nothing of what follows: random numbers, default type and device,
    gradients, autocast, number of threads, recursion, the working folder, and what signals do are as before afterwards."""
    with ExitStack() as stack:
        stack.enter_context(settings_restored())
        used = [torch.cuda.current_device()] if torch.cuda.is_initialized() else []
        stack.enter_context(torch.random.fork_rng(devices=used))
        yield


@contextmanager
def settings_restored() -> Iterator[None]:
    """The same, but for random numbers."""
    before, gradients = ProcessSettings.now(), torch.is_grad_enabled()
    inference = torch.inference_mode(torch.is_inference_mode_enabled())  # which switches gradients, too
    with working_folder_restored(), inference, torch.set_grad_enabled(gradients):
        try:
            yield
        finally:
            before.restore()


@contextmanager
def working_folder_restored() -> Iterator[None]:
    """The working folder is afterwards as it was, if it may still be entered."""
    try:
        folder = os.open(".", os.O_RDONLY)
    except OSError:  # it may not be read
        yield
        return
    try:
        yield
    finally:
        with suppress(OSError):
            os.fchdir(folder)
        os.close(folder)


class ProcessSettings(NamedTuple):
    """What all code in this process shares."""

    working_folder: tuple[int, int] | None
    """Device and inode, which stay if it is renamed or removed. None if its disk does not say."""
    default_type: torch.dtype
    default_device: torch.device
    autocast: dict[str, bool]
    threads: int
    recursion: int
    """How many calls deep Python goes."""
    handlers: dict[signal.Signals, Any]
    """What is done at signals that ask a run to stop."""
    blocked: frozenset[int]
    """Those of them that do not reach this thread."""

    @classmethod
    def now(cls) -> ProcessSettings:
        try:
            found = os.stat(".")
            folder = (found.st_dev, found.st_ino)
        except OSError:
            folder = None
        device, threads = torch.get_default_device(), torch.get_num_threads()
        handlers = {number: signal.getsignal(number) for number in SIGNALS}
        recursion, blocked = sys.getrecursionlimit(), frozenset(signal.pthread_sigmask(signal.SIG_BLOCK, ())) & {*SIGNALS}
        return cls(folder, torch.get_default_dtype(), device, autocasts(), threads, recursion, handlers, blocked)

    def restore(self) -> None:
        """Set all but the working folder to what it was."""
        torch.set_default_dtype(self.default_type)
        if torch.get_default_device() != self.default_device:
            torch.set_default_device(self.default_device if self.default_device.type != "cpu" else None)
        set_autocasts(self.autocast)
        if torch.get_num_threads() != self.threads:
            torch.set_num_threads(self.threads)
        sys.setrecursionlimit(self.recursion)
        if threading.current_thread() is threading.main_thread():
            for number, handler in self.handlers.items():
                if handler is not None and handler != signal.getsignal(number):  # None: it is of C's, and Python cannot set it
                    signal.signal(number, handler)
            signal.pthread_sigmask(signal.SIG_UNBLOCK, {*SIGNALS} - self.blocked)

    def changed(self) -> str | None:
        """What is no longer as it was and would mislead whatever follows, in words; None if nothing is."""
        now = ProcessSettings.now()
        if None not in (self.working_folder, now.working_folder) and now.working_folder != self.working_folder:
            return "the working folder"
        if now.default_type != self.default_type:
            return f"torch's default type to {now.default_type}"
        if now.default_device != self.default_device:
            return f"torch's default device to {now.default_device}"
        if now.recursion < self.recursion:
            return f"Python's limit of recursion to {now.recursion}"
        for number in SIGNALS:
            if now.handlers[number] != self.handlers[number] or number in now.blocked - self.blocked:
                return f"what is done at the signal {number.name}"
        return None


def autocasts() -> dict[str, bool]:
    """On which kinds of devices torch computes in a lower precision by itself."""
    return {kind: torch.is_autocast_enabled(kind) for kind in ("cpu", "cuda", "mps")}


def set_autocasts(enabled: dict[str, bool]) -> None:
    """The opposite of `autocasts`."""
    for kind, on in enabled.items():
        torch.set_autocast_enabled(kind, on)


def random_states() -> dict[str, Any]:
    """torch's global random states of this process: the CPU's, and its CUDA device's if it has one."""
    cuda = [torch.cuda.get_rng_state()] if torch.cuda.is_available() else []
    return {"torch": torch.get_rng_state(), "cuda": cuda}


def restore_random_states(states: dict[str, Any]) -> None:
    """The opposite of `random_states`."""
    torch.set_rng_state(states["torch"])
    if states["cuda"] and torch.cuda.is_available():
        torch.cuda.set_rng_state(states["cuda"][0])


def cuda_flags() -> tuple[bool, bool, bool, bool]:
    """TF32 in products and in convolutions; sums of float16 in float16; whether the fastest convolutions are looked for."""
    matmul, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    return matmul.allow_tf32, cudnn.allow_tf32, matmul.allow_fp16_reduced_precision_reduction, cudnn.benchmark


def set_cuda_flags(matmul_tf32: bool, cudnn_tf32: bool, reduced: bool, benchmark: bool) -> None:
    """The opposite of `cuda_flags`."""
    matmul, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    matmul.allow_tf32, cudnn.allow_tf32 = matmul_tf32, cudnn_tf32
    matmul.allow_fp16_reduced_precision_reduction, cudnn.benchmark = reduced, benchmark
