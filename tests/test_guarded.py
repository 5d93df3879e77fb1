"""What plugins' metrics, noises and teachers give is checked where the host takes it, and told with the plugin's name."""

from __future__ import annotations

import contextlib
import functools
import importlib
import json
import math
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from ipfm_plugin.loss import IPFMLoss
from ipfm_plugin.noise import ElectrostaticNoise
from registry.builtin.loss import SiDLoss
from registry.core.contracts import Metric, Teacher
from registry.core.errors import Interrupted, UserError
from registry.core.interruption import Interruption, leave_if_copied
from registry.core.settings import Config
from registry.core.surroundings import settings_restored, surroundings_restored
from registry.measure.guarded import Guarded
from registry.measure.measuring import measure
from registry.plugins.component import Component
from registry.recipe.resolved import Choice
from registry.runs.built import check_answer, check_facts, check_loss, check_noise
from tests.conftest import environment, error_line, installed, tiny_network

SHAPE = (1, 8, 8)


class Brightness(Metric):
    """The mean of all values."""

    columns = ("brightness",)

    def embed(self, images: Tensor) -> Tensor:
        return images.flatten(1).mean(1, keepdim=True)

    def compare(self, rows: Tensor) -> dict[str, float]:
        return {"brightness": float(rows.mean())}


def choice(kind: str, build: Callable[..., Any] = lambda *_: None) -> Choice:
    return Choice(kind, Component("odd", Config, build, "an odd one"), "strangers", Config())


def guarded(metric: Any) -> Guarded:
    return Guarded(choice("metric", lambda config, domain: metric), SimpleNamespace())  # type: ignore[arg-type]


def odd(**methods: Any) -> Any:
    """A metric with something else than it should have. Functions become methods."""
    return type("Odd", (Brightness,), methods)()


BUILT: dict[str, tuple[Any, str]] = {
    "a class": (Brightness, "its build must give a registry.api.Metric"),
    "text": ("brightness", "its build must give a registry.api.Metric, not a str"),
    "no columns": (odd(columns=()), "columns must be the names of its numbers, each once"),
    "one name": (odd(columns="brightness"), "columns must be the names"),
    "a line": (odd(columns=("a\nb",)), "columns must be the names"),
    "twice": (odd(columns=("a", "a")), "columns must be the names"),
    "higher": (odd(higher=("b",)), "higher must name some of its columns"),
    "higher than nothing": (odd(higher=None), "higher must name some of its columns"),
    "higher than a number": (odd(higher=5), "higher must name some of its columns"),
    "most": (odd(most="5"), "most must be None or a number of images"),
    "none at most": (odd(most=0), "most must be None or a number of images"),
    "protocol": (odd(protocol="many"), "protocol must be None or a number of images"),
    "details": (odd(details={"a": object()}), "details must be a dict of plain, finite values"),
    "nan in details": (odd(details={"a": float("nan")}), "details must be a dict of plain, finite values"),
    "deep details": (
        odd(details=functools.reduce(lambda inner, _: {"a": inner}, range(3000), {})),
        "details must be a dict of plain",
    ),
    "details without letters": (odd(details={"a": "\udcff"}), "details must hold text that can be written as UTF-8"),
    "a fingerprint without letters": (odd(fingerprint="\udcff"), "fingerprint must be None or text"),
    "fingerprint": (odd(fingerprint=3), "fingerprint must be None or text"),
    "a long fingerprint": (odd(fingerprint="a" * 1001), "fingerprint must be one line of at most 1000 characters"),
    "a fingerprint in lines": (odd(fingerprint="a\nb"), "fingerprint must be one line of at most 1000 characters"),
    "long details": (odd(details={"a": "a" * 100_001}), "details must have at most 100,000 characters"),
}


@pytest.mark.parametrize("what", BUILT)
def test_a_metric_that_is_none(what: str) -> None:
    metric, told = BUILT[what]
    with pytest.raises(UserError, match="plugin 'strangers': metric 'odd': ") as caught:
        guarded(metric)
    assert told in str(caught.value)


def test_a_metric_whose_rows_change_their_length() -> None:
    lengths = iter((2, 2, 3))
    metric = guarded(odd(embed=lambda self, images: torch.zeros(len(images), next(lengths))))
    for _ in range(2):
        metric.embed(torch.zeros(4, *SHAPE))
    with pytest.raises(UserError, match="embed must give rows of the same length, and gave 3 numbers after 2"):
        metric.embed(torch.zeros(4, *SHAPE))


