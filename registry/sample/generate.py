"""Makes images for many seeds as PNG files, one .npz or a grid. Shared among processes, resumable."""

from __future__ import annotations

import hashlib
import io
import itertools
import json
import math
import os
import re
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from filelock import BaseFileLock, Timeout
from PIL import Image
from torch import Tensor

from registry.core import distributed
from registry.core.atomic import check_folder, sweep, write_atomically
from registry.core.errors import SettingError, UserError
from registry.core.locks import lock_on, taken
from registry.core.seeds import ranges_of
from registry.core.text import shown
from registry.files.json_files import ANYTHING, NoRecord, read_record
from registry.files.npz import read_npz
from registry.sample.sampler import MOST_SEEDS, Sampler
from registry.show.journal import Journal
from registry.show.pictures import as_picture, as_pixels, save_image, save_samples

Format = Literal["png", "npz", "grid"]
MOST_IN_A_GRID = 1024
NOTE, PARTS = "generate.json", ".parts"
LAST_CHUNK = b"\0\0\0\0IEND\xaeB`\x82"
"""With which a PNG ends."""
MOST_BYTES, MOST_COMPRESSED = 2**28, 100
"""Of the arrays in an .npz file that lies in the folder: so many bytes, or so many times the file."""


def parse_seeds(text: str, limit: int = MOST_SEEDS) -> list[int]:
    """Turn '0-9,20,30-39' into seeds, in that order. Raises UserError, also if one comes twice: it would be one image."""
    try:
        ranges = ranges_of(text)
    except ValueError as error:
        raise SettingError("seeds", str(error), text) from None
    if sum(map(len, ranges)) > limit:
        raise SettingError("seeds", f"more than {limit:,} images; split them among several folders", text)
    seeds: dict[int, None] = {}
    for part in ranges:
        if twice := seeds.keys() & part:
            raise SettingError("seeds", f"{min(twice)} comes twice; a seed is one image", text)
        seeds |= dict.fromkeys(part)
    return list(seeds)


class Form(NamedTuple):
    """What images of a network look like in a file."""

    none: np.ndarray
    """No images [0, H, W, C], of their shape and type."""
    label_dim: int
    """The number of classes, 0 for none."""


def generate(
    sampler: Sampler,
    seeds: Sequence[int],
    outdir: Path,
    formats: Sequence[Format] = ("png",),
    class_: int | None = None,
    batch: int = 64,
    journal: Journal | None = None,
) -> None:
    """Write one image per seed to `outdir`. Existing images from the same network and settings are kept.

    png: {seed:06d}.png, in folders of a thousand if there are more; npz: samples.npz with `arr_0` (uint8, [n, H, W, C], as ADM's
    evaluator reads it), `seeds`, and `labels` (class numbers) if the network has classes; grid: grid.png of the first 1,024.
    Under torchrun, the processes take batches in turn. Raises UserError.
    """
    journal = journal or Journal()
    arguments = {"seeds": list(seeds), "outdir": str(outdir), "formats": sorted(formats), "class": class_, "batch": batch}
    distributed.agree(sampler.settings | arguments)
    sampler.one_hot(class_, 1)
    planar = sampler.domain.image_shape == (2, 1, 1)
    if sampler.domain.image_shape[0] not in (1, 3) and ("png" in formats or ("grid" in formats and not planar)):
        shape = "×".join(map(str, sampler.domain.image_shape))
        raise SettingError(
            "formats", f"images of shape {shape} cannot be shown as pictures; use npz{' or grid' if planar else ''}", "png"
        )
    check_folder(outdir, "outdir")
    if set(formats) == {"grid"} and not planar:
        if len(seeds) > MOST_IN_A_GRID:
            journal.log(f"a grid has room for {MOST_IN_A_GRID:,} images; the last {len(seeds) - MOST_IN_A_GRID:,} are not made")
        seeds = seeds[:MOST_IN_A_GRID]
    gathering = bool(set(formats) - {"png"})
    settings = sampler.settings | {"class": class_}
    lock = lock_on(outdir / PARTS / "lock")  # goes with the parts, or with the process
    form = Form(as_pixels(torch.zeros(0, *sampler.domain.image_shape)), sampler.domain.label_dim)
    mine, fresh = lock if gathering else None, not (outdir / NOTE).exists()
    missing = distributed.by_rank0(lambda: prepare(outdir, settings, seeds, form, "png" in formats, mine, journal))
    if len(missing) < len(seeds):
        journal.log(f"{len(seeds) - len(missing)} of {len(seeds)} images already exist")
    try:
        sample_missing(sampler, missing, outdir, formats, class_, batch, len(seeds) > 1000, journal)
    except UserError:
        if fresh and distributed.rank() == 0:
            abandon(outdir)
        raise
    distributed.gather(None)
    if "png" in formats:
        distributed.by_rank0(lambda: check_pngs(outdir, seeds))
    if gathering:
        distributed.by_rank0(lambda: gather(outdir, seeds, form, formats, planar))
        lock.release()
    journal.log(f"{len(seeds)} images ({sampler.nfe} evaluation{'s' * (sampler.nfe > 1)} each) in {outdir}")


