"""A generator or a teacher that is ready to sample: turns seeds into images."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from operator import index
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from registry.core.contracts import Domain, Noise
from registry.core.errors import SettingError, UserError
from registry.core.float64 import wide
from registry.core.settings import check_device
from registry.core.streams import Streams, TorchStreams
from registry.core.surroundings import usual_torch
from registry.edm.latents import pfgmpp_latents
from registry.files.facts import NetworkFacts
from registry.sample.heun import heun_images, level_range, teacher_levels
from registry.sample.steps import check_generator_steps, heun_steps
from registry.show.journal import Journal
from registry.show.notebook import facts_and_picture
from registry.show.pictures import as_picture, as_pixels, grid
from registry.train.generator import Generator
from registry.train.passes import Passes

Rng = Literal["distill", "torch", "pfgmpp"]
"""Whose draws a seed stands for: ours; those of EDM's script on a processor; those of PFGM++'s."""
Labels = int | Sequence[int] | Tensor | np.ndarray | None
"""Classes of images: one for all, one for each, or one-hot rows [n, label_dim]. None: drawn for each image from its seed."""
MOST_SEEDS = 10_000_000
"""Images that are made at a time."""


class Sampler:
    """A generator or a teacher. An image depends on its seed and label only: not on the batch, the device or other images.

    Made by `load_generator`, `load_teacher` and `distill`. A generator takes K evaluations, at the noise levels `sigmas` that it
    was distilled with (SiD Sec. 3, IPFM Algorithm 2). A teacher is sampled with Heun's method in `steps` steps (EDM Algorithm 1).
    """

    def __init__(
        self,
        net: nn.Module,
        noise: Noise,
        domain: Domain,
        *,
        sigmas: Sequence[float] | None = None,
        steps: int | None = None,
        settings: Mapping[str, Any] | None = None,
        recipe: Mapping[str, Any] | None = None,
        stated: NetworkFacts | None = None,
        doubt: str | None = None,
        rng: Rng = "distill",
        passes: Passes | None = None,
    ) -> None:
        self.net, self.noise, self.domain = net, noise, domain
        self.recipe = dict(recipe or {})
        """The tables of the recipe that it was trained with; empty if its file does not say."""
        self.stated = stated
        """What its file states; None if it comes from no file."""
        self.doubt = doubt
        """A sentence for people, if neither the file nor the user says whether the network is a denoiser or a generator."""
        self._settings, self._rng, self._passes = dict(settings or {}), rng, passes or Passes()
        self._generator = Generator(net, noise, domain.image_shape, domain.label_dim, sigmas) if sigmas else None
        self.steps = self._generator.steps if self._generator else steps or heun_steps(domain.image_shape[1], None, None)
        """K of a generator; Heun steps of a teacher."""

    # ------------------------------------------------------------------------------------------------- what it is

    @property
    def kind(self) -> Literal["generator", "teacher"]:
        return "generator" if self._generator else "teacher"

    @property
    def D(self) -> float:
        """The auxiliary dimension; inf is diffusion."""
        return self.domain.D

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(C, H, W)."""
        return self.domain.image_shape

    @property
    def label_dim(self) -> int:
        """Number of classes; 0 is without."""
        return self.domain.label_dim

    @property
    def nfe(self) -> int:
        """Evaluations of the network for an image: K of a generator, 2·steps − 1 of a teacher."""
        return self.steps if self._generator else 2 * self.steps - 1

    @property
    def sigmas(self) -> tuple[float, ...]:
        """The noise levels of the evaluations, the highest first: K of a generator, one for each Heun step of a teacher."""
        if self._generator:
            return self._generator.sigmas
        return tuple(teacher_levels(self.net, self.noise, self.steps)[:-1].tolist())

    @property
    def device(self) -> torch.device:
        return next((t.device for t in (*self.net.parameters(), *self.net.buffers())), torch.device("cpu"))

    @property
    def settings(self) -> dict[str, Any]:
        """What is sampled and how, as plain values. Two samplers with equal settings give equal images."""
        if self._generator:
            return self._settings | {"kind": "generator", "sampler": "generator", "sigmas": list(self.sigmas)}
        levels = [*level_range(self.net, self.noise), self.noise.rho]
        return self._settings | {"kind": "teacher", "sampler": "heun", "steps": self.steps, "levels": levels}

    # ------------------------------------------------------------------------------------------------- sampling

    def sample(
        self,
        n: int | None = None,
        *,
        seeds: Sequence[int] | int | None = None,
        labels: Labels = None,
        nfe: int | None = None,
        batch: int = 64,
    ) -> Tensor:
        """Images [n, C, H, W], float32, in about [−1, 1], on the sampler's device: one for each seed.

        `n` (16 by default) stands for the seeds 0 to n − 1. `labels`: one class for all images, a list or tensor of n classes, or
        one-hot rows [n, label_dim]; without them each image draws its class from its seed. `nfe`: evaluations for an image; a
        teacher takes any odd number, a generator only its own. `batch`: images at a time. Raises UserError if an argument is
        wrong, or an image is not finite.
        """
        seeds = self._seeds(n, seeds)
        rows = label_rows(labels, len(seeds), self.domain)
        sampler = self if nfe is None else self.with_nfe(nfe)
        if type(batch) is not int or batch < 1:
            raise SettingError("batch", "must be a whole number, at least 1", batch)
        images = []
        with Journal().progress("sampling", len(seeds)) as bar:
            for i in range(0, len(seeds), batch):
                images.append(sampler(seeds[i : i + batch], None if rows is None else rows[i : i + batch]))
                bar.at(min(i + batch, len(seeds)))
        return torch.cat(images)

    def images(self, n: int | None = None, **arguments: Any) -> np.ndarray:
        """The same as pixels: uint8 [n, H, W, C] (points in the plane keep their values). Arguments as of `sample`."""
        return as_pixels(self.sample(n, **arguments))

    def pil(self, n: int | None = None, **arguments: Any) -> list[Image.Image]:
        """The same as pictures of PIL, grey or RGB. Arguments as of `sample`."""
        if self.image_shape[0] not in (1, 3):
            raise UserError(f"images of shape {'×'.join(map(str, self.image_shape))} cannot be shown as pictures; use images()")
        return [as_picture(pixels) for pixels in self.images(n, **arguments)]

    def with_nfe(self, nfe: int) -> Sampler:
        """The same network, sampled with so many evaluations. Raises SettingError if it cannot be."""
        if self._generator:
            check_generator_steps(self.domain.origin, self.sigmas, None, nfe, self.doubt)
            return self
        return Sampler(
            self.net, self.noise, self.domain, steps=heun_steps(self.image_shape[1], None, nfe), settings=self._settings,
            recipe=self.recipe, stated=self.stated, doubt=self.doubt, rng=self._rng, passes=self._passes,
        )  # fmt: skip

    def to(self, device: str | torch.device) -> Sampler:
        """Move the network to a device ("cpu", "cuda", "cuda:1", "mps", …), and give the sampler. Raises SettingError."""
        try:
            check_device(str(device))
            self.net.to(device)
        except (ValueError, RuntimeError, AssertionError) as error:
            raise SettingError("device", " ".join(str(error).split())[:200], str(device)) from None
        return self

    def __call__(self, seeds: Sequence[int], labels: Tensor | None = None) -> Tensor:
        """Images [n, C, H, W], all at a time. Labels [n, label_dim] are drawn if none are given."""
        return self.labelled(seeds, labels)[0]

    @usual_torch()
    @torch.no_grad()
    def labelled(self, seeds: Sequence[int], labels: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        """Images as above, and their labels (None if the network has no classes). Raises UserError if an image is not finite."""
        check_seeds(seeds)
        streams = (Streams if self._rng == "distill" else TorchStreams)(seeds, self.device)
        images, drawn = self._draw(streams, None if labels is None else labels.to(self.device))
        finite = images.flatten(1).isfinite().all(1).tolist()
        if not all(finite):
            raise UserError(f"{self.domain.origin}: the image of seed {seeds[finite.index(False)]} is not finite")
        return images, drawn

    def one_hot(self, class_: int | None, n: int) -> Tensor | None:
        """Labels [n, label_dim] for one class, or None for None. Raises SettingError if there is no such class."""
        return label_rows(class_, n, self.domain, "class_")

    def _draw(self, streams: Streams, labels: Tensor | None) -> tuple[Tensor, Tensor | None]:
        start = self.sigmas[0] if self._generator else level_range(self.net, self.noise)[1]
        z = None  # drawn from the noise's prior
        if self._rng == "pfgmpp" and math.isfinite(self.D):  # at D = inf, PFGM++'s draws are torch's
            z = pfgmpp_latents(streams.seeds, self.image_shape, start, self.D).to(self.device, wide(self.device))
        with self._passes(others=(self.net,)):
            if self._generator:
                return self._generator.chain(streams, labels, None if z is None else z.float())
            return heun_images(self.net, self.noise, self.image_shape, self.label_dim, self.steps, streams, labels, z)

    def _seeds(self, n: int | None, seeds: Sequence[int] | int | None) -> list[int]:
        if n is not None and seeds is not None:
            raise SettingError("seeds", f"give n or seeds, not both; n = {n} stands for the seeds 0 to {n} - 1")
        if seeds is None:
            if n is not None and (type(n) is not int or not 1 <= n <= MOST_SEEDS):
                raise SettingError("n", f"must be a whole number from 1 to {MOST_SEEDS:,}; more are made in parts", n)
            return list(range(16 if n is None else n))
        try:
            many = isinstance(seeds, Sequence) and len(seeds) > MOST_SEEDS
        except OverflowError:  # of a range
            many = True
        if many:
            raise SettingError("seeds", f"are more than {MOST_SEEDS:,}; more are made in parts")
        try:
            found: list[Any] = list(seeds) if isinstance(seeds, Sequence | np.ndarray | Tensor) and np.ndim(seeds) else [seeds]
            check_seeds(found)
            return [index(seed) for seed in found]
        except (TypeError, ValueError, RuntimeError):
            raise SettingError("seeds", "must be a whole number, or a list of them", type(seeds).__name__) from None

    # ------------------------------------------------------------------------------------------------- for people

    def facts(self) -> dict[str, str]:
        """What it is, in words."""
        c, h, w = self.image_shape
        levels = [f"{sigma:.4g}" for sigma in self.sigmas]
        return {
            "file": self.domain.origin, "D": f"{self.D:g}", "images": f"{c}×{h}×{w}",
            "classes": str(self.label_dim or "none"), "evaluations": str(self.nfe),
            "sigma": ", ".join(levels) if len(levels) <= 8 else f"{levels[0]} to {levels[-1]}",
            "parameters": f"{sum(p.numel() for p in self.net.parameters()):,}", "device": str(self.device),
        }  # fmt: skip

    def __repr__(self) -> str:
        return f"<{self.kind} {', '.join(f'{name} {value}' for name, value in self.facts().items())}>"

    def _repr_html_(self) -> str:
        """For notebooks: what it is, and 16 images of a generator. A teacher would take a while."""
        shown = self._generator is not None and self.image_shape[0] in (1, 3)
        return facts_and_picture(self.kind, self.facts(), grid(self.sample(16), 8) if shown else None)


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


def label_rows(labels: Labels, n: int, domain: Domain, argument: str = "labels") -> Tensor | None:
    """Labels in any of their forms as one-hot rows [n, label_dim] in float32; None for None. Raises SettingError."""
    if labels is None:
        return None
    classes = domain.label_dim
    if not classes:
        what = f"{domain.origin} was trained without classes, so none can be given"
        raise SettingError(argument, what, labels if isinstance(labels, int) else None)
    try:
        given = torch.as_tensor(labels).cpu()
    except (TypeError, ValueError, RuntimeError):
        raise SettingError(argument, "must be a class, a list or tensor of classes, or one-hot rows", labels) from None
    if given.ndim == 2:
        if given.shape != (n, classes):
            raise SettingError(argument, f"one-hot rows must have the shape ({n}, {classes}), not {tuple(given.shape)}")
        rows = given.to(torch.float32)
        if not (((rows == 0) | (rows == 1)).all() and (rows.sum(1) == 1).all()):
            raise SettingError(argument, "a one-hot row has a single 1, and 0 elsewhere")
        return rows
    if given.ndim > 2 or given.is_floating_point() or given.is_complex() or given.dtype == torch.bool:
        raise SettingError(argument, f"classes are whole numbers from 0 to {classes - 1}", labels if given.ndim == 0 else None)
    if given.ndim == 1 and len(given) != n:
        raise SettingError(argument, f"there are {len(given)} for {n} images")
    outside = given[(given < 0) | (given >= classes)] if given.ndim else given.reshape(1)[(given < 0) | (given >= classes)]
    if len(outside):
        raise SettingError(argument, f"{domain.origin} has the classes 0 to {classes - 1}", int(outside[0]))
    return torch.nn.functional.one_hot(given.long().expand(n), classes).to(torch.float32)