def test_what_a_plugin_enters_and_does_not_leave() -> None:
    for enter in (torch.inference_mode(), torch.no_grad()):
        with surroundings_restored():
            enter.__enter__()
        assert torch.is_grad_enabled() and not torch.is_inference_mode_enabled()
    with torch.no_grad(), surroundings_restored():
        assert not torch.is_grad_enabled()


NUMBERS: dict[str, tuple[Any, str]] = {
    "nothing": (None, "and gave a NoneType"),
    "empty": ({}, "and gave nothing"),
    "a tensor": (torch.ones(1), "and gave a Tensor"),
    "another name": ({"darkness": 1.0}, "a number for each of brightness, and gave darkness (float)"),
    "text": ({"brightness": "1"}, "and gave brightness (str)"),
    "complex": ({"brightness": 1j}, "and gave brightness (complex)"),
    "yes": ({"brightness": True}, "and gave brightness (bool)"),
    "huge": ({"brightness": 10**400}, "and gave one that is too large"),
}


@pytest.mark.parametrize("method", ["compare", "floor"])
@pytest.mark.parametrize("what", NUMBERS)
def test_numbers_that_are_none(what: str, method: str) -> None:
    found, told = NUMBERS[what]
    metric = guarded(odd(**{method: lambda self, _: found}))
    call = (lambda: metric.compare(torch.ones(4, 1))) if method == "compare" else (lambda: metric.floor(0))
    if (what, method) == ("empty", "floor"):
        assert call() == {}  # unknown
        return
    with pytest.raises(UserError) as caught:
        call()
    assert str(caught.value).startswith(f"plugin 'strangers': metric 'odd': {method} must give") and told in str(caught.value)


@pytest.mark.parametrize("value", [2, np.float32(2), np.float64(2), 2.0])
def test_any_real_number_will_do(value: Any) -> None:
    found = guarded(odd(compare=lambda self, rows: {"brightness": value})).compare(torch.ones(4, 1))
    assert found == {"brightness": 2.0} and type(found["brightness"]) is float


@pytest.mark.parametrize(
    ("rows", "told"),
    [
        (lambda self, x: None, "embed must give rows [n, d], not a NoneType"),
        (lambda self, x: x.numpy(), "embed must give rows [n, d], not a ndarray"),
        (
            lambda self, x: torch.nested.nested_tensor([x[0, 0], x[1, 0, :2]], layout=torch.jagged),
            "embed must give rows [n, d], not a nested tensor",
        ),
        (lambda self, x: x[1:].flatten(1), "embed must give a row for each of 4 images, and gave [3, 64]"),
        (lambda self, x: x.flatten(1).mean(1), "embed must give a row for each of 4 images, and gave [4]"),
    ],
)
def test_rows_that_are_none(rows: Any, told: str) -> None:
    with pytest.raises(UserError) as caught:
        guarded(odd(embed=rows)).embed(torch.ones(4, *SHAPE))
    assert told in str(caught.value)


def test_what_a_metric_changes_is_undone(tmp_path: Path) -> None:
    def rude(self: Any, images: Tensor) -> Tensor:
        rows = images.flatten(1).mean(1, keepdim=True).clone()
        images.fill_(7.0)
        torch.set_default_dtype(torch.float64)
        torch.set_grad_enabled(False)
        torch.manual_seed(3)
        os.chdir(tmp_path)
        return rows

    before, folder = torch.get_rng_state(), Path.cwd()
    metrics = [(choice("metric"), guarded(odd(embed=rude))), (choice("metric"), guarded(odd(columns=("second",), compare=lambda self, rows: {"second": float(rows.mean())})))]  # fmt: skip
    found = measure(metrics, lambda seeds: torch.full((len(seeds), *SHAPE), 0.5), range(6), batch=3)
    assert found == {"brightness": 0.5, "second": 0.5}
    assert (torch.get_default_dtype(), torch.is_grad_enabled(), Path.cwd()) == (torch.float32, True, folder)
    assert torch.equal(torch.get_rng_state(), before)


def teacher(**facts: Any) -> Any:
    return Teacher(**({"denoiser": tiny_network(), "D": 128.0, "image_shape": SHAPE} | facts))


