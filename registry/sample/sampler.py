"""A sampler for the network in a file: turns seeds into images."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from operator import index
from typing import Any, Literal

import torch
from torch import Tensor, nn

from registry.core import distributed
from registry.core.contracts import Domain, Noise
from registry.core.errors import SettingError, UserError
from registry.core.streams import Streams, TorchStreams
from registry.edm.latents import pfgmpp_latents
from registry.edm.networks import Precond
from registry.files.formats import load_network, weights_hash
from registry.files.kinds import Kind
from registry.plugins.loading import load_plugins
from registry.recipe.tables import Precision
from registry.sample.heun import heun_images, level_range
from registry.sample.origin import copy_of_teacher, domain_of, kind_of, levels_of, noise_of
from registry.train.generator import Generator
from registry.train.passes import Passes

MOST_STEPS = 10_000
Rng = Literal["distill", "torch", "pfgmpp"]
"""Whose draws a seed stands for: ours; those of EDM's script on a processor; those of PFGM++'s."""
Draw = Callable[[Streams, Tensor | None], tuple[Tensor, Tensor | None]]
"""Turns streams and labels [B, label_dim] or None into images [B, C, H, W] and their labels."""


@dataclass(frozen=True)
class Sampler:
    """Turns seeds into images, for generators and teachers alike. An image depends only on its seed (and label)."""

    draw: Draw
    evaluations: int
    """Number of network evaluations per image."""
    domain: Domain
    device: torch.device
    settings: dict[str, Any] = field(default_factory=dict)
    """What is sampled and how, as plain values. Two samplers with equal settings give equal images."""
    doubt: str | None = None
    """A sentence for people, if neither the file nor the user says whether the network is a denoiser or a generator."""
    streams: type[Streams] = Streams

    def __call__(self, seeds: Sequence[int], labels: Tensor | None = None) -> Tensor:
        """Images [n, C, H, W] in about [−1, 1], one per seed. Labels [n, label_dim] are drawn if none are given."""
        return self.labelled(seeds, labels)[0]

    @torch.no_grad()
    def labelled(self, seeds: Sequence[int], labels: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        """Images as above, and their labels (None if the network has no classes). Raises UserError if an image is not finite."""
        check_seeds(seeds)
        images, drawn = self.draw(self.streams(seeds, self.device), None if labels is None else labels.to(self.device))
        finite = images.flatten(1).isfinite().all(1).tolist()
        if not all(finite):
            raise UserError(
                f"{self.settings.get('network', 'the network')}: the image of seed {seeds[finite.index(False)]} is not finite"
            )
        return images, drawn

    def one_hot(self, class_: int | None, n: int) -> Tensor | None:
        """Labels [n, label_dim] for one class, or None for None. Raises UserError if there is no such class."""
        if class_ is None:
            return None
        classes = self.domain.label_dim
        if not classes:
            raise SettingError("class_", f"{self.domain.origin} was trained without classes, so none can be given", class_)
        if not 0 <= class_ < classes:
            raise SettingError("class_", f"{self.domain.origin} has the classes 0 to {classes - 1}", class_)
        return torch.nn.functional.one_hot(torch.full((n,), class_), classes).float()


def check_seeds(seeds: Sequence[int]) -> None:
    """Check that these are whole numbers from 0 to 2^64 − 1, and at least one. Raises SettingError."""
    if not len(seeds):
        raise SettingError("seeds", "there are none")
    for seed in seeds:
        try:
            whole = 0 <= index(seed) < 2**64
        except TypeError:
            whole = False
        if not whole:
            raise SettingError("seeds", "must be whole numbers from 0 to 2^64 − 1", seed)


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
    device: str = "auto",
) -> Sampler:
    """A sampler for the network in a file. What the file states (kind, D, noise levels) needs no argument.

    A teacher is sampled with Heun's method, in `steps` steps or `nfe` = 2·steps − 1 evaluations; a generator with the noise
    levels that it was trained with. `kind` (or `sampler`), `sigma_init` (2.5, as in SiD) and `D` are for foreign files, which may
    not state them. `precision` (fp32, tf32, bf16, fp16) and `compile` say how the network computes, by default as it was saved.
    Raises UserError if an argument contradicts the file.
    """
    plugins = load_plugins()
    net, facts = load_network(
        network, "denoiser", "generator", key=key, kind=kind, build=lambda facts: copy_of_teacher(network, facts, plugins)
    )
    place = distributed.start(device)
    net = net.to(place).requires_grad_(False)
    domain = domain_of(network, net, facts, D)
    noise = noise_of(network, facts, domain, sigma_init, plugins)
    settings: dict[str, Any] = {
        "network": network, "key": facts.key, "weights": weights_hash(net), "D": domain.D if math.isfinite(domain.D) else "inf",
        "noise": type(noise).__name__, "rng": "philox" if rng == "distill" else rng,
        "fp16": isinstance(net, Precond) and net.use_fp16 and place.type == "cuda",
    }  # fmt: skip
    settings |= {"precision": precision} if precision else {}
    start = pfgmpp_start if rng == "pfgmpp" and math.isfinite(domain.D) else no_start  # at D = inf, PFGM++'s are torch's
    streams = Streams if rng == "distill" else TorchStreams
    doubt = facts.kind_in_doubt(network) if sampler == "auto" else None
    if kind_of(network, facts, sampler) == "denoiser":
        n = heun_steps(domain.image_shape[1], steps, nfe)
        settings |= {"kind": "teacher", "sampler": "heun", "steps": n, "levels": [*level_range(net, noise), noise.rho]}
        draw, evaluations = teacher_draw(net, noise, domain, n, start), 2 * n - 1
    else:
        sigmas = levels_of(facts, noise)
        check_generator_steps(network, sigmas, steps, nfe, doubt)
        settings |= {"kind": "generator", "sampler": "generator", "sigmas": list(sigmas)}
        draw, evaluations = generator_draw(net, noise, domain, sigmas, start), len(sigmas)
    draw = within(Passes(precision, compile), net, draw) if precision or compile else draw
    return Sampler(draw, evaluations, domain, place, settings, doubt, streams)


def within(passes: Passes, net: nn.Module, draw: Draw) -> Draw:
    """Draw with the network's passes computed like this."""

    def call(streams: Streams, labels: Tensor | None) -> tuple[Tensor, Tensor | None]:
        with passes(others=(net,)):
            return draw(streams, labels)

    return call


