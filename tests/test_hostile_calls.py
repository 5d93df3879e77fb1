"""Malicious files: nothing in them is ever called, and each is refused with one line."""

from __future__ import annotations

import copyreg
import pickle
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from registry.edm.pickles import PickleError, list_globals, read_pickle
from registry.files.formats import save_network
from tests.conftest import environment, error_line, tiny_network
from tests.pickle_assembler import (
    EASY,
    ENCODE,
    LOAD,
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
    many,
    name,
    number,
    pickled,
    record,
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
        import pickle, sys
        for path in sys.argv[1:]:
            try:
                pickle.load(open(path, "rb"))
            except Exception as error:
                print(path, repr(error))
    """
    done = subprocess.run([sys.executable, "-c", script, *paths], capture_output=True, text=True, check=True, env=environment())
    end = time.monotonic() + 60
    while missing := [c for p, c in zip(paths, cases, strict=True) if not p.with_suffix(".canary").exists()]:
        assert time.monotonic() < end, (missing, done.stdout)  # some of them only start a process that makes it
        time.sleep(0.05)


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


Here = Callable[..., subprocess.CompletedProcess[str]]
WRONG_CALLS = {
    "no arguments for a tensor": b"ctorch._utils\n_rebuild_tensor_v2\n(tR.",
    "no arguments for a parameter": b"ctorch._utils\n_rebuild_parameter\n(tR.",
    "a size of text": b"ctorch\nSize\n(X\x01\x00\x00\x00atR.",
    "a dictionary of numbers": b"ccollections\nOrderedDict\n(K\x01K\x02tR.",
    "a reference to nothing": b"X\x01\x00\x00\x00aQ.",
    "a call of a number's type": b"ctorch\nfloat32\n(tR.",
}


@pytest.mark.parametrize("call", WRONG_CALLS)
@pytest.mark.parametrize(
    "command", [("inspect",), ("generate", "--seeds", "0", "--outdir", "o", "--network"), ("convert",)], ids=str
)
def test_calls_of_torch_that_cannot_be_made_are_a_damaged_file(
    call: str, command: tuple[str, ...], here: Here, tmp_path: Path
) -> None:
    """torch's loader has many words for them, and they are safe ones."""
    save_network(tmp_path / "net.pt", "generator", tiny_network(), {"D": 128.0})
    with zipfile.ZipFile(tmp_path / "net.pt") as whole, zipfile.ZipFile(tmp_path / "bad.pt", "w") as bad:
        for name in whole.namelist():
            bad.writestr(name, WRONG_CALLS[call] if name.endswith("data.pkl") else whole.read(name))
    words = [*command, "bad.pt", *(["to.pkl"] if command == ("convert",) else [])]
    line = error_line(here(*words))
    assert "bad.pt: " in line and "bug" not in line
