"""Our own file formats: plain tensors and values in a torch file (.pt), and safetensors with JSON in the metadata."""

from __future__ import annotations

import io
import json
import math
import pickle
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from registry.core.errors import UserError
from registry.files.atomic import write_atomically
from registry.files.locate import open_path

FORMAT = "distill/1"
MARK = "distill"
"""The key of our JSON in a safetensors file's metadata."""
STATE = "training state"
NETWORK_KINDS = ("denoiser", "generator", "classifier")


def save(path: Path, kind: str, content: Mapping[str, Any]) -> None:
    """Save plain values and tensors with our format mark. Raises UserError."""
    assert is_plain(content), f"not plain: {content}"
    buffer = io.BytesIO()
    torch.save({"format": FORMAT, "kind": kind, **content}, buffer)
    write_atomically(path, buffer.getvalue())


def is_plain(value: Any) -> bool:
    """Whether a value holds only tensors, numbers, text and containers of these, which `weights_only=True` can load."""
    if isinstance(value, Mapping):
        return all(is_plain(k) and is_plain(v) for k, v in value.items())
    if isinstance(value, list | tuple):
        return all(map(is_plain, value))
    return value is None or isinstance(value, Tensor) or type(value) in (bool, int, float, str)


def load(source: str | Path, *kinds: str) -> dict[str, Any]:
    """Load one of our files, of one of these kinds. Raises UserError for any other file."""
    path = open_path(str(source))
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise UserError(f"{source}: no such file") from None
    except OSError as error:
        raise UserError(f"{source}: cannot be read: {error.strerror}") from None
    except (RuntimeError, pickle.UnpicklingError, EOFError, ValueError, KeyError) as error:
        found = re.search(r"GLOBAL (\S+)", str(error))
        reason = f" (it refers to {found[1]})" if found else ""  # torch's own message advises to load it unsafely
        raise UserError(f"{source}: not a plain-tensor file written by distill, or damaged{reason}") from None
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise UserError(f"{source}: not a file written by distill (it lacks the mark {FORMAT!r})")
    if content.get("kind") not in kinds:
        raise UserError(f"{source}: is a {content.get('kind')}, expected a {' or '.join(kinds)}")
    return content


def save_safetensors(path: Path, weights: Mapping[str, Tensor], content: Mapping[str, Any]) -> None:
    """Save tensors, with plain values as JSON in the metadata. Raises UserError."""
    from safetensors.torch import save as to_safetensors

    metadata = {MARK: json.dumps(_to_json({"format": FORMAT, **content}), allow_nan=False)}
    write_atomically(path, to_safetensors({k: v.clone() for k, v in weights.items()}, metadata))


def load_safetensors(path: Path, source: object, shapes_only: bool = False) -> dict[str, Any]:
    """Load our safetensors file as {kind, network, about, weights}; with `shapes_only`, weights hold shapes. Raises UserError."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            names = list(file.keys())
            weights = {n: file.get_slice(n).get_shape() if shapes_only else file.get_tensor(n) for n in names}
            content = _from_json(json.loads((file.metadata() or {}).get(MARK, "null")))
    except (SafetensorError, ValueError) as error:
        raise UserError(f"{source}: not a safetensors file, or damaged ({error})") from None
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise UserError(f"{source}: a safetensors file without distill's metadata, so its architecture is unknown")
    return content | {"weights": weights}


def _to_json(value: Any) -> Any:
    """Plain values as JSON. JSON has no infinity or NaN, so they are stored as text."""
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
