"""Pickles whose globals are all allowed, and which run a program nevertheless: found, and never safe."""

from __future__ import annotations

import io
import pickle
import struct
import subprocess
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest

from registry.edm.pickles import PickleError, disguised_program, list_globals, read_pickle
from tests.pickle_assembler import (
    BUFFER,
    FLOATS,
    LOAD,
    MARK,
    MODULES,
    NDARRAY,
    ORDERED,
    PARAMETER,
    RECONSTRUCT,
    SCALAR,
    archive,
    blob,
    call,
    data,
    dictionary,
    dtype,
    number,
    pickled,
    record,
    several,
    stream,
    tensor,
    text,
)  # fmt: skip

Here = Callable[..., subprocess.CompletedProcess[str]]
NO_HOOKS = dict.fromkeys(
    ("_modules", "_parameters", "_buffers", "_forward_hooks", "_backward_hooks", "_forward_pre_hooks", "_backward_pre_hooks"), b"}"
)


def program(ran: Path) -> bytes:
    return b"\x80\x04cos\nsystem\n" + text(f"touch '{ran}'") + b"\x85R."


def framed(length: int, inside: bytes) -> bytes:
    return b"\x95" + struct.pack("<Q", length) + inside


def cut_by_a_frame(run: bytes) -> bytes:
    """A number that begins in a frame and ends behind it: read in order, what follows is a byte string; to Python, instructions."""
    inside = b"}" + text("p" * 8989) + b"G" + bytes(5)
    return b"\x80\x04" + framed(len(inside), inside) + bytes(3) + data(run[2:]) + b"\x86s."


def reaching_over_a_stream(run: bytes) -> bytes:
    """A whole tensor. In the stream of its storage, the first pickle has a frame that ends where a program is among the numbers."""
    run += bytes(-len(run) % 4)
    plain = stream(keys=(), content=b"N")[len(MARK) :]
    body = MARK[2:]
    return pickled(dictionary(net=call(LOAD, data(b"\x80\x04" + framed(len(body) + len(plain), body) + plain + run))))


KEPT: dict[str, Callable[[bytes], bytes]] = {
    "by a second state": lambda run: ORDERED + b")R" + dictionary(__setstate__=LOAD) + b"b" + data(run) + b"b",
    "by an item": lambda run: ORDERED + b")R" + dictionary(append=LOAD) + b"b" + data(run) + b"a",
    "by a container's own method": lambda run: (
        MODULES.replace(b"ModuleDict", b"ModuleList") + b")\x81" + dictionary(_get_abs_string_index=LOAD, **NO_HOOKS) + b"b" + data(run) + b"Ns"
    ),
    "by a call of an object": lambda run: (
        MODULES.replace(b"ModuleDict", b"Sequential") + b")\x81" + dictionary(forward=LOAD, **NO_HOOKS) + b"b" + data(run) + b"\x85R"
    ),
    "by INST": lambda run: b"(" + data(run) + b"itorch.storage\n_load_from_bytes\n",
}  # fmt: skip
"""Values that load bytes by what was kept of torch's function."""


def whole(value: bytes) -> bytes:
    return pickled(dictionary(net=value))


def hidden(value: bytes) -> bytes:
    """The value in a stream, in a place that no reader of ours looks at: whether a parameter learns."""
    return whole(call(PARAMETER, b"K\0", call(LOAD, data(stream(content=value, keys=()))), ORDERED + b")R"))


CASES: dict[str, Callable[[bytes], bytes]] = {
    "cut by a frame": cut_by_a_frame,
    "a frame that reaches over a stream": reaching_over_a_stream,
    **{how: lambda run, make=make: whole(make(run)) for how, make in KEPT.items()},
    **{f"{how}, in a stream": lambda run, make=make: hidden(make(run)) for how, make in KEPT.items()},
}


@pytest.mark.parametrize("case", CASES)
def test_a_program_without_a_global_of_its_own_is_found(case: str, tmp_path: Path) -> None:
    path, ran = tmp_path / "net.pkl", tmp_path / "ran"
    path.write_bytes(CASES[case](program(ran)))
    found = list_globals(path)
    assert any(executes for *_, executes in found), found
    assert not ran.exists()
    with suppress(Exception), open(path, "rb") as file:  # what comes after the program need not be readable
        pickle.load(file)
    assert ran.exists(), "the test's file is no program"


