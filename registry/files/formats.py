"""Reads a network from any supported file and writes it in our formats. Nothing in a file is executed.

Read: network snapshots and training states of EDM, PFGM++, SiD and IPFM (`registry.edm.pickles`), our plain tensors and
training states (.pt), our safetensors. Written: .pkl, which the scripts of those projects open, .safetensors and .pt.
"""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from registry.core.atomic import write_atomically
from registry.core.contracts import KnowsLevels, Rebuildable
from registry.core.errors import SettingError, UserError
from registry.core.text import shown
from registry.edm.networks import PRECONDITIONINGS, Precond
from registry.edm.pickles import RUNS_SOURCE, Persistent, list_globals, network_of, read_pickle
from registry.edm.snapshots import EXTRA, write_snapshot
from registry.files.bounds import STATE, About, Bounded, NetworkFile, check_arguments, check_entries, check_values
from registry.files.facts import NetworkFacts
from registry.files.finite import not_finite
from registry.files.kinds import guess_kind
from registry.files.locate import newest_network, open_path
from registry.files.plain import (
    FORMAT,
    NETWORK_KINDS,
    check_ours,
    check_seal,
    is_plain,
    load,
    load_safetensors,
    save,
    save_safetensors,
    unshared,
)
from registry.plugins.component import NetworkClass
from registry.plugins.loading import load_plugins

SUFFIXES = (".pt", ".pkl", ".safetensors")
NETWORK_KEYS = ("ema", "G_ema", "net", "G", "fake_score")
"""The keys of a pickle's networks in the order in which they are tried: averages first."""
Build = Callable[[NetworkFacts], nn.Module] | None
"""Makes a network of a class that no plugin registers, from the facts in its file."""

# ------------------------------------------------------------------------------------------------------- writing


def save_network(path: Path, kind: str, net: nn.Module, about: Mapping[str, Any]) -> None:
    """Save a network in the format given by the suffix of `path`, with facts about it (plain values).

    .pkl: a snapshot that the scripts of EDM, SiD and PFGM++ open; .safetensors: weights, with everything else as JSON in the
    metadata; .pt: plain tensors. `kind` is denoiser, generator or classifier. Raises UserError.
    """
    network = blueprint(net)
    weights = {name: tensor.detach().cpu().contiguous() for name, tensor in net.state_dict().items()}
    facts = {"kind": kind, "about": dict(about)}
    assert is_plain(facts), f"not plain: {about}"
    facts = unshared(facts)
    if path.suffix == ".pkl":
        if not isinstance(net, Precond):
            raise UserError(
                f"{path}: EDM's pickles can hold only EDM's networks; a {network['class']} can be saved as .pt or .safetensors"
            )
        write_atomically(path, lambda file: write_snapshot(file, net, {"format": FORMAT, **facts}))
    elif path.suffix == ".safetensors":
        save_safetensors(path, weights, {"network": network, **facts})
    elif path.suffix == ".pt":
        save(path, kind, {"network": network, "weights": weights, "about": dict(about)})
    else:
        raise UserError(f"{path}: unknown file type; networks are saved as .pkl, .safetensors or .pt")


def blueprint(net: nn.Module) -> dict[str, Any]:
    """What is needed, besides its tensors, to rebuild one of our networks: its class and the constructor's arguments.

    `levels` are the lowest and highest noise level of a network that does not know all levels, for people.
    """
    found = {"class": type(net).__name__, "kwargs": dict(net.init_kwargs) if isinstance(net, Rebuildable) else {}}
    limited = isinstance(net, KnowsLevels) and (net.sigma_min, net.sigma_max) != (0, math.inf)
    return found | ({"levels": [net.sigma_min, net.sigma_max]} if limited else {})


def convert_network(
    source: str, target: str, key: str | None = None, kind: str | None = None, on_doubt: Callable[[str], None] | None = None
) -> str:
    """Read a network and save it in the format of `target`'s suffix; returns a one-line summary. Raises UserError.

    `kind` is what a foreign network is. Without it, `on_doubt` is called with a sentence if the kind is only assumed. The new
    file keeps what is only assumed as assumed.
    """
    net, facts = load_network(source, key=key, kind=kind)
    doubt = facts.kind_in_doubt(source)
    if doubt and on_doubt:
        on_doubt(doubt)
    kind = facts.kind or facts.looks_like
    save_network(Path(target), kind, net, facts.stored())
    return f"{target}: {kind} of D = {facts.dimension():g}, from {source}" + (f" [{facts.key}]" if facts.key else "")


# ------------------------------------------------------------------------------------------------------- reading