def check_pngs(outdir: Path, seeds: Sequence[int]) -> None:
    """Check that there is a PNG of every seed: the folder may have been emptied in the meantime. Raises UserError."""
    if gone := [seed for seed in seeds if not png(outdir, seed, len(seeds) > 1000).is_file()]:
        raise UserError(f"{outdir}: images that were written are gone: {len(gone):,}, e.g. that of seed {gone[0]}")


def sample_missing(
    sampler: Sampler,
    missing: Sequence[int],
    outdir: Path,
    formats: Sequence[Format],
    class_: int | None,
    batch: int,
    many: bool,
    journal: Journal,
) -> None:
    """Make the missing images in batches, taking turns with the other processes, and write each batch when it is done."""
    batches = [missing[i : i + batch] for i in range(0, len(missing), batch)]
    # PNGs are packed in threads, while the device works on the next batch.
    with ThreadPoolExecutor(os.cpu_count()) as pool, journal.progress("generating", len(missing)) as bar:
        writing: list[Future[None]] = []
        for i in range(distributed.rank(), len(batches), distributed.world_size()):
            images, labels = sampler.labelled(batches[i], sampler.one_hot(class_, len(batches[i])))
            pixels = as_pixels(images)
            if set(formats) - {"png"}:
                write_part(outdir / PARTS, batches[i], pixels, None if labels is None else labels.argmax(1).cpu().numpy())
            written(writing)
            if "png" in formats:
                paths = [png(outdir, seed, many) for seed in batches[i]]
                writing = [pool.submit(write_png, path, image) for path, image in zip(paths, pixels, strict=True)]
            bar.at(min((i + distributed.world_size()) * batch, len(missing)))
        written(writing)


def written(files: list[Future[None]]) -> None:
    """Wait until these are written. Raises UserError for the first that cannot be; the others that have not begun are left."""
    try:
        for file in files:
            file.result()
    except UserError:
        for file in files:
            file.cancel()
        raise


def prepare(
    outdir: Path,
    settings: dict[str, Any],
    seeds: Sequence[int],
    form: Form,
    pngs: bool,
    lock: BaseFileLock | None,
    journal: Journal,
) -> list[int]:
    """Claim the folder and list the seeds that are still missing. One process does this for all. Raises UserError.

    With a lock, images are gathered in one file at the end, and only one command at a time can do that.
    """
    check_unmarked(outdir, seeds)
    claim(outdir, settings)
    for folder in (outdir, *outdir.glob("[0-9]*/")):
        sweep(folder)
    sweep(outdir / PARTS)
    begun = bool(parts(outdir / PARTS))
    if lock is not None:
        (outdir / PARTS).mkdir(exist_ok=True)
        try:
            taken(lock)
        except Timeout:
            raise UserError(f"{outdir}: another process is making images here; wait for it, or give another folder") from None
    if lock is not None and not begun and (found := images_in(outdir / "samples.npz", form)):
        write_part(outdir / PARTS, found["seeds"].tolist(), found["arr_0"], found.get("labels"))
    kept = {seed for of in parts_in(outdir / PARTS, form).values() for seed in of} if lock is not None else set(seeds)
    missing = []
    with journal.progress("looking for images", len(seeds)) as bar:
        for i, seed in enumerate(seeds, 1):
            if seed not in kept or (pngs and not is_there(png(outdir, seed, len(seeds) > 1000), form)):
                missing.append(seed)
            if i % 100 == 0 or i == len(seeds):
                bar.at(i)
    return missing


