"""The hooks of a plugin. Each returns the components of one kind that the plugin brings."""

from __future__ import annotations

import pluggy

from registry.api import Component

hookspec = pluggy.HookspecMarker("distill")

KINDS = ("teacher", "noise", "loss", "metric")


@hookspec
def register_teachers() -> list[Component]:
    """Frozen denoisers, and how to get them: `build(config) -> Teacher`."""
    raise NotImplementedError


@hookspec
def register_noises() -> list[Component]:
    """Perturbation kernels with their laws of noise levels: `build(config, teacher) -> Noise`."""
    raise NotImplementedError


@hookspec
def register_losses() -> list[Component]:
    """What student and generator minimise: `build(config, teacher) -> Loss`."""
    raise NotImplementedError


@hookspec
def register_metrics() -> list[Component]:
    """Numbers that say how far images are from the real ones: `build(config, teacher) -> Metric`."""
    raise NotImplementedError


HOOKS = dict(zip(KINDS, ("register_teachers", "register_noises", "register_losses", "register_metrics"), strict=True))
