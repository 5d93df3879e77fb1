"""Makes data sets in EDM's layout: a folder or uncompressed ZIP of square PNGs with dataset.json."""

from __future__ import annotations

import bz2
import gzip
import io
import itertools
import json
import lzma
import os
import pickle
import pickletools
import tarfile
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
from PIL import Image

from registry.core.atomic import new_folder, sweep, sweep_folders, write_atomically
from registry.core.errors import SettingError, UserError
from registry.core.interruption import undisturbed
from registry.core.text import kind, shown
from registry.edm.datasets import IMAGES, MOST_CLASSES, grey_or_rgb, readable_labels
from registry.edm.image_files import LABELS, files_below, open_picture

OTHER_ARCHIVES = (".tar", ".gz", ".tgz", ".bz2", ".xz", ".7z", ".rar", ".npz", ".json")
"""Suffixes that would surprise as the name of a folder. Others are part of a folder's name (faces.v2)."""


MOST_UNPACKED, MOST_MEMBERS, MOST_BYTES, MOST_STEPS, MOST_TUPLES = 2**28, 1000, 2**26, 2**18, 100
"""CIFAR-10's tarball has 178 MB when it is unpacked, and 9 members; a batch has 31 MB, and takes some 60,000 steps to unpickle,
fewer than ten of which make tuples."""
MOST_SAID = 1024
"""Bytes in which a tarball says something of the member that follows."""
BATCHES = tuple(f"data_batch_{i}" for i in range(1, 6))
PACKED: dict[bytes, Callable[[Path], Any]] = {b"\x1f\x8b": gzip.open, b"BZh": bz2.open, b"\xfd7zXZ\0": lzma.open}
"""What a compressed file begins with, and what unpacks it."""


class Picture(NamedTuple):
    """One image to be written to a data set, with its class number or None."""

    name: str
    image: Image.Image
    label: int | None


def make_dataset(
    source: str,
    dest: str,
    resolution: int | None = None,
    crop: bool = False,
    folder_labels: bool | None = None,
    progress: Callable[[int], None] | None = None,
) -> str:
    """Make a data set from a folder of images or CIFAR-10's python tarball; returns a one-line summary. Raises UserError.

    `dest` is a .zip or a folder and must not exist. With `crop`, each image is cropped to its central square; without it, images
    must be square. They are then resized (Lanczos) to `resolution`.

    Labels come from CIFAR-10 itself, or from dataset.json in the folder. A folder without that file has the classes of its
    sub-folders if there are several, in alphabetical order, as in EDM's tool. `folder_labels` = True takes the sub-folders in
    any case, False never. `progress` is called with the number of images written. A failure leaves nothing behind.
    """
    if not str(source).strip():
        raise UserError("the source is empty; give a folder of images, or CIFAR-10's python tarball")
    target = Path(os.path.expanduser(dest))
    sweep(target.parent, target.name)
    sweep_folders(target)
    if target.exists() or target.is_symlink():
        raise UserError(f"{dest}: already exists; give another file or folder, or remove it")
    if target.suffix.lower() in OTHER_ARCHIVES:
        raise UserError(f"{dest}: a data set is a .zip or a folder, not a {target.suffix}")
    left = left_out(Path(os.path.expanduser(source)))  # before this is written, which may lie there
    labels: list[list[Any]] = []
    shape: tuple[str, tuple[int, int]] | None = None
    Image.init()  # a signal in the middle of an import ends the process at once, without cleaning up

    def fill(write: Callable[[str, bytes], object]) -> None:
        nonlocal shape
        for picture in _pictures(Path(os.path.expanduser(source)), folder_labels):
            i, image = len(labels), _square(picture, resolution, crop)
            if shape is not None and (image.mode, image.size) != shape:
                what = f"{shown(source)}: {shown(picture.name)} is {_words(image)}, unlike the images before it"
                if image.size == shape[1]:
                    raise UserError(f"{what}, which are {shape[0]}; make all of them grey (L), or all RGB")
                raise SettingError("resolution", f"{what}; give one resolution for all")
            shape = image.mode, image.size
            name = f"{i // 1000:05d}/img{i:08d}.png"
            write(name, _as_png(image))
            labels.append([name, picture.label])
            del picture, image  # so that a large one is not in memory while the next is read
            if progress:
                progress(i + 1)
        if not labels:
            raise UserError(f"{source}: no images in it ({', '.join(IMAGES)})")
        write("dataset.json", json.dumps({"labels": labels if all_known(labels) else None}).encode())

    if target.suffix.lower() == ".zip":
        write_atomically(target, lambda file: fill_zip(file, fill), new=True)
    else:
        with new_folder(target) as folder:
            fill(lambda name, content: write_file(folder / name, content))
    assert shape is not None
    classes = len({label for _, label in labels}) if all_known(labels) else 0
    labelled = f"{classes} classes" if classes else "no labels"
    return f"{dest}: {len(labels)} images of {shape[1][0]}×{shape[1][1]}, {shape[0]}, {labelled}{left}"


