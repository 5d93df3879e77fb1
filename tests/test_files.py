"""Converting networks between formats, opening snapshots without this package, downloads from a local server, data sets."""

from __future__ import annotations

import itertools
import json
import os
import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from registry.builtin.points import PointDenoiser
from registry.core.errors import UserError
from registry.core.streams import Streams
from registry.files.formats import convert_network, load_network, save_network
from registry.files.plain import DTYPES, save_safetensors
from tests.conftest import HERE, ROOT, environment, error_line, tiny_network

Cli = Callable[..., subprocess.CompletedProcess[str]]
X, SIGMA = torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(0)), torch.tensor([0.5, 2.0])


# ------------------------------------------------------------------------------------------------- between formats


@pytest.mark.parametrize("suffix", [".pkl", ".pt", ".safetensors"])
@pytest.mark.parametrize("D", [128.0, float("inf")])
def test_a_network_survives_every_format(suffix: str, D: float, tmp_path: Path) -> None:
    net = tiny_network(D=D)
    save_network(tmp_path / f"n{suffix}", "generator", net, {"D": D, "sigma_init": 2.5, "alpha": 1.0})
    again, facts = load_network(tmp_path / f"n{suffix}", "generator")
    assert (facts.D, facts.sigma_init, facts.others["alpha"]) == (D, 2.5, 1.0)
    assert torch.equal(again(X, SIGMA), net(X, SIGMA))
    assert all(torch.equal(a, b) for a, b in zip(again.state_dict().values(), net.state_dict().values(), strict=True))
    with pytest.raises(UserError, match="is a generator, expected a denoiser"):
        load_network(tmp_path / f"n{suffix}", "denoiser")


def test_repeated_conversion_changes_no_bit(cli: Cli, tmp_path: Path) -> None:
    source = HERE / "golden" / "teacher_pfgmpp_ncsnpp.pkl"
    files = [source, tmp_path / "a.safetensors", tmp_path / "b.pkl", tmp_path / "c.pt", tmp_path / "d.pkl"]
    for one, two in itertools.pairwise(files):
        done = cli("convert", one, two)
        assert done.returncode == 0, done.stderr
        assert "denoiser of D = 128" in done.stdout
    first, last = load_network(source)[0].state_dict(), load_network(files[-1])[0].state_dict()
    assert list(first) == list(last)
    assert all(torch.equal(first[k], last[k]) for k in first)


def test_a_network_in_a_training_state_is_picked_by_its_key(cli: Cli, tmp_path: Path) -> None:
    state = HERE / "golden" / "training-state-ipfm-000512.pt"
    assert "[G_ema]" in convert_network(str(state), str(tmp_path / "default.pt"))
    assert "generator" in convert_network(str(state), str(tmp_path / "x.pt"), key="G_ema990")
    assert not torch.equal(*(next(load_network(tmp_path / n)[0].parameters()) for n in ("default.pt", "x.pt")))
    message = error_line(cli("convert", state, tmp_path / "y.pt", "--key", "G_ema998"))
    assert "has no network 'G_ema998'; it has fake_score, G, G_ema, G_ema990, G_ema995, G_ema999" in message


def test_our_own_training_states_are_read_and_converted(cli: Cli, tmp_path: Path, recipe_file: Callable[..., Path]) -> None:
    from registry.runs.distill import distill

    result = distill(str(recipe_file()))
    (state,) = result.folder.glob("training-state-*.pt")
    average, facts = load_network(state, "generator")
    assert (facts.D, facts.sigma_init, facts.nimg) == (128.0, 2.5, 48)
    assert all(torch.equal(a, b) for a, b in zip(average.parameters(), result.generator.net.parameters(), strict=True))
    with pytest.raises(UserError, match="is a generator, expected a denoiser"):  # it must not be distilled as a teacher
        load_network(state, "denoiser")
    assert load_network(state, "denoiser", key="student")[1].kind == "denoiser"
    done = cli("convert", state, tmp_path / "student.pkl", "--key", "student")
    assert done.returncode == 0, done.stderr
    assert "denoiser of D = 128" in done.stdout
    assert not torch.equal(next(load_network(tmp_path / "student.pkl")[0].parameters()), next(average.parameters()))
    assert "has no network 'net'; it has student, generator, ema" in error_line(
        cli("convert", state, tmp_path / "x.pt", "--key", "net")
    )