Start = Callable[[Streams, Domain, float], Tensor | None]
"""Gives the start of sampling: x [B, C, H, W] at a noise level, or None to draw it from the noise's prior."""


def no_start(streams: Streams, domain: Domain, sigma: float) -> Tensor | None:
    """Draw the start from the noise's prior."""
    return None


def pfgmpp_start(streams: Streams, domain: Domain, sigma: float) -> Tensor | None:
    """Start from the latents that PFGM++'s script draws for the seeds."""
    return pfgmpp_latents(streams.seeds, domain.image_shape, sigma, domain.D).to(streams.device)


def teacher_draw(net: nn.Module, noise: Noise, domain: Domain, steps: int, start: Start) -> Draw:
    """Draw with Heun's method from the highest noise level."""
    _, sigma_max = level_range(net, noise)

    def draw(streams: Streams, labels: Tensor | None) -> tuple[Tensor, Tensor | None]:
        z = start(streams, domain, sigma_max)
        return heun_images(net, noise, domain.image_shape, domain.label_dim, steps, streams, labels, z)

    return draw


def generator_draw(net: nn.Module, noise: Noise, domain: Domain, sigmas: Sequence[float], start: Start) -> Draw:
    """Draw by applying the generator at its noise levels."""
    generator = Generator(net, noise, domain.image_shape, domain.label_dim, sigmas)

    def draw(streams: Streams, labels: Tensor | None) -> tuple[Tensor, Tensor | None]:
        z = start(streams, domain, sigmas[0])
        return generator.chain(streams, labels, None if z is None else z.float())

    return draw


def check_generator_steps(
    network: str, sigmas: Sequence[float], steps: int | None, nfe: int | None, doubt: str | None = None
) -> None:
    """Check that a generator is sampled with the steps that it was distilled with. Raises SettingError."""
    if nfe is not None and steps is not None and nfe != steps:
        raise SettingError(
            "nfe", f"a generator takes as many evaluations as steps (here {steps}); give steps or nfe, not both", nfe
        )
    for setting, asked in (("steps", steps), ("nfe", nfe)):
        if asked is not None and asked != len(sigmas):
            if doubt:
                raise SettingError(setting, f"{doubt}; it takes one evaluation; kind = denoiser says otherwise", asked)
            levels = ", ".join(f"{s:g}" for s in sigmas)
            raise SettingError(
                setting,
                f"{network} was distilled with {len(sigmas)} step{'s' * (len(sigmas) > 1)} (sigma {levels}) and needs that many; "
                f"for {asked}, distil again with steps = {asked}",
                asked,
            )


def heun_steps(resolution: int, steps: int | None, nfe: int | None) -> int:
    """Heun steps: `steps`, or from `nfe`, or EDM's default (18 up to 32 pixels per side, 40 above). Raises UserError."""
    if nfe is not None and nfe % 2 == 0:
        raise SettingError("nfe", f"n Heun steps take 2n − 1 evaluations, an odd number; give {nfe - 1} or {nfe + 1}", nfe)
    if nfe is not None and steps is not None and nfe != 2 * steps - 1:
        raise SettingError("nfe", f"{steps} Heun steps take {2 * steps - 1} evaluations; give steps or nfe, not both", nfe)
    n = (nfe + 1) // 2 if nfe is not None else steps or (18 if resolution <= 32 else 40)
    if n > MOST_STEPS:
        raise SettingError(
            "steps" if nfe is None else "nfe", f"must be at most {MOST_STEPS:,} Heun steps", steps if nfe is None else nfe
        )
    return n
