"""Data sets in EDM's layout: made, read, refused."""

from __future__ import annotations

import gzip
import io
import json
import math
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from registry.cli.group import interrupt
from registry.core.errors import Interrupted, UserError
from registry.edm.archive import make_dataset
from registry.edm.datasets import grey_or_rgb, load_images
from registry.edm.image_files import MOST_PIXELS_A_BYTE, PIXELS_A_BYTE, open_picture, scans
from registry.show import journal
from registry.show.images import read_images
from tests.conftest import ROOT, environment, error_line

Cli = Callable[..., subprocess.CompletedProcess[str]]
X, SIGMA = torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(0)), torch.tensor([0.5, 2.0])


def pictures(folder: Path, size: tuple[int, int] = (10, 8), count: int = 5) -> Path:
    rng = np.random.default_rng(0)
    for i in range(count):
        path = folder / ("cats" if i % 2 else "dogs") / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (*size, 3), dtype=np.uint8)).save(path)
    return folder


@pytest.mark.parametrize("dest", ["set.zip", "set.v2"])
def test_a_data_set_made_from_a_folder_has_edms_layout_and_reads_back(dest: str, cli: Cli, tmp_path: Path) -> None:
    done = cli("dataset", pictures(tmp_path / "raw"), tmp_path / dest, "--crop", "--resolution", "4")
    assert done.returncode == 0, done.stderr
    assert "5 images of 4×4, RGB, 2 classes" in done.stdout
    found = load_images(str(tmp_path / dest))
    assert found.pixels.shape == (5, 3, 4, 4)
    assert found.classes is not None
    assert found.classes.tolist() == [0, 0, 1, 1, 1]
    if dest.endswith(".zip"):
        with zipfile.ZipFile(tmp_path / dest) as archive:
            assert archive.namelist()[0] == "00000/img00000000.png"
            assert all(i.compress_type == zipfile.ZIP_STORED for i in archive.infolist())
            assert {i.date_time for i in archive.infolist()} == {(1980, 1, 1, 0, 0, 0)}  # the same images, the same bytes
            assert json.loads(archive.read("dataset.json"))["labels"][0] == ["00000/img00000000.png", 0]
    source = tmp_path / dest if dest == "set.v2" else tmp_path / "raw"  # the labels of a data set are copied
    again = cli("dataset", source, tmp_path / "copy", "--crop", "--resolution", "4", "--no-folder-labels")
    assert again.returncode == 0, again.stderr
    assert ("2 classes" in again.stdout) == (dest == "set.v2")


def labels_of(source: Path, dest: Path, folder_labels: bool | None = None) -> list[int] | None:
    make_dataset(str(source), str(dest), 4, crop=True, folder_labels=folder_labels)
    found = load_images(str(dest)).classes
    return None if found is None else found.tolist()


def test_where_labels_come_from(tmp_path: Path) -> None:
    """As in EDM's tool: dataset.json, otherwise the top-level folders if there are several; a flag overrides both."""
    raw = pictures(tmp_path / "raw", count=4)
    (raw / "dogs" / "old.v1").mkdir()
    (raw / "dogs" / "2.png").rename(raw / "dogs" / "old.v1" / "2.png")
    assert labels_of(raw, tmp_path / "default") == [0, 0, 1, 1]  # cats/1, cats/3, dogs/0, dogs/old.v1/2
    assert labels_of(raw, tmp_path / "off", False) is None
    assert labels_of(raw / "cats", tmp_path / "flat") is None
    one = tmp_path / "one"
    (one / "only").mkdir(parents=True)
    (raw / "cats" / "1.png").rename(one / "only" / "1.png")
    assert labels_of(one, tmp_path / "single") is None
    assert labels_of(one, tmp_path / "asked", True) == [0]
    (raw / "cats" / "3.png").rename(raw / "3.png")
    assert labels_of(raw, tmp_path / "mixed") == [0, 1, 1]  # images outside of folders are the first class
    (raw / "dataset.json").write_text(json.dumps({"labels": [["3.png", 5], ["dogs/0.png", 6], ["dogs/old.v1/2.png", 7]]}))
    assert labels_of(raw, tmp_path / "listed") == labels_of(raw, tmp_path / "listed2", False) == [5, 6, 7]
    assert labels_of(raw, tmp_path / "overridden", True) == [0, 1, 1]
    (raw / "dataset.json").write_text('{"labels": null}')
    assert labels_of(raw, tmp_path / "none") is None  # it says that there are none


