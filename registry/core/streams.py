"""One random stream per image: the draws for an image depend on its own seed and on nothing else.

So a batch gives the same images whether it is computed whole, accumulated in parts, or shared among processes, and a
run needs no generator state to be resumed. Draws are made on the CPU and moved, so that a seed means the same image
on every machine. With seeds 0, 1, 2 … the normal draws are those of EDM's generation script on the CPU.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from hashlib import blake2b

import torch
from torch import Tensor


class Streams:
    """B independent streams of random numbers, one per image, seeded by B integers."""

    def __init__(self, seeds: Iterable[int], device: torch.device | str = "cpu") -> None:
        self.device = torch.device(device)
        self.seeds = list(seeds)
        # torch's Mersenne Twister uses the low 32 bits only.
        self._generators = [torch.Generator().manual_seed(seed % 2**32) for seed in self.seeds]

    @classmethod
    def derived(cls, purpose: str, indices: Iterable[int], device: torch.device | str = "cpu") -> Streams:
        """Streams for images `indices` of one purpose, e.g. "7/student/0" of a run with seed 7."""
        return cls((derived_seed(purpose, i) for i in indices), device)

    def __len__(self) -> int:
        return len(self._generators)

    def normal(self, shape: Sequence[int] = (), dtype: torch.dtype = torch.float32) -> Tensor:
        """Standard normal values [B, *shape]."""
        return self._stack(lambda g: torch.randn(tuple(shape), generator=g, dtype=dtype))

    def uniform(self, shape: Sequence[int] = (), dtype: torch.dtype = torch.float32) -> Tensor:
        """Uniform values in [0, 1): [B, *shape]."""
        return self._stack(lambda g: torch.rand(tuple(shape), generator=g, dtype=dtype))

    def gamma(self, concentration: float) -> Tensor:
        """Gamma(concentration, rate 1) in float64: [B]."""
        parameter = torch.tensor(concentration, dtype=torch.float64)
        return self._stack(lambda g: torch._standard_gamma(parameter, generator=g))

    def integers(self, high: int) -> Tensor:
        """Uniform integers in [0, high): [B]."""
        return self._stack(lambda g: torch.randint(high, (), generator=g))

    def one_hot(self, classes: int) -> Tensor | None:
        """Random classes as one-hot rows [B, classes]; None if there are no classes."""
        if not classes:
            return None
        return torch.nn.functional.one_hot(self.integers(classes), classes).to(torch.float32)

    def _stack(self, draw: Callable[[torch.Generator], Tensor]) -> Tensor:
        drawn = torch.stack([draw(g) for g in self._generators])
        if self.device.type == "cuda":
            drawn = drawn.pin_memory()  # otherwise the copy waits for the device
        return drawn.to(self.device, non_blocking=True)


def derived_seed(purpose: str, index: int = 0) -> int:
    """A 32-bit seed from a hash of purpose and index. Two of n seeds are equal with probability of about n²/2^33."""
    return int.from_bytes(blake2b(f"{purpose}/{index}".encode(), digest_size=4).digest(), "little")
