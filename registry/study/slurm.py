"""Cells as a Slurm array, through submitit. Its executor for this machine does the same without Slurm, which tests use."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from pydantic import TypeAdapter
from typing_extensions import TypedDict

from registry.core.atomic import write_atomically
from registry.core.errors import Interrupted, SettingError, UserError
from registry.core.text import shown
from registry.core.version import install
from registry.files.json_files import kept
from registry.study.attempts import Attempt, begin, is_running, write_note
from registry.study.cells import FINAL, Cell, record, run_folder, status
from registry.study.local import Signals
from registry.study.machine import cores
from registry.study.progress import Progress

if TYPE_CHECKING:
    from submitit import AutoExecutor, Job
    from submitit.helpers import DelayedSubmission

JOB = "job.json"


class Submitted(TypedDict):
    """What is kept of a job."""

    id: str
    executor: str


SUBMITTED = TypeAdapter(Submitted)
POLL_SECONDS = 2.0
UNKNOWN_SECONDS = 60.0
"""After which it is said of which jobs the scheduler has no word."""

MOST_TIMEOUTS = 100
"""How often a job that reached its time limit is queued again; submitit's own three end a run of days on a cluster of hours."""


class CellJob:
    """A cell as a job: it starts the cell's run or continues it, on whichever machine it is called.

    When the scheduler is about to end the job, submitit calls `checkpoint`: the run saves its state, and the job is queued again.
    """

    sources: Mapping[str, str] = MappingProxyType({})
    """Jobs that an earlier version has queued have none."""

    def __init__(self, folder: Path, command: Sequence[str], again: Sequence[str], sources: Mapping[str, str]) -> None:
        self.folder, self.command, self.again, self.sources = folder, list(command), list(again), dict(sources)
        self.attempt: Attempt | None = None

    def __call__(self) -> None:
        threads = os.environ.get("SLURM_CPUS_PER_TASK") or os.environ.get("OMP_NUM_THREADS") or str(cores())
        command = self.again if run_folder(self.folder) else self.command
        self.attempt = begin(self.folder, command, {"OMP_NUM_THREADS": threads}, self.sources)
        while self.attempt.poll():
            time.sleep(0.5)

    def checkpoint(self) -> DelayedSubmission:
        """Stop the run, and give submitit the job that goes on with it."""
        from submitit.helpers import DelayedSubmission

        if self.attempt is not None:
            self.attempt.signal(signal.SIGINT)
            while self.attempt.poll():
                time.sleep(0.5)
        return DelayedSubmission(CellJob(self.folder, self.command, self.again, self.sources))


def run_slurm(cells: Sequence[Cell], parameters: Mapping[str, Any], outdir: Path, progress: Progress) -> None:
    """Submit cells as an array, but for those whose jobs are still queued, and wait for all. Raises UserError and Interrupted.

    Interrupted by a signal, this leaves the jobs to the scheduler; the next call waits for them again.
    """
    executor = open_executor(parameters, outdir)
    jobs = {cell.name: job for cell in cells if (job := queued(cell, outdir / "slurm"))}
    new = [cell for cell in cells if cell.name not in jobs and not is_running(cell.folder)]
    for cell in new:
        record(cell)
    with Signals() as signals, progress:  # a signal is answered when it is noted which jobs there are
        works = [CellJob(cell.folder.absolute(), cell.command, cell.again, cell.sources) for cell in new]
        for cell, job in zip(new, submitted(executor, works) if new else [], strict=True):
            jobs[cell.name] = job
            write_atomically(cell.folder / JOB, json.dumps({"id": job.job_id, "executor": executor.cluster}).encode())
        for cell in cells:
            progress.started(cell)
        waiting, begun = list(cells), time.monotonic()
        while waiting and not signals.number:
            for cell in list(waiting):
                if ended(cell, jobs.get(cell.name)):
                    waiting.remove(cell)
                    progress.ended(cell)
            if begun and time.monotonic() > begun + UNKNOWN_SECONDS:
                tell_unknown(waiting, jobs, progress)
                begun = 0.0
            progress.update()
            time.sleep(POLL_SECONDS if executor.cluster == "slurm" else 0.2)
    if signals.number:
        text = f"interrupted; {len(waiting)} jobs stay with the scheduler, and the same command waits for them again"
        raise Interrupted(text, 128 + signals.number)


