"""Shared by several tests: golden numbers, small real teachers and recipes, and the command as a user types it."""

from __future__ import annotations

import json
import os
import random
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, TypeVar

import numpy as np
import pytest
import torch
from hypothesis import settings
from PIL import Image

from registry.cli import main
from registry.edm.networks import PRECONDITIONINGS, EDMPrecond, Precond
from registry.files.formats import save_network
from registry.plugins.loading import Plugins, load_plugins
from tests.warm import Warm

HERE = Path(__file__).parent
ROOT = HERE.parent

settings.register_profile("same", derandomize=True, deadline=None)  # no test is decided by chance, or by a busy machine
settings.load_profile("same")

Network = TypeVar("Network", bound=torch.nn.Module)
TINY = dict(
    model_type="SongUNet", model_channels=8, channel_mult=[1], num_blocks=1, attn_resolutions=[], dropout=0.0,
    channel_mult_noise=1, embedding_type="positional", encoder_type="standard", decoder_type="standard",
)  # fmt: skip


def golden(name: str) -> SimpleNamespace:
    """A golden file: `meta`, and arrays as tensors through `at(key, dtype)`."""
    arrays = np.load(HERE / "golden" / f"{name}.npz", allow_pickle=False)

    def at(key: str, dtype: torch.dtype | None = None) -> torch.Tensor:
        found = torch.from_numpy(np.array(arrays[key]))
        return found if dtype is None else found.to(dtype)

    def state(prefix: str) -> dict[str, torch.Tensor]:
        return {k.removeprefix(prefix): at(k) for k in arrays.files if k.startswith(prefix)}

    return SimpleNamespace(meta=json.loads(str(arrays["meta"])), at=at, state=state, keys=list(arrays.files))


def network_of(found: SimpleNamespace, kwargs: dict[str, Any], prefix: str = "state/") -> EDMPrecond:
    """A golden network with its weights, in eval mode."""
    net = EDMPrecond(**kwargs)
    net.load_state_dict(found.state(prefix))
    return net.eval()


def tiny_network(resolution: int = 8, channels: int = 1, label_dim: int = 0, D: float = 128.0, **kwargs: Any) -> EDMPrecond:
    """A small network in which every tensor matters (with the initial values, most layers output zeros)."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return lively(EDMPrecond(resolution, channels, label_dim, D=D, pfgmpp=float("inf") != D, **(TINY | kwargs)))


def tiny_preconditioned(name: str, resolution: int = 8, channels: int = 1, label_dim: int = 0, **kwargs: Any) -> Precond:
    """The same around another preconditioning: VPPrecond, VEPrecond, iDDPMPrecond."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return lively(PRECONDITIONINGS[name](resolution, channels, label_dim, **(TINY | kwargs)))


def lively(net: Network) -> Network:
    """The network with weights of which every one matters, in eval mode."""
    for p in net.parameters():
        torch.nn.init.normal_(p, std=0.3 / max(1, p[0].numel()) ** 0.5) if p.ndim > 1 else p.data.add_(0.1 * torch.randn_like(p))
    return net.eval()


@pytest.fixture(autouse=True)
def _same_numbers() -> None:
    """The same random numbers in a test whichever tests ran before it in its process."""
    torch.manual_seed(0)
    np.random.seed(0)
    random.seed(0)


