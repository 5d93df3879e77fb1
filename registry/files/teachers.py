"""Builds a teacher from a file."""

from __future__ import annotations

from typing import Any

import torch

from registry.core.contracts import Teacher
from registry.core.errors import UserError
from registry.edm.networks import PRECONDITIONINGS, Precond
from registry.files.formats import load_network, weights_hash
from registry.files.locate import open_path


def teacher_from_file(
    source: str,
    key: str | None = None,
    sha256: str | None = None,
    dropout: float | None = None,
    fp16: bool | None = None,
) -> Teacher:
    """A teacher of any D from any supported file (see `load_network`). Raises UserError.

    `dropout` applies to the student and the generator. `fp16` runs all three networks in float16 on CUDA. Both default to the
    file's values.
    """
    net, facts = load_network(source, "denoiser", key=key, sha256=sha256)
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
        trainable=None if dropout is None else lambda: rebuilt(net, dropout=dropout),
    )


def rebuilt(net: Precond, **settings: Any) -> Precond:
    """A copy with its own equal tensors, built with other settings, so that files saved from it state those settings."""
    with torch.device("meta"):  # draws no initial weights
        twin = type(net)(**(net.init_kwargs | settings))
    twin.load_state_dict({name: tensor.clone() for name, tensor in net.state_dict().items()}, assign=True)
    return twin.train(net.training)
