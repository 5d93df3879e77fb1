"""distill: few-step generators from diffusion (EDM) and electrostatic (PFGM++) teachers.

`import registry` does not import torch; the functions below do, when they are first used.

The folders, from the ground up; each imports only from those above it in this list:

core     errors, settings, contracts, streams, levels of sigma, processes
plugins  what a package registers, and its guarded loading
edm      networks and files of the EDM family; the inert reader of pickles
files    where files are, what is in them, how they are written
recipe   TOML and overrides -> settings that are complete and valid
show     the log, progress, pictures
train    the loop (read train/loop.py first), the step, the generator, kernels, losses
sample   seeds -> images
measure  images -> numbers, tables
runs     a recipe from beginning to end
study    many runs, compared
api      all that a plugin imports; `testing` has the checks for its tests
builtin  the SiD plugin, loaded like anybody's; its mirror image is the package ipfm_plugin
cli      the command `distill`
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from registry.core.errors import UserError
from registry.plugins.loading import load_plugins

if TYPE_CHECKING:
    from registry.runs.distill import distill
    from registry.runs.pretrain import pretrain
    from registry.sample.sampler import open_sampler

__all__ = ["UserError", "distill", "load_plugins", "open_sampler", "pretrain"]

_NEED_TORCH = {
    "distill": "registry.runs.distill",
    "pretrain": "registry.runs.pretrain",
    "open_sampler": "registry.sample.sampler",
}


def __getattr__(name: str) -> Any:
    if name in _NEED_TORCH:
        return getattr(importlib.import_module(_NEED_TORCH[name]), name)
    raise AttributeError(f"module 'registry' has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
