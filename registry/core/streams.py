"""One random stream per image: the draws for an image depend on its own seed and on nothing else.

So a batch gives the same images whether it is computed whole, accumulated in parts, or shared among processes, and a run needs no
generator state to be resumed. The numbers come from counters (`registry.core.philox`): purpose, seed, draw, and place in the draw.
A seed means the same image on every machine and device.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from hashlib import blake2b
from operator import index
from typing import Any

import numpy as np
import torch
from torch import Tensor

from registry.core.float64 import wide
from registry.core.philox import Words, gamma, inside_unit, normals, philox, uniform53

TILE = 2**13
"""Counters at a time on a processor: what its cache holds."""
GAMMA_BLOCKS = 4
"""Blocks of four words for the eight tries of a gamma."""


class Streams:
    """B independent streams of random numbers, one per image, seeded by B integers (mod 2^64).

    Streams of another `purpose` are others, e.g. "7/student/0" for a run with seed 7.
    """

    def __init__(self, seeds: Iterable[int], device: torch.device | str = "cpu", purpose: str = "sample") -> None:
        self.device = torch.device(device)
        self.seeds = [index(seed) for seed in seeds]
        digest = blake2b(purpose.encode(), digest_size=8).digest()
        self._key = int.from_bytes(digest[:4], "little"), int.from_bytes(digest[4:], "little")
        self._draws = 0
        numbers = np.array([seed % 2**64 for seed in self.seeds], dtype=np.uint64)
        words = np.stack([numbers & np.uint64(2**32 - 1), numbers >> np.uint64(32)]).astype(np.int64)[..., None]
        self._xp: Any = torch if self.device.type != "cpu" and wide(self.device) == torch.float64 else np
        self._low, self._high = words if self._xp is np else _moved(torch.from_numpy(words), self.device)

    @classmethod
    def derived(cls, purpose: str, indices: Iterable[int], device: torch.device | str = "cpu") -> Streams:
        """Streams for images `indices` of one purpose."""
        return cls(indices, device, purpose)

    def __len__(self) -> int:
        return len(self.seeds)

    def normal(self, shape: Sequence[int] = (), dtype: torch.dtype = torch.float32) -> Tensor:
        """Standard normal values [B, *shape]."""

        def values(xp: Any, words: Words) -> Any:
            four = normals(xp, xp.stack(words[:2]), xp.stack(words[2:]))
            four = xp.asarray(four, dtype=xp.float64 if dtype == torch.float64 else xp.float32)
            return four.reshape(4, *four.shape[2:])

        return self._filled(4, values, shape).to(self._own(dtype))

    def uniform(self, shape: Sequence[int] = (), dtype: torch.dtype = torch.float32) -> Tensor:
        """Uniform values in [0, 1): [B, *shape]; multiples of 2^-53 in float64, and of 2^-24 otherwise."""
        return self._uniform(shape, dtype).to(self._own(dtype))

    def _uniform(self, shape: Sequence[int] = (), dtype: torch.dtype = torch.float64, moved: bool = True) -> Tensor:
        def single(xp: Any, words: Words) -> Any:
            return xp.asarray(xp.stack(words) >> 8, dtype=xp.float32) * 2.0**-24

        def double(xp: Any, words: Words) -> Any:
            return uniform53(xp, xp.stack(words[:2]), xp.stack(words[2:]))

        return self._filled(2, double, shape, moved) if dtype == torch.float64 else self._filled(4, single, shape, moved)

    def gamma(self, concentration: float) -> Tensor:
        """Gamma(concentration, rate 1), as wide as the device's numbers are: [B]."""

        def value(xp: Any, words: Words) -> Any:
            return gamma(xp, concentration, [w[:, 1:] for w in words], inside_unit(xp, words[0][:, 0]))

        return self._tiles(1 + GAMMA_BLOCKS, value)

    def integers(self, high: int) -> Tensor:
        """Uniform integers in [0, high): [B]."""
        return self._there((self._uniform(moved=False) * high).long())

    def one_hot(self, classes: int) -> Tensor | None:
        """Random classes as one-hot rows [B, classes]; None if there are no classes."""
        if not classes:
            return None
        return torch.nn.functional.one_hot(self.integers(classes), classes).to(torch.float32)

    def _there(self, drawn: Tensor) -> Tensor:
        """On the streams' device, in numbers that it has."""
        return drawn if drawn.device.type == self.device.type else _moved(drawn, self.device)

    def _own(self, dtype: torch.dtype) -> torch.dtype:
        """The type, or float32 if the device has no such."""
        return wide(self.device) if dtype == torch.float64 else dtype

    def _filled(self, each: int, values: Callable[[Any, Words], Any], shape: Sequence[int], moved: bool = True) -> Tensor:
        """[B, *shape] from a function that makes `each` values of every block of four words: [b, n] -> [each, b, n]."""
        size = math.prod(shape)
        drawn = self._tiles(-(-size // each), lambda xp, words: xp.moveaxis(values(xp, words), 0, -1), moved)
        return drawn.reshape(len(self), -1)[:, :size].reshape(len(self), *shape)

    def _tiles(self, blocks: int, values: Callable[[Any, Words], Any], moved: bool = True) -> Tensor:
        """What a function makes of the next draw's words, four arrays [b, blocks] for b of the B streams at a time: on the streams'
        device, if it is to be `moved` there."""
        xp, tiled = self._xp, self._xp is np
        block = np.arange(blocks) if tiled else torch.arange(blocks, device=self.device)
        rows = max(TILE // max(blocks, 1), 1) if tiled else len(self)
        parts = []
        for i in range(0, len(self), rows):
            counter = block, self._draws, self._low[i : i + rows], self._high[i : i + rows]
            parts.append(values(xp, philox(counter, self._key)))
        self._draws += 1
        drawn = parts[0] if len(parts) == 1 else xp.concatenate(parts)
        made = torch.from_numpy(drawn) if tiled else drawn
        return self._there(made) if moved else made


def _moved(values: Tensor, device: torch.device) -> Tensor:
    """On the device, without waiting for it; float64 only if the device has it."""
    if values.dtype == torch.float64:
        values = values.to(wide(device))
    return (values.pin_memory() if device.type == "cuda" else values).to(device, non_blocking=True)


class TorchStreams(Streams):
    """The draws of torch's generators on a processor: with seeds 0, 1, 2 … those of EDM's generation script there.

    One Mersenne Twister per image, which uses the low 32 bits of its seed only.
    """

    def __init__(self, seeds: Iterable[int], device: torch.device | str = "cpu") -> None:
        self.device, self.seeds = torch.device(device), [index(seed) for seed in seeds]
        self._generators = [torch.Generator().manual_seed(seed % 2**32) for seed in self.seeds]

    def normal(self, shape: Sequence[int] = (), dtype: torch.dtype = torch.float32) -> Tensor:
        return self._stack(lambda g: torch.randn(tuple(shape), generator=g, dtype=dtype))

    def uniform(self, shape: Sequence[int] = (), dtype: torch.dtype = torch.float32) -> Tensor:
        return self._stack(lambda g: torch.rand(tuple(shape), generator=g, dtype=dtype))

    def gamma(self, concentration: float) -> Tensor:
        parameter = torch.tensor(concentration, dtype=torch.float64)
        return self._stack(lambda g: torch._standard_gamma(parameter, generator=g))

    def integers(self, high: int) -> Tensor:
        return self._stack(lambda g: torch.randint(high, (), generator=g))

    def _stack(self, draw: Callable[[torch.Generator], Tensor]) -> Tensor:
        return _moved(torch.stack([draw(g) for g in self._generators]), self.device)
