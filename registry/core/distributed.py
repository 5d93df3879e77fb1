"""The processes of torchrun, one per device. Without torchrun there is one."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar, cast

import torch
from torch import distributed as dist

from registry.core.errors import Interrupted, Lost, SettingError, UserError
from registry.core.interruption import signalled
from registry.core.joining import PATIENCE, join, several
from registry.core.settings import check_device
from registry.core.text import shown

T = TypeVar("T")
_device = torch.device("cpu")
_control: dist.ProcessGroup | None = None
"""Processes with GPUs agree on small things without them, so that no GPU has to finish first. None: the only group there is."""
PIECE = 2**26
"""Bytes of a file that are sent at a time."""


def start(device: str = "auto", minutes: float = PATIENCE) -> torch.device:
    """Join the other processes if torchrun started us, and give this process's device.

    They wait for each other for so many minutes, here and later on; then Lost is raised. Raises SettingError, and UserError if
    one does not come.
    """
    found = named_device(device)
    if several() and found.type == "mps":
        raise SettingError("device", "Apple's GPU takes one process; start it without torchrun, or write 'cpu'", device)
    if several() and found.type == "cuda":
        local = int(os.environ.get("LOCAL_RANK", "0"))
        if found.index is not None:
            raise SettingError("device", "under torchrun every process has a device of its own; write 'cuda' or 'auto'", device)
        if local >= torch.cuda.device_count():
            raise UserError(f"torchrun started more processes than there are CUDA devices here ({torch.cuda.device_count()})")
        found = torch.device("cuda", local)
    if found.type == "cuda" and found.index is not None:
        torch.cuda.set_device(found)
    global _device, _control
    if several() and not dist.is_initialized():
        patience = timedelta(minutes=minutes)
        join("nccl" if found.type == "cuda" else "gloo", patience)
        _control = dist.new_group(backend="gloo", timeout=patience) if found.type == "cuda" else None
    if found.type == "cuda":  # as EDM trains: full float32, and the fastest convolutions for sizes that do not change
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
        torch.backends.cuda.matmul.allow_fp16_reduced_precision_reduction = False
        torch.backends.cudnn.benchmark = True
    _device = found
    return found


def named_device(name: str) -> torch.device:
    """The device of that name, if it is here. Raises SettingError."""
    try:
        check_device(name)
    except ValueError as error:
        raise SettingError("device", str(error), name) from None
    found = torch.device(name if name != "auto" else "cuda" if torch.cuda.is_available() else "cpu")
    if found.type == "cuda" and not torch.cuda.is_available():
        raise SettingError("device", "no CUDA device was found; use 'cpu' or 'auto'", name)
    if found.type == "mps" and not torch.backends.mps.is_available():
        raise SettingError("device", "torch finds no Apple GPU here; use 'cpu' or 'auto'", name)
    if found.type == "cuda" and (found.index or 0) >= torch.cuda.device_count():
        raise SettingError("device", f"there are {torch.cuda.device_count()} CUDA devices, counted from 0", name)
    return found


def device() -> torch.device:
    """This process's device, as `start` gave it."""
    return _device


def rank() -> int:
    return dist.get_rank() if dist.is_initialized() else 0


def world_size() -> int:
    return dist.get_world_size() if dist.is_initialized() else 1


@contextmanager
def answered(nothing_else: bool = True) -> Iterator[None]:
    """Raises Lost if another process does not take part in a message. Unless there is `nothing_else` in here, an error of another
    kind is left as it is."""
    try:
        yield
    except RuntimeError as error:
        of_a_message = isinstance(error, dist.DistError) or "gloo/transport" in str(error)
        if isinstance(error, torch.OutOfMemoryError) or not (nothing_else or of_a_message):
            raise
        reason = " ".join(str(error).split())[:200]
        raise Lost(f"process {rank()} of {world_size()}: another process has ended, or does not answer ({reason})") from error


class Sum:
    """Adds up a tensor over all processes, in place, while other work goes on."""

    def __init__(self, values: torch.Tensor) -> None:
        self.values = values
        with answered():
            self.work = dist.all_reduce(values, async_op=True)

    def wait(self) -> torch.Tensor:
        """The sum."""
        with answered():
            self.work.wait()
        return self.values


def sum_(values: torch.Tensor) -> torch.Tensor:
    """Add up a tensor over all processes, in place."""
    if world_size() > 1:
        with answered():
            dist.all_reduce(values)
    return values