def test_only_edms_networks_go_into_edms_pickles(tmp_path: Path) -> None:
    net = PointDenoiser((2, 1, 1))
    with pytest.raises(UserError, match=r"a PointDenoiser can be saved as \.pt or \.safetensors"):
        save_network(tmp_path / "x.pkl", "denoiser", net, {})
    with pytest.raises(UserError, match="unknown file type"):
        save_network(tmp_path / "x.onnx", "denoiser", net, {})
    save_network(tmp_path / "x.safetensors", "denoiser", net, {})
    assert isinstance(load_network(tmp_path / "x.safetensors")[0], PointDenoiser)
    assert [p.name for p in tmp_path.iterdir()] == ["x.safetensors"]


def test_our_safetensors_are_those_of_the_library(tmp_path: Path) -> None:
    """The same tensors, whatever their numbers and however they lie in memory, and the same order: each is aligned."""
    weights = {str(dtype): torch.arange(-3, 3).to(dtype) for dtype in DTYPES}
    weights |= {
        "one": torch.tensor(2.5),
        "none": torch.zeros(0, 3),
        "turned": torch.randn(2, 3).t(),
        "every second": torch.randn(6)[::2],
    }
    save_safetensors(tmp_path / "a.safetensors", weights, {"kind": "denoiser"})
    read = load_file(tmp_path / "a.safetensors")
    assert weights.keys() == read.keys()
    assert all(read[k].dtype == v.dtype and read[k].shape == v.shape for k, v in weights.items())
    as_bytes = {
        k: (read[k].reshape(-1).view(torch.uint8), v.contiguous().reshape(-1).view(torch.uint8)) for k, v in weights.items()
    }
    assert all(torch.equal(*pair) for pair in as_bytes.values())  # torch compares no numbers of 8 bits
    content = (tmp_path / "a.safetensors").read_bytes()
    places = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
    places.pop("__metadata__")
    assert all(at["data_offsets"][0] % weights[name].itemsize == 0 for name, at in places.items())
    with pytest.raises(UserError, match=r"safetensors has no place for numbers of torch.complex128; write .pt"):
        save_safetensors(tmp_path / "b.safetensors", {"a": torch.zeros(2, dtype=torch.complex128)}, {"kind": "denoiser"})


@pytest.mark.parametrize("suffix", [".pt", ".safetensors", ".pkl"])
def test_networks_are_written_without_a_copy_in_memory(suffix: str, tmp_path: Path) -> None:
    code = (
        "import resource, sys, torch\n"
        "from pathlib import Path\n"
        "from registry.files.formats import save_network\n"
        "from tests.conftest import tiny_network\n"
        "def peak(): return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024\n"
        "path = Path(sys.argv[1])\n"
        "save_network(path, 'denoiser', tiny_network(), {})\n"
        "net = tiny_network(model_channels=256, num_blocks=4)\n"
        "before = peak()\n"
        "save_network(path, 'denoiser', net, {})\n"
        "print(peak() - before)\n"
    )
    path = tmp_path / f"net{suffix}"
    done = subprocess.run(
        [sys.executable, "-c", code, path], cwd=ROOT, env=environment(), capture_output=True, text=True, check=True
    )
    assert int(done.stdout) < 0.3 * path.stat().st_size > 10**7


def test_a_snapshot_of_ours_holds_a_known_kind_of_network(cli: Cli, tmp_path: Path) -> None:
    save_network(tmp_path / "a.pkl", "teacher", tiny_network(), {"D": 128.0})
    for words in (("inspect", tmp_path / "a.pkl"), ("convert", tmp_path / "a.pkl", tmp_path / "b.pt")):
        assert "a.pkl: is a teacher, expected a denoiser or generator or classifier" in error_line(cli(*words))
    assert not (tmp_path / "b.pt").exists()