def gather(outdir: Path, seeds: Sequence[int], form: Form, formats: Sequence[Format], planar: bool) -> None:
    """Write samples.npz and the grid from the parts. Raises UserError."""
    content = read_parts(outdir / PARTS, seeds, form)
    if "npz" in formats:
        buffer = io.BytesIO()
        np.savez_compressed(buffer, **content)  # type: ignore[arg-type]
        write_atomically(outdir / "samples.npz", buffer.getvalue())
    if "grid" in formats:
        first = content["arr_0"][: len(seeds) if planar else MOST_IN_A_GRID]
        save_samples(outdir / "grid.png", from_pixels(first), math.ceil(len(first) ** 0.5))
    remove_parts(outdir / PARTS)


def claim(outdir: Path, settings: dict[str, Any]) -> None:
    """Record what the folder's images were made with. Raises UserError if it holds images made otherwise."""
    note = outdir / NOTE
    wanted = json.loads(json.dumps(settings))
    content = (json.dumps(wanted, indent=1) + "\n").encode()
    if not note.exists():
        with suppress(UserError):  # another command has just claimed it, or it cannot be written, which is said below
            write_atomically(note, content, new=True)
            return
    if note.is_file():
        try:
            found = read_record(note, ANYTHING)
        except NoRecord:
            raise SettingError("outdir", f"{note} is damaged; give another folder, or remove this one", str(outdir)) from None
        other = [k for k in sorted({*found, *wanted} - {"network"}) if found.get(k) != wanted.get(k)]
        if other:
            changes = "; ".join(f"{k}: {shown(found.get(k), 60)} there, {shown(wanted.get(k), 60)} now" for k in other)
            raise SettingError("outdir", f"has images made with other settings ({changes}); give another folder", str(outdir))
    write_atomically(note, content)


def check_unmarked(outdir: Path, seeds: Sequence[int]) -> None:
    """Check that a folder in which nothing says what made its images has none of these. Raises SettingError."""
    files = itertools.chain((png(outdir, seed, len(seeds) > 1000) for seed in seeds), [outdir / "samples.npz"])
    if not (outdir / NOTE).exists() and (found := next((path for path in files if path.exists()), None)):
        raise SettingError("outdir", f"has {found.name}, and no {NOTE} that says what made it; give another folder", str(outdir))


def abandon(outdir: Path) -> None:
    """Give up the claim on a folder in which nothing has been made."""
    if {path.name for path in outdir.iterdir()} <= {NOTE, PARTS} and not parts(outdir / PARTS):
        remove_parts(outdir / PARTS)
        (outdir / NOTE).unlink(missing_ok=True)


def png(outdir: Path, seed: int, many: bool) -> Path:
    """The path of a seed's image: where it already is; otherwise in a folder of a thousand if there are `many` (as in EDM)."""
    flat, deep = outdir / f"{seed:06d}.png", outdir / f"{seed - seed % 1000:06d}" / f"{seed:06d}.png"
    return deep if deep.exists() or (many and not flat.exists()) else flat


def is_there(path: Path, form: Form) -> bool:
    """Whether a whole PNG of that shape is there. A power failure can leave a part of one."""
    try:
        if not path.is_file():
            return False
        with open(path, "rb") as file:  # Pillow does not miss the last chunk
            if not file.read().endswith(LAST_CHUNK):
                return False
        with Image.open(path, formats=["PNG"]) as found:
            found.verify()
            return (found.height, found.width, len(found.getbands())) == form.none.shape[1:]
    except Exception:  # Pillow has many words for a damaged file
        return False


