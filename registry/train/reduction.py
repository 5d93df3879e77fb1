"""Gradients added up over processes while the backward pass still runs, bucket by bucket (PyTorch DDP, arXiv 2006.15704, Sec. 3.2).

`DistributedDataParallel` hooks a network's forward pass, of which a step here may have several, or none of its own: a generator
applies its network K times, recomputed passes call it inside of the backward pass. So the hooks are on the gradients.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial

import torch
from torch import Tensor, nn

from registry.core import distributed

BUCKET_BYTES = 25 * 2**20
"""As DDP's."""


class GradientSum:
    """The sum over all processes of the gradients of these parameters, sent in the order in which a backward pass usually makes
    them: the last parameter's first. Buckets leave in the same order in every process, whatever the order of the gradients."""

    def __init__(self, parameters: Iterable[nn.Parameter], bucket_bytes: int = BUCKET_BYTES) -> None:
        learning = [parameter for parameter in parameters if parameter.requires_grad]
        self.buckets = [Bucket(part) for part in split(learning[::-1], bucket_bytes)]
        self.last = False
        """Whether this backward pass completes the step's gradients."""
        for bucket in self.buckets:
            for parameter in bucket.parameters:
                parameter.register_post_accumulate_grad_hook(partial(self.arrived, bucket))

    @contextmanager
    def completing(self) -> Iterator[None]:
        """The backward pass in here is the last one of a step: buckets leave as soon as they are complete."""
        for bucket in self.buckets:
            bucket.empty()
        self.last = True
        try:
            yield
        finally:
            self.last = False

    def arrived(self, bucket: Bucket, parameter: nn.Parameter) -> None:
        """A parameter has its gradient; send what is complete, in order."""
        if not self.last:
            return
        bucket.stale |= bucket.sum is not None  # not expected, or in more than one piece
        bucket.missing.discard(parameter)
        for other in self.buckets:
            if other.missing:
                return
            other.send()

    def finish(self) -> None:
        """Wait for the sums and put them in the gradients' place. A parameter has a gradient now if it had one in any process."""
        for bucket in self.buckets:
            bucket.send()
        given = [parameter.grad is not None for bucket in self.buckets for parameter in bucket.parameters]
        known = distributed.largest(*map(int, (*given, *(bucket.stale for bucket in self.buckets))))
        stale = known[len(given) :]
        wanted = iter(known)
        for bucket, again in zip(self.buckets, stale, strict=True):
            bucket.receive([bool(next(wanted)) for _ in bucket.parameters], bool(again))


class Bucket:
    """Some of the gradients, as one message."""

    def __init__(self, parameters: Sequence[nn.Parameter]) -> None:
        self.parameters = parameters
        self.expected = set(parameters)
        """Those that had a gradient in the last step: the bucket need not wait for the others."""
        self.empty()

    def empty(self) -> None:
        self.missing = set(self.expected)
        self.sum: distributed.Sum | None = None
        self.stale = False

    def send(self) -> None:
        """Send the gradients as they are now, once. One that is not there counts as 0."""
        if self.sum is None:
            self.sum = distributed.Sum(self.flat())

    def flat(self) -> Tensor:
        return torch.cat([(torch.zeros_like(p) if p.grad is None else p.grad).flatten() for p in self.parameters])

    def receive(self, wanted: Sequence[bool], again: bool) -> None:
        """Take the sums for the parameters that are wanted; send `again` what was not complete."""
        assert self.sum is not None
        total = self.sum.wait()
        if again:
            total = distributed.Sum(self.flat()).wait()
        for parameter, values, has in zip(self.parameters, total.split([p.numel() for p in self.parameters]), wanted, strict=True):
            if has:
                parameter.grad = torch.empty_like(parameter) if parameter.grad is None else parameter.grad
                parameter.grad.copy_(values.view_as(parameter))
        self.expected = {parameter for parameter, has in zip(self.parameters, wanted, strict=True) if has}
        self.empty()


def split(parameters: Sequence[nn.Parameter], most: int) -> Iterator[list[nn.Parameter]]:
    """Parts of about `most` bytes, each of one type and on one device."""
    part: list[nn.Parameter] = []
    size = 0
    for parameter in parameters:
        unlike = part and (part[0].dtype, part[0].device) != (parameter.dtype, parameter.device)
        if part and (unlike or size >= most):
            yield part
            part, size = [], 0
        part.append(parameter)
        size += parameter.numel() * parameter.element_size()
    if part:
        yield part
