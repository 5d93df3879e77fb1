"""The golden snapshots and training states are read bit for bit, and files that do not fit are refused with a reason."""

from __future__ import annotations

import copy
import functools
import math
import subprocess
import sys
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from registry.edm.pickles import RUNS_SOURCE, Inert, Persistent, PickleError, list_globals, network_of, read_pickle
from tests.conftest import ROOT, environment, golden, tiny_network
from tests.pickle_writer import (
    CASES,
    GOLDEN,
    NETWORKS,
    OPTIMIZERS,
    StandIn,
    persistent,
    refusal,
    snapshot_fixture,  # noqa: F401  (fixtures)
    write,
)

# ------------------------------------------------------------------------------------------------- golden files


@functools.cache
def content_of(file: str) -> dict[str, Any]:
    return read_pickle(GOLDEN / file)


@pytest.mark.parametrize(("file", "key"), CASES)
def test_tensors_are_equal_bit_for_bit_and_the_network_gives_the_published_outputs(file: str, key: str) -> None:
    npz, keys = NETWORKS[file]
    g, (prefix, out) = golden(npz), keys[key]
    before = torch.get_rng_state()
    record = content_of(file)[key]
    wanted, found = g.state(prefix), record.tensors()
    assert list(found) == list(wanted)
    for name, tensor in wanted.items():
        assert found[name].dtype == tensor.dtype and found[name].device.type == "cpu"
        assert torch.equal(found[name], tensor)
    assert record.class_name == g.meta["class_name"] and record.version == 6
    assert record.init_kwargs == g.meta["init_kwargs"]

    net, about = network_of(record, file)
    assert torch.equal(torch.get_rng_state(), before)
    assert not net.training and all(p.requires_grad for p in net.parameters())
    assert all(torch.equal(tensor, found[name]) for name, tensor in net.state_dict().items())
    labels = g.at("class_labels") if "class_labels" in g.keys else None
    with torch.no_grad():
        torch.testing.assert_close(net(g.at("x"), g.at("sigma"), labels), g.at(out), rtol=0, atol=1e-4)
    D = float(g.meta.get("D", math.inf))
    assert (about["D"], net.D, net.pfgmpp, net.N) == (D, D, math.isfinite(D), g.at("x")[0].numel())
    assert (about["sigma_data"], about["class_name"], about["version"]) == (0.5, "EDMPrecond", 6)
    assert about["label_dim"] == g.meta["init_kwargs"]["label_dim"] == net.label_dim


@pytest.mark.parametrize(("file", "key"), [(file, key) for file, keys in OPTIMIZERS.items() for key in keys])
def test_optimizer_states_are_equal_bit_for_bit(file: str, key: str) -> None:
    g, (network, groups) = golden(NETWORKS[file][0]), OPTIMIZERS[file][key]
    content = copy.deepcopy(content_of(file))
    net, _ = network_of(content[network], file)
    names = [name for name, _ in net.named_parameters()]
    optimizer = content[key]
    assert list(optimizer["state"]) == list(range(len(names)))
    for index, name in enumerate(names):
        for kind, tensor in optimizer["state"][index].items():
            wanted = g.at(f"{key}/{kind}/{name}")
            assert tensor.dtype == torch.float32 and torch.equal(tensor, wanted.float())  # the npz has `step` in float64
    torch.optim.Adam(net.parameters()).load_state_dict(optimizer)
    (group,) = optimizer["param_groups"]
    assert group.pop("params") == list(range(len(names)))
    assert {k: list(v) if isinstance(v, tuple) else v for k, v in group.items()} == g.meta[groups][0]


@pytest.mark.parametrize("file", ["training-state-pfgmpp-000012.pt", "training-state-ipfm-000512.pt"])
def test_states_saved_on_a_gpu_load_on_the_cpu(file: str) -> None:
    assert b"cuda:0" in (GOLDEN / file).read_bytes()
    for value in content_of(file).values():
        if isinstance(value, Persistent):
            assert {t.device.type for t in value.tensors().values()} == {"cpu"}


