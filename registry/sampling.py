"""Seeds to images: EDM's deterministic Heun solver for teachers of every D, and a sampler for whatever a file holds."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from pydantic import ValidationError
from torch import Tensor, nn

from registry import distributed
from registry.api import Denoiser, Noise, Teacher, UserError
from registry.edm.latents import pfgmpp_latents
from registry.files import load_network, weights_hash
from registry.generator import Generator, generator_levels
from registry.noise import karras_sigma
from registry.plugins import Plugins, load_plugins
from registry.recipe import Choice
from registry.sources import published_D
from registry.streams import Streams

Rng = Literal["distill", "pfgmpp"]


def heun_levels(steps: int, sigma_min: float = 0.002, sigma_max: float = 80.0, rho: float = 7.0) -> Tensor:
    """Noise levels sigma_0 = sigma_max … sigma_(n−1) = sigma_min, sigma_n = 0, in float64: [steps + 1] (EDM Eq. 5)."""
    assert steps >= 1
    t = 1 - torch.arange(steps, dtype=torch.float64) / max(steps - 1, 1)
    return torch.cat([karras_sigma(t, sigma_min, sigma_max, rho), torch.zeros(1, dtype=torch.float64)])


@torch.no_grad()
def heun(
    denoiser: Denoiser,
    x: Tensor,
    levels: Tensor,
    labels: Tensor | None = None,
) -> Tensor:
    """Solve dx/dsigma = (x − f(x; sigma))/sigma from levels[0] down to 0 (EDM Algorithm 1, S_churn = 0).

    x [B, C, H, W] is the prior at levels[0]; the state is kept in float64. n levels above 0 take 2n − 1 evaluations."""

    def slope(x: Tensor, sigma: Tensor) -> Tensor:
        return (x - denoiser(x, sigma.expand(len(x)), labels).to(torch.float64)) / sigma

    x, levels = x.to(torch.float64), levels.to(x.device)
    for sigma, sigma_next in itertools.pairwise(levels):
        d = slope(x, sigma)
        euler = x + (sigma_next - sigma) * d
        x = euler if sigma_next == 0 else x + (sigma_next - sigma) * (d + slope(euler, sigma_next)) / 2
    return x


@torch.no_grad()
def heun_images(
    denoiser: Denoiser, noise: Noise, image_shape: Sequence[int], label_dim: int, steps: int, rng: Streams,
    labels: Tensor | None = None, z: Tensor | None = None,
) -> tuple[Tensor, Tensor | None]:  # fmt: skip
    """One Heun sample per stream, from the prior at sigma_max (or from z): [B, C, H, W] in float32, and the labels.

    2·steps − 1 evaluations. Labels are drawn where none are given.
    """
    z = noise.prior(image_shape, noise.sigma_max, rng) if z is None else z
    labels = rng.one_hot(label_dim) if labels is None else labels
    return heun(denoiser, z, heun_levels(steps, noise.sigma_min, noise.sigma_max, noise.rho), labels).float(), labels


@dataclass(frozen=True)
class Sampler:
    """Seeds to images, for generators and teachers alike. An image depends on its seed only."""

    draw: Callable[[Streams, Tensor | None], tuple[Tensor, Tensor | None]]
    evaluations: int
    """Of the network, for one image."""
    image_shape: tuple[int, int, int]
    label_dim: int
    device: torch.device
    terms: dict[str, Any] = field(default_factory=dict)
    """What is sampled, and how: plain values. Two samplers with equal terms give equal images."""

    def __call__(self, seeds: Sequence[int], labels: Tensor | None = None) -> Tensor:
        """Images [n, C, H, W] in about [−1, 1], one per seed; labels [n, label_dim] are drawn where none are given."""
        return self.labelled(seeds, labels)[0]

    @torch.no_grad()
    def labelled(self, seeds: Sequence[int], labels: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        """Images as above, and the labels that they have (None if the network has no classes)."""
        return self.draw(Streams(seeds, self.device), None if labels is None else labels.to(self.device))

    def one_hot(self, class_: int | None, n: int) -> Tensor | None:
        """Labels [n, label_dim] of one class, None for None. Raises UserError if there is no such class."""
        if class_ is None:
            return None
        if not self.label_dim:
            raise UserError(f"{self.terms['network']}: was trained without classes, so --class {class_} cannot be given")
        if not 0 <= class_ < self.label_dim:
            raise UserError(f"--class {class_}: {self.terms['network']} has the classes 0 to {self.label_dim - 1}")
        return torch.nn.functional.one_hot(torch.full((n,), class_), self.label_dim).float()


def open_sampler(
    network: str,
    *,
    key: str | None = None,
    sampler: Literal["auto", "generator", "heun"] = "auto",
    steps: int | None = None,
    nfe: int | None = None,
    sigma_init: float | None = None,
    D: float | None = None,
    rng: Rng = "distill",
    device: str = "auto",
) -> Sampler:
    """A sampler for the network in a file: what the file tells (kind, D, noise levels) needs no argument.

    A teacher is sampled with Heun's method, `steps` of them or `nfe` = 2·steps − 1 evaluations; a generator with the noise
    levels that it was trained with. `sampler`, `sigma_init` (2.5, as in SiD) and `D` are for foreign files, which do not tell.
    Raises UserError where an argument contradicts the file.
    """
    plugins = load_plugins()

    def student_of_a_plugin(about: Mapping[str, Any]) -> nn.Module:
        """A network of a class that is not ours: the recipe in the file names the teacher that such networks are copies of."""
        choice = choice_of("teacher", about.get("recipe", {}).get("teacher", {}), network, plugins)
        teacher: Teacher = choice.make(choice.config)
        return teacher.copy()

    net, about = load_network(network, "denoiser", "generator", key=key, build=student_of_a_plugin)
    place = distributed.start(device, "--device")
    net = net.to(place).requires_grad_(False)
    D = dimension(network, about, D)
    noise = noise_of(network, about, D, sigma_init, plugins)
    shape, label_dim = image_shape_of(net, about), int(about.get("label_dim", getattr(net, "label_dim", 0)))
    terms: dict[str, Any] = {
        "network": network, "key": about.get("key"), "weights": weights_hash(net), "D": D if math.isfinite(D) else "inf",
        "noise": type(noise).__name__, "rng": rng,
        "fp16": bool(getattr(net, "use_fp16", False)) and place.type == "cuda",
    }  # fmt: skip

    def start(streams: Streams, sigma: float) -> Tensor | None:
        """None leaves the prior to the noise: at D = inf it is PFGM++'s too."""
        return pfgmpp_latents(streams.seeds, shape, sigma, D).to(place) if rng == "pfgmpp" and math.isfinite(D) else None

    kind = kind_of(network, about, sampler)
    if kind == "denoiser":
        levels = heun_steps(shape[1], steps, nfe)
        terms |= {"kind": "teacher", "sampler": "heun", "steps": levels, "levels": [noise.sigma_min, noise.sigma_max, noise.rho]}

        def solve(streams: Streams, labels: Tensor | None) -> tuple[Tensor, Tensor | None]:
            return heun_images(net, noise, shape, label_dim, levels, streams, labels, start(streams, noise.sigma_max))

        return Sampler(solve, 2 * levels - 1, shape, label_dim, place, terms)

    sigmas = levels_of(about, noise)
    if nfe is not None and steps is not None and nfe != steps:
        raise UserError(f"--nfe {nfe}, --steps {steps}: a generator takes as many evaluations as steps; give one of them")
    if (steps or nfe or len(sigmas)) != len(sigmas):
        told = ", ".join(f"{s:g}" for s in sigmas)
        raise UserError(
            f"{network}: was distilled with {len(sigmas)} step{'s' * (len(sigmas) > 1)} (sigma {told}), and is sampled so; "
            f"for {steps or nfe} distil again with --set generator.steps={steps or nfe}"
        )
    generator = Generator(net, noise, shape, label_dim, sigmas)
    terms |= {"kind": "generator", "sampler": "generator", "sigmas": list(sigmas)}

    def apply(streams: Streams, labels: Tensor | None) -> tuple[Tensor, Tensor | None]:
        z = start(streams, sigmas[0])
        return generator.chain(streams, labels, None if z is None else z.float())

    return Sampler(apply, generator.steps, shape, label_dim, place, terms)


