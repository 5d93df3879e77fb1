"""What a plugin author imports: the contracts, the marker for hooks, the base of settings, the user's error.

Nothing here imports torch, and a plugin's package should not either until one of its components is built: that is
what keeps `distill check` and `distill plugins` instantaneous.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Protocol, runtime_checkable

import pluggy
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationInfo, field_validator

if TYPE_CHECKING:
    from torch import Tensor, nn

    from registry.streams import Streams

hookimpl = pluggy.HookimplMarker("distill")
"""Marks a plugin's implementation of one of the hooks in `registry.hookspecs`."""


class UserError(Exception):
    """Something the user can mend. Its message is one line: what was wrong, where, and what would be right."""


class Interrupted(Exception):
    """The run was asked to stop, and did: its state is kept. `code` is the exit code."""

    def __init__(self, message: str, code: int) -> None:
        super().__init__(message)
        self.code = code


# ------------------------------------------------------------------------------------------------------ settings


class Config(BaseModel):
    """Settings of one component, that is, of one table of a recipe: frozen, and unknown keys are errors.

    Field types, bounds and `Field(description=...)` are all a component needs for validation, defaults, help and
    error messages.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=True, validate_default=True)

    def misfit(self, D: float) -> str | None:
        """Why these settings cannot serve a teacher of dimension D (with what to change), or None if they can."""
        return None


def _located_by(finder: str) -> AfterValidator:
    """Validates a path with a function of registry.sources, which looks beside the recipe too."""

    def locate(value: str, info: ValidationInfo) -> str:
        from registry import sources

        folder = (info.context or {}).get("folder")
        found: str = getattr(sources, finder)(value, Path(folder) if folder else None)
        return found

    return AfterValidator(locate)


Source = Annotated[str, _located_by("locate")]
"""A file of the user's: a path (as typed, or relative to the recipe) or the bare name of a shipped file."""

DataSource = Annotated[str, _located_by("locate_data")]
"""Images: `digits`, or a folder or ZIP (as typed, or relative to the recipe)."""

Reference = Annotated[str, _located_by("locate_reference")]
"""Images, or statistics of their Inception features: an .npz file (as typed, or relative to the recipe) or its URL."""

File = Annotated[str, _located_by("locate_file")]
"""Any file: a path (as typed, or relative to the recipe) or a URL."""

Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Dimension = Annotated[float, Field(gt=0)]
"""D: a positive real, or `inf`."""


class NoiseConfig(Config):
    """The two laws of noise levels, shared by every kernel (EDM Table 1; SiD Appendix; IPFM Eq. 36)."""

    sigma_init: Positive = Field(2.5, description="noise level at which the generator starts")
    t_max: float = Field(800, gt=0, le=1000, description="the generator's levels: t ~ U[0, t_max/1000]")
    sigma_min: Positive = Field(0.002, description="lowest level of sigma(t), and of the teacher's sampler")
    sigma_max: Positive = Field(80.0, description="highest level of sigma(t), and where the teacher's sampler starts")
    rho: Positive = Field(7.0, description="exponent of sigma(t)")
    P_mean: float = Field(-1.2, allow_inf_nan=False, description="the student's levels: ln sigma ~ N(P_mean, P_std²)")
    P_std: Positive = Field(1.2, description="see P_mean")

    @field_validator("sigma_max")
    @classmethod
    def _above_sigma_min(cls, value: float, info: ValidationInfo) -> float:
        if value <= info.data.get("sigma_min", 0):
            raise ValueError(f"must be above sigma_min = {info.data['sigma_min']}")
        return value


@dataclass(frozen=True)
class Component:
    """A teacher, noise, loss or metric that recipes can name: `use = "name"`.

    `config` validates the component's table. `build` makes the object: a function, or `"module:function"`, which is
    imported only when the component is built. Its arguments, by kind:

        teacher   build(config) -> Teacher
        noise     build(config, teacher) -> Noise
        loss      build(config, teacher) -> Loss
        metric    build(config, teacher) -> Metric
    """

    name: str
    config: type[Config]
    build: str | Callable[..., Any]
    help: str

    def __post_init__(self) -> None:
        if not (self.name and self.name.replace("_", "").replace("-", "").isalnum()):
            raise ValueError(f"a component's name is letters, digits, '-' and '_', not {self.name!r}")
        if not (isinstance(self.config, type) and issubclass(self.config, Config)):
            raise TypeError(f"component {self.name!r}: config must be a subclass of registry.api.Config")

    def make(self, *args: Any) -> Any:
        """Call `build`, importing it first if it was given by name."""
        if isinstance(self.build, str):
            module, _, function = self.build.partition(":")
            return getattr(importlib.import_module(module), function)(*args)
        return self.build(*args)


