"""Damaged files: each is refused with one line, and nothing hangs or crashes."""

from __future__ import annotations

import io
import math
import pickletools
import random
import zipfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from registry.edm.pickles import PickleError, network_of, read_pickle
from tests.conftest import HERE, tiny_network
from tests.pickle_assembler import (
    archive,
    name,
    number,
    refused,
    several,
    text,
    watchdog,
)
from tests.pickle_writer import persistent, write

pytestmark = pytest.mark.usefixtures(watchdog.__name__)


@pytest.fixture(scope="module", params=[4, 2, "zip", "legacy"])
def valid(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """A small valid file in each layout."""
    record = persistent(tiny_network(D=math.inf))
    return write(tmp_path_factory.mktemp("valid") / "file", {"ema": record, "step": 3}, request.param).read_bytes()


def survives(path: Path, content: bytes) -> bool:
    """Whether a damaged file can still be read. If not, it or its network must be refused with a PickleError."""
    path.write_bytes(content)
    try:
        network_of(read_pickle(path).get("ema"), path)
    except PickleError as error:
        message = str(error)
    else:
        return True
    assert message.startswith(f"{path}: ") and message.isprintable()
    return False


def test_truncated_files_are_refused(tmp_path: Path, valid: bytes) -> None:
    assert survives(tmp_path / "file", valid)
    ends = {len(valid) * percent // 100 for percent in range(0, 100, 4)} | {len(valid) - n for n in range(1, 20)}
    assert not any(survives(tmp_path / "file", valid[:end]) for end in ends)
    assert not survives(tmp_path / "file", valid + b"\x00" * (len(valid) if valid[:2] != b"PK" else 70000))


@pytest.mark.parametrize("file", ["network-snapshot-1.200000-000512.pkl", "training-state-edm-000012.pt"])
def test_truncated_golden_files_are_refused(tmp_path: Path, file: str) -> None:
    content = (HERE / "golden" / file).read_bytes()
    for percent in range(60):
        refused(tmp_path / "file", content[: len(content) * percent // 100])


def test_flipped_bits_are_read_or_refused(tmp_path: Path, valid: bytes) -> None:
    rng = random.Random(0)
    outcomes = []
    for _ in range(60):
        damaged = bytearray(valid)
        for _ in range(rng.choice([1, 1, 1, 2, 8])):
            damaged[rng.randrange(len(damaged))] ^= 1 << rng.randrange(8)
        outcomes.append(survives(tmp_path / "file", bytes(damaged)))
    assert any(outcomes) and not all(outcomes)


def test_replaced_pieces_are_read_or_refused(tmp_path: Path, valid: bytes) -> None:
    """Instructions and extreme numbers in random places."""
    rng = random.Random(1)
    pieces = [
        b"\xff" * 4,
        b"\x00" * 4,
        b"\xff\xff\xff\x7f",
        b"\x00" * 8,
        b"(",
        b"t",
        b"R",
        b"b",
        b"u",
        b"e",
        b"0",
        b".",
        b"Q",
        b"h\x00",
    ]
    for _ in range(40):
        at, piece = rng.randrange(len(valid)), rng.choice(pieces)
        survives(tmp_path / "file", valid[:at] + piece + valid[at + rng.choice([0, len(piece)]) :])


@pytest.mark.slow
def test_mutated_instructions_are_read_or_refused(tmp_path: Path, valid: bytes) -> None:
    """Whole instructions dropped, doubled, swapped, or replaced by any other."""
    start, stop = 0, len(valid)
    if valid[:2] == b"PK":
        with zipfile.ZipFile(io.BytesIO(valid)) as file:
            info = next(i for i in file.infolist() if i.filename.endswith("data.pkl"))
        start, stop = valid.index(b"\x80\x02"), 0
        stop = start + info.file_size
    places = [place for _, _, place in pickletools.genops(valid[start:stop]) if place is not None]
    code = [valid[start + a : start + b] for a, b in zip(places, [*places[1:], places[-1] + 1], strict=True)]
    rest = valid[start + places[-1] + 1 :] if valid[:2] != b"PK" else b""
    every = [op.code.encode("latin-1") for op in pickletools.opcodes] + [name("os", "system"), several(text("true")), number(2**31)]
    index = st.integers(0, len(code) - 1)
    edits = st.lists(
        st.tuples(st.sampled_from(["drop", "double", "swap", "insert", "replace"]), index, index, st.sampled_from(every))
    )

    @settings(max_examples=400, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
    @given(edits)
    def check(changes: list[tuple[str, int, int, bytes]]) -> None:
        out = list(code)
        for kind, i, j, new in changes:
            if kind == "drop":
                out[i] = b""
            elif kind == "double":
                out[i] *= 2
            elif kind == "swap":
                out[i], out[j] = out[j], out[i]
            else:
                out[i] = new + (out[i] if kind == "insert" else b"")
        mutated = b"".join(out)
        survives(tmp_path / "file", archive(mutated) if valid[:2] == b"PK" else mutated + rest)

    check()