def load_network(
    source: str | Path,
    *kinds: str,
    key: str | None = None,
    sha256: str | None = None,
    kind: str | None = None,
    build: Build = None,
) -> tuple[nn.Module, NetworkFacts]:
    """A network in eval mode on the CPU, and what its file says about it.

    `kinds` are the kinds accepted from files that state theirs. `key` picks a network from a file that has several (default:
    the first of NETWORK_KEYS). `sha256` is checked if `source` is a URL. `kind` is what the user says of a file that does not
    state it. `build` makes a network of a class that no plugin registers. Every tensor comes from the file. Raises UserError.
    """
    path = open_path(str(source), sha256)
    sealed = os.path.isfile(path) and check_seal(path, source)
    layout = layout_of(path)
    if layout == "edm":
        found = read_pickle(path)
        check_ours(found.get(EXTRA), sealed, source)
        net, facts = _of_pickle(found, key, source)
    elif layout == "plain" and (content := load(source, *NETWORK_KINDS, STATE, sealed=sealed))["kind"] == STATE:
        net, facts = network_of_state(content, key, source, build)
    else:
        if key is not None:
            raise SettingError("key", f"{source} holds only one network; leave this out", key)
        content = load_safetensors(path, source, sealed=sealed) if layout == "safetensors" else content
        facts = NetworkFacts.of(content["about"], kind=content["kind"])
        net = _rebuild(content["network"], content["weights"], source, facts, build)
    facts = facts.told(kind, source)
    if tensor := not_finite(net):
        raise UserError(f"{source}: its {tensor} holds values that are not finite; the run that wrote it has diverged")
    if kinds and facts.kind is not None and facts.kind not in kinds:
        raise UserError(f"{source}: is a {facts.kind}, expected a {' or '.join(kinds)}")
    return net.eval(), facts


def layout_of(path: Path) -> str:
    """'edm' for pickles and torch files that hold modules, 'safetensors', or 'plain' for our own. Raises UserError."""
    if os.path.isdir(path):
        newest = newest_network(path)
        raise UserError(f"{path}: is a folder; give a file{f' in it, e.g. {newest}' if newest else ''}")
    if os.path.exists(path) and not os.path.isfile(path):
        raise UserError(f"{path}: is not a file")  # opening a pipe would wait for its other end
    try:
        with open(path, "rb") as file:
            head = file.read(10)
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from None
    if head.startswith(b"\x93NUMPY"):
        raise UserError(f"{path}: is an array of numpy's, and no network")
    if head[8:10] == b'{"':
        return "safetensors"
    if head[:4] == b"PK\x03\x04" and not any(g[:2] == RUNS_SOURCE for g in list_globals(path)):
        return "plain"
    return "edm"


def network_keys(content: Mapping[str, Any]) -> list[str]:
    """The keys of a pickle's dictionary that hold networks, in the file's order."""
    return [k for k, v in content.items() if isinstance(v, Persistent) and v.class_name.endswith("Precond")]


def _of_pickle(content: Mapping[str, Any], key: str | None, source: str | Path) -> tuple[nn.Module, NetworkFacts]:
    """A network from a pickle of the EDM family, or from one that we wrote. Raises UserError."""
    networks = network_keys(content)
    chosen = key or next((k for k in NETWORK_KEYS if k in networks), None)
    if chosen not in networks:
        wanted = f"network {chosen!r}" if chosen else "network"
        raise UserError(f"{source}: has no {wanted}; it has {', '.join(networks) or 'none'}")
    net, found = network_of(content[chosen], str(source))
    facts = facts_of_pickle(
        content, chosen, source, tells_D=found["tells_D"],
        D=found["D"], sigma_data=found["sigma_data"], label_dim=found["label_dim"],
        image_shape=(found["img_channels"], found["img_resolution"], found["img_resolution"]),
    )  # fmt: skip
    return net, facts


def check_facts(ours: Any, source: str | Path) -> None:
    """Check what we add to a pickle, if it is there. Raises UserError."""
    if isinstance(ours, dict):
        check_values([ours], source)
        if ours.get("kind") not in (None, *NETWORK_KINDS):
            raise UserError(f"{source}: is a {shown(ours['kind'], 40)}, expected a {' or '.join(NETWORK_KINDS)}")
        check_entries(ours.get("about", {}), About, source)


