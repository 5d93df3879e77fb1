"""Where files come from: what the user typed, beside the recipe, what travels with the package, or a URL."""

from __future__ import annotations

import difflib
from pathlib import Path

from registry.api import UserError

EDM = "https://nvlabs-fi-cdn.nvidia.com/edm/pretrained/"
PUBLISHED = {
    "edm:cifar10-uncond": EDM + "edm-cifar10-32x32-uncond-vp.pkl",
    "edm:cifar10-cond": EDM + "edm-cifar10-32x32-cond-vp.pkl",
    "edm:ffhq": EDM + "edm-ffhq-64x64-uncond-vp.pkl",
    "edm:afhqv2": EDM + "edm-afhqv2-64x64-uncond-vp.pkl",
    "edm:imagenet64-cond": EDM + "edm-imagenet-64x64-cond-adm.pkl",
}
"""Short names of EDM's published teachers."""


def shipped() -> Path:
    """The folder of recipes and small teachers that travel with the package (in a checkout: `recipes/`)."""
    package = Path(__file__).parent
    inside = package / "recipes"
    return inside if inside.is_dir() else package.parent / "recipes"


def locate(name: str, folder: Path | None = None) -> str:
    """A path that exists, or the bare name of a shipped file, as something `open_path` understands.

    A URL and the short name of a published teacher are left as they are. Else tries the path as typed, then relative to
    `folder` (the recipe's), then the shipped files. Raises ValueError.
    """
    if is_url(name) or name in PUBLISHED:
        return name
    for path in [Path(name).expanduser(), *([folder / name] if folder else [])]:
        if path.is_file():
            return str(path.resolve())
    if _shipped_file(name, ".pt"):
        return name
    known = sorted(p.stem for p in shipped().rglob("*.pt"))
    near_name = near(name, [*known, *PUBLISHED])
    raise ValueError(f"no such file{near_name}; shipped: {', '.join(known) or 'none'}; published: {', '.join(PUBLISHED)}")


def locate_data(name: str, folder: Path | None = None) -> str:
    """`digits`, `teacher`, or a folder or ZIP that exists, as typed or relative to `folder`. Raises ValueError."""
    if name in ("digits", "teacher"):
        return name
    for path in [Path(name).expanduser(), *([folder / name] if folder else [])]:
        if path.exists():
            return str(path.resolve())
    raise ValueError(f"no such data set{near(name, ['digits'])}; give 'digits', or a folder or ZIP of images in EDM's layout")


def is_url(name: str) -> bool:
    return name.startswith(("https://", "http://"))


def open_path(source: str, sha256: str | None = None) -> Path:
    """The path behind a located source; a URL is downloaded, or found in the cache. Raises UserError."""
    url = PUBLISHED.get(source, source)
    if is_url(url):
        from registry.downloads import fetch

        return fetch(url, sha256)
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
    wanted = name.removesuffix(suffix)
    files = sorted(shipped().rglob(f"*{suffix}"), key=lambda p: (len(p.parts), p))
    return next((p for p in files if wanted in (p.stem, p.relative_to(shipped()).with_suffix("").as_posix())), None)


def near(word: str, known: list[str]) -> str:
    """' (did you mean …?)' for the nearest known word, or nothing."""
    match = difflib.get_close_matches(word, known, n=1, cutoff=0.6)
    return f" (did you mean {match[0]!r}?)" if match else ""
