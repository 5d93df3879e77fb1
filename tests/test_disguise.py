"""Files that are programs if another loader opens them: named as such, and never read."""

from __future__ import annotations

import io
import json
import os
import pickle
import random
import struct
import subprocess
import zipfile
import zlib
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open

from registry.core import seal
from registry.core.errors import UserError
from registry.edm.pickles import PickleError, begins_a_pickle, disguised_program
from registry.files.formats import load_network, save_network
from tests.conftest import tiny_network
from tests.pickle_assembler import LOAD, ORDERED, PARAMETER, archive, call, data, dictionary, networks, pickled

Here = Callable[..., subprocess.CompletedProcess[str]]
MAGIC = 0x1950A86A20F9469CFC6C
"""What old files of torch.save begin with, a pickle of its own."""


def old_torch_file(path: Path) -> Any:
    """The suffix would tell torch what it is."""
    return torch.load(path.rename(path.with_suffix(".bin")), weights_only=False)


def program(mark: Path) -> bytes:
    return b"cos\nsystem\n(S'touch " + os.fsencode(mark) + b"'\ntR."


PROGRAMS: dict[str, tuple[Callable[[bytes], bytes], Callable[[Path], Any]]] = {
    "at once": (lambda run: b"0" + run, lambda path: pickle.loads(path.read_bytes())),
    "after a million instructions": (
        lambda run: b"0" + b"N0" * 500_005 + run, lambda path: pickle.loads(path.read_bytes()),
    ),
    "behind torch's mark as text": (
        lambda run: b"0L%dL\n." % MAGIC + run, old_torch_file,
    ),
    "behind torch's mark, twice": (
        lambda run: b"0\x8a\x0a" + pickle.encode_long(MAGIC) + b"2." + run, old_torch_file,
    ),
    "behind a text in Latin-1": (
        lambda run: b"0S'\xe9'\n0" + run, lambda path: pickle.loads(path.read_bytes(), encoding="latin1"),
    ),
    "named by strings": (
        lambda run: b"0\x8c\x02os\x8c\x06system\x93" + run.partition(b"system\n")[2], lambda path: pickle.loads(path.read_bytes()),
    ),
}  # fmt: skip


def disguised(path: Path, tail: bytes) -> None:
    """A sealed file of ours whose header a pickle takes for one line of text ('V'), and whose first tensor holds the tail."""
    save_network(path, "generator", tiny_network(), {"D": 128.0})
    raw = path.read_bytes()
    length = int.from_bytes(raw[:8], "little")
    header, data = json.loads(raw[8 : 8 + length]), raw[8 + length :]
    ours = json.loads(header["__metadata__"]["distill"]) | {"seal": seal.TEXT}
    longer = {
        "__metadata__": {"distill": json.dumps(ours)},
        "x": {"dtype": "U8", "shape": [len(tail)], "data_offsets": [0, len(tail)]},
    }
    for name, entry in header.items():
        if name != "__metadata__":
            longer[name] = entry | {"data_offsets": [at + len(tail) for at in entry["data_offsets"]]}
    text = json.dumps(longer).encode()
    size = len(text) + 1 + (ord("V") - len(text) - 1) % 256
    path.write_bytes(size.to_bytes(8, "little") + text + b" " * (size - len(text) - 1) + b"\n" + tail + data)
    with open(path, "r+b") as file:
        seal.seal(file)


def named_and_refused(path: Path, mark: Path, load: Callable[[Path], Any], here: Here, refusal: str | None = None) -> str:
    """What `inspect` says of a file that runs a program when it is loaded elsewhere. We refuse it, and run nothing."""
    done = here("inspect", path)
    assert done.returncode == 3, (done.stdout, done.stderr)
    with pytest.raises(UserError, match=refusal):
        load_network(str(path))
    assert not mark.exists()
    with suppress(Exception):  # what comes after the program need not be readable
        load(path)
    assert mark.exists(), "the test's file is no program"
    return done.stdout


@pytest.mark.parametrize("case", PROGRAMS)
def test_a_program_in_a_file_of_safetensors_is_found(case: str, here: Here, tmp_path: Path) -> None:
    make, load = PROGRAMS[case]
    path, mark = tmp_path / "net.safetensors", tmp_path / "ran"
    disguised(path, make(program(mark)))
    assert "DANGEROUS" in named_and_refused(path, mark, load, here, "opened as a pickle it would run")


MODULES = {
    "a name that nothing has": (lambda module: b"c" + module + b"\n \n", pickle.loads),
    "a module within it": (lambda module: b"c" + module + b"." + b"a" * 20_000 + b"\nx\n", pickle.loads),
    "behind a text in UTF-8": (lambda module: b"S'\xc3\xa9'\nc" + module + b"\n \n", lambda raw: pickle.loads(raw, encoding="latin1")),
    "no name": (lambda module: b"c" + module + b"\n\n", pickle._loads),  # type: ignore[attr-defined]
    "cut off in the middle": (lambda module: b"c" + module + b"\n", pickle._loads),  # type: ignore[attr-defined]
    "cut off behind a byte that is no text": (lambda module: b"c" + module + b"\xff", pickle._loads),  # type: ignore[attr-defined]
    "with a byte that is in no name": (lambda module: b"c" + module + b".a\0/\nx\n", pickle.loads),
}  # fmt: skip


