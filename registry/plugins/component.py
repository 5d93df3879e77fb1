"""What a plugin can register."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from registry.core.settings import Config


@dataclass(frozen=True)
class Component:
    """A teacher, noise, loss, metric or tracker that recipes can name: `use = "name"`.

    `config` validates the component's table. `build` makes the object: a function, or `"module:function"`, which is
    imported only when the component is built. Its arguments, by kind:

        teacher   build(config) -> Teacher
        noise     build(config, domain) -> Noise
        loss      build(config, domain) -> Loss
        metric    build(config, domain) -> Metric
        tracker   build(config) -> Tracker
    """

    name: str
    config: type[Config]
    build: str | Callable[..., Any]
    help: str

    def __post_init__(self) -> None:
        if not (self.name and self.name.replace("_", "").replace("-", "").isalnum()):
            raise ValueError(f"a component's name is letters, digits, '-' and '_', not {self.name!r}")
        if not (isinstance(self.config, type) and issubclass(self.config, Config)):
            raise TypeError(f"component {self.name!r}: config must be a subclass of registry.api.Config")

    def make(self, *args: Any) -> Any:
        """Call `build`, importing it first if it was given by name."""
        return (named(self.build) if isinstance(self.build, str) else self.build)(*args)

    def serves(self, D: float) -> bool:
        """Whether this component can serve dimension D with its default settings; False if they do not suffice to tell."""
        try:
            return self.config.model_construct().misfit(D) is None
        except Exception:  # a stranger's code, and settings without a default are missing
            return False


@dataclass(frozen=True)
class Published:
    """A teacher that its authors have published, under a short name: `source = "edm:ffhq"`.

    With a `url` it is downloaded when a run starts. One that only a person can get has `by_hand`, a line that says how;
    `name` without what precedes the colon is then the name of its file or folder. `network` are the
    arguments that `build_network` makes its network from, all but D and seed, so that a run can be planned without the file.
    `license` is that of the weights, as a hub's identifier, e.g. cc-by-4.0.
    """

    name: str
    D: float
    url: str | None = None
    by_hand: str = ""
    network: Mapping[str, Any] | None = None
    license: str = "unknown"

    @property
    def help(self) -> str:
        return f"D = {self.D:g}, {'downloaded' if self.url else 'by hand'}"


@dataclass(frozen=True)
class NetworkClass:
    """A class of networks that files of ours may hold: they are rebuilt from their tensors and constructor's arguments.

    `build` is `"module:Class"`, and `name` the class's own. An instance has `init_kwargs`, plain values that the class takes.
    """

    name: str
    build: str
    help: str = ""

    def make(self, **kwargs: Any) -> Any:
        """The network, with whatever weights its constructor gives it."""
        return named(self.build)(**kwargs)


def named(path: str) -> Any:
    """What "module:name" names; imports the module."""
    module, _, name = path.partition(":")
    return getattr(importlib.import_module(module), name)