def left_out(source: Path) -> str:
    """What to say of files in a folder that are no images of a kind that is read."""
    files = files_below(source) if source.is_dir() else []
    others = [path.suffix.lower() for path in files if path.suffix.lower() not in IMAGES and path.name != LABELS]
    kinds = shown(", ".join(sorted({*others} - {""})), 100)
    return f"; files left out: {len(others)}{f' ({kinds})' if kinds else ''}" if others else ""


def all_known(labels: list[list[Any]]) -> bool:
    """Whether every image, [name, class], has a class."""
    return all(label is not None for _, label in labels)


def fill_zip(file: BinaryIO, fill: Callable[[Callable[[str, bytes], object]], None]) -> None:
    """Fill an uncompressed ZIP, as EDM requires it."""
    archive = None
    try:
        with undisturbed():  # half-made, or not closed, it would complain when it is thrown away
            archive = opened = zipfile.ZipFile(file, "w", zipfile.ZIP_STORED)

        def write(name: str, content: bytes) -> None:
            member = zipfile.ZipInfo(name)  # of 1980, whenever it is made: the same images give the same file
            member.external_attr = 0o644 << 16
            opened.writestr(member, content)

        fill(write)
    finally:
        if archive is not None:
            archive.close()


def write_file(path: Path, content: bytes) -> None:
    """Write a file of a folder that is being made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)


def _words(image: Image.Image) -> str:
    return f"{image.width}×{image.height} {image.mode}"


def _square(picture: Picture, resolution: int | None, crop: bool) -> Image.Image:
    """The image as 8-bit grey or RGB, square, at the given resolution. Raises SettingError."""
    image = grey_or_rgb(picture.image)
    side = min(image.size)
    if crop:
        left, top = (image.width - side) // 2, (image.height - side) // 2
        image = image.crop((left, top, left + side, top + side))
    elif image.width != image.height:
        raise SettingError("crop", f"{shown(picture.name)} is {_words(image)}, not square; set it to take the centre of each image")
    if resolution and image.size != (resolution, resolution):
        image = image.resize((resolution, resolution), Image.Resampling.LANCZOS)
    return image


def _as_png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format="PNG")
    return buffer.getvalue()


def _pictures(source: Path, folder_labels: bool | None) -> Iterator[Picture]:
    try:
        if source.is_dir():
            yield from _folder(source, folder_labels)
        elif source.is_file() and zipfile.is_zipfile(source):
            raise UserError(f"{source}: is a ZIP; unpack it, or use it as it is if its images are all of one size")
        elif source.is_file():
            yield from _cifar(source)
        else:
            raise UserError(f"{source}: no such folder or file")
    except OSError as error:
        raise UserError(f"{source}: cannot be read: {error.strerror or error}") from None


def _folder(source: Path, folder_labels: bool | None) -> Iterator[Picture]:
    files = [path for path in files_below(source) if path.suffix.lower() in IMAGES]
    names = [file.relative_to(source).as_posix() for file in files]
    listed = source / "dataset.json"
    of: dict[str, int] = {}
    if listed.is_file() and not folder_labels:
        of = readable_labels(str(source), listed.read_bytes(), names) or {}
    elif folder_labels is not False:
        of = _classes_of_folders(list(map(Path, names)), at_least=1 if folder_labels else 2)
    for path, name in zip(files, names, strict=True):
        yield Picture(name, _opened(path), of.get(name))


def _opened(path: Path) -> Image.Image:
    try:
        return open_picture(path)
    except (ValueError, OSError) as error:
        raise UserError(f"{shown(path)}: not a readable image: {shown(error)}") from None


def _classes_of_folders(files: list[Path], at_least: int) -> dict[str, int]:
    """The classes of files by name: the number of their top-level folder. Files outside of folders are a class of their own, 0.

    None have a class if there are fewer than `at_least` folders.
    """
    folder = {file.as_posix(): file.parts[0] if len(file.parts) > 1 else "" for file in files}
    names = sorted(set(folder.values()))
    return {file: names.index(name) for file, name in folder.items()} if len(names) >= at_least else {}


class _CifarUnpickler(pickle.Unpickler):
    """Reads CIFAR-10's batches, which are Python 2 pickles of a dictionary with one numpy array. Refuses everything else."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in (("numpy.core.multiarray", "_reconstruct"), ("numpy._core.multiarray", "_reconstruct")):
            return _empty_array
        if (module, name) == ("numpy", "ndarray"):
            return None  # an argument of _reconstruct; called, it would make arrays of any size
        if (module, name) == ("numpy", "dtype"):
            return _byte_dtype
        raise pickle.UnpicklingError(f"it refers to {module}.{name}, which CIFAR-10's files do not")


def check_cifar(pickled: bytes) -> None:
    """Check that a batch is not too large or too long, and not nested: unpickling would follow tuples in tuples until the stack is
    full. And that it numbers its values one by one, for unpickling makes room for all lower numbers."""
    if len(pickled) > MOST_BYTES:
        raise ValueError(f"it has more than {MOST_BYTES:,} bytes")
    tuples = 0
    for count, (op, argument, _) in enumerate(pickletools.genops(pickled), 1):
        if count > MOST_STEPS:
            raise ValueError(f"it takes more than {MOST_STEPS:,} steps to unpickle")
        if op.name == "FRAME":  # which hides steps; CIFAR-10's pickles are older
            raise ValueError("it has a frame")
        tuples += op.name.startswith("TUPLE")
        if tuples > MOST_TUPLES:
            raise ValueError("it holds tuples in tuples")
        if op.name.endswith("PUT") and argument is not None and argument > count:
            raise ValueError(f"it numbers a value {argument} after only {count} steps")