# ----------------------------------------------------------------------------------------------------- contracts


class Denoiser(Protocol):
    """f(x; sigma) ≈ E[x₀ | x]: x [B, C, H, W], sigma [B], labels [B, label_dim] or None -> [B, C, H, W]."""

    def __call__(self, x: Tensor, sigma: Tensor, labels: Tensor | None = None) -> Tensor: ...


@dataclass
class Teacher:
    """The frozen denoiser f* with what must be known about it.

    `trainable` makes a new trainable denoiser of the student's and the generator's kind, initialised from the teacher;
    by default it is a copy of `denoiser`.
    """

    denoiser: nn.Module
    D: float
    image_shape: tuple[int, int, int]
    label_dim: int = 0
    sigma_data: float = 0.5
    origin: str = "?"
    """Where it came from, for people: a path, a URL, a name."""
    provenance: dict[str, Any] = field(default_factory=dict)
    """How it was trained, as its file tells it, and the hash of its weights."""
    trainable: Callable[[], nn.Module] | None = None
    path: Path | None = None
    """The file it was read from, if it was."""
    images: Tensor | None = None
    """The real images [M, C, H, W] in [−1, 1], where the teacher knows them (exact teachers)."""

    def copy(self) -> nn.Module:
        """A trainable denoiser with the teacher's weights, on the teacher's device."""
        import copy

        net = self.trainable() if self.trainable else copy.deepcopy(self.denoiser)
        return net.requires_grad_(True)


class Noise(Protocol):
    """A perturbation kernel p_r(x_r | x), r = sigma·√D, and the two laws of noise levels. B = len(rng)."""

    D: float
    sigma_init: float
    sigma_min: float
    sigma_max: float
    rho: float

    def prior(self, shape: Sequence[int], sigma: float, rng: Streams) -> Tensor:
        """B draws of the kernel around 0: shape (C, H, W) -> [B, C, H, W]."""
        ...

    def perturb(self, x: Tensor, sigma: Tensor, rng: Streams) -> Tensor:
        """x_r ~ p_r(· | x): x [B, C, H, W], sigma [B] -> [B, C, H, W], differentiable in x."""
        ...

    def student_sigma(self, rng: Streams) -> Tensor:
        """Noise levels [B] of the student's training."""
        ...

    def generator_sigma(self, rng: Streams) -> Tensor:
        """Noise levels [B] of the generator's training."""
        ...


class Loss(Protocol):
    """The two sides of the game. Both give unreduced values [B, C, H, W]; the loop reduces, scales, differentiates."""

    def student(self, student: Denoiser, x: Tensor, labels: Tensor | None, noise: Noise, rng: Streams) -> Tensor:
        """What the student minimises on generated images x [B, C, H, W] (which carry no gradient)."""
        ...

    def generator(
        self, teacher: Denoiser, student: Denoiser, x: Tensor, labels: Tensor | None, noise: Noise, rng: Streams
    ) -> Tensor:
        """What the generator minimises; the gradient reaches it through x [B, C, H, W]."""
        ...


@runtime_checkable
class Metric(Protocol):
    """Numbers that say how far a set of images is from the real ones.

    Images are embedded part by part, so that they need not be in memory at once and processes can share the work; then all
    rows are compared. `columns` names the numbers; the first one is a distance (lower is better), is drawn as a curve, and
    says which snapshot is the best. A class that inherits from this one can be called.
    """

    columns: tuple[str, ...]

    def embed(self, images: Tensor) -> Tensor:
        """images [n, C, H, W] in about [−1, 1], float32 on any device -> rows [n, d] on the CPU, each of its image alone."""
        ...

    def compare(self, rows: Tensor) -> dict[str, float]:
        """rows [N, d] of all images, N ≥ 2 -> {column: value}."""
        ...

    def floor(self, repeat: int) -> dict[str, float]:
        """The same numbers for real images against real images: a random half (one per repeat) against all; {} if unknown."""
        ...

    def __call__(self, images: Tensor) -> dict[str, float]:
        """Images that are in memory: [N, C, H, W] -> {column: value}."""
        return self.compare(self.embed(images))
