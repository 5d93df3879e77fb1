"""Checks of the contracts in `registry.api`, for plugin authors to call in their tests. They need no test framework.

Each check returns None, or raises AssertionError with one line: what is wrong, and what would be right.
"""

from __future__ import annotations

import importlib
import math
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn

from registry.core.contracts import Domain, KnowsLevels, Loss, Metric, Noise, RealBatch, Teacher, Tracker, hidden_network
from registry.core.settings import NoiseConfig
from registry.core.streams import Streams
from registry.plugins.component import Component, Published, named
from registry.plugins.loading import components, load_plugins
from registry.sample.heun import heun, level_range, teacher_levels
from registry.train.step import mode

B = 4
"""Images in each test batch."""


def check_plugin(module: str) -> None:
    """Check a plugin's module: valid hooks and components, builders that exist, settings with descriptions, no import of torch."""
    found = components(importlib.import_module(module), module)
    demand(bool(found), f"{module} registers nothing; a hook is a function like register_losses, marked @hookimpl")
    for kind, component in found:
        name = f"{kind} {component.name!r}"
        if not isinstance(component, Published) and isinstance(component.build, str):
            demand(
                is_there(component.build),
                f"{name}: build = {component.build!r} does not name a function; write 'package.module:function'",
            )
        if not isinstance(component, Component):
            continue
        mute = [key for key, field in component.config.model_fields.items() if not field.description]
        demand(not mute, f"{name}: {', '.join(mute)} in {component.config.__name__} lacks Field(description=...), which users see")
    code = f"import sys, {module}; sys.exit(3 * ('torch' in sys.modules))"
    status = subprocess.run([sys.executable, "-c", code], check=False).returncode
    demand(status != 3, f"importing {module} imports torch; give `build` as 'module:function' and import torch in that module")
    demand(status == 0, f"python -c 'import {module}' fails; a plugin's module must be importable by its name")


def is_there(build: str) -> bool:
    """Whether "module:function" names something that can be called. Raises ImportError if there is no such module."""
    try:
        return callable(named(build))
    except AttributeError:
        return False


def build(kind: str, name: str, domain: Domain | None = None, **settings: Any) -> Any:
    """A registered component, built as a recipe would build it: `build("teacher", "edm", source="digits_dinf")`.

    Noises, losses and metrics are built for a `domain`; a teacher is itself a domain. Raises UserError for an unknown component.
    """
    component = load_plugins().find(kind, name).component
    assert isinstance(component, Component)
    return component.make(component.config.model_validate(settings), *([] if domain is None else [domain]))


def check_teacher(teacher: Teacher, noise: Noise | None = None) -> None:
    """Check a teacher's facts, denoiser and trainable copy. It must be trained: an untrained VP network gives huge values.

    The levels of `noise` are used, by default those of `registry.api.NoiseConfig`.
    """
    denoiser, sigma_data = teacher.denoiser, teacher.sigma_data
    demand(isinstance(denoiser, nn.Module), f"teacher.denoiser is a {type(denoiser).__name__}; it must be a torch.nn.Module")
    demand(teacher.D > 0, f"teacher.D = {teacher.D}; it must be a positive number, inf for diffusion")
    shape = teacher.image_shape
    demand(
        isinstance(shape, tuple) and len(shape) == 3 and all(type(n) is int and n > 0 for n in shape),
        f"teacher.image_shape = {shape!r}; it must be a tuple (C, H, W) of positive integers",
    )
    demand(
        type(teacher.label_dim) is int and teacher.label_dim >= 0, f"teacher.label_dim = {teacher.label_dim!r}; 0 means no labels"
    )
    demand(0 < sigma_data < math.inf, f"teacher.sigma_data = {sigma_data}; it must be the data's standard deviation")
    path = teacher.path
    demand(path is None or isinstance(path, Path), f"teacher.path is {path!r}; it must be None or a pathlib.Path")
    demand(
        path is None or bool(teacher.weights),
        "teacher.path is given without teacher.weights; without this hash, saved numbers would be reused after the weights change",
    )
    if noise is not None:
        demand(noise.D == teacher.D, f"noise.D = {noise.D}, teacher.D = {teacher.D}; they must agree")
    levels = noise or NoiseConfig()
    if isinstance(denoiser, KnowsLevels):
        _check_levels(denoiser)
    with mode(denoiser, train=False, grad=False):
        x, labels = _check_answers(teacher, levels)
        _check_denoising(teacher, levels, labels)
        _check_copy(teacher, x, labels)


