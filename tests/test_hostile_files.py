"""Malicious and damaged files: each is refused with one line, and nothing in it runs, hangs or crashes."""

from __future__ import annotations

import copyreg
import io
import json
import math
import pickle
import pickletools
import random
import signal
import struct
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from registry.edm.pickles import MAX_PARTS, PickleError, list_globals, network_of, read_pickle
from tests.conftest import HERE, ROOT, environment, tiny_network
from tests.test_pickles import persistent, write


class Hung(BaseException):
    """Raised by the watchdog. No `except Exception` catches it."""


@pytest.fixture(autouse=True)
def _watchdog() -> Iterator[None]:
    def bark(*_: Any) -> None:
        raise Hung

    before = signal.signal(signal.SIGALRM, bark)
    signal.alarm(120)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


# ----------------------------------------------------------------------------------------- an assembler for pickles


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


# --------------------------------------------------------------------------------------------------- forbidden calls

FUNCTIONS: dict[str, Callable[[str], list[Any]]] = {
    "os.system": lambda canary: [f"touch {canary}"],
    "posix.system": lambda canary: [f"touch {canary}"],
    "subprocess.Popen": lambda canary: [["touch", canary]],
    "subprocess.check_output": lambda canary: [["touch", canary]],
    "builtins.eval": lambda canary: [f"open({canary!r}, 'w')"],
    "builtins.exec": lambda canary: [f"open({canary!r}, 'w')"],
    "__builtin__.eval": lambda canary: [f"open({canary!r}, 'w')"],
    "builtins.open": lambda canary: [canary, "w"],
    "builtins.__import__": lambda canary: ["this"],
    "builtins.getattr": lambda canary: ["a", "upper"],
    "builtins.bytearray": lambda canary: [10**12],
    "importlib.import_module": lambda canary: ["this"],
    "operator.attrgetter": lambda canary: ["a"],
    "functools.partial": lambda canary: [],
    "pickle.loads": lambda canary: ["x"],
    "torch.load": lambda canary: [canary],
    "torch.hub.load": lambda canary: [canary, "x"],
    "numpy.load": lambda canary: [canary],
    "copyreg._reconstructor": lambda canary: [1, 2, None],
    "nowhere.to_be_found": lambda canary: [],
}
RUN = [f for f in list(FUNCTIONS)[:8] if f != "__builtin__.eval"]

Way = Callable[[bytes, bytes], bytes]
WAYS: dict[str, Way] = {  # from a global (written as GLOBAL) and its arguments (as a tuple)
    "REDUCE": lambda g, a: g + a + b"R",
    "STACK_GLOBAL": lambda g, a: stacked(*g[1:-1].decode().split("\n")) + a + b"R",
    "memoized": lambda g, a: b"".join(text(t) + b"\x940" for t in g[1:-1].decode().split("\n")) + b"h\x00h\x01\x93" + a + b"R",
    "INST": lambda g, a: a[:-1] + b"i" + g[1:],
    "OBJ": lambda g, a: b"(" + g + a[1:-1] + b"o",
    "NEWOBJ": lambda g, a: g + a + b"\x81",
    "NEWOBJ_EX": lambda g, a: g + a + b"}\x92",
    "BUILD": lambda g, a: EASY + b")\x81" + several(b"N", b"}" + text("__setstate__") + g + b"s") + b"b" + a + b"b",
    "unused": lambda g, a: g + a + b"R0N",
    "in items": lambda g, a: ORDERED + b")R(" + text("k") + g + a + b"Ru",
    "in a state": lambda g, a: MODULES + b")\x81}" + text("__setstate__") + g + a + b"Rsb",
    "in a record": lambda g, a: record(_init_kwargs=b"}" + text("D") + g + a + b"Rs"),
    "in hooks": lambda g, a: call(PARAMETER, tensor(blob()), b"\x88", g + a + b"R"),
    "in a dtype": lambda g, a: call(SCALAR, g + a + b"R", data(bytes(8))),
    "as a storage type": lambda g, a: several(text("storage"), g + a + b"R", text("0"), text("cpu"), number(4)) + b"Q",
    "as a stream's mark": lambda g, a: tensor(blob(mark=pickled(g + a + b"R", 2))),
    "as a stream's system": lambda g, a: tensor(blob(system=pickled(g + a + b"R", 2))),
    "as a stream's content": lambda g, a: tensor(blob(content=g + a + b"R")),
    "as a stream's keys": lambda g, a: tensor(blob(keys=pickled(g + a + b"R", 2))),
    "as a stream of protocol 0": lambda g, a: tensor(call(LOAD, data(g + a + b"R."))),
    "as a latin-1 stream": lambda g, a: tensor(call(LOAD, call(ENCODE, text((g + a + b"R.").decode("latin-1")), text("latin1")))),
}


