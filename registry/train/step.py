"""One optimiser step on a batch that arrives in parts, for every network that learns.

`accumulate` reduces a part's loss, guards it and differentiates it; `step` adds up over processes, guards, and steps.

All guards against non-finite values are here. An image whose loss is not finite is dropped from the sum; where the gradient
goes through the images (the generator's step), that of a dropped image becomes 0. A gradient value that is not finite is
replaced (EDM, SiD): so one bad image in the student's step can cost that step. Both are counted.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from registry.core import distributed
from registry.core.errors import BrokenContract, Diverged, Interrupted, Lost, UserError, is_out_of_memory
from registry.core.float64 import wide
from registry.core.interruption import leave_if_copied
from registry.core.sharding import is_split, local, split_state
from registry.core.text import shown
from registry.train.losses import of_images
from registry.train.reduction import GradientSum

AT_ONCE = 16
"""Tensors of a gradient that are looked through together."""


MOMENTS = {"step", "exp_avg", "exp_avg_sq"}
"""What Adam keeps of a parameter."""


class Adam(torch.optim.Adam):
    """torch's Adam without the wrappers for torch.compile around these methods: the first call of one loads the compiler, which
    takes seconds."""

    add_param_group = inspect.unwrap(torch.optim.Adam.add_param_group)
    zero_grad = inspect.unwrap(torch.optim.Adam.zero_grad)
    state_dict = inspect.unwrap(torch.optim.Adam.state_dict)
    step = torch.no_grad()(inspect.unwrap(torch.optim.Adam.step))

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over the moments. The settings stay the recipe's, and are not those of the run before. Raises ValueError."""
        groups, parameters = self.state_dict()["param_groups"], [p for group in self.param_groups for p in group["params"]]
        if [group["params"] for group in state_dict["param_groups"]] != [group["params"] for group in groups]:
            raise ValueError("it is an optimiser of other parameters")
        for i, of in state_dict["state"].items():
            if i not in range(len(parameters)):
                raise ValueError("it is an optimiser of more parameters")
            if not (isinstance(of, dict) and {*of} == MOMENTS and all(isinstance(value, Tensor) for value in of.values())):
                raise ValueError("these are no moments of Adam's")
            if {of["exp_avg"].shape, of["exp_avg_sq"].shape} != {parameters[i].shape} or of["step"].numel() != 1:
                raise ValueError("Adam's moments have other shapes")
        alike = {i: laid_out(of, parameters[i]) for i, of in state_dict["state"].items()}
        moments = {i: split_state(of, dict.fromkeys(of, parameters[i])) for i, of in alike.items()}
        inspect.unwrap(torch.optim.Adam.load_state_dict)(self, {"param_groups": groups, "state": moments})


def laid_out(moments: dict[str, Tensor], parameter: Tensor) -> dict[str, Tensor]:
    """The moments as they must lie in memory: torch's fused Adam takes them for as dense as the parameter, and in its order."""
    found = dict(moments)
    for name, value in moments.items():
        if name != "step" and value.stride() != parameter.stride():
            dense = torch.empty_strided(parameter.shape, parameter.stride(), dtype=value.dtype, device=value.device)
            found[name] = dense.copy_(value)
    return found