def _check_levels(denoiser: KnowsLevels) -> None:
    """Check the range of a denoiser that knows only some noise levels, and that it rounds to levels that it keeps."""
    low, high = denoiser.sigma_min, denoiser.sigma_max
    demand(0 <= low < high, f"the denoiser has sigma_min = {low}, sigma_max = {high}; it must be 0 ≤ sigma_min < sigma_max")
    sigma = torch.tensor([max(low, 0.01), min(high, 50.0)], dtype=torch.float64)
    rounded = denoiser.round_sigma(sigma)
    like(rounded, sigma, "denoiser.round_sigma(sigma)", "sigma")
    same(denoiser.round_sigma(rounded), rounded, "denoiser.round_sigma changes a level that it has rounded")


def _check_answers(teacher: Teacher, levels: Noise | NoiseConfig) -> tuple[Tensor, Tensor | None]:
    """Check shape, determinism, independence and gradient; returns the test input [B, C, H, W] and its labels."""
    device, sigma_data = _device(teacher.denoiser), teacher.sigma_data
    rng = Streams(range(B), device)
    labels = rng.one_hot(teacher.label_dim)
    lowest, highest = level_range(teacher.denoiser, levels)
    sigma = torch.tensor([lowest, sigma_data, levels.sigma_init, highest], device=device)
    x = (sigma_data + sigma).reshape(-1, 1, 1, 1) * rng.normal(teacher.image_shape)

    f = teacher.denoiser(x, sigma, labels)
    like(f, x, "the denoiser's output")
    demand(bool(f.isfinite().all()), f"the denoiser's output is not finite at sigma = {sigma.tolist()}")
    same(teacher.denoiser(x, sigma, labels), f, "in eval mode the denoiser gives different results for the same input")
    single = torch.cat([teacher.denoiser(x[i : i + 1], sigma[i : i + 1], None if labels is None else labels[i : i + 1])
                        for i in range(B)])  # fmt: skip
    same(single, f, "the denoiser's output depends on the batch; each image must be denoised alone, with its own sigma and label")
    same(
        teacher.denoiser(x.double(), sigma.double(), labels).to(f.dtype),
        f,
        "the denoiser gives different results for float64, which the sampler uses",
    )
    if labels is not None:
        other = teacher.denoiser(x, sigma, labels.roll(1, dims=1))
        demand(not torch.equal(other, f), "labels do not change the denoiser's output; set label_dim = 0, or use the labels")
    x = x.requires_grad_()
    f = teacher.denoiser(x, sigma, labels)
    demand(f.requires_grad, "no gradient flows through the denoiser to x; it must not run under torch.no_grad or detach")
    (gradient,) = torch.autograd.grad(f.sum(), x)
    demand(bool(gradient.isfinite().all() and gradient.any()), "the denoiser's gradient with respect to x is zero or not finite")
    return x.detach(), labels


