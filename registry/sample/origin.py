"""What a network was trained with, from its file: kind, D, kernel, noise levels. For foreign files, arguments fill the gaps."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError
from torch import nn

from registry.core.contracts import Domain, Noise, Rebuildable, Teacher
from registry.core.errors import SettingError, UserError
from registry.core.levels import generator_levels
from registry.core.text import shown
from registry.edm.networks import Precond
from registry.files.facts import NetworkFacts
from registry.files.locate import published
from registry.plugins.component import Component
from registry.plugins.loading import Plugins
from registry.recipe.resolved import Choice
from registry.recipe.tables import GeneratorConfig


def kind_of(network: str, facts: NetworkFacts, sampler: str) -> str:
    """'denoiser' or 'generator': from the file or the user, else from `sampler`, else a guess. Raises UserError."""
    asked = {"heun": "denoiser", "generator": "generator"}.get(sampler)
    if facts.kind and asked and facts.kind != asked:
        raise SettingError("sampler", f"{network} is a {facts.kind}; leave this out", sampler)
    return facts.kind or asked or facts.looks_like


def dimension_of(network: str, facts: NetworkFacts, D: float | None) -> float:
    """D from the file, or the argument if the file does not state it. Raises UserError if they disagree."""
    if D is not None and not (isinstance(D, int | float) and D > 0):
        raise SettingError("D", "must be a positive number, or inf", D)
    known = published(network)
    stated = known.D if known else facts.dimension()
    certain = known is not None or facts.D_is_certain
    if D is not None and certain and stated != D:
        raise SettingError("D", f"{network} was trained with D = {stated:g}; leave this out", D)
    return stated if D is None or certain else D


def noise_of(network: str, facts: NetworkFacts, domain: Domain, sigma_init: float | None, plugins: Plugins) -> Noise:
    """The noise that the network was trained with, from its file, or the first registered one for its D. Raises UserError."""
    values: dict[str, Any] = {} if facts.sigma_init is None else {"sigma_init": facts.sigma_init}
    values |= facts.table("noise")
    if sigma_init is not None and values.setdefault("sigma_init", sigma_init) != sigma_init:
        raise SettingError("sigma_init", f"{network} starts at {shown(values['sigma_init'], 40)}; leave this out", sigma_init)
    names = [values["use"]] if "use" in values else noises_for(plugins, domain.D)
    for name in names:
        choice = choice_of("noise", values | {"use": name}, network, plugins)
        if choice.config.misfit(domain.D) is None:
            found: Noise = choice.make(domain)
            return found
    raise UserError(f"{network}: no noise serves D = {domain.D:g}; install the plugin that it was trained with")


def noises_for(plugins: Plugins, D: float) -> list[str]:
    """The noises that serve D, starting with those that serve only this D: at D = inf, the Gaussian."""
    other = 1.0 if math.isinf(D) else math.inf
    return sorted(plugins.serving("noise", D), key=lambda name: name in plugins.serving("noise", other))


def choice_of(kind: str, table: Mapping[str, Any], network: str, plugins: Plugins) -> Choice:
    """The component and settings given by a table of the recipe in a file. Raises UserError."""
    settings = dict(table)
    use = settings.pop("use", None)
    if not isinstance(use, str):
        raise UserError(f"{network}: does not say which {kind} it was trained with, so its network cannot be built")
    try:
        found = plugins.find(kind, use)
        assert isinstance(found.component, Component)
        return Choice(kind, found.component, found.owner, found.component.config.model_validate(settings), version=found.version)
    except UserError as error:
        raise UserError(f"{network}: {error}") from None
    except ValidationError as error:
        wrong = error.errors(include_url=False)[0]
        value = shown(wrong["input"], 60)
        raise UserError(f"{network}: its {kind} {use!r} has {shown(wrong['loc'][-1], 60)} = {value}: {wrong['msg']}") from None


def copy_of_teacher(network: str, facts: NetworkFacts, plugins: Plugins) -> nn.Module:
    """For a network class that no plugin registers: a copy of the teacher given by the recipe in the file. Raises UserError."""
    teacher: Teacher = choice_of("teacher", facts.table("teacher"), network, plugins).make()
    return teacher.copy()


def levels_of(network: str, facts: NetworkFacts, noise: Noise) -> tuple[float, ...]:
    """The generator's noise levels, from its file, or the single level sigma_init if the file says nothing. Raises UserError."""
    if facts.sigmas is not None:
        return tuple(map(float, facts.sigmas))
    known = {key: value for key, value in facts.table("generator").items() if key in ("steps", "schedule")}
    try:
        table = GeneratorConfig.model_validate(known)
    except ValidationError as error:
        raise UserError(f"{network}: its recipe's generator: {error.errors(include_url=False)[0]['msg']}") from None
    return tuple(generator_levels(table.steps, table.schedule, noise.sigma_init, noise.sigma_min, noise.rho))


def domain_of(network: str, net: nn.Module, facts: NetworkFacts, D: float | None) -> Domain:
    """D, shape and classes of the images, from the file or the network. Raises UserError."""
    shape, label_dim = facts.image_shape, facts.label_dim
    if isinstance(net, Precond):
        shape, label_dim = (net.img_channels, net.img_resolution, net.img_resolution), net.label_dim
        for what, said, own in (("images", facts.image_shape, shape), ("classes", facts.label_dim, label_dim)):
            if said not in (None, own):
                raise UserError(f"{network}: contradicts itself: it says that its {what} are {said}, and its network's are {own}")
    elif shape is None and isinstance(net, Rebuildable) and "image_shape" in net.init_kwargs:
        c, h, w = net.init_kwargs["image_shape"]
        shape = int(c), int(h), int(w)
    if shape is None:
        raise UserError(f"{network}: does not say what shape its images have")
    return Domain(D=dimension_of(network, facts, D), image_shape=shape, label_dim=label_dim or 0, origin=network)
