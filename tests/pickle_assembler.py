"""Pickles written instruction by instruction, as no pickler would write them, and a watchdog for tests that might hang."""

from __future__ import annotations

import io
import pickle
import signal
import struct
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from registry.edm.pickles import PickleError, network_of, read_pickle


class Hung(BaseException):
    """Raised by the watchdog. No `except Exception` catches it."""


@pytest.fixture
def watchdog() -> Iterator[None]:
    def bark(*_: Any) -> None:
        raise Hung

    before = signal.signal(signal.SIGALRM, bark)
    signal.alarm(120)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


def text(value: str) -> bytes:
    return b"X" + struct.pack("<I", len(value.encode())) + value.encode()


def data(value: bytes) -> bytes:
    return b"B" + struct.pack("<I", len(value)) + value


def number(value: int) -> bytes:
    if -(2**31) <= value < 2**31:
        return b"J" + struct.pack("<i", value)
    encoded = pickle.encode_long(value)
    return b"\x8a" + bytes([len(encoded)]) + encoded


def name(module: str, attribute: str) -> bytes:
    """GLOBAL: how protocols 0 to 3 refer to a global."""
    return f"c{module}\n{attribute}\n".encode()


def stacked(module: str, attribute: str) -> bytes:
    """STACK_GLOBAL: how protocols 4 and 5 refer to a global."""
    return text(module) + text(attribute) + b"\x93"


def several(*items: bytes) -> bytes:
    return b"(" + b"".join(items) + b"t"


def many(*items: bytes) -> bytes:
    return b"](" + b"".join(items) + b"e"


def dictionary(**items: bytes) -> bytes:
    return b"}(" + b"".join(text(k) + v for k, v in items.items()) + b"u"


def call(function: bytes, *arguments: bytes) -> bytes:
    return function + several(*arguments) + b"R"


def pickled(value: bytes, protocol: int = 4) -> bytes:
    return b"\x80" + bytes([protocol]) + value + b"."


def snapshot(value: bytes) -> bytes:
    """A network snapshot with this value in place of its network."""
    return pickled(dictionary(ema=value))


ORDERED, EASY = name("collections", "OrderedDict"), name("dnnlib.util", "EasyDict")
MODULES, FLOATS = name("torch.nn.modules.container", "ModuleDict"), name("torch", "FloatStorage")
LOAD, RECORD = name("torch.storage", "_load_from_bytes"), name("torch_utils.persistence", "_reconstruct_persistent_obj")
TENSOR, PARAMETER = name("torch._utils", "_rebuild_tensor_v2"), name("torch._utils", "_rebuild_parameter")
SCALAR, RECONSTRUCT = name("numpy.core.multiarray", "scalar"), name("numpy.core.multiarray", "_reconstruct")
BUFFER, NDARRAY = name("numpy.core.numeric", "_frombuffer"), name("numpy", "ndarray")
SET, ENCODE = name("builtins", "set"), name("_codecs", "encode")


def record(class_name: str = "EDMPrecond", **state: bytes) -> bytes:
    """A persistent object."""
    state = {"_parameters": b"}", "_buffers": b"}", "_modules": b"}", "_init_args": b")", "_init_kwargs": b"}"} | state
    meta = dictionary(type=text("class"), version=number(6), class_name=text(class_name), state=dictionary(**state))
    return call(RECORD, meta)


def reference(key: str = "0", numel: int = 4, kind: bytes = FLOATS, *more: bytes) -> bytes:
    """A storage outside the pickle."""
    return several(text("storage"), kind, text(key), text("cpu"), number(numel), *more) + b"Q"


def tensor(storage: bytes, offset: int = 0, size: Any = (4,), stride: Any = (1,), *more: bytes) -> bytes:
    shape, strides = (several(*(n if isinstance(n, bytes) else number(n) for n in ns)) for ns in (size, stride))
    return call(TENSOR, storage, number(offset), shape, strides, b"\x89", ORDERED + b")R", *more)


def dtype(code: str, order: str = "<", *more: bytes) -> bytes:
    state = several(number(3), text(order), *(more or (b"N", b"N", b"N")), number(-1), number(-1), number(0))
    return call(name("numpy", "dtype"), text(code), b"\x89", b"\x88") + state + b"b"


MARK = pickled(number(0x1950A86A20F9469CFC6C), 2)
SYSTEM = pickle.dumps({"protocol_version": 1001, "little_endian": True, "type_sizes": {"short": 2, "int": 4, "long": 4}}, 2)


def stream(
    content: bytes | None = None, mark: bytes = MARK, system: bytes = SYSTEM, keys: Any = ("0",), count: int = 4, tail: bytes = b""
) -> bytes:
    """An older torch.save stream, by default with one storage of four zeros."""
    storage = reference("0", 4, FLOATS, b"N") if content is None else content
    listed = keys if isinstance(keys, bytes) else pickle.dumps(list(keys), 2)
    numbers = struct.pack("<q", count) + bytes(16) if keys else b""
    return mark + pickle.dumps(1001, 2) + system + pickled(storage, 2) + listed + numbers + tail


def blob(**changes: Any) -> bytes:
    """A storage as plain pickles hold it."""
    return call(LOAD, data(stream(**changes)))


def archive(content: bytes, members: dict[str, bytes] | None = None, compression: int = 0) -> bytes:
    """A zip file of torch.save, with a storage '0' of four zeros."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", compression) as file:
        for key, member in {"data.pkl": content, "data/0": bytes(16), **(members or {})}.items():
            file.writestr(f"state/{key}", member)
    return buffer.getvalue()


def state(value: bytes, **options: Any) -> bytes:
    """A training state with this value in place of its network."""
    return archive(pickled(dictionary(net=value), 2), **options)


def directory(content: bytes, offset: int, value: bytes, member: str = "state/data/0") -> bytes:
    """A zip file with a field changed in the directory's entry of a member."""
    at = content.rindex(member.encode()) - 46 + offset
    return content[:at] + value + content[at + len(value) :]


def refused(path: Path, content: bytes, reason: str = "") -> str:
    """The message with which a file, or a network in it, is refused. Any other exception than PickleError fails the test."""
    path.write_bytes(content)
    with pytest.raises(PickleError) as caught:
        networks(path)
    message = str(caught.value)
    assert message.startswith(f"{path}: ") and message.isprintable() and len(message) < len(str(path)) + 700
    assert reason in message
    return message


def networks(path: Path) -> None:
    """Read a file and build every network in it."""
    for value in read_pickle(path).values():
        network_of(value, path)