@torch.no_grad()
def _check_denoising(teacher: Teacher, levels: Noise | NoiseConfig, labels: Tensor | None) -> None:
    """Check f ≈ E[x₀ | x] on the denoiser's own samples, at levels where every denoiser must be accurate."""
    device, sigma_data, shape = _device(teacher.denoiser), teacher.sigma_data, teacher.image_shape
    z, steps = Streams(range(B), device).normal(shape), teacher_levels(teacher.denoiser, levels, 18)
    lowest, highest = level_range(teacher.denoiser, levels)

    def f(x: Tensor, sigma: float) -> Tensor:
        answer: Tensor = teacher.denoiser(x, torch.full((B,), sigma, device=device), labels)
        return answer

    far = rms(f(highest * z, highest))
    demand(
        far <= 10 * sigma_data,
        f"from pure noise at sigma_max = {highest:g} the denoiser gives values of {far:.3g} (root mean square); it "
        f"must give about the data's mean (is it trained there? is sigma the noise's standard deviation, and x not rescaled?)",
    )
    x = heun(teacher.denoiser, float(steps[0]) * z, steps, labels).to(z.dtype)
    noise = Streams(range(B, 2 * B), device).normal(shape)
    near = rms(f(x + lowest * noise, lowest) - x)
    demand(
        near <= 0.1 * sigma_data + 2 * lowest,
        f"at sigma_min = {lowest:g} the denoiser moves a clean image by {near:.3g} (root mean square); it must leave it "
        "almost unchanged (does it return the image, not epsilon, v or a score?)",
    )
    sigma = 5 * sigma_data
    error = rms(f(x + sigma * noise, sigma) - x)
    demand(
        error < sigma,
        f"noise of sigma = {sigma:g} is denoised with an error of {error:.3g} (root mean square); it must get closer to the image",
    )


def _check_copy(teacher: Teacher, x: Tensor, labels: Tensor | None) -> None:
    """Check that teacher.copy() is trainable, computes the same function, and shares no tensors."""
    one, two = teacher.copy().eval(), teacher.copy().eval()
    parameters = list(one.parameters())
    demand(bool(parameters), "teacher.copy() has no parameters; give Teacher(trainable=...), which makes a network to train")
    demand(all(p.requires_grad for p in parameters), "teacher.copy() has frozen parameters; all must require a gradient")
    owned = [{t.untyped_storage().data_ptr() for t in net.parameters()} for net in (teacher.denoiser, one, two)]
    demand(not (owned[0] & owned[1] or owned[1] & owned[2]), "copies of the teacher share parameters; each must have its own")
    sigma = torch.full((B,), teacher.sigma_data, device=x.device)
    f = one(x, sigma, labels)
    like(f, x, "the output of teacher.copy()")
    if teacher.trainable is None:
        same(f, teacher.denoiser(x, sigma, labels), "teacher.copy() does not compute the same function as the denoiser")
    f.square().mean().backward()
    demand(any(p.grad is not None and p.grad.any() for p in parameters), "no gradient reaches the parameters of teacher.copy()")