def kind_of(network: str, about: Mapping[str, Any], sampler: str) -> str:
    """'denoiser' or 'generator': what the file says, else what was asked for, else what its layout suggests. Raises UserError."""
    told = about.get("kind")
    asked = {"heun": "denoiser", "generator": "generator"}.get(sampler)
    if told and asked and told != asked:
        raise UserError(f"{network}: is a {told}; leave --sampler {sampler} out")
    return str(told or asked or about.get("looks_like", "denoiser"))


def dimension(network: str, about: Mapping[str, Any], D: float | None) -> float:
    """D of the file; for one that does not tell, the argument. Raises UserError where they disagree."""
    if D is not None and not D > 0:
        raise UserError(f"--dim {D:g}: D is a positive number, or inf")
    published = published_D(network)
    told = float(about.get("D", math.inf)) if published is None else published
    certain = published is not None or "kind" in about or about.get("tells_D", math.isfinite(told))
    if D is not None and certain and told != D:
        raise UserError(f"--dim {D:g}: {network} was trained with D = {told:g}; leave --dim out")
    return told if D is None or certain else D


def noise_of(network: str, about: Mapping[str, Any], D: float, sigma_init: float | None, plugins: Plugins) -> Noise:
    """The noise that the network was trained with, as its file tells; else the first registered one that serves D."""
    values = {k: about[k] for k in ("sigma_init",) if k in about} | about.get("recipe", {}).get("noise", {})
    if sigma_init is not None and values.setdefault("sigma_init", sigma_init) != sigma_init:
        told = values["sigma_init"]
        raise UserError(f"--sigma-init {sigma_init:g}: {network} starts at sigma_init = {told:g}; leave --sigma-init out")
    names = [values["use"]] if "use" in values else sorted(plugins.names("noise"), key=lambda name: name != "gaussian")
    teacher = Teacher(nn.Identity(), D, (1, 1, 1))  # all that a kernel wants to know of it is D
    for name in names:
        choice = choice_of("noise", values | {"use": name}, network, plugins)
        if choice.config.misfit(D) is None:
            found: Noise = choice.make(choice.config, teacher)
            return found
    raise UserError(f"{network}: no noise of {', '.join(names)} serves D = {D:g}; install the plugin that it was trained with")


