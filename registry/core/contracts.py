"""The contracts: the interfaces that the host expects of a teacher, a noise, a loss, a metric and a tracker.

Imports no torch, so that a plugin's module can name these types without loading it.
"""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, runtime_checkable

from registry.core.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor, nn

    from registry.core.streams import Streams


@dataclass(frozen=True, kw_only=True, eq=False)
class Domain:
    """What must be known about a network's images. Noise, loss and metrics are built for a domain."""

    D: float
    """Auxiliary dimension: a positive real, `inf` for diffusion."""
    image_shape: tuple[int, int, int]
    """(C, H, W)."""
    label_dim: int = 0
    """Number of classes; 0 is without."""
    augment_dim: int = 0
    """Number of augmentation labels that the network takes as a fourth argument `augment_labels` [B, augment_dim]; 0 is none."""
    sigma_data: float = 0.5
    """Standard deviation of the data that the preconditioning assumes."""
    images: Tensor | None = None
    """The real images [M, C, H, W] in [−1, 1], where they are known (exact teachers)."""
    origin: str = "?"
    """Where the network came from, for people: a path, a URL, a name."""


class Denoiser(Protocol):
    """f(x; sigma) ≈ E[x₀ | x]: x [B, C, H, W], sigma [B], labels [B, label_dim] or None -> [B, C, H, W]."""

    def __call__(self, x: Tensor, sigma: Tensor, labels: Tensor | None = None) -> Tensor: ...


@runtime_checkable
class KnowsLevels(Protocol):
    """A denoiser that was made for certain noise levels. Like EDM's, the sampler stays between the two and rounds its levels."""

    sigma_min: float
    sigma_max: float

    def round_sigma(self, sigma: Tensor) -> Tensor:
        """The nearest levels that the denoiser knows, in the shape and dtype of sigma."""
        ...


@runtime_checkable
class Rebuildable(Protocol):
    """A network that exposes its constructor's arguments as plain values, so that a file can rebuild it."""

    @property
    def init_kwargs(self) -> dict[str, Any]: ...


@dataclass(frozen=True, eq=False)
class Teacher(Domain):
    """The frozen denoiser f*, and its domain."""

    denoiser: nn.Module
    """A module that is called as a `Denoiser`. If it has all attributes of `KnowsLevels`, the sampler heeds them."""
    trainable: Callable[[], nn.Module] | None = None
    """Makes a trainable denoiser for student and generator, initialised from the teacher; by default a copy of `denoiser`."""
    path: Path | None = None
    """The file it was read from. Its measured numbers are kept beside the file, for as long as `weights` is the same."""
    weights: str = ""
    """A short hash of its weights (`weights_hash`); needed with `path`."""
    provenance: dict[str, Any] = field(default_factory=dict)
    """How it was trained, according to its file. For people: the host does not read it."""
    remarks: tuple[str, ...] = ()
    """Lines for the run's log: what had to be assumed of its file."""

    def copy(self) -> nn.Module:
        """A trainable denoiser with the teacher's weights, on the teacher's device."""
        from torch import nn

        net = self.trainable() if self.trainable else copy.deepcopy(self.denoiser)
        if not isinstance(net, nn.Module):
            raise UserError(f"the teacher's trainable() must give a torch.nn.Module, not a {type(net).__name__}")
        return net.requires_grad_(True)


@runtime_checkable
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


@runtime_checkable
class KnowsLevelRatio(Protocol):
    """A noise that knows the densities of its two laws of noise levels, for [train] shared_pass."""

    def level_ratio(self, sigma: Tensor) -> Tensor:
        """The density of the student's law over that of the generator's, at levels [B] of the latter: [B]."""
        ...


class RealBatch(NamedTuple):
    """As many real images as generated ones: x [B, C, H, W] in [−1, 1], labels [B, label_dim] or None."""

    x: Tensor
    labels: Tensor | None


@runtime_checkable
class Loss(Protocol):
    """The two sides of the game. Both give unreduced values [B, C, H, W]; the loop alone reduces, scales, differentiates.

    A loss that wants real images says so in its settings (`Config.wants_data`), and then both methods take one more argument:

        student(student, x, labels, noise, rng, real: RealBatch) -> [B, C, H, W]
        generator(teacher, student, x, labels, noise, rng, real: RealBatch) -> [B, C, H, W]

    A loss that trains a network of its own is a `torch.nn.Module`, too. Its parameters learn in the student's step with the
    student's optimiser, are held fixed in the generator's step, and are saved and resumed. The loop sums values over C, H and W:
    a value [B, 1, 1, 1] that is added to values [B, C, H, W] counts C·H·W times.
    """

    def student(self, student: Denoiser, x: Tensor, labels: Tensor | None, noise: Noise, rng: Streams) -> Tensor:
        """What the student minimises on generated images x [B, C, H, W] (which carry no gradient)."""
        ...

    def generator(
        self, teacher: Denoiser, student: Denoiser, x: Tensor, labels: Tensor | None, noise: Noise, rng: Streams
    ) -> Tensor:
        """What the generator minimises; the gradient reaches it through x [B, C, H, W]."""
        ...


