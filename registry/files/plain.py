"""Our own file formats: plain tensors and values in a torch file (.pt), and safetensors with JSON in the metadata."""

from __future__ import annotations

import itertools
import json
import math
import sys
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from registry.core import seal
from registry.core.atomic import write_atomically
from registry.core.errors import UserError
from registry.core.interruption import undisturbed
from registry.core.text import shown
from registry.edm.pickles import (
    PARAMETER,
    SIZE,
    TENSOR,
    UNTYPED,
    Global,
    PickleError,
    begins_a_pickle,
    disguised_program,
    list_globals,
    take_too_much,
)
from registry.files.bounds import SCHEMAS, NetworkFile, check_entries, check_values
from registry.files.locate import open_path

FORMAT = "distill/2"
FORMATS = {"distill/1": False, FORMAT: True}
"""The marks of our files, and whether a file with this mark has a seal."""
MARK = "distill"
"""The key of our JSON in a safetensors file's metadata."""
NOT_PLAIN = "not a plain-tensor file written by distill, or damaged"
DAMAGED = "is damaged: its content is not what was written"
UNREADABLE = "cannot be read"
"""What is said of a file that the disk does not give, now: it may be whole."""
PLAIN = {TENSOR, Global("collections", "OrderedDict"), SIZE, PARAMETER}
"""What a file of ours refers to, besides kinds of numbers; earlier versions wrote shapes and parameters as such. torch's loader
calls more, such as what copies its argument, or gives parameters attributes that hide their methods."""
HARMLESS = {
    UNTYPED, Global("builtins", "complex"), Global("__builtin__", "complex"), Global("torch.serialization", "_get_layout"),
    *(Global("torch._utils", f"_rebuild_{name}") for name in ("tensor_v3", "sparse_tensor", "meta_tensor_no_storage", "qtensor")),
    *(Global("torch", f"per_{kind}") for kind in ("tensor_affine", "tensor_symmetric", "channel_affine", "channel_symmetric")),
    Global("collections", "Counter"),
}  # fmt: skip
"""What tensors of newer types refer to, sparse ones, and ones without numbers, which nothing of ours reads. It executes nothing."""
DTYPES = {
    torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16", torch.bool: "BOOL",
    torch.int64: "I64", torch.int32: "I32", torch.int16: "I16", torch.int8: "I8", torch.uint8: "U8",
    torch.uint64: "U64", torch.uint32: "U32", torch.uint16: "U16", torch.complex64: "C64",
    torch.float8_e4m3fn: "F8_E4M3", torch.float8_e5m2: "F8_E5M2",
}  # fmt: skip
"""What safetensors calls them."""
NETWORK_KINDS = ("denoiser", "generator", "classifier")


def save(path: Path, kind: str, content: Mapping[str, Any]) -> None:
    """Save plain values and tensors with our format mark. Raises UserError."""
    assert is_plain(content), f"not plain: {content}"

    def write(file: BinaryIO) -> None:
        with undisturbed():
            torch.save(unshared({"format": FORMAT, "kind": kind, **content}), file)
        seal.seal(file)

    write_atomically(path, write)


def check_seal(path: Path, source: object) -> bool:
    """Whether a file has a seal. Raises UserError if it has one and is not as it was written."""
    try:
        whole = seal.is_whole(path)
    except OSError as error:
        raise UserError(f"{source}: cannot be read: {error.strerror}") from None
    if whole is False:
        raise UserError(f"{source}: {DAMAGED}")
    return whole is True


def problem(path: Path) -> str | None:
    """What is wrong with one of our .pt files: None if it is whole. Says nothing of what is in it.

    Raises UserError for a file that this user may not read.
    """
    try:
        if not path.is_file():
            return "is not a file"
        if seal.is_whole(path):
            return None
        if not path.stat().st_size:
            return "is empty"
        with zipfile.ZipFile(path) as archive:  # from before there were seals: every part has a checksum of its own
            ours = not archive.comment.startswith(seal.MARK) and all(not member.compress_type for member in archive.infolist())
            return None if ours and archive.testzip() is None else DAMAGED
    except PermissionError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from None
    except OSError as error:
        return f"{UNREADABLE}: {error.strerror}"
    except (zipfile.BadZipFile, NotImplementedError, RuntimeError, EOFError, ValueError, zlib.error):
        return DAMAGED


