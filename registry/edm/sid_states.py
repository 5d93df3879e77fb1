"""SiD's training states: read without executing them, and written so that SiD's loop resumes them.

A state is a dictionary in torch's zip format. It holds student (`fake_score`), generator (`G`) and its average (`G_ema`) as
whole modules, and the state of both Adams, which number parameters in the order of `named_parameters`. The IPFM authors' fork
adds further averages. The number of images is only in the file's name, as training-state-{kimg:06d}.pt.
"""

from __future__ import annotations

import io
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from registry.core.errors import UserError
from registry.edm import snapshots
from registry.edm.networks import Precond
from registry.edm.pickles import RUNS_SOURCE, PickleError, list_globals, network_of, read_pickle
from registry.edm.snapshots import persistent

NETWORKS = {"student": "fake_score", "generator": "G", "average": "G_ema"}
ADAMS = {"student": "fake_score_optimizer_state", "generator": "g_optimizer_state"}
MOMENTS = ("step", "exp_avg", "exp_avg_sq")
"""What Adam keeps of a parameter: the number of its steps, and two tensors of its shape."""


@dataclass(frozen=True)
class SiDState:
    """What training changes."""

    networks: Mapping[str, Precond]
    """student, generator, average."""
    adams: Mapping[str, dict[str, Any]]
    """student, generator: as `torch.optim.Adam.state_dict` gives it, over the network's parameters in their order."""
    D: float | None = None
    """The networks' D, if the file states it."""
    others: tuple[str, ...] = ()
    """The file's other keys, which are left out: the fork's further averages."""


def holds_modules(path: Path) -> bool:
    """Whether a file has whole modules in it, as the states of EDM's family have and ours never."""
    try:
        return any(names[:2] == RUNS_SOURCE for names in list_globals(path))
    except PickleError:
        return False


def read_sid_state(path: Path) -> SiDState:
    """Read a state of SiD or of its IPFM fork. Nothing in it is executed. Raises UserError if a part is missing or damaged."""
    content = read_pickle(path)
    wanted = [*NETWORKS.values(), *ADAMS.values()]
    if missing := [key for key in wanted if key not in content]:
        raise UserError(
            f"{path}: has no {', '.join(missing)}, so it is no training state of SiD or its IPFM fork; it has {', '.join(content)}"
        )
    found = {name: network_of(content[key], f"{path} [{key}]") for name, key in NETWORKS.items()}
    nets, about = {name: net for name, (net, _) in found.items()}, found["generator"][1]
    adams = {name: _adam(content[key], nets[name], f"{path} [{key}]") for name, key in ADAMS.items()}
    others = tuple(key for key in content if key not in wanted)
    return SiDState(nets, adams, about["D"] if about["tells_D"] else None, others)


def _adam(raw: Any, net: nn.Module, origin: str) -> dict[str, Any]:
    """Adam's state, checked against the parameters that it belongs to; its tensors are copied. Raises UserError."""
    parameters = list(net.parameters())
    match raw:
        case {"state": dict() as state, "param_groups": [{"params": list() as order, **settings}]}:
            pass
        case _:
            raise UserError(f"{origin}: is no state of an Adam with one group of parameters")
    if order != list(range(len(parameters))) or not state.keys() <= set(order):
        raise UserError(f"{origin}: belongs to {len(order)} parameters, but its network has {len(parameters)}")
    kept: dict[int, dict[str, Tensor]] = {}  # a parameter that never had a gradient has no entry
    for index, entry in state.items():
        numbers = [entry.get(name) if isinstance(entry, Mapping) else None for name in MOMENTS]
        if not all(isinstance(value, Tensor | int | float) for value in numbers):
            raise UserError(f"{origin}: lacks {', '.join(MOMENTS)} of parameter {index}")
        kept[index] = {name: torch.as_tensor(entry[name], dtype=torch.float32).clone() for name in MOMENTS}
        shapes = [tuple(kept[index][name].shape) for name in MOMENTS]
        if shapes != [(), *[tuple(parameters[index].shape)] * 2]:
            raise UserError(f"{origin}: its {', '.join(MOMENTS)} of parameter {index} have shapes {shapes}, unlike the parameter")
    return {"state": kept, "param_groups": [{**settings, "params": order}]}


def sid_state(state: SiDState) -> bytes:
    """The bytes of a training state, with networks as in our snapshots: the file carries the source that rebuilds them."""
    content = {key: persistent(state.networks[name]) for name, key in NETWORKS.items()}
    content |= {key: state.adams[name] for name, key in ADAMS.items()}
    buffer = io.BytesIO()
    torch.save(content, buffer, pickle_module=snapshots, pickle_protocol=2)
    return buffer.getvalue()
