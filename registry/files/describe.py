"""Describes a file without executing it: who wrote it, which networks it holds, and whether opening it elsewhere is safe."""

from __future__ import annotations

import itertools
import math
import re
import reprlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from registry.core.errors import UserError
from registry.core.text import shown
from registry.edm.pickles import RUNS_SOURCE, UNKNOWN, Persistent, blaming, list_globals, read_pickle
from registry.edm.snapshots import EXTRA
from registry.files.bounds import STATE, UNLIKE
from registry.files.facts import NetworkFacts
from registry.files.formats import check_facts, facts_of_pickle, layout_of, network_keys
from registry.files.locate import open_path
from registry.files.plain import (
    NETWORK_KINDS,
    check_ours,
    check_seal,
    executed_as_pickle,
    load,
    load_safetensors,
    plain_globals,
    without_dtypes,
)

MOST_NETWORKS = 50
"""Of a file, that are shown."""
BUFFERS = ("resample_filter", "freqs", "u")
"""Tensors of EDM's networks that are not trained."""


@dataclass
class Description:
    """Facts about a file. `globals` holds (module, name, would execute); it is empty if the layout cannot refer to any."""

    path: Path
    layout: str
    writer: str
    facts: dict[str, str] = field(default_factory=dict)
    networks: list[dict[str, str]] = field(default_factory=list)
    globals: list[tuple[str, str, bool]] = field(default_factory=list)
    doubt: str | None = None
    """A sentence that says which kind of network is assumed and why, if neither the file nor the user says it."""

    @property
    def dangerous(self) -> bool:
        """Whether opening the file elsewhere would execute something."""
        return any(executes for _, _, executes in self.globals)

    @property
    def verdict(self) -> str:
        """Whether the file is safe to open here, and with the loader of the project that wrote it."""
        if self.dangerous:
            bad = itertools.islice((in_words(*names) for *names, executes in self.globals if executes), 5)
            return f"DANGEROUS: loading it elsewhere would run {', '.join(bad)}; distill refuses it"
        if any((module, name) == RUNS_SOURCE for module, name, _ in self.globals):
            return "safe with distill; the original loader would execute the Python source that the file carries"
        return "safe: it refers to nothing that executes"


def in_words(module: str, name: str) -> str:
    """A global as it is shown."""
    if (module, name) == UNKNOWN:
        return "code that only running it would show"
    return ".".join(shown(part) for part in (module, name) if part)


def describe(source: str, kind: str | None = None) -> Description:
    """Describe a file of networks or a training state; `kind` is what the user says of it. Raises UserError for any other file."""
    path = open_path(source)
    layout = layout_of(path)
    if layout == "edm":
        with odd_values_of(path):
            return _pickle(path, source, kind)
    names = plain_globals(path) if layout == "plain" else executed_as_pickle(path)
    if any(executes for _, _, executes in names):
        form = "file of torch.save" if layout == "plain" else "safetensors and a pickle at once"
        return Description(path, form, "an unknown program", globals=names)
    content = load_safetensors(path, path, shapes_only=True) if layout == "safetensors" else load(path, *NETWORK_KINDS, STATE)
    with odd_values_of(path):
        return _plain(path, source, kind, layout, names, content)


@contextmanager
def odd_values_of(path: Path) -> Iterator[None]:
    """Whatever the values of a file lead to when they are shown is the file's fault."""
    try:
        yield
    except (TypeError, ValueError, AttributeError, OverflowError, LookupError, RuntimeError) as error:
        raise UserError(f"{path}: {UNLIKE}: {shown(error, 100) or type(error).__name__}") from None


def _plain(
    path: Path, source: str, kind: str | None, layout: str, names: list[tuple[str, str, bool]], content: Mapping[str, Any]
) -> Description:
    """One of our own files, whose content is this."""
    about = content.get("about", {})
    stated = NetworkFacts.of(about, kind=content["kind"]).told(kind, source)
    form = "safetensors" if layout == "safetensors" else "plain tensors"
    facts = {"kind": stated.kind or stated.looks_like}
    found = Description(path, form, "distill", facts, globals=names, doubt=stated.kind_in_doubt(source))
    if "network" in content:
        kwargs = content["network"]["kwargs"]
        shapes = {k: list(v.shape) if isinstance(v, Tensor) else v for k, v in content["weights"].items()}
        levels = content["network"].get("levels")
        found.networks.append(_network("", "", content["network"]["class"], kwargs, shapes, about.get("D"), levels))
    found.facts |= _facts(about | {k: content[k] for k in ("nimg",) if k in content})
    return found