def from_pixels(pixels: np.ndarray) -> Tensor:
    """The inverse of `as_pixels`: images that give exactly these pixels."""
    images = torch.from_numpy(pixels).permute(0, 3, 1, 2)
    return (images - 127.5) / 127.5 if images.dtype == torch.uint8 else images


def write_png(path: Path, pixels: np.ndarray) -> None:
    """Write one image [H, W, C]."""
    save_image(path, as_picture(pixels), durable=False)


def write_part(folder: Path, seeds: Sequence[int], pixels: np.ndarray, labels: np.ndarray | None) -> None:
    """Write a batch for samples.npz or the grid."""
    buffer = io.BytesIO()
    arrays: dict[str, Any] = {"seeds": np.array(seeds), "arr_0": pixels} | ({} if labels is None else {"labels": labels})
    np.savez(buffer, **arrays)
    name = hashlib.sha256(str(list(seeds)).encode()).hexdigest()[:16]
    write_atomically(folder / f"{name}.npz", buffer.getvalue(), durable=False)


def parts(folder: Path) -> list[Path]:
    """The files of an unfinished run."""
    return sorted(path for path in folder.glob("*.npz") if re.fullmatch(r"[0-9a-f]{16}", path.stem))


def remove_parts(folder: Path) -> None:
    """Remove what `write_part` wrote, and the folder if nothing else is in it."""
    for path in (*parts(folder), folder / "lock"):
        path.unlink(missing_ok=True)
    with suppress(OSError):
        folder.rmdir()


def images_in(path: Path, form: Form) -> dict[str, np.ndarray] | None:
    """`seeds` [n], `arr_0` [n, H, W, C] and `labels` [n], if there are any, of a file of ours; None if it is none, or damaged."""
    if not path.is_file():
        return None
    try:
        found = read_npz(path, path, max(MOST_BYTES, MOST_COMPRESSED * path.stat().st_size))
    except (UserError, OSError):
        return None
    images, numbers = found.get("arr_0"), {name: array for name, array in found.items() if name in ("seeds", "labels")}
    if images is None or images.dtype != form.none.dtype or images.shape[1:] != form.none.shape[1:]:
        return None
    if {*numbers} != {"seeds", *(["labels"] if form.label_dim else [])}:
        return None
    if not all(array.dtype.kind in "iu" and array.shape == (len(images),) for array in numbers.values()):
        return None
    known = not form.label_dim or bool((numbers["labels"] < form.label_dim).all() and (numbers["labels"] >= 0).all())
    return numbers | {"arr_0": images} if known and len(np.unique(numbers["seeds"])) == len(images) else None


def parts_in(folder: Path, form: Form) -> dict[Path, list[int]]:
    """The parts of an unfinished run, with their seeds; damaged ones are removed."""
    found = {}
    for path in parts(folder):
        part = images_in(path, form)  # all of it: a part may be cut off anywhere
        if part is not None:
            found[path] = part["seeds"].tolist()
        elif not path.is_dir():
            path.unlink(missing_ok=True)
    return found


def read_parts(folder: Path, seeds: Sequence[int], form: Form) -> dict[str, np.ndarray]:
    """`arr_0` [n, H, W, C], `seeds` [n] and `labels` [n], if there are any, in the order of the seeds. Raises UserError."""
    row = {seed: i for i, seed in enumerate(seeds)}
    content, missing = {"seeds": np.array(seeds)}, set(seeds)
    for path in parts(folder):
        part = images_in(path, form)
        if part is None:
            continue
        of = part.pop("seeds").tolist()
        where = [(row[seed], i) for i, seed in enumerate(of) if seed in row]
        for name, found in part.items():
            whole = content.setdefault(name, np.zeros((len(seeds), *found.shape[1:]), found.dtype))
            whole[[to for to, _ in where]] = found[[at for _, at in where]]
        missing -= set(of)
    if missing:
        raise UserError(
            f"{folder}: {len(missing)} images are missing, e.g. for seed {min(missing)}; do all processes see this folder?"
        )
    return content
