"""The golden snapshots and training states are read bit for bit, and files that do not fit are refused with a reason."""

from __future__ import annotations

import copy
import functools
import math
import pickle
import subprocess
import sys
import types
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from registry.core.errors import UserError
from registry.edm.networks import EDMPrecond
from registry.edm.pickles import RUNS_SOURCE, Inert, Persistent, PickleError, list_globals, network_of, read_pickle
from tests.conftest import HERE, ROOT, environment, golden, tiny_network

GOLDEN = HERE / "golden"

# File: (its npz, {key of a network: where its tensors and its outputs are in the npz})
NETWORKS: dict[str, tuple[str, dict[str, tuple[str, str]]]] = {
    "teacher_edm_ddpmpp.pkl": ("teacher_edm_ddpmpp", {"ema": ("state/", "out")}),
    "teacher_edm_ddpmpp_oldnames.pkl": ("teacher_edm_ddpmpp", {"ema": ("state/", "out")}),
    "teacher_edm_adm.pkl": ("teacher_edm_adm", {"ema": ("state/", "out")}),
    "teacher_pfgmpp_ncsnpp.pkl": ("teacher_pfgmpp_ncsnpp", {"ema": ("state/", "out")}),
    "network-snapshot-1.200000-000512.pkl": ("training-state-sid-000512", {"ema": ("G_ema/", "out_G_ema")}),
    **{
        file: (npz, {key: (f"{key}/", f"out_{key}") for key in keys})
        for file, npz, keys in [
            ("teacher_pfgmpp_converted.pkl", "training-state-pfgmpp-000012", ["ema", "net"]),
            ("training-state-pfgmpp-000012.pt", "training-state-pfgmpp-000012", ["ema", "net"]),
            ("training-state-edm-000012.pt", "training-state-edm-000012", ["net"]),
            ("training-state-sid-000512.pt", "training-state-sid-000512", ["fake_score", "G", "G_ema"]),
            (
                "training-state-ipfm-000512.pt",
                "training-state-ipfm-000512",
                ["fake_score", "G", "G_ema", "G_ema990", "G_ema995", "G_ema999"],
            ),
        ]
    },
}
CASES = [(file, key) for file, (_, keys) in NETWORKS.items() for key in keys]

# File: (its npz, {key of an optimizer: (its network, where its param_groups are in the meta)})
ONE = {"optimizer_state": ("net", "param_groups")}
TWO = {
    "fake_score_optimizer_state": ("fake_score", "fake_score_param_groups"),
    "g_optimizer_state": ("G", "g_param_groups"),
}
OPTIMIZERS = {
    "teacher_pfgmpp_converted.pkl": ONE,
    "training-state-pfgmpp-000012.pt": ONE,
    "training-state-edm-000012.pt": ONE,
    "training-state-sid-000512.pt": TWO,
    "training-state-ipfm-000512.pt": TWO,
}


# ------------------------------------------------------------------------------------------ writing such files


class StandIn:
    """A persistent object as the public repositories pickle it."""

    def __init__(self, meta: dict[str, Any]) -> None:
        self.meta = meta

    def __reduce__(self) -> tuple[Any, ...]:
        return sys.modules["torch_utils.persistence"]._reconstruct_persistent_obj, (self.meta,)

    @property
    def state(self) -> dict[str, Any]:
        found: dict[str, Any] = self.meta["state"]
        return found


@contextmanager
def original_modules() -> Iterator[types.ModuleType]:
    """Importable stand-ins of the repositories' modules, without any of their code; gives `dnnlib.util`."""
    names = ["torch_utils", "torch_utils.persistence", "dnnlib", "dnnlib.util"]
    modules = {name: types.ModuleType(name) for name in names}

    def _reconstruct_persistent_obj(meta: dict[str, Any]) -> StandIn:
        return StandIn(meta)

    class EasyDict(dict[str, Any]):
        pass

    homes: list[tuple[Any, str]] = [(_reconstruct_persistent_obj, "torch_utils.persistence"), (EasyDict, "dnnlib.util")]
    for made, home in homes:
        made.__module__, made.__qualname__ = home, made.__name__
        setattr(modules[home], made.__name__, made)
    sys.modules.update(modules)
    try:
        yield modules["dnnlib.util"]
    finally:
        for name in names:
            del sys.modules[name]


def persistent(module: nn.Module) -> Any:
    """One of our networks as the public repositories would store it."""
    children = {name: persistent(child) for name, child in module._modules.items() if child is not None}
    if isinstance(module, nn.ModuleDict):
        container = nn.ModuleDict()
        container._modules = children
        return container
    state = {k: v for k, v in vars(module).items() if k != "init_kwargs"} | {"_modules": children, "_init_args": ()}
    state["_init_kwargs"] = dict(getattr(module, "init_kwargs", {}))
    source = "import os\nos.abort()\n"
    return StandIn({"type": "class", "version": 6, "module_src": source, "class_name": type(module).__name__, "state": state})


