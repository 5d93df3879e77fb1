"""How the processes of torchrun find each other, and which of them tells the user what is wrong.

torch is imported when it is needed, because the command imports this.
"""

from __future__ import annotations

import json
import os
import socket
import time
from collections.abc import Callable
from contextlib import suppress
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from registry.core.errors import UserError

if TYPE_CHECKING:
    from torch._C._distributed_c10d import Store

PATIENCE = 30.0
"""Minutes that processes wait for each other, unless a recipe says otherwise."""
FOLDER_NOTE = "DISTILL_LAUNCHER_NOTE"
"""In the environment of a launched process: the file in which it says where its run is."""
TOLD = "told"
"""A file beside it: some process has told the user why they end."""
ASK = timedelta(seconds=5)
"""How long a process that ends tries to learn whether another has told the user."""

ONCE = timedelta(seconds=1)
"""How long a process waits for others before it looks for signals."""
T = TypeVar("T")

_store: Store | None = None


def several() -> bool:
    """Whether this is one of several processes that torchrun started."""
    return os.environ.get("WORLD_SIZE", "").strip() not in ("", "0", "1")


def number(name: str) -> int:
    """A whole number that torchrun left in the environment. Raises UserError."""
    text = os.environ[name].strip()
    if not (text.isascii() and text.isdigit()):
        raise UserError(f"{name} = {text!r} in the environment: must be a whole number; start several processes with torchrun")
    return int(text)


def connect(patience: timedelta) -> Store:
    """What processes leave notes for each other in. torchrun's restarts share a place; the notes of an attempt are its own."""
    from torch._C._distributed_c10d import PrefixStore

    return PrefixStore(f"attempt/{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}", place_of_notes(patience))


def place_of_notes(patience: timedelta) -> Store:
    """torchrun's store, or else one of process 0's."""
    from torch._C._distributed_c10d import TCPStore
    from torch.distributed.rendezvous import rendezvous

    if missing := [name for name in ("RANK", "MASTER_ADDR", "MASTER_PORT") if name not in os.environ]:
        raise UserError(f"the environment has WORLD_SIZE but no {' and no '.join(missing)}; start several processes with torchrun")
    if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True":
        store: Store = next(iter(rendezvous("env://", timeout=patience)))[0]
        return store
    address, port = os.environ["MASTER_ADDR"], number("MASTER_PORT")
    if number("RANK") == 0:  # by an address that is always its own: torch waits for another one, and answers no signal
        return TCPStore("127.0.0.1", port, is_master=True, timeout=patience, wait_for_workers=False)
    patiently(patience, lambda wait: socket.create_connection((address, port), wait.total_seconds()).close())
    known = lambda wait: TCPStore(address, port, is_master=False, timeout=max(wait, ASK), wait_for_workers=False)  # noqa: E731
    found = patiently(patience, known)  # another program may answer there, or a network that takes all connections
    found.set_timeout(patience)
    return found


def patiently(patience: timedelta, attempt: Callable[[timedelta], T]) -> T:
    """What an attempt gives that may wait so long, in short ones: a signal is answered only between two.

    Raises DistError or OSError.
    """
    from torch.distributed import DistError

    end = time.monotonic() + patience.total_seconds()
    while True:
        try:
            return attempt(min(ONCE, timedelta(seconds=max(end - time.monotonic(), 0.01))))
        except (DistError, OSError):
            if time.monotonic() >= end:
                raise
        time.sleep(0.1)


def join(backend: str, patience: timedelta) -> None:
    """Join the other processes. Raises UserError that names those that have not come after so long."""
    from torch import distributed as dist

    global _store
    try:
        rank, world = number("RANK") if "RANK" in os.environ else 0, number("WORLD_SIZE")
        if rank >= world:
            raise UserError(f"RANK = {rank} and WORLD_SIZE = {world} in the environment: ranks count from 0")
        _store = connect(patience)
        keys = [f"joined/{r}" for r in range(world)]
        _store.set(keys[rank], "")
        late = missing_after(patience, _store, keys)
    except (dist.DistError, OSError) as error:
        short = (str(error).splitlines() or ["no answer"])[0]
        raise UserError(f"process 0 cannot be reached at {os.environ['MASTER_ADDR']}: {short}") from None
    if late:
        these = f"process{'es' * (len(late) > 1)} {', '.join(map(str, late))} of {world}"
        raise UserError(f"{these} did not join the others within {patience.total_seconds() / 60:g} minutes")
    dist.init_process_group(backend, store=_store, rank=rank, world_size=world, timeout=patience)


def missing_after(patience: timedelta, store: Store, keys: list[str]) -> list[int]:
    """Wait for notes with these keys, and give the numbers of those that have not come. Raises DistError."""
    from torch.distributed import DistError

    try:
        patiently(patience, lambda wait: store.wait(keys, wait))
        return []
    except DistError:
        return [i for i, key in enumerate(keys) if not store.check([key])]


def tell_launcher(folder: Path) -> None:
    """Say in which folder the run is, so that `distill launch` can go on there when a process is lost."""
    if file := os.environ.get(FOLDER_NOTE):
        with suppress(OSError):
            Path(file).write_bytes(os.fsencode(folder.absolute()))


def note_told() -> None:
    """Let `distill launch` know that the user was told why the processes end."""
    if file := os.environ.get(FOLDER_NOTE):
        with suppress(OSError):
            Path(file).with_name(TOLD).touch()


def record(message: str) -> None:
    """Leave the reason why this process fails where torchrun looks for it. (Its own `record` writes our traceback, too.)"""
    if file := os.environ.get("TORCHELASTIC_ERROR_FILE"):
        with suppress(OSError):  # a folder of temporary files does not outlast every run
            Path(file).write_text(json.dumps({"message": message, "timestamp": str(int(time.time()))}))


def first_to_tell() -> bool:
    """Whether no other process has told the user of an error: then this one should. So should one that cannot ask."""
    from torch.distributed import DistError

    alone = _store is None and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True" and os.environ.get("RANK") == "0"
    try:
        store = None if alone else _store or connect(ASK)
    except (DistError, UserError, OSError, ValueError):
        store = None
    if store is None:
        return True
    try:
        store.set_timeout(ASK)
        return bool(store.add("told", 1) == 1)
    except DistError:  # its owner has ended: process 0, after it told the user, or torchrun, which was killed
        return os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True" and os.environ.get("RANK") == "0"
