"""The base of every component's settings, kinds of numbers, and the settings that all kernels share. Imports no torch."""

from __future__ import annotations

import math
import re
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationInfo, field_validator


class Config(BaseModel):
    """Settings of one component, that is, of one table of a recipe: frozen, and unknown keys are errors.

    Types, bounds and `Field(description=...)` of the fields are all that validation, defaults, help and error messages need.
    The methods are what the host asks of settings before anything is built. Override those that apply.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=True, validate_default=True)

    @field_validator("*")
    @classmethod
    def _has_no_control_characters(cls, value: Any) -> Any:
        texts = value if isinstance(value, list | tuple) else [value]
        if any(ord(c) < 32 or ord(c) == 127 for text in texts if isinstance(text, str) for c in text):
            raise ValueError("must not hold control characters")
        return value

    def misfit(self, D: float) -> str | None:
        """Why a component with these settings cannot serve dimension D, or None if it can.

        A clause such as "is the kernel at D = inf". The host adds whose D it is, and which components would serve.
        """
        return None

    def known_D(self) -> float | None:
        """The dimension of the teacher with these settings; None if only its file says."""
        return None

    def remark(self) -> str | None:
        """What the user should know of these settings although they are valid; None for nothing.

        A clause such as "source = 'x.pkl' looks like a generator", which the host shows behind the name of the table.
        """
        return None

    def wants_data(self) -> bool:
        """Whether a loss with these settings is given real images beside the generated ones."""
        return False

    def fewest_images(self) -> int:
        """How many images a metric with these settings needs."""
        return 2


Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Dimension = Annotated[float, Field(gt=0)]
"""D: a positive real, or `inf`."""

DEVICES = "must be auto, cpu, cuda, cuda:N or mps"


def check_device(name: str) -> str:
    """The name, if it is one of a device. Raises ValueError."""
    if not re.fullmatch(r"auto|cpu|mps|cuda(:\d{1,4})?", name):
        raise ValueError(DEVICES)
    return name


Device = Annotated[str, AfterValidator(check_device)]


def can_be_spaced(sigma_min: float, sigma_max: float, rho: float) -> bool:
    """Whether sigma_min^(1/rho) and sigma_max^(1/rho) are two numbers, between which there is room."""
    try:
        low, high = (math.pow(sigma, 1 / rho) for sigma in (sigma_min, sigma_max))
    except (OverflowError, ZeroDivisionError):
        return False
    return 0 < low < high < math.inf


class NoiseConfig(Config):
    """The two laws of noise levels, which every kernel has (EDM Table 1; SiD Appendix; IPFM Eq. 36)."""

    sigma_init: Positive = Field(2.5, description="noise level at which the generator starts")
    t_max: float = Field(800, gt=0, le=1000, description="the generator's levels: t ~ U[0, t_max/1000]")
    sigma_min: Positive = Field(0.002, description="lowest level of sigma(t), and of the teacher's sampler")
    sigma_max: Positive = Field(80.0, description="highest level of sigma(t), and where the teacher's sampler starts")
    rho: Positive = Field(7.0, description="exponent of sigma(t)")
    P_mean: float = Field(-1.2, allow_inf_nan=False, description="the student's levels: ln sigma ~ N(P_mean, P_std²)")
    P_std: Positive = Field(1.2, description="see P_mean")

    @field_validator("sigma_max")
    @classmethod
    def _above_the_others(cls, value: float, info: ValidationInfo) -> float:
        if value <= info.data.get("sigma_min", 0):
            raise ValueError(f"must be above sigma_min = {info.data['sigma_min']}")
        if value < info.data.get("sigma_init", 0):
            raise ValueError(f"must be at least sigma_init = {info.data['sigma_init']:g}: the teacher knows no higher level")
        return value

    @field_validator("rho")
    @classmethod
    def _leaves_room(cls, value: float, info: ValidationInfo) -> float:
        low, high = (info.data.get(name) for name in ("sigma_min", "sigma_max"))
        if low is not None and high is not None and not can_be_spaced(low, high, value):
            size = "small" if value < 1 else "large"
            raise ValueError(f"is too {size}: sigma^(1/rho) leaves no numbers between sigma_min = {low:g} and sigma_max = {high:g}")
        return value
