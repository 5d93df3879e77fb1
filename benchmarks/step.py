"""How fast an iteration is: SiD's own, transcribed, against ours, interleaved in one process.

python benchmarks/step.py --arch ddpmpp --size small --batch 8 [--device cuda] [--rounds 7] [--modes lean least bf16 compile]
    [--batch-gpu 4] [--baseline | --only-parts | --operators] [--csv FILE] [--picture FILE]

SiD's iteration is written as its paper and command describe it: float32, one Adam for each network, non-finite gradients replaced
and the average moved parameter by parameter, both losses read. At first both take one iteration from the same weights with the
same draws, and their losses are compared. The *floor* is the arithmetic alone, 11 forward passes: G 1 and student 3 (forward, and
backward twice that), then G 3, teacher 2 and student 2 (forward, and the backward to its input). *GiB at most*: a loop's
networks, averages and moments, and what an iteration adds to them, on a GPU by torch's allocator, elsewhere counted.
"""

from __future__ import annotations

import argparse
import copy
import csv
import datetime
import math
import platform
import statistics
import subprocess
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import NamedTuple, Protocol

import torch
from matplotlib.figure import Figure
from torch import Tensor, nn

from registry.builtin.loss import SiDLoss
from registry.builtin.noise import GaussianNoise
from registry.core.contracts import Teacher
from registry.core.streams import Streams
from registry.edm.architectures import build_network
from registry.recipe.tables import TrainConfig
from registry.runs.plan import held
from registry.show.figures import save_figure
from registry.train import loop
from registry.train.cost import cost, nbytes
from registry.train.ema import ema_beta
from registry.train.generator import Generator
from registry.train.passes import DTYPES
from registry.train.step import guard_gradients

SIZES: dict[str, tuple[int, int, dict[str, object]]] = {  # resolution, classes, settings of the network
    "small": (32, 0, dict(model_channels=32, channel_mult=[1, 2, 2], num_blocks=2, attn_resolutions=[16])),
    "cifar10": (32, 0, dict(model_channels=128, channel_mult=[2, 2, 2], num_blocks=4, attn_resolutions=[16])),
    "ffhq64": (64, 0, dict(model_channels=128, channel_mult=[1, 2, 2, 2], num_blocks=4, attn_resolutions=[16])),
    "imagenet64": (64, 1000, dict(model_channels=192, channel_mult=[1, 2, 3, 4], num_blocks=3, attn_resolutions=[32, 16, 8])),
}
MODES: dict[str, list[tuple[str, object]]] = {
    **{memory: [("memory", memory)] for memory in ("lean", "least")},
    **{precision: [("precision", precision)] for precision in DTYPES},
    "compile": [("compile", True)],
}
"""Settings of [train]."""
CHANNELS_LAST = "channels_last"
"""A mode that the package does not have: the weights of all networks in the layout [N, H, W, C]."""
PASSES = 11
WARM = 3
"""Rounds before the timed ones: a compiled network is compiled again when it is first called in another mode."""
Times = dict[str, list[float]]
"""Seconds of every round, by what was timed."""
ALPHA, SCALING, GENERATOR_SCALING = 1.2, 1.0, 100.0


class Draws(Protocol):
    """The random numbers of one step of one network, in the order in which it asks for them."""

    def prior(self) -> Tensor: ...
    def labels(self) -> Tensor | None: ...
    def student_sigma(self) -> Tensor: ...
    def generator_sigma(self) -> Tensor: ...
    def normal(self) -> Tensor: ...


class OnDevice:
    """As SiD draws them: whole batches, where they are needed."""

    def __init__(self, batch: int, net: nn.Module, device: torch.device, noise: GaussianNoise) -> None:
        self.shape = (batch, int(net.img_channels), int(net.img_resolution), int(net.img_resolution))
        self.classes, self.device, self.noise = int(net.label_dim), device, noise

    def normal(self) -> Tensor:
        return torch.randn(self.shape, device=self.device)

    def prior(self) -> Tensor:
        return self.noise.sigma_init * self.normal()

    def labels(self) -> Tensor | None:
        if not self.classes:
            return None
        return torch.eye(self.classes, device=self.device)[torch.randint(self.classes, self.shape[:1], device=self.device)]

    def student_sigma(self) -> Tensor:
        return (torch.randn(self.shape[0], device=self.device) * 1.2 - 1.2).exp()

    def generator_sigma(self) -> Tensor:
        t = torch.rand(self.shape[0], device=self.device) * 0.8
        low, high = 0.002 ** (1 / 7), 80 ** (1 / 7)
        return (high + (1 - t) * (low - high)) ** 7


