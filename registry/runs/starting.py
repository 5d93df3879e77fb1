"""How a run starts: its device and processes, and its folder, which is new or that of the state it goes on from."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch

from registry.core import distributed
from registry.core.atomic import check_folder
from registry.core.errors import SettingError, UserError
from registry.core.joining import tell_launcher
from registry.core.text import shown
from registry.edm.sid_states import holds_modules
from registry.files.json_files import MOST_CHANGES, kept
from registry.files.json_lines import kimg_of, readable_lines
from registry.measure.saved import QUALITY
from registry.recipe.doubts import doubts
from registry.recipe.resolved import UNTRAINED, PretrainRecipe, Recipe, Tables, settings_of
from registry.recipe.tables import LogConfig, PretrainConfig, TrainConfig
from registry.runs.checkpoints import (
    all_images,
    check_same_networks,
    check_same_run,
    check_same_sources,
    differences,
    learned_otherwise,
    other_networks,
    read_state,
    restore_state,
    some,
    warm_up,
)
from registry.runs.folder import RunFolder
from registry.runs.foreign import adopt
from registry.runs.outputs import snapshot_name
from registry.runs.schedule import Schedule
from registry.runs.states import (
    LATER,
    Found,
    complete_tables,
    find_state,
    images_of,
    is_a_run,
    set_best_aside,
    set_later_aside,
    set_table_aside,
)
from registry.runs.training import Saved, Training, newest_state
from registry.show.journal import Journal
from registry.show.trackers import Trackers

TICKS = {"log": ("tick_kimg", "snapshot_ticks")}
"""When a run has ticks and snapshots."""
MEASURED = ("metrics", "reference", "snapshot_samples")
"""How snapshots are measured, beside the metrics' own settings."""


def prepare(recipe: Recipe | PretrainRecipe, resume: str | None) -> tuple[torch.device, Found]:
    """The device, and the state to resume from, if any, which rank 0 finds for all. Raises UserError."""
    with settings_of(recipe.log):
        check_folder(Path(recipe.log.outdir), "outdir")
    device = start_device(recipe.train)
    own = recipe.tables()
    distributed.agree(own | {"train": own["train"] | {"device": ""}})  # the one that may differ
    found = distributed.by_rank0(lambda: find_state(resume, Path(recipe.log.outdir), recipe.name, recipe.tables()))
    return device, found


def start_device(train: TrainConfig | PretrainConfig) -> torch.device:
    """Join the other processes, and check that the batch splits evenly over them. Raises SettingError."""
    with settings_of(train):
        device = distributed.start(train.device, train.timeout_minutes)
        if train.precision == "fp16" and device.type == "cpu":
            raise SettingError("precision", "computes on a GPU only; on the CPU write 'fp32' or 'bf16'", train.precision)
    share(train, distributed.world_size())
    return device


def share(train: TrainConfig | PretrainConfig, processes: int) -> tuple[int, int]:
    """Images of one process in an iteration, and at a time. Raises SettingError if the batch does not split evenly."""
    with settings_of(train):
        own, rest = divmod(train.batch, processes)
        if rest:
            raise SettingError("batch", f"must be divisible by the {processes} processes", train.batch)
        at_a_time = min(train.batch_gpu or own, own)
        if own % at_a_time:
            raise SettingError("batch_gpu", f"must divide batch/{processes} = {own}", train.batch_gpu)
    return own, at_a_time


def start_or_resume(
    recipe: Recipe | PretrainRecipe, run: Training, saved: Saved, resume: str | None, found: Found, journal: Journal
) -> RunFolder:
    """A new run folder, or the folder of the state to resume from, with the run restored from it. Raises UserError.

    From a state of SiD, a new folder, too: nothing is written into SiD's.
    """
    state, ours = found.state, None
    trackers = Trackers([(choice, choice.make()) for choice in recipe.trackers], journal)
    if state is None:
        with settings_of(recipe.log):
            folder = RunFolder.new(Path(recipe.log.outdir), recipe.name, journal)
        folder.sweep()
        if resume:
            journal.log(f"nothing to resume in {recipe.log.outdir}; starting anew")
    elif distributed.by_rank0(lambda: holds_modules(state)):
        folder = start_from_foreign(recipe, run, saved, state, journal)
    elif distributed.by_rank0(lambda: is_a_run(state.parent)) and LATER not in state.suffixes:
        folder, ours = RunFolder(state.parent, journal), state
    else:
        folder, ours = start_beside(recipe, saved, state, journal), state
    with released_if_it_fails(folder):
        if ours is not None:
            go_on_from(ours, folder, run, saved, resume)
        for remark in (*found.remarks, *(f"WARNING {doubt}" for doubt in doubts(recipe))):
            journal.log(remark)
        folder.write_recipe(saved.tables)
        folder.follow(trackers, saved.tables, run.nimg)
        if folder.writes:
            tell_launcher(folder.path)
    return folder


