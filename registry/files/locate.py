"""Finds files: as typed by the user, beside the recipe, shipped with the package, or behind a URL."""

from __future__ import annotations

import os
import re
from pathlib import Path
from urllib.parse import urlsplit

from registry.core.errors import UserError, near
from registry.core.text import cut
from registry.plugins.component import Published
from registry.plugins.loading import load_plugins


def shipped() -> Path:
    """The folder of recipes and small teachers that ship with the package (in a checkout: `recipes/`)."""
    package = Path(__file__).parents[1]
    inside = package / "recipes"
    return inside if os.path.isdir(inside) else package.parent / "recipes"


def locate(name: str, folder: Path | None = None) -> str:
    """An existing path, or the bare name of a shipped file, in a form that `open_path` accepts.

    A URL or the short name of a published teacher is returned unchanged, whether or not the file exists. Otherwise this tries
    the path as typed, then relative to `folder` (the recipe's), then the shipped files. For a folder it is the newest network
    in it. Raises ValueError.
    """
    if is_address(name) or published(name):
        return name
    for path in [Path(os.path.expanduser(name)), *([folder / name] if folder else [])]:
        if os.path.isfile(path):
            return str(path.resolve())
        if newest := newest_network(path):
            return str(newest.resolve())
    if _shipped_file(name, ".pt"):
        return name
    if (there := _existing(name, folder)) is not None:
        if os.path.isdir(there):
            raise ValueError("is a folder without a network; give a run's own folder, or a file")
        raise ValueError("is no regular file")
    known, short = sorted(p.stem for p in shipped().rglob("*.pt")), load_plugins().names("published")
    names = f"; shipped: {', '.join(known) or 'none'}; published: {', '.join(short) or 'none'}"
    raise ValueError(f"no such file{near(name, [*known, *short]) or names}")


def locate_data(name: str, folder: Path | None = None) -> str:
    """`digits`, `teacher`, or an existing folder or ZIP, as typed or relative to `folder`. Raises ValueError."""
    wanted = "give 'digits', or a folder or ZIP of images in EDM's layout"
    if name in ("digits", "teacher"):
        return name
    if name.endswith(".npz"):
        raise ValueError(f"image statistics work only with the metric fid; {wanted}")
    found = _existing(name, folder)
    if found is None:
        raise ValueError(f"no such data set{near(name, ['digits'])}; {wanted}")
    return str(found.resolve())


def locate_reference(name: str, folder: Path | None = None) -> str:
    """A data set, or its statistics: an existing .npz file or its URL. Raises ValueError."""
    if not name.endswith(".npz"):
        return locate_data(name, folder)
    return locate_file(name, folder)


def locate_features(name: str, folder: Path | None = None) -> str:
    """A feature network: `inception`, or what `locate` finds. Raises ValueError."""
    return name if name == "inception" else locate(name, folder)


def locate_file(name: str, folder: Path | None = None) -> str:
    """An existing file, as typed or relative to `folder`; a URL is returned unchanged. Raises ValueError."""
    if is_address(name):
        return name
    found = _existing(name, folder)
    if found is None:
        raise ValueError("no such file")
    if not os.path.isfile(found):
        raise ValueError("is a folder; give a file" if os.path.isdir(found) else "is no regular file")
    return str(found.resolve())


def _existing(name: str, folder: Path | None) -> Path | None:
    paths = [] if not name.strip() else [Path(os.path.expanduser(name)), *([folder / name] if folder else [])]
    return next((p for p in paths if os.path.exists(p)), None)


def is_url(name: str) -> bool:
    return name.startswith(("https://", "http://"))


def is_address(name: str) -> bool:
    """Whether this is a URL. Raises ValueError if it is meant to be one."""
    if not is_url(name):
        return False
    try:
        urlsplit(name)
    except ValueError as error:
        raise ValueError(f"not an address: {error}") from None
    return True


def published(name: str) -> Published | None:
    """The published teacher with this short name, if a plugin registers one. Raises UserError if several plugins do."""
    return load_plugins().item("published", name, Published) if ":" in name else None