class FromStreams(OnDevice):
    """Our own draws of a step."""

    def __init__(self, rng: Streams, net: nn.Module, noise: GaussianNoise) -> None:
        super().__init__(len(rng), net, rng.device, noise)
        self.rng = rng

    def normal(self) -> Tensor:
        return self.rng.normal(self.shape[1:])

    def labels(self) -> Tensor | None:
        return self.rng.one_hot(self.classes)

    def student_sigma(self) -> Tensor:
        return self.noise.student_sigma(self.rng)

    def generator_sigma(self) -> Tensor:
        return self.noise.generator_sigma(self.rng)


class SiD:
    """SiD's networks and optimisers, and its iteration (SiD Algorithm 1)."""

    def __init__(self, teacher: nn.Module, batch: int, config: TrainConfig) -> None:
        self.teacher = copy.deepcopy(teacher).eval().requires_grad_(False)
        self.student, self.generator = (copy.deepcopy(teacher).train().requires_grad_(True) for _ in range(2))
        self.average = copy.deepcopy(self.generator).eval().requires_grad_(False)
        self.batch, self.config, self.nimg = batch, config, 0
        betas, eps = config.betas, config.eps
        self.student_adam = torch.optim.Adam(self.student.parameters(), lr=config.lr, betas=betas, eps=eps)
        self.generator_adam = torch.optim.Adam(self.generator.parameters(), lr=config.glr, betas=betas, eps=eps)

    def iteration(self, first: Draws, second: Draws) -> tuple[float, float]:
        """Student, generator, average; both losses."""
        ones = torch.ones(self.batch, device=next(self.teacher.parameters()).device)
        self.generator.eval().requires_grad_(False)
        self.student.train().requires_grad_(True)
        z, labels = first.prior(), first.labels()
        with torch.no_grad():
            x = self.generator(z, 2.5 * ones, labels)
        sigma = first.student_sigma()
        f = self.student(x + sigma.reshape(-1, 1, 1, 1) * first.normal(), sigma, labels)
        weight = ((sigma**2 + 0.25) / (sigma * 0.5) ** 2).reshape(-1, 1, 1, 1)
        student_loss = self.step((weight * (f - x) ** 2).sum() / self.batch, SCALING, self.student, self.student_adam)

        self.student.eval().requires_grad_(False)
        self.generator.train().requires_grad_(True)
        z, labels = second.prior(), second.labels()
        x = self.generator(z, 2.5 * ones, labels)
        sigma = second.generator_sigma()
        x_r = x + sigma.reshape(-1, 1, 1, 1) * second.normal()
        f_star, f = self.teacher(x_r, sigma, labels), self.student(x_r, sigma, labels)
        weight = 1 / (x - f_star).abs().mean(dim=(1, 2, 3), keepdim=True).clamp(min=1e-5).detach()
        values = weight * ((f_star - f) * (f_star - x) - ALPHA * (f_star - f) ** 2)
        generator_loss = self.step(values.sum() / self.batch, GENERATOR_SCALING, self.generator, self.generator_adam)

        beta = ema_beta(self.batch, self.nimg, self.config.ema_halflife_kimg, self.config.ema_rampup_ratio)
        with torch.no_grad():
            for average, value in zip(self.average.parameters(), self.generator.parameters(), strict=True):
                average.copy_(value.lerp(average, beta))
            for average, value in zip(self.average.buffers(), self.generator.buffers(), strict=True):
                average.copy_(value)
        self.nimg += self.batch
        return student_loss, generator_loss

    def step(self, loss: Tensor, scaling: float, net: nn.Module, adam: torch.optim.Adam) -> float:
        adam.zero_grad(set_to_none=True)
        (scaling * loss).backward()
        for parameter in net.parameters():
            if parameter.grad is not None:
                torch.nan_to_num(parameter.grad, nan=0, posinf=1e5, neginf=-1e5, out=parameter.grad)
        adam.step()
        return float(loss.item())


