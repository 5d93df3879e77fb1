"""Training states: everything that training changes, as plain tensors. Saving them, and restoring exactly."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from registry.core import distributed
from registry.core.errors import UserError
from registry.core.sharding import gathered, outline
from registry.core.surroundings import random_states, restore_random_states
from registry.core.text import shown, text_of
from registry.files.bounds import STATE
from registry.files.formats import blueprint
from registry.files.plain import load, save
from registry.recipe.resolved import without_unlearned
from registry.recipe.tables import MOST_KIMG, PretrainConfig, TrainConfig, lengths
from registry.runs.background import Background, in_main_memory
from registry.train.step import Learner


class Stateful(Protocol):
    """Anything that can be saved and restored: a learner with its optimiser, an average."""

    def state_dict(self) -> dict[str, Any]: ...
    def load_state_dict(self, state: Any) -> None: ...


def save_state(
    path: Path,
    parts: Mapping[str, Stateful],
    nimg: int,
    recipe: Mapping[str, Any],
    facts: Mapping[str, Any] | None = None,
    seconds: float = 0.0,
    snapshot_due: bool = False,
    rollbacks: int = 0,
    threads: int | None = None,
    background: Background | None = None,
    written: Callable[[], object] = lambda: None,
) -> None:
    """Save the parts, the number of images, the seconds of training, and the random states of all processes (rank 0 writes).

    `snapshot_due`: at this number of images there is a snapshot, which comes after the state. `rollbacks`: how often the run went
    back to a state.
    `threads`: how many the run has chosen to compute with.
    `facts` are what is to be known of the networks besides the recipe, so that a state can be sampled like a snapshot. The
    loop's draws need no state, since each image has a stream of its own; dropout uses torch's global one.
    With `background`, rank 0 makes a copy, and writes it there while the caller goes on. `written` is called when it is written.
    Raises UserError; in the background, it is raised there.
    """
    rng = distributed.gather(random_states())
    learners = {name: part for name, part in parts.items() if isinstance(part, Learner)}
    networks = {name: blueprint(outline(learner.net)) for name, learner in learners.items()}
    split = any(outline(learner.net) is not learner.net for learner in learners.values())
    states = gathered({name: part.state_dict() for name, part in parts.items()}) if split else None

    def content() -> dict[str, Any]:
        return {
            "parts": states or {name: part.state_dict() for name, part in parts.items()}, "networks": networks,
            "nimg": nimg, "seconds": seconds, "snapshot_due": snapshot_due, "rollbacks": rollbacks, "rng": rng,
            "threads": threads,
            "recipe": dict(recipe), "about": dict(facts or {}),
        }  # fmt: skip

    def write(content: Mapping[str, Any]) -> None:
        save(path, STATE, content)
        written()

    if background is None:
        distributed.by_rank0(lambda: write(content()))
    elif distributed.rank() == 0:
        background.begin(partial(write, content() if split else in_main_memory(content())))


def read_state(path: Path, parts: Mapping[str, Stateful]) -> dict[str, Any]:
    """What `save_state` saved, if it is of the same parts. Raises UserError."""
    content = load(path, STATE)
    if set(content["parts"]) != set(parts):
        raise UserError(f"{path}: is of another recipe: it holds {', '.join(content['parts'])}, expected {', '.join(parts)}")
    return content


def restore_state(path: Path, content: Mapping[str, Any], parts: Mapping[str, Stateful]) -> int:
    """Bring the parts and the random states to where they were; returns the number of images. Raises UserError."""
    for name, part in parts.items():
        try:
            part.load_state_dict(content["parts"][name])
        except (RuntimeError, ValueError, LookupError, AssertionError, TypeError, AttributeError) as error:
            reason = " ".join(str(error).split())[:200]
            raise UserError(f"{path}: its {name} does not fit this recipe's networks ({reason})") from None
    states = content["rng"]
    if len(states) == distributed.world_size():
        try:
            restore_random_states(states[distributed.rank()])
        except (TypeError, RuntimeError, KeyError, IndexError) as error:
            raise UserError(f"{path}: its random states are none of torch's ({shown(error, 100)})") from None
    return int(content["nimg"])


NO_EFFECT = {("generator", "init"): " (which has no effect on a run that goes on)"}
"""Settings that count at the start of a run only."""


def differences(old: Mapping[str, Any], new: Mapping[str, Any], ignore: tuple[str, ...] = ("swap",)) -> list[str]:
    """What a resumed run does differently from the one that wrote its state."""
    found = []
    for table in sorted({*old, *new} - set(ignore)):
        a, b = old.get(table, {}), new.get(table, {})
        # A setting that is off is the same as one that an older version did not have.
        changed = [key for key in sorted({*a, *b}) if (a.get(key) or None) != (b.get(key) or None)]
        found += [f"[{table}] {key}: {a.get(key)} -> {b.get(key)}{NO_EFFECT.get((table, key), '')}" for key in changed]
    return found


def identity(tables: Mapping[str, Any]) -> dict[str, Any]:
    """What makes two runs the same run: the components, and what they are made from. A state can only be resumed by its own run."""
    keys = ("use", "source", "D", "sigma_init", "arch", "labels", "steps", "schedule", "kimg", "student_kimg")
    kinds = ("teacher", "noise", "loss", "data", "generator", "warmup", "network")
    return {kind: {key: tables[kind][key] for key in keys if key in tables[kind]} for kind in kinds if kind in tables}


def check_same_sources(state: Path, old: Mapping[str, Any], new: Mapping[str, Any]) -> None:
    """Check that the teacher and the real images are those that the run began with, if the state says which. Raises UserError."""
    for key in ("D", "sigma_data"):
        before, now = (facts.get(key) for facts in (old, new))
        if before is not None and now is not None and before != now:
            teacher = new.get("teacher", "the teacher")
            raise UserError(f"{state}: {teacher} has {key} = {now:g}, and had {before:g} when this run began; put the old one back")
    what = {
        "teacher_weights": f"{new.get('teacher', 'the teacher')} has other weights",
        "data_hash": f"{new.get('data', 'the data set')} holds other images, classes or another order",
    }
    for key, sentence in what.items():
        before, now = (facts.get(key) for facts in (old, new))
        if before and now and before != now:
            raise UserError(
                f"{state}: {sentence} than when this run began, and a run cannot go on with others; "
                "put the old ones back, or begin a new run"
            )


FREE = {"dropout", "use_fp16"}
"""Arguments of a network that may be others when a run goes on: they say how it learns, not what its weights mean."""


def changes(networks: Mapping[str, Any], parts: Mapping[str, Stateful]) -> Iterator[tuple[str, str, Any, Any]]:
    """How the networks of a state were built otherwise than those of this run: network, class or argument, before, now."""
    for name, learner in parts.items():
        if isinstance(learner, Learner) and name in networks:
            net, old = outline(learner.net), networks[name]
            own, usual = blueprint(net), defaults(type(net))
            now, before = ({"class": found["class"]} | usual | found["kwargs"] for found in (own, old))
            yield from (
                (name, key, before[key], now[key]) for key in sorted({*now} & {*before}) if not same_argument(before[key], now[key])
            )


def defaults(cls: type) -> dict[str, Any]:
    """What the arguments of a class are if they are not given; nothing if the class does not say."""
    try:
        return {key: p.default for key, p in inspect.signature(cls).parameters.items() if p.default is not p.empty}
    except (TypeError, ValueError):
        return {}


def same_argument(a: Any, b: Any) -> bool:
    """Whether two arguments are the same: lists and tuples are, since some formats of files know no other, and so are numbers."""
    if isinstance(a, list | tuple) and isinstance(b, list | tuple):
        return len(a) == len(b) and all(map(same_argument, a, b))
    return (isinstance(a, int | float) and isinstance(b, int | float) and a == b) or text_of(a) == text_of(b)


def check_same_networks(state: Path, networks: Mapping[str, Any], parts: Mapping[str, Stateful]) -> None:
    """Check that a state's networks were built as this run's are; equal weights do not mean that. Raises UserError."""
    for name, key, before, now in changes(networks, parts):
        if key not in FREE:
            what = f"the {name} is a network with {key} = {shown(now, 60)} here, and had {shown(before, 60)} when this run began"
            raise UserError(f"{state}: {what}; put the old one back, or begin a new run")


def other_networks(networks: Mapping[str, Any], parts: Mapping[str, Stateful]) -> list[str]:
    """What else is different about them, in words."""
    return [f"the {name}'s {key}: {before} -> {now}" for name, key, before, now in changes(networks, parts)]


def learned_otherwise(before: Mapping[str, Any], now: Mapping[str, Any], nimg: int) -> list[str]:
    """What a run that goes on by other tables learns otherwise from so many images on, and not only for longer."""
    over = max(warm_up(before), warm_up(now)) <= nimg
    old, new = what_is_learned(before, nimg, over), what_is_learned(now, nimg, over)
    fields = (TrainConfig if "glr" in new["train"] else PretrainConfig).model_fields
    for key in new["train"].keys() - old["train"].keys():
        if key in fields and new["train"][key] == fields[key].default:  # an older version did not know it, and did just that
            del new["train"][key]
    return differences(old, new, ignore=("swap", "log", "eval", "metrics"))


def what_is_learned(tables: Mapping[str, Any], nimg: int, over: bool) -> dict[str, dict[str, Any]]:
    """A recipe without the settings that teach nothing, or nothing more from so many images on. How long the run is counts where
    rates fall towards its end."""
    found = without_unlearned(tables)
    train = found.setdefault("train", {})
    if not train.get("lr_decay"):
        train.pop("duration_kimg", None)
    if "lr_rampup_kimg" in train:
        train["lr_rampup_kimg"] = max(number(train, "lr_rampup_kimg"), nimg / 1000)
    if nimg:
        found.get("generator", {}).pop("init", None)
    if over:
        found.pop("warmup", None)
    return found


def some(tables: Mapping[str, Any], settings: Mapping[str, Sequence[str]]) -> dict[str, dict[str, Any]]:
    """Some settings, by table, of a recipe that nobody has checked."""
    found = {name: tables[name] if isinstance(tables.get(name), Mapping) else {} for name in settings}
    return {name: {key: found[name].get(key) for key in keys} for name, keys in settings.items()}


def warm_up(tables: Mapping[str, Any]) -> int:
    """Images of the warm-up of a recipe that nobody has checked."""
    warmup, train = (table if isinstance(table := tables.get(name), Mapping) else {} for name in ("warmup", "train"))
    return sum(lengths(number(warmup, "kimg"), number(warmup, "student_kimg"), 0, max(1, int(number(train, "batch")))))


def all_images(tables: Mapping[str, Any]) -> int:
    """Images of the whole run by a recipe that nobody has checked, in whole batches."""
    train = tables["train"] if isinstance(tables.get("train"), Mapping) else {}
    return warm_up(tables) + lengths(0, 0, number(train, "duration_kimg"), max(1, int(number(train, "batch"))))[2]


def number(table: Mapping[str, Any], key: str) -> float:
    """A setting in a recipe that nobody has checked; 0 if it is none."""
    value = table.get(key)
    return value if isinstance(value, int | float) and 0 <= value <= MOST_KIMG else 0


def check_same_run(state: Path, old: Mapping[str, Any], new: Mapping[str, Any]) -> None:
    """Check that a state belongs to this run. Raises UserError."""
    if identity(old) != identity(new):
        other = "; ".join(differences(identity(old), identity(new)))
        raise UserError(f"{state}: belongs to another run ({other}); to begin one of this recipe, do not resume")
