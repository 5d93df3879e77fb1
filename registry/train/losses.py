"""The denoising loss, the weight of the generator's loss, and the game that SiD and IPFM share."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor

from registry.core.contracts import Denoiser, KnowsLevelRatio, Noise
from registry.core.errors import BrokenContract
from registry.core.streams import Streams

REAL = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
"""Types of numbers that a plugin may give."""


def edm_weight(sigma: Tensor, sigma_data: float = 0.5) -> Tensor:
    """lambda(sigma) = (sigma² + sigma_data²)/(sigma·sigma_data)² (EDM Table 1)."""
    return (sigma**2 + sigma_data**2) / (sigma * sigma_data) ** 2


def denoising_loss(
    denoiser: Denoiser, x: Tensor, labels: Tensor | None, noise: Noise, rng: Streams, sigma_data: float = 0.5
) -> Tensor:
    """lambda(sigma)·|f(x_r; sigma) − x|² at levels of the student's law, unreduced [B, C, H, W] (EDM Eq. 2, PFGM++ Eq. 17/18)."""
    return denoising_loss_at(noise.student_sigma(rng), denoiser, x, labels, noise, rng, sigma_data)


def denoising_loss_at(
    sigma: Tensor, denoiser: Denoiser, x: Tensor, labels: Tensor | None, noise: Noise, rng: Streams, sigma_data: float = 0.5
) -> Tensor:
    """`denoising_loss` at given levels [B]."""
    f = denoiser(noise.perturb(x, sigma, rng), sigma, labels)
    return edm_weight(sigma.to(f.dtype), sigma_data).reshape(-1, 1, 1, 1) * (f - x) ** 2


def generator_weight(x: Tensor, f_star: Tensor) -> Tensor:
    """w = C·H·W/|x − f*(x_r)|₁ per image, its mean absolute error at least 1e-5, no gradient: [B, 1, 1, 1] (SiD Eq. 24)."""
    return 1 / (x - f_star).abs().mean(dim=(1, 2, 3), keepdim=True).clamp(min=1e-5).detach()


def of_images(values: Tensor, x: Tensor, wanted: str) -> Tensor:
    """A plugin's values for images x [b, C, H, W]: plain real numbers of that shape, on that device. Raises BrokenContract."""
    if not isinstance(values, Tensor):
        raise BrokenContract(f"{wanted}, and gave a {type(values).__name__}")
    if isinstance(values, FakeTensor):
        raise BrokenContract(f"{wanted}, and gave a tensor without numbers")
    try:
        values = values.as_subclass(Tensor)  # whose operations could be any
    except NotImplementedError:
        raise BrokenContract(f"{wanted}, and gave them in another layout, for instance a sparse one") from None
    if values.is_nested or values.shape != x.shape or values.dtype not in REAL:
        shape = "a nested tensor" if values.is_nested else f"{values.dtype} of shape {tuple(values.shape)}"
        raise BrokenContract(f"{wanted}, and gave {shape}")
    if values.layout != torch.strided or values.device != x.device:
        raise BrokenContract(f"{wanted}, on {x.device}, and gave them on {values.device}, {values.layout}")
    return values


def shaped(values: Tensor, x: Tensor) -> Tensor:
    """An objective, before its weight would hide that it is none. Raises BrokenContract."""
    return of_images(values, x, f"objective() must give values of the images' shape, {tuple(x.shape)}")


class DenoisingGame(ABC):
    """The two-player game of SiD and IPFM (IPFM Algorithm 1) without the generator's objective, which a subclass adds.

    The student learns to denoise the generator's images. For the generator's loss its images are perturbed, both teacher and
    student denoise them, and `objective` compares the two results.
    """

    def __init__(self, sigma_data: float = 0.5) -> None:
        super().__init__()  # for class MyLoss(DenoisingGame, nn.Module), which trains a network of its own
        self.sigma_data = sigma_data

    @abstractmethod
    def objective(self, x: Tensor, f_star: Tensor, f: Tensor) -> Tensor:
        """The generator's objective from x and both denoised images, all [B, C, H, W], before weighting."""

    def student(self, student: Denoiser, x: Tensor, labels: Tensor | None, noise: Noise, rng: Streams) -> Tensor:
        """The denoising loss on generated images (inner problem of SiD Eq. 22 and IPFM Eq. 21)."""
        return denoising_loss(student, x, labels, noise, rng, self.sigma_data)

    def shared(
        self, teacher: Denoiser, student: Denoiser, x: Tensor, labels: Tensor | None, noise: Noise, rng: Streams
    ) -> tuple[Tensor, Tensor]:
        """The student's loss and the generator's from one evaluation of each network, at levels of the generator's law.

        The first is weighted by the ratio of the two laws, so its mean is that of `student`.
        """
        sigma = noise.generator_sigma(rng)
        x_r = noise.perturb(x, sigma, rng)
        f_star, f = teacher(x_r, sigma, labels), student(x_r, sigma, labels)
        assert isinstance(noise, KnowsLevelRatio)
        weight = noise.level_ratio(sigma) * edm_weight(sigma.to(f.dtype), self.sigma_data)
        return weight.reshape(-1, 1, 1, 1) * (f - x) ** 2, generator_weight(x, f_star) * shaped(self.objective(x, f_star, f), x)

    def generator(
        self, teacher: Denoiser, student: Denoiser, x: Tensor, labels: Tensor | None, noise: Noise, rng: Streams
    ) -> Tensor:
        """w·objective at a perturbed x; the gradient goes through x, directly and through both denoisers."""
        sigma = noise.generator_sigma(rng)
        x_r = noise.perturb(x, sigma, rng)
        f_star, f = teacher(x_r, sigma, labels), student(x_r, sigma, labels)
        return generator_weight(x, f_star) * shaped(self.objective(x, f_star, f), x)
