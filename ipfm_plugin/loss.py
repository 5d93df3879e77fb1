"""The IPFM loss."""

from __future__ import annotations

from torch import Tensor

from ipfm_plugin import IPFMConfig
from registry.api import DenoisingGame, Domain


def ipfm_objective(x: Tensor, f_star: Tensor, f: Tensor, alpha: float) -> Tensor:
    """½(|f* − x|² − |f − x|²) − (alpha − ½)|f* − f|², elementwise.

    IPFM Eq. 21 (halved) at alpha = ½; with the regularisation of Eq. 28 for any other. Computed as the product
    (f* − f)·[(f* − x) − alpha·(f* − f)], which is the same (Prop. 3.4) for every D: the difference of two squares loses digits
    where f is close to f*.
    """
    gap = f_star - f
    return gap * ((f_star - x) - alpha * gap)


class IPFMLoss(DenoisingGame):
    """Inverse Poisson Flow Matching (Shlenskii and Korotin 2025)."""

    def __init__(self, alpha: float = 1.0, sigma_data: float = 0.5) -> None:
        super().__init__(sigma_data)
        self.alpha = alpha

    def objective(self, x: Tensor, f_star: Tensor, f: Tensor) -> Tensor:
        """L_alpha of x, f*(x_r) and f(x_r): [B, C, H, W]."""
        return ipfm_objective(x, f_star, f, self.alpha)


def build(config: IPFMConfig, domain: Domain) -> IPFMLoss:
    return IPFMLoss(config.alpha, domain.sigma_data)
