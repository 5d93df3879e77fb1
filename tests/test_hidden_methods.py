"""Files of torch.save with objects whose attributes hide their methods, and other files that take far more than they are long."""

from __future__ import annotations

import io
import subprocess
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from registry.core import seal
from registry.core.atomic import write_atomically
from registry.core.errors import UserError
from registry.edm.pickles import list_globals, read_pickle
from registry.files.plain import load, plain_globals
from tests.pickle_assembler import (
    ORDERED,
    PARAMETER,
    call,
    dictionary,
    many,
    name,
    number,
    pickled,
    reference,
    stacked,
    tensor,
    text,
    watchdog,
)

pytestmark = pytest.mark.usefixtures(watchdog.__name__)
Here = Callable[..., subprocess.CompletedProcess[str]]
WITH_STATE = name("torch._utils", "_rebuild_parameter_with_state")


def archive(path: Path, value: bytes) -> Path:
    """A file of torch.save with our seal, in which this value is pickled."""
    written = io.BytesIO()
    with zipfile.ZipFile(written, "w") as members:
        members.writestr("a/data.pkl", pickled(value, 2))
        members.writestr("a/version", b"3\n")
        members.writestr("a/data/0", bytes(16))
    write_atomically(path, lambda file: (file.write(written.getvalue()), seal.seal(file)))
    return path


def ordered(entries: bytes, /, **attributes: bytes) -> bytes:
    """An OrderedDict with these entries and attributes."""
    return ORDERED + b")R" + entries.removeprefix(b"}") + dictionary(**attributes) + b"b"


def network(weights: bytes | None = None, about: bytes = b"}", recipe: bytes | None = None, **attributes: bytes) -> bytes:
    """What a file of ours holds, in an OrderedDict with attributes."""
    parts = {"format": text("distill/2"), "kind": text("denoiser")}
    parts["network"] = dictionary(
        **{"class": text("EDMPrecond")}, kwargs=dictionary(img_resolution=b"K\x08", img_channels=b"K\x01")
    )
    parts["weights"] = weights or dictionary(a=tensor(reference()))
    parts["about"] = about if recipe is None else dictionary(recipe=recipe)
    return ordered(dictionary(**parts), **attributes)


def doubled(depth: int) -> bytes:
    """A list that holds another one twice, which holds another one twice."""
    found = many(number(1), number(1))
    for i in range(depth):
        found = b"](" + found + b"q" + bytes([i]) + b"h" + bytes([i]) + b"e"
    return found


HIDDEN = {
    "the file's values": network(values=b"N"),
    "the file's entries": network(get=b"N", keys=b"N", items=b"N"),
    "the facts' entries": network(about=ordered(dictionary(D=number(1)), values=b"N", get=b"N", items=b"N", keys=b"N")),
    "the weights' items": network(ordered(dictionary(a=tensor(reference())), items=b"N", values=ORDERED)),
}


@pytest.mark.parametrize("case", HIDDEN)
def test_attributes_of_a_table_hide_nothing(case: str, here: Here, tmp_path: Path) -> None:
    path = archive(tmp_path / "net.pt", HIDDEN[case])
    loaded = torch.load(path, weights_only=True)
    tables = [v for v in (loaded, *dict.values(loaded)) if isinstance(v, OrderedDict)]
    assert any(vars(table) for table in tables), "the test hides nothing"
    found = load(path, "denoiser")
    assert type(found) is dict and all(type(found[key]) is dict for key in ("network", "weights", "about"))
    assert here("inspect", path).returncode == 0
    for words in (("convert", path, "out.pt"), ("generate", "--network", path, "--seeds", "0", "--outdir", "out")):
        done = here(*words)
        assert done.returncode == 1 and done.stderr.count("\n") == 1, done.stderr


def test_a_table_that_hides_its_values_hides_no_bomb(tmp_path: Path) -> None:
    bomb = ordered(dictionary(loss=dictionary(use=doubled(40))), values=ORDERED)
    with pytest.raises(UserError, match="hold each other too many times"):
        load(archive(tmp_path / "net.pt", network(recipe=bomb)), "denoiser")


@pytest.mark.parametrize("hidden", ["untyped_storage", "storage_offset", "stride"])
def test_parameters_have_no_attributes(hidden: str, here: Here, tmp_path: Path) -> None:
    """torch would set each of them, of each parameter."""
    state = dictionary(**{hidden: b"N"})
    weights = dictionary(a=call(WITH_STATE, tensor(reference()), b"\x88", ORDERED + b")R", state))
    done = here("inspect", archive(tmp_path / "net.pt", network(weights)))
    assert done.returncode == 1 and "_rebuild_parameter_with_state" in done.stderr and done.stderr.count("\n") == 1


def test_parameters_of_older_files_are_tensors(tmp_path: Path) -> None:
    weights = dictionary(a=call(PARAMETER, tensor(reference()), b"\x88", ORDERED + b")R"))
    found = load(archive(tmp_path / "net.pt", network(weights)), "denoiser")["weights"]["a"]
    assert type(found) is torch.Tensor and not found.requires_grad


def test_a_file_calls_nothing_more_often_than_its_size_needs(tmp_path: Path) -> None:
    """The same tensor, made again with five bytes each time."""
    values = [number(1)] * 10
    path = archive(tmp_path / "net.pt", many(*values, ORDERED + b"q\x00)R", *[b"h\x00)R"] * 60_000))
    with pytest.raises(UserError, match="calls something more than 20,000 times"):
        load(path, "denoiser")


@pytest.mark.parametrize("protocol", [2, 5])
def test_many_small_tensors_are_not_called_too_many(protocol: int, tmp_path: Path) -> None:
    torch.save([torch.zeros(1) for _ in range(11_000)], tmp_path / "a.pt", pickle_protocol=protocol)
    assert plain_globals(tmp_path / "a.pt")


@pytest.mark.parametrize("form", ["pkl", "pt"])
def test_a_call_of_deeply_nested_tuples_is_refused(form: str, here: Here, tmp_path: Path) -> None:
    """To hash them would overflow C's stack, and end the process."""
    value = b")" + b"\x85" * 290_000 + b")R"
    path = tmp_path / f"deep.{form}"
    if form == "pkl":
        path.write_bytes(pickled(value))
    else:
        archive(path, value)
    assert here("inspect", path).returncode == 3
    done = here("convert", path, "out.pt")
    assert done.returncode == 1 and done.stderr.count("\n") == 1


def test_what_newer_tensors_refer_to_executes_nothing(tmp_path: Path) -> None:
    kinds = [torch.float8_e4m3fn, torch.uint16]
    content = [torch.zeros(3).to(kind) for kind in kinds] + [torch.eye(3).to_sparse(), torch.empty(3, device="meta"), 1j]
    for form in (True, False):
        torch.save(content, tmp_path / "a.pt", _use_new_zipfile_serialization=form)
        assert not [entry for entry in plain_globals(tmp_path / "a.pt") if entry[2]]


def test_a_storage_of_any_numbers_is_never_called(tmp_path: Path) -> None:
    """Called, it takes as much memory as it is told."""
    path = tmp_path / "a.pkl"
    path.write_bytes(pickled(call(stacked("torch.storage", "UntypedStorage"), number(2**30))))
    assert any(entry[0] == "?" for entry in list_globals(path))
    with pytest.raises(UserError):
        read_pickle(path)
