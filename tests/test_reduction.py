"""Gradients are summed over processes while the backward pass runs: the sums are those of one process, whatever the order."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from registry.train.reduction import GradientSum, split

Backward = Callable[[nn.Module, Tensor, int], None]
"""Backward passes of a network on some images, as one process makes them."""


def net() -> nn.Module:
    torch.manual_seed(3)
    return nn.ModuleDict({"a": nn.Linear(5, 5), "b": nn.Linear(5, 5), "spare": nn.Linear(5, 5)}).double()


def plain(model: nn.Module, x: Tensor, rank: int) -> None:
    model["b"](model["a"](x).tanh()).square().sum().backward()


def four_times(model: nn.Module, x: Tensor, rank: int) -> None:
    for _ in range(4):
        x = model["b"](model["a"](x).tanh())
    x.square().sum().backward()


def recomputed(model: nn.Module, x: Tensor, rank: int) -> None:
    for _ in range(3):
        x = checkpoint(lambda y: model["b"](model["a"](y).tanh()), x, use_reentrant=False)
    x.square().sum().backward()


def in_pieces(model: nn.Module, x: Tensor, rank: int) -> None:
    """A gradient arrives in two pieces within what counts as one backward pass, so its bucket may have left too early."""
    y = model["b"](model["a"](x).tanh())
    y.square().sum().backward(retain_graph=True)
    y.sum().backward()


def other_order(model: nn.Module, x: Tensor, rank: int) -> None:
    """The processes use the layers in another order."""
    first, second = ("a", "b") if rank == 0 else ("b", "a")
    model[second](model[first](x).tanh()).square().sum().backward()


def seldom(model: nn.Module, x: Tensor, rank: int) -> None:
    """A layer of which only process 1 makes use."""
    y = model["b"](model["a"](x).tanh())
    (y.square().sum() + (model["spare"](x).sum() if rank == 1 else 0)).backward()


CASES: dict[str, Backward] = {f.__name__: f for f in (plain, four_times, recomputed, in_pieces, other_order, seldom)}


def both(rank: int, folder: str) -> None:
    """What one of two processes does: every case, with buckets of many sizes; then the learners' own way."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    found: dict[str, object] = {}
    for name, backward in CASES.items():
        for size in (1, 200, 10**6):
            model = net()
            total, sent = GradientSum(model.parameters(), bucket_bytes=size), list[int]()
            for step in range(2):
                model.zero_grad()
                backward(model, images(rank, step, 0), rank)  # the first part of a batch: nothing is sent
                assert all(bucket.sum is None for bucket in total.buckets)
                with total.completing():
                    backward(model, images(rank, step, 1), rank)
                    sent.append(sum(bucket.sum is not None for bucket in total.buckets))
                total.finish()
            found[f"{name} {size}"] = {key: p.grad for key, p in model.named_parameters()}
            found[f"{name} {size} sent"] = sent[-1]
    torch.save(found, Path(folder) / f"{rank}.pt")
    dist.destroy_process_group()


def images(rank: int, step: int, part: int) -> Tensor:
    return torch.randn(4, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(100 * rank + 10 * step + part))


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, object]]:
    folder = tmp_path_factory.mktemp("processes")
    torch.multiprocessing.spawn(both, (str(folder),), nprocs=2)
    return [torch.load(folder / f"{rank}.pt") for rank in (0, 1)]


@pytest.mark.parametrize("size", [1, 200, 10**6])
@pytest.mark.parametrize("name", CASES)
def test_the_sum_of_two_processes_is_that_of_one(name: str, size: int, results: list[dict[str, object]]) -> None:
    model = net()
    for rank in (0, 1):
        for part in (0, 1):
            CASES[name](model, images(rank, 1, part), rank)
    for found in results:
        gradients = found[f"{name} {size}"]
        assert isinstance(gradients, dict)
        for key, parameter in model.named_parameters():
            if parameter.grad is None:
                assert gradients[key] is None, key
            else:
                torch.testing.assert_close(gradients[key], parameter.grad, rtol=1e-12, atol=1e-12)


def test_buckets_leave_before_the_backward_pass_is_over(results: list[dict[str, object]]) -> None:
    """In the second step all do: it is known by then which layer gets no gradient. A bucket waits for those of other processes."""
    for found in results:
        assert found["plain 1 sent"] == 6
        assert found["plain 200 sent"] == 3
        assert found["plain 1000000 sent"] == 1
    assert (results[0]["seldom 1 sent"], results[1]["seldom 1 sent"]) == (0, 6)


def test_a_bucket_is_of_one_type_and_not_much_larger_than_it_may_be() -> None:
    parameters = [nn.Parameter(torch.zeros(10, dtype=d)) for d in (torch.float32,) * 5 + (torch.float64,) * 2]
    parts = list(split(parameters, 80))
    assert [[p.dtype for p in part] for part in parts] == [
        [torch.float32] * 2, [torch.float32] * 2, [torch.float32], [torch.float64], [torch.float64],
    ]  # fmt: skip
    assert [p for part in parts for p in part] == parameters