@pytest.mark.parametrize("case", MODULES)
def test_what_is_only_imported_is_found(case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A loader imports a module before it looks for the name in it."""
    make, load = MODULES[case]
    mark, module = tmp_path / "ran", f"module_{len(case)}"
    (tmp_path / f"{module}.py").write_text(f"open({str(mark)!r}, 'w').close()\n")
    monkeypatch.syspath_prepend(tmp_path)
    header = b'{"a":{"dtype":"U8","shape":[0],"data_offsets":[0,0]}'
    header += b" " * ((ord("V") - len(header) - 2) % 256) + b"\n}"
    path = tmp_path / "file"
    path.write_bytes(len(header).to_bytes(8, "little") + header + make(module.encode()))
    found = disguised_program(path)
    assert found is not None and found.module.startswith(module) and not mark.exists()
    with suppress(Exception):
        load(path.read_bytes())
    assert mark.exists(), "the test's file is no program"


def test_no_pickle_begins_like_our_files_of_safetensors(tmp_path: Path) -> None:
    """Whatever the length of their headers: their weights are never mistaken for instructions."""
    first = set[int]()
    net = tiny_network()
    for length in range(0, 256, 8):
        path = tmp_path / "net.safetensors"
        save_network(path, "generator", net, {"D": 128.0, "teacher": "t" * length})
        first.add(path.read_bytes()[0])
        load_network(str(path), "generator")
        with safe_open(path, framework="pt") as file:
            assert all(torch.equal(file.get_tensor(name), weight) for name, weight in net.state_dict().items())
    assert len(first) > 5
    assert not any(begins_a_pickle(byte) for byte in first)


def test_harmless_files_are_no_programs(tmp_path: Path) -> None:
    """Headers of every length, and so with every first byte, before tensors of random bytes."""
    rng = random.Random(0)
    for first in range(256):
        text = json.dumps({"__metadata__": {"a": "b" * 300}}).encode()
        size = len(text) + (first - len(text)) % 256
        path = tmp_path / "file"
        path.write_bytes(size.to_bytes(8, "little") + text + b" " * (size - len(text)) + rng.randbytes(20_000))
        assert disguised_program(path) is None, first
    for more in range(0, 4096, 8):  # names of tensors, which instructions may begin in
        names = {f"{kind}_blocks.{i}.conv.in_layers.{i}.weight": {} for kind in ("down", "mid", "up") for i in range(9)}
        text = json.dumps({"__metadata__": {"format": "pt" + "x" * more}} | names).encode()
        size = len(text) + -len(text) % 8
        path.write_bytes(size.to_bytes(8, "little") + text + b" " * (size - len(text)) + rng.randbytes(2000))
        assert disguised_program(path) is None, more
    (tmp_path / "empty").touch()
    assert disguised_program(tmp_path / "empty") is None


def tar_header(over: bytes, name: bytes, size: int) -> bytes:
    """A tar archive's header that begins as these bytes do; they must be less than the 100 of its name."""
    start = over.ljust(100, b"\0")[:100] if over else name.ljust(100, b"\0")
    rest = b"0000644\0" + b"0000000\0" * 2 + b"%011o\0" % size + b"0" * 11 + b"\0" + b" " * 8 + b"0" + bytes(100) + b"ustar\00000"
    whole = (start + rest).ljust(512, b"\0")
    return whole[:148] + b"%06o\0 " % sum(whole) + whole[156:]


def old_stream_and_tarball(run: bytes) -> bytes:
    """An old file of torch.save that is also a tar archive: its third pickle, of a dictionary, has a text that holds the archive."""
    start = pickle.dumps(MAGIC, 2) + pickle.dumps(1001, 2) + b"\x80\x02}(X\x01\0\0\0pX"
    member = tar_header(b"", b"storages", len(run)) + run.ljust(512, b"\0")
    text = 512 - len(start) - 4 + len(member)
    first = tar_header(start + text.to_bytes(4, "little"), b"", 0)
    return first + member + b"X\x0d\0\0\0little_endian\x88u." + pickle.dumps({"step": 5}, 2) + pickle.dumps([], 2)


@pytest.mark.parametrize("suffix", [".pt", ".pkl"])
def test_a_tarball_in_a_file_of_pickles_is_found(suffix: str, here: Here, tmp_path: Path) -> None:
    """torch.load takes whatever is a tar archive for one of its oldest files."""
    path, mark = tmp_path / f"net{suffix}", tmp_path / "ran"
    path.write_bytes(old_stream_and_tarball(program(mark)))
    said = named_and_refused(path, mark, old_torch_file, here, "tar archive")
    assert "DANGEROUS: loading it elsewhere would run the pickles in the tar archive that it is, too" in said


def test_a_file_of_safetensors_that_is_a_tarball_is_found(here: Here, tmp_path: Path) -> None:
    path, mark = tmp_path / "net.safetensors", tmp_path / "ran"
    run = program(mark)
    member = tar_header(b"", b"storages", len(run)) + run.ljust(512, b"\0")
    text = b'{"__metadata__":{"a":"' + b"b" * (504 + len(member)) + b'"}}'
    size = 8 + len(text) + (-len(text) - 8) % 512
    first = tar_header((size - 8).to_bytes(8, "little") + text[:92], b"", size - 512)
    path.write_bytes(first + text[504:].ljust(size - 512) + member)
    assert "the tar archive that it is, too" in named_and_refused(path, mark, old_torch_file, here, "tar archive")


MARKS = {
    "as torch writes it": pickle.dumps(MAGIC, 2),
    "padded": b"\x80\x02\x8a\x0b" + MAGIC.to_bytes(11, "little") + b".",
    "numbered": b"\x80\x02\x8a\x0a" + MAGIC.to_bytes(10, "little") + b"q\0.",
    "as text": b"I%d\n." % MAGIC,
    "under other values": b"\x80\x02}\x8a\x0a" + MAGIC.to_bytes(10, "little") + b".",
}
"""The number that an older stream begins with, in ways that torch takes."""


def old_stream(mark: bytes, run: bytes) -> bytes:
    return mark + pickle.dumps(1001, 2) + pickle.dumps({"little_endian": True}, 2) + run + pickle.dumps([], 2)


@pytest.mark.parametrize("mark", MARKS)
def test_a_stream_is_followed_whatever_its_mark_looks_like(mark: str, here: Here, tmp_path: Path) -> None:
    """As a file, and in a place of a pickle that nothing of ours looks at: whether a parameter learns."""
    path, ran = tmp_path / "net.pt", tmp_path / "ran"
    path.write_bytes(old_stream(MARKS[mark], program(ran)))
    assert "os.system" in named_and_refused(path, ran, old_torch_file, here)
    ran.unlink()
    path, hidden = tmp_path / "net.pkl", call(LOAD, data(old_stream(MARKS[mark], program(ran))))
    parameter = call(PARAMETER, b"K\0", hidden, ORDERED + b")R")
    path.write_bytes(pickled(dictionary(net=parameter), 2))
    assert "os.system" in named_and_refused(path, ran, lambda path: pickle.loads(path.read_bytes()), here)


def other_members(run: bytes) -> dict[str, bytes]:
    """Zip files of torch.save, each with a program in a place where torch finds it, and Python's zipfile does not."""
    harmless = pickled(dictionary(), 2)

    def extra(real: str, told: str) -> bytes:
        return struct.pack("<HHBL", 0x7075, 5 + len(told), 1, zlib.crc32(real.encode())) + told.encode()

    def zipped(*members: tuple[str, bytes, bytes]) -> bytes:
        with zipfile.ZipFile(buffer := io.BytesIO(), "w") as file:
            file.writestr("a/version", b"3")
            for name, content, more in members:
                info = zipfile.ZipInfo(name)
                info.extra = more
                file.writestr(info, content)
        return buffer.getvalue()

    return {
        "in capitals": zipped(("a/data.pkl", harmless, b""), ("a/DATA.PKL", run, b"")),
        "in another folder": zipped(("a/DATA.PKL", run, b""), ("a/b/data.pkl", harmless, b"")),
        "behind a name that is cut": zipped(("a/data.pklQ", harmless, b""), ("a/DATA.pkl", run, b"")).replace(b"pklQ", b"pkl\0"),
        "under another name": zipped(("a/data.pkl", run, extra("a/data.pkl", "a/b")), ("a/b/data.pkl", harmless, b"")),
        "compressed": archive(run, {"version": b"3"}, zipfile.ZIP_DEFLATED),
    }


@pytest.mark.parametrize("case", other_members(b""))
def test_a_program_in_another_member_of_a_zip_file_is_found(case: str, here: Here, tmp_path: Path) -> None:
    """torch looks for names without regard to case, and as they are in the directory."""
    path, ran = tmp_path / "net.pt", tmp_path / "ran"
    path.write_bytes(other_members(program(ran))[case])
    assert "os.system" in named_and_refused(path, ran, lambda path: torch.load(path, weights_only=False), here)


@pytest.mark.parametrize("name", ["DATA/0", "Version", "notes", "data/", "code/x.py", "é", "data.pkl/x"])
def test_members_that_torch_never_writes_are_refused(name: str, tmp_path: Path) -> None:
    good, path = pickled(dictionary(), 2), tmp_path / "net.pt"
    path.write_bytes(archive(good, {".format_version": b"1", ".data/serialization_id": b"1", "version": b"3"}))
    networks(path)
    path.write_bytes(archive(good, {name: b"x"}))
    with pytest.raises(PickleError, match=r"which torch\.save never writes|appears twice"):
        networks(path)