def test_other_contents_of_the_files_are_kept() -> None:
    g = golden("teacher_edm_ddpmpp")
    for file in ("teacher_edm_ddpmpp.pkl", "teacher_edm_ddpmpp_oldnames.pkl"):
        content = content_of(file)
        assert list(content) == g.meta["keys"]
        assert content["dataset_kwargs"] == g.meta["dataset_kwargs"]
        assert content["augment_pipe"].init_kwargs == g.meta["augment_kwargs"]
        assert content["loss_fn"].class_name == "EDMLoss" and content["loss_fn"].tensors() == {}
        assert isinstance(content["ema"].state["_modules"]["model"].state["_modules"]["enc"], Inert)
        assert repr(content["ema"]) == "<Persistent EDMPrecond>"
    assert content_of("teacher_edm_adm.pkl")["augment_pipe"] is None
    assert content_of("training-state-pfgmpp-000012.pt")["step"] == 12032


ALL = {
    "collections.OrderedDict",
    "numpy.dtype",
    "torch.FloatStorage",
    "torch._utils._rebuild_parameter",
    "torch._utils._rebuild_tensor_v2",
    "torch.nn.modules.container.ModuleDict",
    "torch_utils.persistence._reconstruct_persistent_obj",
}


@pytest.mark.parametrize("file", sorted(p.name for p in [*GOLDEN.glob("*.pkl"), *GOLDEN.glob("*.pt")]))
def test_globals_are_those_of_the_published_table(file: str) -> None:
    own = {"__builtin__.set", "_codecs.encode"} if file.endswith(".pt") else {"torch.storage._load_from_bytes"}
    own |= {"numpy.core.multiarray.scalar" if "oldnames" in file else "numpy._core.multiarray.scalar"}
    own |= {"dnnlib.util.EasyDict"} if file == "teacher_pfgmpp_ncsnpp.pkl" else set()
    found = list_globals(GOLDEN / file)
    assert {f"{module}.{name}" for module, name, _ in found} == ALL | own
    assert len(found) == len(ALL | own) and not any(refused for _, _, refused in found)
    assert (*RUNS_SOURCE, False) in found


# --------------------------------------------------------------------------------------------- layouts and values


@pytest.mark.parametrize("layout", [2, 3, 4, 5, "zip", "legacy"])
def test_every_layout_is_read(tmp_path: Path, layout: int | str) -> None:
    net = tiny_network(16, 3, label_dim=4, channel_mult=[1, 2], attn_resolutions=[8], D=math.inf)
    base = torch.arange(24.0).reshape(4, 6)
    values: dict[str, Any] = {
        "numbers": [1, -1, 300, 70000, 2**40, -(2**40), 0.5, math.inf, True, None, "ü", b"", b"\x00\xff", "x" * 300],
        "containers": ({"a": (1, (2,))}, {1: "one"}, {"s"}, set(), OrderedDict(a=1)),
        "scalars": [np.float64(0.25), np.int64(-3), np.float32(0.5), np.bool_(True)],
        "dtype": torch.float16,
        "size": torch.Size([2, 3]),
        "device": torch.device("cuda:1"),
    }
    arrays: list[Any] = [
        np.arange(6, dtype=np.int16).reshape(2, 3),
        np.asfortranarray(np.eye(3)),
        np.array([True, False]),
        np.zeros((0, 2)),
    ]
    tensors = [base, base.t(), base[1:3, ::2], base[0, 0], torch.zeros(0, 3)]
    tensors += [
        torch.tensor([0, 1, 2]).to(t) for t in (torch.float64, torch.bfloat16, torch.half, torch.int64, torch.uint8, torch.bool)
    ]
    path = write(tmp_path / "file", {"ema": persistent(net), "arrays": arrays, "tensors": tensors, **values}, layout)
    content = read_pickle(path)
    values |= {"containers": (*values["containers"][:-1], {"a": 1}), "size": (2, 3), "device": "cuda:1"}
    assert {k: content[k] for k in values} == values
    assert [type(v) for v in content["scalars"]] == [float, int, float, bool]
    for found, wanted in zip(content["arrays"], arrays, strict=True):
        np.testing.assert_array_equal(found, wanted)
        assert found.dtype == wanted.dtype
    for one, other in zip(content["tensors"], tensors, strict=True):
        assert torch.equal(one, other) and one.dtype == other.dtype
    if layout in ("zip", "legacy"):  # views share their storage, as in the file; plain pickles have one storage per tensor
        content["tensors"][0][0, 0] = 7
        assert content["tensors"][3] == 7
    for name, tensor in network_of(content["ema"], path)[0].state_dict().items():
        assert torch.equal(tensor, net.state_dict()[name])
    assert all(not refused for _, _, refused in list_globals(path))
    copy.deepcopy(content)