def _pickle(path: Path, source: str, kind: str | None) -> Description:
    names = without_dtypes(list_globals(path))
    with open(path, "rb") as file:
        zipped = file.read(2) == b"PK"
    found = Description(
        path, "training state (torch)" if zipped else "network snapshot (pickle)", "an unknown program", globals=names
    )
    if any(executes for _, _, executes in names):
        return found
    sealed = check_seal(path, source)
    content = read_pickle(path, tensors=False)
    check_ours(content.get(EXTRA), sealed, source)
    check_facts(content.get(EXTRA), source)
    for key in network_keys(content)[:MOST_NETWORKS]:
        record: Persistent = content[key]
        kwargs = dict(record.init_kwargs)
        D = record.state.get("D", kwargs.get("D")) if record.state.get("pfgmpp", kwargs.get("pfgmpp")) else None
        with blaming(source):
            shapes = {name: list(tensor.shape) for name, tensor in record.tensors().items()}
        levels = [record.state.get(name) for name in ("sigma_min", "sigma_max")]
        facts = facts_of_pickle(content, key, source, checked=True)
        facts = facts.told(kind, source) if facts.kind or "kind" in facts.assumed else facts
        found.networks.append(_network(key, facts.kind or facts.looks_like, record.class_name, kwargs, shapes, D, levels))
        found.doubt = facts.kind_in_doubt(source) or found.doubt
    found.writer = _writer(content, found)
    ours = content.get(EXTRA)
    if isinstance(ours, dict):
        found.facts |= {"kind": found.networks[0]["kind"]} if found.networks else {}
        found.facts |= _facts(ours.get("about", {}))
    if isinstance(content.get("step"), int) and content["step"] < 2**53:
        found.facts["kimg"] = f"{content['step'] / 1000:g}"
    kimg = re.search(r"-(\d{6})\.\w+$", path.name)
    if kimg and "kimg" not in found.facts:
        found.facts["kimg"] = f"{int(kimg[1])} (from the file name)"
    found.facts["contents"] = ", ".join(itertools.islice(content, MOST_NETWORKS)) + (", …" if len(content) > MOST_NETWORKS else "")
    return found


def _writer(content: Mapping[str, Any], found: Description) -> str:
    """The project whose layout this is."""
    if isinstance(content.get(EXTRA), dict):
        return "distill"
    if "G_ema" in content:
        return "the IPFM fork of SiD" if "G_ema990" in content else "SiD"
    if any(network["kind"] == "generator" for network in found.networks):
        return "SiD"
    project = "PFGM++" if any(network["D"] != "inf" for network in found.networks) else "EDM"
    return f"{project}, or SiD" if found.doubt else project


def _network(
    key: str, kind: str, name: str, kwargs: Mapping[str, Any], shapes: Mapping[str, Any], D: Any, levels: Any
) -> dict[str, str]:
    """One network as readable text by heading. `levels` are its lowest and highest noise level, if it has them."""
    encoder = {"positional": "ddpmpp", "fourier": "ncsnpp"}.get(in_brief(kwargs.get("embedding_type", "positional")), "")
    arch = {"SongUNet": encoder, "DhariwalUNet": "adm"}.get(in_brief(kwargs.get("model_type", "")), "")
    mult = kwargs.get("channel_mult")
    channels, side, shape = (in_brief(kwargs.get(name) or "") for name in ("img_channels", "img_resolution", "image_shape"))
    images = f"{channels}×{side}×{side}" if side else shape
    parameters = sum(math.prod(shape) for tensor, shape in shapes.items() if tensor.rpartition(".")[2] not in BUFFERS)
    return {
        "key": key,
        "kind": kind,
        "class": name + (f" ({arch})" if arch else ""),
        "images": images,
        "labels": in_brief(kwargs.get("label_dim", 0)),
        "D": "inf" if D is None else f"{D:g}",
        "sigma": _levels(levels),
        "channels": f"{in_brief(kwargs.get('model_channels', ''))} × {in_brief(mult)}" if mult else "",
        "parameters": f"{parameters:,}",
        "fp16": "yes" if kwargs.get("use_fp16") else "no",
    }


BRIEF = reprlib.Repr()
BRIEF.maxlevel, BRIEF.maxlist, BRIEF.maxtuple, BRIEF.maxdict, BRIEF.maxstring = 3, 100, 100, 20, 200


def in_brief(value: Any) -> str:
    """A value as text, no longer than somebody reads: in a small file the same text may stand in many places."""
    return value[:10_000] if isinstance(value, str) else BRIEF.repr(value)


def _levels(levels: Any) -> str:
    """A network's own range of sigma, or nothing if it knows all levels."""
    match levels:
        case [float() | int() as lowest, float() | int() as highest] if (lowest, highest) != (0, math.inf):
            return f"{lowest:.3g}–{highest:.3g}"
    return ""


def _facts(about: Mapping[str, Any]) -> dict[str, str]:
    """What our files say about themselves."""
    facts = {
        k: in_brief(about[k])
        for k in ("sigma_init", "steps", "sigmas", "sigma_data", "teacher", "components", "data", "recipe_hash")
        if about.get(k) is not None
    }
    if about.get("nimg") is not None:
        facts["kimg"] = f"{about['nimg'] / 1000:g}"
    alpha = about.get("recipe", {}).get("loss", {}).get("alpha") if isinstance(about.get("recipe"), dict) else None
    return facts | ({"alpha": f"{alpha:g}"} if isinstance(alpha, int | float) else {})
