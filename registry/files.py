"""Files of networks and of training states, opened without executing anything, written whole or not at all.

Our own are plain tensors (`torch.load(..., weights_only=True)`); those of the EDM family are read by `registry.edm.pickles`.
"""

from __future__ import annotations

import hashlib
import io
import json
import math
import os
import pickle
import re
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from registry.analytic import PointDenoiser
from registry.api import UserError
from registry.edm.networks import EDMPrecond
from registry.edm.pickles import RUNS_SOURCE, Persistent, list_globals, network_of, read_pickle
from registry.edm.snapshots import EXTRA, snapshot
from registry.features import Classifier
from registry.sources import open_path

FORMAT = "distill/1"
SUFFIXES = (".pt", ".pkl", ".safetensors")
MARK = "distill"
KINDS = ("denoiser", "generator", "classifier", "training state")
NETWORK_KEYS = ("ema", "G_ema", "net", "G", "fake_score")
"""Networks of a pickle in the order in which one is looked for: averages first."""
Build = Callable[[Mapping[str, Any]], nn.Module] | None
NETWORKS: dict[str, Callable[..., nn.Module]] = {
    "EDMPrecond": EDMPrecond,
    "PointDenoiser": PointDenoiser,
    "Classifier": Classifier,
}


def write_atomically(path: Path, content: bytes, durable: bool = True) -> None:
    """Write a file whole or not at all: a temporary file in the same folder, moved into place. Raises UserError.

    `durable` waits until it is on the disk, so that not even a power failure leaves half of it.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    except OSError as error:
        raise UserError(f"{path}: cannot be written: {error.strerror}") from None
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            if durable:
                os.fsync(file.fileno())
        os.chmod(temporary, 0o666 & ~_umask())
        os.replace(temporary, path)
    except OSError as error:
        raise UserError(f"{path}: cannot be written: {error.strerror}") from None
    finally:
        Path(temporary).unlink(missing_ok=True)


def _umask() -> int:
    current = os.umask(0)
    os.umask(current)
    return current


def save(path: Path, kind: str, content: Mapping[str, Any]) -> None:
    """Save plain values and tensors under our format mark."""
    assert is_plain(content), f"not plain: {content}"
    buffer = io.BytesIO()
    torch.save({"format": FORMAT, "kind": kind, **content}, buffer)
    write_atomically(path, buffer.getvalue())


def is_plain(value: Any) -> bool:
    """Whether a value holds nothing but tensors, numbers, text and containers of these: what `weights_only=True` loads."""
    if isinstance(value, Mapping):
        return all(is_plain(k) and is_plain(v) for k, v in value.items())
    if isinstance(value, list | tuple):
        return all(map(is_plain, value))
    return value is None or isinstance(value, Tensor) or type(value) in (bool, int, float, str)


def load(source: str | Path, *kinds: str) -> dict[str, Any]:
    """Load a file of ours, of one of these kinds. Raises UserError if it is anything else."""
    path = open_path(str(source))
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise UserError(f"{source}: no such file") from None
    except OSError as error:
        raise UserError(f"{source}: cannot be read: {error.strerror}") from None
    except (RuntimeError, pickle.UnpicklingError, EOFError, ValueError, KeyError) as error:
        found = re.search(r"GLOBAL (\S+)", str(error))
        reason = f"it refers to {found[1]}" if found else str(error).strip().split("\n")[0]
        raise UserError(f"{source}: not a plain-tensor file of distill, or damaged ({reason})") from None
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise UserError(f"{source}: not a file of distill (it has no mark {FORMAT!r})")
    if content.get("kind") not in kinds:
        raise UserError(f"{source}: is a {content.get('kind')}, wanted is a {' or '.join(kinds)}")
    return content


def blueprint(net: nn.Module) -> dict[str, Any]:
    """What a network of ours is rebuilt from, besides its tensors: its class and the constructor's arguments."""
    return {"class": type(net).__name__, "kwargs": dict(getattr(net, "init_kwargs", {}))}