class Learner:
    """A network with its Adam optimiser, and a tally of losses and guards.

    `model` is what is called, and `net` the network in it that learns: the generator calls its network K times, for others the
    two are the same. `batch` is the number of images of one step over all parts and processes: the loss is summed over values
    and averaged over images, times `scaling` (EDM, SiD). A gradient longer than `clip` is shortened to it. `companion` is a network
    that a loss trains along with this one.
    """

    def __init__(
        self,
        model: nn.Module,
        batch: int,
        lr: float,
        betas: tuple[float, float] = (0.0, 0.999),
        eps: float = 1e-8,
        scaling: float = 1.0,
        clip: float | None = None,
        net: nn.Module | None = None,
        companion: nn.Module | None = None,
    ) -> None:
        self.model, self.net, self.companion = model, model if net is None else net, companion
        self.batch, self.lr, self.scaling, self.clip = batch, lr, scaling, clip
        self.modules = nn.ModuleList([self.net] if companion is None else [self.net, companion])
        self.parameters = list(self.modules.parameters())
        self.types = {name: p.dtype for name, p in self.modules.named_parameters()}
        self.optimiser = Adam(self.parameters, lr=lr, betas=betas, eps=eps, fused=True)
        self.tally = Tally(next(self.net.parameters()).device)
        self.mode = Mode(self.modules)
        self.seen = 0  # images of this step so far, of this process
        self.over_processes: GradientSum | None = None
        self.sums = torch.zeros(2, device=self.tally.device)  # of this step: the loss, images dropped

    def __call__(self, *args: Any) -> Any:
        return self.model(*args)

    def accumulate(self, values: Tensor, x: Tensor | None = None, leaf: Tensor | None = None, shared: bool = False) -> None:
        """Add a part of the batch: its unreduced loss [b, C, H, W], and its images x if the gradient goes through them.

        `leaf`: the loss was computed from this copy of x. `shared`: another loss has used the same evaluations, so the gradient is
        that of this learner's weights only, and the activations are kept for the other.
        """
        reduced, finite = reduce(values, self.batch)
        if x is not None:
            shield(x, finite)
        self.seen += len(values)
        try:
            with self.summing(last=self.seen * distributed.world_size() >= self.batch):
                if x is not None and leaf is not None:
                    x.backward(*torch.autograd.grad(self.scaling * reduced, leaf))
                else:
                    (self.scaling * reduced).backward(inputs=self.parameters if shared else None, retain_graph=shared)
        except Exception as error:
            if "hooks should return None" in str(error):
                raise UserError("a hook on a weight gives something; such a hook must give nothing") from None
            if "backward through the graph a second time" in str(error):
                raise BrokenContract("a loss must not go backward through its own graph: the host does") from None
            if "modified by an inplace operation" in str(error):
                what = "a network or a loss writes to a tensor that is needed for its gradient"
                raise UserError(f"{what} (unless memory is 'full', a part of a network must not write to its input)") from None
            if not values_are_at_fault(error):
                raise
            raise BrokenContract(f"going backward from its values fails: {type(error).__name__}: {shown(error, 200)}") from error
        self.sums = self.sums + torch.stack([reduced.detach(), (~finite).sum()])

    @contextmanager
    def summing(self, last: bool) -> Iterator[None]:
        """For a backward pass: with the `last` of a step the gradients are summed over processes, each as soon as it is there."""
        if distributed.world_size() == 1 or all(map(is_split, self.parameters)):  # what is split is summed by torch
            yield
            return
        if self.over_processes is None:
            self.over_processes = GradientSum(parameter for parameter in self.parameters if not is_split(parameter))
        with self.over_processes.completing() if last else nullcontext():
            yield

    def step(self, rate: float = 1.0) -> None:
        """One Adam step at `rate` times the learning rate, on what all processes have accumulated. Raises UserError without any."""
        if all(p.grad is None for p in self.parameters):
            raise UserError("no weight got a gradient: the loss's values do not depend on the network that learns from them")
        for group in self.optimiser.param_groups:
            group["lr"] = self.lr * rate
        if self.over_processes is not None:
            self.over_processes.finish()
        self.seen = 0
        values = sum(p.grad.numel() for p in self.parameters if p.grad is not None)
        repaired, norm = guard_gradients(self.parameters, self.clip)
        self.optimiser.step()
        self.optimiser.zero_grad(set_to_none=True)
        distributed.spread(self.modules.buffers())  # statistics of a batch are those of the first process's images, as in DDP
        loss, dropped = distributed.sum_(self.sums)
        self.tally.add(loss, dropped, norm, self.batch, repaired, values)
        self.sums = torch.zeros_like(self.sums)

    def changed_type(self) -> str | None:
        """A weight that is of another type than at the start, in words; None if there is none."""
        for name, p in self.modules.named_parameters():
            if p.dtype != self.types.get(name, p.dtype):
                return f"{name.partition('.')[2]} has become {str(p.dtype).removeprefix('torch.')}"
        return None

    def forget(self) -> None:
        """Let go of the moments; it will not learn any more."""
        self.optimiser.state.clear()

    def state_dict(self) -> dict[str, Any]:
        companion = {} if self.companion is None else {"companion": self.companion.state_dict()}
        lost = {"lost steps": count} if (count := int(self.tally.lost.item())) else {}
        return {"net": self.net.state_dict(), "optimiser": self.optimiser.state_dict(), **companion, **lost}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.net.load_state_dict(split_state(state["net"], self.net.state_dict()))
        if self.companion is not None:
            self.companion.load_state_dict(state["companion"])
        self.optimiser.load_state_dict(state["optimiser"])
        self.tally.lost = torch.full_like(self.tally.lost, state.get("lost steps", 0))

    def steps(self) -> int:
        """How many there have been, in all, as Adam has counted them."""
        return max((int(moments["step"]) for moments in self.optimiser.state.values() if "step" in moments), default=0)