def written(value: Any) -> bytes:
    if isinstance(value, list):
        return many(*map(written, value))
    return b"N" if value is None else text(value) if isinstance(value, str) else number(value)


def attack(way: str, function: str, canary: Path) -> bytes:
    module, _, attribute = function.rpartition(".")
    arguments = several(*map(written, FUNCTIONS[function](str(canary))))
    return WAYS[way](name(module, attribute), arguments)


CALLS = [(way, function) for way in WAYS for function in ("os.system", "subprocess.Popen", "builtins.eval")]
CALLS += [("REDUCE", function) for function in FUNCTIONS if ("REDUCE", function) not in CALLS]


@pytest.mark.parametrize(("way", "function"), CALLS)
def test_calls_are_refused_and_listed(tmp_path: Path, way: str, function: str) -> None:
    canary, path = tmp_path / "canary", tmp_path / "file"
    value = attack(way, function, canary)
    older = stream(content=dictionary(net=value), keys=[])
    for content in (snapshot(value), state(value), older):
        message = refused(path, content)
        assert f"refers to {function}, which" in message or "uses the pickle instruction" in message or "stream" in way
        assert function in {f"{m}.{n}" for m, n, executes in list_globals(path) if executes}
    assert not canary.exists()


def test_the_same_files_do_run_in_plain_pickle(tmp_path: Path) -> None:
    """This shows that the test above would have found its canaries."""
    ways = ["REDUCE", "STACK_GLOBAL", "memoized", "INST", "OBJ", "unused", "as a stream's mark", "as a stream of protocol 0"]
    ways += ["as a latin-1 stream", "in items"]
    cases = [(w, "os.system") for w in ways] + [("REDUCE", f) for f in RUN]
    paths = [tmp_path / f"{i}.pkl" for i in range(len(cases))]
    for path, (way, function) in zip(paths, cases, strict=True):
        path.write_bytes(snapshot(attack(way, function, path.with_suffix(".canary"))))
        with pytest.raises(PickleError):
            read_pickle(path)
        list_globals(path)
    assert not list(tmp_path.glob("*.canary"))
    script = """if True:
        import pickle, sys, time
        for path in sys.argv[1:]:
            try:
                pickle.load(open(path, "rb"))
            except Exception as error:
                print(path, repr(error))
        time.sleep(0.5)
    """
    done = subprocess.run([sys.executable, "-c", script, *paths], capture_output=True, text=True, check=True, env=environment())
    assert [c for p, c in zip(paths, cases, strict=True) if not p.with_suffix(".canary").exists()] == [], done.stdout