class Call:
    """Runs a job of an array: submitit maps this over the jobs, and asks this, not the job, for a `checkpoint`."""

    def __call__(self, job: CellJob) -> None:
        job()

    def checkpoint(self, job: CellJob) -> DelayedSubmission:
        return job.checkpoint()


def submitted(executor: AutoExecutor, works: Sequence[CellJob]) -> Sequence[Job[None]]:
    """The jobs of an array. Raises SettingError if the scheduler refuses it."""
    from submitit.core.utils import FailedJobError, FailedSubmissionError

    try:
        return executor.map_array(Call(), works)
    except (FailedJobError, FailedSubmissionError, OSError) as error:
        raise SettingError("slurm", f"the scheduler does not take the jobs: {shown(error, 500)}") from None


def open_executor(parameters: Mapping[str, Any], outdir: Path) -> AutoExecutor:
    """submitit's executor with these parameters; `executor` among them names another one than Slurm's. Raises UserError."""
    try:
        import submitit
    except ImportError:
        raise UserError(f"a Slurm array needs submitit: {install('slurm')}") from None
    own = {"slurm_max_num_timeout": MOST_TIMEOUTS} | dict(parameters)
    name = own.pop("executor", "slurm")
    to_build = {key: own.pop(key) for key in list(own) if key.endswith("_max_num_timeout")}  # submitit wants it at once
    try:
        executor = submitit.AutoExecutor(folder=outdir / "slurm", cluster=name, **to_build)
        executor.update_parameters(**{"name": outdir.name} | own)
    except (RuntimeError, ValueError, TypeError, AssertionError, NameError) as error:
        reason = " ".join(str(error).split())
        raise SettingError("slurm", f"cannot be used: {reason}") from None
    return executor


def queued(cell: Cell, folder: Path) -> Job[None] | None:
    """The job that an earlier call submitted for a cell, if it is still queued or running."""
    import submitit

    note = kept(cell.folder / JOB, SUBMITTED)
    if note is None or note["executor"] != "slurm":
        return None
    job: Job[None] = submitit.SlurmJob(folder, note["id"])
    return None if job.done(force_check=True) else job


def tell_unknown(waiting: Sequence[Cell], jobs: Mapping[str, Job[None]], progress: Progress) -> None:
    """Say of which jobs the scheduler has no word: they may be gone, or it keeps no accounts."""
    for cell in waiting:
        job = jobs.get(cell.name)
        if job is not None and job.state == "UNKNOWN" and not is_running(cell.folder):
            remedy = f"if it is gone, remove {cell.folder / JOB} and give the same command again"
            progress.journal.log(f"WARNING {cell.name}: the scheduler says nothing of its job {shown(job.job_id, 60)}; {remedy}")


def has_begun(cell: Cell) -> bool:
    """Whether the run of a cell has written anything since its job was submitted."""
    run, note = cell.run_folder(), cell.folder / JOB
    since = note.stat().st_mtime if note.is_file() else 0.0
    return run is not None and any(path.stat().st_mtime >= since for path in run.iterdir())


def ended(cell: Cell, job: Job[None] | None) -> bool:
    """Whether a cell's job is over. If it left no word about its run, its last words are kept: the run was killed if it had begun,
    or else it has failed."""
    if job is None:
        return not is_running(cell.folder)
    if not job.done():
        return False
    if status(cell)[0] not in FINAL and cell.attempt().get("exit") is None and not is_running(cell.folder):
        words = (job.stderr() or "").strip().splitlines() or ["the job ended without a word"]
        code = 128 + signal.SIGKILL if has_begun(cell) else 1
        write_note(cell.folder, {"seconds": 0.0} | cell.attempt() | {"exit": code, "error": words[-1]})
    return True