class Tally:
    """Sums kept on the device and read once per tick, so that no step waits for the device."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.dead = torch.zeros((), device=device)
        """The last steps without a single image left, in a row; ticks do not reset it."""
        self.lost = torch.zeros((), device=device)
        """The last steps, in a row, in which most values of the gradient were not finite."""
        self.clear()

    def revive(self) -> None:
        """Begin anew, after a rollback."""
        self.dead, self.lost = torch.zeros_like(self.dead), torch.zeros_like(self.lost)
        self.clear()

    def clear(self) -> None:
        self.losses = torch.zeros(3, dtype=wide(self.device), device=self.device)  # number, sum, sum of squares
        self.dropped = torch.zeros((), device=self.device)
        self.repaired = torch.zeros((), device=self.device)
        self.first = torch.zeros_like(self.losses[0])  # the first step that dropped an image, from 1
        self.norms = torch.zeros((), device=self.device)  # sum

    def add(self, loss: Tensor, dropped: Tensor, norm: Tensor, batch: int, repaired: Tensor, values: int) -> None:
        """A step's loss, the images dropped of its batch, the norm of its gradient, and how many of its values were replaced."""
        loss = loss.to(self.losses.dtype)
        self.losses += torch.stack([torch.ones_like(loss), loss, loss**2])
        self.dropped += dropped
        self.norms += norm
        self.repaired += repaired
        self.dead = torch.where(dropped >= batch, self.dead + 1, 0)
        self.lost = torch.where(2 * repaired > values, self.lost + 1, 0)
        self.first = torch.where((dropped > 0) & (self.first == 0), self.losses[0], self.first)

    def read(self) -> dict[str, float]:
        """{num, mean, std} of the loss, mean norm of the gradient, images dropped, the first step that dropped one (0: none), and
        gradient values replaced, over all processes; resets them to 0."""
        num, total, squares = self.losses.tolist()
        mean = total / max(num, 1)
        found = {
            "num": num,
            "mean": mean,
            "std": math.sqrt(max(squares / max(num, 1) - mean**2, 0)),
            "norm": self.norms.item() / max(num, 1),
            "dropped": self.dropped.item(),
            "first": self.first.item(),
            "repaired": self.repaired.item(),
        }
        self.clear()
        return found


def reduce(values: Tensor, batch: int) -> tuple[Tensor, Tensor]:
    """The sum of values [b, C, H, W] divided by `batch`, leaving out images that are not finite; and which are finite [b]."""
    per_image = values.flatten(1).sum(1)
    finite = per_image.isfinite()
    return torch.where(finite, per_image, 0).sum() / batch, finite


def checked(values: Tensor, x: Tensor, method: str) -> Tensor:
    """The values that a loss gives for images x [b, C, H, W], if it can be learned from them. Raises BrokenContract."""
    leave_if_copied()
    if not torch.is_grad_enabled():
        torch.set_grad_enabled(True)
        raise BrokenContract(f"{method}() turned gradients off for all that follows; use `with torch.no_grad():` instead")
    if not x.is_meta and torch.is_autocast_enabled(x.device.type):
        torch.set_autocast_enabled(x.device.type, False)
        raise BrokenContract(f"{method}() turned autocast on for all that follows; use `with torch.autocast(…):` instead")
    wanted = f"{method}() must give unreduced values of the images' shape, {tuple(x.shape)}"
    values = of_images(values, x, wanted)
    if not values.requires_grad:
        raise BrokenContract(f"{method}() gave values without a gradient, so there is nothing to learn from")
    return values


def values_are_at_fault(error: Exception) -> bool:
    """Whether a backward pass fails by what a loss has put into the graph, and not by the device, its memory or another process."""
    elsewhere = (UserError, Interrupted, Diverged, Lost, OSError)
    words = ("CUDA", "cuDNN", "NCCL", "gloo", "MPS backend")
    return not (isinstance(error, elsewhere) or is_out_of_memory(error) or any(word in str(error) for word in words))


def shield(x: Tensor, finite: Tensor) -> None:
    """The gradient of a dropped image, which may be NaN, becomes 0 before it reaches the network: x [b, C, H, W], finite [b]."""
    if x.requires_grad:
        x.register_hook(lambda gradient: torch.where(finite.reshape(-1, 1, 1, 1), gradient, 0))


def gradients(parameters: Iterable[nn.Parameter]) -> tuple[list[Tensor], list[Tensor]]:
    """The gradients that there are: the whole ones, and this process's parts of those that are split over the processes."""
    there = [p.grad for p in parameters if p.grad is not None]
    return [g for g in there if not is_split(g)], local(g for g in there if is_split(g))


