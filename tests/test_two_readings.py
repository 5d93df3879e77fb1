"""Files in which two loaders read different things: none of them is called safe, and what is called dangerous is not converted."""

from __future__ import annotations

import gzip
import io
import json
import os
import pickle
import struct
import subprocess
import tracemalloc
import zipfile
import zlib
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from registry.core import seal
from registry.core.errors import UserError
from registry.edm.datasets import load_images, readable_labels
from registry.edm.image_files import open_picture
from registry.edm.pickles import PickleError, disguised_program, list_globals
from registry.edm.snapshots import SnapshotPickler, persistent
from registry.files.bounds import STATE
from registry.files.describe import describe
from registry.files.formats import convert_network, save_network
from registry.files.npz import read_npz
from registry.files.plain import FORMAT, load, save
from registry.measure.inception import read_statistics
from tests.conftest import tiny_network
from tests.test_disguise import disguised, named_and_refused

Here = Callable[..., subprocess.CompletedProcess[str]]
Entry = tuple[str, bytes]


def members(entries: list[Entry]) -> bytes:
    """The members of a zip file, one after the other."""
    found = b""
    for name, content in entries:
        sizes = zlib.crc32(content), len(content), len(content), len(name), 0
        found += struct.pack("<4sHHHHHIIIHH", b"PK\3\4", 20, 0, 0, 0, 0x21, *sizes) + name.encode() + content
    return found


def directory(entries: list[Entry]) -> bytes:
    found, at = b"", 0
    for name, content in entries:
        sizes = zlib.crc32(content), len(content), len(content), len(name), 0, 0, 0, 0, 0, at
        found += struct.pack("<4sHHHHHHIIIHHHHHII", b"PK\1\2", 20, 20, 0, 0, 0, 0x21, *sizes) + name.encode()
        at += len(members([(name, content)]))
    return found


def two_end_records(shown: list[Entry], hidden: list[Entry]) -> bytes:
    """A long zip file. By the end record that lies before its end, Python finds the one list of members; by the one that its end
    names, and which lies in the comment, torch finds the other."""
    before, listed = members(hidden) + members(shown), directory(hidden)
    record = struct.pack("<4sQHHIIQQQ", b"PK\6\6", 44, 45, 45, 0, 0, len(hidden), len(hidden), len(listed))
    torchs, pythons = (record + struct.pack("<Q", at) for at in (len(before), len(before) - len(members(hidden))))
    start = len(before) + len(listed) + 56
    locator = struct.pack("<4sIQI", b"PK\6\7", 0, start + 20 + 22, 1)
    end = struct.pack("<4sHHHHIIH", b"PK\5\6", 0, 0, len(hidden), len(hidden), 2**32 - 1, 2**32 - 1, len(torchs))
    return before + listed + pythons + locator + end + torchs


def test_a_zip_file_with_two_end_records_is_refused(here: Here, tmp_path: Path) -> None:
    path, mark = tmp_path / "state.pt", tmp_path / "ran"
    good = pickle.dumps({"a": 1}, 2)
    bad = b"\x80\x02cos\nsystem\n(S'touch " + os.fsencode(mark) + b"'\ntR."
    length = max(len(good), len(bad))
    rest = [("archive/version", b"3\n"), ("archive/byteorder", b"little")]
    both = [[("archive/data.pkl", content.ljust(length, b"\0")), *rest] for content in (good, bad)]
    path.write_bytes(two_end_records(*both))
    with zipfile.ZipFile(path) as archive:
        where = archive.getinfo("archive/data.pkl").header_offset
        assert where == len(members(both[1])), "the test's file shows Python nothing good"
    assert "another end record than the one that its end names" in here("inspect", path).stderr and not mark.exists()
    torch.load(path, weights_only=False)
    assert mark.exists(), "the test's file is no program"


def test_a_program_behind_a_frame_that_is_cut_off_is_found(here: Here, tmp_path: Path) -> None:
    """Unpicklers in C refuse it, those in Python, such as joblib's, do not."""
    path, mark = tmp_path / "net.safetensors", tmp_path / "ran"
    run = b"cos\nsystem\n(S'touch " + os.fsencode(mark) + b"'\ntR."
    disguised(path, b"0\x95" + struct.pack("<Q", 10**9) + run)
    named_and_refused(path, mark, lambda file: pickle._loads(file.read_bytes()), here)  # type: ignore[attr-defined]


