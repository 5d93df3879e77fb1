"""Bounds on what a file of ours may ask for: the types of its entries, and the size of the network that it describes."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Annotated, Any

import torch
from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, FailFast, Field, TypeAdapter, ValidationError
from torch import Tensor
from torch.overrides import TorchFunctionMode

from registry.core.errors import UserError
from registry.core.text import shown
from registry.files.json_files import MOST_CHANGES

UNLIKE = "is no file as distill writes them"
Count = Annotated[int, Field(ge=0, le=2**53)]
Size = Annotated[int, Field(ge=1, le=65_536)]
Level = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Texts = Annotated[str, Field(max_length=10_000)]


def without_tensors(tables: Any) -> Any:
    """The tables of a recipe, which hold plain values alone. Raises ValueError."""
    inner = list(tables.values()) if isinstance(tables, dict) else tables if isinstance(tables, list | tuple) else []
    if isinstance(tables, Tensor):
        raise ValueError("a recipe holds no tensors")
    for value in inner:
        without_tensors(value)
    return tables


def short(levels: Any) -> Any:
    """Noise levels, if they are not too many to look at each. Raises ValueError."""
    if isinstance(levels, list | tuple) and len(levels) > 1000:
        raise ValueError("has more than 1,000 noise levels")
    return levels


def of_three(shape: Any) -> Any:
    """A shape, if it has three sizes. Raises ValueError."""
    if isinstance(shape, list | tuple) and len(shape) != 3:
        raise ValueError("has not three sizes")
    return shape


def is_shape(sizes: Any) -> bool:
    """Whether these are the sizes of a tensor."""
    return isinstance(sizes, list) and len(sizes) <= MOST_DIMENSIONS and all(type(n) is int and 0 <= n < 2**63 for n in sizes)


def by_name(what: str, is_one: Callable[[Any], bool], most: int) -> Callable[[Any], Any]:
    """Checks that there are so many values by name, and of one kind. It stops at the first that is not: pydantic would tell of
    each, and takes kilobytes for that."""

    def check(values: Any) -> Any:
        if not isinstance(values, dict) or not all(isinstance(name, str) for name in values):
            raise ValueError(f"holds no {what} by name")
        if len(values) > most:
            raise ValueError(f"holds more than {most:,} {what}")
        if (wrong := next((name for name, value in values.items() if not is_one(value)), None)) is not None:
            raise ValueError(f"{shown(wrong, 60)} is none of the {what}")
        return values

    return check


MOST_DIMENSIONS, MOST_TENSORS, MOST_TABLES = 16, 100_000, 1000
Tensors = Annotated[dict[str, Any], BeforeValidator(by_name("tensors", lambda value: isinstance(value, Tensor), MOST_TENSORS))]
TensorsOrShapes = Annotated[
    dict[str, Any], BeforeValidator(by_name("tensors", lambda value: isinstance(value, Tensor) or is_shape(value), MOST_TENSORS))
]
ByName = BeforeValidator(by_name("entries", lambda value: True, MOST_TABLES))
Table = Annotated[dict[str, Any], ByName]
Tables = Annotated[dict[str, Table], ByName, AfterValidator(without_tensors)]


class Entries(BaseModel):
    """Entries of a file; further ones are kept as they are."""

    model_config = ConfigDict(strict=True, extra="allow", arbitrary_types_allowed=True)


class About(Entries):
    """What a file says about its network."""

    D: Annotated[float, Field(gt=0)] | None = None
    sigma_data: Level | None = None
    label_dim: Annotated[int, Field(ge=0, le=10**6)] | None = None
    image_shape: Annotated[tuple[Size, Size, Size] | list[Size] | None, BeforeValidator(of_three)] = None
    sigma_init: Level | None = None
    sigmas: Annotated[list[Level] | tuple[Level, ...] | None, BeforeValidator(short)] = None
    steps: Annotated[int, Field(ge=1, le=1000)] | None = None
    teacher: Texts | None = None
    teacher_weights: Texts | None = None
    data: Texts | None = None
    data_hash: Texts | None = None
    recipe: Tables | None = None
    nimg: Count | None = None
    assumed: list[Any] | None = Field(None, max_length=10)
    changed: Annotated[list[Texts], FailFast()] = Field([], max_length=MOST_CHANGES)


class Network(Entries):
    """What a network is built from."""

    name: Annotated[str, Field(max_length=200, alias="class")]
    arguments: Annotated[Table, Field(alias="kwargs")]


class Arguments(Entries):
    """What a network of EDM's is built from, as far as nothing else looks at it."""

    sigma_data: Annotated[float, Field(gt=0, le=1e6)] = 0.5
    dropout: Annotated[float, Field(ge=0, le=1)] = 0.0
    sigma_min: Annotated[float, Field(ge=0, le=1e6)] = 0.0
    sigma_max: Annotated[float, Field(gt=0)] = math.inf
    D: Annotated[float, Field(gt=0)] | None = None
    resample_filter: list[Any] | tuple[Any, ...] = Field((1, 1), min_length=1, max_length=32)


class NetworkFile(Entries):
    """A file with one network. Where only shapes are read, they stand for the tensors."""

    network: Network
    weights: TensorsOrShapes
    about: About


