"""Pickles that hold something else, or a network that does not fit: refused with one line."""

from __future__ import annotations

import math
import pickle
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from registry.edm.networks import EDMPrecond
from registry.edm.pickles import PickleError, list_globals, network_of, read_pickle
from tests.conftest import tiny_network
from tests.pickle_writer import (
    GOLDEN,
    original_modules,
    persistent,
    refusal,
    snapshot_fixture,  # noqa: F401  (fixtures)
)


def first_layer(record: Any) -> dict[str, Any]:
    """The attributes of the first convolution."""
    return record.state["_modules"]["model"].state["_modules"]["enc"]._modules["8x8_conv"].state  # type: ignore[no-any-return]


def put(part: str, name: str, value: Any) -> Any:
    """A change of the first convolution: one of its parameters, buffers or modules."""

    def change(record: Any) -> None:
        first_layer(record)[part] = {**first_layer(record)[part], name: value}

    return change


def drop(record: Any) -> None:
    first_layer(record)["_parameters"] = {k: v for k, v in first_layer(record)["_parameters"].items() if k != "bias"}


def meta(**values: Any) -> Any:
    return lambda record: record.meta.update(values)


def attributes(**values: Any) -> Any:
    return lambda record: record.state.update(values)


def arguments(**values: Any) -> Any:
    return lambda record: record.state["_init_kwargs"].update(values)


def layer(**values: Any) -> Any:
    return lambda record: first_layer(record).update(values)


