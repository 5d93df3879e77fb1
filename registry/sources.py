"""Where files come from: what the user typed, beside the recipe, or what travels with the package."""

from __future__ import annotations

import difflib
from pathlib import Path

from registry.api import UserError


def shipped() -> Path:
    """The folder of recipes and small teachers that travel with the package (in a checkout: `recipes/`)."""
    package = Path(__file__).parent
    inside = package / "recipes"
    return inside if inside.is_dir() else package.parent / "recipes"


def locate(name: str, folder: Path | None = None) -> str:
    """A path that exists, or the bare name of a shipped file, as something `open_path` understands.

    Tries the path as typed, then relative to `folder` (the recipe's), then the shipped files. Raises ValueError.
    """
    for path in [Path(name).expanduser(), *([folder / name] if folder else [])]:
        if path.is_file():
            return str(path.resolve())
    if _shipped_file(name, ".pt"):
        return name
    known = sorted(p.stem for p in shipped().rglob("*.pt"))
    raise ValueError(f"no such file{near(name, known)}; shipped with the package: {', '.join(known) or 'none'}")


def open_path(source: str) -> Path:
    """The path behind a located source."""
    path = Path(source).expanduser()
    return path if path.is_file() else _shipped_file(source, ".pt") or path


def locate_recipe(name: str) -> Path:
    """A recipe's path from a path or from the bare name of a shipped recipe. Raises UserError."""
    path = Path(name).expanduser()
    if path.is_file():
        return path
    found = _shipped_file(name, ".toml")
    if found:
        return found
    if path.is_dir():
        raise UserError(f"{name}: this is a folder, a recipe is a TOML file")
    known = sorted(p.stem for p in shipped().rglob("*.toml"))
    raise UserError(f"{name}: no such recipe{near(Path(name).stem, known)}; shipped: {', '.join(known)}")


def _shipped_file(name: str, suffix: str) -> Path | None:
    if "/" in name or "\\" in name or name in ("", ".", ".."):
        return None
    stem = name.removesuffix(suffix)
    return next((p for p in sorted(shipped().rglob(f"*{suffix}")) if p.stem == stem), None)


def near(word: str, known: list[str]) -> str:
    """' (did you mean …?)' for the nearest known word, or nothing."""
    match = difflib.get_close_matches(word, known, n=1, cutoff=0.6)
    return f" (did you mean {match[0]!r}?)" if match else ""
