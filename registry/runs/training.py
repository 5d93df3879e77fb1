"""What happens around a loop, whatever it trains: the start, after every iteration, the end.

After an iteration, if they are due, in this order: the tick, the state, the snapshot. If a signal asks for it, the run saves its
state and stops, also while a snapshot is measured; the snapshot is then made when the run is resumed.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import torch

from registry.core import distributed
from registry.core.atomic import check_folder
from registry.core.errors import Diverged, Interrupted, SettingError, UserError
from registry.core.interruption import signalled
from registry.edm.sid_states import holds_modules
from registry.files.json_files import kept
from registry.measure.saved import QUALITY
from registry.recipe.doubts import doubts
from registry.recipe.resolved import PretrainRecipe, Recipe, settings_of
from registry.recipe.tables import PretrainConfig, TrainConfig
from registry.runs.background import Background
from registry.runs.checkpoints import (
    Stateful,
    check_same_run,
    check_same_sources,
    differences,
    read_state,
    restore_state,
    save_state,
)
from registry.runs.clock import Clock
from registry.runs.folder import RunFolder
from registry.runs.foreign import adopt
from registry.runs.health import check_agreement, check_health
from registry.runs.schedule import Schedule
from registry.runs.states import Found, find_state, newest_whole, set_later_aside, states
from registry.runs.threads import Threads, with_fastest_threads
from registry.runs.ticks import Learners, Signs, Ticks
from registry.show.journal import Journal
from registry.show.trackers import Trackers
from registry.train.step import Learner

TRIES_AGAIN = "the run goes on, and tries again when the next one is due"


class Training(Protocol):
    """What both kinds of training have: the number of images so far and in all, and the device."""

    nimg: int
    rollbacks: int
    device: torch.device

    @property
    def total(self) -> int: ...


@dataclass
class Saved:
    """What goes into a training state."""

    parts: Mapping[str, Stateful]
    """Everything that training changes: networks with their optimisers, averages."""
    tables: dict[str, Any]
    """The resolved recipe."""
    facts: dict[str, Any]
    """What network files say about the networks, besides the number of images."""
    clock: Clock = field(default_factory=Clock)
    """How long the run has trained."""
    snapshot_due: bool = False
    """Whether the state that the run goes on from was saved before the snapshot that was due."""
    threads: Threads = field(init=False)
    """How many threads the run computes with."""
    background: Background = field(default_factory=Background)
    """Where states are written while training goes on."""
    saved_at: float = field(default_factory=time.monotonic)
    """When a state was last saved or tried, or else the run began."""

    def __post_init__(self) -> None:
        self.threads = Threads(self.tables["train"].get("threads"))

    def save(self, folder: RunFolder, run: Training, snapshot_due: bool, wait: bool = True) -> Path:
        """Write the state to training-state-{kimg:06d}.pt, and delete the oldest ones that need not be kept.

        If it need not be waited for, and [log] background_states says so, it is written while training goes on.
        """
        path = folder.path / f"training-state-{run.nimg // 1000:06d}.pt"
        self.finish(folder)
        self.saved_at = time.monotonic()
        folder.keep_there()
        beside = self.tables["log"].get("background_states")
        background = None if wait or not (run.device.type != "cpu" if beside is None else beside) else self.background
        seconds, threads, written = self.clock.seconds, self.threads.chosen, partial(self.delete_old, path)
        about = (run.nimg, self.tables, self.facts, seconds, snapshot_due, run.rollbacks, threads)
        save_state(path, self.parts, *about, background, written)
        return path

    def delete_old(self, newest: Path) -> None:
        """Delete the states that need not be kept beside the newest."""
        keep = self.tables["log"]["keep_states"]
        for old in [s for s in states(newest.parent) if s != newest][keep - 1 :] if keep else ():
            old.unlink(missing_ok=True)

    def finish(self, folder: RunFolder) -> None:
        """Wait for the state that rank 0 writes in the background. That it cannot be written is said, and is no reason to stop."""
        try:
            self.background.wait()
        except UserError as error:
            folder.journal.log(f"WARNING {error}; {TRIES_AGAIN}")

    def overdue(self) -> bool:
        """Whether the last state is older than [log] state_minutes. Rank 0 decides."""
        return distributed.rank() == 0 and time.monotonic() - self.saved_at > 60 * self.tables["log"]["state_minutes"]


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
    state, trackers = found.state, Trackers([(choice, choice.make()) for choice in recipe.trackers], journal)
    if state is None:
        with settings_of(recipe.log):
            folder = RunFolder.new(Path(recipe.log.outdir), recipe.name, journal)
        folder.sweep()
        if resume:
            journal.log(f"nothing to resume in {recipe.log.outdir}; starting anew")
    elif distributed.by_rank0(lambda: holds_modules(state)):
        folder = start_from_foreign(recipe, run, saved, state, journal)
    else:
        folder = RunFolder(state.parent, journal)
        with released_if_it_fails(folder):
            begun, content = locked_state(folder, state, resume, saved)
            run.nimg = restore_state(begun, content, saved.parts)
        run.rollbacks, saved.threads.chosen = content.get("rollbacks", 0), content.get("threads")
        saved.clock.seconds = content.get("seconds", 0.0)  # 0: states of version 0.1 do not say
        saved.snapshot_due = content.get("snapshot_due", False) and not distributed.from_rank0(has_table(folder.path, run.nimg))
        folder.sweep()
        if later := set_later_aside(folder.path, begun, run.nimg) if folder.writes else []:
            journal.log(f"later states of another branch were set aside: {', '.join(path.name for path in later)}")
        folder.forget_after(run.nimg / 1000, saved.snapshot_due)
        journal.log(f"resuming at {run.nimg / 1000:.3f} kimg from {begun}")
        if run.nimg >= run.total:
            journal.log("this run is finished; only its table is made again. For more images, set train.duration_kimg")
        for difference in differences(content["recipe"], saved.tables):
            journal.log(f"changed since that state was written: {difference}")
    for remark in (*found.remarks, *(f"WARNING {doubt}" for doubt in doubts(recipe))):
        journal.log(remark)
    folder.write_recipe(saved.tables)
    folder.follow(trackers, saved.tables, run.nimg)
    return folder


def locked_state(folder: RunFolder, state: Path, resume: str | None, saved: Saved) -> tuple[Path, dict[str, Any]]:
    """The state to go on from, and what it holds, now that nobody else writes into the folder. Raises UserError.

    Since the state was found, the run that wrote it may have saved a later one, and have ended; but for a state that was named
    itself, the newest is taken.
    """
    if not distributed.from_rank0(Path(os.path.expanduser(resume or "")).is_file()):
        state = newest_state(folder) or state
    with distributed.everywhere(state) as file:
        content = read_state(file, saved.parts)
    check_same_run(state, content["recipe"], saved.tables)
    check_same_sources(state, content["about"], saved.facts)
    return state, content


@contextmanager
def released_if_it_fails(folder: RunFolder) -> Iterator[None]:
    """Let others write into the folder if this run does not begin."""
    try:
        yield
    except BaseException:
        folder.release()
        raise


def has_table(folder: Path, nimg: int) -> bool:
    """Whether the run has its final table of this number of images, which comes after the last snapshot."""
    quality = kept(folder / "quality.json", QUALITY)
    return quality is not None and quality.nimg == nimg


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


def train(
    iterations: Callable[[], Iterator[None]],
    run: Training,
    recipe: Recipe | PretrainRecipe,
    folder: RunFolder,
    learners: Learners,
    saved: Saved,
    snapshot: Callable[[], None],
    signs: Signs = dict[str, float],
    milestones: tuple[int, ...] = (),
) -> None:
    """Go through the iterations, and do what is due after each.

    Raises Interrupted after a signal, when a state was saved, and Diverged as [train] nonfinite says.
    """
    schedule = Schedule(recipe.log, recipe.train.batch, run.total, milestones)
    ticks = Ticks(folder, learners, recipe.log.tick_kimg, run.device, signs)
    length = math.ceil(run.total / 1000 * 10) / 10
    check_agreement(saved.parts, run.nimg)
    bars = folder.journal.progress(f"{recipe.name}, kimg", length, lines=False)
    with bars as bar, saved.background, distributed.answered(nothing_else=False):  # split networks have messages of their own
        if saved.snapshot_due:
            make(snapshot, saved, folder, run)
        while True:
            ticks.begin(run.nimg)
            saved.clock.start()
            try:
                for _ in with_fastest_threads(iterations(), saved.threads, run.device, folder.journal):
                    bar.at(round(run.nimg / 1000, 1), f"{ticks.speed(run.nimg):.0f} img/s  {ticks.note}")
                    after_iteration(run, recipe.train, folder, learners, saved, snapshot, schedule, ticks)
                return
            except Diverged as error:
                roll_back(run, recipe.train, saved, folder, error)


def after_iteration(
    run: Training,
    config: TrainConfig | PretrainConfig,
    folder: RunFolder,
    learners: Learners,
    saved: Saved,
    snapshot: Callable[[], None],
    schedule: Schedule,
    ticks: Ticks,
) -> None:
    """Do what is due. Raises Interrupted and Diverged. While no image is left to learn from, no state is saved."""
    due = schedule.due(run.nimg)
    signal, overdue = distributed.largest(signalled(), saved.overdue())
    if saved.background.failed():
        saved.finish(folder)
    if not (any(due) or signal or overdue):
        return
    saved.clock.stop(run.device)
    well = check_health(learners(), run.nimg, config.nonfinite == "stop", due.begin, due.end)
    check_agreement(saved.parts, run.nimg)
    if due.tick:
        ticks.record(run.nimg, run.total, saved.clock.seconds)
    if signal:
        saved.finish(folder)
        kept = None if well else newest_good(folder)  # a state of a run that learns nothing would take its place
        if kept:
            raise at_a_state(kept, run, 128 + signal, ", where it had nothing left to learn from; the last good state is kept")
        raise saved_at_a_signal(saved, folder, run, due.snapshot, 128 + signal)
    with going_on(folder, due.end):
        if due.end or (well and (due.state or overdue)):
            saved.save(folder, run, due.snapshot, wait=due.end)
        if due.snapshot:
            make(snapshot, saved, folder, run)
    if due.tick:
        ticks.begin(run.nimg)
    saved.clock.start()


@contextmanager
def going_on(folder: RunFolder, end: bool) -> Iterator[None]:
    """A file that cannot be written is no reason to stop before the end: perhaps there is room on the disk again by then."""
    try:
        yield
    except UserError as error:
        if end:
            raise
        folder.journal.log(f"WARNING {error}; {TRIES_AGAIN}")


def roll_back(run: Training, config: TrainConfig | PretrainConfig, saved: Saved, folder: RunFolder, error: Diverged) -> None:
    """Go back to the newest state, with other draws from there on, if the recipe allows it. Otherwise raises Diverged."""
    saved.finish(folder)
    state = newest_good(folder)
    where = f"; the last good state is {state}" if state else "; there is no good state"
    if config.nonfinite != "rollback" or run.rollbacks >= config.rollbacks or state is None:
        times = f" after {run.rollbacks} rollbacks" if run.rollbacks else ""
        raise Diverged(f"the run has diverged{times}: {error}{where}; {error.advice}", error.nimg, error.advice)
    rollbacks = run.rollbacks + 1
    with distributed.everywhere(state) as file:
        run.nimg = restore_state(state, read_state(file, saved.parts), saved.parts)
    run.rollbacks = rollbacks
    folder.forget_after(run.nimg / 1000)
    for part in saved.parts.values():
        if isinstance(part, Learner):
            part.tally.revive()
    back = f"back to {run.nimg / 1000:.3f} kimg, with other draws (rollback {rollbacks})"
    folder.journal.log(f"WARNING the run has diverged: {error}; {back}")


def newest_state(folder: RunFolder) -> Path | None:
    """The newest state in the run's folder that is whole, as rank 0 sees it. Damaged ones are set aside, and the log says so.

    Raises UserError if all are damaged.
    """
    found = distributed.by_rank0(lambda: newest_whole(folder.path))
    for remark in found.remarks:
        folder.journal.log(remark)
    return found.state


def newest_good(folder: RunFolder) -> Path | None:
    """The same; None if none is whole, and the log says so."""
    try:
        return newest_state(folder)
    except UserError as none_is:
        folder.journal.log(f"WARNING {none_is}")
        return None


def make(snapshot: Callable[[], None], saved: Saved, folder: RunFolder, run: Training) -> None:
    """Make a snapshot. If a signal comes meanwhile, a state is saved that says that the snapshot is still due."""
    try:
        snapshot()
    except Interrupted as stop:
        raise saved_at_a_signal(saved, folder, run, True, stop.code) from None


def saved_at_a_signal(saved: Saved, folder: RunFolder, run: Training, snapshot_due: bool, code: int) -> Interrupted:
    """Save a state. If it cannot be written, the run stops all the same. Raises UserError if there is no other state either."""
    try:
        return at_a_state(saved.save(folder, run, snapshot_due), run, code, "; the state is kept")
    except UserError as error:
        kept = newest_good(folder)
        if kept is None:
            raise
        return at_a_state(kept, run, code, f"; its state cannot be written ({error}); the one before is kept")


def at_a_state(state: Path, run: Training, code: int, what: str) -> Interrupted:
    return Interrupted(f"interrupted at {run.nimg / 1000:.3f} kimg{what}", code, str(state))