def check_noise(noise: Noise, image_shape: Sequence[int] = (1, 8, 8)) -> None:
    """Check a kernel: its levels, that each image draws only from its own stream, and the distribution of the distance."""
    demand(noise.D > 0, f"noise.D = {noise.D}; it must be a positive number, inf for the Gaussian")
    demand(
        0 < noise.sigma_min < noise.sigma_init <= noise.sigma_max < math.inf and noise.rho > 0,
        f"sigma_min = {noise.sigma_min}, sigma_init = {noise.sigma_init}, sigma_max = {noise.sigma_max}, rho = {noise.rho}; "
        "it must be 0 < sigma_min < sigma_init ≤ sigma_max < inf and rho > 0",
    )
    shape = tuple(image_shape)
    x = 0.5 * Streams(range(90, 90 + B)).normal(shape)
    sigma = torch.tensor([noise.sigma_min, 0.5, noise.sigma_init, noise.sigma_max])
    draws: dict[str, tuple[Callable[[Streams, slice], Tensor], tuple[int, ...]]] = {
        "prior": (lambda rng, at: noise.prior(shape, noise.sigma_init, rng), (B, *shape)),
        "perturb": (lambda rng, at: noise.perturb(x[at], sigma[at], rng), (B, *shape)),
        "student_sigma": (lambda rng, at: noise.student_sigma(rng), (B,)),
        "generator_sigma": (lambda rng, at: noise.generator_sigma(rng), (B,)),
    }
    for name, (draw, wanted) in draws.items():
        whole = draw(Streams(range(B)), slice(None))
        demand(whole.shape == wanted, f"noise.{name} gives shape {list(whole.shape)}, not {list(wanted)}")
        demand(whole.dtype == torch.float32, f"noise.{name} gives {whole.dtype}; it must be float32")
        demand(bool(whole.isfinite().all()), f"noise.{name} gives values that are not finite")
        same(draw(Streams(range(B)), slice(None)), whole, f"noise.{name} does not draw only from `rng`; use its normal, uniform …")
        single = torch.cat([draw(Streams([i]), slice(i, i + 1)) for i in range(B)])
        same(single, whole, f"noise.{name} gives an image different values in a batch than alone; draw only from its own stream")
    for name in ("student_sigma", "generator_sigma"):
        lowest = float(getattr(noise, name)(Streams(range(200))).min())
        demand(lowest > 0, f"noise.{name} gives {lowest:.3g}; noise levels must be positive")
    x = x.requires_grad_()
    weights = torch.arange(1.0, 1 + x.numel()).view_as(x)
    x_r = noise.perturb(x, sigma, Streams(range(B)))
    demand(x_r.requires_grad, "no gradient flows through noise.perturb to x")
    (gradient,) = torch.autograd.grad((weights * x_r).sum(), x)
    same(
        gradient,
        weights,
        "the derivative of noise.perturb with respect to x is not 1; x_r must be x plus noise that does not depend on x",
    )
    _check_law(noise, shape)


def _check_law(noise: Noise, shape: tuple[int, ...], draws: int = 2000) -> None:
    """Check mean and variance of b = R²/(R² + r²) ~ Beta(N/2, D/2), r = sigma·√D; at D = inf, of R²/sigma² ~ chi²(N).

    Unlike R² itself, b has moments at every D (PFGM++ App. B).
    """
    rng, N, D = Streams(range(draws)), math.prod(shape), noise.D
    sigma, x = torch.linspace(noise.sigma_min, noise.sigma_max, draws), torch.ones(draws, *shape)
    if math.isinf(D):
        what, mean, variance, excess = "|x_r − x|²/(N·sigma²)", 1.0, 2 / N, 12 / N
    else:
        p, q = N / 2, D / 2
        what, mean, variance = "R²/(R² + r²), r = sigma·√D,", p / (p + q), p * q / ((p + q) ** 2 * (p + q + 1))
        excess = 6 * ((p - q) ** 2 * (p + q + 1) / (p * q * (p + q + 2)) - 1) / (p + q + 3)
    for name, offset, level in (
        ("perturb", noise.perturb(x, sigma, rng) - x, sigma),
        ("prior", noise.prior(shape, noise.sigma_init, rng), torch.full((draws,), noise.sigma_init)),
    ):
        R2 = offset.double().flatten(1).square().sum(1) / level.double() ** 2
        b = R2 / N if math.isinf(D) else R2 / (R2 + D)
        for moment, found, wanted, error in (
            ("mean", float(b.mean()), mean, math.sqrt(variance / draws)),
            ("variance", float(b.var()), variance, variance * math.sqrt((excess + 2) / draws)),
        ):
            demand(
                abs(found - wanted) < 6 * error + 1e-4 * wanted,  # the second term is for rounding
                f"noise.{name}: the {moment} of {what} is {found:.4g} in {draws} draws; the kernel of D = {D:g} has {wanted:.4g}",
            )


