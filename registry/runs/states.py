"""Finds the training state that a run goes on from."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from registry.core.atomic import unused
from registry.core.errors import SettingError, UserError
from registry.core.seal import has_seal
from registry.files.bounds import STATE
from registry.files.formats import load_network
from registry.files.json_files import kept
from registry.files.plain import DAMAGED, NETWORK_KINDS, UNREADABLE, load, problem
from registry.measure.saved import BEST, QUALITY
from registry.recipe.texts import read_tables
from registry.runs.checkpoints import differences, identity

STATES = "training-state-*.pt"
NAME = re.compile(r"training-state-[0-9]{6,}\.pt")
NUMBERED = re.compile(r"(\d{5,})-(.+)", re.ASCII | re.DOTALL)
"""The name of a run's folder: its number, and what the run is called."""
TEACHER = "teacher.pt"
"""What a run of `distill pretrain` ends with."""
NETWORKS = (".pkl", ".pt")
"""Suffixes of snapshots."""
SET_ASIDE, LATER = ".damaged", ".later"
NONE_IS_WHOLE = "none of its training states is whole"
OTHER = "is no training state"
MOST_REMARKS = 5


@dataclass(frozen=True)
class Found:
    """The state to go on from, if any, and what is to be said of those that were passed over."""

    state: Path | None = None
    remarks: tuple[str, ...] = ()


def find_state(resume: str | None, outdir: Path, description: str, tables: Mapping[str, Any]) -> Found:
    """The state to resume from: 'auto' is the newest whole one of the newest run of this recipe and identity.

    A damaged state in a run's folder is set aside, and the one before it is taken. Raises SettingError, and UserError if a run
    has states but none is whole.
    """
    if resume is None:
        return Found()
    if resume == "auto":
        return newest_run(outdir, description, tables)
    if not resume.strip():
        raise SettingError("resume", "is empty; give 'auto', a training state, or a run folder", resume)
    path = Path(os.path.expanduser(resume))
    if os.path.isdir(path):
        if not os.access(path, os.R_OK | os.X_OK):
            raise SettingError("resume", "this folder may not be read", resume)
        found = newest_whole(path)
        if found.state is None:
            raise SettingError("resume", f"there is no {STATES} in this folder", resume)
        return found
    if not os.path.isfile(path):
        raise SettingError("resume", "no such file or folder; give 'auto', a training state, or a run folder", resume)
    return Found(Path(os.path.realpath(path)) if path.is_symlink() else path)  # the run is where the state is


def newest_run(outdir: Path, description: str, tables: Mapping[str, Any]) -> Found:
    """The newest whole state of the newest run of this name and identity; of all newer ones it is said why they were not taken."""
    there = [(m, p) for p in outdir.iterdir() if (m := NUMBERED.fullmatch(p.name))] if os.path.isdir(outdir) else []
    runs = [path for _, path in sorted((int(m[1]), path) for m, path in there if m[2] == description)][::-1]
    wanted, remarks = identity(tables), list[str]()
    for folder in runs:
        if not os.access(folder, os.R_OK | os.X_OK):
            remarks.append(f"not resumed: {folder}: may not be read")
            continue
        if not states(folder) and any(folder.glob(f"{STATES}{SET_ASIDE}*")):
            recorded = recorded_tables(folder)
            if recorded is None or identity(recorded) == wanted:
                aside = f"they were renamed to *{SET_ASIDE}; to begin anew, resume nothing, or rename the folder"
                raise UserError(f"{folder}: {NONE_IS_WHOLE}; {aside}")
        if not states(folder):
            remarks.append(f"not resumed: {folder}: has no training state")
            continue
        recorded = recorded_tables(folder)
        if recorded is not None and identity(recorded) != wanted:
            remarks.append(f"not resumed: {folder}: is another run ({'; '.join(differences(identity(recorded), wanted))})")
            continue
        found = newest_whole(folder)
        return Found(found.state, (*shortened(remarks), *found.remarks))
    return Found(None, shortened(remarks))


def shortened(remarks: Sequence[str]) -> tuple[str, ...]:
    """The first remarks, and how many more there are."""
    more = len(remarks) - MOST_REMARKS
    return (*remarks[:MOST_REMARKS], *([f"… and {more} older runs"] if more > 0 else []))


def newest_whole(folder: Path) -> Found:
    """The newest state of a run's folder that is whole; damaged ones are renamed. Raises UserError if all are damaged."""
    remarks, reasons = list[str](), list[str]()
    for path in states(folder):
        reason = problem(path) or misnamed(path)
        if reason is None:
            return Found(path, tuple(remarks))
        stays = reason.startswith(UNREADABLE) or not is_a_run(folder)
        renamed = "stays where it is" if stays else set_aside(path)
        reasons.append(f"{path.name} {reason}, and {renamed}")
        remarks.append(f"WARNING {path} {reason}; it {renamed}, and the state before it is taken")
    if remarks:
        raise UserError(f"{folder}: {NONE_IS_WHOLE}: {'; '.join(reasons)}")
    return Found()


def set_aside(path: Path) -> str:
    """Rename a damaged state, and say so."""
    aside = unused(path.with_name(path.name + SET_ASIDE))
    try:
        path.rename(aside)
    except OSError as error:  # a disk that has become read-only
        return f"cannot be renamed ({error.strerror})"
    return f"was renamed to {aside.name}"


def unreadable(path: Path) -> bool:
    """Whether the disk does not give a state now."""
    with suppress(UserError):  # it may not be read by this user, who may rename it all the same
        return (problem(path) or "").startswith(UNREADABLE)
    return False


