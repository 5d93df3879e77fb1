"""Copies finished runs from other studies: recipe, seed, code, versions and machine are the same, so the numbers would be."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

from registry.core.atomic import new_folder
from registry.core.errors import SettingError, UserError
from registry.recipe.resolved import dumps
from registry.recipe.texts import read_tables
from registry.study.attempts import write_note
from registry.study.cells import RECIPE, Cell, Status, identity, read_attempt, run_folder, status
from registry.study.machine import code, made_with


def reuse(cells: Sequence[Cell], source: Path) -> list[Cell]:
    """Copy the results of those cells that have none yet and that a study in or below a folder has; returns them.

    Nothing is copied that was made from other files, by other code, by other versions of the libraries, or on another kind of
    machine. Raises SettingError if there is no such folder.
    """
    if not source.is_dir():
        raise SettingError("reuse", "is no folder", str(source))
    present = {**made_with(), "code": code()}
    begun = [(recipe, folder, read_attempt(folder)) for recipe, folder in recorded(source)]
    copied = []
    for cell in cells:
        wanted = dumps(identity(cell.tables))
        like = (wanted, present, cell.sources)
        same = (
            folder for recipe, folder, note in begun
            if (recipe, note.get("made_with"), note.get("sources", {})) == like and is_finished(cell, folder)
        )  # fmt: skip
        if not cell.folder.exists() and (folder := next(same, None)) is not None:
            copy(folder, cell.folder)
            copied.append(cell)
    return copied


def is_finished(cell: Cell, folder: Path) -> bool:
    """Whether a folder has a cell's result, from a run that nobody has gone on with by hand."""
    run = run_folder(folder)
    return status(cell, folder)[0] is Status.DONE and run is not None and recipe_in(run) == recipe_in(folder)


def recorded(source: Path) -> Iterator[tuple[str, Path]]:
    """The recipes of all cells in or below a folder, without where they are, and the cells' folders."""
    for path in sorted(source.rglob(f"cells/*/seed-*/{RECIPE}")):
        if (recipe := recipe_in(path.parent)) is not None:
            yield recipe, path.parent


def recipe_in(folder: Path) -> str | None:
    """The recipe in a folder, without where the run is; None if it is cut off, or none that a study has written."""
    try:
        return dumps(identity(read_tables(folder / RECIPE)))
    except Exception:  # whatever it holds
        return None


def copy(folder: Path, target: Path) -> None:
    """Copy a cell's folder, whole or not at all, and note in it which study it came from. Raises UserError."""
    with new_folder(target) as part:
        try:
            shutil.copytree(folder, part, dirs_exist_ok=True, ignore=refuse_others)
        except shutil.Error as error:
            source, _, reason = error.args[0][0]
            raise UserError(f"{source}: cannot be copied: {reason}") from None
        write_note(part, {**read_attempt(part), "copied_from": folder.parents[2].as_posix()})


def refuse_others(folder: str, names: list[str]) -> list[str]:
    """Raises UserError if one of these is neither a file nor a folder: a link may lead back to its folder, or to what is nobody
    else's business, and a device has no end."""
    for path in (Path(folder, name) for name in names):
        if path.is_symlink() or not (path.is_file() or path.is_dir()):
            raise UserError(f"{path}: cannot be copied: a study copies files and folders, and no links")
    return []
