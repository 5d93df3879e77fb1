"""Converting networks between formats, opening snapshots without this package, downloads from a local server, data sets."""

from __future__ import annotations

import hashlib
import io
import itertools
import json
import os
import subprocess
import sys
import tarfile
import threading
import time
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from registry.builtin.points import PointDenoiser
from registry.core.errors import UserError
from registry.core.streams import Streams
from registry.edm.archive import make_dataset
from registry.edm.datasets import load_images
from registry.files import downloads
from registry.files.formats import convert_network, load_network, save_network
from registry.files.locate import locate
from registry.plugins.loading import load_plugins
from tests.conftest import HERE, environment, error_line, tiny_network

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
    assert "VPPrecond" in error_line(cli("convert", HERE / "golden" / "teacher_edm_vpprecond.pkl", tmp_path / "z.pt"))
    assert not (tmp_path / "z.pt").exists()


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
    (site / "torch_utils").mkdir(parents=True)
    (site / "torch_utils" / "__init__.py").write_text("")
    (site / "torch_utils" / "persistence.py").write_text(f"DECORATE = {decorate}\n{PERSISTENCE}")
    (site / "dnnlib").mkdir()
    (site / "dnnlib" / "__init__.py").write_text("from torch_utils.persistence import EasyDict\n")
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
    assert torch.equal(theirs["images"], result.generator.sample(range(8)))
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
        ("teacher_edm_vpprecond.pkl", ["VPPrecond"]),
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
    assert "EXECUTES posix.system" in done.stdout
    assert "DANGEROUS" in done.stdout
    assert not list(tmp_path.rglob("canary"))


# -------------------------------------------------------------------------------------------------------- downloads


