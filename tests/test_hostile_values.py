"""Files with impossible values and structures: each is refused with one line."""

from __future__ import annotations

import pickle
import zipfile
from pathlib import Path

import pytest

from registry.edm.pickles import read_pickle
from tests.pickle_assembler import (
    BUFFER,
    EASY,
    ENCODE,
    FLOATS,
    LOAD,
    MARK,
    MODULES,
    NDARRAY,
    ORDERED,
    PARAMETER,
    RECONSTRUCT,
    RECORD,
    SCALAR,
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
    name,
    number,
    pickled,
    record,
    reference,
    refused,
    several,
    snapshot,
    stacked,
    state,
    stream,
    tensor,
    text,
    watchdog,
)

pytestmark = pytest.mark.usefixtures(watchdog.__name__)


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
        "makes a dictionary from another one",
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
    "many dimensions": (snapshot(tensor(blob(), 0, [1] * 17, [1] * 17)), "a tuple of more than 16 values"),
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
    "zip with a path for a root": (archive(pickled(b"}")).replace(b"state/", b"../../"), "which torch.save never writes"),
    "zip with a path for a storage": (
        state(tensor(reference("../../0")), members={"data/../../0": bytes(16)}),
        "which torch.save never writes",
    ),
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
        archive(pickled(b"}")).replace(b"state/", b"...../"),
    ]:
        path.write_bytes(content)
        read_pickle(path)
    assert [p.name for p in tmp_path.iterdir()] == ["file"]