@pytest.mark.parametrize("code", [b"\x82\x07", b"\x83\x07\x00", b"\x84\x07\x00\x00\x00"])
def test_extension_codes_are_refused_even_if_registered(tmp_path: Path, code: bytes) -> None:
    canary, path = tmp_path / "canary", tmp_path / "file"
    content = snapshot(call(code, text(f"touch {canary}")))
    copyreg.add_extension("os", "system", 7)
    try:
        refused(path, content, "uses the pickle instruction EXT")
        assert ("copyreg", "extension 7", True) in list_globals(path)
        assert not canary.exists()
        pickle.loads(content)  # this also fills the cache that unpicklers look in first
        canary.unlink()
        refused(path, content, "uses the pickle instruction EXT")
        assert not canary.exists()
    finally:
        copyreg.remove_extension("os", "system", 7)


NEAR_MISSES = [
    ("torch._utils", "_rebuild_tensor_v2.__globals__"), ("torch._utils", "sys.modules"), ("torch._utils", "torch"), ("torch", "load"),
    ("torch.storage", "io"), ("torch.storage", "torch.load"), ("collections", "OrderedDict.__init__"), ("collections", "_sys"),
    ("builtins", "set.__class__"), ("builtins", "set\x00"), ("builtins ", "set"), ("Builtins", "set"), ("builtins", "Set"),
    ("numpy", "dtype.__reduce__"), ("dnnlib.util", "EasyDict.__class__"), ("torch_utils.persistence", "exec"), ("torch", "storage"),
    ("torch_utils.persistence._reconstruct_persistent_obj", "__globals__"), ("registry.edm.pickles.notes", "Call"), ("_codecs", "decode"),
]  # fmt: skip


@pytest.mark.parametrize(("module", "attribute"), NEAR_MISSES)
def test_names_are_compared_whole(tmp_path: Path, module: str, attribute: str) -> None:
    for value in (stacked(module, attribute), name(module, attribute)):
        refused(tmp_path / "file", snapshot(value), "which network snapshots and training states do not need")
        assert (module, attribute, True) in list_globals(tmp_path / "file")


UNKNOWN = {
    "computed name": text("os") + call(ENCODE, text("system"), text("latin1")) + b"\x93",
    "stream from an array": tensor(call(LOAD, call(RECONSTRUCT, NDARRAY, several(number(0)), data(b"b")))),
    "stream in a code": tensor(call(LOAD, call(ENCODE, text("x"), text("rot13")))),
    "stream by OBJ": b"(" + LOAD + b"No",
    "stream in a stream": tensor(blob(content=blob())),
    "zip file in a stream": tensor(call(LOAD, data(archive(pickled(b"}"))))),
    "changed class": EASY + several(b"N", b"}" + text("__setstate__") + LOAD + b"s") + b"b" + data(b"") + b"b",
}


@pytest.mark.parametrize("case", UNKNOWN)
def test_what_only_running_a_file_would_reveal_is_listed_as_unknown(tmp_path: Path, case: str) -> None:
    refused(tmp_path / "file", snapshot(UNKNOWN[case]))
    assert any("?" in (module, attribute) and executes for module, attribute, executes in list_globals(tmp_path / "file"))


