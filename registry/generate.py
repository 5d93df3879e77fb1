"""`distill generate`: images for a range of seeds, shared among processes, resumable, as PNG files, one .npz, or a grid."""

from __future__ import annotations

import hashlib
import io
import json
import math
import re
import shutil
import time
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from registry import distributed
from registry.api import UserError
from registry.files import write_atomically
from registry.pictures import save_samples, to_uint8
from registry.report import Journal, check_outdir, duration
from registry.sampling import Sampler

Format = Literal["png", "npz", "grid"]
TERMS, PARTS = "generate.json", ".parts"


def parse_seeds(text: str) -> list[int]:
    """'0-9,20,30-39' -> the seeds, in that order, each once. Raises UserError."""
    seeds: dict[int, None] = {}
    for part in text.split(","):
        found = re.fullmatch(r"\s*(\d+)\s*(?:-\s*(\d+)\s*)?", part)
        if not found:
            raise UserError(f"--seeds {text}: write numbers and ranges, e.g. 0-49999 or 1,2,10-19")
        first, last = int(found[1]), int(found[2] or found[1])
        if last < first:
            raise UserError(f"--seeds {text}: {first}-{last} is empty; write the lower number first")
        if last >= 2**32:
            raise UserError(f"--seeds {text}: a seed is below 2^32 = {2**32}")
        seeds |= dict.fromkeys(range(first, last + 1))
    return list(seeds)


def generate(
    sampler: Sampler,
    seeds: Sequence[int],
    outdir: Path,
    formats: Sequence[Format] = ("png",),
    class_: int | None = None,
    batch: int = 64,
    journal: Journal | None = None,
) -> None:
    """Write one image per seed under `outdir`; what is there already, of the same network and settings, is not made again.

    png: {seed:06d}.png, in folders of a thousand if there are more; npz: samples.npz with `arr_0` (uint8, [n, H, W, C], as ADM's
    evaluator reads it), `seeds`, and `labels` if a class was asked for; grid: grid.png, of the first 1,024. Under torchrun the
    processes take batches in turn. Raises UserError.
    """
    journal = journal or Journal()
    sampler.one_hot(class_, 1)
    planar = sampler.image_shape == (2, 1, 1)
    if sampler.image_shape[0] not in (1, 3) and ("png" in formats or ("grid" in formats and not planar)):
        shape = "×".join(map(str, sampler.image_shape))
        raise UserError(f"--format png: images of {shape} are no pictures; use --format npz{' or grid' if planar else ''}")
    check_outdir(outdir, "--outdir")
    if distributed.rank() == 0:
        claim(outdir, sampler.terms | {"class": class_})
    distributed.from_rank0(None)  # nobody goes on before the folder is known to be ours

    folders = len(seeds) > 1000
    gathering = set(formats) - {"png"}
    parts = outdir / PARTS
    kept = seeds_in(parts) if gathering else set(seeds)
    missing = [s for s in seeds if s not in kept or ("png" in formats and not png(outdir, s, folders).is_file())]
    if len(missing) < len(seeds):
        journal.log(f"{len(seeds) - len(missing)} of {len(seeds)} images are there already")
    distributed.from_rank0(None)  # everybody has looked before anybody writes
    batches = [missing[i : i + batch] for i in range(0, len(missing), batch)]
    start = told = time.monotonic()
    with journal.progress("generating", len(missing)) as bar:
        for i in range(distributed.rank(), len(batches), distributed.world_size()):
            images = sampler(batches[i], sampler.one_hot(class_, len(batches[i])))
            if "png" in formats:
                for seed, pixels in zip(batches[i], as_pixels(images), strict=True):
                    write_png(png(outdir, seed, folders), pixels)
            if gathering:
                write_part(parts, batches[i], as_pixels(images))
            done = min((i + distributed.world_size()) * batch, len(missing))
            bar.at(done)
            if not journal.console.is_terminal and time.monotonic() - told > 10:
                told = time.monotonic()
                left = (told - start) / done * (len(missing) - done)
                journal.log(f"{done} of {len(missing)} images, {done / (told - start):.0f} img/s, eta {duration(left)}")
    distributed.from_rank0(None)
    if gathering and distributed.rank() == 0:
        pixels = read_parts(parts, seeds)
        if "npz" in formats:
            content = {"arr_0": pixels, "seeds": np.array(seeds)}
            write_npz(outdir / "samples.npz", content | ({} if class_ is None else {"labels": np.full(len(seeds), class_)}))
        if "grid" in formats:
            shown = pixels[: len(seeds) if planar else 1024]
            save_samples(outdir / "grid.png", from_pixels(shown), math.ceil(len(shown) ** 0.5))
        shutil.rmtree(parts)
    journal.log(f"{len(seeds)} images ({sampler.evaluations} evaluation{'s' * (sampler.evaluations > 1)} each) in {outdir}")