def test_foreign_safetensors_are_refused(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    save_file({"a": torch.zeros(2)}, tmp_path / "a.safetensors")
    with pytest.raises(UserError, match="without distill's metadata"):
        load_network(tmp_path / "a.safetensors")
    content = (tmp_path / "a.safetensors").read_bytes()
    (tmp_path / "b.safetensors").write_bytes(content[:-3])
    with pytest.raises(UserError, match="not a safetensors file, or damaged"):
        load_network(tmp_path / "b.safetensors")


@pytest.mark.parametrize("name", ["teacher_edm_ddpmpp.pkl", "teacher_edm_adm.pkl"])
def test_an_edm_pickle_is_a_teacher(name: str, plugins: Any) -> None:
    component = plugins.find("teacher", "edm").component
    teacher = component.make(component.config(source=str(HERE / "golden" / name)))
    assert float("inf") == teacher.D
    assert teacher.denoiser(torch.zeros(1, *teacher.image_shape), torch.ones(1)).shape == (1, *teacher.image_shape)


def test_a_pfgmpp_pickle_is_a_teacher_of_its_plugin_only(plugins: Any) -> None:
    source = str(HERE / "golden" / "teacher_pfgmpp_ncsnpp.pkl")
    pfgmpp, edm = (plugins.find("teacher", name).component for name in ("pfgmpp", "edm"))
    assert pfgmpp.make(pfgmpp.config(source=source)).D == 128
    assert "diffusion" in edm.config(source=source).misfit(128.0)  # the host asks this before it uses the teacher


# ----------------------------------------------------------------------- snapshots where this package is not installed

# Written from the description of EDM's files: an object is made from the source text that is stored with it.
PERSISTENCE = """
import io, pickle, sys, types
modules = {}
def _reconstruct_persistent_obj(meta):
    assert meta["type"] == "class" and meta["version"] == 6
    source = meta["module_src"]
    if source not in modules:
        modules[source] = types.ModuleType("_imported_module_%d" % len(modules))
        sys.modules[modules[source].__name__] = modules[source]
        exec(compile(source, "<source>", "exec"), modules[source].__dict__)
    cls = modules[source].__dict__[meta["class_name"]]
    if DECORATE:
        base = cls
        class cls(base):  # as in the original: a subclass that records constructor arguments and is checked for pickling
            def __init__(self, *args, **kwargs):
                super().__init__(*args, **kwargs)
                self._init_args, self._init_kwargs = args, kwargs
                pickle.dump(self.__reduce__(), io.BytesIO())
            @property
            def init_args(self): return self._init_args
            @property
            def init_kwargs(self): return EasyDict(self._init_kwargs)
            def __reduce__(self):
                return _reconstruct_persistent_obj, (dict(meta, state=object.__reduce__(self)[2]),)
        cls.__name__ = base.__name__
    obj = cls.__new__(cls)
    setstate = getattr(obj, "__setstate__", None)
    setstate(EasyDict(meta["state"])) if callable(setstate) else obj.__dict__.update(meta["state"])
    return obj
class EasyDict(dict):
    def __getattr__(self, name): return self[name]
"""


def write_stand_ins(folder: Path, decorate: bool = True) -> None:
    """Make importable from a folder what snapshots name: `torch_utils.persistence` and `dnnlib`, without any of their code."""
    (folder / "torch_utils").mkdir(parents=True)
    (folder / "torch_utils" / "__init__.py").write_text("")
    (folder / "torch_utils" / "persistence.py").write_text(f"DECORATE = {decorate}\n{PERSISTENCE}")
    (folder / "dnnlib.py").write_text("from torch_utils.persistence import EasyDict\n")


SCRIPT = """
import copy, pickle, sys
import torch
with open(sys.argv[1], "rb") as f:
    net = pickle.load(f)["ema"].to(torch.device("cpu"))
assert not any(m.split(".")[0] in ("registry", "ipfm_plugin") for m in sys.modules)
twin = copy.deepcopy(net).eval().requires_grad_(False)
again = pickle.loads(pickle.dumps({"ema": twin}))["ema"]
seeds = torch.load(sys.argv[2], weights_only=True)
out = [n(seeds["z"], seeds["sigma"], None).clone() for n in (net, twin, again)]
assert torch.equal(out[0], out[1]) and torch.equal(out[0], out[2])
assert (net.img_channels, net.img_resolution, net.label_dim) == (1, 8, 0)
assert (net.sigma_min, net.sigma_max, float(net.round_sigma(2.5))) == (0, float("inf"), 2.5)
assert (net.D, net.N, net.pfgmpp) == (128.0, 64, True)
assert dict(net.init_kwargs)["img_resolution"] == 8
names = [n for n, _ in net.named_parameters()] + [n for n, _ in net.named_buffers()]
assert "model.map_layer0.weight" in names
torch.save({"images": out[0], "names": names}, sys.argv[3])
with open(sys.argv[4], "wb") as f:
    pickle.dump({"ema": again}, f)
"""


@pytest.mark.parametrize("decorate", [False, True])
def test_a_snapshot_opens_in_a_process_without_this_package(
    decorate: bool, tmp_path: Path, recipe_file: Callable[..., Path]
) -> None:
    """With stand-ins for torch_utils and dnnlib, a run's snapshot gives the same images bit for bit, and we can read it back."""
    from registry.runs.distill import distill

    result = distill(str(recipe_file()))
    (file,) = result.folder.glob("network-snapshot-*.pkl")
    site = tmp_path / "site"
    write_stand_ins(site, decorate)
    (site / "torch").symlink_to(Path(torch.__file__).parent)  # the path has only torch and its dependencies
    for package in (
        "numpy",
        "typing_extensions.py",
        "sympy",
        "mpmath",
        "networkx",
        "jinja2",
        "markupsafe",
        "filelock",
        "fsspec",
        "numpy.libs",
        "torchgen",
        "functorch",
    ):
        source = Path(torch.__file__).parents[1] / package
        if source.exists():
            (site / package).symlink_to(source)

    z = result.generator.noise.prior((1, 8, 8), 2.5, Streams(range(8)))
    torch.save({"z": z, "sigma": torch.full((8,), 2.5)}, tmp_path / "seeds.pt")
    (tmp_path / "script.py").write_text(SCRIPT)
    done = subprocess.run(
        [sys.executable, "-S", "-E", "-c", f"import sys; sys.path[:] = [p for p in sys.path if 'site-packages' not in p]; sys.path.insert(0, {str(site)!r}); "
         f"sys.argv = ['script', {str(file)!r}, 'seeds.pt', 'out.pt', 'theirs.pkl']; exec(open('script.py').read())"],
        cwd=tmp_path, capture_output=True, text=True, env=environment({"PYTHONPATH": ""}), check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    theirs = torch.load(tmp_path / "out.pt", weights_only=True)
    assert torch.equal(theirs["images"], result.generator.sample(8))
    net, facts = load_network(tmp_path / "theirs.pkl")  # we can read what they pickled again
    assert torch.equal(net(z, torch.full((8,), 2.5)), theirs["images"])
    assert facts.D == 128


def test_the_embedded_module_needs_only_torch() -> None:
    import ast

    from registry.edm import networks

    tree = ast.parse(Path(networks.__file__).read_text())
    found = {n.module for n in tree.body if isinstance(n, ast.ImportFrom)} | {
        a.name for n in tree.body if isinstance(n, ast.Import) for a in n.names
    }
    assert {str(m).split(".")[0] for m in found} <= {"__future__", "copy", "math", "collections", "typing", "torch"}


# ---------------------------------------------------------------------------------------------------------- inspect


@pytest.mark.parametrize(
    ("name", "wanted"),
    [
        ("teacher_pfgmpp_ncsnpp.pkl", ["written by PFGM++", "EDMPrecond (ncsnpp)", "3×16×16", "128", "68,243", "original loader would execute the Python source"]),
        ("training-state-ipfm-000512.pt", ["written by the IPFM fork of SiD", "G_ema995", "kimg: 512"]),
        ("training-state-sid-000512.pt", ["written by SiD", "fake_score"]),
        ("training-state-pfgmpp-000012.pt", ["training state (torch), written by PFGM++"]),
        ("teacher_edm_vpprecond.pkl", ["VPPrecond", "0.000977–152"]),
    ],
)  # fmt: skip
def test_inspect(name: str, wanted: list[str], cli: Cli) -> None:
    done = cli("inspect", HERE / "golden" / name)
    assert done.returncode == 0, done.stderr
    for text in wanted:
        assert text in done.stdout


def test_inspect_shows_the_facts_of_our_files(cli: Cli, tmp_path: Path) -> None:
    net = tiny_network()
    for suffix in (".pkl", ".pt", ".safetensors"):
        save_network(tmp_path / f"n{suffix}", "generator", net, {"D": 128.0, "sigma_init": 2.5, "nimg": 12800})
        done = cli("inspect", tmp_path / f"n{suffix}", "--globals")
        for text in (
            "written by distill",
            f"{sum(p.numel() for p in net.parameters()):,}",
            "kind: generator",
            "sigma_init: 2.5",
            "kimg: 12.8",
            "safe",
        ):
            assert text in done.stdout, (suffix, done.stdout)
    assert "torch_utils.persistence._reconstruct_persistent_obj" in cli("inspect", tmp_path / "n.pkl", "--globals").stdout


def test_inspect_flags_what_would_execute(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "evil.pkl").write_bytes(b"\x80\x02cposix\nsystem\nX\x0c\x00\x00\x00touch canary\x85R.")
    done = cli("inspect", tmp_path / "evil.pkl")
    assert done.returncode == 3
    assert "EXECUTES posix.system" in done.stdout
    assert "DANGEROUS" in done.stdout
    assert not list(tmp_path.rglob("canary"))


class Touches:
    """What unpickling would make of this: a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@pytest.mark.parametrize("where", ["alone", "in a network", "in a state"])
def test_a_dangerous_file_of_torch_save_is_called_dangerous(where: str, protocol: int, here: Cli, tmp_path: Path) -> None:
    canary, path = tmp_path / "canary", tmp_path / "evil.pt"
    content: Any = Touches(canary)
    if where == "in a network":
        content = torch.load(ROOT / "recipes" / "teachers" / "digits_d3.pt", weights_only=True) | {"about": content}
    elif where == "in a state":
        state = next((HERE / "golden" / "release_0.1").rglob("training-state-*.pt"))
        content = torch.load(state, weights_only=True) | {"about": {"deep": [content]}}
    torch.save(content, path, pickle_protocol=protocol)
    done = here("inspect", path)
    assert (done.returncode, "DANGEROUS: loading it elsewhere would run posix.mkdir" in done.stdout) == (3, True)
    assert "weights_only" not in done.stdout + done.stderr
    assert not canary.exists()


def pickle_in_safetensors(path: Path, canary: Path) -> None:
    """A file of safetensors that is a pickle, too.

    The length of its header begins with the instruction U, which skips 40 bytes. The instruction V in the metadata skips the rest of
    the header, up to a new line in the tensor.
    """
    tensor = f"\ncposix\nmkdir\n(S'{canary}'\ntR.".encode()
    tensor += bytes(-len(tensor) % 4)
    entry = {"dtype": "F32", "shape": [len(tensor) // 4], "data_offsets": [0, len(tensor)]}
    start = '{"__metadata__":{"a":"'
    head = start + "A" * (40 - 6 - len(start)) + 'V"},"t":' + json.dumps(entry) + "}"
    length = 0x55 + 256 * 40
    path.write_bytes(length.to_bytes(8, "little") + head.ljust(length).encode() + tensor)


@pytest.mark.parametrize("suffix", ["pkl", "safetensors"])
def test_a_file_that_is_safetensors_and_a_pickle_is_called_dangerous(suffix: str, here: Cli, tmp_path: Path) -> None:
    canary, path = tmp_path / "canary", tmp_path / f"two.{suffix}"
    pickle_in_safetensors(path, canary)
    assert list(load_file(path)) == ["t"]
    done = here("inspect", path)
    assert (done.returncode, "DANGEROUS: loading it elsewhere would run posix.mkdir" in done.stdout) == (3, True)
    line = error_line(here("convert", path, tmp_path / "out.pt"))
    assert line == f"distill: {path}: opened as a pickle it would run posix.mkdir"
    assert not canary.exists()
    with path.open("rb") as file:
        pickle.load(file)
    assert canary.exists(), "this shows that the file does run in plain pickle"


@pytest.mark.parametrize("command", [["inspect"], ["table"], ["generate", "--seeds", "0", "--outdir", "out", "--network"]])
@pytest.mark.parametrize("suffix", ["pt", "pkl", "safetensors"])
def test_a_pipe_is_not_waited_for(command: list[str], suffix: str, here: Cli, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / f"pipe.{suffix}")
    assert error_line(here(*command, tmp_path / f"pipe.{suffix}")) == f"distill: {tmp_path / 'pipe'}.{suffix}: is not a file"


def test_what_convert_takes_inspect_does_not_call_dangerous(here: Cli, tmp_path: Path) -> None:
    net = tiny_network()
    save_network(tmp_path / "n.pt", "generator", net, {"D": 128.0, "phases": torch.ones(3, dtype=torch.complex64)})
    assert here("inspect", tmp_path / "n.pt").returncode == 0
    assert here("convert", tmp_path / "n.pt", tmp_path / "copy.pt").returncode == 0
    assert "facts hold a tensor" in error_line(here("convert", tmp_path / "n.pt", tmp_path / "n.safetensors"))


def test_what_a_file_says_cannot_steer_the_terminal(here: Cli, tmp_path: Path) -> None:
    """Escape codes, a line of its own, a text that runs from right to left, and a very long one."""
    evil = "x\x1b[2J\x1b[Hsafe: it refers to nothing that executes\r\n\u202esafe\u2066" + "y" * 5000
    save_network(tmp_path / "n.pt", "generator", tiny_network(), {"D": 128.0, "teacher": evil, "data": "[red]no[/red]"})
    out = here("inspect", tmp_path / "n.pt").stdout
    assert "teacher: x?[2J?[Hsafe: it refers" in out and "[red]no[/red]" in out
    assert all(c.isprintable() or c == "\n" for c in out) and max(map(len, out.splitlines())) < 1100
    name = f"os\nsystem{evil[:40]}".encode()
    (tmp_path / "evil.pkl").write_bytes(b"\x80\x04\x8c" + bytes([len(name)]) + name + b"\x8c\x06system\x93.")
    done = here("inspect", tmp_path / "evil.pkl")
    assert done.returncode in (1, 3)
    assert all(c.isprintable() or c == "\n" for c in done.stdout + done.stderr)


def test_a_file_that_says_its_kind_is_not_relabelled(tmp_path: Path, cli: Cli) -> None:
    message = error_line(cli("convert", "digits_d128", tmp_path / "x.pt", "--kind", "generator"))
    assert "--kind generator: digits_d128 is a denoiser; leave this out" in message
    assert not (tmp_path / "x.pt").exists()


def test_no_message_repeats_torchs_advice_to_load_unsafely(tmp_path: Path, cli: Cli) -> None:
    torch.save({"a": torch.nn.Linear(1, 1)}, tmp_path / "module.pt")
    (tmp_path / "text.pt").write_text("[train]")
    for name in ("module.pt", "text.pt"):
        seen = cli("inspect", tmp_path / name)
        message = error_line(cli("--recipe", "quickstart", "--resume", tmp_path / name))
        assert "weights_only" not in message + seen.stdout + seen.stderr
        assert name in message