def test_globals_of_a_truncated_file_are_still_listed(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(snapshot(attack("REDUCE", "os.system", tmp_path / "canary"))[:-3])
    assert ("os", "system", True) in list_globals(tmp_path / "file")
    for content in (b"", b"<html>", snapshot(record())[:-3], archive(b"}.")[:-3], state(b"N", compression=zipfile.ZIP_DEFLATED)):
        (tmp_path / "file").write_bytes(content)
        with pytest.raises(PickleError):
            list_globals(tmp_path / "file")


# ------------------------------------------------------------------------------------------------- everything else

REFUSED: dict[str, tuple[bytes, str]] = {
    # instructions
    **{
        f"instruction {instruction}": (snapshot(code), f"uses the pickle instruction {instruction}, ")
        for instruction, code in {
            "INT": b"I1\n",
            "LONG": b"L1L\n",
            "LONG4": b"\x8b\x01\x00\x00\x00\x01",
            "FLOAT": b"F1\n",
            "STRING": b"S'x'\n",
            "BINSTRING": b"T\x00\x00\x00\x00",
            "SHORT_BINSTRING": b"U\x00",
            "UNICODE": b"Vx\n",
            "LIST": b"(l",
            "DICT": b"(d",
            "FROZENSET": b"(\x91",
            "DUP": b"N2",
            "POP": b"NN0",
            "POP_MARK": b"N(1",
            "PUT": b"Np1\n",
            "GET": b"g1\n",
            "PERSID": b"P1\n",
            "NEXT_BUFFER": b"\x97",
            "READONLY_BUFFER": data(b"") + b"\x98",
        }.items()
    },
    "instruction that does not exist": (snapshot(b"\xff"), "unknown instruction"),
    "protocol 6": (b"\x80\x06}.", "unsupported pickle protocol: 6"),
    "empty stack": (b"\x80\x04.", "finds too few values"),
    "no mark": (snapshot(b"t")[:-2] + b"t.", "is damaged"),
    "past the mark": (snapshot(b"N(R"), "finds too few values"),
    "nothing in the memo": (snapshot(b"h\x07"), "is damaged"),
    "surrogates in a name": (snapshot(b"X\x03\x00\x00\x00\xed\xb2\x80" + text("x") + b"\x93"), "refers to ?.x"),
    "terminal codes in a name": (snapshot(stacked("\x1b[2J\nos", "system")), "refers to ?[2J os.system"),
    "long name": (snapshot(stacked("a" * 10**6, "system")), "refers to aaaaaaaaa"),
    "text not in utf-8": (snapshot(b"X\x01\x00\x00\x00\xff"), "UnicodeDecodeError"),
    # whole files
    "empty": (b"", "begins with b''"),
    "web page": (b"<!DOCTYPE html>", "begins with b'<!DO'"),
    "protocol 0": (b"(dp0\n.", "begins with b'(dp0'"),
    "tar file": (b"sys_info".ljust(512, b"\0") * 3, "begins with b'sys_'"),
    "list": (pickled(b"]"), "holds a list, not a dictionary"),
    "none": (pickled(b"N"), "holds a NoneType"),
    "number": (pickled(number(3)), "holds a int"),
    "text": (pickled(text("x")), "holds a str"),
    "tuple": (pickled(b")"), "holds a tuple"),
    "set": (pickled(b"\x8f"), "holds a set"),
    "bytes": (pickled(data(b"x")), "holds a bytes"),
    "record": (pickled(record()), "holds a Persistent"),
    "class": (pickled(EASY), "has dnnlib.util.EasyDict in a place where a value belongs"),
    "number as key": (pickled(b"}" + number(1) + b"Ns"), "not a dictionary of networks by name"),
    "something behind": (pickled(b"}") + b"x", "1 bytes follow the end"),
    "only a mark": (MARK, "ends in the middle"),
    "stream without storages": (stream(b"]", keys=[]), "holds a list"),
    # notes of calls, misused
    "state of a class": (snapshot(EASY + dictionary(x=b"N") + b"b"), "TypeError"),
    "slots of a class": (snapshot(EASY + several(b"N", dictionary(__setstate__=LOAD)) + b"b"), "TypeError"),
    "slots of a function": (snapshot(LOAD + several(b"N", dictionary(__code__=b"N")) + b"b"), "TypeError"),
    "state of a record": (snapshot(record() + dictionary(__class__=EASY) + b"b"), "in a way that no pickler does"),
    "state of a tensor": (snapshot(tensor(blob()) + several(b"N") + b"b"), "in a way that no pickler does"),
    "state of a storage": (state(tensor(reference() + dictionary(key=text("1")) + b"b")), "AttributeError"),
    "slots of a storage": (state(tensor(reference() + several(b"N", dictionary(key=text("1"))) + b"b")), "AttributeError"),
    "state of text": (snapshot(text("x") + dictionary(__class__=EASY) + b"b"), "AttributeError"),
    "state of a dictionary": (snapshot(b"}" + dictionary(__class__=EASY) + b"b"), "AttributeError"),
    "state of bytes": (snapshot(data(b"x") + several(b"N", dictionary(start=b"N")) + b"b"), "AttributeError"),
    "items of a record": (snapshot(record() + text("k") + b"Ns"), "in a way that no pickler does"),
    "items of a tensor": (snapshot(tensor(blob()) + number(0) + number(1) + b"s"), "in a way that no pickler does"),
    "items of a class": (snapshot(EASY + text("k") + b"Ns"), "TypeError"),
    "append to a class": (snapshot(EASY + b"(Ne"), "AttributeError"),
    "append to a tensor": (snapshot(tensor(blob()) + b"(Ne"), "AttributeError"),
    "append to a dictionary": (snapshot(b"}Na"), "AttributeError"),
    "add to a tensor": (snapshot(tensor(blob()) + b"(" + number(1) + b"\x90"), "AttributeError"),
    "call of a record": (snapshot(record() + b")R"), "TypeError"),
    "call of text": (snapshot(text("x") + b")R"), "TypeError"),
    "instance of text": (snapshot(text("x") + b")\x81"), "is damaged"),
    "arguments in a list": (snapshot(ORDERED + b"]R"), "calls something with more than 16 arguments, or not with a tuple"),
    "many arguments": (snapshot(call(ORDERED, *[b"N"] * 17)), "calls something with more than 16 arguments, or not with a tuple"),
    "call of a storage type": (snapshot(call(FLOATS, number(10**12))), "calls torch.FloatStorage"),
    "call of numpy.ndarray": (snapshot(call(NDARRAY, several(number(10**12)))), "calls numpy.ndarray"),
    "call of torch.float32": (snapshot(call(name("torch", "float32"))), "calls torch.float32"),
    "arguments of OrderedDict": (
        snapshot(call(ORDERED, many())),
        "calls collections.OrderedDict with arguments that no pickler writes",
    ),
    "arguments of set": (snapshot(call(SET, text("abc"))), "calls builtins.set with arguments that no pickler writes"),
    "length of bytes": (
        snapshot(call(name("builtins", "bytes"), number(10**12))),
        "calls builtins.bytes with arguments that no pickler writes",
    ),
    "another code": (snapshot(call(ENCODE, text("x"), text("rot13"))), "encodes text as rot13"),
    "code of bytes": (
        snapshot(call(ENCODE, data(b"x"), text("hex"))),
        "calls _codecs.encode with arguments that no pickler writes",
    ),
    "code of too much": (snapshot(call(ENCODE, text("\u1234"), text("latin1"))), "UnicodeEncodeError"),
    "module without state": (snapshot(MODULES + b")\x81"), "without attributes"),
    "record of nothing": (
        snapshot(call(RECORD)),
        "calls torch_utils.persistence._reconstruct_persistent_obj with arguments that no",
    ),
    "record of text": (snapshot(call(RECORD, text("x"))), "with arguments that no pickler writes"),
    "record of no class": (snapshot(call(RECORD, b"}")), "is not a class with name, version and state"),
    "record of another type": (snapshot(call(RECORD, dictionary(type=text("function")))), "is not a class"),
    "record with its class": (snapshot(record(__class__=EASY)), "in a place where a value belongs"),
    "device": (snapshot(call(name("torch", "device"), b"]")), "calls torch.device with arguments that no pickler writes"),
    "size": (snapshot(call(name("torch", "Size"), several(text("x")))), "not a few whole numbers"),
    # keys
    "tuple as key": (snapshot(b"})Ns"), "keys other than text and small whole numbers"),
    "list as key": (snapshot(b"}]Ns"), "keys other than"),
    "call as key": (snapshot(b"}" + ORDERED + b")RNs"), "keys other than"),
    "large number as key": (snapshot(b"}" + number(2**61 - 1) + b"Ns"), "keys other than"),
    "large numbers in a call's set": (snapshot(call(SET, many(number(2**200)))), "keys other than"),
    "lists in a set": (snapshot(call(SET, many(b"]"))), "keys other than"),
    "tuples in a set": (snapshot(b"\x8f()\x90"), "keys other than"),
    # persistent ids
    "persistent number": (snapshot(number(0) + b"Q"), "IndexError"),
    "persistent text": (snapshot(text("storage") + b"Q"), "something outside its pickle"),
    "persistent record": (snapshot(record() + b"Q"), "something outside its pickle"),
    "persistent module": (snapshot(several(text("module"), text("os"), b"N", b"N") + b"Q"), "something outside its pickle"),
    "persistent function": (snapshot(several(text("module"), LOAD, b"N", b"N") + b"Q"), "in a place where a value belongs"),
    "storage in a plain pickle": (snapshot(tensor(reference())), "storage 0 is missing"),
    "storage as a value": (state(reference()), "in a place where a value belongs"),
    "storage of text": (state(tensor(reference(kind=text("FloatStorage")))), "something outside its pickle"),
    "storage of another class": (state(tensor(reference("0", 4, EASY))), "something outside its pickle"),
    "storage of a view": (state(tensor(reference("0", 4, FLOATS, several(text("0"))))), "something outside its pickle"),
    "storage that is missing": (state(tensor(reference("1"))), "storage 1 is missing"),
    "storage by path": (state(tensor(reference("../data.pkl"))), "storage ../data.pkl is missing"),
    "storage too large": (state(tensor(reference("0", 5))), "has 16 bytes instead of 20"),
    "storage far too large": (state(tensor(reference("0", 2**62))), "has 16 bytes instead of"),
    "storage of a size without end": (state(tensor(reference("0", 2**2000))), "has 16 bytes instead of"),
    "storage of negative size": (state(tensor(reference("0", -4))), "something outside its pickle"),
    "storage of two kinds": (state(many(reference(), reference("0", 2, name("torch", "LongStorage")))), "storage 0 in two ways"),
    # tensors
    "beyond the end": (snapshot(tensor(blob(), 0, [5])), "reaches beyond its 4 numbers"),
    "offset at the end": (snapshot(tensor(blob(), 4, [1])), "reaches beyond"),
    "stride beyond the end": (snapshot(tensor(blob(), 0, [2], [4])), "reaches beyond"),
    "strides that wrap around": (snapshot(tensor(blob(), 0, [3, 3], [2**63, 2**63])), "reaches beyond"),
    "negative offset": (snapshot(tensor(blob(), -1, [1])), "reaches beyond"),
    "negative stride": (snapshot(tensor(blob(), 3, [4], [-1])), "not a few whole numbers"),
    "negative size": (snapshot(tensor(blob(), 0, [-1, -4], [1, 1])), "not a few whole numbers"),
    "truth as size": (snapshot(tensor(blob(), 0, [b"\x88"])), "not a few whole numbers"),
    "many dimensions": (snapshot(tensor(blob(), 0, [1] * 17, [1] * 17)), "not a few whole numbers"),
    "fewer strides": (snapshot(tensor(blob(), 0, [1, 1])), "ValueError"),
    "repeated numbers": (snapshot(tensor(blob(), 0, [10**6, 10**6], [0, 0])), "repeats its 4 numbers"),
    "empty of huge size": (snapshot(tensor(blob(), 0, [0, 2**70], [1, 1])), "is damaged"),
    "metadata": (snapshot(tensor(blob(), 0, [4], [1], dictionary(conj=b"\x88"))), "a tensor with metadata"),
    "storage is text": (snapshot(tensor(text("x"))), "has a str in a place where a tensor's storage belongs"),
    "storage is a tensor": (snapshot(tensor(tensor(blob()))), "in a place where a tensor's storage belongs"),
    "strides in a list": (
        snapshot(call(TENSOR, blob(), number(0), b")", b"]", b"\x89", b"N")),
        "calls torch._utils._rebuild_tensor_v2 with arguments",
    ),
    "parameter of text": (snapshot(call(PARAMETER, text("x"), b"\x88", b"}")), "has a str in a place where a tensor belongs"),
    # streams in storages
    "stream as a value": (snapshot(blob()), "calls torch.storage._load_from_bytes"),
    "stream of text": (snapshot(tensor(call(LOAD, text("x")))), "has a str in a place where bytes belong"),
    "stream of nothing": (snapshot(tensor(call(LOAD, data(b"")))), "ends in the middle"),
    "stream of a dictionary": (snapshot(tensor(blob(content=b"}", keys=[]))), "hides something else"),
    "stream of a stream": (snapshot(tensor(blob(content=blob(), keys=[]))), "hides something else"),
    "stream with another mark": (snapshot(tensor(blob(mark=pickled(number(7), 2)))), "torch.save did not write"),
    "stream of other machines": (snapshot(tensor(blob(system=pickle.dumps({"little_endian": False}, 2)))), "little-endian"),
    "stream of no machine": (snapshot(tensor(blob(system=pickle.dumps([], 2)))), "torch.save did not write"),
    "stream with other keys": (snapshot(tensor(blob(keys=["1"]))), "the storages that it lists are not those that it uses"),
    "stream with a key twice": (snapshot(tensor(blob(keys=["0", "0"]))), "the storages that it lists are not those that it uses"),
    "stream with numbers as keys": (snapshot(tensor(blob(keys=[0]))), "the storages that it lists are not those that it uses"),
    "stream with another count": (snapshot(tensor(blob(count=-1))), "does not have the size that was announced"),
    "stream that ends early": (snapshot(tensor(blob(content=reference("0", 2**60)))), "does not have the size that was announced"),
    "stream that goes on": (snapshot(tensor(blob(tail=b"x"))), "1 bytes follow its last storage"),
    "stream used twice": (
        snapshot(many(tensor(LOAD + data(stream()) + b"\x85\x94R"), *[tensor(LOAD + b"h\x00R")] * 99)),
        "more than once",
    ),
    # numpy
    **{
        f"dtype {code}{order}": (
            snapshot(call(SCALAR, dtype(code, order), data(bytes(8)))),
            "not one of plain little-endian numbers",
        )
        for code, order in [("O8", "|"), ("V8", "|"), ("f8", ">"), ("M8", "<"), ("S8", "|"), ("f8,O8", "<"), ("f16", "<")]
    },
    "dtype with fields": (snapshot(call(SCALAR, dtype("f8", "<", b"N", b"(N", b"tN"), data(bytes(8)))), "plain little-endian"),
    "dtype of text": (snapshot(call(SCALAR, text("O"), data(bytes(8)))), "in a place where a numpy dtype belongs"),
    "scalar of many": (snapshot(call(SCALAR, dtype("f8"), data(bytes(16)))), "ValueError"),
    "scalar of none": (snapshot(call(SCALAR, dtype("f8"), data(b""))), "ValueError"),
    "scalar of an object": (snapshot(call(SCALAR, dtype("f8"), b"]")), "has a list in a place where bytes belong"),
    "array of another size": (
        snapshot(call(BUFFER, data(bytes(16)), dtype("f8"), several(number(3)), text("C"))),
        "cannot reshape array of size 2",
    ),
    "array without state": (snapshot(call(RECONSTRUCT, NDARRAY, several(number(0)), data(b"b"))), "that no pickler writes"),
    "array of a size": (
        snapshot(call(RECONSTRUCT, NDARRAY, several(number(10**12)), data(b"b")) + b")b"),
        "that no pickler writes",
    ),
    "array of a class": (snapshot(call(RECONSTRUCT, EASY, several(number(0)), data(b"b")) + b")b"), "that no pickler writes"),
    # zip files
    "zip of nothing": (archive(b""), "ends in the middle"),
    "zip without a pickle": (archive(b"}.").replace(b"data.pkl", b"data.pkx"), "with 0 members data.pkl"),
    "zip with two pickles": (archive(b"}.", {"more/data.pkl": b"}."}), "with 2 members data.pkl"),
    "zip with a member twice": (archive(b"}.", {"data/1": b""}).replace(b"data/1", b"data/0"), "appears twice"),
    "zip with more in its pickle": (archive(pickled(b"}") + b"x"), "1 bytes follow the end of its pickle"),
    "zip of other machines": (archive(pickled(b"}"), {"byteorder": b"big"}), "little-endian"),
    "zip, compressed": (state(b"N", compression=zipfile.ZIP_DEFLATED), "has the compressed or encrypted member"),
    "zip, encrypted": (directory(state(b"N"), 8, b"\x01"), "has the compressed or encrypted member"),
    "zip with an inflated member": (directory(state(b"N"), 24, b"\xff\xff\xff\x7f"), "has the compressed or encrypted member"),
    "zip with a huge member": (directory(state(b"N"), 20, b"\xff\xff\xff\x7f" * 2), "extends beyond the end of the file"),
    "zip with a member elsewhere": (directory(state(b"N"), 42, b"\x07\x00\x00\x00"), "not where its directory says"),
    "zip with a member beyond the end": (directory(state(b"N"), 42, b"\xf0\xff\xff\x7f"), "not where its directory says"),
    "zip without a directory": (state(b"N")[:-30], "BadZipFile"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_hostile_files_are_refused_for_the_right_reason(tmp_path: Path, case: str) -> None:
    content, reason = REFUSED[case]
    refused(tmp_path / "file", content, reason)


def test_strange_but_harmless_files_are_read(tmp_path: Path) -> None:
    """Content that looks like a trick but is only data here."""
    path = tmp_path / "file"
    for content in [
        snapshot(record(__class__=text("os"), __dict__=dictionary(x=b"N"), __setstate__=text("eval"))),
        patched_roots := archive(pickled(b"}")).replace(b"state/", b"../../"),
        state(tensor(reference("../../0")), members={"data/../../0": bytes(16)}),
    ]:
        path.write_bytes(content)
        read_pickle(path)
    assert b"../../data.pkl" in patched_roots and [p.name for p in tmp_path.iterdir()] == ["file"]


# ----------------------------------------------------------------- bombs, in a separate process with little memory


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
    "too many instructions": (lambda: snapshot(many(b"N" * MAX_PARTS)), f"has more than {MAX_PARTS} instructions"),
    "many sets": (lambda: snapshot(many(b"\x8f" * (MAX_PARTS // 5))), "holds a list where"),
    "unknown arguments": (lambda: snapshot(record(_init_kwargs=dictionary(**{f"k{i}": b"N" for i in range(N // 4)}))), "argument"),
    "unknown modules": (lambda: snapshot(record(_modules=dictionary(**{f"k{i}": record() for i in range(N // 99)}))), "argument"),
    "storages in each other": (lambda: overlapping(100, N), AGAIN),
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
        timeout=110,
        check=False,
    )
    found = {line[0]: line[1:] for line in map(json.loads, done.stdout.splitlines())}
    return found | {"": [done.returncode, done.stderr]}


@pytest.mark.parametrize("case", BOMBS)
def test_bombs_do_not_go_off(exploded: dict[str, Any], case: str) -> None:
    outcome, *_ = exploded.get(case.replace("^", ""), ["never began"])
    assert f"{case.replace('^', '')}: " in outcome and BOMBS[case][1] in outcome, (outcome, exploded[""])


# --------------------------------------------------------------------------------------------------- damaged files


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