def start_beside(recipe: Recipe | PretrainRecipe, saved: Saved, state: Path, journal: Journal) -> RunFolder:
    """A new run folder for a run that goes on from a state in a folder that is no run's. Raises UserError before anything is
    written."""
    checked_state(state, saved)
    with settings_of(recipe.log):
        folder = RunFolder.new(Path(recipe.log.outdir), recipe.name, journal)
    why = "is of a branch that its run has left" if LATER in state.suffixes else "is in no run's folder"
    journal.log(f"{state} {why}; the run goes on in a new one")
    return folder


def go_on_from(state: Path, folder: RunFolder, run: Training, saved: Saved, resume: str | None) -> None:
    """Restore the run from a state in its folder, or from a newer one there, and set aside what comes later. Raises UserError."""
    begun, content = locked_state(folder, state, resume, saved)
    check_same_measurement(begun, content, run, saved.tables)
    run.nimg = restore_state(begun, content, saved.parts)
    run.rollbacks, saved.threads.chosen = content.get("rollbacks", 0), content.get("threads")
    saved.clock.seconds = content.get("seconds", 0.0)  # 0: states of version 0.1 do not say
    folder.sweep()
    others = other_networks(content["networks"], saved.parts)
    changed = [*differences(content["recipe"], saved.tables), *others]
    otherwise = [*learned_otherwise(content["recipe"], saved.tables, run.nimg), *others]
    journal, finished = folder.journal, run.nimg >= run.total
    measured = saved.tables["eval"]["metrics"] if saved.tables["eval"]["snapshot_samples"] else ()
    written = [f"metric-{name}.jsonl" for name in measured]
    where = (folder.path, run.nimg, content["recipe"])
    if finished:
        due = not distributed.by_rank0(lambda: has_ended(*where))
    else:
        due = content.get("snapshot_due", False) and not distributed.by_rank0(lambda: is_made(*where, written))
    saved.snapshot_due = due and (finished or not otherwise)
    left = (begun, folder, run.nimg, saved, content["recipe"], bool(otherwise), written, finished)
    distributed.by_rank0(lambda: leave_behind(*left))
    journal.log(f"resuming at {run.nimg / 1000:.3f} kimg from {begun}")
    if finished:
        journal.log("this run is finished; only its table is made again. For more images, set train.duration_kimg")
        otherwise = keep_as_trained(saved, content["recipe"], run.nimg)
    before = content.get("about", {}).get("changed") or []
    folder.changed = [*before, *(f"at {run.nimg / 1000:g} kimg: {shown(each, 500)}" for each in otherwise)][-MOST_CHANGES:]
    if folder.changed:
        saved.facts["changed"] = folder.changed
    for difference in changed:
        journal.log(f"changed since that state was written: {difference}")
    if due and not saved.snapshot_due:
        journal.log(f"the snapshot at {run.nimg / 1000:g} kimg, which was due, is not made: it would be one of the settings before")


def leave_behind(
    state: Path,
    folder: RunFolder,
    nimg: int,
    saved: Saved,
    before: Tables,
    otherwise: bool,
    written: Sequence[str],
    finished: bool,
) -> None:
    """Set aside what the folder has of more images than the state, as far as the run does not write it again just so: it may go on
    `otherwise` than the tables `before`, or than those of whoever wrote here last, or end elsewhere, or have other snapshots. And
    set aside its table, unless it is `finished`. Raises UserError if the disk does not allow it."""
    try:
        recorded, now = complete_tables(folder.path / "recipe.toml") or before, saved.tables
        left = otherwise or bool(learned_otherwise(recorded, now, nimg)) or is_other(before, recorded, now, TICKS)
        ends = [all_images(tables) for tables in (before, recorded)]
        left = left or any(nimg < end and not has_a_snapshot(now, end) for end in ends)
        aside = set_later_aside(folder.path, state, nimg, left, teacher="network" in now)
        branch = left or bool(aside)
        remeasured = is_other(before, recorded, now, {"eval": (*MEASURED, *now["eval"]["metrics"])})
        aside += set_best_aside(folder.path, nimg) if branch or remeasured else []
        aside += set_table_aside(folder.path, nimg, finished)
        aside += folder.forget_after(nimg / 1000, None if branch else written, saved.snapshot_due, keep=branch or remeasured)
        if aside:
            which = " of another branch" if branch else ""
            folder.journal.log(f"later files{which} were set aside: {', '.join(path.name for path in aside)}")
    except OSError as error:
        raise UserError(f"{error.filename or folder.path}: cannot be set aside: {error.strerror or error}") from None


def has_a_snapshot(tables: Tables, nimg: int) -> bool:
    """Whether a run by these tables has a snapshot at so many images."""
    total, log = all_images(tables), {key: tables["log"][key] for key in TICKS["log"]}
    return nimg <= total and Schedule(LogConfig(**log), tables["train"]["batch"], total).due(nimg).snapshot


