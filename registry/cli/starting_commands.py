"""The command that begins: init."""

from __future__ import annotations

import math
from pathlib import Path

import click
from click.core import ParameterSource

from registry.cli.group import main
from registry.core.atomic import write_atomically
from registry.core.errors import SettingError, UserError


@main.command()
@click.argument("name", required=False, metavar="[NAME]")
@click.option("--teacher", metavar="FILE", help="A teacher to distil: any file that distill reads, a run folder, or a name.")
@click.option("--data", metavar="FOLDER", help="Images to train a teacher on; with --teacher, images to measure with.")
@click.option("--dim", "D", type=float, default=math.inf, help="D of the teacher to train.  [default: inf, a diffusion model]")
def init(name: str | None, teacher: str | None, data: str | None, D: float) -> None:
    """Write a starter recipe, with comments, for a teacher or for images of your own.

    \b
    distill init --teacher my_teacher.pkl           # my_teacher.toml: distil it
    distill init flowers --data flowers.zip         # flowers.toml: train a teacher on images
    """
    from registry.recipe.starter import distillation, pretraining

    if not (teacher or data):
        raise click.UsageError("Give --teacher FILE, or --data FOLDER, or both.")
    given = click.get_current_context().get_parameter_source("D") == ParameterSource.COMMANDLINE
    if teacher and given:
        raise SettingError("D", "is that of a teacher to train; this one has its own", D)
    if not D > 0:
        raise SettingError("D", "must be a positive number, or inf", D)
    stem = name or Path(str(teacher or data)).name.split(":")[-1].partition(".")[0] or "recipe"
    if not stem.rpartition("/")[2].strip("."):
        raise SettingError("name", "must be the name of a file", name)
    path = Path(stem if stem.endswith(".toml") else f"{stem}.toml")
    if path.exists():
        raise UserError(f"{path}: is there already; give another name")
    for setting, typed in (("name", name), ("teacher", teacher), ("data", data)):
        if typed is not None and not typed.isprintable():
            raise SettingError(setting, "must not hold control characters", typed)
    found = located(data)
    if teacher:
        text = distillation(str(path), *facts_of(teacher, found))
    else:
        assert found is not None
        text = pretraining(str(path), found, D, *facts_of_images(found))
    write_atomically(path, text.encode(), new=True)
    command = text.partition("#   ")[2].partition("\n")[0]  # quoted, where the name has spaces
    click.echo(f"{path} is written; look at it, and run it with:\n  {command}")


def located(data: str | None) -> str | None:
    """Where the images are. Raises UserError."""
    from registry.files.locate import locate_data

    try:
        return None if data is None else locate_data(data)
    except ValueError as error:
        raise SettingError("data", str(error), data) from None


def facts_of(teacher: str, data: str | None) -> tuple[str, float, tuple[int, int, int], int, str | None, int | None]:
    """Where a teacher is, its D, its images' shape, and its classes; where real images are, and how many.

    Raises UserError if they have another shape.
    """
    from registry.files.locate import published
    from registry.files.teachers import outline
    from registry.sample.opening import load_teacher

    known = published(teacher)
    if known and known.network:
        made = outline(known)
        source, D, shape, classes = teacher, made.D, made.image_shape, made.label_dim
    else:
        sampler = load_teacher(teacher)
        source, D, shape, classes = sampler.domain.origin, sampler.D, sampler.image_shape, sampler.label_dim
    if data is None:
        return source, D, shape, classes, None, None
    found, count, _ = facts_of_images(data)
    if found != shape:
        a, b = ("×".join(map(str, s)) for s in (found, shape))
        raise SettingError("data", f"its images are {a}, the teacher's {b}", data)
    return source, D, shape, classes, data, count


def facts_of_images(data: str) -> tuple[tuple[int, int, int], int, bool]:
    """The shape of images, how many there are, and whether they have classes. Raises UserError."""
    from registry.show.images import read_images

    images = read_images(data)
    return images.image_shape, len(images), images.classes is not None
