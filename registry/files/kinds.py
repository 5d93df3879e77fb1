"""Whether a network is a denoiser or a generator, for files of other projects, which do not say. Imports no torch.

SiD's snapshots hold a generator under the key `ema` and nothing else, and so may the file of a denoiser. Names tell them apart.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from pathlib import Path
from typing import Literal, NamedTuple

from registry.files.locate import is_url, published
from registry.plugins.component import Published
from registry.plugins.loading import load_plugins

Kind = Literal["denoiser", "generator"]

EDM_NAME = re.compile(r"(edm|baseline)-\w+-\d+x\d+-(un)?cond-(vp|ve|adm)")
"""EDM's teachers, for example edm-cifar10-32x32-uncond-vp.pkl."""
SID_NAME = re.compile(r"network-snapshot--?\d+\.\d+-\d+")
"""SiD's generators, with alpha and kimg: network-snapshot-1.200000-000512.pkl. Our own snapshots have such names, too."""
STATE_KEY = re.compile(r"G(_ema\d*)?")
"""The keys of generators in the training states of SiD and of its IPFM fork."""
SID_HAS_SUCH_NAMES = "SiD's snapshots have such names"
NOT_A_TEACHER = 'a teacher must be a denoiser, and kind = "denoiser" says that it is one'


class Guess(NamedTuple):
    """What a network is taken to be. `doubt` says why, if the file could as well be the other kind."""

    kind: Kind
    doubt: str = ""


def guess_kind(source: str | Path, key: str, keys: Collection[str]) -> Guess:
    """What the network `key` of a foreign file with these keys is, from the file's name and layout.

    Published teachers are denoisers, whatever their files hold.
    """
    if is_published(source):
        return Guess("denoiser")
    if STATE_KEY.fullmatch(key):
        return Guess("generator")
    if list(keys) != ["ema"]:
        return Guess("denoiser")
    if SID_NAME.fullmatch(stem_of(source)):
        return Guess("generator", SID_HAS_SUCH_NAMES)
    return Guess("denoiser", "it holds only 'ema' and is not named like SiD's snapshots")


def named_like_a_generator(source: str, key: str | None) -> str | None:
    """Why a file or a key in it has the name of a generator, as a clause; None if it has not. Opens no file."""
    if is_published(source):
        return None
    if key is not None:
        return f"{key!r} is a generator in SiD's training states" if STATE_KEY.fullmatch(key) else None
    return SID_HAS_SUCH_NAMES if SID_NAME.fullmatch(stem_of(source)) else None


def is_published(source: str | Path) -> bool:
    """Whether this is a published teacher: by its short name, its address, or its file's name. Opens no file."""
    if published(str(source)):
        return True
    stem, folder = stem_of(source), Path(source).parent.name
    if EDM_NAME.fullmatch(stem):
        return True
    teachers = (entry.component for entry in load_plugins().registered if isinstance(entry.component, Published))
    names = [stem_of(teacher.url) if teacher.url else teacher.name.partition(":")[2] for teacher in teachers]
    return stem in names or (folder in names and not SID_NAME.fullmatch(stem))


def stem_of(source: str | Path) -> str:
    """A file's name without its suffix, and without what the cache of downloads puts in front."""
    name = Path(re.sub("[?#].*", "", str(source)) if is_url(str(source)) else source).name
    return re.sub(r"^[0-9a-f]{12}-", "", Path(name).stem)