def test_an_archive_of_another_kind_is_not_made_as_a_folder(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"a data set is a \.zip or a folder, not a \.tar"):
        make_dataset(str(pictures(tmp_path / "raw")), str(tmp_path / "set.tar"), 4, crop=True)


def batch(data: np.ndarray, labels: bytes, shape: bytes = b"K\x04M\x00\x0c\x86", memo: bytes = b"q\x01") -> bytes:
    """A batch of CIFAR-10, as Python 2 wrote it: `labels` are the instructions that push them."""
    return (
        b"\x80\x02}" + memo + b"(U\x04datacnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b\x87R"
        b"(K\x01" + shape + b"cnumpy\ndtype\nU\x02u1K\x00K\x01\x87R(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb\x89"
        b"T" + data.nbytes.to_bytes(4, "little") + data.tobytes() + b"tbU\x06labels](" + labels + b"eU\x0bbatch_labelU\x01xu."
    )  # fmt: skip


FOUR = np.random.default_rng(0).integers(0, 256, (5, 4, 3072), dtype=np.uint8)
LABELS = b"K\x00K\x07K\x01K\x09"
WHOLE = [batch(data, LABELS) for data in FOUR]


def tarball(path: Path, *batches: bytes, names: Sequence[int] = (1, 2, 3, 4, 5)) -> Path:
    """A tarball of batches, the last of them until there are five."""
    with tarfile.open(path, "w:gz" if path.suffix == ".gz" else "w") as archive:
        for i, number in enumerate(names):
            content = batches[min(i, len(batches) - 1)]
            info = tarfile.TarInfo(f"cifar-10-batches-py/data_batch_{number}")
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return path


def test_cifar_tarball(tmp_path: Path) -> None:
    tarball(tmp_path / "cifar.tar.gz", *WHOLE)
    assert "20 images of 32×32, RGB, 4 classes" in make_dataset(str(tmp_path / "cifar.tar.gz"), str(tmp_path / "c.zip"))
    found = load_images(str(tmp_path / "c.zip"))
    assert np.array_equal(found.pixels.numpy(), FOUR.reshape(-1, 3, 32, 32))
    assert found.classes is not None and found.classes.tolist() == [0, 7, 1, 9] * 5


@pytest.mark.parametrize(
    ("names", "missing"),
    [((1, 2, 3), "no data_batch_4"), ((3,), "no data_batch_1"), ((1, 1, 2, 3, 4, 5), "more than one data_batch_1")],
)
def test_a_tarball_without_all_batches_is_not_taken_for_whole(
    names: tuple[int, ...], missing: str, here: Cli, tmp_path: Path
) -> None:
    source = tarball(tmp_path / "c.tar", *WHOLE, names=names)
    assert error_line(here("dataset", source, tmp_path / "c.zip")).endswith(f"is damaged, or not complete: it has {missing}")
    assert not (tmp_path / "c.zip").exists()


def test_a_damaged_header_does_not_end_a_tarball_early(here: Cli, tmp_path: Path) -> None:
    source = tarball(tmp_path / "c.tar", *WHOLE)
    content = bytearray(source.read_bytes())
    content[content.index(b"data_batch_3")] ^= 1
    source.write_bytes(content)
    assert "is damaged, or not complete: it has no data_batch_3" in error_line(here("dataset", source, tmp_path / "c.zip"))