FACTS: dict[str, tuple[Callable[[], Any], str]] = {
    "another thing": (tiny_network, "its build must give a registry.api.Teacher, not a EDMPrecond"),
    "a function": (lambda: teacher(denoiser=lambda x, sigma, labels=None: x), "denoiser must be a torch.nn.Module, not a function"),
    "text": (lambda: teacher(D="128"), "D must be a positive number, not '128'"),
    "negative": (lambda: teacher(D=-1.0), "D must be a positive number, not -1.0"),
    "nan": (lambda: teacher(D=math.nan), "D must be a positive number, not nan"),
    "shape": (lambda: teacher(image_shape=(8, 8)), "image_shape must be three positive integers (C, H, W), not (8, 8)"),
    "labels": (lambda: teacher(label_dim=-1), "label_dim must be 0 or a number of labels, not -1"),
    "data": (lambda: teacher(sigma_data=math.inf), "sigma_data must be a positive number, not inf"),
}


@pytest.mark.parametrize("what", FACTS)
def test_a_teacher_that_is_none(what: str) -> None:
    make, told = FACTS[what]
    with pytest.raises(UserError) as caught:
        check_facts(choice("teacher"), make())
    assert str(caught.value) == f"plugin 'strangers': teacher 'odd': {told}"


class Answers(nn.Module):
    def __init__(self, answer: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.answer, self.weight = answer, nn.Parameter(torch.ones(1))

    def forward(self, x: Tensor, sigma: Tensor, labels: Tensor | None = None) -> Any:
        return self.answer(x)


@pytest.mark.parametrize(
    ("answer", "told"),
    [
        (lambda x: None, "must give a tensor [1, 1, 8, 8], not a NoneType"),
        (lambda x: x[:, :, :4], "must give [1, 1, 8, 8], and gave [1, 1, 4, 8] of torch.float32"),
        (lambda x: x.long(), "must give [1, 1, 8, 8], and gave [1, 1, 8, 8] of torch.int64"),
        (lambda x: x.mul_(2), "denoiser writes to the images that it is given"),
    ],
)
def test_a_denoiser_that_answers_something_else(answer: Any, told: str) -> None:
    check_answer(choice("teacher"), teacher(), teacher().denoiser, 2.5)
    with pytest.raises(UserError) as caught:
        check_answer(choice("teacher"), teacher(), Answers(answer), 2.5)
    assert told in str(caught.value)


def on_the_meta_device(rng: Any) -> Tensor:
    found = torch.ones(2)
    torch.set_default_device("meta")
    return found


@pytest.mark.parametrize(
    ("name", "value", "told"),
    [
        ("sigma_init", "2.5", "sigma_init must be a positive number, not '2.5'"),
        ("rho", 0, "rho must be a positive number, not 0"),
        ("prior", lambda shape, sigma, rng: None, "prior(shape, sigma, rng) must give a tensor [2, 1, 8, 8], not a NoneType"),
        ("prior", lambda shape, sigma, rng: torch.ones(2, 1, 4, 8), "must give [2, 1, 8, 8], and gave [2, 1, 4, 8] of torch.float32"),
        ("student_sigma", lambda rng: torch.ones(2, 1), "student_sigma(rng) must give [2], and gave [2, 1]"),
        ("generator_sigma", lambda rng: torch.ones(1), "generator_sigma(rng) must give [2], and gave [1]"),
        ("prior", 3, "prior must be a method, not a int"),
        ("generator_sigma", on_the_meta_device, "generator_sigma(rng) has changed torch's default device to meta"),
        ("perturb", lambda x, sigma, rng: x[:1], "perturb(x, sigma, rng) must give [2, 1, 8, 8], and gave [1, 1, 8, 8]"),
    ],
)  # fmt: skip
def test_a_noise_that_is_none(name: str, value: Any, told: str) -> None:
    noise = ElectrostaticNoise(128.0)
    check_noise(choice("noise"), noise, SHAPE)
    setattr(noise, name, value)
    with pytest.raises(UserError) as caught, settings_restored():
        check_noise(choice("noise"), noise, SHAPE)
    assert told in str(caught.value)


@pytest.mark.parametrize(
    ("of", "thing", "told"),
    [
        ("noise", {}, "its build must give an object with prior, perturb, student_sigma, generator_sigma, D, sigma_init, "),
        ("noise", ElectrostaticNoise, "its build must give an object with prior, "),
        ("loss", IPFMLoss, "its build must give an object with student and generator, not a "),
        ("loss", {}, "its build must give an object with student and generator, not a dict"),
        ("loss", lambda *arguments: 0, "its build must give an object with student and generator, not a function"),
        ("loss", SimpleNamespace(student=abs, generator=3), "generator must be a method, not a int"),
    ],
)
def test_another_thing_than_a_noise_or_a_loss(of: str, thing: Any, told: str) -> None:
    with pytest.raises(UserError) as caught:
        check_noise(choice(of), thing, SHAPE) if of == "noise" else check_loss(choice(of), thing)
    assert str(caught.value).startswith(f"plugin 'strangers': {of} 'odd': {told}")


def test_every_loss_and_noise_of_ours_is_one() -> None:
    for loss in (IPFMLoss(1.0), SiDLoss(1.0)):
        assert check_loss(choice("loss"), loss) is loss


def test_a_copy_that_is_no_network() -> None:
    with pytest.raises(UserError, match=r"trainable\(\) must give a torch.nn.Module, not a NoneType"):
        replace(teacher(), trainable=lambda: None).copy()


ELSEWHERE = """
from registry.api import Component, Config, hookimpl

@hookimpl
def register_metrics():
    return [Component("far", Config, "far_away:build", "a metric whose code is in another module")]
"""
FAR = """
import sys
from registry.api import Metric

class Far(Metric):
    columns = ("far",)
    def embed(self, images):
        sys.exit(0)
    def compare(self, rows):
        return {"far": 0.0}

def build(config, domain):
    return Far()
"""


def test_a_fault_in_another_module_of_a_plugin_is_the_plugins(cli: Any, recipe_file: Any, tmp_path: Path) -> None:
    site = tmp_path / "site"
    info = site / "near-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: near\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[distill]\nnear = near_here\n")
    (site / "near_here.py").write_text(ELSEWHERE)
    (site / "far_away.py").write_text(FAR)
    done: subprocess.CompletedProcess[str] = cli(
        "--recipe", recipe_file(append='metrics = ["far"]\n'), env={"PYTHONPATH": str(site)}
    )
    line = error_line(done)
    assert line.startswith("distill: plugin 'near': SystemExit: 0 (") and "far_away.py, line 8)" in line


