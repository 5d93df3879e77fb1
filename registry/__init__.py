"""distill: generators of one to four evaluations from diffusion (EDM) and electrostatic (PFGM++) teachers.

    from registry import distill, load_generator, load_teacher

    result = distill("quickstart")                        # a recipe's path, a shipped name, a run folder, a dict of tables
    pictures = result.generator.pil(16)                   # one image for each of the seeds 0 to 15
    generator = load_generator(result.folder)             # or any file: .pkl of EDM, SiD, PFGM++; .safetensors; .pt
    images = generator.sample(seeds=[3, 7])               # [2, C, H, W] in about [-1, 1]
    teacher = load_teacher("digits_d128").images(4)       # uint8 [4, H, W, C]

`distill` distils a teacher into a generator, `pretrain` trains a teacher from images; `Sampler` is what both loaders give. All
errors that you can mend are `UserError`. `registry.api` is for plugins, `registry.testing` for their tests.

`import registry` does not import torch; these functions do, when they are first used. The folders, from the ground up; each imports
only from those above it in this list:

core     errors, settings, contracts, streams, levels of sigma, processes
plugins  what a package registers, and its guarded loading
edm      networks and files of the EDM family; the inert reader of pickles
files    where files are, what is in them, how they are written
recipe   TOML and overrides -> settings that are complete and valid
show     the log, progress, pictures
train    the loop (read train/loop.py first), the step, the generator, kernels, losses
sample   seeds -> images
measure  images -> numbers, tables
report   the page of a run, and of several
runs     a recipe from beginning to end
study    many runs, compared
api      all that a plugin imports; `testing` has the checks for its tests
builtin  the SiD plugin, loaded like anybody's; its mirror image is the package ipfm_plugin
cli      the command `distill`
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from registry.core.errors import Diverged, Interrupted, UserError
from registry.core.version import version

if TYPE_CHECKING:
    from registry.runs.distill import Result, distill
    from registry.runs.pretrain import pretrain
    from registry.sample.opening import load_generator, load_teacher
    from registry.sample.sampler import Sampler

    __version__: str

__all__ = [
    "Diverged",
    "Interrupted",
    "Result",
    "Sampler",
    "UserError",
    "__version__",
    "distill",
    "load_generator",
    "load_teacher",
    "pretrain",
]

_NEED_TORCH = {
    "distill": "registry.runs.distill",
    "Result": "registry.runs.distill",
    "pretrain": "registry.runs.pretrain",
    "load_generator": "registry.sample.opening",
    "load_teacher": "registry.sample.opening",
    "Sampler": "registry.sample.sampler",
}


def __getattr__(name: str) -> Any:
    if name in _NEED_TORCH:
        return getattr(importlib.import_module(_NEED_TORCH[name]), name)
    if name == "__version__":
        return version()
    raise AttributeError(f"module 'registry' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