class Writes(torch.nn.Module):
    """A network of torch.jit that writes a file when it is loaded."""

    def __init__(self, mark: str) -> None:
        super().__init__()
        self.mark = mark

    @torch.jit.export
    def __getstate__(self) -> tuple[str, bool]:
        return self.mark, self.training

    @torch.jit.export
    def __setstate__(self, state: tuple[str, bool]) -> None:
        torch.save(torch.zeros(1), state[0])
        self.mark = state[0]
        self.training = state[1]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x


def moved(archive: bytes, by: int) -> bytes:
    """A zip file that begins so many bytes later in another file."""
    found, target = zipfile.ZipFile(io.BytesIO(archive)), io.BytesIO(bytes(by))
    with zipfile.ZipFile(target, "a") as other:
        for info in found.infolist():
            other.writestr(info.filename, found.read(info))
    return target.getvalue()[by:]


@pytest.mark.filterwarnings("ignore:.*is deprecated")
def test_a_network_of_torch_jit_at_the_end_of_another_file_is_found(here: Here, tmp_path: Path) -> None:
    path, mark, scripted = tmp_path / "old.pt", tmp_path / "ran", io.BytesIO()
    torch.jit.save(torch.jit.script(Writes(str(mark))), scripted)
    mark.unlink(missing_ok=True)

    def old_file(tail: bytes) -> bytes:
        written = io.BytesIO()
        tensor = torch.frombuffer(bytearray(tail), dtype=torch.uint8)
        torch.save({"a": tensor}, written, _use_new_zipfile_serialization=False)
        return written.getvalue()

    tail = moved(scripted.getvalue(), 0)
    before = len(old_file(tail)) - len(tail)
    path.write_bytes(old_file(moved(scripted.getvalue(), before)))
    done = here("inspect", path)
    assert done.returncode == 3 and "the pickle in the zip archive that it is, too" in done.stdout
    assert not mark.exists()
    torch.jit.load(path)
    assert mark.exists(), "the test's file is no program"


@pytest.mark.parametrize("relative", [False, True])
def test_a_zip_file_at_the_end_of_a_file_of_safetensors_is_found(relative: bool, here: Here, tmp_path: Path) -> None:
    """By the place that its end record names, or right before that record."""
    path, written = tmp_path / "net.safetensors", io.BytesIO()
    with zipfile.ZipFile(written, "w") as archive:
        archive.writestr("x/data.pkl", b"N.")
    path.write_bytes(bytes(100) + (written.getvalue() if relative else moved(written.getvalue(), 100)))
    found = disguised_program(path)
    assert found is not None and found.name == "the pickle in the zip archive that it is, too"


def test_a_zip_file_whose_end_leads_nowhere_is_found(here: Here, tmp_path: Path) -> None:
    """Python's zipfile does not go where the locator says: it takes the record right before it."""
    path, mark = tmp_path / "net.pkl", tmp_path / "ran"
    head = b"\x80\x04}\x8c\x01zB" + bytes(4)
    entry = ("p.pkl", b"cos\nsystem\n(S'touch " + os.fsencode(mark) + b"'\ntR.")
    before, listed = members([entry]), directory([entry])
    record = struct.pack("<4sQHHIIQQQQ", b"PK\6\6", 44, 45, 45, 0, 0, 1, 1, len(listed), len(before))
    end = struct.pack("<4sHHHHIIH", b"PK\5\6", 0, 0, 1, 1, 2**32 - 1, 2**32 - 1, 2)
    content = before + listed + record + struct.pack("<4sIQI", b"PK\6\7", 0, 7, 1) + end
    path.write_bytes(head[:-4] + struct.pack("<I", len(content)) + content + b"s.")
    done = here("inspect", path)
    assert done.returncode == 3 and "the pickle in the zip archive that it is, too" in done.stdout
    assert list(pickle.loads(path.read_bytes())) == ["z"] and not mark.exists()
    with zipfile.ZipFile(path) as archive:
        pickle.loads(archive.read("p.pkl"))
    assert mark.exists(), "the test's file is no program"