def check_mark(content: Mapping[str, Any], sealed: bool, source: object) -> None:
    """Check the mark of one of our files, and that its seal is not lost. Raises UserError."""
    mark = content.get("format")
    if not isinstance(mark, str) or mark not in FORMATS:
        raise UserError(f"{source}: not a file written by distill (it lacks the mark {FORMAT!r})")
    if FORMATS[mark] and not sealed:
        raise UserError(f"{source}: {DAMAGED}")


def check_ours(extra: Any, sealed: bool, source: object) -> None:
    """Check the mark in what we add to a pickle, if it has any: without it, the pickle is another project's. Raises UserError."""
    if isinstance(extra, dict) and "format" in extra:
        check_mark(extra, sealed, source)


def is_plain(value: Any) -> bool:
    """Whether a value holds only tensors, numbers, text and containers of these, which `weights_only=True` can load."""
    if isinstance(value, Mapping):
        return all(is_plain(k) and is_plain(v) for k, v in value.items())
    if isinstance(value, list | tuple):
        return all(map(is_plain, value))
    return value is None or isinstance(value, Tensor) or type(value) in (bool, int, float, str)


def unshared(value: Any) -> Any:
    """A copy of plain values in which no list is in two places, and equal texts are one: so equal values give equal files."""
    if type(value) is dict:
        return {unshared(key): unshared(inner) for key, inner in value.items()}
    if isinstance(value, tuple):  # torch's shapes, too
        return tuple(map(unshared, value))
    if type(value) is list:
        return list(map(unshared, value))
    if isinstance(value, nn.Parameter):
        return value.detach()
    return sys.intern(value) if type(value) is str else value


def plain_globals(path: Path) -> list[tuple[str, str, bool]]:
    """The globals of a file of torch.save. Tensors of any dtype are only numbers, also of those that EDM's files never have."""
    return without_dtypes(list_globals(path, careful=True))


def without_dtypes(names: list[tuple[str, str, bool]]) -> list[tuple[str, str, bool]]:
    """The same globals, of which torch's kinds of numbers execute nothing, whether this package knows them or not."""
    numbers = {(module, name) for module, name, _ in names if is_dtype(module, name) or Global(module, name) in HARMLESS}
    return [(module, name, executes and (module, name) not in numbers) for module, name, executes in names]


def is_dtype(module: str, name: str) -> bool:
    """Whether a global is one of torch's dtypes, or the storage of one."""
    found = vars(torch).get(name) if module == "torch" else None
    return isinstance(found, torch.dtype) or (isinstance(found, type) and name.endswith("Storage"))


def check_plain(path: Path, source: object) -> None:
    """Check that a file holds nothing but what `inspect` calls safe: torch's own loader admits more, such as sparse tensors, which
    nothing of ours can use, and unpacks what is compressed. Raises UserError."""
    try:
        strange = [name for *name, _ in plain_globals(path) if not (Global(*name) in PLAIN or is_dtype(*name))]
    except PickleError as error:
        raise UserError(f"{source}: {NOT_PLAIN} ({shown(error)})") from None
    except OSError as error:
        raise UserError(f"{source}: cannot be read: {error.strerror}") from None
    if strange:
        raise UserError(f"{source}: {NOT_PLAIN} (it refers to {shown('.'.join(filter(None, strange[0])))})")


def bare(value: Any) -> Any:
    """The same values in plain tables, lists and tuples, and tensors without hooks: an OrderedDict of a file may have attributes
    that hide its methods."""
    if isinstance(value, dict):
        return {key: bare(inner) for key, inner in dict.items(value)}
    if isinstance(value, list | tuple):
        return (tuple if isinstance(value, tuple) else list)(map(bare, value))
    return value.detach() if isinstance(value, Tensor) else value


def check_tensors(content: Any, size: int, source: object) -> None:
    """Check that a file's tensors take not far more memory than it has bytes. Raises UserError."""
    if take_too_much([leaf for leaf in tree_leaves(content) if isinstance(leaf, Tensor)], size):
        raise UserError(f"{source}: {NOT_PLAIN} (its tensors take far more memory than it has bytes)")