def choice_of(kind: str, table: Mapping[str, Any], network: str, plugins: Plugins) -> Choice:
    """The component that a table of the recipe in a file names, with its settings. Raises UserError."""
    settings = dict(table)
    use = settings.pop("use", None)
    if not isinstance(use, str):
        raise UserError(f"{network}: does not tell what {kind} it was trained with, so its network cannot be built")
    try:
        found = plugins.find(kind, use)
        return Choice(kind, found.component, found.owner, found.component.config.model_validate(settings))
    except UserError as error:
        raise UserError(f"{network}: {error}") from None
    except ValidationError as error:
        wrong = error.errors(include_url=False)[0]
        raise UserError(f"{network}: its {kind} {use!r} has {wrong['loc'][-1]} = {wrong['input']!r}: {wrong['msg']}") from None


def levels_of(about: Mapping[str, Any], noise: Noise) -> tuple[float, ...]:
    """The generator's noise levels, by its file: one at sigma_init where it tells nothing."""
    if "sigmas" in about:
        return tuple(map(float, about["sigmas"]))
    table = about.get("recipe", {}).get("generator", {})
    levels = generator_levels(table.get("steps", 1), table.get("schedule", "uniform"), noise.sigma_init, noise.sigma_min, noise.rho)
    return tuple(levels)


def heun_steps(resolution: int, steps: int | None, nfe: int | None) -> int:
    """Heun steps: as given, or for that many evaluations; else EDM's 18 up to 32 pixels a side, 40 above. Raises UserError."""
    if nfe is not None and nfe % 2 == 0:
        raise UserError(f"--nfe {nfe}: n Heun steps take 2n − 1 evaluations, an odd number; give {nfe - 1} or {nfe + 1}")
    if nfe is not None and steps is not None and nfe != 2 * steps - 1:
        raise UserError(f"--nfe {nfe}, --steps {steps}: {steps} Heun steps take {2 * steps - 1} evaluations; give one of the two")
    if nfe is not None:
        return (nfe + 1) // 2
    return steps or (18 if resolution <= 32 else 40)


def image_shape_of(net: nn.Module, about: Mapping[str, Any]) -> tuple[int, int, int]:
    """(C, H, W) of the images, as the file or the network tells."""
    told = about.get("image_shape") or getattr(net, "init_kwargs", {}).get("image_shape")
    if told:
        c, h, w = told
        return int(c), int(h), int(w)
    return int(net.img_channels), int(net.img_resolution), int(net.img_resolution)  # type: ignore[arg-type]
