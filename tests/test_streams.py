"""The random streams: the generator's published answers, the laws of the draws, and what they depend on."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from scipy import stats

from registry.core.philox import MASK, cos_and_sin, log, philox
from registry.core.streams import Streams, TorchStreams

PI = (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344)
"""The first bits of π's fraction, of which the published tests are made."""
ANSWERS = {  # Random123, kat_vectors: philox4x32, 10 rounds
    "zeros": ((0,) * 4, (0,) * 2, "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
    "ones": ((MASK,) * 4, (MASK,) * 2, "408f276d 41c83b0e a20bc7c6 6d5451fd"),
    "pi": (PI, (0xA4093822, 0x299F31D0), "d16cfe09 94fdcceb 5001e420 24126ea1"),
}


@pytest.mark.parametrize("case", ANSWERS)
@pytest.mark.parametrize("array", [np.array, torch.tensor])
def test_the_generators_published_answers(case: str, array: Callable[[list[int]], object]) -> None:
    counter, key, answer = ANSWERS[case]
    words = philox([array([c]) for c in counter], key)
    assert " ".join(f"{int(word[0]):08x}" for word in words) == answer


def test_logarithm_cosine_and_sine() -> None:
    rng = np.random.default_rng(0)
    x = np.exp(rng.uniform(-40, 5, 100_000))
    np.testing.assert_allclose(log(np, x), np.log(x), rtol=1e-11, atol=1e-11)
    word = rng.integers(0, 2**32, 100_000)
    angle = 2 * np.pi * word / 2**32 - np.pi
    for found, exact in zip(cos_and_sin(np, word), (np.cos(angle), np.sin(angle)), strict=True):
        np.testing.assert_allclose(found, exact, atol=1e-11)


DRAWS: dict[str, Callable[[Streams], torch.Tensor]] = {
    "normal": lambda s: s.normal((2, 3)),
    "normal, float64": lambda s: s.normal((5,), torch.float64),
    "uniform": lambda s: s.uniform(),
    "uniform, float64": lambda s: s.uniform((3,), torch.float64),
    "gamma": lambda s: s.gamma(64.0),
    "integers": lambda s: s.integers(10),
}


class OnDevice:
    """torch, but for its square root on a processor: MKL's is not rounded as IEEE 754 says, unlike NumPy's and CUDA's."""

    def __getattr__(self, name: str) -> object:
        return getattr(torch, name)

    @staticmethod
    def sqrt(x: torch.Tensor) -> torch.Tensor:
        return torch.from_numpy(np.sqrt(x.numpy()))


@pytest.mark.parametrize("draw", DRAWS)
def test_tensors_of_a_device_get_the_bits_of_the_processors_arrays(draw: str) -> None:
    """All that a device does for a draw is done here by torch, too, whose operations are its own."""
    ours, theirs = Streams(range(300), purpose="7/student0"), Streams(range(300), purpose="7/student0")
    theirs._xp, theirs._low, theirs._high = OnDevice(), torch.from_numpy(ours._low), torch.from_numpy(ours._high)
    for _ in range(3):
        assert torch.equal(DRAWS[draw](ours), DRAWS[draw](theirs))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("draw", DRAWS)
def test_a_gpu_gets_the_processors_bits(draw: str) -> None:
    assert torch.equal(DRAWS[draw](Streams(range(300))), DRAWS[draw](Streams(range(300), "cuda")).cpu())


@pytest.mark.parametrize("draw", DRAWS)
@pytest.mark.parametrize("kind", [Streams, TorchStreams])
def test_an_image_draws_the_same_in_any_batch(draw: str, kind: Callable[[range], Streams]) -> None:
    whole, halves = DRAWS[draw](kind(range(12))), [DRAWS[draw](kind(range(i, i + 6))) for i in (0, 6)]
    assert torch.equal(whole, torch.cat(halves))
    assert torch.equal(whole[7:8], DRAWS[draw](kind(range(7, 8))))
    assert len(whole.reshape(12, -1).unique(dim=0)) > 6


@pytest.mark.parametrize("draw", DRAWS)
def test_large_draws_are_made_in_tiles_of_the_same_numbers(draw: str, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = DRAWS[draw](Streams(range(100)))
    monkeypatch.setattr("registry.core.streams.TILE", 7)
    assert torch.equal(whole, DRAWS[draw](Streams(range(100))))


@pytest.mark.parametrize("draw", DRAWS)
def test_purposes_seeds_and_draws_give_other_numbers(draw: str) -> None:
    def first(seed: int, purpose: str = "sample", skipped: int = 0) -> float:
        streams = Streams([seed], purpose=purpose)
        return [float(DRAWS[draw](streams).flatten()[0]) for _ in range(skipped + 1)][-1]

    seeds = (0, 1, 2**31, 2**32, 2**32 + 1, 2**63, -1)
    found = (
        [first(seed) for seed in seeds] + [first(0, f"{i}/student0") for i in range(7)] + [first(0, skipped=i) for i in range(1, 7)]
    )
    assert len(set(found)) == (len(found) if draw != "integers" else 10) or (draw == "integers" and len(set(found)) > 5)
    assert first(2**64 + 5) == first(5)


def ks(values: torch.Tensor, law: stats.rv_continuous) -> float:
    return float(stats.kstest(values.double().numpy().ravel(), law.cdf).pvalue)


def test_the_laws_of_the_draws() -> None:
    """Kolmogorov-Smirnov over streams, within a stream, and over purposes and draws."""
    many, one = Streams(range(20_000)), Streams([5])
    for _ in range(3):
        assert ks(many.normal(), stats.norm()) > 1e-3
        assert ks(one.normal((20_000,)), stats.norm()) > 1e-3
        assert ks(many.uniform(), stats.uniform()) > 1e-3
        assert ks(one.uniform((20_000,), torch.float64), stats.uniform()) > 1e-3
    purposes = torch.cat([Streams([0], purpose=f"{i}/generator").normal() for i in range(5000)])
    assert ks(purposes, stats.norm()) > 1e-3
    again = Streams([0])
    assert ks(torch.cat([again.normal() for _ in range(5000)]), stats.norm()) > 1e-3
    counts = torch.bincount(many.integers(10), minlength=10)
    assert stats.chisquare(counts.numpy()).pvalue > 1e-3
    assert many.integers(10).min() == 0


@pytest.mark.parametrize("concentration", [0.05, 0.25, 0.999, 1.0, 1.5, 21.5, 64.0, 1024.0, 5e5])
def test_the_gamma_is_exact(concentration: float) -> None:
    streams = Streams(range(40_000), purpose=f"gamma {concentration}")
    assert ks(streams.gamma(concentration), stats.gamma(concentration)) > 1e-3
    apart = torch.corrcoef(torch.stack([streams.gamma(concentration).log().clamp(min=-1e3) for _ in range(2)]))[0, 1]
    assert abs(apart) < 4.5 / math.sqrt(40_000)


def test_nothing_is_correlated() -> None:
    """Between neighbouring streams, places in a draw, draws, purposes; of the values, and of their squares."""
    n = 20_000
    streams = Streams(range(n + 1))
    a, b = streams.normal((8,)), streams.normal((8,))
    c = Streams(range(n + 1), purpose="another").normal((8,))
    columns = [*a[:-1].T, *a[1:].T, *b[:-1].T, *c[:-1].T]
    for x, y in itertools.combinations(columns, 2):
        for p, q in ((x, y), (x.square(), y.square())):
            assert abs(float(torch.corrcoef(torch.stack([p, q]))[0, 1])) < 5.5 / math.sqrt(n)


def test_far_seeds_and_long_draws_do_not_meet() -> None:
    """Words of 2^20 blocks, of neighbouring seeds, are all different (of 2^22 random words about 2,000 pairs are the same)."""
    words = philox([np.arange(2**20), 0, np.array([[3], [4]]), 0], (1, 2))
    blocks = (words[0] << 32) + words[1]
    assert len(np.unique(blocks)) == blocks.size


def test_torchs_draws_are_those_of_edms_script_on_a_processor() -> None:
    wanted = torch.stack([torch.randn(3, 8, 8, generator=torch.Generator().manual_seed(seed)) for seed in (0, 1, 7)])
    assert torch.equal(TorchStreams([0, 1, 7]).normal((3, 8, 8)), wanted)
