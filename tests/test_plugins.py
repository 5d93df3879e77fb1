"""Plugins in real packages, loaded by a real process: good, broken, misspelt, duplicate, blocked."""

from __future__ import annotations

import inspect
import signal
import subprocess
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

import ipfm_plugin
import registry.builtin
from registry.core.errors import UserError
from registry.core.settings import Config
from registry.plugins import hooks
from registry.plugins.component import Component, Published
from registry.plugins.hooks import HOOKS
from registry.plugins.loading import Plugins, Registered, components
from tests.conftest import error_line, installed

Cli = Callable[..., subprocess.CompletedProcess[str]]

GOOD = """
from registry.api import Component, Config, hookimpl

class Settings(Config):
    beta: float = 0.5

@hookimpl
def register_losses():
    return [Component("{name}", Settings, "nowhere:build", "a third party's loss")]
"""


@pytest.fixture
def package(tmp_path: Path) -> Callable[..., dict[str, str]]:
    """Installs a module as a package with an entry point, and gives the environment that has it on its path."""
    return partial(installed, tmp_path / "site")


BROKEN = {
    "does not import": ("import torchvisionn_of_nowhere", "ModuleNotFoundError: No module named 'torchvisionn_of_nowhere'"),
    "syntax": ("def f(:", "SyntaxError"),
    "exits": ("raise SystemExit(3)", "SystemExit"),
    "is skipped": ("import pytest; pytest.importorskip('a_package_of_nowhere')", "Skipped: could not import 'a_package_of_nowhere'"),
    "is cancelled": ("import asyncio; raise asyncio.CancelledError", "CancelledError"),
    "no text": ("class E(Exception):\n def __str__(self): raise ValueError\nraise E", "E: E without a text"),
    "exits as it is told": ("class E(Exception):\n def __str__(self): raise SystemExit(0)\nraise E", "E: E without a text"),
    "steers": ("raise ValueError('\\x1b[31m' + 'long ' * 10**6)", "ValueError: ?[31mlong long"),
    "misspelt hook": (GOOD.replace("register_losses", "register_loses"), "unknown hook 'register_loses' (did you mean 'register_losses'?)"),
    "wrong arguments": (GOOD.replace("register_losses()", "register_losses(x)"), "Argument(s) {'x'} are declared in the hookimpl but can not be"),
    "no components": (GOOD.replace("return [Component(", "return [(") , "register_losses must give registry.api.Component objects"),
    "not a list": (GOOD.replace('return [Component("{name}", Settings, "nowhere:build", "a third party\'s loss")]', "return 3"), "TypeError"),
    "bad config": (GOOD.replace("(Config)", ""), "config must be a subclass of registry.api.Config"),
    "bad name": (GOOD.replace("{name}", "a b"), "a component's name is letters, digits"),
}  # fmt: skip


@pytest.mark.parametrize("kind", BROKEN)
def test_a_broken_plugin_is_named_and_breaks_nothing(kind: str, package: Callable[..., dict[str, str]], cli: Cli) -> None:
    source, reason = BROKEN[kind]
    env = package("broken", source.replace("{name}", "broken_loss"))
    listed = cli("plugins", env=env)
    assert listed.returncode == 0, listed.stderr
    assert "plugin broken 1.2.3 not loaded: " in listed.stdout
    assert reason in listed.stdout.replace("\n", " ")
    for name in ("ipfm", "sid", "electrostatic", "gaussian", "pfgmpp", "edm", "frechet"):
        assert name in listed.stdout
    assert cli("check", "quickstart", env=env).returncode == 0
    if kind == "does not import":  # a recipe that needs it gets the reason why it is missing
        message = error_line(cli("--recipe", "quickstart", "--set", "loss.use=broken_loss", "--dry-run", env=env))
        assert "no loss is called 'broken_loss'" in message
        assert "plugin 'broken' failed to load: ModuleNotFoundError" in message


def test_a_third_partys_component_is_found_checked_and_listed(package: Callable[..., dict[str, str]], cli: Cli) -> None:
    env = package("stranger", GOOD.replace("{name}", "kl"))
    assert any("kl" in line and "stranger" in line and "1.2.3" in line for line in cli("plugins", env=env).stdout.splitlines())
    assert (
        cli("check", "quickstart", "--set", "loss.use=kl", "--set", "loss.beta=0.25", env=env).returncode == 1
    )  # alpha is not one of its keys
    dry = cli("--recipe", "quickstart", "--loss", "kl", "--dry-run", env=env)
    assert dry.returncode == 0, dry.stderr
    assert "beta = 0.5" in dry.stdout
    assert "loss 'kl' of plugin stranger" in dry.stdout


