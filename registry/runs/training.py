"""What happens around a loop, whatever it trains.

After an iteration, if they are due, in this order: the tick, the state, the snapshot. If a signal asks for it, the run saves its
state and stops, also while a snapshot is measured; the snapshot is then made when the run is resumed.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import torch

from registry.core import distributed
from registry.core.errors import Diverged, Interrupted, UserError
from registry.core.interruption import signalled
from registry.core.surroundings import ProcessSettings, working_folder_restored
from registry.plugins.faults import fault_of
from registry.recipe.resolved import PretrainRecipe, Recipe
from registry.recipe.tables import PretrainConfig, TrainConfig
from registry.runs.background import Background
from registry.runs.checkpoints import Stateful, read_state, restore_state, save_state
from registry.runs.clock import Clock
from registry.runs.folder import RunFolder
from registry.runs.health import changed_types, check_agreement, check_health, check_process_settings
from registry.runs.schedule import Schedule
from registry.runs.states import newest_whole, set_best_aside, set_later_aside, states
from registry.runs.threads import Threads, with_fastest_threads, with_known_threads
from registry.runs.ticks import Learners, Signs, Ticks
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
        self.finish(folder)
        self.saved_at = time.monotonic()
        folder.keep_there()
        path = folder.path / f"training-state-{run.nimg // 1000:06d}.pt"
        beside = self.tables["log"].get("background_states")
        background = None if wait or not (run.device.type != "cpu" if beside is None else beside) else self.background
        seconds, threads, written = self.clock.seconds, self.threads.chosen, partial(self.delete_old, path, folder)
        about = (run.nimg, self.tables, self.facts, seconds, snapshot_due, run.rollbacks, threads)
        save_state(path, self.parts, *about, background, written)
        return path

    def delete_old(self, newest: Path, folder: RunFolder) -> None:
        """Delete the states that need not be kept beside the newest. One that cannot be deleted is no reason to stop."""
        keep = self.tables["log"]["keep_states"]
        try:
            for old in [s for s in states(newest.parent) if s != newest][keep - 1 :] if keep and folder.is_there() else ():
                old.unlink(missing_ok=True)
        except OSError as error:
            folder.journal.log(f"WARNING {error.filename}: cannot be deleted: {error.strerror}")

    def finish(self, folder: RunFolder) -> None:
        """Wait for the state that rank 0 writes in the background. That it cannot be written is said, and is no reason to stop."""
        try:
            self.background.wait()
        except UserError as error:
            folder.journal.log(f"WARNING {error}; {TRIES_AGAIN}")

    def overdue(self) -> bool:
        """Whether the last state is older than [log] state_minutes. Rank 0 decides."""
        return distributed.rank() == 0 and time.monotonic() - self.saved_at > 60 * self.tables["log"]["state_minutes"]


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
    begun: Callable[[], None] = lambda: None,
) -> None:
    """Go through the iterations, and do what is due after each; after the first of this process, and after the first that
    follows a rollback, what `begun` does, too.

    Raises Interrupted after a signal, when a state was saved, and Diverged as [train] nonfinite says.
    """
    schedule = Schedule(recipe.log, recipe.train.batch, run.total, milestones)
    ticks = Ticks(folder, learners, recipe.log.tick_kimg, run.device, saved.clock, signs)
    length = math.ceil(run.total / 1000 * 10) / 10
    check_agreement(saved.parts, run.nimg)
    with_known_threads(saved.threads, run.device)
    bars = folder.journal.progress(f"{recipe.name}, kimg", length, lines=False)
    with working_folder_restored(), bars as bar, saved.background:
        before = ProcessSettings.now()
        if saved.snapshot_due:
            with going_on(folder, run.nimg >= run.total):
                make(snapshot, saved, folder, run)
        while True:
            ahead = iterations()
            ticks.begin(run.nimg)
            saved.clock.start()
            try:
                for i, _ in enumerate(with_fastest_threads(ahead, saved.threads, run.device, folder.journal)):
                    check_process_settings(before)
                    bar.at(round(run.nimg / 1000, 1), f"{ticks.speed(run.nimg):.0f} img/s  {ticks.note}")
                    after_iteration(run, recipe.train, folder, learners, saved, snapshot, schedule, ticks)
                    if i == 0:
                        aside(begun, saved.clock, run.device)
                return
            except (RuntimeError, TypeError) as error:
                if changed := changed_types(learners()):
                    raise changed from error
                if not fault_of(error):
                    check_process_settings(before)  # it may be the consequence
                raise
            except Diverged as error:
                roll_back(run, recipe.train, saved, folder, learners, ticks, error)


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
    folder.keep_there()
    well = check_health(learners(), run.nimg, config.nonfinite == "stop", due.begin, due.end)
    check_agreement(saved.parts, run.nimg)
    if due.tick:
        ticks.record(run.nimg, run.total)
    if signal:
        saved.finish(folder)
        kept = None if well else newest_good(folder)  # a state of a run that learns nothing would take its place
        if kept:
            raise at_a_state(kept, run, 128 + signal, ", where it had nothing left to learn from; the last good state is kept")
        raise saved_at_a_signal(saved, folder, run, due.snapshot, 128 + signal)
    with going_on(folder, due.end):
        if due.end or (well and (due.state or overdue)):
            saved.save(folder, run, due.snapshot, wait=due.end)
    with going_on(folder, due.end):
        if due.snapshot:
            make(snapshot, saved, folder, run)
    if due.tick:
        ticks.begin(run.nimg)
    saved.clock.start()


def aside(work: Callable[[], None], clock: Clock, device: torch.device) -> None:
    """Work that is no part of the training. A signal leaves it undone, and is answered after the next iteration."""
    clock.stop(device)
    with suppress(Interrupted):
        work()
    clock.start()


@contextmanager
def going_on(folder: RunFolder, end: bool) -> Iterator[None]:
    """A file that cannot be written, or read again, is no reason to stop before the end: perhaps its disk is well by then."""
    try:
        yield
    except (UserError, OSError) as error:
        if end or (isinstance(error, OSError) and distributed.world_size() > 1):  # the others wait for this process
            raise
        what = f"{error.filename or folder.path}: {error.strerror}" if isinstance(error, OSError) else str(error)
        folder.journal.log(f"WARNING {what}; {TRIES_AGAIN}")


def roll_back(
    run: Training,
    config: TrainConfig | PretrainConfig,
    saved: Saved,
    folder: RunFolder,
    learners: Learners,
    ticks: Ticks,
    error: Diverged,
) -> None:
    """Go back to the newest state, with other draws from there on, if the recipe allows it. Otherwise raises Diverged."""
    saved.finish(folder)
    state = newest_good(folder)
    where = f"; the last good state is {state}" if state else "; there is no good state"
    if config.nonfinite != "rollback" or run.rollbacks >= config.rollbacks or state is None:
        times = f" after {run.rollbacks} rollbacks" if run.rollbacks else ""
        raise Diverged(f"the run has diverged{times}: {error}{where}; {error.advice}", error.nimg, error.advice)
    rollbacks = run.rollbacks + 1
    for learner in (*learners().values(), *(part for part in saved.parts.values() if isinstance(part, Learner))):
        learner.tally.revive()
    with distributed.everywhere(state) as file:
        run.nimg = restore_state(state, read_state(file, saved.parts), saved.parts)
    run.rollbacks = rollbacks
    ticks.forget()
    back = f"back to {run.nimg / 1000:.3f} kimg, with other draws (rollback {rollbacks})"
    folder.journal.log(f"WARNING the run has diverged: {error}; {back}")
    with going_on(folder, end=False):  # whoever resumes the run drops the lines
        leave_branch(folder, state, run.nimg)


def leave_branch(folder: RunFolder, state: Path, nimg: int) -> None:
    """Set aside what the folder has of more images than the state: its snapshots, the best one, and the lines, which were well."""
    if folder.writes:
        aside = [*set_later_aside(folder.path, state, nimg, True), *set_best_aside(folder.path, nimg)]
        aside += folder.forget_after(nimg / 1000, keep=True)
        if aside:
            folder.journal.log(f"later files were set aside: {', '.join(path.name for path in aside)}")


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
