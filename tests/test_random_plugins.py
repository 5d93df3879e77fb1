"""Plugins that go wrong at random: a run with one ends soon, with one line that names it, or goes to its end. No bug of ours."""

from __future__ import annotations

import json
import os
import sys
import tempfile
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from registry.files.formats import save_network
from registry.runs.states import states
from tests.conftest import RECIPE, installed, tiny_network
from tests.soak import Run

pytestmark = pytest.mark.slow
MOST = settings(  # others in each run: this is a search
    max_examples=300,
    derandomize=False,
    deadline=None,
    suppress_health_check=list(HealthCheck),
    phases=[Phase.explicit, Phase.reuse, Phase.generate],
)

PLUGIN = '''
import asyncio, copy, dataclasses, errno, gc, importlib, json, math, os, random, signal, sys, threading, warnings
import numpy as np
from registry.api import Component, Config, Tracker, hookimpl
from registry.core.errors import UserError
import ipfm_plugin, registry.builtin

ODD = json.loads(os.environ["ODD"])
calls = 0


def odd(function):
    """From its call number `at` on, something else happens, or another value is given."""
    def call(*arguments, **others):
        global calls
        import torch
        calls += 1
        if calls < ODD["at"]:
            return function(*arguments, **others)
        if ODD["does"] == "gives":
            r = function(*arguments, **others)
            return eval(compile(ODD["what"], __file__, "eval"))
        exec(compile(ODD["what"], __file__, "exec"))
        return function(*arguments, **others)
    return call


def wrapped(component, kind):
    def build(*arguments):
        made = component.make(*arguments)
        if ODD["kind"] != kind:
            return made
        if ODD["method"] == "build":
            return odd(lambda: made)()
        if ODD["method"] == "forward":  # of the teacher alone: student and generator are copies of what it was
            before = copy.deepcopy(made.denoiser)
            made = dataclasses.replace(made, trainable=lambda: copy.deepcopy(before))
            made.denoiser.forward = odd(made.denoiser.forward)
        else:
            object.__setattr__(made, ODD["method"], odd(getattr(made, ODD["method"])))
        return made
    return Component("odd_" + kind, component.config, build, "an odd one")


class Quiet(Tracker):
    def begin(self, folder, recipe, nimg): pass
    def numbers(self, nimg, values): pass
    def picture(self, nimg, name, path): pass
    def end(self): pass


@hookimpl
def register_teachers(): return [wrapped(ipfm_plugin.register_teachers()[0], "teacher")]
@hookimpl
def register_noises(): return [wrapped(ipfm_plugin.register_noises()[0], "noise")]
@hookimpl
def register_losses(): return [wrapped(ipfm_plugin.register_losses()[0], "loss")]
@hookimpl
def register_metrics():
    return [wrapped(c, "metric") for c in registry.builtin.register_metrics() if c.name == "sliced_wasserstein"]
@hookimpl
def register_trackers(): return [wrapped(Component("quiet", Config, lambda config: Quiet(), "nothing"), "tracker")]
'''