def spread(tensors: Iterable[torch.Tensor]) -> None:
    """Give all processes rank 0's values of these tensors, in place and in one message."""
    tensors = list(tensors)
    if world_size() == 1 or not tensors:
        return
    flat = torch.cat([tensor.detach().reshape(-1).view(torch.uint8) for tensor in tensors])
    with answered():
        dist.broadcast(flat, 0)
    for tensor, part in zip(tensors, flat.split([tensor.nbytes for tensor in tensors]), strict=True):
        tensor.detach().copy_(part.clone().view(tensor.dtype).view(tensor.shape))  # a clone begins where its type may begin


def largest(*values: int) -> list[int]:
    """The largest of each value over all processes."""
    found = torch.tensor(values)
    if world_size() > 1:
        with answered():
            dist.all_reduce(found, dist.ReduceOp.MAX, group=_control)
    return [int(value) for value in found]


def gather(value: Any) -> list[Any]:
    """One picklable value of every process, in order of rank."""
    values = [value] * world_size()
    if world_size() > 1:
        with answered():
            dist.all_gather_object(values, value, group=_control)
    return values


def agree(tables: Mapping[str, Any]) -> None:
    """Check that all processes were given the same: nested tables of plain values. Raises UserError in all.

    Of an absolute path the name counts: the folders of two machines may have other names.
    """
    first, *others = gather(dict(flat(tables)))
    for number, own in enumerate(others, 1):
        unlike = [key for key in {**first, **own} if first.get(key) != own.get(key)]
        if unlike:
            known = [f"{key}: {shown(first.get(key), 60)} and {shown(own.get(key), 60)}" for key in unlike[:3]]
            more = f", and {len(unlike) - 3} more" if len(unlike) > 3 else ""
            raise UserError(f"process {number} was not given the same as process 0: {'; '.join(known)}{more}")


def flat(tables: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """The values in nested tables, by keys joined with dots; of absolute paths the name."""
    for key, value in tables.items():
        if isinstance(value, Mapping):
            yield from flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", Path(value).name if isinstance(value, str) and Path(value).is_absolute() else value


def from_rank0(value: Any) -> Any:
    """Rank 0's value, everywhere."""
    values = [value]
    if world_size() > 1:
        with answered():
            dist.broadcast_object_list(values, 0, group=_control)
    return values[0]


def by_rank0(work: Callable[[], T]) -> T:
    """What rank 0's work gives, everywhere. A UserError of rank 0 is raised everywhere, too, and so is that it was Interrupted."""
    outcome: Any = None
    if rank() == 0:
        try:
            outcome = work()
        except (UserError, Interrupted) as error:
            outcome = error
    outcome = from_rank0(outcome)
    if isinstance(outcome, UserError | Interrupted):
        raise outcome
    return cast(T, outcome)


def share(n: int, batch: int, work: Callable[[range], T], done: Callable[[int], None] | None = None) -> list[T]:
    """`work(part)` for 0 … n−1 in parts of `batch`, which the processes take in turn: all results in order, everywhere.

    The parts do not depend on the number of processes, so neither do the results. `done` is told how many are done. Raises
    Interrupted in every process if one was signalled, and the UserError of one process in all.
    """
    results: list[T] = []
    for start in range(0, n, batch * world_size()):
        first = start + rank() * batch
        mine, wrong, stopped = list[T](), None, 0
        try:
            mine += [work(range(first, min(first + batch, n)))] if first < n else []
        except UserError as error:
            wrong = error
        except Interrupted as stop:  # said below, in all processes
            stopped = stop.code - 128
        found = gather((mine, signalled() or stopped, wrong))
        if number := max(number for _, number, _ in found):
            raise Interrupted("interrupted", 128 + number)
        for *_, problem in found:
            if problem is not None:
                raise problem
        results += [result for part, *_ in found for result in part]
        if done:
            done(min(start + batch * world_size(), n))
    return results


@contextmanager
def everywhere(path: Path) -> Iterator[Path]:
    """A file that rank 0 has, for every process: in its own place where it is seen there, otherwise as a copy that rank 0 sends."""
    wanted = from_rank0(end_of(path) if rank() == 0 else None)
    seen = end_of(path) == wanted
    if all(gather(seen)):
        yield path
        return
    with tempfile.TemporaryDirectory(prefix="distill-") as folder:
        copy = Path(folder) / path.name
        with open(path if rank() == 0 else os.devnull, "rb") as source, open(os.devnull if seen else copy, "wb") as target:
            while piece := from_rank0(source.read(PIECE)):
                target.write(piece)
        yield path if seen else copy


def end_of(path: Path) -> tuple[int, bytes] | None:
    """The size and the last kilobyte of a file, which holds the seal of one of ours; None if it is not here."""
    try:
        with open(path, "rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(size - 1024, 0))
            return size, file.read()
    except OSError:
        return None


def stop() -> None:
    """Leave the other processes."""
    if dist.is_initialized():
        dist.destroy_process_group()