def misnamed(path: Path) -> str | None:
    """What is wrong with the name of one of our states: it does not say how many images the run had seen. Otherwise None."""
    try:
        nimg = int(load(path, STATE, sealed=has_seal(path))["nimg"])
    except UserError as error:  # another project's: whoever reads it says so
        reason = str(error)
        return DAMAGED if reason.endswith(DAMAGED) else OTHER if f"expected a {STATE}" in reason else None
    return None if nimg // 1000 == kimg_of(path) else f"is a state at {nimg / 1000:.3f} kimg under another name"


def set_later_aside(folder: Path, state: Path, nimg: int, changed: bool, teacher: bool = False) -> list[Path]:
    """Rename the folder's states that come after the one that a run goes on from: they are of a branch that it leaves. And then, or
    if it has `changed` so that it learns otherwise, the later snapshots and their grids, too, and a later `teacher`, if the run
    makes one."""
    later = [path for path in states(folder) if path != state and is_later(path, nimg) and not unreadable(path)]
    if later or changed:
        of_snapshots = [*folder.glob("network-snapshot-*"), *folder.glob("fakes_*.png")]
        numbered = [path for path in of_snapshots if re.search(r"[-_]\d{6,}$", path.stem, re.ASCII)]
        images = {path: 1000 * int(re.split("[-_]", path.stem)[-1]) for path in numbered if path.suffix != LATER}
        within = nimg // 1000 * 1000  # whose name does not say whether it is later
        same = [path for path, named in images.items() if named == within and path.suffix in NETWORKS and images_of(path) > nimg]
        later += [path for path, named in images.items() if named > within or (same and named == within)]
        if teacher and images_of(folder / TEACHER) > nimg:
            later += [path for name in (TEACHER, "teacher.quality.json") if (path := folder / name).is_file()]
    return renamed_later(later)


def is_later(state: Path, nimg: int) -> bool:
    """Whether a state is of more images; within the same thousand its name does not say, and one that cannot be read is not."""
    if kimg_of(state) != nimg // 1000:
        return kimg_of(state) > nimg // 1000
    with suppress(UserError):
        return int(load(state, STATE)["nimg"]) > nimg
    return False


def renamed_later(paths: Sequence[Path]) -> list[Path]:
    """The same files under names that nothing takes for the run's. Raises OSError."""
    return [path.rename(unused(path.with_name(path.name + LATER))) for path in paths]


def set_best_aside(folder: Path, nimg: int) -> list[Path]:
    """Rename the copy of the best snapshot, and what says which it is, if that comes later: others are compared from here on."""
    best = kept(folder / "best.json", BEST)
    if best is None or best.kimg <= nimg / 1000:
        return []
    copies = [path for path in folder.glob("network-snapshot-best.*") if path.suffix in NETWORKS]
    return renamed_later([folder / "best.json", *copies])


def set_table_aside(folder: Path, nimg: int, finished: bool) -> list[Path]:
    """Rename the table of a run that goes on: it is not that of the run's end any more, and perhaps of other settings. Of a
    finished run, rename one of more images than it has seen: what is due before its end would be taken for done."""
    table = kept(folder / "quality.json", QUALITY)
    if table is None or (finished and (table.nimg or 0) <= nimg):
        return []
    found = [path for name in ("quality.json", "quality.txt") if (path := folder / name).is_file()]
    return renamed_later(found)


def images_of(network: Path) -> int:
    """How many images a network of a run was trained with; 0 if there is none, or the file is not whole, or does not say."""
    with suppress(UserError):
        if network.suffix == ".pkl":
            return load_network(network)[1].nimg or 0
        return int(load(network, *NETWORK_KINDS)["about"].get("nimg") or 0)
    return 0


def is_a_run(folder: Path) -> bool:
    """Whether a folder that holds a state is a run's: its lock or its complete recipe is there. Into any other folder somebody has
    put the state, and perhaps other files."""
    return (folder / "run.lock").is_file() or complete_tables(folder / "recipe.toml") is not None


def states(folder: Path) -> list[Path]:
    """The training states of a run folder, the one with the most images first."""
    found = [path for path in folder.glob(STATES) if NAME.fullmatch(path.name)]  # a copy with a name of its own is a user's
    return sorted(found, key=kimg_of, reverse=True)


def kimg_of(path: Path) -> int:
    """The thousands of images in a state's name."""
    return int(path.stem.rpartition("-")[2])


def is_resolved(tables: Mapping[str, Any]) -> bool:
    """Whether these are the tables of a resolved recipe, which has all its settings."""
    components = [tables[kind] for kind in ("teacher", "noise", "loss") if kind in tables]
    return {"train", "log"} <= tables.keys() and bool(components) and all("use" in table for table in components)


def complete_tables(path: Path) -> dict[str, Any] | None:
    """The tables of a resolved recipe in a file; None if it holds none."""
    if path.is_file():
        with suppress(UserError):
            tables = read_tables(path)
            if all(isinstance(table, dict) for table in tables.values()) and is_resolved(tables):
                return tables
    return None


def recorded_tables(folder: Path) -> dict[str, Any] | None:
    """The recipe of a run folder: recipe.toml, or else what its newest readable state says; None if neither can be read."""
    if (tables := complete_tables(folder / "recipe.toml")) is not None:
        return tables
    for path in states(folder):
        with suppress(UserError):
            return dict(load(path, STATE)["recipe"])
    return None