@torch.no_grad()
def guard_gradients(parameters: Iterable[nn.Parameter], longest: float | None = None) -> tuple[Tensor, Tensor]:
    """Replace NaN by 0 and ±inf by ±1e5 in all gradients (EDM, SiD), and scale them down to `longest` together, if it is given.

    The number of values replaced, and the norm before they were scaled down. On a processor, where to read a value costs nothing, a
    finite norm says that there is nothing to replace.
    """
    whole, parts = gradients(parameters)
    bad, on_processor = torch.zeros((), dtype=torch.int64), all(g.device.type == "cpu" for g in [*whole, *parts][:1])
    norm = norm_of(whole, parts) if on_processor else None
    if norm is None or not norm.isfinite():
        bad = repaired(whole) + (distributed.sum_(repaired(parts)) if parts else 0)
        norm = norm_of(whole, parts)
    if longest is not None:
        torch._foreach_mul_(whole + parts, (longest / norm.clamp(min=1e-12)).clamp(max=1.0))
    return bad, norm


def norm_of(whole: list[Tensor], parts: list[Tensor]) -> Tensor:
    """The norm of all gradients together, of which the other processes have more parts."""
    norm = torch.nn.utils.get_total_norm(whole)
    return (norm**2 + distributed.sum_(torch.nn.utils.get_total_norm(parts) ** 2)).sqrt() if parts else norm


def repaired(found: list[Tensor]) -> Tensor:
    """The number of values replaced in these gradients, in place."""
    if not found:
        return torch.zeros((), dtype=torch.int64)
    # g − g is 0 where g is finite, and NaN elsewhere, which counts as not 0: much faster than isfinite() for many small tensors.
    some = (found[i : i + AT_ONCE] for i in range(0, len(found), AT_ONCE))  # all at once would take the memory of a gradient
    bad = torch.stack([torch.count_nonzero(nothing) for part in some for nothing in torch._foreach_sub(part, part)]).sum()
    for g in found:
        torch.nan_to_num(g, nan=0.0, posinf=1e5, neginf=-1e5, out=g)
    return bad


def cosine_rate(progress: float, decay: float) -> float:
    """1 until the last share `decay` of the run, then a cosine to 0; progress in [0, 1]."""
    if not decay or progress <= 1 - decay:
        return 1.0
    return 0.5 + 0.5 * math.cos(math.pi * (progress - (1 - decay)) / decay)


class Mode:
    """Switches a network to train or eval mode, and its parameters' gradients on or off; both are restored afterwards.

    Its modules and parameters are listed once: a training loop switches four times an iteration. Where no module has a `train` of
    its own, the flags are set past torch's `__setattr__`, which takes several times as long.
    """

    def __init__(self, net: nn.Module) -> None:
        self.net = net
        self.modules, self.parameters = list(net.modules()), list(net.parameters())
        self.usual = all(
            type(module).train is nn.Module.train and "train" not in vars(module) and "training" in vars(module)
            for module in self.modules
        )

    @contextmanager
    def __call__(self, train: bool | None = None, grad: bool | None = None) -> Iterator[nn.Module]:
        training = [module.training for module in self.modules]
        requires = [parameter.requires_grad for parameter in self.parameters]
        try:
            if train is not None and len({*training, train}) > 1:
                self._switch([train] * len(training)) if self.usual else self.net.train(train)
            if grad is not None:
                for parameter in self.parameters:
                    parameter.requires_grad = grad
            yield self.net
        finally:
            self._switch(training)
            if grad is not None:
                for parameter, did in zip(self.parameters, requires, strict=True):
                    parameter.requires_grad = did

    def _switch(self, to: list[bool]) -> None:
        for module, train in zip(self.modules, to, strict=True):
            if self.usual:
                vars(module)["training"] = train
            elif module.training != train:
                module.training = train


def mode(net: nn.Module, train: bool | None = None, grad: bool | None = None) -> AbstractContextManager[nn.Module]:
    """`Mode`, for once."""
    return Mode(net)(train, grad)


def own_image_numbers(first: int, batch: int, batch_gpu: int | None) -> Iterator[range]:
    """The image numbers of this process in the batch that starts at `first`, in parts of `batch_gpu`."""
    share = batch // distributed.world_size()
    start = first + distributed.rank() * share
    part = min(batch_gpu or share, share)
    for i in range(0, share, part):
        yield range(start + i, start + min(i + part, share))