def ours(teacher: nn.Module, config: TrainConfig, device: torch.device) -> loop.Distillation:
    channels, resolution = int(teacher.img_channels), int(teacher.img_resolution)
    noise, labels = GaussianNoise(), int(teacher.label_dim)
    domain = Teacher(copy.deepcopy(teacher), D=math.inf, image_shape=(channels, resolution, resolution), label_dim=labels)
    generator = Generator(domain.copy(), noise, domain.image_shape, labels)
    return loop.Distillation(domain, noise, SiDLoss(ALPHA), config, device, generator)


def compare(teacher: nn.Module, config: TrainConfig, device: torch.device) -> tuple[float, float]:
    """How far the losses of one iteration with the same draws are apart, relatively: student's, generator's."""
    sid, run = SiD(teacher, config.batch, config), ours(teacher, config, device)
    numbers, net, noise = range(config.batch), sid.teacher, GaussianNoise()
    draws = (
        FromStreams(Streams.derived(f"{config.seed}/{step}", numbers, device), net, noise) for step in ("student0", "generator")
    )
    wanted = sid.iteration(*draws)
    loop.iteration(run)
    found = (run.student.tally.read()["mean"], run.generator.tally.read()["mean"])
    return abs(found[0] / wanted[0] - 1), abs(found[1] / wanted[1] - 1)