@pytest.mark.parametrize("comment", [0, 65_000, 65_535])
def test_a_long_comment_hides_no_end_record(comment: int, tmp_path: Path) -> None:
    path = tmp_path / "state.pt"
    entries = [("archive/data.pkl", pickle.dumps({"a": 1}, 2)), ("archive/version", b"3\n")]
    before, listed = members(entries), directory(entries)
    wrong = struct.pack("<4sQHHIIQQQQ", b"PK\6\6", 44, 45, 45, 0, 0, 2, 2, len(listed), len(before) + 1)
    locator = struct.pack("<4sIQI", b"PK\6\7", 0, len(before) + len(listed), 1)
    end = struct.pack("<4sHHHHIIH", b"PK\5\6", 0, 0, 2, 2, len(listed), len(before), comment)
    path.write_bytes(before + listed + wrong + locator + end + bytes(comment))
    with pytest.raises(UserError):
        list_globals(path)


def test_shapes_and_parameters_are_written_as_plain_values(tmp_path: Path) -> None:
    """A plugin's network may have a shape among its arguments; and files that hold such things as they are can still be read."""
    content = {
        "parts": {},
        "networks": {},
        "nimg": 0,
        "rng": [],
        "recipe": {},
        "x": torch.Size((1, 8)),
        "y": torch.nn.Parameter(torch.ones(2)),
    }
    save(tmp_path / "new.pt", STATE, content)
    assert [name for _, name, _ in list_globals(tmp_path / "new.pt")] == ["_rebuild_tensor_v2", "FloatStorage", "OrderedDict"]
    with open(tmp_path / "old.pt", "w+b") as file:
        torch.save({"format": FORMAT, "kind": STATE, **content}, file)
        seal.seal(file)
    for path in (tmp_path / "new.pt", tmp_path / "old.pt"):
        found = load(path, STATE)
        assert tuple(found["x"]) == (1, 8) and found["y"].tolist() == [1, 1]


def test_an_array_of_objects_in_a_file_of_tensors_is_refused(tmp_path: Path) -> None:
    """numpy.load would unpickle it."""
    path, written = tmp_path / "net.pt", io.BytesIO()
    np.save(written, np.array([print], dtype=object), allow_pickle=True)
    save_network(path, "generator", tiny_network(), {"D": 128.0})
    content = torch.load(path, weights_only=True)
    content["weights"]["extra"] = torch.frombuffer(bytearray(written.getvalue()), dtype=torch.uint8)
    with open(path, "w+b") as file:
        torch.save(content, file)
        seal.seal(file)
    with pytest.raises(UserError, match="is an array of numpy's, which may hold a pickle"):
        describe(str(path))


def test_no_flipped_bit_hides_what_an_npz_file_holds(tmp_path: Path) -> None:
    """In its directory: Python counts no entries, so a longer one swallows the next."""
    written = io.BytesIO()
    np.savez(written, mu=np.zeros(2), sigma=np.eye(2), inception=np.array("0123"), num_images=np.array(5))
    whole, hidden = written.getvalue(), 0
    for place in range(whole.index(b"PK\1\2"), len(whole)):
        for bit in range(8):
            damaged = bytearray(whole)
            damaged[place] ^= 1 << bit
            (tmp_path / "a.npz").write_bytes(damaged)
            with suppress(zipfile.BadZipFile, UserError, NotImplementedError):
                hidden += len(zipfile.ZipFile(io.BytesIO(damaged)).infolist()) < 4
                found = read_npz(tmp_path / "a.npz", "a.npz", 2**20)
                assert found.keys() == {"mu", "sigma", "inception", "num_images"}, (place, bit)
    assert hidden, "no flipped bit hides anything"


@pytest.mark.parametrize("dimensions", ["1L," + "1," * 4950, "1," * 33, "1L,"])
def test_a_header_that_numpy_would_go_through_in_python_is_refused(dimensions: str, tmp_path: Path) -> None:
    header = f"{{'descr':'|u1','fortran_order':False,'shape':({dimensions})}}\n".encode()
    array = b"\x93NUMPY\x01\0" + struct.pack("<H", len(header)) + header + b"\0"
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
        for i in range(3):
            archive.writestr(f"a{i}.npy", array)
    with pytest.raises(UserError, match="or with a header, that is not read here"):
        read_npz(tmp_path / "a.npz", "a.npz", 2**20)