def test_two_owners_of_a_name_matter_only_when_it_is_used(package: Callable[..., dict[str, str]], cli: Cli) -> None:
    env = package("rival", GOOD.replace("{name}", "sid"))
    assert cli("check", "quickstart", env=env).returncode == 0
    assert "two owners" in cli("plugins", env=env).stdout
    message = error_line(cli("--recipe", "quickstart", "--loss", "sid", "--dry-run", env=env))
    assert "loss 'sid' is registered by both builtin 0.1.0 and rival 1.2.3" in message
    assert "DISTILL_BLOCK_PLUGINS=rival" in message
    assert cli("check", "quickstart", "--loss", "sid", env=env | {"DISTILL_BLOCK_PLUGINS": "rival"}).returncode == 0


def test_two_plugins_of_one_name(package: Callable[..., dict[str, str]], cli: Cli) -> None:
    package("one", GOOD.replace("{name}", "loss_one"), plugin="twin")
    env = package("two", GOOD.replace("{name}", "loss_two"), plugin="twin")
    listed = cli("plugins", env=env).stdout
    assert "loss_one" in listed
    assert "loss_two" not in listed
    assert "plugin twin 1.2.3 not loaded: package two names its plugin 'twin', as does package one" in listed.replace("\n", " ")


SIGNALLED = """
import os, signal
from registry.api import hookimpl

@hookimpl
def register_losses():
    os.kill(os.getpid(), signal.{name})
    return []
"""


@pytest.mark.parametrize("name", ["SIGTERM", "SIGHUP", "SIGUSR1", "SIGINT"])
def test_a_signal_while_a_plugin_is_loaded_is_no_fault_of_the_plugin(
    name: str, package: Callable[..., dict[str, str]], cli: Cli
) -> None:
    """It was set aside, and the command went on without it."""
    done = cli("plugins", env=package("signalled", SIGNALLED.format(name=name)))
    assert error_line(done, 128 + signal.Signals[name]) == "distill: interrupted"


def test_a_blocked_plugin_is_not_loaded(cli: Cli) -> None:
    env = {"DISTILL_BLOCK_PLUGINS": "ipfm"}
    assert "plugin ipfm 0.1.0 not loaded: blocked by DISTILL_BLOCK_PLUGINS" in cli("plugins", env=env).stdout
    message = cli("check", "quickstart", env=env).stderr
    assert "no teacher is called 'pfgmpp'" in message
    assert "blocked by DISTILL_BLOCK_PLUGINS" in message


def test_our_plugins_use_the_hooks_they_need() -> None:
    assert {kind for kind, _ in components(registry.builtin, "builtin")} == set(HOOKS)
    assert {kind for kind, _ in components(ipfm_plugin, "ipfm")} == {"teacher", "noise", "loss", "published"}


def test_every_hook_is_documented() -> None:
    for hook, _ in HOOKS.values():
        assert inspect.getdoc(getattr(hooks, hook)), hook
        assert hook in Path(__file__).parents[1].joinpath("README.md").read_text(), f"{hook} is not in the README"


def test_every_component_can_be_built_by_its_name(plugins: Plugins) -> None:
    """Every `build` given as text names a function."""
    import importlib

    for entry in plugins.registered:
        if not isinstance(entry.component, Published):
            assert isinstance(entry.component.build, str)
            module, _, function = entry.component.build.partition(":")
            assert callable(getattr(importlib.import_module(module), function))


def test_find_names_all_owners() -> None:
    one = Component("x", Config, "a:b", "")
    twice = Plugins([Registered("loss", one, "left", "1"), Registered("loss", one, "right", "2")])
    with pytest.raises(UserError, match="registered by both left 1 and right 2"):
        twice.find("loss", "x")
    assert twice.names("loss") == ["x"]


FAULTY = """
import math
from registry.api import Component, Config, hookimpl

class Settings(Config):
    how: str = "ValueError('in the middle')"

class Loss:
    def __init__(self, how):
        self.how = how
    def student(self, *args):
        raise eval(self.how)
    def generator(self, *args):
        raise NotImplementedError

@hookimpl
def register_losses():
    return [Component("faulty", Settings, lambda config, domain: Loss(config.how), "a loss with a fault")]
"""


@pytest.mark.parametrize(
    ("how", "told"),
    [
        ("ValueError('in the middle')", "ValueError: in the middle"),
        ("SystemExit(0)", "SystemExit: 0"),
        ("BaseException()", "BaseException"),
        ("OSError(28, 'No space left on device')", "OSError: [Errno 28] No space left on device"),
        ("type('Odd', (Exception,), {'__str__': lambda self: 1 / 0})()", "Odd"),
    ],
)
def test_a_fault_in_a_plugin_is_the_plugins(how: str, told: str, package: Any, cli: Any, recipe_file: Any) -> None:
    env = package("faulty_package", FAULTY)
    done = cli("--recipe", recipe_file(("ipfm", "faulty")), "--set", f'loss.how="{how}"', env=env)
    line = error_line(done)
    assert line.startswith("distill: plugin 'faulty_package': " + told + " (")
    assert line.endswith("faulty_package.py, line 12)")
