"""All that a plugin imports, together with `registry.testing`. Nothing is defined here.

What needs torch is loaded when it is first used, so a plugin's module can import from here without loading torch, as long as
it leaves those names to the modules that its builders are in.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from registry.core.contracts import Denoiser, Domain, Loss, Metric, Noise, RealBatch, Rebuildable, Teacher, Tracker
from registry.core.errors import SettingError, UserError
from registry.core.settings import Config, Dimension, NoiseConfig, Positive
from registry.files.locate import open_path, published
from registry.files.paths import DataSource, File, FileTeacherConfig, Reference, Source
from registry.plugins.component import Component, NetworkClass, Published
from registry.plugins.hooks import hookimpl

if TYPE_CHECKING:
    from registry.core.levels import karras_sigma
    from registry.core.streams import Streams
    from registry.edm.datasets import load_images
    from registry.files.formats import load_network, weights_hash
    from registry.files.teachers import teacher_from_file
    from registry.train.kernels import Kernel
    from registry.train.losses import DenoisingGame, denoising_loss, edm_weight, generator_weight

__all__ = [
    "Component",
    "Config",
    "DataSource",
    "Denoiser",
    "DenoisingGame",
    "Dimension",
    "Domain",
    "File",
    "FileTeacherConfig",
    "Kernel",
    "Loss",
    "Metric",
    "NetworkClass",
    "Noise",
    "NoiseConfig",
    "Positive",
    "Published",
    "RealBatch",
    "Rebuildable",
    "Reference",
    "SettingError",
    "Source",
    "Streams",
    "Teacher",
    "Tracker",
    "UserError",
    "denoising_loss",
    "edm_weight",
    "generator_weight",
    "hookimpl",
    "karras_sigma",
    "load_images",
    "load_network",
    "open_path",
    "published",
    "teacher_from_file",
    "weights_hash",
]

_NEED_TORCH = {
    "Streams": "registry.core.streams",
    "karras_sigma": "registry.core.levels",
    "load_images": "registry.edm.datasets",
    "load_network": "registry.files.formats",
    "weights_hash": "registry.files.formats",
    "teacher_from_file": "registry.files.teachers",
    "Kernel": "registry.train.kernels",
    "DenoisingGame": "registry.train.losses",
    "denoising_loss": "registry.train.losses",
    "edm_weight": "registry.train.losses",
    "generator_weight": "registry.train.losses",
}


def __getattr__(name: str) -> Any:
    if name in _NEED_TORCH:
        return getattr(importlib.import_module(_NEED_TORCH[name]), name)
    raise AttributeError(f"module 'registry.api' has no attribute {name!r}")