def test_arrays_of_all_kinds_are_read(tmp_path: Path) -> None:
    arrays = {
        "fortran": np.asfortranarray(np.arange(12.0).reshape(3, 4)), "scalar": np.zeros(()), "text": np.array(["ab", "c"]),
        "none": np.zeros((0, 3), np.float16), "many": np.zeros((1,) * 32, np.complex64), "truth": np.ones(3, bool),
        "big": np.arange(5, dtype=">i8"), "when": np.array(["2026-11-30"], "datetime64[ms]"),
    }  # fmt: skip
    for write in (np.savez, np.savez_compressed):
        write(tmp_path / "a.npz", **arrays)  # type: ignore[arg-type]
        found = read_npz(tmp_path / "a.npz", "a.npz", 2**20)
        assert found.keys() == arrays.keys() and all(np.array_equal(found[name], arrays[name]) for name in arrays)


def test_an_old_text_that_is_read_in_several_ways_hides_nothing(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"\x80\x02}S'\xc3\xa9'\n0cos\nsystem\n.")
    assert ("os", "system", True) in list_globals(path)
    path.write_bytes(b"\x80\x02}S'\xc3\xa9'\nS'system'\n\x93.")
    assert any(executes for *_, executes in list_globals(path))


def test_bytes_that_are_no_text_are_told_so(tmp_path: Path) -> None:
    strange = np.frombuffer(b"\xff" * 8, "<U2").reshape(())
    mu, sigma = np.zeros(4), np.eye(4)
    np.savez(tmp_path / "a.npz", mu=mu, sigma=sigma, inception=strange)
    with pytest.raises(UserError, match="its inception is no hash of a file"):
        read_statistics(str(tmp_path / "a.npz"), 4)


