"""The network as a denoiser in EDM's coordinates, and the teacher made of it."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from my_teacher import VPConfig
from my_teacher.network import SomebodysUNet, linear_schedule
from registry.api import Teacher, UserError, open_path, weights_hash


class VPDenoiser(nn.Module):
    """f(x; sigma) from a network of epsilon or v under DDPM's noise: x [B, C, H, W], sigma [B] -> [B, C, H, W].

    DDPM's x_t = √alpha_bar·x₀ + √(1 − alpha_bar)·epsilon is x/√(1 + sigma²), where x = x₀ + sigma·epsilon and
    sigma² = (1 − alpha_bar)/alpha_bar (EDM App. C.3). So

        f = x − sigma·epsilon                              for a network of epsilon (DDPM),
        f = x/(1 + sigma²) − sigma/√(1 + sigma²)·v         for one of v = √alpha_bar·epsilon − √(1 − alpha_bar)·x₀
                                                           (Salimans and Ho 2022, App. D).
    """

    log_sigma: Tensor

    def __init__(
        self,
        channels: int = 16,
        image_channels: int = 1,
        parametrisation: str = "epsilon",
        steps: int = 1000,
        beta_first: float = 1e-4,
        beta_last: float = 0.02,
    ) -> None:
        super().__init__()
        self.init_kwargs = {  # from these and its tensors a file of the generator is opened, without the teacher's
            "channels": channels, "image_channels": image_channels, "parametrisation": parametrisation,
            "steps": steps, "beta_first": beta_first, "beta_last": beta_last,
        }  # fmt: skip
        self.net: nn.Module = SomebodysUNet(channels, image_channels)
        self.parametrisation = parametrisation
        alpha_bar = linear_schedule(steps, beta_first, beta_last)
        self.register_buffer("log_sigma", ((1 - alpha_bar) / alpha_bar).log() / 2)  # [T], rising

    def step(self, sigma: Tensor) -> Tensor:
        """The network's t at noise level sigma [B] -> [B]: linear between the T steps in ln sigma, the first or last outside."""
        level = sigma.to(self.log_sigma.dtype).log().clamp(self.log_sigma[0], self.log_sigma[-1])
        right = torch.searchsorted(self.log_sigma, level).clamp(min=1)
        below, above = self.log_sigma[right - 1], self.log_sigma[right]
        return right - 1 + (level - below) / (above - below)

    def forward(self, x: Tensor, sigma: Tensor, labels: Tensor | None = None) -> Tensor:
        dtype = next(self.net.parameters()).dtype  # the sampler works in float64
        s = sigma.to(x.dtype).reshape(-1, 1, 1, 1)
        scale = (1 + s**2).sqrt()
        out = self.net((x / scale).to(dtype), self.step(sigma).to(dtype)).to(x.dtype)
        f: Tensor = x - s * out if self.parametrisation == "epsilon" else x / scale**2 - s / scale * out
        return f


def build(config: VPConfig) -> Teacher:
    """The teacher of a recipe's [teacher] table. Raises UserError if its file is none of SomebodysUNet."""
    path = open_path(config.source)
    try:
        weights = torch.load(path, map_location="cpu", weights_only=True)  # executes nothing of the file
        denoiser = VPDenoiser(
            config.channels, weights["first.weight"].shape[1], config.parametrisation,
            config.steps, config.beta_first, config.beta_last,
        )  # fmt: skip
        denoiser.net.load_state_dict(weights)
    except Exception as error:  # torch raises nearly anything for a damaged file
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"{config.source}: no state dict of SomebodysUNet({config.channels}), or damaged ({reason})") from error
    return Teacher(
        denoiser=denoiser.requires_grad_(False).eval(),
        D=math.inf,
        image_shape=(denoiser.init_kwargs["image_channels"], config.resolution, config.resolution),
        origin=config.source,
        path=path,  # the teacher's measured numbers are kept beside it, as long as these weights are the same:
        weights=f"{config.parametrisation} {weights_hash(denoiser)}",
    )