@pytest.mark.parametrize("file", ["teacher_pfgmpp_converted.pkl", "training-state-edm-000012.pt"])
def test_shapes_can_be_read_without_the_numbers(file: str) -> None:
    content = read_pickle(GOLDEN / file, tensors=False)
    for name, tensor in content["net"].tensors().items():
        assert tensor.is_meta and tensor.shape == content_of(file)["net"].tensors()[name].shape
    with pytest.raises(PickleError, match="was read without the numbers"):
        network_of(content["net"], file)


def test_networks_with_one_flat_dictionary_of_tensors(tmp_path: Path) -> None:
    """As distill writes them."""
    net = tiny_network()
    state = {"_init_args": (), "_init_kwargs": net.init_kwargs, "_tensors": dict(net.state_dict())}
    meta = {"type": "class", "version": 6, "module_src": "", "class_name": "EDMPrecond", "state": state}
    path = write(tmp_path / "file", {"ema": StandIn(meta)})
    found, about = network_of(read_pickle(path)["ema"], path)
    assert about["D"] == 128 and all(torch.equal(t, found.state_dict()[name]) for name, t in net.state_dict().items())
    write(path, {"ema": StandIn(meta | {"state": state | {"_parameters": {"model.map_layer0.bias": torch.ones(32)}}})})
    assert refusal(path) == "has two tensors named model.map_layer0.bias"


def test_networks_do_not_share_weights(snapshot: Any) -> None:
    record = read_pickle(snapshot())["ema"]
    one, two = (network_of(record, "?")[0] for _ in range(2))
    with torch.no_grad():
        for p in one.parameters():
            p.zero_()
    assert any(p.any() for p in two.parameters()) and any(t.any() for t in record.tensors().values())


def test_tensors_come_in_the_order_of_a_state_dict(tmp_path: Path) -> None:
    class Layer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.Module()
            self.register_buffer("kept", torch.ones(1))
            self.register_buffer("transient", torch.ones(2), persistent=False)
            self.register_buffer("none", None)
            self.weight = nn.Parameter(torch.ones(3))
            self.register_parameter("bias", None)
            self.inner.weight = nn.Parameter(torch.ones(4))

    net = Layer()
    record = read_pickle(write(tmp_path / "file", {"net": persistent(net)}))["net"]
    assert list(record.tensors()) == list(net.state_dict()) == ["weight", "kept", "inner.weight"]


def test_a_large_file_takes_its_size_in_memory(tmp_path: Path) -> None:
    net = nn.Module()
    for i in range(16):
        net.register_parameter(f"w{i}", nn.Parameter(torch.full((1024, 1024), float(i))))
    paths = [write(tmp_path / f"large{layout}", {"net": persistent(net)}, layout) for layout in (4, "zip")]
    script = """if True:
        import resource, sys
        import torch
        from registry.edm.pickles import read_pickle
        peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        read_pickle(sys.argv[1])
        before = peak()
        for path in sys.argv[2:]:
            content = read_pickle(path)
            assert content["net"].tensors()["w7"][5, 5] == 7
            del content
        print(peak() - before)
    """
    command: list[str | Path] = [sys.executable, "-c", script, GOLDEN / "teacher_edm_ddpmpp.pkl", *paths]
    done = subprocess.run(command, cwd=ROOT, env=environment(), capture_output=True, text=True, check=True)
    assert all(path.stat().st_size > 64e6 for path in paths)
    assert int(done.stdout) <= 1.5 * paths[0].stat().st_size