def stopped_at(method: str, then: Callable[[], Any]) -> Any:
    """A metric that is sent a signal in one of its methods, and then goes on."""

    def signalled(self: Metric, *given: Any) -> Any:
        os.kill(os.getpid(), signal.SIGTERM)
        return then()

    return odd(**{method: signalled})


def waits() -> None:
    for _ in range(3000):
        time.sleep(0.02)
    pytest.fail("it was not left within a minute")


def catches() -> dict[str, float]:
    with contextlib.suppress(BaseException):
        waits()
    return {"brightness": 1.0}


@pytest.mark.parametrize("then", [waits, catches])
@pytest.mark.parametrize("method", ["embed", "compare", "floor"])
def test_a_metric_is_left_at_a_signal(method: str, then: Callable[[], Any]) -> None:
    metric = guarded(stopped_at(method, then))
    given = {"embed": torch.zeros(2, *SHAPE), "compare": torch.zeros(2, 1), "floor": 0}[method]
    with Interruption():
        threads = torch.get_num_threads()
        with pytest.raises(Interrupted, match="interrupted while") as stopped:
            getattr(metric, method)(given)
        assert stopped.value.code == 128 + signal.SIGTERM
        assert torch.get_num_threads() == threads
        os.kill(os.getpid(), signal.SIGTERM)  # is only noted again


def test_every_further_signal_is_raised_as_long_as_the_metric_goes_on() -> None:
    """Whoever catches everything may catch that, too."""
    caught = []

    def stubborn(self: Metric, rows: Tensor) -> dict[str, float]:
        for _ in range(3):
            try:
                os.kill(os.getpid(), signal.SIGTERM)
                waits()
            except BaseException as error:
                caught.append(type(error))
        return {"brightness": 1.0}

    with Interruption(), pytest.raises(Interrupted):
        guarded(odd(compare=stubborn)).compare(torch.zeros(2, 1))
    assert caught == [Interrupted] * 3