def test_what_is_compressed_is_no_file_of_another_format(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(gzip.compress(pickle.dumps(list(range(1000)))))
    found = disguised_program(tmp_path / "file")
    assert found is not None and found.name == "the pickle that is compressed in it"


def text(value: str) -> bytes:
    return b"X" + struct.pack("<I", len(value)) + value.encode()


STRANGE = {
    "a state of an EasyDict": b"cdnnlib.util\nEasyDict\n)\x81}b",
    "two states": b"ccollections\nOrderedDict\n)R}b}b",
    "an item after the state": b"ccollections\nOrderedDict\n)R}b" + text("k") + b"K\x01s",
}


@pytest.mark.parametrize("case", STRANGE)
def test_what_is_called_dangerous_is_not_converted(case: str, here: Here, tmp_path: Path) -> None:
    written = io.BytesIO()
    SnapshotPickler(written, protocol=2).dump({"ema": persistent(tiny_network())})
    (tmp_path / "a.pkl").write_bytes(written.getvalue()[:-1] + text("x") + STRANGE[case] + b"s.")
    assert here("inspect", tmp_path / "a.pkl").returncode == 3
    with pytest.raises(PickleError, match="in a way that no pickler does"):
        convert_network(str(tmp_path / "a.pkl"), str(tmp_path / "b.pt"), kind="denoiser")
    assert not (tmp_path / "b.pt").exists()


@pytest.mark.parametrize("ours", [{"about": []}, {"about": {"recipe": {"loss": 5}}}, {"about": {"recipe": 5}}])
def test_odd_facts_without_a_network_are_refused_in_a_line(ours: Any, here: Here, tmp_path: Path) -> None:
    (tmp_path / "a.pkl").write_bytes(pickle.dumps({"distill": ours}))
    done = here("inspect", tmp_path / "a.pkl")
    assert done.returncode == 1 and "is no file as distill writes them" in done.stderr, done


def test_kinds_of_numbers_that_are_not_known_execute_nothing(here: Here, tmp_path: Path) -> None:
    (tmp_path / "a.pkl").write_bytes(pickle.dumps({"a": torch.zeros(2, dtype=torch.complex64)}, 2))
    done = here("inspect", tmp_path / "a.pkl")
    assert done.returncode == 1 and "torch.ComplexFloatStorage" in done.stderr, done


def test_codes_in_a_files_text_are_no_pictures(here: Here, tmp_path: Path) -> None:
    (tmp_path / "a.pkl").write_bytes(pickle.dumps({":pile_of_poo:": 1}))
    assert ":pile_of_poo:" in here("inspect", tmp_path / "a.pkl").stdout


def with_scans(count: int) -> bytes:
    """A progressive JPEG that says it is the first of several (MPO, as some cameras write) and goes over its picture often."""
    written = io.BytesIO()
    Image.new("L", (64, 64)).save(written, "MPO", save_all=True, append_images=[Image.new("L", (64, 64))], progressive=True)
    whole = written.getvalue()
    scan = whole.rindex(b"\xff\xda", 0, whole.index(b"\xff\xd9"))
    end = whole.index(b"\xff\xd9", scan)
    return whole[:end] + whole[scan:end] * count + whole[end:]


def test_pictures_of_cameras_have_few_scans_too(tmp_path: Path) -> None:
    assert open_picture(with_scans(0)).size == (64, 64)
    with pytest.raises(ValueError, match="goes over the picture more than 100 times"):
        open_picture(with_scans(200))


def test_a_list_of_labels_holds_about_as_many_values_as_images(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="far more values than there are images"):
        readable_labels("a set", b'{"labels": [["a.png", 0]], "x": [' + b'"\xc4\x81",' * 2_100_000 + b"0]}", ["a.png"])
    with zipfile.ZipFile(tmp_path / "set.zip", "w") as archive:
        written = io.BytesIO()
        Image.new("L", (8, 8)).save(written, "PNG")
        archive.writestr("a.png", written.getvalue())
        archive.writestr("dataset.json", b'{"labels": [["a.png", 3]], "more": [[0, 1, 2, 3]]}')
    classes = load_images(str(tmp_path / "set.zip")).classes
    assert classes is not None and classes.tolist() == [3]


def test_a_name_that_is_cut_off_is_one(here: Here, tmp_path: Path) -> None:
    """Unpicklers in Python take the last line of a file without its end for a whole one, less one letter."""
    path, mark = tmp_path / "net.safetensors", tmp_path / "ran"
    save_network(path, "generator", tiny_network(), {"D": 128.0})
    whole = path.read_bytes()
    run = b"0(S'touch " + os.fsencode(mark) + b"'\nios\nsystemX"
    header = whole[8 : 8 + int.from_bytes(whole[:8], "little")]
    content = json.loads(header)
    size = len(whole) - 8 - len(header)
    content["zzz"] = {"dtype": "U8", "shape": [len(run)], "data_offsets": [size, size + len(run)]}
    # The first byte of the length is 'V', a line of text that ends with the header; tensors follow, so they are set to one 'N0N0…'.
    text = json.dumps(content).encode()
    length = len(text) + 1 + (ord("V") - len(text) - 1) % 256
    path.write_bytes(length.to_bytes(8, "little") + text.ljust(length - 1) + b"\n" + b"N0" * (size // 2) + run)
    with open(path, "r+b") as file:
        seal.seal(file)
    named_and_refused(path, mark, lambda file: pickle._loads(file.read_bytes()), here)  # type: ignore[attr-defined]


def rezipped(path: Path, more: dict[str, bytes], method: int = zipfile.ZIP_STORED) -> None:
    """One of our .pt files with more members, sealed again."""
    found = zipfile.ZipFile(io.BytesIO(path.read_bytes()))
    root = found.namelist()[0].partition("/")[0]
    with open(path, "w+b") as file:
        with zipfile.ZipFile(file, "w") as archive:
            for info in found.infolist():
                archive.writestr(info.filename, found.read(info))
            for name, content in more.items():
                archive.writestr(f"{root}/{name}", content, method)
        seal.seal(file)


@pytest.mark.parametrize("name", [".data/extern_modules", "data/model.pkl", "data/evil.py", ".data/x"])
def test_a_package_of_torch_is_no_file_of_ours(name: str, tmp_path: Path) -> None:
    path = tmp_path / "net.pt"
    save_network(path, "generator", tiny_network(), {"D": 128.0})
    rezipped(path, {name: b"os\n"})
    with pytest.raises(UserError, match=r"which torch\.save never writes"):
        describe(str(path))


def test_members_that_say_twice_where_they_are_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "state.pt"
    with zipfile.ZipFile(path, "w") as archive:
        info = zipfile.ZipInfo("archive/data.pkl")
        info.extra = struct.pack("<HHQ", 1, 8, 0) * 2
        archive.writestr(info, pickle.dumps({"a": 1}, 2))
    with pytest.raises(UserError, match="says twice how long its member"):
        describe(str(path))


def swollen(method: int) -> bytes:
    """A zip file of a kilobyte whose member says that it has ten bytes, and has millions."""
    written = io.BytesIO()
    with zipfile.ZipFile(written, "w") as archive:
        archive.writestr("a.png", bytes(2**26), method)
    content = written.getvalue()
    length = struct.pack("<I", 2**26)
    assert content.count(length) == 2
    return content.replace(length, struct.pack("<I", 10))


@pytest.mark.parametrize("method", [zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_a_member_is_not_unpacked_further_than_it_says(method: int, tmp_path: Path) -> None:
    path = tmp_path / "set.zip"
    path.write_bytes(swollen(method))
    (tmp_path / "ref.npz").write_bytes(swollen(method))
    tracemalloc.start()
    with pytest.raises(UserError, match=r"not a readable image|is not a ZIP of images"):
        load_images(str(path))
    with pytest.raises(UserError, match=r"not an \.npz file"):
        read_npz(tmp_path / "ref.npz", "ref.npz", 2**28)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2**24


def many_calls(called: bytes, argument: bytes) -> bytes:
    """A file that calls something twenty thousand times with one argument."""
    return b"\x80\x02(" + argument + b"q\x010" + called + b"q\x000" + b"h\x00h\x01R0" * 20_000 + b"}."


@pytest.mark.parametrize(
    ("called", "argument"),
    [
        (b"c_codecs\nencode\n", text("x" * 1000) + b"X\x06\0\0\0latin1\x86"),
        (b"c__builtin__\nset\n", b"](" + b"K\x01" * 1000 + b"e\x85"),
        (b"ctorch\nSize\n", b"(" + b"K\x01" * 1000 + b"t\x85"),
        (b"ccollections\nOrderedDict\n", b"}X\x01\0\0\0aK\x01s\x85"),
    ],
)
def test_calls_that_copy_are_not_made(called: bytes, argument: bytes, tmp_path: Path) -> None:
    path = tmp_path / "net.pt"
    content = many_calls(called, argument).replace(b"(" + argument, b"N0" + argument, 1)
    with open(path, "w+b") as file:
        with zipfile.ZipFile(file, "w") as archive:
            archive.writestr("archive/data.pkl", content)
            archive.writestr("archive/version", b"3\n")
        seal.seal(file)
    with pytest.raises(UserError, match=r"it refers to|makes a dictionary from another one|tuple of more than 16 values"):
        load(path, STATE)


@pytest.mark.parametrize("suffix", ["pt", "pkl", "safetensors"])
def test_one_text_in_many_places_is_counted_in_each(suffix: str, tmp_path: Path) -> None:
    path, same = tmp_path / f"net.{suffix}", "x" * 20_000
    save_network(path, "generator", tiny_network(), {"D": 128.0, "components": [same] * 1000})
    with pytest.raises(UserError, match="hold each other too many times"):
        describe(str(path))


def test_keys_of_a_networks_arguments_are_few_texts(tmp_path: Path) -> None:
    path = tmp_path / "net.pt"
    save_network(path, "generator", tiny_network(), {"D": 128.0})
    content = torch.load(path, weights_only=True)
    content["network"]["kwargs"] = dict.fromkeys(range(100_000))
    with open(path, "w+b") as file:
        torch.save(content, file)
        seal.seal(file)
    with pytest.raises(UserError, match=r"network\.kwargs: holds no entries by name"):
        describe(str(path))
