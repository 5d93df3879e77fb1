"""A run in Weights & Biases, without a network unless it is asked for."""

from __future__ import annotations

import netrc
import os
import secrets
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from registry.api import Tracker, UserError
from registry.builtin import WandbConfig
from registry.core.version import install

ID = "wandb-id.txt"
"""In the run's folder: the name under which Weights & Biases knows the run, also after a resumption."""


class Wandb(Tracker):
    """Numbers, grids and the recipe in RUN/wandb. The horizontal axis is kimg."""

    def __init__(self, config: WandbConfig) -> None:
        self.config = config

    def begin(self, folder: Path, recipe: Mapping[str, Any], nimg: int) -> None:
        import wandb

        known = folder / ID
        if not known.is_file():
            known.write_text(secrets.token_hex(4) + "\n")
        self.run = wandb.init(
            project=self.config.project, entity=self.config.entity, mode=self.config.mode, dir=folder, name=folder.name,
            id=known.read_text().strip(), resume="allow", config=dict(recipe),
            settings=wandb.Settings(silent=True, console="off", disable_code=True, disable_git=True),
        )  # fmt: skip
        self.run.define_metric("kimg")
        self.run.define_metric("*", step_metric="kimg")  # its own steps cannot go back, as a resumed run does

    def numbers(self, nimg: int, values: Mapping[str, float]) -> None:
        self.run.log({**values, "kimg": nimg / 1000})

    def picture(self, nimg: int, name: str, path: Path) -> None:
        import wandb

        self.run.log({name: wandb.Image(str(path)), "kimg": nimg / 1000})

    def end(self) -> None:
        self.run.finish()


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
    host = urlsplit(os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai")).hostname or ""
    with suppress(OSError, netrc.NetrcParseError):
        return netrc.netrc(os.environ.get("NETRC")).authenticators(host) is not None
    return False
