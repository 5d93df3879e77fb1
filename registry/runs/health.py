"""Whether a run still learns anything, and whether all its processes learn the same."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from registry.core import distributed
from registry.core.errors import Diverged, UserError
from registry.core.sharding import is_split, local
from registry.core.surroundings import ProcessSettings
from registry.files.finite import not_finite
from registry.runs.checkpoints import Stateful
from registry.train.step import Learner

DEAD = 16
"""A learner from whose last so many steps every image was dropped, or of whose gradient most values were replaced, has learned
nothing, and will not."""


def check_health(learners: Mapping[str, Learner], nimg: int, strict: bool, begin: bool, end: bool) -> bool:
    """Whether all is well: no learner was without any image in its last step.

    Raises Diverged, in all processes, if a learner's weights or moments are not finite, or nothing was left to learn from in its
    last steps (after the first one, and at the `end` of a run: in that one), or hardly anything of a gradient. With `strict`, also
    if a single image was dropped or a single value of a gradient was replaced since the last tick.
    """
    where = f"at {nimg / 1000:.3f} kimg"
    problem: UserError | Diverged | None = changed_types(learners)
    dead = {name: int(learner.tally.dead.item()) for name, learner in learners.items()}
    lost = {name: int(learner.tally.lost.item()) for name, learner in learners.items()}
    for name, learner in learners.items() if problem is None else ():
        if tensor := not_finite(learner.modules):
            problem = Diverged(f"{tensor} of the {name} is not finite {where}", nimg)
        elif not all(moment.isfinite().all() for moment in local(tensors(list(learner.optimiser.state.values())))):
            problem = Diverged(f"Adam's moments of the {name} are not finite {where}: a gradient was too large", nimg)
        elif begin and dead[name]:
            advice = "look at the loss, the noise levels and the images"
            problem = Diverged(f"the {name}'s loss was not finite for any image in its first step", nimg, advice)
        elif dead[name] >= (1 if end else DEAD):
            steps = f"{dead[name]} step{'s' * (dead[name] > 1)}"
            problem = Diverged(f"the {name}'s loss was not finite for any image in its last {steps}", nimg)
        elif lost[name] >= DEAD or (end and 0 < lost[name] == learner.steps()):
            steps = f"{lost[name]} step{'s' * (lost[name] > 1)}"
            advice = "look at the loss's gradient, and at the scaling of losses"
            problem = Diverged(f"most of the {name}'s gradient was not finite in its last {steps}", nimg, advice)
        elif strict and (learner.tally.dropped.item() or learner.tally.repaired.item()):
            problem = Diverged(f"the {name}'s loss or gradient was not finite, and this recipe stops at the first such value", nimg)
        if problem:
            break
    for found in distributed.gather(problem):  # a network's statistics may be unlike in the processes
        if found is not None:
            raise found
    return not any(dead.values())


def changed_types(learners: Mapping[str, Learner]) -> UserError | None:
    """What to say if a weight is of another type than at the start: a loss has written to it. None if all are as they were."""
    for name, learner in learners.items():
        if changed := learner.changed_type():
            return UserError(f"a weight of the {name}, {changed} during the run; a loss must not write to weights")
    return None


def check_process_settings(before: ProcessSettings) -> None:
    """Check that no component has changed what all code shares; it is then as it was again, but for the working folder. Raises
    UserError."""
    if changed := before.changed():
        before.restore()
        raise UserError(
            f"the loss, the noise or the teacher has changed {changed} during the run; whatever changes it must put it back"
        )


def check_images(images: Tensor, what: str, nimg: int) -> None:
    """Check that a finished network gives finite images [n, C, H, W]; finite weights may be too large for that. Raises Diverged."""
    if not images.isfinite().all():
        raise Diverged(f"the images of the {what} are not finite at {nimg / 1000:.3f} kimg", nimg)


def check_unchanged(frozen: nn.Module, name: str, before: int) -> None:
    """Check that a network that must not learn has the `fingerprint` it had before, in all processes. Raises UserError in all."""
    if any(distributed.gather(fingerprint(frozen.state_dict()) != before)):
        raise UserError(f"the {name}'s weights have changed during the run; a loss must not write to them")


def check_agreement(parts: Mapping[str, Stateful], nimg: int) -> None:
    """Check that all processes are at the same image with the same weights, moments and averages, but for those that are split over
    them. Raises UserError."""
    if distributed.world_size() == 1:
        return
    prints = {name: fingerprint([t for t in tensors(part.state_dict()) if not is_split(t)]) for name, part in parts.items()}
    found = distributed.gather((distributed.world_size(), nimg, prints))
    for rank, (world, images, own) in enumerate(found):
        other = [name for name in parts if own[name] != found[0][2][name]]
        if (world, images, other) != (*found[0][:2], []):
            what = f"another {', '.join(other)}" if other else f"{world} processes" if world != found[0][0] else "other images"
            raise UserError(
                f"at {found[0][1] / 1000:.3f} kimg process {rank} has {what} than process 0 (a faulty device, or unlike ones?); "
                "start again from the last state"
            )


def fingerprint(state: Any) -> int:
    """A number that changes if a bit of a state's tensors, in this process, does: a hash of the sums of their words."""
    words = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
    sums = [
        t.contiguous().reshape(-1).view(words[t.element_size()]).sum(dtype=torch.int64) for t in local(tensors(state)) if t.numel()
    ]
    return hash(tuple(torch.stack([s.to(sums[0].device) for s in sums]).tolist())) if sums else 0


def tensors(state: Any) -> Iterator[Tensor]:
    """All tensors in nested dictionaries and lists."""
    if isinstance(state, Tensor):
        yield state
    for value in state.values() if isinstance(state, Mapping) else state if isinstance(state, list | tuple) else ():
        yield from tensors(value)
