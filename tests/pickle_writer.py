"""Files in the layouts of EDM, PFGM++ and SiD, written as those projects write them."""

from __future__ import annotations

import math
import pickle
import sys
import types
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from registry.core.errors import UserError
from registry.edm.pickles import PickleError, network_of, read_pickle
from tests.conftest import HERE, tiny_network

GOLDEN = HERE / "golden"

# File: (its npz, {key of a network: where its tensors and its outputs are in the npz})
NETWORKS: dict[str, tuple[str, dict[str, tuple[str, str]]]] = {
    "teacher_edm_ddpmpp.pkl": ("teacher_edm_ddpmpp", {"ema": ("state/", "out")}),
    "teacher_edm_ddpmpp_oldnames.pkl": ("teacher_edm_ddpmpp", {"ema": ("state/", "out")}),
    "teacher_edm_adm.pkl": ("teacher_edm_adm", {"ema": ("state/", "out")}),
    "teacher_pfgmpp_ncsnpp.pkl": ("teacher_pfgmpp_ncsnpp", {"ema": ("state/", "out")}),
    "network-snapshot-1.200000-000512.pkl": ("training-state-sid-000512", {"ema": ("G_ema/", "out_G_ema")}),
    **{
        file: (npz, {key: (f"{key}/", f"out_{key}") for key in keys})
        for file, npz, keys in [
            ("teacher_pfgmpp_converted.pkl", "training-state-pfgmpp-000012", ["ema", "net"]),
            ("training-state-pfgmpp-000012.pt", "training-state-pfgmpp-000012", ["ema", "net"]),
            ("training-state-edm-000012.pt", "training-state-edm-000012", ["net"]),
            ("training-state-sid-000512.pt", "training-state-sid-000512", ["fake_score", "G", "G_ema"]),
            (
                "training-state-ipfm-000512.pt",
                "training-state-ipfm-000512",
                ["fake_score", "G", "G_ema", "G_ema990", "G_ema995", "G_ema999"],
            ),
        ]
    },
}
CASES = [(file, key) for file, (_, keys) in NETWORKS.items() for key in keys]

# File: (its npz, {key of an optimizer: (its network, where its param_groups are in the meta)})
ONE = {"optimizer_state": ("net", "param_groups")}
TWO = {
    "fake_score_optimizer_state": ("fake_score", "fake_score_param_groups"),
    "g_optimizer_state": ("G", "g_param_groups"),
}
OPTIMIZERS = {
    "teacher_pfgmpp_converted.pkl": ONE,
    "training-state-pfgmpp-000012.pt": ONE,
    "training-state-edm-000012.pt": ONE,
    "training-state-sid-000512.pt": TWO,
    "training-state-ipfm-000512.pt": TWO,
}


class StandIn:
    """A persistent object as the public repositories pickle it."""

    def __init__(self, meta: dict[str, Any]) -> None:
        self.meta = meta

    def __reduce__(self) -> tuple[Any, ...]:
        return sys.modules["torch_utils.persistence"]._reconstruct_persistent_obj, (self.meta,)

    @property
    def state(self) -> dict[str, Any]:
        found: dict[str, Any] = self.meta["state"]
        return found


@contextmanager
def original_modules() -> Iterator[types.ModuleType]:
    """Importable stand-ins of the repositories' modules, without any of their code; gives `dnnlib.util`."""
    names = ["torch_utils", "torch_utils.persistence", "dnnlib", "dnnlib.util"]
    modules = {name: types.ModuleType(name) for name in names}

    def _reconstruct_persistent_obj(meta: dict[str, Any]) -> StandIn:
        return StandIn(meta)

    class EasyDict(dict[str, Any]):
        pass

    homes: list[tuple[Any, str]] = [(_reconstruct_persistent_obj, "torch_utils.persistence"), (EasyDict, "dnnlib.util")]
    for made, home in homes:
        made.__module__, made.__qualname__ = home, made.__name__
        setattr(modules[home], made.__name__, made)
    sys.modules.update(modules)
    try:
        yield modules["dnnlib.util"]
    finally:
        for name in names:
            del sys.modules[name]


def persistent(module: nn.Module) -> Any:
    """One of our networks as the public repositories would store it."""
    children = {name: persistent(child) for name, child in module._modules.items() if child is not None}
    if isinstance(module, nn.ModuleDict):
        container = nn.ModuleDict()
        container._modules = children
        return container
    state = {k: v for k, v in vars(module).items() if k != "init_kwargs"} | {"_modules": children, "_init_args": ()}
    state["_init_kwargs"] = dict(getattr(module, "init_kwargs", {}))
    source = "import os\nos.abort()\n"
    return StandIn({"type": "class", "version": 6, "module_src": source, "class_name": type(module).__name__, "state": state})


def write(path: Path, content: Any, layout: int | str = 4) -> Path:
    """Write a file: a plain pickle of that protocol, or torch's 'zip' or 'legacy' format."""
    with original_modules(), open(path, "wb") as file:
        if isinstance(layout, int):
            pickle.dump(content, file, layout)
        else:
            torch.save(content, file, _use_new_zipfile_serialization=layout == "zip")
    return path


@pytest.fixture(name="snapshot")
def snapshot_fixture(tmp_path: Path) -> Any:
    """Writes a snapshot of a small network changed by a function, and gives its path."""

    def make(change: Any = None, net: nn.Module | None = None, layout: int | str = 4) -> Path:
        record = persistent(net or tiny_network(D=math.inf))
        if change:
            change(record)
        return write(tmp_path / "changed.pkl", {"ema": record}, layout)

    return make


def refusal(path: Path, key: str = "ema") -> str:
    """The one-line message with which a file's network is refused."""
    with pytest.raises(PickleError) as caught:
        network_of(read_pickle(path)[key], path)
    message = str(caught.value)
    assert isinstance(caught.value, UserError)
    assert message.startswith(f"{path}: ")
    assert message.isprintable()
    return message.removeprefix(f"{path}: ")
