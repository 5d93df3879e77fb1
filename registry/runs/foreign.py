"""Goes on from a training state of SiD or of its IPFM fork: student, generator, average, and both Adams."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from registry.core.errors import UserError
from registry.core.sharding import outline
from registry.edm.sid_states import ADAMS, NETWORKS, SiDState, read_sid_state
from registry.files.formats import misfit
from registry.runs.checkpoints import Stateful
from registry.train.ema import EMA
from registry.train.step import Learner


def adopt(path: Path, parts: Mapping[str, Stateful], D: float) -> tuple[int, list[str]]:
    """Give the parts of a new distillation what is in a state of SiD; returns the number of images, and lines for the log.

    Everything is checked first. Raises UserError.
    """
    number = re.fullmatch(r"training-state-(?:.*-)?(\d+)", path.stem)
    if number is None:
        raise UserError(f"{path}: the number of images is only in the name of such a file; call it training-state-KIMG.pt")
    if "regression" in parts:
        raise UserError(f"{path}: its generator is past any warm-up; go on from it without one")
    match parts:
        case {"student": Learner() as student, "generator": Learner() as generator, "ema": EMA() as average, **more} if not more:
            pass
        case _:
            raise UserError(f"{path}: only a distillation can go on from it, not a run of {', '.join(parts)}")
    if student.companion is not None:
        raise UserError(f"{path}: the loss trains a network of its own, which such a state does not have")
    state = read_sid_state(path)
    if state.D not in (None, D):
        raise UserError(f"{path}: its networks have D = {state.D:g}, the teacher has D = {D:g}")
    for name, net in state.networks.items():
        if problem := misfit(outline(student.net), net):
            raise UserError(f"{path}: its {NETWORKS[name]} does not fit the teacher: {problem}")
    lines = [introduction(path, int(number[1]), state)]
    for name, learner in (("student", student), ("generator", generator)):
        lines += differences(name, learner, state.adams[name])
        adam = {"state": state.adams[name]["state"], "param_groups": learner.optimiser.state_dict()["param_groups"]}
        learner.load_state_dict({"net": state.networks[name].state_dict(), "optimiser": adam})
    average.load_state_dict(dict(state.networks["average"].named_parameters()))
    return int(number[1]) * 1000, lines


def introduction(path: Path, kimg: int, state: SiDState) -> str:
    """What was taken, in a line."""
    taken = ", ".join(f"{name} ({key})" for name, key in NETWORKS.items())
    left = f"; left out: {', '.join(state.others)}" if state.others else ""
    return f"going on at {kimg} kimg from {path}: {taken}, and both Adams ({', '.join(ADAMS.values())}){left}"


def differences(name: str, learner: Learner, adam: Mapping[str, Any]) -> list[str]:
    """Where Adam's settings in the file are not the recipe's. The recipe's are used."""
    theirs, ours = adam["param_groups"][0], learner.optimiser.param_groups[0]
    theirs = {key: tuple(value) if isinstance(value, list) else value for key, value in theirs.items()}
    return [
        f"changed since that state was written: the {name}'s {key}: {theirs.get(key)} -> {ours[key]}"
        for key in ("lr", "betas", "eps")
        if theirs.get(key) != ours[key]
    ]
