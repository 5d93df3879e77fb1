"""What plugins have built is checked before a run relies on it. Raises UserError, with the plugin's name."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from registry.core.contracts import Domain, Loss, Noise, Teacher
from registry.core.errors import BrokenContract, UserError
from registry.core.settings import can_be_spaced
from registry.core.streams import Streams
from registry.core.surroundings import ProcessSettings, autocasts, set_autocasts, settings_restored
from registry.core.text import cut, is_text, kind, shown, text_of
from registry.plugins.faults import fault_of
from registry.recipe.resolved import Choice
from registry.train.step import mode

MOST_SIDE, MOST_CLASSES = 2**16, 10**6
"""Far more than any teacher has."""


def check_facts(choice: Choice, teacher: Any) -> Teacher:
    """A teacher that says of itself what a domain must say."""
    demand(choice, isinstance(teacher, Teacher), f"its build must give a registry.api.Teacher, not a {kind(teacher)}")
    demand(choice, isinstance(teacher.denoiser, nn.Module), f"denoiser must be a torch.nn.Module, not a {kind(teacher.denoiser)}")
    for name, value, most in (("D", teacher.D, 1e300), ("sigma_data", teacher.sigma_data, 1e9)):
        right = type(value) in (int, float) and (0 < value <= most or (name, value) == ("D", math.inf))
        demand(choice, right, f"{name} must be a positive number, not {cut(text_of(value), 60)}")
    shape = teacher.image_shape
    right = isinstance(shape, tuple) and len(shape) == 3 and all(type(n) is int and 0 < n <= MOST_SIDE for n in shape)
    demand(choice, right, f"image_shape must be three positive integers (C, H, W), not {cut(text_of(shape), 60)}")
    for name, count in (("label_dim", teacher.label_dim), ("augment_dim", teacher.augment_dim)):
        right = type(count) is int and 0 <= count <= MOST_CLASSES
        demand(choice, right, f"{name} must be 0 or a number of labels, not {cut(text_of(count), 60)}")
    lines = teacher.remarks
    listed = isinstance(lines, tuple | list) and all(map(is_text, lines))
    demand(choice, listed, f"remarks must be lines of text, not {cut(text_of(lines), 60)}")
    for name, text in (("origin", teacher.origin), ("weights", teacher.weights)):
        demand(choice, is_text(text), f"{name} must be text, not {cut(text_of(text), 60)}")
    path = teacher.path
    named = path is None or (isinstance(path, Path) and path.name != "")
    demand(choice, named, f"path must be None or the pathlib.Path of its file, not {cut(text_of(path), 60)}")
    demand(choice, path is None or teacher.weights != "", "path needs weights, a hash of them: numbers beside the file are theirs")
    made = teacher.trainable
    demand(choice, made is None or callable(made), f"trainable must be None or make a network, not be a {kind(made)}")
    if teacher.images is not None:
        known = teacher.images
        right = isinstance(known, Tensor) and known.layout == torch.strided and known.is_floating_point()
        right = right and not known.is_meta and known.shape[1:] == shape
        demand(choice, right, f"images must be None or a tensor [M, {', '.join(map(str, shape))}], not a {kind(known)}")
    checked: Teacher = teacher
    check_state(choice, "denoiser", checked.denoiser)
    return checked


def check_state(choice: Choice, what: str, network: nn.Module) -> None:
    """Files hold a network's state as tensors of real numbers, by name."""
    for name, value in network.state_dict().items():
        demand(choice, isinstance(value, Tensor), f"{what}'s state must hold tensors alone, and {name} is a {kind(value)}")
        made = not is_lazy(value) and not value.is_meta and value.layout == torch.strided
        demand(choice, made, f"{what}'s state must hold plain tensors with numbers, and {name} is none")
        demand(choice, not value.is_complex(), f"{what}'s state must hold real numbers, and {name} is complex")


def check_trainable(choice: Choice, teacher: Teacher, noise: Noise, net: nn.Module) -> None:
    """What the teacher makes for student and generator is a network of its own, and denoises an image."""
    demand(choice, next(net.parameters(), None) is not None, "there are no parameters to train in a copy of its denoiser")
    shared = {id(p) for p in net.parameters()} & {id(p) for p in teacher.denoiser.parameters()}
    demand(choice, not shared, "a copy of its denoiser has weights of its own, and this one shares the teacher's")
    if teacher.trainable:
        check_answer(choice, teacher, net, noise.sigma_init, "trainable()")


