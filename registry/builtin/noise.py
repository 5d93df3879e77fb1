"""Gaussian noise, the kernel at D = inf."""

from __future__ import annotations

from registry.api import Teacher
from registry.builtin import GaussianConfig
from registry.noise import GaussianNoise


def build(config: GaussianConfig, teacher: Teacher) -> GaussianNoise:
    return GaussianNoise(config)