def test_a_copy_of_the_process_that_a_metric_makes_ends_at_a_signal() -> None:
    """As the workers of multiprocessing's pools do. What a terminal sends to all processes is for this one to answer."""
    ended = []

    def forks(self: Metric, rows: Tensor) -> dict[str, float]:
        pid = os.fork()
        if pid == 0:
            with contextlib.suppress(BaseException):
                for number in (signal.SIGINT, signal.SIGUSR1, signal.SIGHUP, signal.SIGTERM):
                    os.kill(os.getpid(), number)
                time.sleep(10)
            os._exit(0)
        ended.append(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
        return {"brightness": 1.0}

    with Interruption() as interruption:
        assert guarded(odd(compare=forks)).compare(torch.zeros(2, 1)) == {"brightness": 1.0}
        assert ended == [-signal.SIGTERM] and not interruption.number


def test_a_copy_may_measure_and_begin_a_run_of_its_own() -> None:
    """Both end where they are done, and the copy goes on; back from the metric it would be a second run."""
    said, say = os.pipe()

    def copies(self: Metric, rows: Tensor) -> dict[str, float]:
        pid = os.fork()
        if pid == 0:
            inner = guarded(odd()).compare(torch.zeros(2, 1))
            with Interruption():
                leave_if_copied()
                inner |= guarded(odd()).compare(torch.zeros(2, 1))
            os.write(say, json.dumps(inner).encode())
            return inner
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 1
        return {"brightness": 1.0}

    with Interruption():
        assert guarded(odd(compare=copies)).compare(torch.zeros(2, 1)) == {"brightness": 1.0}
    assert json.loads(os.read(said, 1000)) == {"brightness": 0.0}


def test_a_copy_that_is_signalled_at_once_ends() -> None:
    """A pool that is closed just after it was opened would wait for it."""
    with Interruption() as interruption:
        copies = [multiprocessing.get_context("fork").Process(target=time.sleep, args=(60,)) for _ in range(5)]
        for copy in copies:
            copy.start()
            copy.terminate()
        for copy in copies:
            copy.join(30)
            copy.kill()
        assert [copy.exitcode for copy in copies] == [-signal.SIGTERM] * 5 and not interruption.number


def test_what_a_copy_starts_can_be_interrupted() -> None:
    with Interruption():
        what = "import signal; print(signal.getsignal(signal.SIGINT) is signal.default_int_handler)"
        done = subprocess.run([sys.executable, "-c", what], preexec_fn=lambda: None, capture_output=True, text=True, check=True)
    assert done.stdout == "True\n"


def test_a_pool_that_waits_for_its_workers_is_left() -> None:
    """They do not answer what a terminal sends to all."""
    workers: list[multiprocessing.process.BaseProcess] = []

    def shares(self: Metric, rows: Tensor) -> dict[str, float]:
        with ProcessPoolExecutor(2, multiprocessing.get_context("fork")) as pool:
            busy = [pool.submit(time.sleep, 60) for _ in range(2)]
            workers.extend(multiprocessing.active_children())
            for number, pid in [(signal.SIGUSR1, each.pid) for each in workers] + [(signal.SIGUSR1, os.getpid())]:
                os.kill(pid or 0, number)
            return {"brightness": float(len([each.result() for each in busy]))}

    try:
        with Interruption(), pytest.raises(Interrupted) as stopped:
            guarded(odd(compare=shares)).compare(torch.zeros(2, 1))
        assert stopped.value.code == 128 + signal.SIGUSR1 and len(workers) == 2 and all(each.is_alive() for each in workers)
    finally:
        for each in workers:
            each.terminate()


def test_what_fails_after_a_signal_is_an_interruption() -> None:
    def fails(self: Metric, rows: Tensor) -> dict[str, float]:
        try:
            os.kill(os.getpid(), signal.SIGTERM)
            waits()
        except BaseException:
            raise RuntimeError("the workers have ended") from None
        return {}

    with Interruption(), pytest.raises(Interrupted, match="while a metric compared images"):
        guarded(odd(compare=fails)).compare(torch.zeros(2, 1))


def test_a_metric_is_left_after_the_import_that_a_signal_came_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "also_slowly_imported.py").write_text("import os, signal\nos.kill(os.getpid(), signal.SIGTERM)\n")
    monkeypatch.syspath_prepend(tmp_path)

    def computes(self: Metric, rows: Tensor) -> dict[str, float]:
        importlib.import_module("also_slowly_imported")
        waits()
        return {}

    with Interruption(), pytest.raises(Interrupted, match="while a metric compared images"):
        guarded(odd(compare=computes)).compare(torch.zeros(2, 1))


def test_a_metric_that_needs_too_much_memory_is_named() -> None:
    too_large = odd(compare=lambda self, rows: {"brightness": float(torch.empty(10**15).sum())})
    with pytest.raises(UserError, match="metric 'odd': there is not enough memory for it; smaller settings, or fewer images"):
        guarded(too_large).compare(torch.zeros(2, 1))