def write(path: Path, content: Any, layout: int | str = 4) -> Path:
    """Write a file: a plain pickle of that protocol, or torch's 'zip' or 'legacy' format."""
    with original_modules(), open(path, "wb") as file:
        if isinstance(layout, int):
            pickle.dump(content, file, layout)
        else:
            torch.save(content, file, _use_new_zipfile_serialization=layout == "zip")
    return path


@pytest.fixture
def snapshot(tmp_path: Path) -> Any:
    """Writes a snapshot of a small network changed by a function, and gives its path."""

    def make(change: Any = None, net: nn.Module | None = None, layout: int | str = 4) -> Path:
        record = persistent(net or tiny_network(D=math.inf))
        if change:
            change(record)
        return write(tmp_path / "changed.pkl", {"ema": record}, layout)

    return make


def refusal(path: Path, key: str = "ema") -> str:
    """The one-line message with which a file's network is refused."""
    with pytest.raises(PickleError) as caught:
        network_of(read_pickle(path)[key], path)
    message = str(caught.value)
    assert isinstance(caught.value, UserError)
    assert message.startswith(f"{path}: ")
    assert message.isprintable()
    return message.removeprefix(f"{path}: ")


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


def test_other_preconditionings_are_refused_by_name() -> None:
    assert refusal(GOLDEN / "teacher_edm_vpprecond.pkl") == "holds a network of class 'VPPrecond'; only 'EDMPrecond' is supported"


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


# ----------------------------------------------------------------------------------------------------- refusals


def first_layer(record: Any) -> dict[str, Any]:
    """The attributes of the first convolution."""
    return record.state["_modules"]["model"].state["_modules"]["enc"]._modules["8x8_conv"].state  # type: ignore[no-any-return]


def put(part: str, name: str, value: Any) -> Any:
    """A change of the first convolution: one of its parameters, buffers or modules."""

    def change(record: Any) -> None:
        first_layer(record)[part] = {**first_layer(record)[part], name: value}

    return change


def drop(record: Any) -> None:
    first_layer(record)["_parameters"] = {k: v for k, v in first_layer(record)["_parameters"].items() if k != "bias"}


def meta(**values: Any) -> Any:
    return lambda record: record.meta.update(values)


def attributes(**values: Any) -> Any:
    return lambda record: record.state.update(values)


def arguments(**values: Any) -> Any:
    return lambda record: record.state["_init_kwargs"].update(values)


def layer(**values: Any) -> Any:
    return lambda record: first_layer(record).update(values)


