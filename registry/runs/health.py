"""Whether a run still learns anything: weights and losses that are not finite."""

from __future__ import annotations

from collections.abc import Mapping

from registry.core.errors import Diverged
from registry.files.finite import not_finite
from registry.train.step import Learner

DEAD = 16
"""A learner from whose last so many steps every image was dropped has learned nothing, and will not."""


def check_health(learners: Mapping[str, Learner], nimg: int, strict: bool, end: bool) -> bool:
    """Whether all is well: no learner was without any image in its last step.

    Raises Diverged if a learner's weights are not finite, or nothing was left to learn from in its last steps (at the `end` of a
    run: in the last one). With `strict`, also if a single image was dropped or a single value of a gradient was replaced since the
    last tick.
    """
    well = True
    for name, learner in learners.items():
        if tensor := not_finite(learner.modules):
            raise Diverged(f"{tensor} of the {name} is not finite at {nimg / 1000:.3f} kimg", nimg)
        dead = learner.tally.dead.item()
        well = well and not dead
        if dead >= (1 if end else DEAD):
            raise Diverged(f"the {name}'s loss was not finite for any image in its last {dead:.0f} step{'s' * (dead > 1)}", nimg)
        if strict and (learner.tally.dropped.item() or learner.tally.repaired.item()):
            raise Diverged(f"the {name}'s loss or gradient was not finite, and this recipe stops at the first such value", nimg)
    return well