def check_loss(loss: Loss, teacher: Teacher, noise: Noise, real: RealBatch | None = None) -> None:
    """Check both sides of a loss as the loop uses it, with a student that differs a little from the teacher.

    `real` holds four real images, for a loss that wants them.
    """
    hidden = hidden_network(loss)
    demand(hidden is None, f"the loss has a network in .{hidden} but is not a torch.nn.Module, so that network would not learn")
    denoiser, device = teacher.denoiser, _device(teacher.denoiser)
    student = _perturbed(teacher.copy())
    learning = nn.ModuleList([student, loss] if isinstance(loss, nn.Module) else [student])
    rng = Streams(range(90, 90 + B), device)
    images, every = teacher.sigma_data * rng.normal(teacher.image_shape), rng.one_hot(teacher.label_dim)

    def values(side: str, which: Sequence[int], x: Tensor) -> Tensor:
        own, labels = Streams(which, device), None if every is None else every[list(which)]
        beside = () if real is None else (real_rows(real, list(which)),)
        if side == "student":
            return loss.student(student, x, labels, noise, own, *beside)
        return loss.generator(denoiser, student, x, labels, noise, own, *beside)

    with mode(denoiser, train=False, grad=False), mode(learning, train=False):
        found = values("student", range(B), images)
        like(found, images, "loss.student's output")
        demand(bool(found.isfinite().all()), "loss.student's output is not finite")
        demand(found.requires_grad, "loss.student's output has no gradient with respect to the student's parameters")
        gradients = torch.autograd.grad(found.sum(), list(student.parameters()), allow_unused=True)
        moved = [g for g in gradients if g is not None]
        demand(all(bool(g.isfinite().all()) for g in moved), "the student's gradient is not finite")
        demand(any(bool(g.any()) for g in moved), "the student's gradient is zero; it must learn to denoise generated images")
        _check_alone(values, "student", images, found)
    with mode(denoiser, train=False, grad=False), mode(learning, train=False, grad=False):
        x = images.clone().requires_grad_()
        found = values("generator", range(B), x)
        like(found, images, "loss.generator's output")
        demand(bool(found.isfinite().all()), "loss.generator's output is not finite")
        demand(found.requires_grad, "loss.generator's output has no gradient with respect to x, through which the generator learns")
        (gradient,) = torch.autograd.grad(found.sum(), x)
        demand(bool(gradient.isfinite().all()), "the gradient of loss.generator with respect to x is not finite")
        demand(
            bool(gradient.flatten(1).any(1).all()),
            "the gradient of loss.generator with respect to x is zero for some image, although student and teacher differ",
        )
        _check_alone(values, "generator", images, found)
        for i in range(B):
            alone = images[i : i + 1].clone().requires_grad_()
            (own,) = torch.autograd.grad(values("generator", [i], alone).sum(), alone)
            same(own, gradient[i : i + 1], "an image's gradient of loss.generator depends on its batch", 1e-3)


def real_rows(real: RealBatch, which: list[int]) -> RealBatch:
    """Some of the real images, with their labels."""
    return RealBatch(real.x[which], None if real.labels is None else real.labels[which])


def _check_alone(values: Any, side: str, x: Tensor, found: Tensor) -> None:
    """Check that the values depend only on the image and its stream."""
    same(values(side, range(B), x), found, f"loss.{side} gives different results for the same input; draw only from `rng`", 1e-3)
    alone = torch.cat([values(side, [i], x[i : i + 1]) for i in range(B)])
    same(alone, found, f"loss.{side} gives an image a different value in a batch than alone; leave reductions to the loop", 1e-3)