def is_other(before: Tables, recorded: Tables, now: Tables, settings: Mapping[str, Sequence[str]]) -> bool:
    """Whether some settings are others now than in one of the tables before."""
    chosen = partial(some, settings=settings)
    return any(differences(chosen(tables), chosen(now)) for tables in (before, recorded))


def check_same_measurement(state: Path, content: Mapping[str, Any], run: Training, now: Tables) -> None:
    """Check that a finished run is sampled and measured with the noise that it was trained with. Raises UserError."""
    before, after = (tables["noise"] if isinstance(tables.get("noise"), Mapping) else {} for tables in (content["recipe"], now))
    known = before.keys() & after.keys()  # by both versions
    changed = differences({"noise": {key: before[key] for key in known}}, {"noise": {key: after[key] for key in known}})
    if content["nimg"] >= run.total and changed:
        raise UserError(f"{state}: this run is finished, and was trained otherwise ({'; '.join(changed)}); put that back")


def keep_as_trained(saved: Saved, recorded: Tables, nimg: int) -> list[str]:
    """A finished run learns nothing more, whatever the recipe says by now: its recipe stays the one that it was trained with, but
    for where it is logged and how it is measured, and for its length, if it ends here before its time. Returns what no
    recipe says: that its rates had not fallen to their end."""
    told = list[str]()
    if nimg < all_images(recorded):
        shorter = recorded["train"] | {"duration_kimg": max(nimg - warm_up(recorded), 0) / 1000}
        told = differences({"train": recorded["train"]}, {"train": shorter}) if shorter.get("lr_decay") else []
        recorded = {**recorded, "train": shorter}
    saved.tables = {**recorded, **{name: saved.tables[name] for name in UNTRAINED if name in saved.tables}}
    if "recipe" in saved.facts:
        saved.facts["recipe"] = {name: table for name, table in recorded.items() if name not in UNTRAINED}
    return told


def locked_state(folder: RunFolder, state: Path, resume: str | None, saved: Saved) -> tuple[Path, dict[str, Any]]:
    """The state to go on from, and what it holds, now that nobody else writes into the folder. Raises UserError.

    Since the state was found, the run that wrote it may have saved a later one, and have ended; but for a state that was named
    itself, the newest is taken.
    """
    if not distributed.from_rank0(Path(os.path.expanduser(resume or "")).is_file()):
        state = newest_state(folder) or state
    return state, checked_state(state, saved)


def checked_state(state: Path, saved: Saved) -> dict[str, Any]:
    """What a state holds, if it is one of this run. Raises UserError."""
    with distributed.everywhere(state) as file:
        content = read_state(file, saved.parts)
    check_same_run(state, content["recipe"], saved.tables)
    check_same_sources(state, content["about"], saved.facts)
    check_same_networks(state, content["networks"], saved.parts)
    return content


@contextmanager
def released_if_it_fails(folder: RunFolder) -> Iterator[None]:
    """Let others write into the folder if this run does not begin."""
    try:
        yield
    except BaseException:
        folder.release()
        raise


def is_made(folder: Path, nimg: int, tables: Tables, written: Sequence[str]) -> bool:
    """Whether the snapshot of this number of images is whole, and measured by a line in these files."""
    lines = [any(kimg_of(line) == nimg / 1000 for line in readable_lines(folder / name)) for name in written]
    files = [path for path in folder.glob(f"{snapshot_name(nimg, tables)}.*") if LATER not in path.suffixes]
    return all(lines) and any(images_of(path) == nimg for path in files)


def has_ended(folder: Path, nimg: int, tables: Tables) -> bool:
    """Whether the run has its final table of this number of images, which comes after the last snapshot, and that snapshot."""
    quality = kept(folder / "quality.json", QUALITY)
    snapshots = [path for path in folder.glob(f"{snapshot_name(nimg, tables)}.*") if LATER not in path.suffixes]
    return quality is not None and quality.nimg == nimg and bool(snapshots)


def start_from_foreign(recipe: Recipe | PretrainRecipe, run: Training, saved: Saved, state: Path, journal: Journal) -> RunFolder:
    """A new run folder for a run that goes on from a training state of SiD. Raises UserError before anything is written."""
    if isinstance(recipe, Recipe) and recipe.generator.init is not None:
        with settings_of(recipe.generator):
            raise SettingError("init", f"{state} has a generator of its own; leave this out", recipe.generator.init)
    with distributed.everywhere(state) as file:
        run.nimg, lines = adopt(file, saved.parts, saved.facts["D"])
    if run.nimg >= run.total:
        with settings_of(recipe.train):
            raise SettingError("duration_kimg", f"{state} is at {run.nimg / 1000:g} kimg already; give more", run.total / 1000)
    with settings_of(recipe.log):
        folder = RunFolder.new(Path(recipe.log.outdir), recipe.name, journal)
    for line in lines:
        journal.log(line)
    return folder