def save_network(path: Path, kind: str, net: nn.Module, about: Mapping[str, Any]) -> None:
    """Save a network in the format that the suffix of `path` names, with what is to be known about it (plain values).

    .pkl: a snapshot that the scripts of EDM, SiD and PFGM++ open; .safetensors: weights, all else as JSON in its metadata;
    .pt: plain tensors. `kind` is denoiser, generator or classifier. Raises UserError.
    """
    network = blueprint(net)
    weights = {name: tensor.detach().cpu().contiguous() for name, tensor in net.state_dict().items()}
    facts = {"kind": kind, "about": dict(about)}
    assert is_plain(facts), f"not plain: {about}"
    if path.suffix == ".pkl":
        if not isinstance(net, EDMPrecond):
            raise UserError(f"{path}: EDM's pickles hold EDM's networks; a {network['class']} can be saved as .pt or .safetensors")
        write_atomically(path, snapshot(net, facts))
    elif path.suffix == ".safetensors":
        from safetensors.torch import save as to_safetensors

        metadata = {MARK: json.dumps(_to_json({"format": FORMAT, "network": network, **facts}), allow_nan=False)}
        write_atomically(path, to_safetensors({k: v.clone() for k, v in weights.items()}, metadata))
    elif path.suffix == ".pt":
        save(path, kind, {"network": network, "weights": weights, "about": dict(about)})
    else:
        raise UserError(f"{path}: unknown kind of file; networks are saved as .pkl, .safetensors or .pt")


def load_network(
    source: str | Path,
    *kinds: str,
    key: str | None = None,
    sha256: str | None = None,
    build: Build = None,
) -> tuple[nn.Module, dict[str, Any]]:
    """A network in eval mode on the CPU, and what its file tells about it. Nothing of the file is executed.

    Reads our files, network snapshots and training states of EDM, PFGM++, SiD and IPFM, and safetensors of ours. `kinds` are
    the kinds wanted of our files; `key` picks a network of a file that has several (default: the first of NETWORK_KEYS);
    `sha256` is checked if `source` is a URL; `build` makes a network of a class that is not ours, from what the file tells.
    Raises UserError; no tensor is ever left random.
    """
    path = open_path(str(source), sha256)
    layout = layout_of(path)
    if layout == "edm":
        content = read_pickle(path)
        networks = network_keys(content)
        chosen = key or next((k for k in NETWORK_KEYS if k in networks), None)
        if chosen not in networks:
            raise UserError(f"{source}: has no network {chosen or ''!r}; it has {', '.join(networks) or 'none'}".replace(" ''", ""))
        theirs, found = network_of(content[chosen], source)
        ours = content.get(EXTRA)
        ours = ours if isinstance(ours, dict) else {}
        # SiD's snapshots hold an average alone; in its states generators are called G…
        looks_like = "generator" if chosen.startswith("G") or list(content) == ["ema"] else "denoiser"
        about = {**ours.get("about", {}), **found, "key": chosen, "looks_like": looks_like}
        return _of_kind(theirs, about, ours.get("kind"), kinds, source)
    if layout == "plain" and (state := load(source, *KINDS))["kind"] == KINDS[-1]:
        return _of_state(state, key, source, kinds, build)
    if key is not None:
        raise UserError(f"{source}: holds one network, so --key {key} cannot be picked from it")
    content = _load_safetensors(path, source) if layout == "safetensors" else load(source, *(kinds or KINDS[:3]))
    net = _rebuild(content["network"], content["weights"], source, content["about"], build)
    return _of_kind(net, dict(content["about"]), content["kind"], kinds, source)


def convert_network(source: str, target: str, key: str | None = None, kind: str | None = None) -> str:
    """Read a network and save it in the format of `target`'s suffix; gives one line about it. Raises UserError."""
    net, about = load_network(source, key=key)
    if kind is None:
        kind = str(about.get("kind") or about.get("looks_like", "denoiser"))
    facts = {
        k: v
        for k, v in about.items()
        if k not in ("kind", "key", "looks_like", "tells_D", "class_name", "version", "label_dim", "img_resolution", "img_channels")
    }
    save_network(Path(target), kind, net, facts)
    return f"{target}: {kind} of D = {facts.get('D', float('inf')):g}, from {source}" + (
        f" [{about['key']}]" if "key" in about else ""
    )


def layout_of(path: Path) -> str:
    """'edm' for pickles and torch files with modules in them, 'safetensors', or 'plain' for our own. Raises UserError."""
    if path.is_dir():
        files = [p.name for p in sorted(path.glob("network-snapshot-*"), key=lambda p: p.name) if p.suffix in SUFFIXES]
        raise UserError(f"{path}: is a folder; give a file{f' in it, e.g. {path / files[-1]}' if files else ''}")
    try:
        with open(path, "rb") as file:
            head = file.read(10)
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from None
    if head[8:10] == b'{"':
        return "safetensors"
    if head[:4] == b"PK\x03\x04" and not any(g[:2] == RUNS_SOURCE for g in list_globals(path)):
        return "plain"
    return "edm"


