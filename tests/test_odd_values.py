"""Small files whose values lead to odd places: far more memory or time than their bytes, or errors of Python's. Each is refused in one line."""

from __future__ import annotations

import io
import json
import math
import struct
import subprocess
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import save

from registry.core.errors import UserError
from registry.edm.archive import check_cifar, make_dataset
from registry.edm.datasets import load_images
from registry.edm.image_files import open_picture
from registry.edm.networks import EDMPrecond
from registry.edm.pickles import PickleError, network_of, read_pickle
from registry.files import plain
from registry.files.bounds import Bounded
from registry.files.describe import describe
from registry.files.downloads import is_page
from registry.files.formats import convert_network, load_network, save_network
from registry.files.json_files import kept
from registry.measure.saved import QUALITY
from registry.recipe.texts import read_tables
from registry.report.history import read_history
from registry.report.render import page
from tests.pickle_assembler import archive, dictionary, pickled

Here = Callable[..., subprocess.CompletedProcess[str]]
SMALL: dict[str, Any] = dict(
    img_resolution=8, img_channels=1, label_dim=0, use_fp16=False, sigma_min=0.0, sigma_max=math.inf, sigma_data=0.5,
    model_type="SongUNet", model_channels=8, channel_mult=[1], num_blocks=1, attn_resolutions=[],
)  # fmt: skip


def written(
    path: Path,
    about: dict[str, Any],
    arguments: dict[str, Any] | None = None,
    weights: dict[str, Any] | None = None,
    **network: Any,
) -> Path:
    """A file of version 0.1, which has no seal, so that anybody can write it."""
    net = EDMPrecond(**SMALL)
    found: dict[str, Any] = {"class": "EDMPrecond", "kwargs": SMALL | (arguments or {}), **network}
    content = {"format": "distill/1", "kind": "denoiser", "network": found, "about": about}
    tensors = net.state_dict() if weights is None else weights
    if path.suffix == ".pt":
        torch.save(content | {"weights": dict(tensors)}, path)
    else:
        path.write_bytes(save(dict(tensors), {"distill": json.dumps(content).replace("Infinity", '"inf"')}))
    return path


def nested(depth: int) -> Any:
    value: Any = 1
    for _ in range(depth):
        value = [value]
    return value


NONE = [{"sigmas": None}, {"image_shape": None}, {"nimg": None}, {"recipe": None}]


@pytest.mark.parametrize("about", NONE, ids=str)
@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_what_a_file_leaves_empty_is_not_said(about: dict[str, Any], suffix: str, tmp_path: Path) -> None:
    path = written(tmp_path / f"net{suffix}", about)
    assert not describe(str(path)).dangerous
    convert_network(str(path), str(tmp_path / f"other{suffix}"))


ODD: dict[str, tuple[dict[str, Any], dict[str, Any], dict[str, Any], str]] = {
    "a huge number in a recipe": ({"recipe": {"loss": {"alpha": 10**400}}}, {}, {}, "number beyond all bounds"),
    "huge levels": ({}, {}, {"levels": [1, 10**400]}, "number beyond all bounds"),
    "deep": ({"components": nested(150)}, {}, {}, "nested too deeply"),
    "a type": ({"x": torch.float32}, {}, {}, "it holds a dtype"),
    "a long filter": ({}, {"resample_filter": [1] * 8000}, {}, "resample_filter"),
    "many blocks": ({}, {"model_channels": 320, "num_blocks": 60}, {}, "far more than the file holds"),
    "a tensor as a number": ({}, {"img_resolution": torch.zeros(2)}, {}, "Boolean value|cannot be built"),
}


def described_and_converted(path: Path, target: Path) -> None:
    describe(str(path))
    convert_network(str(path), str(target))


@pytest.mark.parametrize("case", ODD)
def test_odd_values_of_a_network_are_refused_in_a_line(case: str, tmp_path: Path) -> None:
    about, arguments, network, problem = ODD[case]
    path = written(tmp_path / "net.pt", about, arguments, **network)
    with pytest.raises(UserError, match=problem) as caught:
        described_and_converted(path, tmp_path / "other.pt")
    assert "\n" not in str(caught.value) and not (tmp_path / "other.pt").exists()


def test_a_few_numbers_are_not_the_weights_of_a_large_network(tmp_path: Path) -> None:
    with torch.device("meta"):
        large = EDMPrecond(**SMALL | {"model_channels": 256})
    repeated = {name: torch.zeros(1).expand(tensor.shape) for name, tensor in large.state_dict().items()}
    path = written(tmp_path / "net.pt", {}, {"model_channels": 256}, repeated)
    with pytest.raises(UserError, match="take far more memory than it has bytes"):
        load_network(path)


def test_tensors_of_a_pickle_that_are_the_same_numbers_are_refused() -> None:
    from registry.edm.pickles import Persistent

    numbers = torch.zeros(10**6)
    state = {"_tensors": {f"t{i}": numbers[i:] for i in range(50)}}
    with pytest.raises(PickleError, match="more memory than it has bytes"):
        network_of(Persistent("EDMPrecond", 6, state), "x.pkl")