def open_path(source: str, sha256: str | None = None) -> Path:
    """The path of a located source; in a folder, its newest network. A URL is fetched, or found in the cache. Raises UserError."""
    from registry.files.downloads import fetch  # here, since urllib takes a moment to load and most commands do not need it

    if is_url(source):
        return fetch(source, sha256)
    if found := published(source):
        return fetch(found.url, sha256) if found.url else _downloaded_by_hand(found)
    path = Path(os.path.expanduser(source))
    if newest := newest_network(path):
        return newest
    return path if os.path.isfile(path) else _shipped_file(source, ".pt") or path


def newest_network(folder: Path) -> Path | None:
    """The newest snapshot or training state in a folder, by the last number in its name; None if there is none.

    Of equally new ones, snapshots come before states, and pickles first. PFGM++ has training-state-*.pkl beside those in .pt.
    """
    files = [*folder.glob("network-snapshot-*"), *folder.glob("training-state-*")] if os.path.isdir(folder) else []

    def rank(path: Path) -> tuple[int, bool, bool]:
        return int((re.findall(r"\d+", path.stem) or [-1])[-1]), path.name.startswith("network"), path.suffix == ".pkl"

    return max((p for p in files if p.suffix in (".pkl", ".pt", ".safetensors")), key=rank, default=None)


def _downloaded_by_hand(teacher: Published) -> Path:
    """A teacher's file under DISTILL_TEACHERS or in the cache folder, or the newest file in its folder. Raises UserError."""
    from registry.files.downloads import cache_folder

    name = teacher.name.partition(":")[2]
    places = [Path(os.path.expanduser(p)) for p in (os.environ.get("DISTILL_TEACHERS"), cache_folder()) if p]
    for path in (place / name for place in places):
        for file in (path.with_name(path.name + suffix) for suffix in (".pkl", ".pt")):
            if os.path.isfile(file):  # what cannot be looked at is not there
                return file
        if found := newest_network(path):
            return found
    path = places[0] / name
    raise UserError(
        f"{teacher.name}: not downloaded yet, and it must be downloaded by hand: {teacher.by_hand}, and put it at {path}.pkl (or "
        f".pt, or a folder {path} with its network-snapshot-*.pkl or training-state-*); DISTILL_TEACHERS can name another folder"
    )


def whereabouts(source: str) -> str:
    """One line for people: where a teacher's file is, where it comes from, or how to get it. Downloads nothing."""
    found = published(source)
    url = source if is_url(source) else found.url if found else None
    if url:
        return f"downloaded from {url} when the run starts"
    try:
        return str(open_path(source))
    except UserError as error:
        return str(error)


def locate_recipe(name: str) -> Path:
    """The path of a recipe, given as a path or as the bare name of a shipped recipe. Raises UserError."""
    return _locate_toml(name, "recipe", [p for p in shipped().rglob("*.toml") if p.parent.name != STUDIES])


def locate_study(name: str) -> Path:
    """The path of a study's file, given as a path, as a study's folder, or as the bare name of a shipped one. Raises UserError."""
    folder = Path(os.path.expanduser(name))
    return _locate_toml(
        str(folder / "study.toml") if os.path.isdir(folder) else name, "study", [*(shipped() / STUDIES).glob("*.toml")]
    )


RECIPE, ERROR = "recipe.toml", "error.txt"
"""The resolved recipe in a run's folder."""
STUDIES = "studies"
"""The folder of the shipped studies, among the recipes."""


def _locate_toml(name: str, what: str, files: list[Path]) -> Path:
    path = Path(os.path.expanduser(name))
    if not name.strip():
        raise UserError(f"a {what} without a name")
    if what == "recipe" and os.path.isfile(path / RECIPE):  # of a run
        return path / RECIPE
    if os.path.isfile(path):
        return path
    found = _shipped_file(name, ".toml", files)
    if found:
        return found
    if os.path.isdir(path):
        raise UserError(f"{name}: this is a folder; a {what} is a TOML file")
    if os.path.exists(path):
        raise UserError(f"{cut(name)}: is no regular file; a {what} is a TOML file")
    known = sorted({p.stem for p in files})
    raise UserError(f"{cut(name)}: no such {what}{near(Path(name).stem, known)}; shipped: {', '.join(known)}")


def _shipped_file(name: str, suffix: str, files: list[Path] | None = None) -> Path | None:
    wanted = name.removesuffix(suffix)
    files = sorted(shipped().rglob(f"*{suffix}") if files is None else files, key=lambda p: (len(p.parts), p))
    return next((p for p in files if wanted in (p.stem, p.relative_to(shipped()).with_suffix("").as_posix())), None)
