"""Everything that training is, as plain tensors: saved whole, restored exactly."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import torch

from registry import distributed, files
from registry.api import UserError

KIND = "training state"


class Part(Protocol):
    """Anything that can be saved and restored: a network with its optimiser, an average."""

    def state_dict(self) -> dict[str, Any]: ...
    def load_state_dict(self, state: Any) -> None: ...


def save_state(
    path: Path, parts: Mapping[str, Part], nimg: int, recipe: Mapping[str, Any], about: Mapping[str, Any] | None = None
) -> None:
    """Save the parts, the count of images, and every random state of every process (rank 0 writes).

    `about` is what is to be known of the networks besides the recipe: the facts of their snapshots, for who samples the state.
    The draws of the game need no state, since each image has a stream of its own; dropout uses torch's global one.
    """
    rng = distributed.gather(random_states())
    if distributed.rank() == 0:
        content = {name: part.state_dict() for name, part in parts.items()}
        networks = {name: files.blueprint(part.net) for name, part in parts.items() if hasattr(part, "net")}
        files.save(
            path,
            KIND,
            {"parts": content, "networks": networks, "nimg": nimg, "rng": rng, "recipe": dict(recipe), "about": dict(about or {})},
        )


def load_state(path: Path, parts: Mapping[str, Part]) -> tuple[int, dict[str, Any]]:
    """Restore what `save_state` saved; gives the count of images and the recipe of then. Raises UserError."""
    content = files.load(path, KIND)
    if set(content["parts"]) != set(parts):
        raise UserError(f"{path}: holds {', '.join(content['parts'])}, wanted are {', '.join(parts)}")
    for name, part in parts.items():
        try:
            part.load_state_dict(content["parts"][name])
        except (RuntimeError, ValueError, KeyError, AssertionError) as error:
            reason = str(error).split("\n")[0]
            raise UserError(f"{path}: its {name} does not fit this recipe's networks ({reason})") from None
    states = content["rng"]
    if len(states) == distributed.world_size():
        restore_random_states(states[distributed.rank()])
    return int(content["nimg"]), dict(content["recipe"])


def random_states() -> dict[str, Any]:
    """torch's global random states of this process: the CPU's, and its CUDA device's if it has one."""
    cuda = [torch.cuda.get_rng_state()] if torch.cuda.is_available() else []
    return {"torch": torch.get_rng_state(), "cuda": cuda}


def restore_random_states(states: Mapping[str, Any]) -> None:
    torch.set_rng_state(states["torch"])
    if states["cuda"] and torch.cuda.is_available():
        torch.cuda.set_rng_state(states["cuda"][0])
