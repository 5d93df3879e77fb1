"""The SiD loss."""

from __future__ import annotations

from torch import Tensor

from registry.api import DenoisingGame, Domain
from registry.builtin import SiDConfig


def sid_objective(x: Tensor, f_star: Tensor, f: Tensor, alpha: float) -> Tensor:
    """L_alpha = (f* − f)·(f* − x) − alpha·|f* − f|², elementwise (SiD Eq. 23)."""
    return (f_star - f) * (f_star - x) - alpha * (f_star - f) ** 2


class SiDLoss(DenoisingGame):
    """Score identity Distillation (Zhou et al. 2024)."""

    def __init__(self, alpha: float = 1.0, sigma_data: float = 0.5) -> None:
        super().__init__(sigma_data)
        self.alpha = alpha

    def objective(self, x: Tensor, f_star: Tensor, f: Tensor) -> Tensor:
        return sid_objective(x, f_star, f, self.alpha)


def build(config: SiDConfig, domain: Domain) -> SiDLoss:
    return SiDLoss(config.alpha, domain.sigma_data)