def seconds(work: Callable[[], object], device: torch.device) -> float:
    """How long it takes, the device's work included."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    start = time.perf_counter()
    work()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - start


def parts(run: loop.Distillation, device: torch.device) -> Iterator[tuple[str, Callable[[], object]]]:
    """The pieces of our iteration, each alone."""
    batch, shape = run.train.batch, run.generator.model.image_shape
    x, sigma = torch.randn(batch, *shape, device=device), torch.ones(batch, device=device)
    labels = torch.eye(run.generator.model.label_dim, device=device)[:1].repeat(batch, 1) if run.generator.model.label_dim else None

    def draws() -> None:
        for purpose in ("student0", "generator"):
            for rng, _ in run.parts(purpose):
                run.noise.prior(shape, 2.5, rng)
                run.noise.student_sigma(rng)
                run.noise.perturb(x, sigma, rng)

    def forward() -> None:
        with torch.no_grad():
            run.teacher(x, sigma, labels)

    def backward() -> None:
        run.student.net(x, sigma, labels).square().sum().backward()

    def through() -> None:
        run.teacher(x.clone().requires_grad_(True), sigma, labels).square().sum().backward()

    def optimiser() -> None:
        run.student.optimiser.step()

    def guards() -> None:
        guard_gradients(run.student.modules.parameters())

    def switching() -> None:
        for learner in (run.student, run.generator):
            with learner.mode(train=False, grad=False), learner.mode(train=True, grad=True):
                pass

    yield "draws (of both steps)", draws
    yield "a forward pass", forward
    yield "forward and backward", backward
    yield "forward, and backward to the input", through
    yield "an optimiser's step (two are taken)", optimiser
    yield "guards of a step (two)", guards
    yield "the average", lambda: run.average.update(batch, 10**6)
    yield "train and eval mode, and back (both networks)", switching


def main(options: argparse.Namespace) -> None:
    device = torch.device(options.device)
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    torch.backends.cudnn.benchmark = True
    resolution, classes, settings = SIZES[options.size]
    settings = settings | {"dropout": 0.0}  # whose draws would be others in both loops
    teacher = build_network(options.arch, torch.inf, (3, resolution, resolution), classes, 0, **settings).to(device)
    awaken(teacher)
    config = TrainConfig(
        batch=options.batch, batch_gpu=options.batch_gpu, duration_kimg=1e6, generator_loss_scaling=GENERATOR_SCALING
    )
    count = sum(p.numel() for p in teacher.parameters()) / 1e6
    card = (
        torch.cuda.get_device_name(device) if device.type == "cuda" else f"{platform.machine()}, {torch.get_num_threads()} threads"
    )
    print(f"{options.arch}, {options.size}, {count:.1f} M parameters, batch {options.batch}, {card}, torch {torch.__version__}")
    print(f"{datetime.date.today()}, commit {commit()}, CUDA {torch.version.cuda}, {options.rounds} rounds")
    if not (options.only_parts or options.operators):
        apart = compare(teacher, config, device)
        print(f"losses of an iteration with the same draws differ by {apart[0]:.1e} (student), {apart[1]:.1e} (generator)")

    if options.operators:
        operators(teacher, config.batch, device)
        return
    ways = {} if options.only_parts else dict(loops(teacher, config, device, options))
    pieces = {} if options.baseline else dict(parts(ours(teacher, config, device), device))
    works = {name: way.work for name, way in ways.items()} | pieces
    for work in (*works.values(),) * WARM:
        seconds(work, device)
    times: Times = {name: [] for name in works}
    for _ in range(options.rounds):
        for name, work in works.items():
            times[name].append(seconds(work, device))
    report(times, list(ways), config.batch, {name: memory(way, device) for name, way in ways.items()}, options)


class Way(NamedTuple):
    """A loop: an iteration of it, what it holds between two in bytes, and whether what it takes can be counted."""

    work: Callable[[], object]
    held: int
    counted: bool


def loops(teacher: nn.Module, config: TrainConfig, device: torch.device, options: argparse.Namespace) -> Iterator[tuple[str, Way]]:
    """SiD's loop, ours, and ours in each mode."""
    sid, fresh = SiD(teacher, config.batch, config), OnDevice(config.batch, teacher, device, GaussianNoise())
    learning = nbytes(sid.student, sid.generator)
    yield "SiD's loop", Way(lambda: sid.iteration(fresh, fresh), nbytes(sid.teacher, sid.average) + 3 * learning, True)
    if options.baseline:
        return
    run = ours(teacher, config, device)
    yield "ours", Way(partial(loop.iteration, run), sum(held(run)), True)
    for mode in options.modes:
        other = ours(
            teacher, config.model_copy(update=dict(pair for name in mode.split("+") for pair in MODES.get(name, ()))), device
        )
        for net in (other.teacher, other.student.net, other.generator.net) if CHANNELS_LAST in mode else ():
            net.to(memory_format=torch.channels_last)
        yield f"ours, {mode}", Way(partial(loop.iteration, other), sum(held(other)), "compile" not in mode)


def commit() -> str:
    found = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, cwd=Path(__file__).parent, check=False
    )
    return found.stdout.strip() or "unknown"


def operators(net: nn.Module, batch: int, device: torch.device) -> None:
    """Shares of torch's operators in forward and backward passes of a network, by its profiler: the largest, and convolutions."""
    net.train().requires_grad_(True)
    x, sigma = torch.randn(batch, 3, net.img_resolution, net.img_resolution, device=device), torch.ones(batch, device=device)
    labels = torch.eye(net.label_dim, device=device)[:1].repeat(batch, 1) if net.label_dim else None

    def both() -> None:
        net(x, sigma, labels).square().sum().backward()

    for _ in range(WARM):
        both()
    with torch.profiler.profile() as profile:
        for _ in range(WARM):
            both()
    spent = {e.key: e.self_device_time_total if device.type == "cuda" else e.self_cpu_time_total for e in profile.key_averages()}
    total = sum(spent.values())
    table(["operator", "share"])
    for name, time_ in sorted(spent.items(), key=lambda of: -of[1])[:10]:
        row(name.removeprefix("aten::"), f"{time_ / total:.1%}")
    conv = {name: time_ for name, time_ in spent.items() if "conv" in name}
    backward = sum(time_ for name, time_ in conv.items() if "backward" in name.lower())
    row("backward of all convolutions, × forward", f"{backward / (sum(conv.values()) - backward):.2f}")