ODD_BATCHES = {
    "a negative label": (batch(FOUR[0], b"K\x00K\x07K\x01J\xfb\xff\xff\xff"), "-5 is no class number"),
    "a class of ten million": (batch(FOUR[0], b"K\x00K\x07K\x01J\x80\x96\x98\x00"), "10000000 is no class number"),
    "half a class": (batch(FOUR[0], b"K\x00K\x07K\x01F0.5\n"), "0.5 is no class number"),
    "truth for a class": (batch(FOUR[0], b"K\x00K\x07K\x01\x88"), "True is no class number"),
    "a very long text for a class": (
        batch(FOUR[0], b"K\x00K\x07K\x01T" + (10**6).to_bytes(4, "little") + bytes(10**6)), "\\x00' is no class number",
    ),
    "a list for a class": (batch(FOUR[0], b"K\x00K\x07K\x01]"), "a list is no class number"),
    "a text for a class": (batch(FOUR[0], b"K\x00K\x07K\x01U\x017"), "b'7' is no class number"),
    "too few labels": (batch(FOUR[0], LABELS[:-2]), "no list with a label for each image"),
    "other images": (batch(FOUR[0], LABELS, shape=b"K\x08M\x00\x06\x86"), "no images of 32×32 pixels"),
    "a number far above": (batch(FOUR[0], LABELS, memo=b"r\x00\x00\x00\x10"), "numbers a value 268435456 after only"),
    "the same as text": (batch(FOUR[0], LABELS, memo=b"p536870912\n"), "numbers a value 536870912 after only"),
    "an array that is made": (
        b"\x80\x02}(U\x04datacnumpy\nndarray\nJ@B\x0f\x00M\x00\x0c\x86cnumpy\ndtype\nU\x02u1K\x00K\x01\x87R\x86RU\x06labels]u.",
        "'NoneType' object is not callable",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", ODD_BATCHES)
def test_a_batch_that_is_not_cifars(case: str, here: Cli, tmp_path: Path) -> None:
    content, wanted = ODD_BATCHES[case]
    line = error_line(here("dataset", tarball(tmp_path / "c.tar.gz", *WHOLE[:2], content), tmp_path / "c.zip"))
    assert "data_batch_3 is damaged, or not CIFAR-10's" in line and wanted in line
    assert [p.name for p in tmp_path.iterdir()] == ["c.tar.gz"]


def test_a_hostile_tarball_runs_nothing(tmp_path: Path) -> None:
    source = tarball(tmp_path / "c.tar", b"\x80\x02cposix\nsystem\nX\x0c\x00\x00\x00touch canary\x85R.")
    with pytest.raises(UserError, match=r"it refers to posix\.system"):
        make_dataset(str(source), str(tmp_path / "c.zip"))
    assert [p.name for p in tmp_path.iterdir()] == ["c.tar"]


def test_a_tarball_that_ends_too_early_is_damaged(here: Cli, tmp_path: Path) -> None:
    whole = tarball(tmp_path / "c.tar.gz", np.random.default_rng(0).bytes(100_000))
    for length in (60_000, 20):
        whole.write_bytes(whole.read_bytes()[:length])
        message = error_line(here("dataset", whole, tmp_path / "c.zip"))
        assert "c.tar.gz" in message and "interrupted" not in message
    assert [p.name for p in tmp_path.iterdir() if p.suffix != ".gz"] == []


def test_tuples_in_tuples_do_not_end_the_process(here: Cli, tmp_path: Path) -> None:
    """As the key of a dictionary they would be hashed one within the other, until the stack is full."""
    nested = b"\x80\x02}(" + b")" + b"\x85" * 200_000 + b"K\x01u."
    message = error_line(here("dataset", tarball(tmp_path / "c.tar.gz", nested), tmp_path / "c.zip"))
    assert "data_batch_1 is damaged, or not CIFAR-10's: it holds tuples in tuples" in message
    assert [p.name for p in tmp_path.iterdir()] == ["c.tar.gz"]


def test_a_tarball_is_unpacked_up_to_a_size(here: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A member of zeros takes a few bytes, and would have to be unpacked to find the next."""
    monkeypatch.setattr("registry.edm.archive.MOST_UNPACKED", 2**20)
    for name, zeros in (("gz", 2**20), ("bz2", 2**21), ("xz", 2**21)):
        with tarfile.open(tmp_path / f"c.tar.{name}", f"w:{name}") as archive:
            info = tarfile.TarInfo("big")
            info.size = zeros
            archive.addfile(info, io.BytesIO(bytes(zeros)))
        message = error_line(here("dataset", tmp_path / f"c.tar.{name}", tmp_path / "c.zip"))
        assert "neither a folder of images nor CIFAR-10's python tarball: it is larger than that" in message
    (tmp_path / "c.gz").write_bytes(gzip.compress(b"no tarball" * 100))
    assert "neither a folder of images nor" in error_line(here("dataset", tmp_path / "c.gz", tmp_path / "c.zip"))


@pytest.mark.parametrize("said", [{"size": "1" + 30 * "0"}, {"GNU.sparse.map": "1,x"}, {"GNU.sparse.size": "x"}])
def test_a_tarball_whose_numbers_are_none_is_damaged(said: dict[str, str], here: Cli, tmp_path: Path) -> None:
    member = tarfile.TarInfo("data_batch_1")
    member.pax_headers = said
    (tmp_path / "c.tar").write_bytes(member.tobuf(tarfile.PAX_FORMAT) + bytes(1024))
    assert "c.tar: is damaged: ValueError: " in error_line(here("dataset", tmp_path / "c.tar", tmp_path / "c.zip"))


def test_what_is_no_source_or_no_image_is_said(here: Cli, tmp_path: Path) -> None:
    pictures(tmp_path / "raw", (8, 8), 2)
    Image.new("L", (8, 8)).save(tmp_path / "raw" / "old.GIF")
    (tmp_path / "raw" / "notes").write_text("mine")
    made = here("dataset", tmp_path / "raw", tmp_path / "set.zip", "--crop")
    assert made.returncode == 0 and made.stdout.endswith("; files left out: 2 (.gif)\n"), made.stdout + made.stderr
    inside = here("dataset", tmp_path / "raw", tmp_path / "raw" / "set.zip", "--crop")
    assert inside.stdout.endswith("; files left out: 2 (.gif)\n"), "not what was just written"
    assert "set.zip: is a ZIP; unpack it, or use it as it is" in error_line(
        here("dataset", tmp_path / "set.zip", tmp_path / "b.zip")
    )


@pytest.mark.parametrize("pickled", [b"\x80\x02" + b"N0" * 2**20 + b".", b"\x80\x02(" + b"]" * 2**20 + b"l."])
def test_a_batch_that_takes_too_many_steps_is_not_unpickled(here: Cli, tmp_path: Path, pickled: bytes) -> None:
    message = error_line(here("dataset", tarball(tmp_path / "c.tar.gz", pickled), tmp_path / "c.zip"))
    assert "data_batch_1 is damaged, or not CIFAR-10's: it takes more than 262,144 steps to unpickle" in message


def test_sixteen_bits_become_the_nearest_eight() -> None:
    values = np.arange(65536, dtype=np.uint16).reshape(512, 128)
    wanted = (values.astype(np.float64) / 257).round().astype(np.uint8)
    assert np.array_equal(np.asarray(grey_or_rgb(Image.fromarray(values))), wanted)
    wide = values.astype(np.int32) * 2 - 30000  # of mode I: what is outside becomes the nearest
    assert np.array_equal(np.asarray(grey_or_rgb(Image.fromarray(wide))), (wide.clip(0, 65535) / 257).round().astype(np.uint8))


@pytest.mark.parametrize("side", [1, 129])
def test_a_feature_network_is_for_small_images(side: int, here: Cli, tmp_path: Path) -> None:
    for i in range(4):
        (tmp_path / "raw" / str(i % 2)).mkdir(parents=True, exist_ok=True)
        Image.new("L", (side, side), 60 * i).save(tmp_path / "raw" / str(i % 2) / f"{i}.png")
    make_dataset(str(tmp_path / "raw"), str(tmp_path / "set"))
    message = error_line(
        here("features", "--recipe", "digits_features", "--set", f"data.source={tmp_path / 'set'}", "--save", tmp_path / "f.pt")
    )
    assert f"has images of {side} pixels a side, and this network is for 2 to 128" in message


BAD_SETS: dict[str, tuple[Callable[[Path], Any], list[str], str]] = {
    "not square": (lambda p: pictures(p / "raw"), [], "not square; set it to take the centre"),
    "grey among colours": (lambda p: (pictures(p / "raw", (8, 8), 2), Image.new("L", (8, 8)).save(p / "raw" / "z.png")), [], "which are RGB; make all of them grey (L), or all RGB"),
    "mixed sizes": (lambda p: (pictures(p / "raw", (8, 8), 2), Image.new("RGB", (4, 4)).save(p / "raw" / "z.png")), [], "unlike the images before it; give one resolution for all"),
    "no images": (lambda p: (p / "raw").mkdir(), [], "no images in it"),
    "nowhere": (lambda p: None, [], "no such folder or file"),
    "damaged": (lambda p: ((p / "raw").mkdir(), (p / "raw" / "a.png").write_bytes(b"no")), [], "not a readable image"),
    "PostScript": (lambda p: ((p / "raw").mkdir(), (p / "raw" / "a.png").write_bytes(POSTSCRIPT)), [], "not a readable image"),
    "label missing": (lambda p: (pictures(p / "raw", (8, 8), 2), (p / "raw" / "dataset.json").write_text('{"labels": [["cats/1.png", 0]]}')), [], "dataset.json has no label for dogs/0.png (1 images have none)"),
    "dest there": (lambda p: (pictures(p / "raw"), (p / "out.zip").write_text("mine")), [], "already exists"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD_SETS)
def test_bad_data_sets_leave_nothing(case: str, cli: Cli, tmp_path: Path) -> None:
    prepare, args, wanted = BAD_SETS[case]
    prepare(tmp_path)
    before = sorted(p.name for p in tmp_path.iterdir())
    assert wanted in error_line(cli("dataset", tmp_path / "raw", tmp_path / "out.zip", *args))
    assert sorted(p.name for p in tmp_path.iterdir()) == before


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_a_data_set_that_is_interrupted_leaves_nothing(number: signal.Signals, tmp_path: Path) -> None:
    (tmp_path / "raw").mkdir()
    for i in range(2000):
        Image.new("L", (64, 64), i % 255).save(tmp_path / "raw" / f"{i}.png")
    words = [sys.executable, "-m", "registry.cli", "dataset", "raw", "out.zip"]
    run = subprocess.Popen(words, cwd=tmp_path, env=environment(), text=True, stderr=subprocess.PIPE)
    while not list(tmp_path.glob(".out.zip.*.distill")):
        assert run.poll() is None
    run.send_signal(number)
    assert (run.communicate(timeout=180)[1], run.returncode) == ("distill: interrupted\n", 128 + number)
    assert [p.name for p in tmp_path.iterdir()] == ["raw"]


def test_palettes_bits_and_depths_are_converted(tmp_path: Path) -> None:
    Image.new("P", (4, 4), 1).save(tmp_path / "skip.gif")  # not a supported kind of image
    palette = Image.new("P", (4, 4), 1)
    palette.putpalette([0, 0, 0, 200, 200, 200] + [0] * 762)
    Image.new("1", (4, 4), 1).save(tmp_path / "bits.png")
    assert load_images(str(tmp_path)).pixels.tolist() == [[[[255] * 4] * 4]]
    (tmp_path / "bits.png").unlink()
    palette.save(tmp_path / "palette.png")
    assert set(load_images(str(tmp_path)).pixels.flatten().tolist()) == {200}
    (tmp_path / "palette.png").unlink()
    Image.fromarray(np.full((4, 4), 65535, np.uint16)).save(tmp_path / "deep.png")
    assert set(load_images(str(tmp_path)).pixels.flatten().tolist()) == {255}


POSTSCRIPT = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 4 4\n%%EndComments\nshowpage\n%%EOF\n"


def labelled(folder: Path, label: object) -> None:
    (folder / "dataset.json").write_text(f'{{"labels": [["a.png", 0], ["b.png", {label}]]}}')


BAD_READS: dict[str, tuple[Callable[[Path], Any], str]] = {
    "json": (lambda p: (p / "dataset.json").write_text("{"), "dataset.json is not EDM's"),
    "label missing": (lambda p: (p / "dataset.json").write_text('{"labels": [["a.png", 1]]}'), "has no label for b.png"),
    "other size": (lambda p: Image.new("L", (5, 5)).save(p / "c.png"), "all must have the same shape"),
    "not square": (lambda p: Image.new("L", (5, 4)).save(p / "0.png"), "images must be square"),
    "infinite label": (lambda p: labelled(p, "Infinity"), "dataset.json is not EDM's"),
    "huge label": (lambda p: labelled(p, 10**30), "classes are 0 to 99,999"),
    "large label": (lambda p: labelled(p, 10**9), "classes are 0 to 99,999"),
    "negative label": (lambda p: labelled(p, -1), "has the class -1; classes are 0 to"),
    "half a class": (lambda p: labelled(p, 1.5), "1.5 is no class number"),
    "true": (lambda p: labelled(p, "true"), "True is no class number"),
    "one name twice": (lambda p: labelled(p, '1], ["b.png", 0'), "dataset.json has b.png more than once"),
    "nested json": (lambda p: (p / "dataset.json").write_text("[" * 100_000), "dataset.json is not EDM's"),
    "PostScript": (lambda p: (p / "c.png").write_bytes(POSTSCRIPT), "c.png is not a readable image: cannot identify image file"),
    "bomb": (lambda p: Image.new("1", (8000, 8000)).save(p / "c.png"), "it holds nothing but its size"),
    "larger bomb": (lambda p: Image.new("1", (20_000, 20_000)).save(p / "c.png"), "pixels"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD_READS)
def test_data_sets_that_cannot_be_read(case: str, tmp_path: Path) -> None:
    prepare, wanted = BAD_READS[case]
    for name in ("a.png", "b.png"):
        Image.new("L", (4, 4)).save(tmp_path / name)
    assert len(load_images(str(tmp_path))) == 2
    prepare(tmp_path)
    with pytest.raises(UserError, match=wanted):
        load_images(str(tmp_path))


def test_empty_images_do_not_fill_the_memory(tmp_path: Path) -> None:
    """Each is small enough to be an image; all of them together are 300 times their files."""
    Image.new("RGB", (1024, 1024)).save(tmp_path / "0.png")
    for i in range(1, 60):
        shutil.copy(tmp_path / "0.png", tmp_path / f"{i}.png")
    with pytest.raises(UserError, match="times the memory that they take in the file: they are empty"):
        load_images(str(tmp_path))


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_an_archive_with_two_members_of_one_name_is_refused(tmp_path: Path) -> None:
    Image.new("L", (4, 4)).save(tmp_path / "a.png")
    with zipfile.ZipFile(tmp_path / "set.zip", "w") as archive:
        for _ in range(2):
            archive.write(tmp_path / "a.png", "a.png")
    with pytest.raises(UserError, match=r"holds a\.png more than once"):
        load_images(str(tmp_path / "set.zip"))


def test_a_signal_while_images_are_read_is_not_taken_for_a_bad_image(tmp_path: Path) -> None:
    def interrupted_reading(delay: float) -> None:
        signal.setitimer(signal.ITIMER_REAL, delay)
        for _ in range(1000):
            load_images(str(tmp_path))

    for i in range(300):
        Image.new("L", (8, 8), i % 255).save(tmp_path / f"{i}.png")
    load_images(str(tmp_path))  # what it imports is loaded: in the middle of an import a signal ends the process
    before = signal.signal(signal.SIGALRM, interrupt)
    try:
        for delay in (0.002, 0.005, 0.01, 0.02, 0.03):
            with pytest.raises(Interrupted):
                interrupted_reading(delay)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def test_a_signal_while_loaded_modules_are_named_again_ends_a_command_in_order(tmp_path: Path) -> None:
    """PIL imports from itself for each image. That loads nothing, so nothing is left half-loaded: what was begun can be removed."""

    def at_the_import(frame: FrameType, event: str, argument: object) -> None:
        if event == "call" and frame.f_code.co_name == "_handle_fromlist":
            sys.setprofile(None)
            signal.raise_signal(signal.SIGALRM)

    def interrupted_reading() -> None:
        sys.setprofile(at_the_import)
        load_images(str(tmp_path))

    Image.new("L", (8, 8)).save(tmp_path / "0.png")
    load_images(str(tmp_path))
    before = signal.signal(signal.SIGALRM, interrupt)
    try:
        with pytest.raises(Interrupted):
            interrupted_reading()
    finally:
        sys.setprofile(None)
        signal.signal(signal.SIGALRM, before)


def test_two_commands_that_make_the_same_data_set_lose_no_image(tmp_path: Path) -> None:
    (tmp_path / "raw").mkdir()
    for i in range(600):
        Image.new("L", (32, 32), i % 255).save(tmp_path / "raw" / f"{i}.png")
    for target in ("out", "out.zip"):
        words = [sys.executable, "-m", "registry.cli", "dataset", "raw", target]
        both = [subprocess.Popen(words, cwd=tmp_path, env=environment(), text=True, stderr=subprocess.PIPE) for _ in range(2)]
        told = [run.communicate(timeout=180)[1] for run in both]
        assert sorted(run.returncode for run in both) == [0, 1], told
        assert sum("another process in the meantime" in text or "already exists" in text for text in told) == 1, told
        assert len(load_images(str(tmp_path / target))) == 600
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out", "out.zip", "raw"]


def test_damaged_and_swollen_archives_are_refused(tmp_path: Path) -> None:
    def made(content: bytes, how: int = zipfile.ZIP_STORED) -> bytearray:
        with zipfile.ZipFile(tmp_path / "a.zip", "w", how) as archive:
            archive.writestr("a.png", picture)
            archive.writestr("dataset.json", content)
        return bytearray((tmp_path / "a.zip").read_bytes())

    buffer = io.BytesIO()
    Image.new("L", (4, 4)).save(buffer, format="PNG")
    picture, labels = buffer.getvalue(), b'{"labels": [["a.png", 0]]}'
    assert len(load_images(str((made(labels), tmp_path / "a.zip")[1]))) == 1
    whole = made(labels)
    for at, value in ((whole.index(labels) + 3, 1), (whole.rindex(b"PK\x01\x02") + 10, 99), (whole.rindex(b"PK\x01\x02") + 6, 255)):
        damaged = bytearray(whole)
        damaged[at] ^= value
        (tmp_path / "a.zip").write_bytes(damaged)
        with pytest.raises(UserError, match=r"is not a ZIP of images, or is damaged"):
            load_images(str(tmp_path / "a.zip"))
    made(b'{"labels": null}' + b" " * 2**27, zipfile.ZIP_DEFLATED)
    with pytest.raises(UserError, match=r"dataset\.json would take 128 MiB"):
        load_images(str(tmp_path / "a.zip"))


def of_classes(folder: Path) -> Path:
    for name in "abc":
        (folder / name).mkdir(parents=True)
        Image.new("L", (8, 8)).save(folder / name / "1.png")
    return folder


def test_links_to_folders_are_followed(tmp_path: Path) -> None:
    folder = of_classes(tmp_path / "images")
    (folder / "c").rename(tmp_path / "elsewhere")
    (folder / "c").symlink_to("../elsewhere")
    assert "3 images of 8×8, L, 3 classes" in make_dataset(str(folder), str(tmp_path / "out.zip"))
    assert len(load_images(str(folder))) == 3


ODD_ENTRIES: dict[str, tuple[Callable[[Path], object], str]] = {
    "a link to nowhere": (lambda f: (f / "d").symlink_to("/of/nowhere"), "d: is a link that leads nowhere"),
    "an image that is a link to nowhere": (lambda f: (f / "a" / "2.png").symlink_to("gone.png"), "2.png: is a link that leads nowhere"),
    "labels that are a folder": (lambda f: (f / "dataset.json").mkdir(), "dataset.json: is no regular file"),
    "labels that are a pipe": (lambda f: os.mkfifo(f / "dataset.json"), "dataset.json: is no regular file"),
    "labels that are a device": (lambda f: (f / "dataset.json").symlink_to("/dev/zero"), "dataset.json: is no regular file"),
    "a link to the folder itself": (lambda f: (f / "a" / "up").symlink_to(f), "up: is a link to a folder that it stands in"),
}  # fmt: skip


@pytest.mark.parametrize("case", ODD_ENTRIES)
def test_nothing_is_left_out_of_a_folder_without_a_word(case: str, tmp_path: Path) -> None:
    make, text = ODD_ENTRIES[case]
    folder = of_classes(tmp_path / "images")
    make(folder)
    for read in (lambda: load_images(str(folder)), lambda: make_dataset(str(folder), str(tmp_path / "out.zip"))):
        with pytest.raises(UserError, match=text):
            read()
    assert [path.name for path in tmp_path.iterdir()] == ["images"]


def test_a_pipe_is_no_data_set_and_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(UserError, match="pipe: neither a folder nor a ZIP of images"):
        load_images(str(tmp_path / "pipe"))


@pytest.mark.skipif(os.getuid() != 0, reason="needs the rights to become another user")
def test_a_folder_or_list_that_may_not_be_read_is_named(tmp_path: Path) -> None:
    """As another user, for root may read everything. It is the source that is named, not the destination."""
    folder = of_classes(tmp_path / "images")
    (folder / "b").chmod(0)
    (listed := of_classes(tmp_path / "listed") / "dataset.json").write_text('{"labels": null}')
    listed.chmod(0)
    code = (
        "import os, sys; from registry.edm.archive import make_dataset; from registry.core.errors import UserError\n"
        "os.setuid(65534)\n"
        "for source in sys.argv[1:]:\n"
        "    try: print(make_dataset(source, 'out.zip'))\n"
        "    except UserError as error: print(error)\n"
    )
    (tmp_path / "out").mkdir()
    (tmp_path / "out").chmod(0o777)
    for place in (tmp_path, *tmp_path.parents[:3]):
        if place != Path("/tmp"):
            place.chmod(place.stat().st_mode | 0o055)
    done = subprocess.run([sys.executable, "-c", code, str(folder), str(tmp_path / "listed")], cwd=tmp_path / "out",
                          env=environment({"PYTHONPATH": str(ROOT)}), capture_output=True, text=True, check=False)  # fmt: skip
    first, second = done.stdout.splitlines()
    assert first == f"{folder / 'b'}: cannot be read: Permission denied"
    assert second == f"{tmp_path / 'listed'}: cannot be read: Permission denied"


def test_a_source_that_is_empty_is_not_the_working_folder(here: Cli, tmp_path: Path) -> None:
    assert "an argument is empty" in error_line(here("dataset", "", tmp_path / "out.zip"))
    with pytest.raises(UserError, match="the source is empty"):
        make_dataset("", str(tmp_path / "out.zip"))


def peak(module: str, call: str, cwd: Path) -> int:
    """The most bytes that a call takes in a process of its own, above what there was before."""
    script = (
        f"import resource\nfrom registry.edm.{module} import *\n"
        "def most(): return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024\n"
        f"before = most()\n{call}\nprint(most() - before)"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=cwd, env=environment(), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return int(done.stdout)


def test_no_two_copies_of_a_set_are_in_memory(tmp_path: Path) -> None:
    count, side, buffer = 3000, 128, io.BytesIO()
    Image.fromarray(np.zeros((side, side, 3), np.uint8)).save(buffer, "bmp")
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        for i in range(count):
            archive.writestr(f"{i:04d}.bmp", buffer.getvalue())
    assert peak("datasets", "load_images('a.zip')", tmp_path) < 1.5 * count * 3 * side**2


def test_reading_says_how_many_of_how_many(tmp_path: Path) -> None:
    told = list[tuple[int, int]]()
    load_images(str(pictures(tmp_path / "in", (8, 8))), told=lambda *now: told.append(now))
    assert told == [(i, 5) for i in range(1, 6)]


def test_reading_many_images_says_how_far_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(journal, "LINE_SECONDS", 0)
    read_images(str(pictures(tmp_path / "in", (8, 8))))
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 4 and lines[0].startswith("reading images: 1 of 5, eta ")


def test_a_picture_that_is_gone_over_too_often_is_refused(tmp_path: Path) -> None:
    """Each scan of a progressive JPEG takes some ten bytes, and goes over all pixels."""
    buffer = io.BytesIO()
    Image.new("L", (256, 256), 9).save(buffer, "jpeg", progressive=True)
    content = buffer.getvalue()
    last = content.rindex(b"\xff\xda")
    scan = content[last:-2]
    for count, fits in ((60, True), (200, False)):
        path = tmp_path / f"{count}.jpg"
        path.write_bytes(content[:-2] + scan * count + content[-2:])
        for given in (path, path.read_bytes()):
            assert scans(given) > count
            if fits:
                open_picture(given)
            else:
                with pytest.raises(ValueError, match="it goes over the picture more than 100 times"):
                    open_picture(given)


@pytest.mark.parametrize("mode", ["RGBA", "P", "CMYK", "WEBP"])
def test_a_small_file_does_not_fill_the_memory(mode: str, tmp_path: Path) -> None:
    """Of a picture of as many pixels as are read from a file below 1 MB."""
    side = math.isqrt(PIXELS_A_BYTE.get(mode, MOST_PIXELS_A_BYTE) * 2**20)
    (tmp_path / "in").mkdir()
    image = Image.new("RGB" if mode == "WEBP" else mode, (side, side), 7)
    path = tmp_path / "in" / {"CMYK": "a.jpg", "WEBP": "a.webp"}.get(mode, "a.png")
    image.save(path, progressive=True, compress_level=9, lossless=True, method=0)
    content = path.read_bytes()
    if mode == "WEBP":  # its length is in its head, and it holds chunks
        content += b"JUNK" + (10**6 - len(content) - 8).to_bytes(4, "little") + bytes(10**6 - len(content) - 8)
        content = content[:4] + (len(content) - 8).to_bytes(4, "little") + content[8:]
    path.write_bytes(content.ljust(10**6, b"\0"))  # not so small that it would be called empty
    shutil.copy(path, path.with_stem("b"))  # one is not kept while the next is read
    assert peak("archive", "make_dataset('in', 'o.zip', 8, crop=True)", tmp_path) < 2 * 10**6 + 512 * 2**20