class Part(Entries):
    """What a training state holds of a learner, of an optimiser, or of an average (which is tensors by name)."""

    net: Tensors | None = None
    companion: Tensors | None = None
    optimiser: Table | None = None
    lost: Annotated[Count, Field(alias="lost steps")] = 0
    """In a row, at the end. (No weight has a space in its name.)"""


class StateFile(Entries):
    """A training state."""

    parts: Annotated[dict[str, Part], ByName]
    networks: Annotated[dict[str, Network], ByName]
    nimg: Count
    rng: Annotated[list[Table], FailFast()]
    recipe: Tables
    about: About = About()
    seconds: Annotated[float, Field(ge=0)] = 0.0
    rollbacks: Count = 0
    snapshot_due: bool = False
    threads: Annotated[int, Field(ge=1, le=1024)] | None = None


class PairsFile(Entries):
    """The pairs of a warm-up."""

    starts: Tensor
    images: Tensor
    labels: Tensor | None
    provenance: Annotated[Table, AfterValidator(without_tensors)]


STATE, PAIRS = "training state", "pairs"
SCHEMAS: dict[str, type[Entries]] = {STATE: StateFile, PAIRS: PairsFile}
"""Of the kinds of our .pt files that do not hold one network."""


def check_arguments(arguments: Mapping[str, Any], source: object) -> None:
    """Check the arguments of a network of EDM's: its levels, and that no number is beyond all bounds. Raises UserError."""
    check_entries(dict(arguments), Arguments, source)
    for name, value in arguments.items():
        values = value if isinstance(value, list | tuple) else [value]
        if any(isinstance(v, int) and abs(v) > 2**53 for v in values):
            raise UserError(f"{source}: its network cannot be built: its {shown(name, 60)} is too large a number")


def check_entries(content: Any, schema: type[Entries], source: object) -> None:
    """Check the entries of a file against a schema. Raises UserError with the first that is wrong."""
    try:
        TypeAdapter(schema).validate_python(content)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(shown(part, 60) for part in first["loc"]) or "its content"
        raise UserError(f"{source}: {UNLIKE}: {where}: {shown(first['msg'].removeprefix('Value error, '))}") from None
    except RecursionError:
        raise UserError(f"{source}: {UNLIKE}: it is nested too deeply") from None


MOST_VALUES, DEEPEST = 10**6, 100
"""In the lists and tables of a file, those counted again that are in several; of lists and tables in each other."""


def check_values(content: Any, source: object) -> None:
    """Check that a file holds plain values and tensors alone, none of them beyond all bounds, and how large its lists and tables
    are when they are written out: those that hold others twice, which hold others twice again, are few bytes in a file, and would
    take forever to print or compare. No method of theirs is called that a file could have hidden. Raises UserError."""
    sizes, begun, path = dict[int, int](), set[int](), [(content, 0, False)]
    while path:
        value, depth, is_seen_through = path.pop()
        inner = [*dict.keys(value), *dict.values(value)] if isinstance(value, dict) else list(value)
        if is_seen_through:
            sizes[id(value)] = size = 1 + sum(sizes.get(id(i), 1 + len(i) // 10 if type(i) is str else 1) for i in inner)
            if size > MOST_VALUES:
                raise UserError(f"{source}: {UNLIKE}: its lists and tables hold each other too many times, or very long texts")
        elif id(value) not in sizes:
            if id(value) in begun or depth > DEEPEST:
                raise UserError(f"{source}: {UNLIKE}: it is nested too deeply")
            begun.add(id(value))
            path.append((value, depth, True))
            for i in inner:
                if isinstance(i, dict | list | tuple):
                    path.append((i, depth + 1, False))
                elif not (i is None or isinstance(i, Tensor) or type(i) in (bool, int, float, str)):
                    raise UserError(f"{source}: {UNLIKE}: it holds a {type(i).__name__}")
                elif type(i) is int and abs(i) > 2**64:
                    raise UserError(f"{source}: {UNLIKE}: it holds a number beyond all bounds")


FACTORIES = ("rand", "randn", "zeros", "ones", "empty", "full", "eye", "arange", "linspace")
"""Functions of torch that make a tensor of a size that they are told."""


class Bounded(TorchFunctionMode):
    """While this is entered, the tensors that are made can be neither much larger than those of a file, nor many more.

    So a small file cannot describe a network that fills the memory before it is found not to fit the file's tensors. Raises
    ValueError.
    """

    def __init__(self, weights: Mapping[str, Tensor]) -> None:
        super().__init__()
        self.bytes = 4 * sum(w.nbytes for w in weights.values()) + 2**22  # initial weights may be drawn, and then copied
        self.calls = 50 * len(weights) + 1000

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func.__name__ in FACTORIES:
            self.calls -= 1
            wanted = kwargs.get("size", args[0] if args and isinstance(args[0], list | tuple | torch.Size) else args)
            sizes = [n for n in (wanted if isinstance(wanted, list | tuple | torch.Size) else [wanted]) if isinstance(n, int)]
            size = (kwargs.get("dtype") or torch.get_default_dtype()).itemsize
            self.bytes -= 0 if torch.device(kwargs.get("device") or "cpu").type == "meta" else size * math.prod(map(abs, sizes))
            if self.bytes < 0:
                raise ValueError(f"it has a tensor of {' × '.join(map(str, sizes))} values, far more than the file holds")
            if self.calls < 0:
                raise ValueError("it has far more tensors than the file holds")
        return func(*args, **kwargs)