def facts_of_pickle(
    content: Mapping[str, Any], key: str, source: str | Path, *, tells_D: bool = True, checked: bool = False, **found: Any
) -> NetworkFacts:
    """What a pickle says about its network `key`, by our own facts in it or by its name and layout, and what its network tells.
    Our own facts may have been `checked` already."""
    ours = content.get(EXTRA)
    if isinstance(ours, dict):
        if not checked:
            check_facts(ours, source)
        return NetworkFacts.of(ours.get("about", {}), kind=ours.get("kind"), key=key, **found)
    guess = guess_kind(source, key, content)
    unsaid = {"kind": guess.doubt, "D": "" if tells_D else "it says nothing of D"}
    assumed = {name: why for name, why in unsaid.items() if why}
    return NetworkFacts.of({}, key=key, looks_like=guess.kind, assumed=assumed, **found)


def network_of_state(
    state: Mapping[str, Any], key: str | None, source: object, build: Build = None
) -> tuple[nn.Module, NetworkFacts]:
    """A network from one of our training states: the average by default, or the raw network named by `key`. Raises UserError."""
    parts, networks = state["parts"], state["networks"]
    name = key or "ema"
    if name not in parts:
        raise UserError(f"{source}: has no network {name!r}; it has {', '.join(parts)}")
    known = [k for k in ("generator", "denoiser", *parts) if k in networks and parts.get(k, {}).get("net")]
    whole = next(iter(known), name) if name == "ema" else name
    if whole not in known:
        raise UserError(f"{source}: has no whole network {whole!r}")
    weights = parts[whole]["net"] | (parts["ema"] if name == "ema" else {})
    about = {"D": networks[whole]["kwargs"].get("D", math.inf)} | state.get("about", {})
    check_entries({"network": networks[whole], "weights": weights, "about": about}, NetworkFile, source)
    facts = NetworkFacts.of(
        about, kind="generator" if whole == "generator" else "denoiser", key=name, nimg=state["nimg"], recipe=dict(state["recipe"])
    )
    return _rebuild(networks[whole], weights, source, facts, build), facts


def _rebuild(
    network: Mapping[str, Any], weights: Mapping[str, Tensor], source: object, facts: NetworkFacts, build: Build
) -> nn.Module:
    """A network with exactly these tensors: EDM's, one of a registered class, or the one `build` makes. Raises UserError."""
    name, kwargs = network["class"], network["kwargs"]
    ours = PRECONDITIONINGS.get(name)
    registered = None if ours else load_plugins().item("network", name, NetworkClass)
    if ours is None and registered is None and build is None:
        raise UserError(f"{source}: holds a network of class {name!r}, which only the plugin that made it can build")
    if ours:
        check_arguments(kwargs, source)
    try:
        # Initial weights are drawn and replaced; the random state stays.
        with torch.random.fork_rng(devices=[]), Bounded(weights):
            net = ours(**kwargs) if ours else registered.make(**kwargs) if registered else build(facts)  # type: ignore[misc]
        problem = _tensor_problems(net.state_dict(), weights)
        if not problem:
            net.load_state_dict(weights)  # which cannot take numbers of every kind
    except Exception as error:  # the arguments are the file's, and anything can be wrong with them
        raise UserError(f"{source}: its network cannot be built: {shown(error) or type(error).__name__}") from None
    if problem:
        raise UserError(f"{source}: its tensors do not fit its network: {problem}")
    return net


def misfit(own: nn.Module, other: nn.Module) -> str | None:
    """Why a network cannot take over the weights of another one and be the same function; None if it can."""
    mine, its = blueprint(own), blueprint(other)
    if mine["class"] != its["class"]:
        return f"it is a {its['class']}, not a {mine['class']}"
    for name in ("img_resolution", "model_type", "sigma_data"):
        a, b = mine["kwargs"].get(name), its["kwargs"].get(name)
        if a != b:
            return f"its {name} is {b}, not {a}"
    return _tensor_problems(own.state_dict(), other.state_dict())


def _tensor_problems(wanted: Mapping[str, Tensor], found: Mapping[str, Tensor]) -> str | None:
    """The names and shapes of tensors that differ from the wanted ones, or None."""
    problems = [f"missing {k}" for k in wanted if k not in found] + [f"unknown {k}" for k in found if k not in wanted]
    problems += [f"{k} is complex" for k, v in wanted.items() if k in found and found[k].is_complex() and not v.is_complex()]
    problems += [
        f"{k} is {list(found[k].shape)}, not {list(v.shape)}" for k, v in wanted.items() if k in found and found[k].shape != v.shape
    ]
    return f"{'; '.join(problems[:5])} ({len(problems)} in all)" if problems else None


def weights_hash(net: nn.Module) -> str:
    """A short hash of a network's parameters and buffers: names, shapes, dtypes and values."""
    digest = hashlib.sha256()
    for name, tensor in net.state_dict().items():
        digest.update(f"{name}{tuple(tensor.shape)}{tensor.dtype}".encode())
        digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]