CONV = "model.enc.8x8_conv"
UNFIT = "has tensors that do not fit its network: "
REFUSED: dict[str, tuple[Any, str]] = {
    "extra": (put("_parameters", "more", nn.Parameter(torch.ones(1))), UNFIT + f"unknown {CONV}.more (1 in all)"),
    "missing": (drop, UNFIT + f"missing {CONV}.bias (1 in all)"),
    "none": (put("_parameters", "bias", None), UNFIT + f"missing {CONV}.bias (1 in all)"),
    "shape": (
        put("_parameters", "bias", nn.Parameter(torch.ones(9))),
        UNFIT + f"{CONV}.bias is [9] torch.float32, not [8] torch.float32 (1 in all)",
    ),
    "dtype": (
        put("_parameters", "bias", nn.Parameter(torch.ones(8).half())),
        UNFIT + f"{CONV}.bias is [8] torch.float16, not [8] torch.float32 (1 in all)",
    ),
    "not a tensor": (put("_parameters", "bias", [1.0]), f"its {CONV}.bias is a list, not a tensor"),
    "array": (put("_parameters", "bias", np.ones(8)), f"its {CONV}.bias is a ndarray, not a tensor"),
    "not a module": (put("_modules", "more", {}), "its module more is a dict, not a module"),
    "unknown module": (put("_modules", "more", nn.ModuleDict()), f"has layers that do not fit its network: {CONV}.more is unknown"),
    "parameters": (layer(_parameters=[1]), "_parameters of its Conv2d is not a dictionary of names"),
    "transient": (layer(_non_persistent_buffers_set=3), "_non_persistent_buffers_set of its Conv2d is not a set"),
    "class": (meta(class_name="iDDPMPrecond"), "'iDDPMPrecond'; only 'EDMPrecond'"),
    "version": (meta(version=7), "has persistent objects of version 7; known are 1 to 6"),
    "kwarg": (arguments(frobnicate=None), "a network whose argument frobnicate is wrong: Extra inputs are not permitted"),
    "twice": (attributes(_init_args=(8,)), "gives its network the argument img_resolution twice"),
    "positional": (attributes(_init_args=(1,) * 9), "gives its network positional arguments other than img_resolution,"),
    "kwargs": (attributes(_init_kwargs=[]), "_init_kwargs of its EDMPrecond is not a dictionary of names"),
    "type": (arguments(model_type="os.system"), "argument model_type is wrong: Input should be 'SongUNet' or 'DhariwalUNet'"),
    "other type": (arguments(model_type="DhariwalUNet"), "unexpected keyword argument"),
    "text": (arguments(model_channels="8"), "argument model_channels is wrong: Input should be a valid integer"),
    "tensor": (arguments(channel_mult=torch.ones(2)), "argument channel_mult"),
    "nan": (arguments(sigma_data=math.nan), "argument sigma_data is wrong"),
    "huge channels": (arguments(model_channels=10**12), "argument model_channels is wrong"),
    "large channels": (arguments(model_channels=8192), UNFIT),
    "huge number": (attributes(D=10**400), "argument D is wrong"),
    "huge resolution": (arguments(img_resolution=10**9), "argument img_resolution is wrong"),
    "blocks": (
        arguments(num_blocks=64, channel_mult=[8] * 8),
        "asks for a network of 1032 blocks, but holds only 70 tensors",
    ),
    "narrow": (arguments(model_channels=1), "it must be a multiple of 4"),
    "sigma_data": (attributes(sigma_data=1.0), "has layers that do not fit its network: sigma_data is 1.0, not 0.5 (1 in all)"),
    "resolution": (attributes(img_resolution=16), "img_resolution is 16, not 8"),
    "values": (attributes(N=1, label_dim="x"), "N is 1, not 64; label_dim is a str, not 0 (2 in all)"),
    "layer": (layer(fused_resample=True), f"{CONV}.fused_resample is True, not False"),
    "no D": (attributes(pfgmpp=True, D=None), "argument D is wrong"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_network_that_does_not_fit_is_refused_with_the_reason(snapshot: Any, case: str) -> None:
    change, reason = REFUSED[case]
    assert reason in refusal(snapshot(change))


def test_what_is_not_a_network_is_refused(snapshot: Any) -> None:
    content = read_pickle(GOLDEN / "teacher_edm_adm.pkl")
    for value, reason in [(None, "holds a NoneType"), (content, "holds a dict"), (content["loss_fn"], "class 'EDMLoss'")]:
        with pytest.raises(PickleError, match=f"^here: .*{reason}.*EDMPrecond"):
            network_of(value, "here")


def test_attributes_and_arguments_determine_the_network(snapshot: Any) -> None:
    def of(*changes: Any) -> tuple[EDMPrecond, dict[str, Any]]:
        path = snapshot(lambda record: [change(record) for change in changes])
        return network_of(read_pickle(path)["ema"], path)

    def without(*names: str) -> Any:
        return lambda record: [(record.state.pop(n, None), record.state["_init_kwargs"].pop(n, None)) for n in names]

    for D, changes in {
        128.0: [arguments(D=7), attributes(pfgmpp=True, D=128)],  # PFGM++: the attribute wins
        64.0: [without("pfgmpp", "D", "N"), arguments(pfgmpp=True, D=64)],  # … otherwise the argument
        math.inf: [arguments(D=128), attributes(pfgmpp=False, D=128)],
    }.items():
        net, about = of(*changes)
        assert (about["D"], net.D, net.pfgmpp) == (D, D, math.isfinite(D))
    net, about = of(without("pfgmpp", "D", "N"))  # EDM knows nothing of these
    assert (about["D"], net.pfgmpp, net.N) == (math.inf, False, 64)
    with pytest.raises(PickleError, match="not what D is"):
        of(without("D"), attributes(pfgmpp=True))

    leading = (8, 1, 0, True, 0.002, 80.0, 0.5, "SongUNet")
    names = ["img_resolution", "img_channels", "label_dim", "use_fp16", "sigma_min", "sigma_max", "sigma_data", "model_type"]
    net, _ = of(without(*names), attributes(_init_args=leading))
    assert tuple(net.init_kwargs[n] for n in names) == leading
    net, _ = of(attributes(sigma_max=80), arguments(dropout=np.float64(0.0), img_resolution=np.int64(8)))
    assert (net.sigma_max, net.init_kwargs["img_resolution"]) == (80, 8) and type(net.init_kwargs["dropout"]) is float


@pytest.mark.parametrize("wrap", ["EasyDict", "OrderedDict"])
def test_constructor_arguments_in_other_dictionaries(tmp_path: Path, wrap: str) -> None:
    record = persistent(tiny_network())
    with original_modules() as util:
        kind = util.EasyDict if wrap == "EasyDict" else OrderedDict
        record.state["_init_kwargs"] = kind(record.state["_init_kwargs"])
        path = tmp_path / "file"
        path.write_bytes(pickle.dumps({"ema": record}, 4))
    assert (path.read_bytes().count(wrap.encode())) > 0
    assert network_of(read_pickle(path)["ema"], path)[1]["D"] == 128


@pytest.mark.parametrize("read", [read_pickle, list_globals])
def test_what_cannot_be_opened_is_named(tmp_path: Path, read: Any) -> None:
    with pytest.raises(PickleError, match=r"nothing\.pkl: no such file$"):
        read(tmp_path / "nothing.pkl")
    with pytest.raises(PickleError, match=r"cannot be read: Is a directory$"):
        read(tmp_path)