def test_numbers_of_four_bits_are_refused(tmp_path: Path) -> None:
    net = EDMPrecond(**SMALL)
    head: dict[str, Any] = {
        "__metadata__": {
            "distill": json.dumps(
                {
                    "format": "distill/1",
                    "kind": "denoiser",
                    "network": {"class": "EDMPrecond", "kwargs": SMALL | {"sigma_max": "inf"}},
                    "about": {},
                }
            )
        }
    }
    numbers = b""
    for name, tensor in net.state_dict().items():
        raw, kind = tensor.contiguous().numpy().tobytes(), "F32"
        if tensor.ndim and tensor.shape[-1] % 2 == 0 and kind == "F32" and name.endswith("norm0.bias"):
            raw, kind = bytes(tensor.numel() // 2), "F4"
        head[name] = {"dtype": kind, "shape": list(tensor.shape), "data_offsets": [len(numbers), len(numbers) + len(raw)]}
        numbers += raw
    text = json.dumps(head).encode()
    (tmp_path / "net.safetensors").write_bytes(struct.pack("<Q", len(text)) + text + numbers)
    with pytest.raises(UserError):
        load_network(tmp_path / "net.safetensors")


@pytest.mark.parametrize("content", [{"distill": b"}"}, {"step": b"\x8a\xc8" + b"\x7f" * 200}], ids=["ours", "step"])
def test_pickles_without_networks_are_described(content: dict[str, bytes], tmp_path: Path) -> None:
    (tmp_path / "net.pkl").write_bytes(pickled(dictionary(**content), 2))
    assert describe(str(tmp_path / "net.pkl")).networks == []


def test_members_of_a_zip_file_must_not_lie_in_each_other(tmp_path: Path) -> None:
    whole = archive(pickled(dictionary(), 2), {"data/1": bytes(16), "data/2": bytes(16)})
    first = whole.index(b"PK\x01\x02", whole.index(b"PK\x01\x02") + 1)  # of data/0
    other = whole.rindex(b"PK\x01\x02")
    (tmp_path / "net.pt").write_bytes(whole[: other + 42] + whole[first + 42 : first + 46] + whole[other + 46 :])
    with pytest.raises(PickleError, match="its members lie in each other"):
        read_pickle(tmp_path / "net.pt")


TOML: dict[str, str] = {
    "lists in lists": "a = " + "[1," * 2000 + "1" + "]" * 2000,
    "tables in lists": "a = " + "{a=[\n" * 500 + "1" + "]}" * 500,
    "quoted keys": ".".join(['"a"'] * 8000) + " = 1",
    "quoted names of tables": "[" + ".".join(["'a'"] * 4000) + "]\nx=1",
}


@pytest.mark.parametrize("case", TOML)
def test_toml_that_takes_forever_is_refused(case: str, tmp_path: Path) -> None:
    (tmp_path / "r.toml").write_text(TOML[case])
    with pytest.raises(UserError, match="nested too deeply"):
        read_tables(tmp_path / "r.toml")


def test_brackets_and_dots_in_texts_mean_nothing(tmp_path: Path) -> None:
    marks = "[" * 60 + ".a" * 60
    (tmp_path / "r.toml").write_text(
        f'# {marks}\na = "{marks} \\" {marks}"\nb = \'{marks}\'\nc = """{marks}\n" {marks}"""\nd = \'\'\'{marks}\'\'\'\n'
    )
    assert list(read_tables(tmp_path / "r.toml")) == ["a", "b", "c", "d"]


def test_a_tarball_that_says_much_of_a_member_is_refused(tmp_path: Path) -> None:
    said = tarfile.TarInfo("x")
    said.type, said.size = tarfile.XHDTYPE, 10_000
    member = tarfile.TarInfo("data_batch_1")
    (tmp_path / "c.tar").write_bytes(
        said.tobuf(tarfile.USTAR_FORMAT) + b"1" * 10_240 + member.tobuf(tarfile.USTAR_FORMAT) + bytes(1024)
    )
    with pytest.raises(UserError, match="neither a file nor a folder"):
        make_dataset(str(tmp_path / "c.tar"), str(tmp_path / "out.zip"))
    assert not (tmp_path / "out.zip").exists()


def test_a_frame_in_a_batch_of_cifar_is_refused() -> None:
    with pytest.raises(ValueError, match="frame"):
        check_cifar(b"\x80\x04\x95" + struct.pack("<Q", 2) + b"}.")


def test_a_compressed_bmp_is_refused() -> None:
    body = b"\1\1\0\0" + bytes(1000)
    header = struct.pack("<IiiHHIIiiII", 40, 1000, 1, 1, 8, 1, len(body), 0, 0, 256, 0)
    with pytest.raises(ValueError, match="compressed BMP"):
        open_picture(b"BM" + struct.pack("<IHHI", 1078 + len(body), 0, 0, 1078) + header + bytes(1024) + body)
    Image.new("RGB", (8, 8)).save(plain := io.BytesIO(), "BMP")
    assert open_picture(plain.getvalue()).size == (8, 8)


@pytest.mark.parametrize("compression", [zipfile.ZIP_LZMA, zipfile.ZIP_BZIP2, zipfile.ZIP_DEFLATED])
def test_a_damaged_zip_of_images_is_refused(compression: int, tmp_path: Path) -> None:
    Image.new("L", (4, 4)).save(picture := io.BytesIO(), "PNG")
    with zipfile.ZipFile(tmp_path / "d.zip", "w") as file:
        file.writestr("a.png", picture.getvalue())
        file.writestr("dataset.json", b'{"labels": null}' * 20, compression)
    raw = bytearray((tmp_path / "d.zip").read_bytes())
    start = raw.index(b"dataset.json") + 12 + (9 if compression == zipfile.ZIP_LZMA else 0)
    raw[start : start + 12] = bytes(255 - byte for byte in raw[start : start + 12])
    (tmp_path / "d.zip").write_bytes(raw)
    with pytest.raises(UserError, match="is damaged"):
        load_images(str(tmp_path / "d.zip"))


def quality(rows: list[dict[str, Any]], **more: Any) -> str:
    return json.dumps({"rows": rows, **more})


def test_tables_of_thousands_of_columns_are_no_tables(tmp_path: Path) -> None:
    path = tmp_path / "quality.json"
    for n, whole in ((90, True), (110, False), (250, False)):
        path.write_text(quality([{"name": f"r{i}", "evaluations": 1, "values": {f"c{i}": [1.0]}} for i in range(n)]))
        assert (kept(path, QUALITY) is not None) == whole, n


def test_a_page_takes_numbers_for_numbers_and_pictures_for_pictures(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("not a picture: private")
    run = tmp_path / "run"
    run.mkdir()
    (run / "stats.jsonl").write_text(json.dumps({"Progress/kimg": {"mean": 1}}) + "\n")
    (run / "metric-fid.jsonl").write_text(json.dumps({"results": {"fid": 1.0}, "metric": "fid", "kimg": 1, "samples": 100}) + "\n")
    (run / "quality.json").write_text(
        quality(
            [{"name": "generator", "evaluations": 1, "values": {"fid": [1.0]}}], protocols={"fid": {"metric": "fid", "images": [1]}}
        )
    )
    for name in ("real.png", "teacher-35.png", "fakes_init.png", "fakes_000001.png"):
        (run / name).symlink_to(tmp_path / "secret")
    history = read_history(run)
    assert not history.pictures and not history.snapshots
    assert "bm90IGEgcGljdHVyZTogcHJpdmF0ZQ" not in page([history])


PAGES: dict[str, tuple[bytes, bool]] = {
    "html": (b"<!DOCTYPE html><html>", True), "xml": (b'\xef\xbb\xbf<?xml version="1.0"?>', True), "comment": (b"  <!-- x -->", True),
    "utf-16": ("<html>".encode("utf-16"), True), "pickle": (b"\x80\x02}.", False), "zip": (b"PK\x03\x04", False),
    "safetensors": (struct.pack("<Q", 0x3C) + b'{"a"', False),
}  # fmt: skip


@pytest.mark.parametrize("case", PAGES)
def test_what_a_web_page_is(case: str, tmp_path: Path) -> None:
    content, wanted = PAGES[case]
    (tmp_path / "file").write_bytes(content)
    assert is_page(tmp_path / "file") == wanted


def test_weights_in_many_places_are_saved_and_read(tmp_path: Path) -> None:
    """As of a block that a network has twelve times."""
    tied = torch.randn(500_000)
    plain.save(
        tmp_path / "net.pt",
        "denoiser",
        {"weights": {f"block{i}": tied for i in range(12)}, "network": {"class": "X", "kwargs": {}}, "about": {}},
    )
    assert (tmp_path / "net.pt").stat().st_size < 3e6
    assert len(plain.load(tmp_path / "net.pt", "denoiser")["weights"]) == 12


def test_a_network_may_be_built_by_way_of_another_file(tmp_path: Path) -> None:
    """As a plugin's is that copies its teacher: the teacher's file is read meanwhile."""
    net = EDMPrecond(**SMALL | {"model_channels": 64})
    save_network(tmp_path / "teacher.pkl", "denoiser", net, {"D": math.inf})
    with Bounded(net.state_dict()):
        load_network(tmp_path / "teacher.pkl")


def test_a_zip_of_other_things_is_not_called_dangerous(here: Here, tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "table.zip", "w") as file:
        file.writestr("table.csv", "class,label\n1,2\n")
    done = here("inspect", tmp_path / "table.zip")
    assert done.returncode == 1 and "0 members data.pkl" in done.stderr


def test_the_root_of_a_zip_file_may_have_any_letters(tmp_path: Path) -> None:
    """Older versions of torch take the file's name."""
    (tmp_path / "net.pt").write_bytes(archive(pickled(dictionary(), 2)).replace(b"state/", "zus\u00e9/".encode()))
    assert read_pickle(tmp_path / "net.pt") == {}