@torch.no_grad()
def check_answer(choice: Choice, domain: Domain, net: nn.Module, sigma: float, name: str = "denoiser") -> None:
    """A network of the teacher's denoises one image, on its device."""
    device = next((tensor.device for tensor in (*net.parameters(), *net.buffers())), torch.device("cpu"))
    x = torch.ones(1, *domain.image_shape, device=device)
    labels = torch.zeros(1, domain.label_dim, device=device) if domain.label_dim else None
    with mode(net, train=False):
        try:
            f = net(x, torch.full((1,), sigma, device=device), labels)
        except TypeError as error:
            if fault_of(error):
                raise
            raise UserError(f"{choice.who}: {name} must be called as (x, sigma, labels): {shown(error, 200)}") from error
    check_tensor(choice, f"{name}(x, sigma, labels)", f, (1, *domain.image_shape))
    demand(choice, x.is_meta or bool((x == 1).all()), f"{name} writes to the images that it is given")


def check_noise(choice: Choice, noise: Any, shape: tuple[int, int, int]) -> None:
    """A noise whose levels are positive, and whose draws have the right shapes."""
    has = "prior, perturb, student_sigma, generator_sigma, D, sigma_init, sigma_min, sigma_max and rho"
    demand(choice, is_object(noise, Noise), f"its build must give an object with {has}, not a {kind(noise)}")
    for name, value in (("D", noise.D), ("sigma_init", noise.sigma_init), ("sigma_min", noise.sigma_min),
                        ("sigma_max", noise.sigma_max), ("rho", noise.rho)):  # fmt: skip
        demand(choice, type(value) in (int, float) and value > 0, f"{name} must be a positive number, not {value!r}")
    room = can_be_spaced(noise.sigma_min, noise.sigma_max, noise.rho)
    demand(choice, room, f"sigma^(1/rho) must leave numbers from sigma_min to sigma_max, and does not with rho = {noise.rho}")
    methods = {"prior": noise.prior, "perturb": noise.perturb,
               "student_sigma": noise.student_sigma, "generator_sigma": noise.generator_sigma}  # fmt: skip
    for name, method in methods.items():
        demand(choice, callable(method), f"{name} must be a method, not a {kind(method)}")
    n, rng, before = 2, Streams.derived("check", range(2)), ProcessSettings.now()
    x, sigma = torch.zeros(n, *shape), torch.full((n,), float(noise.sigma_init))
    calls: dict[str, tuple[Callable[[], Any], tuple[int, ...]]] = {
        "prior(shape, sigma, rng)": (lambda: noise.prior(shape, noise.sigma_init, rng), (n, *shape)),
        "student_sigma(rng)": (lambda: noise.student_sigma(rng), (n,)),
        "generator_sigma(rng)": (lambda: noise.generator_sigma(rng), (n,)),
        "perturb(x, sigma, rng)": (lambda: noise.perturb(x, sigma, rng), (n, *shape)),
    }
    for call, (made, wanted) in calls.items():
        with settings_restored():
            with told_of(choice):
                found = made()
            check_tensor(choice, call, found, wanted)
            demand_autocast(choice, before.autocast)
            changed = before.changed()
            demand(choice, changed is None, f"{call} has changed {changed}")


def check_loss(choice: Choice, loss: Any) -> Loss:
    """A loss that has both sides of the game."""
    demand(choice, is_object(loss, Loss), f"its build must give an object with student and generator, not a {kind(loss)}")
    checked: Loss = loss
    for name, method in (("student", checked.student), ("generator", checked.generator)):
        demand(choice, callable(method), f"{name} must be a method, not a {kind(method)}")
    if isinstance(checked, nn.Module):
        check_state(choice, "the loss", checked)
    return checked


def is_object(made: Any, contract: type) -> bool:
    """Whether this has all that a contract names, and is no class that was not called."""
    return isinstance(made, contract) and not isinstance(made, type)