class Server(ThreadingHTTPServer):
    """Serves one content, misbehaving as given by `behaviours`, and records the requests."""

    content = os.urandom(300_000)
    daemon_threads = True

    def __init__(self, *behaviours: str) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.behaviours, self.requests = list(behaviours), []  # type: ignore[var-annotated]
        self.url = f"http://127.0.0.1:{self.server_address[1]}/teacher.pkl"


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        self.server.requests.append((self.path, self.headers.get("Range")))
        behaviour = self.server.behaviours.pop(0) if self.server.behaviours else ""
        content, start = self.server.content, 0
        if behaviour in ("404", "500", "503"):
            self.send_error(int(behaviour))
            return
        if behaviour == "redirect":
            self.send_response(302)
            self.send_header("Location", "/elsewhere/teacher.pkl")
            self.end_headers()
            return
        tag = '"1"'
        if behaviour == "new version":
            content, tag = content[::-1], '"2"'
        if (asked := self.headers.get("Range")) and behaviour != "no ranges" and self.headers.get("If-Range", tag) == tag:
            start = int(asked.removeprefix("bytes=").removesuffix("-"))
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(content) - start))
        self.send_header("ETag", tag)
        self.end_headers()
        body = content[start:]
        if behaviour.startswith("truncate"):
            body = body[: len(body) // 3]
        if behaviour == "slow":
            for i in range(0, len(body), 30_000):
                self.wfile.write(body[i : i + 30_000])
                time.sleep(0.05)
        else:
            self.wfile.write(body)

    def log_message(self, *args: object) -> None: ...


@contextmanager
def serving(*behaviours: str) -> Iterator[Server]:
    with Server(*behaviours) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("DISTILL_CACHE_DIR", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.mark.parametrize(
    ("behaviours", "requests"),
    [
        ((), [None]),
        (("slow",), [None]),
        (("redirect",), [None, None]),
        (("500", "503"), [None, None, None]),  # fails twice, then serves
        (("truncate",), [None, "bytes=100000-"]),  # resumes where it stopped
        (("truncate", "truncate"), [None, "bytes=100000-", "bytes=166666-"]),
        (("truncate", "no ranges"), [None, "bytes=100000-"]),  # starts over if the server cannot resume
    ],
)  # fmt: skip
def test_a_download_is_complete(behaviours: tuple[str, ...], requests: list[str | None], cache: Path) -> None:
    with serving(*behaviours) as server:
        path = downloads.fetch(server.url, hashlib.sha256(Server.content).hexdigest())
        assert path.read_bytes() == Server.content
        assert [asked for _, asked in server.requests] == requests
        assert downloads.fetch(server.url) == path
        assert len(server.requests) == len(requests)  # the second call uses the cache
    assert not list(cache.glob("*.part*"))


def test_another_version_on_the_server_is_not_spliced(cache: Path) -> None:
    with serving("truncate 1", "new version") as server:
        assert downloads.fetch(server.url).read_bytes() == Server.content[::-1]
        assert [asked for _, asked in server.requests] == [None, "bytes=100000-"]


def test_a_download_that_fails(cache: Path) -> None:
    with serving("404") as server:
        with pytest.raises(UserError, match="the server answered 404 Not Found; download it yourself"):
            downloads.fetch(server.url)
        assert len(server.requests) == 1  # not retried in vain
        url = server.url
    with pytest.raises(UserError, match=r"cannot be downloaded: .*refused"):
        downloads.fetch(url + "x")


def test_a_different_file_than_expected_is_refused(cache: Path) -> None:
    with serving() as server, pytest.raises(UserError, match=f"expected {'0' * 64}; the server has a different file"):
        downloads.fetch(server.url, "0" * 64)
    assert not list(cache.glob("*.part")) + list(cache.glob("*.pkl"))


@pytest.mark.parametrize("harm", ["truncated", "bit flipped", "note lost", "left over from a break"])
def test_a_damaged_cache_is_noticed_and_repaired(harm: str, cache: Path) -> None:
    with serving() as server:
        path = downloads.fetch(server.url)
        if harm == "truncated":
            path.write_bytes(Server.content[:1000])
        elif harm == "bit flipped":
            path.write_bytes(b"x" + Server.content[1:])
        elif harm == "note lost":
            downloads._note(path).unlink()
        else:
            path.with_name(path.name + ".part").write_bytes(Server.content[:1000])
            path.with_name(path.name + ".part.tag").write_text('"1"')
            path.unlink()
        assert downloads.fetch(server.url).read_bytes() == Server.content
        assert len(server.requests) == 2


def test_processes_share_one_download(cache: Path, tmp_path: Path) -> None:
    with serving("slow") as server:
        code = f"from registry.files.downloads import fetch; print(len(fetch({server.url!r}).read_bytes()))"
        processes = [
            subprocess.Popen(
                [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment()
            )
            for _ in range(3)
        ]
        assert [p.communicate()[0].strip() for p in processes] == ["300000"] * 3
        assert len(server.requests) == 1


def test_a_teacher_from_a_url(cache: Path, cli: Cli, recipe_file: Callable[..., Path], tmp_path: Path) -> None:
    path = recipe_file()
    with serving() as server:
        Server.content, before = (tmp_path / "teacher.pt").read_bytes(), Server.content
        try:
            done = cli("--recipe", path, "--set", f"teacher.source={server.url}", env={"DISTILL_CACHE_DIR": str(cache)})
        finally:
            Server.content = before
        assert done.returncode == 0, done.stderr
        assert "downloading http://127.0.0.1" in done.stderr
        bad = cli(
            "--recipe",
            path,
            "--set",
            f"teacher.source={server.url}",
            "--set",
            "teacher.sha256=12",
            env={"DISTILL_CACHE_DIR": str(cache)},
        )
        assert "[teacher] sha256 = '12': must be" in bad.stderr or "sha256" in error_line(bad)


def test_published_teachers_have_short_names() -> None:
    published = [name for name in load_plugins().names("published") if name.startswith("edm:")]
    assert set(published) == {"edm:cifar10-uncond", "edm:cifar10-cond", "edm:ffhq", "edm:afhqv2", "edm:imagenet64-cond"}
    assert locate("edm:ffhq") == "edm:ffhq"
    with pytest.raises(ValueError, match=r"did you mean 'edm:ffhq'"):
        locate("edm:fhq")


# -------------------------------------------------------------------------------------------------------- data sets


def pictures(folder: Path, size: tuple[int, int] = (10, 8), count: int = 5) -> Path:
    rng = np.random.default_rng(0)
    for i in range(count):
        path = folder / ("cats" if i % 2 else "dogs") / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (*size, 3), dtype=np.uint8)).save(path)
    return folder


@pytest.mark.parametrize("dest", ["set.zip", "set"])
def test_a_data_set_made_from_a_folder_has_edms_layout_and_reads_back(dest: str, cli: Cli, tmp_path: Path) -> None:
    done = cli("dataset", pictures(tmp_path / "raw"), tmp_path / dest, "--crop", "--resolution", "4", "--folder-labels")
    assert done.returncode == 0, done.stderr
    assert "5 images of 4×4, RGB, 2 classes" in done.stdout
    found = load_images(str(tmp_path / dest))
    assert found.pixels.shape == (5, 3, 4, 4)
    assert found.classes is not None
    assert found.classes.tolist() == [0, 0, 1, 1, 1]
    if dest.endswith(".zip"):
        with zipfile.ZipFile(tmp_path / dest) as archive:
            assert archive.namelist()[0] == "00000/img00000000.png"
            assert all(i.compress_type == zipfile.ZIP_STORED for i in archive.infolist())
            assert json.loads(archive.read("dataset.json"))["labels"][0] == ["00000/img00000000.png", 0]
    again = cli("dataset", tmp_path / dest if dest == "set" else tmp_path / "raw", tmp_path / "copy", "--crop", "--resolution", "4")
    assert again.returncode == 0, again.stderr
    assert ("2 classes" in again.stdout) == (dest == "set")  # the labels of a data set are copied


def test_cifar_tarball(tmp_path: Path) -> None:
    data = np.random.default_rng(0).integers(0, 256, (20, 3072), dtype=np.uint8)
    content = (  # as Python 2 wrote it
        b"\x80\x02}q\x01(U\x04datacnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b\x87R"
        b"(K\x01K\x14M\x00\x0c\x86cnumpy\ndtype\nU\x02u1K\x00K\x01\x87R(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb\x89"
        b"T" + data.nbytes.to_bytes(4, "little") + data.tobytes() + b"tbU\x06labels]("
        + bytes(b for label in list(range(10)) * 2 for b in (ord("K"), label)) + b"eU\x0bbatch_labelU\x01xu."
    )  # fmt: skip
    with tarfile.open(tmp_path / "cifar.tar.gz", "w:gz") as archive:
        info = tarfile.TarInfo("cifar-10-batches-py/data_batch_1")
        info.size = len(content)
        archive.addfile(info, io.BytesIO(content))
    assert "20 images of 32×32, RGB, 10 classes" in make_dataset(str(tmp_path / "cifar.tar.gz"), str(tmp_path / "c.zip"))
    found = load_images(str(tmp_path / "c.zip"))
    assert np.array_equal(found.pixels.numpy(), data.reshape(-1, 3, 32, 32))
    assert found.label_dim == 10


def test_a_hostile_tarball_runs_nothing(tmp_path: Path) -> None:
    content = b"\x80\x02cposix\nsystem\nX\x0c\x00\x00\x00touch canary\x85R."
    with tarfile.open(tmp_path / "c.tar", "w") as archive:
        info = tarfile.TarInfo("data_batch_1")
        info.size = len(content)
        archive.addfile(info, io.BytesIO(content))
    with pytest.raises(UserError, match=r"it refers to posix\.system"):
        make_dataset(str(tmp_path / "c.tar"), str(tmp_path / "c.zip"))
    assert [p.name for p in tmp_path.iterdir()] == ["c.tar"]


BAD_SETS: dict[str, tuple[Callable[[Path], Any], list[str], str]] = {
    "not square": (lambda p: pictures(p / "raw"), [], "not square; set it to take the centre"),
    "mixed sizes": (lambda p: (pictures(p / "raw", (8, 8), 2), Image.new("RGB", (4, 4)).save(p / "raw" / "z.png")), [], "unlike the images before it; give one resolution for all"),
    "no images": (lambda p: (p / "raw").mkdir(), [], "no images in it"),
    "nowhere": (lambda p: None, [], "no such folder or file"),
    "damaged": (lambda p: ((p / "raw").mkdir(), (p / "raw" / "a.png").write_bytes(b"no")), [], "not a readable image"),
    "dest there": (lambda p: (pictures(p / "raw"), (p / "out.zip").write_text("mine")), [], "already exists"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD_SETS)
def test_bad_data_sets_leave_nothing(case: str, cli: Cli, tmp_path: Path) -> None:
    prepare, args, wanted = BAD_SETS[case]
    prepare(tmp_path)
    before = sorted(p.name for p in tmp_path.iterdir())
    assert wanted in error_line(cli("dataset", tmp_path / "raw", tmp_path / "out.zip", *args))
    assert sorted(p.name for p in tmp_path.iterdir()) == before


def test_palettes_bits_and_depths_are_converted(tmp_path: Path) -> None:
    Image.new("P", (4, 4), 1).save(tmp_path / "skip.gif")  # not a supported kind of image
    palette = Image.new("P", (4, 4), 1)
    palette.putpalette([0, 0, 0, 200, 200, 200] + [0] * 762)
    Image.new("1", (4, 4), 1).save(tmp_path / "bits.png")
    assert load_images(str(tmp_path)).pixels.tolist() == [[[[255] * 4] * 4]]
    (tmp_path / "bits.png").unlink()
    palette.save(tmp_path / "palette.png")
    assert set(load_images(str(tmp_path)).pixels.flatten().tolist()) == {200}
    (tmp_path / "palette.png").unlink()
    Image.fromarray(np.full((4, 4), 65535, np.uint16)).save(tmp_path / "deep.png")
    assert set(load_images(str(tmp_path)).pixels.flatten().tolist()) == {255}


BAD_READS: dict[str, tuple[Callable[[Path], Any], str]] = {
    "json": (lambda p: (p / "dataset.json").write_text("{"), "dataset.json is not EDM's"),
    "label missing": (lambda p: (p / "dataset.json").write_text('{"labels": [["a.png", 1]]}'), "has no label for b.png"),
    "other size": (lambda p: Image.new("L", (5, 5)).save(p / "c.png"), "all must have the same shape"),
    "not square": (lambda p: Image.new("L", (5, 4)).save(p / "0.png"), "images must be square"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD_READS)
def test_data_sets_that_cannot_be_read(case: str, tmp_path: Path) -> None:
    prepare, wanted = BAD_READS[case]
    for name in ("a.png", "b.png"):
        Image.new("L", (4, 4)).save(tmp_path / name)
    assert len(load_images(str(tmp_path))) == 2
    prepare(tmp_path)
    with pytest.raises(UserError, match=wanted):
        load_images(str(tmp_path))