@pytest.fixture(autouse=True, scope="session")
def _separate_cache(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Keeps everything that tests measure or download out of the user's cache."""
    os.environ["DISTILL_CACHE_DIR"] = str(tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="session")
def plugins() -> Plugins:
    return load_plugins(blocked=())


@pytest.fixture
def teacher_file(tmp_path: Path) -> Callable[..., Path]:
    """Writes a small teacher of a given dimension, and gives its path."""

    def write(D: float = 128.0, name: str = "teacher.pt", **kwargs: Any) -> Path:
        net = tiny_network(D=D, **kwargs)
        save_network(tmp_path / name, "denoiser", net, {"D": D, "sigma_data": 0.5})
        return tmp_path / name

    return write


RECIPE = """
[teacher]
use = "pfgmpp"
source = "{teacher}"
[noise]
use = "electrostatic"
[loss]
use = "ipfm"
[train]
batch = 8
duration_kimg = 0.048
lr = 1e-3
glr = 1e-3
device = "cpu"
[log]
outdir = "{outdir}"
tick_kimg = 0.016
snapshot_ticks = 1
state_ticks = 1
grid = 2
[eval]
samples = 32
repeats = 2
snapshot_samples = 16
teacher_steps = [3]
"""


@pytest.fixture
def recipe_file(tmp_path: Path, teacher_file: Callable[..., Path]) -> Callable[..., Path]:
    """Writes a recipe of six short iterations, with text replaced or appended, and gives its path."""

    def write(*replacements: tuple[str, str], append: str = "", name: str = "short.toml", D: float = 128.0) -> Path:
        text = RECIPE.format(teacher=teacher_file(D=D), outdir=tmp_path / "runs") + append
        for old, new in replacements:
            assert old in text
            text = text.replace(old, new)
        (tmp_path / name).write_text(text)
        return tmp_path / name

    return write


@pytest.fixture
def generator_file(tmp_path: Path) -> Path:
    """A small one-step generator of 8×8 images."""
    path = tmp_path / "generator.pt"
    save_network(path, "generator", tiny_network(), {"D": 128.0, "sigma_init": 2.5})
    return path


def grey_images(folder: Path, count: int) -> Path:
    """Fill a folder with grey 8×8 images in EDM's layout."""
    for i, pixels in enumerate(np.random.default_rng(0).integers(0, 256, (count, 8, 8), dtype=np.uint8)):
        Image.fromarray(pixels).save(folder / f"img{i:08d}.png")
    return folder


@pytest.fixture(scope="session")
def warm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Warm]:
    """A process that has loaded everything, from which commands are started."""
    started = Warm(tmp_path_factory.mktemp("warm"), environment())
    yield started
    started.stop()


@pytest.fixture
def cli(tmp_path: Path, warm: Warm) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Runs the command `distill` in a separate process and an empty folder, as a user types it."""
    cwd = tmp_path / "a folder"
    cwd.mkdir()

    def run(*args: str | Path, env: dict[str, str] | None = None, timeout: float = 120) -> subprocess.CompletedProcess[str]:
        return warm.run(list(map(str, args)), cwd, environment(env), timeout)

    return run


@pytest.fixture
def here(capsys: pytest.CaptureFixture[str]) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Runs the command in this process: the same code from arguments to exit, without the seconds for loading torch."""

    def run(*args: str | Path) -> subprocess.CompletedProcess[str]:
        words = list(map(str, args))
        with pytest.raises(SystemExit) as stopped:
            main(words)
        printed = capsys.readouterr()
        return subprocess.CompletedProcess(words, int(stopped.value.code or 0), printed.out, printed.err)

    return run


def environment(extra: dict[str, str] | None = None) -> dict[str, str]:
    """This process's environment with one thread per process, so that parallel tests do not slow each other down."""
    return {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1", "COLUMNS": "200", **(extra or {})}


def installed(site: Path, name: str, source: str, plugin: str | None = None, module: str | None = None) -> dict[str, str]:
    """Installs a module as a package with an entry point, and gives the environment that has it on its path."""
    module = module or name
    info = site / f"{name}-1.2.3.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.2.3\n")
    (info / "entry_points.txt").write_text(f"[distill]\n{plugin or name} = {module}\n")
    (site / f"{module}.py").write_text(source)
    return {"PYTHONPATH": str(site)}


def error_line(done: subprocess.CompletedProcess[str], code: int = 1) -> str:
    """The one line of an error. Asserts the exit code and that there is no traceback."""
    assert done.returncode == code, (done.returncode, done.stdout, done.stderr)
    assert "Traceback" not in done.stdout + done.stderr
    lines = done.stderr.strip().splitlines()
    assert len(lines) == 1, lines
    return lines[0]


torch.set_num_threads(1)
