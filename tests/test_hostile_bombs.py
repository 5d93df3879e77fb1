"""Files that would fill the memory, hang or crash a reader: read in a separate process with little memory."""

from __future__ import annotations

import io
import json
import struct
import subprocess
import sys
import zipfile
from collections.abc import Callable
from typing import Any

import pytest

from registry.edm.pickles import MAX_PARTS
from tests.conftest import HERE, ROOT, environment
from tests.pickle_assembler import (
    BUFFER,
    ENCODE,
    LOAD,
    MODULES,
    ORDERED,
    PARAMETER,
    SET,
    TENSOR,
    archive,
    blob,
    call,
    data,
    dictionary,
    directory,
    dtype,
    many,
    number,
    pickled,
    record,
    reference,
    several,
    snapshot,
    state,
    stream,
    tensor,
    text,
    watchdog,
)

pytestmark = pytest.mark.usefixtures(watchdog.__name__)


def doubled(first: bytes, double: Callable[[bytes], bytes], levels: int = 60) -> bytes:
    """A value that holds another one twice, which holds another one twice, and so on: small in memory, huge when unfolded."""
    out = first + b"\x94"
    for level in range(levels):
        out += double(b"h" + bytes([level])) + b"\x94"
    return many(out)


def overlapping(copies: int, size: int) -> bytes:
    """A zip file whose storages are all the same bytes, with a tensor for each."""
    keys = [f"{i:04}" for i in range(copies)]
    tensors = [tensor(reference(key, size // 4), 0, [size // 4]) for key in keys]
    content = state(many(*tensors), members={f"data/{key}": b"" if i else bytes(size) for i, key in enumerate(keys)})
    with zipfile.ZipFile(io.BytesIO(content)) as file:
        start = struct.pack("<I", file.getinfo(f"state/data/{keys[0]}").header_offset)
    for key in keys[1:]:
        content = directory(content, 20, struct.pack("<II", size, size), f"state/data/{key}")
        content = directory(content, 42, start, f"state/data/{key}")
    return content


def shared_by_long_names() -> bytes:
    """A module that has one tensor by many names, and is in another one by many names."""
    tensors = dictionary(t=tensor(blob()) + b"\x94", **{f"t{k}": b"h\x00" for k in range(400)})
    modules = dictionary(m=record(_parameters=tensors) + b"\x94", **{f"m{k}": b"h\x01" for k in range(100)})
    return snapshot(record(_modules=dictionary(**{"n" * 900: record(_modules=modules)})))


N, COLLIDE = 20_000, 2**61 - 1  # multiples of COLLIDE all have the hash 0
TUPLES = b")" + b"\x85" * 200_000  # as a key, these crash plain pickle
KEYS, DEEP, ITSELF = "keys other than text and small whole numbers", "nested more than 100 deep", "a value that contains itself"
UNFOLDS, AGAIN, PIECE = "unfolds to more than", "uses the same data more than once", "it announces a piece of"
BOMBS: dict[str, tuple[Callable[[], bytes], str]] = {
    "deep tuples": (lambda: snapshot(b")" + b"\x85" * N), DEEP),
    "deep tuples as a key": (lambda: snapshot(b"}" + TUPLES + b"Ns"), KEYS),
    "deep tuples in a set": (lambda: snapshot(b"\x8f(" + TUPLES + b"\x90"), KEYS),
    "deep tuples in the set of a call": (lambda: snapshot(call(SET, many(b")" + b"\x85" * N))), KEYS),
    "deep lists": (lambda: snapshot(b"]" * N + b"a" * (N - 1)), DEEP),
    "deep dictionaries": (lambda: snapshot(b"}" + text("k") + b"\x94" + b"}h\x00" * N + b"N" + b"s" * (N + 1)), DEEP),
    "deep calls": (lambda: snapshot(PARAMETER + b"\x94(" + b"h\x00(" * N + b"N" + b"tR" * (N + 1)), DEEP),
    "deep items": (
        lambda: snapshot(ORDERED + b"\x94)R" + text("k") + b"\x94" + b"h\x00)Rh\x01" * N + b"N" + b"s" * (N + 1)),
        DEEP,
    ),
    "deep states": (
        lambda: snapshot(MODULES + b"\x94)\x81}" + text("k") + b"\x94" + b"h\x00)\x81}h\x01" * N + b"N" + b"sb" * (N + 1)),
        DEEP,
    ),
    "a list in itself": (lambda: snapshot(b"]\x94h\x00a"), ITSELF),
    "a dictionary in itself": (lambda: b"\x80\x04}\x94" + text("ema") + b"h\x00s.", ITSELF),
    "a tuple in itself": (lambda: snapshot(b"]\x94(h\x00ta"), ITSELF),
    "a call in itself": (lambda: snapshot(ORDERED + b")R\x94" + text("k") + b"h\x00s"), ITSELF),
    "a module in itself": (lambda: snapshot(b"}\x94" + text("m") + record(_modules=b"h\x00") + b"s"), ITSELF),
    "memo number 2^31": (lambda: snapshot(b"Nr\xff\xff\xff\x7f"), "numbers a value 2147483647"),
    "memo number 2^32": (lambda: snapshot(b"Nr\xff\xff\xff\xff"), "numbers a value 4294967295"),
    "bytes of 2^62": (lambda: snapshot(b"\x8e" + struct.pack("<Q", 2**62)), PIECE),
    "bytes of 2^64": (lambda: snapshot(b"\x8e" + b"\xff" * 8), PIECE),
    "bytes of 2^32": (lambda: snapshot(b"B\xff\xff\xff\xff"), PIECE),
    "bytearray of 2^40": (lambda: snapshot(b"\x96" + struct.pack("<Q", 2**40)), PIECE),
    "text of 2^62": (lambda: snapshot(b"\x8d" + struct.pack("<Q", 2**62)), PIECE),
    "text of 2^32": (lambda: snapshot(b"X\xff\xff\xff\xff"), PIECE),
    "number of 2^31 bytes": (lambda: snapshot(b"\x8b\xff\xff\xff\x7f"), PIECE),
    "frame of 2^62": (lambda: b"\x80\x04\x95" + struct.pack("<Q", 2**62) + b"}.", "announces a part larger than itself"),
    "name without an end": (lambda: snapshot(b"c" + b"a" * N), "ends in the middle"),
    "colliding keys": (lambda: snapshot(b"}(" + b"".join(number(i * COLLIDE) + b"N" for i in range(1, N)) + b"u"), KEYS),
    "colliding members": (lambda: snapshot(call(SET, many(*(number(i * COLLIDE) for i in range(1, N))))), KEYS),
    "laughing lists": (lambda: snapshot(doubled(b"]", lambda x: many(x, x))), UNFOLDS),
    "laughing tuples": (lambda: snapshot(doubled(b")", lambda x: x + x + b"\x86")), UNFOLDS),
    "laughing dictionaries": (lambda: snapshot(doubled(b"}", lambda x: dictionary(a=x, b=x))), UNFOLDS),
    "laughing calls": (
        lambda: snapshot(doubled(ORDERED + b")R", lambda x: ORDERED + b")R(" + text("a") + x + text("b") + x + b"u")),
        UNFOLDS,
    ),
    "laughing modules": (lambda: snapshot(doubled(record(), lambda x: record(_modules=dictionary(a=x, b=x)), 25)), UNFOLDS),
    "laughing text": (lambda: snapshot(many(text("ha" * N) + b"\x94" + b"h\x00" * N)), UNFOLDS),
    "laughing keys": (lambda: snapshot(many(text("ha" * N) + b"\x94" + b"}h\x00Ns" * N)), UNFOLDS),
    "laughing bytes": (lambda: snapshot(many(data(b"ha" * N) + b"\x94" + b"h\x00" * N)), UNFOLDS),
    "long arguments again and again": (
        lambda: snapshot(many(ORDERED + b"\x94" + several(b"N" * N) + b"\x94R" + b"h\x00h\x01R" * N)),
        "calls something with more than 16 arguments, or not with a tuple",
    ),
    "one text again and again": (
        lambda: snapshot(many(ENCODE + b"\x94" + text("ha" * N) + text("latin1") + b"\x86\x94R" + b"h\x00h\x01R" * N)),
        AGAIN,
    ),
    "one stream again and again": (
        lambda: snapshot(many(tensor(LOAD + b"\x94" + data(stream()) + b"\x85\x94R"), *[tensor(b"h\x00h\x01R")] * 3000)),
        AGAIN,
    ),
    "one text as a stream again and again": (
        lambda: snapshot(
            many(
                tensor(LOAD + b"\x94" + call(ENCODE, text(stream().decode("latin-1")), text("latin1")) + b"\x85\x94R"),
                *[tensor(b"h\x00h\x01R")] * 3000,
            )
        ),
        AGAIN,
    ),
    "one array again and again": (
        lambda: snapshot(
            many(
                BUFFER
                + b"\x94("
                + data(bytes(N))
                + b"\x94"
                + dtype("b1", "|")
                + b"\x94"
                + several(number(N))
                + b"\x94"
                + text("C"),
                b"tR",
                *[b"h\x00(h\x01h\x02h\x03" + text("C") + b"tR"] * 3000,
            )
        ),
        AGAIN,
    ),
    "one tensor again and again": (
        lambda: snapshot(
            many(
                TENSOR
                + b"\x94("
                + blob()
                + number(0)
                + several(number(4))
                + several(number(1))
                + b"\x89Nt\x94R"
                + b"h\x00h\x01R" * N
            )
        ),
        "holds a list where",
    ),
    "too many instructions": (lambda: snapshot(many(b"K\x00" * MAX_PARTS)), f"has more than {MAX_PARTS} instructions"),
    "instructions of a byte each": (lambda: b"\x80\x02)" + b"\x85" * 900_000 + b".", "has more than 600002 instructions"),
    "many sets": (lambda: snapshot(many(b"\x8f" * (MAX_PARTS // 5))), "holds a list where"),
    "unknown arguments": (lambda: snapshot(record(_init_kwargs=dictionary(**{f"k{i}": b"N" for i in range(N // 4)}))), "argument"),
    "unknown modules": (lambda: snapshot(record(_modules=dictionary(**{f"k{i}": record() for i in range(N // 99)}))), "argument"),
    "long names of shared modules": (shared_by_long_names, "names have more than 10,000,000 characters together"),
    "storages in each other": (lambda: overlapping(100, N), "its members lie in each other"),
    "zip bomb": (
        lambda: archive(b"}.", {"data/1": bytes(100 * N)}, zipfile.ZIP_DEFLATED),
        "has the compressed or encrypted member",
    ),
    "zip of many members": (lambda: archive(pickled(b"N"), {f"data/{i}": b"" for i in range(N // 20)}), "holds a NoneType"),
    "empty array of huge shape": (
        lambda: snapshot(call(BUFFER, data(b""), dtype("f8"), several(number(0), number(2**62)), text("C"))),
        "is damaged",
    ),
}

TRIAL = """if True:
    import json, pathlib, resource, sys, time
    import torch
    from registry.edm.pickles import PickleError, list_globals, network_of, read_pickle

    def attempt(path):
        try:
            for value in read_pickle(path).values():
                network_of(value, path)
            return "read"
        except PickleError as error:
            return str(error)
        except BaseException as error:
            return f"something else: {error!r}"[:300]

    read_pickle(sys.argv[2])
    resource.setrlimit(resource.RLIMIT_AS, (3 << 30, 3 << 30))
    for path in sorted(pathlib.Path(sys.argv[1]).iterdir()):
        print(json.dumps([path.name, "began", 0, 0]), flush=True)
        start = time.perf_counter()
        outcome = attempt(path)
        seconds = time.perf_counter() - start
        try:
            list_globals(path)
        except PickleError:
            pass
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        print(json.dumps([path.name, outcome, seconds, time.perf_counter() - start - seconds, peak]), flush=True)
"""


@pytest.fixture(scope="module")
def exploded(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The outcome of each bomb, in one process with 3 GiB of address space."""
    folder = tmp_path_factory.mktemp("bombs")
    for case, (make, _) in BOMBS.items():
        (folder / case.replace("^", "")).write_bytes(make())
    small = HERE / "golden" / "network-snapshot-1.200000-000512.pkl"
    done = subprocess.run(
        [sys.executable, "-c", TRIAL, folder, small],
        cwd=ROOT,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    found = {line[0]: line[1:] for line in map(json.loads, done.stdout.splitlines())}
    return found | {"": [done.returncode, done.stderr]}


@pytest.mark.parametrize("case", BOMBS)
def test_bombs_do_not_go_off(exploded: dict[str, Any], case: str) -> None:
    outcome, *_ = exploded.get(case.replace("^", ""), ["never began"])
    assert f"{case.replace('^', '')}: " in outcome and BOMBS[case][1] in outcome, (outcome, exploded[""])
