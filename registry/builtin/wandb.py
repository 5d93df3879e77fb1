"""A run in Weights & Biases, without a network unless it is asked for."""

from __future__ import annotations

import netrc
import os
import re
import secrets
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from registry.api import Tracker, UserError
from registry.builtin import WandbConfig
from registry.core.atomic import write_atomically
from registry.core.interruption import WRITER, signalled
from registry.core.text import shown
from registry.core.version import install
from registry.files.json_files import content

PATIENCE, STEP = 3.0, 0.1
"""Seconds that a server is waited for once the run is asked to stop; between two looks at whether it is."""
ID = "wandb-id.txt"
"""In the run's folder: the name under which Weights & Biases knows the run, also after a resumption."""


class Wandb(Tracker):
    """Numbers, grids and the recipe in RUN/wandb. The horizontal axis is kimg."""

    def __init__(self, config: WandbConfig) -> None:
        self.config = config

    def begin(self, folder: Path, recipe: Mapping[str, Any], nimg: int) -> None:
        import wandb

        self.run = unless_signalled(partial(
            wandb.init,
            project=self.config.project, entity=self.config.entity, mode=self.config.mode, dir=folder, name=folder.name,
            id=known_id(folder), resume="allow", config=dict(recipe),
            settings=wandb.Settings(silent=True, console="off", disable_code=True, disable_git=True),
        ))  # fmt: skip
        self.run.define_metric("kimg")
        self.run.define_metric("*", step_metric="kimg")  # its own steps cannot go back, as a resumed run does

    def numbers(self, nimg: int, values: Mapping[str, float]) -> None:
        self.run.log({**values, "kimg": nimg / 1000})

    def picture(self, nimg: int, name: str, path: Path) -> None:
        import wandb

        self.run.log({name: wandb.Image(str(path)), "kimg": nimg / 1000})

    def end(self) -> None:
        unless_signalled(self.run.finish)


def known_id(folder: Path) -> str:
    """The run's name at wandb, under which a resumed one goes on; a new one if the folder has none that is whole."""
    with suppress(OSError, ValueError):
        known = content(folder / ID).decode().strip()
        if re.fullmatch("[0-9a-f]{8}", known):
            return known
    new = secrets.token_hex(4)
    write_atomically(folder / ID, f"{new}\n".encode())
    return new


def unless_signalled(call: Callable[[], Any]) -> Any:
    """What a call gives that may wait for a server. Once a signal has come it is waited for no longer than PATIENCE: a run stops
    within ten seconds. Raises UserError then."""
    answer: Future[Any] = Future()

    def work() -> None:
        try:
            answer.set_result(call())
        except BaseException as error:
            answer.set_exception(error)

    threading.Thread(target=work, daemon=True, name=WRITER).start()
    left = PATIENCE
    while True:
        try:
            return answer.result(timeout=STEP)
        except TimeoutError:
            if answer.done():
                raise
            left -= STEP if signalled() else 0
            if left <= 0:
                raise UserError("its server has not answered") from None


def build(config: WandbConfig) -> Wandb:
    """Raises UserError if wandb is not installed, or lacks a key that it would ask for."""
    try:
        import wandb  # noqa: F401
    except ImportError:
        raise UserError(f"Weights & Biases is not installed: {install('wandb')}") from None
    if config.mode == "online" and not has_key():
        raise UserError(
            "Weights & Biases has no key for mode = 'online': set WANDB_API_KEY, run wandb login, or use mode = 'offline'"
        )
    return Wandb(config)


def has_key() -> bool:
    """Whether there is a key, in the environment or where `wandb login` writes it."""
    if os.environ.get("WANDB_API_KEY"):
        return True
    address = os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai")
    try:
        host = urlsplit(address).hostname or ""
    except ValueError as error:
        raise UserError(f"WANDB_BASE_URL = {shown(address)} in the environment is no address: {error}") from None
    with suppress(OSError, netrc.NetrcParseError):
        return netrc.netrc(os.environ.get("NETRC")).authenticators(host) is not None
    return False