def test_inspect_calls_it_dangerous(here: Here, tmp_path: Path) -> None:
    (tmp_path / "net.pkl").write_bytes(CASES["by a second state"](program(tmp_path / "ran")))
    done = here("inspect", tmp_path / "net.pkl")
    assert done.returncode == 3 and "DANGEROUS" in done.stdout and not (tmp_path / "ran").exists()


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@pytest.mark.parametrize("size", [10, 70_000, 200_000])
def test_frames_that_a_pickler_writes_are_in_order(protocol: int, size: int, tmp_path: Path) -> None:
    content = {"a": "x" * size, "b": b"y" * size, "c": [str(i) for i in range(size // 10)], "d": {"e": bytes(size)}}
    (tmp_path / "file").write_bytes(pickle.dumps(content, protocol))
    assert not any(executes for *_, executes in list_globals(tmp_path / "file"))


def test_a_frame_in_a_file_of_safetensors_is_found(tmp_path: Path) -> None:
    """And a zip file, whose first bytes are the length of a long header."""
    inside = cut_by_a_frame(program(tmp_path / "ran"))[2:]
    header = b'{"__metadata__":{"a":"' + b"b" * 300 + b'"}}'
    header += b" " * ((ord("V") - len(header)) % 256)
    path = tmp_path / "net.safetensors"
    path.write_bytes(struct.pack("<Q", len(header)) + header + b"\n0" + inside)
    assert disguised_program(path) is not None
    with suppress(Exception):
        pickle.load(io.BytesIO(path.read_bytes()))
    assert (tmp_path / "ran").exists(), "the test's file is no program"
    path.write_bytes(b'PK\x03\x04\0\0\0\0{"')
    assert disguised_program(path) is not None


UNASKED = ORDERED + b")R"
"""A call that is harmless. What a file calls where nobody looks could be anything: with numpy's functions alone it can read any place
in memory, and find Python's `exec` there."""
FOUR = dtype("f4")
PLAIN = (
    call(NDARRAY.replace(b"ndarray", b"dtype"), text("f4"), UNASKED, b"\x88")
    + several(number(3), text("<"), b"N", b"N", b"N", number(-1), number(-1), number(0))
    + b"b"
)
HIDDEN: dict[str, bytes] = {
    "under the dictionary": b"\x80\x04" + UNASKED + dictionary(a=number(1)) + b".",
    "under a key that is set again": b"\x80\x04}(" + text("a") + UNASKED + text("a") + number(1) + b"u.",
    "whether a tensor learns": whole(call(b"ctorch._utils\n_rebuild_tensor_v2\n", blob(), number(0), several(number(4)), several(number(1)), several(UNASKED), ORDERED + b")R")),
    "hooks of a parameter": whole(call(PARAMETER, tensor(blob()), b"\x88", UNASKED + dictionary(a=UNASKED) + b"b" + dictionary(a=UNASKED) + b"b")),
    "a state before another": whole(ORDERED + b")R" + dictionary(a=UNASKED) + b"b" + dictionary(a=number(1)) + b"b"),
    "an argument of a dtype": whole(call(SCALAR, PLAIN, data(bytes(4)))),
    "what an array was made with": whole(call(RECONSTRUCT, NDARRAY, several(number(0)), several(UNASKED, FLOATS)) + several(number(1), several(number(1)), FOUR, b"\x89", data(bytes(4))) + b"b"),
    "beside a record's state": whole(record().replace(text("class_name"), text("other") + UNASKED + text("class_name"), 1)),
    "in a stream's system": whole(call(LOAD, data(stream(system=pickled(dictionary(little_endian=b"\x88", more=UNASKED), 2))))),
}  # fmt: skip


@pytest.mark.parametrize("place", HIDDEN)
def test_what_a_file_calls_where_nobody_looks_is_refused(place: str, tmp_path: Path) -> None:
    (tmp_path / "net.pkl").write_bytes(HIDDEN[place])
    with pytest.raises(PickleError):
        read_pickle(tmp_path / "net.pkl")


def test_the_same_calls_are_read_where_they_belong(tmp_path: Path) -> None:
    values = {
        "tensor": tensor(blob()), "parameter": call(PARAMETER, tensor(blob()), b"\x88", UNASKED), "dictionary": UNASKED,
        "attributes": UNASKED + dictionary(_metadata=UNASKED) + b"b", "number": call(SCALAR, FOUR, data(bytes(4))), "record": record(),
        "buffer": call(BUFFER, data(bytes(4)), FOUR, several(number(1)), text("C")),
        "array": call(RECONSTRUCT, NDARRAY, several(number(0)), data(b"b")) + several(number(1), several(number(1)), FOUR, b"\x89", data(bytes(4))) + b"b",
    }  # fmt: skip
    (tmp_path / "net.pkl").write_bytes(pickled(dictionary(**values)))
    assert list(read_pickle(tmp_path / "net.pkl")) == list(values)
    (tmp_path / "old.pt").write_bytes(stream(content=dictionary(a=number(1)), keys=()))
    assert read_pickle(tmp_path / "old.pt") == {"a": 1}
    (tmp_path / "new.pt").write_bytes(archive(pickled(dictionary(a=UNASKED), 2)))
    assert read_pickle(tmp_path / "new.pt") == {"a": {}}
