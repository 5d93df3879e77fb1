"""The hooks of a plugin. Each returns what the plugin brings of one kind."""

from __future__ import annotations

import pluggy

from registry.plugins.component import Component, NetworkClass, Published

hookspec = pluggy.HookspecMarker("distill")
hookimpl = pluggy.HookimplMarker("distill")
"""Marks a plugin's implementation of one of the hooks in this module."""


@hookspec
def register_teachers() -> list[Component]:
    """Frozen denoisers, and how to get them: `build(config) -> Teacher`."""
    raise NotImplementedError


@hookspec
def register_noises() -> list[Component]:
    """Perturbation kernels with their laws of noise levels: `build(config, domain) -> Noise`."""
    raise NotImplementedError


@hookspec
def register_losses() -> list[Component]:
    """What student and generator minimise: `build(config, domain) -> Loss`."""
    raise NotImplementedError


@hookspec
def register_metrics() -> list[Component]:
    """Numbers that say how far images are from the real ones: `build(config, domain) -> Metric`."""
    raise NotImplementedError


@hookspec
def register_trackers() -> list[Component]:
    """Where a run's numbers and pictures go besides its folder: `build(config) -> Tracker`."""
    raise NotImplementedError


@hookspec
def register_published() -> list[Published]:
    """Short names of published teachers, which recipes give as a teacher's `source`."""
    raise NotImplementedError


@hookspec
def register_networks() -> list[NetworkClass]:
    """Classes of networks that the plugin's teachers copy, so that files of ours can be opened without the teacher."""
    raise NotImplementedError


HOOKS: dict[str, tuple[str, type]] = {
    "teacher": ("register_teachers", Component),
    "noise": ("register_noises", Component),
    "loss": ("register_losses", Component),
    "metric": ("register_metrics", Component),
    "tracker": ("register_trackers", Component),
    "published": ("register_published", Published),
    "network": ("register_networks", NetworkClass),
}
"""By kind: the hook, and what it returns a list of."""