def check_metric(metric: Metric, image_shape: Sequence[int]) -> None:
    """Check a metric: each row depends only on its image, and the numbers have the names in `columns`."""
    demand(bool(metric.columns), "metric.columns is empty; it must name the numbers, of which the first picks the best snapshot")
    strange = set(metric.higher) - set(metric.columns)
    demand(not strange, f"metric.higher names {', '.join(sorted(strange))}; it may name only `columns`")
    images = (0.5 * Streams(range(4 * B)).normal(image_shape)).clamp(-1, 1)
    rows = metric.embed(images)
    demand(isinstance(rows, Tensor), f"metric.embed gives a {type(rows).__name__}; it must be a tensor [n, d]")
    demand(rows.ndim == 2 and len(rows) == len(images), f"metric.embed gives shape {list(rows.shape)}, not [{len(images)}, d]")
    demand(rows.device.type == "cpu", f"metric.embed gives rows on {rows.device}; they must be on the CPU")
    alone = torch.cat([metric.embed(images[i : i + 1]) for i in range(len(images))])
    same(alone, rows, "metric.embed gives an image a different row in a batch than alone; only metric.compare may use all images")
    for what, found in (("compare", metric.compare(rows)), ("floor", metric.floor(0))):
        if what == "compare" or found:  # the floor may be unknown
            wanted = ", ".join(metric.columns)
            demand(list(found) == list(metric.columns), f"metric.{what} gives {', '.join(found)}; `columns` names {wanted}")
            demand(all(type(v) is float and not math.isnan(v) for v in found.values()), f"metric.{what} must give floats: {found}")


def check_tracker(tracker: Tracker) -> None:
    """Check a tracker: it takes a new run and one that goes on, numbers that are NaN, and a picture."""
    with tempfile.TemporaryDirectory() as parent:
        folder = Path(parent) / "00000-check"
        folder.mkdir()
        Image.new("RGB", (16, 8)).save(folder / "fakes_000000.png")
        for nimg in (0, 1000):
            tracker.begin(folder, {"train": {"batch": 8, "lr": 1e-4}, "eval": {"metrics": ["fid"]}}, nimg)
            tracker.numbers(nimg + 1000, {"Loss/student": 1.0, "Metric/fid": math.nan})
            tracker.picture(nimg + 1000, "fakes", folder / "fakes_000000.png")
            tracker.end()


def _perturbed(net: nn.Module) -> nn.Module:
    """The network with its parameters changed a little, in the same way every time."""
    rng = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for p in net.parameters():
            noise = torch.randn(p.shape, generator=rng).to(p)
            p.mul_(1 + 0.1 * noise).add_(0.01 * noise)
    return net


def _device(net: nn.Module) -> torch.device:
    return next((t.device for t in (*net.parameters(), *net.buffers())), torch.device("cpu"))


def rms(x: Tensor) -> float:
    """Root mean square of all values; infinite if one is not finite."""
    value = float(x.double().square().mean().sqrt())
    return value if math.isfinite(value) else math.inf


def demand(true: bool, sentence: str) -> None:
    """Raise AssertionError with this sentence unless `true` (`python -O` would remove an `assert`)."""
    if not true:
        raise AssertionError(sentence)


def like(found: Any, wanted: Tensor, what: str, whose: str = "x") -> None:
    """Check that both have the same shape and dtype."""
    demand(isinstance(found, Tensor), f"{what} is a {type(found).__name__}; it must be a tensor like {whose}")
    demand(found.shape == wanted.shape, f"{what} has shape {list(found.shape)}; it must have {whose}'s, {list(wanted.shape)}")
    demand(found.dtype == wanted.dtype, f"{what} is {found.dtype}; it must have {whose}'s type, {wanted.dtype}")


def same(found: Tensor, wanted: Tensor, sentence: str, tolerance: float = 1e-4) -> None:
    """Check that both are equal up to rounding, image by image, relative to the image's largest value."""
    size = wanted.detach().abs().flatten(1).amax(1) if wanted.ndim > 1 else wanted.detach().abs()
    error = (found - wanted).detach().abs()
    error = error.flatten(1).amax(1) if error.ndim > 1 else error
    worst = float((error / size.clamp(min=1e-12)).max())
    demand(worst <= tolerance, f"{sentence} (relative difference {worst:.2g})")