def awaken(net: nn.Module) -> None:
    """EDM's networks begin with outputs of 0, whose gradients are 0 too: weights of a usual size, as after training."""
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in net.parameters():
            if not parameter.any():
                parameter.normal_(std=0.02)


def memory(way: Way, device: torch.device) -> float | None:
    """What a loop takes at most, in GiB; None if that can be neither measured nor counted."""
    if device.type == "cuda":
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        way.work()
        return (way.held + torch.cuda.max_memory_allocated(device) - before) / 2**30
    return (way.held + cost(way.work).peak) / 2**30 if way.counted else None


def report(times: Times, ways: list[str], batch: int, peaks: dict[str, float | None], options: argparse.Namespace) -> None:
    """Tables in Markdown: medians, with the range of the rounds."""
    middle = {name: statistics.median(values) for name, values in times.items()}
    forward = middle.get("a forward pass", math.nan)
    table(["", "s/iteration", "range", "images/s", "× SiD's loop", "forward passes", "share of the floor", "GiB at most"])
    for name in ways:
        ratio = statistics.median(a / b for a, b in zip(times[ways[0]], times[name], strict=True))
        passes, share = middle[name] / forward, PASSES * forward / middle[name]
        span = f"{min(times[name]):.3f} to {max(times[name]):.3f}"
        peak = "" if peaks[name] is None else f"{peaks[name]:.2f}"
        row(name, f"{middle[name]:.3f}", span, f"{batch / middle[name]:.2f}", f"{ratio:.2f}", f"{passes:.1f}", f"{share:.0%}", peak)
    table(["alone", "ms", "share of the floor"])
    pieces = [name for name in times if name not in ways]
    for name in pieces:
        row(name, f"{1000 * middle[name]:.1f}", f"{middle[name] / (PASSES * forward):.1%}")
    if pieces:
        beside = sum(middle[name] * (2 if "(two" in name or "two are" in name else 1) for name in pieces if "forward" not in name)
        row("all of an iteration but the networks", f"{1000 * beside:.1f}", f"{beside / (PASSES * forward):.1%}")
    if options.csv:
        lines = [(name, i, value, peaks.get(name)) for name, values in times.items() for i, value in enumerate(values)]
        with open(options.csv, "w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows([("what", "round", "seconds", "GiB at most"), *lines])
    if options.picture and ways:
        draw(times, ways, PASSES * forward, options.picture)


def table(heads: list[str]) -> None:
    print()
    row(*heads)
    row(*["---"] * len(heads))


def row(*cells: str) -> None:
    print(f"| {' | '.join(cells)} |")


def draw(times: Times, ways: list[str], floor: float, path: Path) -> None:
    figure = Figure(figsize=(6, 1.0 + 0.5 * len(ways)), layout="constrained")
    axes = figure.subplots()
    axes.barh(ways, [statistics.median(times[name]) for name in ways], height=0.5)
    for i, name in enumerate(ways):
        axes.plot(times[name], [i] * len(times[name]), "|", color="black")
    axes.axvline(floor, linestyle="--", color="grey", label=f"{PASSES} forward passes")
    axes.set_xlabel("seconds for an iteration: median, and each round")
    axes.invert_yaxis()
    axes.legend(frameon=False)
    save_figure(path, figure)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--arch", choices=["ddpmpp", "ncsnpp", "adm"], default="ddpmpp")
    parser.add_argument("--size", choices=list(SIZES), default="small")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--batch-gpu", type=int, help="images at a time, of ours; SiD's loop takes the batch at once")
    alone = parser.add_mutually_exclusive_group()
    alone.add_argument("--baseline", action="store_true", help="SiD's loop alone")
    alone.add_argument("--operators", action="store_true", help="which of torch's operators a forward and backward pass goes to")
    alone.add_argument("--only-parts", action="store_true", help="the pieces of our iteration alone")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument(
        "--modes", nargs="*", default=[], help=f"also: {', '.join((*MODES, CHANNELS_LAST))}, or several joined by +: bf16+compile"
    )
    parser.add_argument("--csv", type=Path)
    parser.add_argument("--picture", type=Path)
    main(parser.parse_args())
