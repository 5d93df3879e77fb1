"""Hands a run over to SiD's loop: writes one of our training states as a training state of SiD."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from registry.core.atomic import write_atomically
from registry.core.errors import UserError
from registry.core.text import shown
from registry.edm.networks import EDMPrecond
from registry.edm.sid_states import SiDState, sid_state
from registry.files.bounds import STATE
from registry.files.formats import layout_of, network_of_state
from registry.files.locate import open_path
from registry.files.plain import load

PARTS = {"student", "generator", "ema"}
RATES = {"student": "lr", "generator": "glr"}
"""Where the recipe in a state has the learning rates. The optimiser's own may be lower at the end of a run."""


def hand_over(source: str, target: str) -> str:
    """Write the training state of a distillation as one that SiD's loop resumes; returns a one-line summary. Raises UserError.

    SiD takes the number of images from the file's name, so the target must be called training-state-{kimg:06d}.pt.
    """
    if layout_of(open_path(source)) != "plain":
        raise UserError(f"{source}: is not a training state of distill")
    content, path = load(source, STATE), Path(target)
    parts, kimg = content["parts"], int(content["nimg"]) // 1000
    if set(parts) - {"regression"} != PARTS:  # the optimiser of a warm-up, which is over
        raise UserError(f"{source}: holds {', '.join(parts)}; only the state of a distillation can be resumed by SiD's loop")
    if "companion" in parts["student"]:
        raise UserError(f"{source}: its loss trains a network of its own, for which SiD's states have no place")
    if not re.fullmatch(r"training-state-\d+\.pt", path.name) or int(path.stem.rpartition("-")[2]) != kimg:
        raise UserError(f"{target}: SiD takes the number of images from the name; call it training-state-{kimg:06d}.pt")
    if path.exists() and path.samefile(open_path(source)):
        raise UserError(f"{target}: is the state itself; give another folder")
    nets: dict[str, EDMPrecond] = {}
    for name, key in (("student", "student"), ("generator", "generator"), ("average", "ema")):
        net, facts = network_of_state(content, key, source)
        if not isinstance(net, EDMPrecond):
            raise UserError(f"{source}: its networks are of class {type(net).__name__}; SiD's states hold EDM's networks")
        nets[name] = net
    try:
        adams = {name: adam_for_sid(content, name, nets[name]) for name in RATES}
    except (TypeError, ValueError, KeyError, IndexError) as error:
        raise UserError(f"{source}: its optimisers' settings are none of Adam's ({shown(error, 100)})") from None
    write_atomically(path, sid_state(SiDState(nets, adams)))
    return f"{target}: SiD's training state at {kimg} kimg, D = {facts.dimension():g}, from {source}"


def adam_for_sid(content: Mapping[str, Any], name: str, net: nn.Module) -> dict[str, Any]:
    """The state of a part's Adam with the settings that torch gives an Adam by default, and the recipe's learning rate."""
    ours = content["parts"][name]["optimiser"]
    group, rate = ours["param_groups"][0], content["recipe"]["train"][RATES[name]]
    fresh = torch.optim.Adam(net.parameters(), lr=rate, betas=tuple(group["betas"]), eps=group["eps"])
    return {"state": ours["state"], "param_groups": fresh.state_dict()["param_groups"]}
