"""Plain files: tensors and plain values only, opened with `weights_only=True`, written whole or not at all."""

from __future__ import annotations

import hashlib
import io
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
from registry.features import Classifier
from registry.sources import open_path

FORMAT = "distill/1"
NETWORKS: dict[str, Callable[..., nn.Module]] = {
    "EDMPrecond": EDMPrecond,
    "PointDenoiser": PointDenoiser,
    "Classifier": Classifier,
}


def write_atomically(path: Path, content: bytes) -> None:
    """Write a file whole or not at all: a temporary file in the same folder, moved into place. Raises UserError."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    except OSError as error:
        raise UserError(f"{path}: cannot be written: {error.strerror}") from None
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
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


def save_network(path: Path, kind: str, net: nn.Module, weights: Mapping[str, Tensor], about: Mapping[str, Any]) -> None:
    """Save a network: its class with constructor arguments, its weights, and what is to be known about it."""
    network = {"class": type(net).__name__, "kwargs": dict(getattr(net, "init_kwargs", {}))}
    content = {name: tensor.detach().cpu().contiguous() for name, tensor in weights.items()}
    save(path, kind, {"network": network, "weights": content, "about": dict(about)})


def load_network(source: str | Path, *kinds: str) -> tuple[nn.Module, dict[str, Any]]:
    """A network in eval mode and what its file tells about it. Raises UserError; no tensor is ever left random."""
    content = load(source, *kinds)
    name, kwargs = content["network"]["class"], content["network"]["kwargs"]
    if name not in NETWORKS:
        raise UserError(f"{source}: holds a network of class {name!r}, which only the plugin that made it can build")
    try:
        net = NETWORKS[name](**kwargs)
    except (TypeError, ValueError) as error:
        raise UserError(f"{source}: its network cannot be built: {error}") from None
    wanted, found = net.state_dict(), content["weights"]
    problems = [f"missing {k}" for k in wanted if k not in found] + [f"unknown {k}" for k in found if k not in wanted]
    problems += [
        f"{k} is {list(found[k].shape)}, not {list(v.shape)}" for k, v in wanted.items() if k in found and found[k].shape != v.shape
    ]
    if problems:
        raise UserError(f"{source}: its tensors do not fit its network: {'; '.join(problems[:5])} ({len(problems)} in all)")
    net.load_state_dict(found)
    return net.eval(), dict(content["about"])


def weights_hash(net: nn.Module) -> str:
    """A short hash of a network's parameters and buffers: names, shapes, values."""
    digest = hashlib.sha256()
    for name, tensor in net.state_dict().items():
        digest.update(f"{name}{tuple(tensor.shape)}{tensor.dtype}".encode())
        digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]