def _empty_array(*_: object) -> np.ndarray[Any, Any]:
    return np.ndarray((0,), np.uint8)


def _byte_dtype(code: Any, *_: object) -> np.dtype[Any]:
    if code not in (b"u1", "u1"):
        raise pickle.UnpicklingError("its array does not hold bytes")
    return np.dtype(np.uint8)


class FileOrFolder(tarfile.TarInfo):
    """What CIFAR-10's tarball has as members. tarfile takes very long for what some other kinds say of the member that follows."""

    @classmethod
    def frombuf(cls, buf: bytes, encoding: str, errors: str) -> FileOrFolder:  # type: ignore[override]
        found = super().frombuf(buf, encoding, errors)
        if found.type not in (tarfile.REGTYPE, tarfile.AREGTYPE, tarfile.DIRTYPE) and found.size > MOST_SAID:
            raise tarfile.ReadError("it has a member that is neither a file nor a folder")
        return found


@contextmanager
def tarball(source: Path) -> Iterator[tarfile.TarFile]:
    """An open tarball, unpacked into a temporary file if it is compressed, and only up to a size. Raises UserError."""
    unlike = f"{source}: neither a folder of images nor CIFAR-10's python tarball"
    try:
        with open(source, "rb") as file:
            start = file.read(6)
        unpack = next((unpack for magic, unpack in PACKED.items() if start.startswith(magic)), None)
        with tempfile.TemporaryFile() as whole:
            if unpack is not None:
                with unpack(source) as packed:
                    while piece := packed.read(2**20):
                        whole.write(piece)
                        if whole.tell() > MOST_UNPACKED:
                            raise UserError(f"{unlike}: it is larger than that")
                whole.seek(0)
            with tarfile.open(None if unpack else source, "r:", whole if unpack else None, tarinfo=FileOrFolder) as archive:
                yield archive
    except tarfile.ReadError as error:
        raise UserError(f"{unlike} ({error})") from None
    except (EOFError, tarfile.TarError, zlib.error, lzma.LZMAError) as error:
        raise UserError(f"{source}: is damaged, or was not downloaded completely: {error}") from None
    except OSError as error:
        raise UserError(f"{source}: cannot be unpacked: {error.strerror or error}") from None
    except (ArithmeticError, LookupError, ValueError) as error:  # tarfile trusts the numbers in sparse members' headers
        raise UserError(f"{source}: is damaged: {type(error).__name__}: {shown(error, 100)}") from None


def _cifar(source: Path) -> Iterator[Picture]:
    """The 50,000 training images of cifar-10-python.tar.gz, in order."""
    with tarball(source) as archive:
        members = [(Path(m.name).name, m) for m in itertools.islice(archive, MOST_MEMBERS) if m.isfile()]
        names = [name for name, _ in members]
        if not any(batch in names for batch in BATCHES):
            raise UserError(f"{source}: not CIFAR-10's python tarball: it has no {BATCHES[0]}")
        for batch in BATCHES:
            if names.count(batch) != 1:  # at a damaged header tarfile takes the archive for ended
                has = "no" if batch not in names else "more than one"
                raise UserError(f"{source}: is damaged, or not complete: it has {has} {batch}")
        for batch in BATCHES:
            file = archive.extractfile(dict(members)[batch])
            assert file is not None
            try:
                images, labels = _batch(file.read(MOST_BYTES + 1))
            except Exception as error:
                raise UserError(f"{source}: {batch} is damaged, or not CIFAR-10's: {shown(error)}") from None
            for i, (image, label) in enumerate(zip(images, labels, strict=True)):
                yield Picture(f"{batch}[{i}]", Image.fromarray(np.ascontiguousarray(image)), label)


def _batch(pickled: bytes) -> tuple[np.ndarray[Any, Any], list[int]]:
    """The images [n, 32, 32, 3] and class numbers of a batch. Raises whatever is wrong with it."""
    check_cifar(pickled)
    content = _CifarUnpickler(io.BytesIO(pickled), encoding="bytes").load()
    data, labels = content[b"data"], content[b"labels"]
    if not (isinstance(data, np.ndarray) and data.dtype == np.uint8 and data.ndim == 2 and data.shape[1] == 3072):
        raise ValueError("its data are no images of 32×32 pixels in three colours")
    if not (type(labels) is list and len(labels) == len(data)):
        raise ValueError("it has no list with a label for each image")
    for label in labels:
        if type(label) is not int or not 0 <= label < MOST_CLASSES:
            short = repr(label[:40]) if isinstance(label, bytes | str) else repr(label) if isinstance(label, int | float) else ""
            raise ValueError(f"{short or f'a {kind(label)}'} is no class number")
    return data.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1), labels
