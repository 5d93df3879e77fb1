"""Builds a teacher from a file."""

from __future__ import annotations

from typing import Any

import torch

from registry.core.contracts import Teacher
from registry.core.errors import UserError
from registry.edm.architectures import build_network
from registry.edm.networks import PRECONDITIONINGS, Precond
from registry.files.facts import NetworkFacts
from registry.files.formats import load_network, weights_hash
from registry.files.kinds import NOT_A_TEACHER, Kind
from registry.files.locate import open_path
from registry.plugins.component import Published


def teacher_from_file(
    source: str,
    key: str | None = None,
    sha256: str | None = None,
    dropout: float | None = None,
    fp16: bool | None = None,
    kind: Kind | None = None,
) -> Teacher:
    """A teacher of any D from any supported file (see `load_network`). Raises UserError.

    `dropout` applies to the student and the generator. `fp16` runs all three networks in float16 on CUDA. Both default to the
    file's values. `kind` = "denoiser" says what the file of another project holds, if that is in doubt. A file that says it
    holds a generator is refused; one that only looks like it gets a remark.
    """
    net, facts = load_network(source, "denoiser", key=key, sha256=sha256, kind=kind)
    if not isinstance(net, Precond):
        known = ", ".join(PRECONDITIONINGS)
        raise UserError(f"{source}: holds a {type(net).__name__}; a teacher must be one of EDM's networks ({known})")
    weights = weights_hash(net)
    if fp16 is not None:
        net = rebuilt(net, use_fp16=fp16)
    return Teacher(
        denoiser=net.requires_grad_(False),
        D=facts.dimension(),
        image_shape=(net.img_channels, net.img_resolution, net.img_resolution),
        label_dim=net.label_dim,
        augment_dim=int(net.init_kwargs.get("augment_dim", 0)),
        sigma_data=0.5 if facts.sigma_data is None else float(facts.sigma_data),
        origin=source,
        path=open_path(source, sha256),
        weights=weights,
        provenance=facts.stored() | ({} if facts.key is None else {"key": facts.key}),
        remarks=remarks_on(facts, source),
        trainable=None if dropout is None else lambda: rebuilt(net, dropout=dropout),
    )


def outline(teacher: Published, fp16: bool | None = None, dropout: float | None = None) -> Teacher:
    """A published teacher without its file: networks of its shapes, on the meta device, where nothing is computed."""
    assert teacher.network is not None, "only teachers whose network is known"
    settings = dict(teacher.network) | ({} if fp16 is None else {"use_fp16": fp16})
    with torch.device("meta"):
        net = build_network(D=teacher.D, seed=0, **settings)
    return Teacher(
        denoiser=net.requires_grad_(False),
        D=teacher.D,
        image_shape=(net.img_channels, net.img_resolution, net.img_resolution),
        label_dim=net.label_dim,
        augment_dim=int(net.init_kwargs.get("augment_dim", 0)),
        origin=teacher.name,
        trainable=None if dropout is None else lambda: rebuilt(net, dropout=dropout),
    )


def remarks_on(facts: NetworkFacts, source: str) -> tuple[str, ...]:
    """What the log should say of a teacher's file: that it looks like a generator's, or that it does not say what it holds."""
    if facts.kind is not None:
        return ()
    if facts.looks_like == "generator":
        why = facts.assumed.get("kind", f"{facts.key!r} is a generator in SiD's training states")
        return (f"WARNING: {source} looks like a generator, because {why}; {NOT_A_TEACHER}",)
    doubt = facts.kind_in_doubt(source)
    return (f'{doubt}; kind = "denoiser" says that it is one',) if doubt else ()


def rebuilt(net: Precond, **settings: Any) -> Precond:
    """A copy with its own equal tensors, built with other settings, so that files saved from it state those settings."""
    with torch.device("meta"):  # draws no initial weights
        twin = type(net)(**(net.init_kwargs | settings))
    twin.load_state_dict({name: tensor.clone() for name, tensor in net.state_dict().items()}, assign=True)
    return twin.train(net.training)