def network_keys(content: Mapping[str, Any]) -> list[str]:
    """The keys of a pickle's dictionary that hold networks, in the file's order."""
    return [k for k, v in content.items() if isinstance(v, Persistent) and v.class_name.endswith("Precond")]


def _of_state(
    state: Mapping[str, Any], key: str | None, source: object, kinds: tuple[str, ...], build: Build
) -> tuple[nn.Module, dict[str, Any]]:
    """A network of one of our training states: its average by default, else the raw one of that name."""
    parts, networks = state["parts"], state["networks"]
    name = key or "ema"
    if name not in parts:
        raise UserError(f"{source}: has no network {name!r}; it has {', '.join(parts)}")
    whole = next(k for k in ("generator", "denoiser", *parts) if k in networks) if name == "ema" else name
    weights = parts[whole]["net"] | (parts["ema"] if name == "ema" else {})
    about = {"D": float(networks[whole]["kwargs"].get("D", "inf"))} | state.get("about", {})
    about |= {"nimg": state["nimg"], "recipe": dict(state["recipe"]), "key": name}
    kind = "generator" if whole == "generator" else "denoiser"
    return _of_kind(_rebuild(networks[whole], weights, source, about, build), about, kind, kinds, source)


def _of_kind(
    net: nn.Module, about: dict[str, Any], kind: Any, kinds: tuple[str, ...], source: object
) -> tuple[nn.Module, dict[str, Any]]:
    if kinds and kind is not None and kind not in kinds:
        raise UserError(f"{source}: is a {kind}, wanted is a {' or '.join(kinds)}")
    return net.eval(), about | ({} if kind is None else {"kind": kind})


def _load_safetensors(path: Path, source: object, shapes_only: bool = False) -> dict[str, Any]:
    """Our safetensors file as {kind, network, about, weights}; the weights' shapes in their place if that is all."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            names = list(file.keys())
            weights = {n: file.get_slice(n).get_shape() if shapes_only else file.get_tensor(n) for n in names}
            content = _from_json(json.loads((file.metadata() or {}).get(MARK, "null")))
    except (SafetensorError, ValueError) as error:
        raise UserError(f"{source}: not a safetensors file, or damaged ({error})") from None
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise UserError(f"{source}: a safetensors file without the metadata of distill; its architecture is unknown")
    return content | {"weights": weights}


def header_of_safetensors(path: Path) -> dict[str, Any]:
    """Kind, network and facts of our safetensors file, with `weights` as {name: shape}: no tensor is loaded. Raises UserError."""
    return _load_safetensors(path, path, shapes_only=True)


def _to_json(value: Any) -> Any:
    """JSON has no infinity: it travels as text."""
    if isinstance(value, Mapping):
        return {k: _to_json(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_to_json(v) for v in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def _from_json(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _from_json(v) for k, v in value.items()}
    if isinstance(value, list):
        return [_from_json(v) for v in value]
    return float(value) if isinstance(value, str) and value in ("inf", "-inf", "nan") else value


def _rebuild(
    network: Mapping[str, Any], weights: Mapping[str, Tensor], source: object, about: Mapping[str, Any], build: Build
) -> nn.Module:
    """A network with exactly these tensors: of ours, or what `build` makes of a class that is not ours."""
    name, kwargs = network["class"], network["kwargs"]
    if name not in NETWORKS and build is None:
        raise UserError(f"{source}: holds a network of class {name!r}, which only the plugin that made it can build")
    try:
        net = NETWORKS[name](**kwargs) if name in NETWORKS or build is None else build(about)
    except (TypeError, ValueError) as error:
        raise UserError(f"{source}: its network cannot be built: {error}") from None
    wanted = net.state_dict()
    problems = [f"missing {k}" for k in wanted if k not in weights] + [f"unknown {k}" for k in weights if k not in wanted]
    problems += [
        f"{k} is {list(weights[k].shape)}, not {list(v.shape)}"
        for k, v in wanted.items()
        if k in weights and weights[k].shape != v.shape
    ]
    if problems:
        raise UserError(f"{source}: its tensors do not fit its network: {'; '.join(problems[:5])} ({len(problems)} in all)")
    net.load_state_dict(weights)
    return net


def weights_hash(net: nn.Module) -> str:
    """A short hash of a network's parameters and buffers: names, shapes, values."""
    digest = hashlib.sha256()
    for name, tensor in net.state_dict().items():
        digest.update(f"{name}{tuple(tensor.shape)}{tensor.dtype}".encode())
        digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]
