"""distill: few-step generators from diffusion (EDM) and electrostatic (PFGM++) teachers.

`import registry` does not import torch; the functions below do, when they are first used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from registry.api import UserError
from registry.plugins import load_plugins

if TYPE_CHECKING:
    from registry.run import distill, pretrain
    from registry.sampling import open_sampler

__all__ = ["UserError", "distill", "load_plugins", "open_sampler", "pretrain"]


def __getattr__(name: str) -> Any:
    if name in ("distill", "pretrain"):
        import registry.run

        return getattr(registry.run, name)
    if name == "open_sampler":
        import registry.sampling

        return registry.sampling.open_sampler
    raise AttributeError(f"module 'registry' has no attribute {name!r}")