def check_tensor(choice: Choice, call: str, found: Any, shape: tuple[int, ...], device: torch.device | None = None) -> None:
    what = "nested tensor" if isinstance(found, Tensor) else kind(found)
    plain = isinstance(found, Tensor) and not found.is_nested
    demand(choice, plain, f"{call} must give a tensor {list(shape)}, not a {what}")
    right = found.shape == shape and found.is_floating_point() and found.layout == torch.strided
    demand(choice, right, f"{call} must give {list(shape)}, and gave {list(found.shape)} of {found.dtype}, {found.layout}")
    there = device is None or found.device.type == device.type
    demand(choice, there, f"{call} must give a tensor on {device}, and gave one on {found.device}")


def demand_autocast(choice: Choice, before: dict[str, bool]) -> None:
    """Check that autocast is as it was; it is again afterwards."""
    left = autocasts() != before
    set_autocasts(before)
    demand(choice, not left, "turned autocast on for all that follows; use `with torch.autocast(…):` instead")


@contextmanager
def held(teacher: tuple[Choice, nn.Module] | None, choice: Choice, noise: Noise) -> Iterator[None]:
    """While a run goes on, all that its frozen teacher and its noise answer is held to what was checked at the start: a tensor of
    another shape could be broadcast without an error, and one that fails later would not be told with the plugin's name.

    Its methods may have further arguments, which a loss of the same plugin knows.
    """
    prior, perturb, student, generator = noise.prior, noise.perturb, noise.student_sigma, noise.generator_sigma

    def checked_prior(shape: Sequence[int], sigma: float, rng: Streams, *more: Any, **others: Any) -> Tensor:
        with told_of(choice):
            found = prior(shape, sigma, rng, *more, **others)
        check_tensor(choice, "prior(shape, sigma, rng)", found, (len(rng), *shape), rng.device)
        return found

    def checked_perturb(x: Tensor, sigma: Tensor, rng: Streams, *more: Any, **others: Any) -> Tensor:
        before, autocast = x._version, autocasts()
        with told_of(choice):
            found = perturb(x, sigma, rng, *more, **others)
        check_tensor(choice, "perturb(x, sigma, rng)", found, tuple(x.shape), x.device)
        demand(choice, x._version == before, "perturb writes to the images that it is given")
        demand_autocast(choice, autocast)
        return found

    def checked_levels(name: str, levels: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def checked(rng: Streams, *more: Any, **others: Any) -> Tensor:
            found = levels(rng, *more, **others)
            check_tensor(choice, f"{name}(rng)", found, (len(rng),), rng.device)
            return found

        return checked

    def check_denoised(net: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], found: Any) -> None:
        x = args[0] if args else kwargs.get("x")
        if teacher and isinstance(x, Tensor):
            check_tensor(teacher[0], "denoiser(x, sigma, labels)", found, tuple(x.shape), x.device)

    ours: dict[str, Callable[..., Any]] = {
        "prior": checked_prior, "perturb": checked_perturb,
        "student_sigma": checked_levels("student_sigma", student), "generator_sigma": checked_levels("generator_sigma", generator),
    }  # fmt: skip
    with ExitStack() as stack:
        for name, method in ours.items():
            stack.enter_context(taking_the_place(noise, name, method))
        if teacher:
            stack.callback(teacher[1].register_forward_hook(check_denoised, with_kwargs=True).remove)
        yield


@contextmanager
def taking_the_place(of: object, name: str, method: Callable[..., Any]) -> Iterator[None]:
    """A method of one object is another one, if the object takes attributes."""
    try:
        before = vars(of).get(name)
        object.__setattr__(of, name, method)
    except (AttributeError, TypeError):
        yield
        return
    try:
        yield
    finally:
        if before is None:
            object.__delattr__(of, name)
        else:
            object.__setattr__(of, name, before)


@contextmanager
def told_of(choice: Choice) -> Iterator[None]:
    """What breaks the contract of this component's kind is told with its name and its plugin's."""
    try:
        yield
    except BrokenContract as error:
        if error.__cause__ is not None and fault_of(error.__cause__):  # which names file and line, perhaps of another plugin
            raise error.__cause__ from None
        raise UserError(f"{choice.who}: {error}") from error


def demand(choice: Choice, right: bool, sentence: str) -> None:
    if not right:
        raise UserError(f"{choice.who}: {sentence}")
