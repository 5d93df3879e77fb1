"""A plugin of distill: the gradient of the Kullback-Leibler divergence as a loss (Diff-Instruct; DMD).

Nothing here imports torch, so that `distill check` and `distill plugins` stay instantaneous.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from registry.api import Component, Config, hookimpl


class DiffInstructConfig(Config):
    weighting: Literal["dmd", "kl"] = Field("dmd", description="dmd: normalised by the teacher's error; kl: the divergence itself")


@hookimpl
def register_losses() -> list[Component]:
    return [Component("diff_instruct", DiffInstructConfig, "my_loss.loss:build", "distribution matching by scores (any D)")]