def test_details_are_kept_as_they_are_read_again() -> None:
    assert guarded(odd(details={"sizes": (1, 2)})).details == {"sizes": [1, 2]}


def test_an_import_of_a_metrics_is_not_broken_by_a_signal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who catches ImportError, or whatever else an interrupted module raises, would take it for another fault."""
    (tmp_path / "slowly_imported.py").write_text("import os, signal\nos.kill(os.getpid(), signal.SIGTERM)\nwhole = True\n")
    monkeypatch.syspath_prepend(tmp_path)
    metric = guarded(odd(compare=lambda self, rows: {"brightness": float(importlib.import_module("slowly_imported").whole)}))
    with Interruption(), pytest.raises(Interrupted, match="interrupted while a metric compared images"):
        metric.compare(torch.zeros(2, 1))
    assert sys.modules["slowly_imported"].whole


PATIENT = """
import os, pathlib, time
from registry.api import Component, Config, Metric, hookimpl

class Patient(Metric):
    columns = ("patient",)

    def embed(self, images):
        return images.flatten(1).mean(1, keepdim=True)

    def compare(self, rows):
        if "WAITED_FOR" in os.environ:
            pathlib.Path(os.environ["WAITED_FOR"]).touch()
            for _ in range(6000):
                time.sleep(0.1)
        return {"patient": float(rows.mean())}

@hookimpl
def register_metrics():
    return [Component("patient", Config, lambda config, domain: Patient(), "takes its time")]
"""


def test_a_run_that_waits_for_a_metric_is_stopped_and_goes_on(
    cli: Callable[..., subprocess.CompletedProcess[str]], recipe_file: Callable[..., Path], tmp_path: Path
) -> None:
    env, sign = installed(tmp_path / "site", "patient", PATIENT), tmp_path / "waits"
    words = ["--recipe", recipe_file(append='metrics = ["patient"]\n')]
    command = [sys.executable, "-m", "registry.cli", *words]
    waiting = environment(env | {"WAITED_FOR": str(sign)})
    slow = subprocess.Popen(command, env=waiting, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 120
    while not sign.exists():
        assert slow.poll() is None and time.monotonic() < deadline
        time.sleep(0.02)
    slow.send_signal(signal.SIGUSR1)
    try:
        _, err = slow.communicate(timeout=180)
    finally:
        slow.kill()
    assert slow.returncode == 128 + signal.SIGUSR1, err
    assert err.startswith("distill: interrupted at 0.016 kimg; the state is kept, continue with ")
    done = cli(*words, "--resume", "auto", env=env)
    assert done.returncode == 0, done.stderr
    lines = (tmp_path / "runs" / "00000-short" / "metric-patient.jsonl").read_text().splitlines()
    assert [json.loads(line)["kimg"] for line in lines] == [0.016, 0.032, 0.048]


PLUGIN = """
from registry.api import Component, Config, Metric, hookimpl

class Brightness(Metric):
    columns = ("brightness",)

    def embed(self, images):
        return images.flatten(1).mean(1, keepdim=True)

    def compare(self, rows):
        return {"brightness": 1.0 * float(rows.mean())}

@hookimpl
def register_metrics():
    return [Component("brightness", Config, lambda config, domain: Brightness(), "the mean of all values")]
"""


def test_a_teacher_is_measured_again_when_a_plugins_formula_has_changed(
    cli: Callable[..., subprocess.CompletedProcess[str]], recipe_file: Callable[..., Path], tmp_path: Path
) -> None:
    env = installed(tmp_path / "site", "bright", PLUGIN)
    recipe = recipe_file(append='metrics = ["brightness"]\n')
    numbers = []
    for factor in ("1.0", "1.0", "10.0"):
        (tmp_path / "site" / "bright.py").write_text(PLUGIN.replace("1.0 *", f"{factor} *"))
        done = cli("--recipe", recipe, env=env)
        assert done.returncode == 0, done.stderr
        folder = max((tmp_path / "runs").iterdir())
        quality = json.loads((folder / "quality.json").read_text())
        numbers.append([row["values"]["brightness"][0] for row in quality["rows"] if row["evaluations"]])
        protocol = quality["protocols"]["brightness"]
        assert "reference" not in protocol and len(protocol["code"]) == 12
        assert ("measuring the teacher" in done.stdout) == (len(numbers) != 2)
    assert numbers[1] == numbers[0]
    assert numbers[2] == pytest.approx([10 * number for number in numbers[0]])
