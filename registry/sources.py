"""Where files come from: what the user typed, beside the recipe, what travels with the package, or a URL."""

from __future__ import annotations

import difflib
import math
import os
import re
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

PFGMPP = {
    "pfgmpp:cifar10_ncsnpp_D_128": 128.0,
    "pfgmpp:cifar10_ncsnpp_D_2048": 2048.0,
    "pfgmpp:cifar10_ncsnpp_D_inf": math.inf,
    "pfgmpp:cifar10_ncsnpp_D_2048_conditional": 2048.0,
    "pfgmpp:ffhq_ddpm_D_128": 128.0,
    "pfgmpp:ffhq_ddpm_D_inf": math.inf,
}
"""Short names of PFGM++'s published teachers with their D: folders on Google Drive, which only a person can download."""


def shipped() -> Path:
    """The folder of recipes and small teachers that travel with the package (in a checkout: `recipes/`)."""
    package = Path(__file__).parent
    inside = package / "recipes"
    return inside if inside.is_dir() else package.parent / "recipes"


def locate(name: str, folder: Path | None = None) -> str:
    """A path that exists, or the bare name of a shipped file, as something `open_path` understands.

    A URL and the short name of a published teacher are left as they are, be its file there or not. Else tries the path as
    typed, then relative to `folder` (the recipe's), then the shipped files. Raises ValueError.
    """
    if is_url(name) or name in PUBLISHED or name in PFGMPP:
        return name
    for path in [Path(name).expanduser(), *([folder / name] if folder else [])]:
        if path.is_file():
            return str(path.resolve())
    if _shipped_file(name, ".pt"):
        return name
    known = sorted(p.stem for p in shipped().rglob("*.pt"))
    published = [*PUBLISHED, *PFGMPP]
    names = f"; shipped: {', '.join(known) or 'none'}; published: {', '.join(published)}"
    raise ValueError(f"no such file{near(name, [*known, *published]) or names}")


def locate_data(name: str, folder: Path | None = None) -> str:
    """`digits`, `teacher`, or a folder or ZIP that exists, as typed or relative to `folder`. Raises ValueError."""
    wanted = "give 'digits', or a folder or ZIP of images in EDM's layout"
    if name in ("digits", "teacher"):
        return name
    if name.endswith(".npz"):
        raise ValueError(f"statistics of images serve the metric fid alone; {wanted}")
    found = _existing(name, folder)
    if found is None:
        raise ValueError(f"no such data set{near(name, ['digits'])}; {wanted}")
    return str(found.resolve())


def locate_reference(name: str, folder: Path | None = None) -> str:
    """A data set, or statistics of one: an .npz file that exists, or its URL. Raises ValueError."""
    if not name.endswith(".npz"):
        return locate_data(name, folder)
    return locate_file(name, folder)


def locate_file(name: str, folder: Path | None = None) -> str:
    """A file that exists, as typed or relative to `folder`; a URL is left as it is. Raises ValueError."""
    if is_url(name):
        return name
    found = _existing(name, folder)
    if found is None or not found.is_file():
        raise ValueError("no such file")
    return str(found.resolve())


def _existing(name: str, folder: Path | None) -> Path | None:
    paths = [Path(name).expanduser(), *([folder / name] if folder else [])]
    return next((p for p in paths if p.exists()), None)


def is_url(name: str) -> bool:
    return name.startswith(("https://", "http://"))


def open_path(source: str, sha256: str | None = None) -> Path:
    """The path behind a located source; a URL is downloaded, or found in the cache. Raises UserError."""
    if source in PFGMPP:
        return _downloaded_by_hand(source)
    url = PUBLISHED.get(source, source)
    if is_url(url):
        from registry.downloads import fetch

        return fetch(url, sha256)
    path = Path(source).expanduser()
    return path if path.is_file() else _shipped_file(source, ".pt") or path


def _downloaded_by_hand(name: str) -> Path:
    """The file of a PFGM++ teacher under DISTILL_TEACHERS or in the cache folder; the newest of a folder. Raises UserError."""
    from registry.downloads import cache_folder

    places = [Path(p).expanduser() for p in (os.environ.get("DISTILL_TEACHERS"), cache_folder()) if p]
    for path in (place / name.removeprefix("pfgmpp:") for place in places):
        for file in (path.with_name(path.name + suffix) for suffix in (".pkl", ".pt")):
            if file.is_file():
                return file
        found = [*path.glob("network-snapshot-*.pkl"), *path.glob("training-state-*.pt")]
        if found:
            return max(found, key=lambda p: (int((re.findall(r"\d+", p.stem) or [-1])[-1]), p.suffix == ".pkl"))
    path = places[0] / name.removeprefix("pfgmpp:")
    raise UserError(
        f"{name}: not downloaded yet, which only you can do: take {path.name} from the Google Drive folders that the README of "
        f'https://github.com/Newbeeer/pfgmpp names under "Checkpoints", and put it at {path}.pkl (or .pt, or a folder {path} '
        f"with its network-snapshot-*.pkl or training-state-*.pt); DISTILL_TEACHERS can name another folder"
    )


def whereabouts(name: str) -> str:
    """Where a teacher's file is, or comes from, or how to get it: one line for people. Fetches nothing."""
    url = PUBLISHED.get(name, name)
    if is_url(url):
        return f"downloaded from {url} when the run starts"
    try:
        return str(open_path(name))
    except UserError as error:
        return str(error)


def published_D(name: str) -> float | None:
    """The dimension of a published teacher by its short name; None for any other source."""
    return PFGMPP.get(name, math.inf if name in PUBLISHED else None)


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
    known = sorted({p.stem for p in shipped().rglob("*.toml")})
    raise UserError(f"{name}: no such recipe{near(Path(name).stem, known)}; shipped: {', '.join(known)}")


def _shipped_file(name: str, suffix: str) -> Path | None:
    wanted = name.removesuffix(suffix)
    files = sorted(shipped().rglob(f"*{suffix}"), key=lambda p: (len(p.parts), p))
    return next((p for p in files if wanted in (p.stem, p.relative_to(shipped()).with_suffix("").as_posix())), None)


def near(word: str, known: list[str]) -> str:
    """' (did you mean …?)' for the nearest known word, or nothing."""
    match = difflib.get_close_matches(word, known, n=1, cutoff=0.6) or [k for k in known if k.lower() == word.lower()]
    return f" (did you mean {match[0]!r}?)" if match else ""
