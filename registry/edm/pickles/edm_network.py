"""`network_of`: builds our network from the record of one of EDM's, after checking everything in the record."""

from __future__ import annotations

import inspect
import math
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import Field, ValidationError
from torch import Tensor

from registry.core.settings import Config, Dimension, Positive
from registry.core.text import shown
from registry.edm.networks import PRECONDITIONINGS, Precond
from registry.edm.pickles.records import Persistent
from registry.edm.pickles.refusals import PickleError, blaming
from registry.edm.pickles.tensors import take_too_much

NEWEST_VERSION = 6
"""The newest known layout of persistent objects."""


class _Arguments(Config):
    """The arguments that all networks share, within bounds that every real network keeps."""

    img_resolution: int = Field(ge=1, le=8192)
    img_channels: int = Field(ge=1, le=1024)
    label_dim: int = Field(0, ge=0, le=1_000_000)
    use_fp16: bool = False
    model_type: Literal["SongUNet", "DhariwalUNet"] = "DhariwalUNet"
    augment_dim: int = Field(0, ge=0, le=1024)
    model_channels: int = Field(128, ge=1, le=8192)
    channel_mult: list[int] | tuple[int, ...] = Field((1,), min_length=1, max_length=8)
    channel_mult_emb: int = Field(4, ge=1, le=64)
    num_blocks: int = Field(3, ge=1, le=64)
    attn_resolutions: list[int] | tuple[int, ...] = Field((), max_length=16)
    dropout: float = Field(0.1, ge=0, lt=1)
    label_dropout: float = Field(0.0, ge=0, lt=1)
    embedding_type: Literal["fourier", "positional"] = "positional"
    channel_mult_noise: int = Field(1, ge=1, le=64)
    encoder_type: Literal["standard", "skip", "residual"] = "standard"
    decoder_type: Literal["standard", "skip"] = "standard"
    resample_filter: list[float] | tuple[float, ...] = Field((1, 1), min_length=1, max_length=32)


class _EDM(_Arguments):
    sigma_min: float = Field(0.0, ge=0, allow_inf_nan=False)
    sigma_max: float = Field(math.inf, gt=0)
    sigma_data: Positive = 0.5
    pfgmpp: bool = False
    D: Dimension = math.inf


class _VP(_Arguments):
    beta_d: Positive = 19.9
    beta_min: Positive = 0.1
    M: int = Field(1000, ge=2, le=10_000)
    epsilon_t: Positive = 1e-5


class _VE(_Arguments):
    sigma_min: float = Field(0.02, ge=0, allow_inf_nan=False)
    sigma_max: Positive = 100.0


class _IDDPM(_Arguments):
    C_1: Positive = 0.001
    C_2: Positive = 0.008
    M: int = Field(1000, ge=2, le=10_000)


_ARGUMENTS: dict[str, type[_Arguments]] = {"EDMPrecond": _EDM, "VPPrecond": _VP, "VEPrecond": _VE, "iDDPMPrecond": _IDDPM}
assert _ARGUMENTS.keys() == PRECONDITIONINGS.keys()

_SET_LATER = ("use_fp16", "sigma_min", "sigma_max", "pfgmpp", "D")
"""Attributes that scripts set after construction. If a file has them, they override the constructor's arguments."""
_ROUNDED = {"sigma_min": 0.2, "sigma_max": 1e-5}
"""Relative tolerance of attributes that a network computes in float32. On another computer they can differ by so much."""


def network_of(record: Any, origin: str | Path) -> tuple[Precond, dict[str, Any]]:
    """Our network, in eval mode on the CPU, from the record of one of EDM's, and what is known about it.

    Everything is checked before the network is used: class, version and arguments, then the names, shapes and types of all
    tensors, and the attributes of all layers. Tensors are copied. The second value has `D` (inf unless the network is
    PFGM++'s), `tells_D` (whether the file says anything about D), `sigma_data`, `label_dim`, `img_resolution`,
    `img_channels`, `class_name` and `version`. Raises PickleError, whose message begins with `origin`.
    """
    with blaming(origin):
        known = ", ".join(PRECONDITIONINGS)
        if not isinstance(record, Persistent):
            raise PickleError(f"holds a {type(record).__name__} where a network belongs ({known})")
        if record.class_name not in PRECONDITIONINGS:
            raise PickleError(f"holds a network of class {shown(record.class_name)!r}; supported are {known}")
        if not 1 <= record.version <= NEWEST_VERSION:
            raise PickleError(f"has persistent objects of version {record.version}; known are 1 to {NEWEST_VERSION}")
        tensors = record.tensors()
        if any(tensor.is_meta for tensor in tensors.values()):
            raise PickleError("was read without the numbers in its tensors")
        held = {tensor.untyped_storage()._cdata: tensor.untyped_storage().nbytes() for tensor in tensors.values()}
        if take_too_much([*tensors.values()], sum(held.values())):
            raise PickleError("is built to take more memory than it has bytes: its tensors are the same numbers")
        arguments = _constructor_arguments(record, len(tensors))
        with torch.device("meta"):  # takes no memory, whatever the arguments are
            net = PRECONDITIONINGS[record.class_name](**arguments)
        _refuse(_tensor_problems(net.state_dict(), tensors), "has tensors that do not fit its network")
        _refuse(_attribute_problems(net, record), "has layers that do not fit its network")
        net.load_state_dict({k: v.clone(memory_format=torch.contiguous_format) for k, v in tensors.items()}, assign=True)
        about = {
            "D": net.D, "sigma_data": net.sigma_data, "label_dim": net.label_dim,
            "img_resolution": net.img_resolution, "img_channels": net.img_channels,
        }  # fmt: skip
        tells_D = "pfgmpp" in record.state or "pfgmpp" in record.init_kwargs
        return net.eval(), {**about, "tells_D": tells_D, "class_name": record.class_name, "version": record.version}