def load(source: str | Path, *kinds: str, sealed: bool | None = None) -> dict[str, Any]:
    """Load one of our files, of one of these kinds. `sealed` is what `check_seal` gave, if it was called already.

    Raises UserError for any other file.
    """
    path = open_path(str(source))
    if not path.is_file():
        raise UserError(f"{source}: no such file")
    sealed = check_seal(path, source) if sealed is None else sealed
    check_plain(path, source)
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise UserError(f"{source}: cannot be read: {error.strerror}") from None
    except MemoryError:
        raise
    except Exception:  # whatever instructions in the wrong order lead to; torch's own message advises to load it unsafely
        raise UserError(f"{source}: {NOT_PLAIN}") from None
    content = content if isinstance(content, dict) else {}
    check_values(content, source)
    content = {key: bare(value) for key, value in dict.items(content)}
    check_tensors(content, path.stat().st_size, source)
    check_mark(content, sealed, source)
    if not sealed and (wrong := problem(path)):
        raise UserError(f"{source}: {wrong}")
    if content.get("kind") not in kinds:
        raise UserError(f"{source}: is a {shown(content.get('kind'), 40)}, expected a {' or '.join(kinds)}")
    check_entries(content, SCHEMAS.get(content["kind"], NetworkFile), source)
    return content


def save_safetensors(path: Path, weights: Mapping[str, Tensor], content: Mapping[str, Any]) -> None:
    """Save tensors, with plain values as JSON in the metadata. No pickle begins like the file: its header's length is chosen so.

    Raises UserError.
    """
    try:
        metadata = {MARK: json.dumps(_to_json({"format": FORMAT, "seal": seal.TEXT, **content}), allow_nan=False)}
    except TypeError:
        raise UserError(f"{path}: its facts hold a tensor, which safetensors has no place for; write .pt") from None
    if strange := {v.dtype for v in weights.values()} - DTYPES.keys():
        raise UserError(f"{path}: safetensors has no place for numbers of {strange.pop()}; write .pt")
    ordered = sorted(weights.items(), key=lambda named: (-named[1].itemsize, named[0]))  # so that each is aligned

    def write(file: BinaryIO) -> None:
        file.write(safetensors_header(ordered, metadata))
        for _, tensor in ordered:
            file.write(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
        seal.seal(file)

    write_atomically(path, write)


def safetensors_header(tensors: Sequence[tuple[str, Tensor]], metadata: Mapping[str, str]) -> bytes:
    """The length (8 bytes, little-endian) and the JSON with which a file of safetensors begins, padded to eight bytes."""
    ends = itertools.accumulate((tensor.nbytes for _, tensor in tensors), initial=0)
    places = {
        name: {"dtype": DTYPES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [begin, end]}
        for (name, tensor), (begin, end) in zip(tensors, itertools.pairwise(ends), strict=True)
    }
    text = json.dumps({"__metadata__": metadata} | places, separators=(",", ":")).encode()
    least = math.ceil(len(text) / 8) * 8
    length = next(n for n in range(least, least + 256, 8) if not begins_a_pickle(n % 256))
    return length.to_bytes(8, "little") + text.ljust(length)


def executed_as_pickle(path: Path) -> list[tuple[str, str, bool]]:
    """What would be executed if a file of safetensors were opened as a pickle: its first bytes may be instructions, too."""
    if program := disguised_program(path):
        return [(*program, True)]
    return []


def load_safetensors(path: Path, source: object, shapes_only: bool = False, sealed: bool | None = None) -> dict[str, Any]:
    """Load our safetensors file as {kind, network, about, weights}; with `shapes_only`, weights hold shapes. Raises UserError."""
    from safetensors import SafetensorError, safe_open

    if bad := executed_as_pickle(path):
        raise UserError(f"{source}: opened as a pickle it would run {shown('.'.join(filter(None, bad[0][:2])))}")
    sealed = check_seal(path, source) if sealed is None else sealed
    try:
        with safe_open(path, framework="pt") as file:
            names = list(file.keys())
            weights = {n: file.get_slice(n).get_shape() if shapes_only else file.get_tensor(n) for n in names}
            content = _from_json(json.loads((file.metadata() or {}).get(MARK, "null")))
    except (SafetensorError, ValueError, RecursionError) as error:
        raise UserError(f"{source}: not a safetensors file, or damaged ({shown(error)})") from None
    check_values([content], source)
    if not isinstance(content, dict) or "format" not in content:
        raise UserError(f"{source}: a safetensors file without distill's metadata, so its architecture is unknown")
    check_mark(content, sealed, source)
    if content.get("kind") not in NETWORK_KINDS:
        raise UserError(f"{source}: is a {shown(content.get('kind'), 40)}, expected a {' or '.join(NETWORK_KINDS)}")
    check_entries(content | {"weights": weights}, NetworkFile, source)
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
