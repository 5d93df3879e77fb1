"""Opens the network in a file for sampling. What the file states needs no argument."""

from __future__ import annotations

import math
import os
from numbers import Real
from pathlib import Path
from typing import Any, Literal, get_args

import torch

from registry.core import distributed
from registry.core.errors import SettingError, UserError, near
from registry.core.surroundings import torch_left_alone, usual_torch
from registry.core.text import cut, shown
from registry.edm.networks import Precond
from registry.files.formats import load_network, weights_hash
from registry.files.kinds import Kind
from registry.files.locate import locate, open_path
from registry.plugins.loading import load_plugins
from registry.recipe.arguments import check_flag
from registry.recipe.tables import Precision
from registry.sample.origin import copy_of_teacher, domain_of, kind_of, levels_of, noise_of
from registry.sample.sampler import Rng, Sampler
from registry.sample.steps import check_generator_steps, heun_steps
from registry.train.passes import Passes


def load_generator(
    source: str | os.PathLike[str],
    *,
    key: str | None = None,
    sigma_init: float | None = None,
    D: float | None = None,
    rng: Rng = "distill",
    precision: Precision = None,
    compile: bool = False,
    device: str | torch.device = "auto",
) -> Sampler:
    """A distilled generator, from a file or a run folder (its newest snapshot), ready to sample.

    `source` is any file that distill reads: .pkl of EDM, SiD, PFGM++ and ours, .safetensors, .pt. `key` picks a network of a file
    that has several. `sigma_init` (2.5, as in SiD) and `D` are for foreign files, which may not state them. `rng`: whose draws a
    seed stands for. `precision` (fp32, tf32, bf16, fp16) and `compile` say how the network computes, by default as it was saved.
    Raises UserError if the file cannot be read or is a teacher, or an argument contradicts it.
    """
    return of_kind(
        "generator", source, key=key, sigma_init=sigma_init, D=D, rng=rng, precision=precision, compile=compile, device=device
    )


def load_teacher(
    source: str | os.PathLike[str],
    *,
    nfe: int | None = None,
    key: str | None = None,
    D: float | None = None,
    rng: Rng = "distill",
    precision: Precision = None,
    compile: bool = False,
    device: str | torch.device = "auto",
) -> Sampler:
    """A teacher (a denoiser), ready to be sampled with Heun's method: from a file, a run folder, or the name of a shipped or
    published one.

    `nfe`: evaluations for an image, an odd number; by default 35 up to 32×32 pixels and 79 above, as in EDM. The other arguments
    are those of `load_generator`. Raises UserError.
    """
    return of_kind("denoiser", source, nfe=nfe, key=key, D=D, rng=rng, precision=precision, compile=compile, device=device)


def check_kinds(**texts: object) -> None:
    """Check that these are texts, or None. Raises SettingError."""
    for name, value in texts.items():
        if not isinstance(value, str | None):
            raise SettingError(name, "must be a text", value)


def of_kind(kind: Kind, source: str | os.PathLike[str], **arguments: Any) -> Sampler:
    """The network in a file, which must not say that it is of another kind. Raises UserError."""
    path = os.fspath(source) if isinstance(source, os.PathLike) else source
    if not isinstance(path, str):
        raise SettingError("source", "must be the path of a file or a run folder, or a name", source)
    try:
        return open_sampler(locate(path), kind=kind, **arguments)
    except OSError as error:
        raise UserError(f"{shown(source)}: {error.strerror or error}") from None
    except ValueError as error:
        raise UserError(f"{cut(path)}: {error}") from None
    except SettingError as error:
        if error.setting != "kind":
            raise
        right = {"generator": "a teacher, not a generator", "denoiser": "a generator, not a teacher"}[kind]
        raise UserError(f"{source} is {right} (in Python: load_{'teacher' if kind == 'generator' else 'generator'})") from None


@torch_left_alone()
@usual_torch()
def open_sampler(
    network: str,
    *,
    key: str | None = None,
    kind: Kind | None = None,
    sampler: Literal["auto", "generator", "heun"] = "auto",
    steps: int | None = None,
    nfe: int | None = None,
    sigma_init: float | None = None,
    D: float | None = None,
    rng: Rng = "distill",
    precision: Precision = None,
    compile: bool = False,
    device: str | torch.device = "auto",
) -> Sampler:
    """`load_generator` or `load_teacher`, whichever the file asks for: `distill generate` and `evaluate`.

    A teacher is sampled in `steps` Heun steps or `nfe` = 2·steps − 1 evaluations. `kind` (or `sampler`) is for foreign files, which
    may not state it. Raises UserError.
    """
    check_kinds(key=key, rng=rng, precision=precision)
    if rng not in get_args(Rng):
        raise SettingError("rng", f"must be one of {', '.join(get_args(Rng))}{near(rng, get_args(Rng))}", rng)
    check_flag("compile", compile)
    for name, number in (("sigma_init", sigma_init), ("D", D)):
        if number is not None and (not isinstance(number, Real) or isinstance(number, bool) or not number > 0):
            raise SettingError(name, f"must be a positive number{', or inf' if name == 'D' else ''}", number)
    plugins = load_plugins()
    network = str(open_path(network)) if Path(os.path.expanduser(network)).is_dir() else network
    net, facts = load_network(
        network, "denoiser", "generator", key=key, kind=kind, build=lambda facts: copy_of_teacher(network, facts, plugins)
    )
    place = distributed.start(str(device))
    if precision == "fp16" and place.type == "cpu":
        raise SettingError("precision", "computes on a GPU only; on the CPU give fp32 or bf16", precision)
    net = net.to(place).requires_grad_(False)
    domain = domain_of(network, net, facts, D)
    noise = noise_of(network, facts, domain, sigma_init, plugins)
    settings: dict[str, Any] = {
        "network": network, "key": facts.key, "weights": weights_hash(net), "D": domain.D if math.isfinite(domain.D) else "inf",
        "noise": type(noise).__name__, "rng": "philox" if rng == "distill" else rng,
        "fp16": precision == "fp16" if precision else isinstance(net, Precond) and net.use_fp16 and place.type == "cuda",
    }  # fmt: skip
    settings |= {"precision": precision} if precision in ("tf32", "bf16") else {}
    doubt = facts.kind_in_doubt(network) if sampler == "auto" else None
    sigmas, n = None, None
    if kind_of(network, facts, sampler) == "denoiser":
        n = heun_steps(domain.image_shape[1], steps, nfe)
    else:
        sigmas = levels_of(network, facts, noise)
        check_generator_steps(network, sigmas, steps, nfe, doubt)
    return Sampler(
        net, noise, domain, sigmas=sigmas, steps=n, settings=settings, recipe=facts.recipe, stated=facts, doubt=doubt,
        rng=rng, passes=Passes(precision, compile),
    )  # fmt: skip
