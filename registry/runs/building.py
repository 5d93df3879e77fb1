"""Building the components of a recipe, and checking that they fit each other."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

from registry.core.atomic import check_folder
from registry.core.contracts import Domain, KnowsLevels, Loss, Metric, Noise, Teacher, derived_from, hidden_network
from registry.core.errors import SettingError, UserError
from registry.core.levels import generator_levels, spaced
from registry.core.settings import NoiseConfig
from registry.edm.augment import LABELS
from registry.files.formats import SUFFIXES, load_network, misfit
from registry.measure.guarded import Guarded
from registry.plugins.loading import Plugins
from registry.recipe.arguments import check_path
from registry.recipe.reading import check_fit
from registry.recipe.resolved import Choice, Recipe, dumps, settings_of, training_tables
from registry.recipe.tables import DataConfig, GeneratorConfig
from registry.runs.built import check_answer, check_facts, check_loss, check_noise, check_trainable
from registry.show.images import read_images
from registry.train.data import RealImages
from registry.train.generator import Generator


def build(recipe: Recipe, plugins: Plugins, teacher: Teacher | None = None) -> tuple[Teacher, Noise, Loss]:
    """Teacher, noise and loss of a recipe, or with this teacher. Raises UserError where they do not fit each other."""
    teacher = teacher or check_facts(recipe.teacher, recipe.teacher.make())
    check_fit(recipe, teacher.D, plugins)
    check_augment(recipe, teacher)
    noise: Noise = recipe.noise.make(teacher)
    check_noise(recipe.noise, noise, teacher.image_shape)
    if noise.D != teacher.D:
        raise UserError(f"{recipe.path}: noise {recipe.noise.name!r} has D = {noise.D:g}, the teacher has D = {teacher.D:g}")
    check_levels(recipe, teacher, noise)
    with weights_of_seed(recipe.train.seed):
        loss = check_loss(recipe.loss, recipe.loss.make(teacher))
    if hidden := hidden_network(loss):
        raise UserError(
            f"plugin {recipe.loss.owner!r}: its loss {recipe.loss.name!r} has a network in .{hidden} but is not a torch.nn.Module, "
            "so that network would not learn"
        )
    check_shared_pass(recipe, noise, loss)
    return teacher, noise, loss


def check_shared_pass(recipe: Recipe, noise: Noise, loss: Loss) -> None:
    """Loss and noise must know how two steps share their evaluations. Raises SettingError."""
    if not recipe.train.shared_pass:
        return
    problem = None
    if not derived_from(loss, "shared", "student", "generator"):
        problem = f"loss {recipe.loss.name!r} does not say how its two sides share their evaluations"
    elif not derived_from(noise, "level_ratio", "student_sigma", "generator_sigma"):
        problem = f"noise {recipe.noise.name!r} does not say how its two laws of noise levels compare"
    elif recipe.train.augment:
        problem = "the student cannot be shown augmented images, for the generator's are not augmented; set augment = 0"
    elif recipe.train.reuse_samples:
        problem = "the images are shared already; leave reuse_samples out"
    if problem:
        with settings_of(recipe.train):
            raise SettingError("shared_pass", problem, True)


def check_augment(recipe: Recipe, teacher: Teacher) -> None:
    """The student must be told of the augmentation of its images. Raises SettingError."""
    if recipe.train.augment and teacher.augment_dim != LABELS:
        with settings_of(recipe.train):
            inputs = f"{teacher.augment_dim or 'no'} inputs for augmentation labels"
            problem = f"the teacher's network has {inputs}, and needs {LABELS}; use 0"
            raise SettingError("augment", problem, recipe.train.augment)


def check_levels(recipe: Recipe, teacher: Teacher, noise: Noise) -> None:
    """Check that the teacher knows the noise levels at which the recipe uses it. Raises SettingError."""
    known, config = teacher.denoiser, recipe.noise.config
    if not isinstance(known, KnowsLevels):
        return
    highest = ("sigma_max", noise.sigma_max)
    if isinstance(config, NoiseConfig):
        highest = ("t_max", spaced(1 - config.t_max / 1000, noise.sigma_max, noise.sigma_min, noise.rho))
    levels = [("sigma_min", noise.sigma_min), ("sigma_init", noise.sigma_init), highest]
    asked: list[tuple[Choice | GeneratorConfig, str, float]] = [(recipe.noise, *level) for level in levels]
    if not isinstance(recipe.generator.schedule, str):
        asked += [(recipe.generator, "schedule", sigma) for sigma in recipe.generator.schedule]
    for table, setting, sigma in asked:
        if not known.sigma_min * (1 - 1e-5) <= sigma <= known.sigma_max * (1 + 1e-5):  # people type levels with six digits
            with settings_of(table):
                known_levels = f"{known.sigma_min:g} to {known.sigma_max:g}"
                raise SettingError(setting, f"leads to the noise level {sigma:.4g}, but the teacher knows {known_levels} only")


@contextmanager
def weights_of_seed(seed: int) -> Iterator[None]:
    """Networks that are made here get the same initial weights in every process; the CPU's random state is left as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield


def build_metrics(choices: tuple[Choice, ...], domain: Domain) -> list[tuple[Choice, Metric]]:
    """The metrics of [eval], each with the choice that it was built from."""
    return [(choice, Guarded(choice, domain)) for choice in choices]


def build_generator(recipe: Recipe, teacher: Teacher, noise: Noise) -> Generator:
    """The generator of [generator], initialised as the teacher, or as the network in `init`. Raises SettingError."""
    check_answer(recipe.teacher, teacher, teacher.denoiser, noise.sigma_init)
    config, net = recipe.generator, teacher.copy()
    check_trainable(recipe.teacher, teacher, noise, net)
    sigmas = generator_levels(config.steps, config.schedule, noise.sigma_init, noise.sigma_min, noise.rho)
    if config.init is not None:
        other, _ = load_network(config.init, "denoiser", "generator", build=lambda _: teacher.copy())
        if problem := misfit(net, other):
            with settings_of(config):
                raise SettingError("init", f"does not fit the teacher: {problem}", config.init)
        net.load_state_dict(other.state_dict())
    return Generator(net, noise, teacher.image_shape, teacher.label_dim, sigmas, config.gradient, config.recompute)


def generator_facts(
    recipe: Recipe, teacher: Teacher, noise: Noise, generator: Generator, data: RealImages | None = None
) -> dict[str, Any]:
    """What a generator's file says about it, besides the number of images."""
    tables = training_tables(recipe)
    return {
        "D": noise.D, "sigma_data": teacher.sigma_data, "sigma_init": noise.sigma_init, "sigmas": list(generator.sigmas),
        "steps": generator.steps, "gradient": generator.gradient,
        "image_shape": list(teacher.image_shape), "label_dim": teacher.label_dim,
        "components": ", ".join(choice.origin for choice in (recipe.teacher, recipe.noise, recipe.loss)),
        "teacher": teacher.origin, "teacher_weights": teacher.weights, "recipe": tables,
        "recipe_hash": hashlib.sha256(dumps(tables).encode()).hexdigest()[:16],
        **({"data": recipe.data.source, "data_hash": data.images.hash()} if recipe.data and data else {}),
    }  # fmt: skip


def real_images(config: DataConfig, device: torch.device, domain: Domain | None = None) -> RealImages:
    """The images of [data]. Raises SettingError if labels are wanted and there are none, or if they do not fit the domain."""
    images = read_images(config.source)
    with settings_of(config):
        if config.labels and images.classes is None:
            raise SettingError("labels", f"{config.source} has no labels", True)
        if domain is not None and images.image_shape != domain.image_shape:
            found, wanted = ("×".join(map(str, shape)) for shape in (images.image_shape, domain.image_shape))
            raise SettingError("source", f"its images are {found}, the teacher's {wanted}", config.source)
        if domain is not None and config.labels and images.label_dim != domain.label_dim:
            problem = f"{config.source} has {images.label_dim} classes, the teacher {domain.label_dim}"
            raise SettingError("labels", problem, True)
    return RealImages(images, config.labels, device)


def check_target(save: object) -> Path:
    """Where a network is to be saved, if it can be. Raises SettingError."""
    path = Path(check_path("save", save))
    if path.suffix not in SUFFIXES:
        raise SettingError("save", f"a network is saved as {', '.join(SUFFIXES)}", str(path))
    if path.is_dir():
        raise SettingError("save", "is a folder; give the name of a file", str(path))
    if path.match("training-state-*"):
        raise SettingError("save", "is the name of a training state; give another", str(path))
    check_folder(path.parent, "save")
    return path


def parameter_count(net: nn.Module) -> str:
    """Number of parameters, for people."""
    n = sum(p.numel() for p in net.parameters())
    return f"{n / 1e6:.2f} M" if n >= 1e5 else f"{n:,}"