CONV = "model.enc.8x8_conv"
UNFIT = "has tensors that do not fit its network: "
REFUSED: dict[str, tuple[Any, str]] = {
    "extra": (put("_parameters", "more", nn.Parameter(torch.ones(1))), UNFIT + f"unknown {CONV}.more (1 in all)"),
    "missing": (drop, UNFIT + f"missing {CONV}.bias (1 in all)"),
    "none": (put("_parameters", "bias", None), UNFIT + f"missing {CONV}.bias (1 in all)"),
    "shape": (
        put("_parameters", "bias", nn.Parameter(torch.ones(9))),
        UNFIT + f"{CONV}.bias is [9] torch.float32, not [8] torch.float32 (1 in all)",
    ),
    "dtype": (
        put("_parameters", "bias", nn.Parameter(torch.ones(8).half())),
        UNFIT + f"{CONV}.bias is [8] torch.float16, not [8] torch.float32 (1 in all)",
    ),
    "not a tensor": (put("_parameters", "bias", [1.0]), f"its {CONV}.bias is a list, not a tensor"),
    "array": (put("_parameters", "bias", np.ones(8)), f"its {CONV}.bias is a ndarray, not a tensor"),
    "not a module": (put("_modules", "more", {}), "its module more is a dict, not a module"),
    "unknown module": (put("_modules", "more", nn.ModuleDict()), f"has layers that do not fit its network: {CONV}.more is unknown"),
    "parameters": (layer(_parameters=[1]), "_parameters of its Conv2d is not a dictionary of names"),
    "transient": (layer(_non_persistent_buffers_set=3), "_non_persistent_buffers_set of its Conv2d is not a set"),
    "class": (meta(class_name="Precond"), "'Precond'; supported are EDMPrecond, VPPrecond, VEPrecond, iDDPMPrecond"),
    "other class": (meta(class_name="VPPrecond"), "a network whose argument sigma_min is wrong: Extra inputs are not permitted"),
    "version": (meta(version=7), "has persistent objects of version 7; known are 1 to 6"),
    "kwarg": (arguments(frobnicate=None), "a network whose argument frobnicate is wrong: Extra inputs are not permitted"),
    "twice": (attributes(_init_args=(8,)), "gives its network the argument img_resolution twice"),
    "positional": (attributes(_init_args=(1,) * 9), "gives its network positional arguments other than img_resolution,"),
    "kwargs": (attributes(_init_kwargs=[]), "_init_kwargs of its EDMPrecond is not a dictionary of names"),
    "type": (arguments(model_type="os.system"), "argument model_type is wrong: Input should be 'SongUNet' or 'DhariwalUNet'"),
    "other type": (arguments(model_type="DhariwalUNet"), "unexpected keyword argument"),
    "text": (arguments(model_channels="8"), "argument model_channels is wrong: Input should be a valid integer"),
    "tensor": (arguments(channel_mult=torch.ones(2)), "argument channel_mult"),
    "nan": (arguments(sigma_data=math.nan), "argument sigma_data is wrong"),
    "huge channels": (arguments(model_channels=10**12), "argument model_channels is wrong"),
    "large channels": (arguments(model_channels=8192), UNFIT),
    "huge number": (attributes(D=10**400), "argument D is wrong"),
    "huge resolution": (arguments(img_resolution=10**9), "argument img_resolution is wrong"),
    "blocks": (
        arguments(num_blocks=64, channel_mult=[8] * 8),
        "asks for a network of 1032 blocks, but holds only 70 tensors",
    ),
    "narrow": (arguments(model_channels=1), "it must be a multiple of 4"),
    "sigma_data": (attributes(sigma_data=1.0), "has layers that do not fit its network: sigma_data is 1.0, not 0.5 (1 in all)"),
    "resolution": (attributes(img_resolution=16), "img_resolution is 16, not 8"),
    "values": (attributes(N=1, label_dim="x"), "N is 1, not 64; label_dim is a str, not 0 (2 in all)"),
    "layer": (layer(fused_resample=True), f"{CONV}.fused_resample is True, not False"),
    "no D": (attributes(pfgmpp=True, D=None), "argument D is wrong"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_network_that_does_not_fit_is_refused_with_the_reason(snapshot: Any, case: str) -> None:
    change, reason = REFUSED[case]
    assert reason in refusal(snapshot(change))


def test_what_is_not_a_network_is_refused(snapshot: Any) -> None:
    content = read_pickle(GOLDEN / "teacher_edm_adm.pkl")
    for value, reason in [(None, "holds a NoneType"), (content, "holds a dict"), (content["loss_fn"], "class 'EDMLoss'")]:
        with pytest.raises(PickleError, match=f"^here: .*{reason}.*EDMPrecond"):
            network_of(value, "here")


def test_attributes_and_arguments_determine_the_network(snapshot: Any) -> None:
    def of(*changes: Any) -> tuple[EDMPrecond, dict[str, Any]]:
        path = snapshot(lambda record: [change(record) for change in changes])
        return network_of(read_pickle(path)["ema"], path)

    def without(*names: str) -> Any:
        return lambda record: [(record.state.pop(n, None), record.state["_init_kwargs"].pop(n, None)) for n in names]

    for D, changes in {
        128.0: [arguments(D=7), attributes(pfgmpp=True, D=128)],  # PFGM++: the attribute wins
        64.0: [without("pfgmpp", "D", "N"), arguments(pfgmpp=True, D=64)],  # … otherwise the argument
        math.inf: [arguments(D=128), attributes(pfgmpp=False, D=128)],
    }.items():
        net, about = of(*changes)
        assert (about["D"], net.D, net.pfgmpp) == (D, D, math.isfinite(D))
    net, about = of(without("pfgmpp", "D", "N"))  # EDM knows nothing of these
    assert (about["D"], net.pfgmpp, net.N) == (math.inf, False, 64)
    with pytest.raises(PickleError, match="not what D is"):
        of(without("D"), attributes(pfgmpp=True))

    leading = (8, 1, 0, True, 0.002, 80.0, 0.5, "SongUNet")
    names = ["img_resolution", "img_channels", "label_dim", "use_fp16", "sigma_min", "sigma_max", "sigma_data", "model_type"]
    net, _ = of(without(*names), attributes(_init_args=leading))
    assert tuple(net.init_kwargs[n] for n in names) == leading
    net, _ = of(attributes(sigma_max=80), arguments(dropout=np.float64(0.0), img_resolution=np.int64(8)))
    assert (net.sigma_max, net.init_kwargs["img_resolution"]) == (80, 8) and type(net.init_kwargs["dropout"]) is float


@pytest.mark.parametrize("wrap", ["EasyDict", "OrderedDict"])
def test_constructor_arguments_in_other_dictionaries(tmp_path: Path, wrap: str) -> None:
    record = persistent(tiny_network())
    with original_modules() as util:
        kind = util.EasyDict if wrap == "EasyDict" else OrderedDict
        record.state["_init_kwargs"] = kind(record.state["_init_kwargs"])
        path = tmp_path / "file"
        path.write_bytes(pickle.dumps({"ema": record}, 4))
    assert (path.read_bytes().count(wrap.encode())) > 0
    assert network_of(read_pickle(path)["ema"], path)[1]["D"] == 128


@pytest.mark.parametrize("read", [read_pickle, list_globals])
def test_what_cannot_be_opened_is_named(tmp_path: Path, read: Any) -> None:
    with pytest.raises(PickleError, match=r"nothing\.pkl: no such file$"):
        read(tmp_path / "nothing.pkl")
    with pytest.raises(PickleError, match=r"cannot be read: Is a directory$"):
        read(tmp_path)