def _constructor_arguments(record: Persistent, tensors: int) -> dict[str, Any]:
    """The arguments for our network. It must not have more blocks than this number of tensors allows. Raises PickleError."""
    allowed = _ARGUMENTS[record.class_name]
    names = list(inspect.signature(PRECONDITIONINGS[record.class_name]).parameters)
    leading = names[: names.index("model_type") + 1]
    positional = record.state.get("_init_args", ())
    if type(positional) is not tuple or len(positional) > len(leading):
        raise PickleError(f"gives its network positional arguments other than {', '.join(leading)}")
    given = dict(zip(leading, positional, strict=False))
    if twice := given.keys() & record.init_kwargs.keys():
        raise PickleError(f"gives its network the argument {min(twice)} twice")
    given |= record.init_kwargs | {k: record.state[k] for k in _SET_LATER if k in record.state and k in allowed.model_fields}
    try:
        arguments = allowed.model_validate(given)
    except ValidationError as error:
        first = error.errors()[0]
        where = shown(".".join(map(str, first["loc"])))
        raise PickleError(f"has a network whose argument {where} is wrong: {shown(first['msg'])}") from None
    if isinstance(arguments, _EDM) and arguments.pfgmpp and "D" not in given:
        raise PickleError("says that its network is PFGM++'s (pfgmpp), but not what D is")
    blocks = len(arguments.channel_mult) * (2 * arguments.num_blocks + 1)
    if 10 * blocks > tensors:
        raise PickleError(f"asks for a network of {blocks} blocks, but holds only {tensors} tensors for it")
    without_D = isinstance(arguments, _EDM) and not arguments.pfgmpp
    return arguments.model_dump(exclude_unset=True, exclude={"D"} if without_D else None)


def _tensor_problems(wanted: dict[str, Tensor], found: dict[str, Tensor]) -> list[str]:
    """Names that are missing or unknown, and tensors that are not float32 or do not have the wanted shape."""
    problems = [f"missing {k}" for k in wanted if k not in found] + [f"unknown {shown(k)}" for k in found if k not in wanted]
    for name in (k for k in wanted if k in found):
        its, mine = found[name], list(wanted[name].shape)
        if list(its.shape) != mine or its.dtype != torch.float32:
            problems.append(f"{name} is {list(its.shape)} {its.dtype}, not {mine} torch.float32")
    return problems


def _attribute_problems(net: Precond, record: Persistent) -> list[str]:
    """The layer attributes that differ from ours of the same name: number of heads, scales, epsilons, resampling and so on."""
    layers, problems = dict(net.named_modules()), []
    arguments = _ARGUMENTS[record.class_name].model_fields.keys() & {*_SET_LATER}
    for path, module in record.modules():
        ours = vars(layers[path]) if path in layers else {}
        if not ours:
            problems.append(f"{shown(path)} is unknown")
        for name in sorted(ours.keys() & module.state.keys() - {"training", *arguments}):
            mine, its, rounding = ours[name], module.state[name], _ROUNDED.get(name, 1e-9)
            if isinstance(mine, bool | int | float) and not (
                isinstance(its, bool | int | float) and math.isclose(mine, its, rel_tol=rounding)
            ):
                other = its if isinstance(its, bool | int | float | None) else f"a {type(its).__name__}"
                problems.append(f"{path}.{name}".lstrip(".") + f" is {other}, not {mine}")
    return problems


def _refuse(problems: list[str], summary: str) -> None:
    if problems:
        raise PickleError(f"{summary}: {'; '.join(problems[:5])} ({len(problems)} in all)")