@runtime_checkable
class SharesPass(Protocol):
    """A loss that computes both sides from the same evaluations, for [train] shared_pass. `registry.api.DenoisingGame` is one."""

    def shared(
        self, teacher: Denoiser, student: Denoiser, x: Tensor, labels: Tensor | None, noise: Noise, rng: Streams
    ) -> tuple[Tensor, Tensor]:
        """The values of `student` and of `generator`, both [B, C, H, W], at levels of the generator's law. Of the first, only the
        gradient of the student's weights counts, of the second, only that of x."""
        ...


def derived_from(component: object, method: str, *others: str) -> bool:
    """Whether a method takes account of what these others do: none of them was overridden below the class that defines it."""
    place = {name: next((i for i, c in enumerate(type(component).__mro__) if name in vars(c)), -1) for name in (method, *others)}
    return 0 <= place[method] <= min(place[name] for name in others)


def hidden_network(loss: Loss) -> str | None:
    """The attribute in which a loss that is no torch.nn.Module keeps a network with parameters to train; None if there is none."""
    from torch import nn

    if isinstance(loss, nn.Module):
        return None
    try:
        attributes = vars(loss)
    except TypeError:  # it has slots
        return None
    for name, value in attributes.items():
        if isinstance(value, nn.Module) and any(p.requires_grad for p in value.parameters()):
            return name
    return None


class Metric(ABC):
    """Numbers that say how far a set of images is from the real ones.

    Images are embedded part by part, so that they need not be in memory at once and processes can share the work; then all
    rows are compared.
    """

    columns: tuple[str, ...]
    """Names of the numbers, at most 50. The first is drawn as a curve and picks the best snapshot."""
    higher: tuple[str, ...] = ()
    """The columns of which higher is better. Of all others lower is, as of a distance."""
    most: int | None = None
    """How many images it compares at most: the first ones. None is all."""
    protocol: int | None = None
    """How many images published numbers of this metric are measured with; fewer are marked as a proxy."""
    fingerprint: str | None = None
    """What the numbers depend on besides images and settings, in short: kept numbers are used only while it is the same."""
    details: dict[str, Any] = {}  # noqa: RUF012
    """The same for people and files, as plain values: mode, settings, hashes, number of real images. Numbers with unlike details
    are not put into one table without a mark. The name of a file may stand beside its hash (`features`, `features_hash`)."""

    @abstractmethod
    def embed(self, images: Tensor) -> Tensor:
        """images [n, C, H, W] in about [−1, 1], float32 on any device -> rows [n, d] on the CPU, each from its own image only."""

    @abstractmethod
    def compare(self, rows: Tensor) -> dict[str, float]:
        """rows [N, d] of all images, N ≥ 2 -> {column: value}."""

    def floor(self, repeat: int) -> dict[str, float]:
        """The same numbers for real images against real images: a random half (one per repeat) against all; {} if unknown."""
        return {}

    def save_reference(self, path: Path) -> bool:
        """Write what images are compared with into a file that `reference` can name later; False if there is no such form."""
        return False

    def __call__(self, images: Tensor) -> dict[str, float]:
        """Images that are in memory: [N, C, H, W] -> {column: value}."""
        return self.compare(self.embed(images))


class Tracker(ABC):
    """Where a run's numbers and pictures go besides its folder, such as TensorBoard. Process 0 alone calls it.

    A run goes on without a tracker that raises an exception, and says so.
    """

    @abstractmethod
    def begin(self, folder: Path, recipe: Mapping[str, Any], nimg: int) -> None:
        """A run begins in this folder, or goes on there after `nimg` images: what was given of later ones does not count any more.

        `recipe` is complete: plain tables by their names. What the tracker writes belongs into the folder.
        """

    @abstractmethod
    def numbers(self, nimg: int, values: Mapping[str, float]) -> None:
        """Numbers after so many images, by names such as Loss/generator. They may be NaN."""

    def picture(self, nimg: int, name: str, path: Path) -> None:
        """A picture of the run's folder (PNG): "fakes" after so many images; "real" and the teacher's at the start."""
        return

    def end(self) -> None:
        """The run has ended, or was interrupted."""
        return