METHODS = {
    "teacher": ["build", "forward"],
    "noise": ["build", "prior", "perturb", "student_sigma", "generator_sigma"],
    "loss": ["build", "student", "generator"],
    "metric": ["build", "embed", "compare", "floor"],
    "tracker": ["build", "begin", "numbers", "picture", "end"],
}
GIVES = [
    "None", "3", "'x'", "{}", "object()", "type(r)", "lambda: r", "[r]", "(r, r)", "float('nan')", "10**400", "r[:1]", "r[:0]",
    "r[..., None]", "r.sum()", "r.double()", "r.half()", "r.int()", "r > 0", "r * math.nan", "r * math.inf", "r * 1e38", "-r", "r + 0j",
    "r.detach()", "torch.zeros_like(r)", "r.to('meta')", "r.to_sparse()", "r.detach().numpy()", "r.flatten()", "r.expand(2, *r.shape)",
    "torch.nn.Parameter(r.detach())", "torch.nested.nested_tensor([r.detach()])", "torch.ones(1).expand(r.shape)",
    "torch.where(torch.arange(r.numel()).reshape(r.shape) == 0, math.nan, r)", "{**r, 'more': 1}", "{k: math.nan for k in r}",
    "{k: 'x' for k in r}", "{k: 10**400 for k in r}", "{k: torch.ones(1) for k in r}", "{'\\x1b[31m': 1.0}",
]  # fmt: skip
RAISES = [
    "ValueError('\\x1b[31m\\n\\nlong' * 50)", "KeyError('a')", "SystemExit(0)", "SystemExit('x')", "SystemExit(10**30)", "GeneratorExit",
    "MemoryError", "RecursionError", "StopIteration", "asyncio.CancelledError", "torch.cuda.OutOfMemoryError('CUDA out of memory')",
    "UnicodeDecodeError('utf-8', b'', 0, 1, 'x')", "BrokenPipeError", "EOFError", "OSError(errno.ENOSPC, 'No space left')",
    "OSError(errno.EIO, 'x', '/f')", "UserError('mine')", "BaseExceptionGroup('g', [KeyboardInterrupt()])", "BaseException('b')",
    "type('E', (Exception,), {'__str__': lambda self: 1 / 0})", "AssertionError", "TimeoutError", "ImportError('torchx')",
    "SyntaxError('bad', ('f', 1, 2, 'x'))", "RuntimeError('DataLoader worker (pid 3) is killed by signal')",
]  # fmt: skip
CHANGES = [
    "os.chdir('/')", "os.close(1)", "os.environ.clear()", "os.umask(0o777)", "gc.disable()", "random.seed(1)", "np.random.seed(3)",
    "sys.setrecursionlimit(200)", "np.seterr(all='raise')", "warnings.simplefilter('error')", "warnings.warn('w' * 300)",
    "signal.signal(signal.SIGTERM, signal.SIG_IGN)", "signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])",
    "threading.stack_size(32768)", "sys.path.clear()", "torch.manual_seed(1)", "torch.set_default_dtype(torch.double)",
    "torch.set_default_device('meta')", "torch.set_grad_enabled(False)", "torch.set_num_threads(3)", "torch.no_grad().__enter__()",
    "torch.inference_mode().__enter__()", "torch.autograd.set_detect_anomaly(True)", "torch.set_autocast_enabled('cpu', True)",
    "[a.requires_grad_(False) for a in arguments if isinstance(a, torch.nn.Module)]",
    "[a.half() for a in arguments if isinstance(a, torch.nn.Module)]", "[a.to('meta') for a in arguments if isinstance(a, torch.nn.Module)]",
    "[p.data.fill_(math.nan) for a in arguments if isinstance(a, torch.nn.Module) for p in a.parameters()]",
    "[a.zero_() for a in arguments[:1] if isinstance(a, torch.Tensor)]", "[a.resize_(1) for a in arguments[:1] if isinstance(a, torch.Tensor)]",
]  # fmt: skip
USED = {"teacher": "pfgmpp", "noise": "electrostatic", "loss": "ipfm", "metric": "sliced_wasserstein"}


@st.composite
def oddities(draw: st.DrawFn) -> dict[str, str | int]:
    kind = draw(st.sampled_from(list(METHODS)))
    does, what = draw(st.one_of(*(st.tuples(st.just(does), st.sampled_from(texts)) for does, texts in (
        ("gives", GIVES), ("does", [f"raise {error}" for error in RAISES]), ("does", CHANGES),
    ))))  # fmt: skip
    at = draw(st.sampled_from([1, 2, 3, 5, 8]))
    return {"kind": kind, "method": draw(st.sampled_from(METHODS[kind])), "does": does, "what": what, "at": at}


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.set_num_threads(1)  # threads do not survive a fork
    folder = tmp_path_factory.mktemp("plugins")
    save_network(folder / "teacher.pt", "denoiser", tiny_network(), {"D": 128.0, "sigma_data": 0.5})
    installed(folder / "site", "odd_one", PLUGIN)
    return folder


@MOST
@given(oddities())
def test_a_run_with_a_plugin_that_goes_wrong(site: Path, odd: dict[str, str | int]) -> None:
    text = RECIPE.format(teacher=site / "teacher.pt", outdir="runs") + 'metrics = ["sliced_wasserstein"]\nreference = "digits"\n'
    if odd["kind"] == "tracker":
        text = text.replace("[log]", '[log]\ntrackers = ["odd_tracker"]')
    else:
        text = text.replace(f'"{USED[str(odd["kind"])]}"', f'"odd_{odd["kind"]}"')

    def with_plugin() -> None:
        os.environ["ODD"] = json.dumps(odd)
        sys.path.insert(0, str(site / "site"))

    with tempfile.TemporaryDirectory() as folder:
        cwd = Path(folder)
        (cwd / "odd.toml").write_text(text)
        run = Run(cwd, "--recipe", "odd.toml", before=with_plugin)
        code = run.wait()
        printed = run.text()
        assert code in (0, 1, 4), (odd, code, printed)
        assert code == 0 or printed.count("\ndistill: ") + printed.startswith("distill: ") == 1, (odd, printed)
        assert "\x1b[31m" not in printed, (odd, printed)
        if code == 0:
            newest = next((found for run in (cwd / "runs").iterdir() for found in states(run)), None)
            assert newest is not None and is_finite(torch.load(newest, weights_only=True)), odd


def is_finite(value: object) -> bool:
    if isinstance(value, torch.Tensor):
        return not value.is_floating_point() or bool(value.isfinite().all())
    if isinstance(value, dict):
        return all(map(is_finite, value.values()))
    return all(map(is_finite, value)) if isinstance(value, list | tuple) else True