def claim(outdir: Path, terms: dict[str, Any]) -> None:
    """Note what the folder's images are of. Raises UserError if it has those of another network or other settings."""
    note = outdir / TERMS
    wanted = json.loads(json.dumps(terms))
    if note.is_file():
        try:
            found = json.loads(note.read_text())
        except ValueError:
            raise UserError(f"{note}: damaged; name another --outdir, or remove this folder") from None
        other = [k for k in sorted({*found, *wanted} - {"network"}) if found.get(k) != wanted.get(k)]
        if other:
            told = "; ".join(f"{k}: {found.get(k)} there, {wanted.get(k)} now" for k in other)
            raise UserError(f"--outdir {outdir}: has images made otherwise ({told}); name another folder")
    write_atomically(note, (json.dumps(wanted, indent=1) + "\n").encode())


def png(outdir: Path, seed: int, folders: bool) -> Path:
    """Where EDM's script puts the image of a seed."""
    folder = outdir / f"{seed - seed % 1000:06d}" if folders else outdir
    return folder / f"{seed:06d}.png"


def as_pixels(images: Tensor) -> np.ndarray:
    """Images [n, C, H, W] in [−1, 1] as uint8 [n, H, W, C]; points in the plane as they are."""
    array = images if images.shape[1:] == (2, 1, 1) else to_uint8(images)
    return array.permute(0, 2, 3, 1).cpu().numpy()


def from_pixels(pixels: np.ndarray) -> Tensor:
    """The inverse of `as_pixels`: images that are drawn with exactly these pixels."""
    images = torch.from_numpy(pixels).permute(0, 3, 1, 2)
    return (images - 127.5) / 127.5 if images.dtype == torch.uint8 else images


def write_png(path: Path, pixels: np.ndarray) -> None:
    """One image [H, W, C]."""
    buffer = io.BytesIO()
    Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels).save(buffer, format="PNG")
    write_atomically(path, buffer.getvalue(), durable=False)


def write_npz(path: Path, arrays: dict[str, np.ndarray]) -> None:
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)  # type: ignore[arg-type]
    write_atomically(path, buffer.getvalue())


def write_part(folder: Path, seeds: Sequence[int], pixels: np.ndarray) -> None:
    """A batch on its way into samples.npz or the grid."""
    buffer = io.BytesIO()
    np.savez(buffer, seeds=np.array(seeds), pixels=pixels)
    name = hashlib.sha256(str(list(seeds)).encode()).hexdigest()[:16]
    write_atomically(folder / f"{name}.npz", buffer.getvalue(), durable=False)


def parts_in(folder: Path) -> list[tuple[Path, list[int]]]:
    """The whole parts of an unfinished run, with their seeds."""
    found = []
    for path in sorted(folder.glob("*.npz")):
        try:
            with np.load(path, allow_pickle=False) as part:
                found.append((path, part["seeds"].tolist()))
        except (OSError, ValueError, KeyError, zipfile.BadZipFile):
            path.unlink()
    return found


def seeds_in(folder: Path) -> set[int]:
    return {seed for _, seeds in parts_in(folder) for seed in seeds}


def read_parts(folder: Path, seeds: Sequence[int]) -> np.ndarray:
    """The pixels of these seeds [n, H, W, C] in their order, from the parts."""
    row = {seed: i for i, seed in enumerate(seeds)}
    pixels: np.ndarray | None = None
    for path, of in parts_in(folder):
        with np.load(path, allow_pickle=False) as part:
            found = part["pixels"]
        pixels = np.empty((len(seeds), *found.shape[1:]), found.dtype) if pixels is None else pixels
        for i, seed in enumerate(of):
            if seed in row:
                pixels[row[seed]] = found[i]
    assert pixels is not None
    return pixels
