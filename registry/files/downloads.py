"""Downloads files from URLs into a cache: once for all processes, resumed if interrupted, checked, then moved into place.

urllib and filelock do most of the work. pooch, the usual library, can neither resume a download nor lock the cache between
processes; both matter for 300 MB files on eight ranks.
"""

from __future__ import annotations

import codecs
import hashlib
import http.client
import json
import os
import re
import shutil
import stat
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import platformdirs
from filelock import Timeout

from registry.core.errors import UserError
from registry.core.locks import locked
from registry.core.text import shown
from registry.core.version import version

if TYPE_CHECKING:
    from rich.progress import Progress

TRIES, PATIENCE, BLOCK = 5, 30.0, 1 << 20
"""Number of attempts; seconds without data before one ends; bytes per read."""
LONGEST = 4000
"""Characters of an address."""
MOST_BYTES = 2**35
"""Of a file: several times the largest training state of the papers."""

SPARE = 2**28
"""Bytes that stay free on the disk while a file comes whose length the server does not say."""


def cache_folder() -> Path:
    """Where downloads are kept: DISTILL_CACHE_DIR, or the platform's cache folder. Raises UserError if there can be none."""
    try:
        folder = Path(os.environ.get("DISTILL_CACHE_DIR") or platformdirs.user_cache_dir("distill"))
    except RuntimeError:
        raise UserError("there is no home folder for the cache here; set DISTILL_CACHE_DIR to a folder") from None
    try:
        is_other = not stat.S_ISDIR(folder.stat().st_mode)
    except FileNotFoundError:
        return folder
    except OSError as error:
        raise UserError(f"the cache folder {folder} cannot be used: {error.strerror}; set DISTILL_CACHE_DIR to another") from None
    if is_other:
        raise UserError(f"the cache folder {folder} is no folder; set DISTILL_CACHE_DIR to one")
    return folder


def fetch(url: str, sha256: str | None = None) -> Path:
    """The file behind an http(s) URL, from the cache if it is complete there. Raises UserError.

    The cache holds the file and, beside it, its length and hash from when the download finished. A file that does not match
    these, or `sha256`, is fetched again.
    """
    folder, path = cache_folder(), place_of(url)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if not _is_whole(path, sha256):  # a file that is there is nobody's alone
            with _alone(path.with_name(f"{path.name}.lock"), url):
                if not _is_whole(path, sha256):
                    _download(url, path, sha256)
    except Timeout as error:
        raise UserError(f"{url}: another process holds the lock {error.lock_file}") from None
    except OSError as error:
        raise UserError(
            f"{url}: cannot be saved in {folder}: {error.strerror or error} (set DISTILL_CACHE_DIR to another folder)"
        ) from None
    return path


@contextmanager
def _alone(lock: Path, url: str) -> Iterator[None]:
    """Hold a file's lock. Whoever waits for another process is told so."""
    with ExitStack() as held:
        try:
            held.enter_context(locked(lock, 1.0))
        except Timeout:
            print(f"waiting for another process that downloads {url}", file=sys.stderr)
            held.enter_context(locked(lock, -1))
        yield


def place_of(url: str) -> Path:
    """Where in the cache a download is, or will be. Raises UserError."""
    try:
        parts = urlsplit(url)
        name = Path(parts.path).name or "file"
    except ValueError as error:
        raise UserError(f"{shown(url)}: not an address: {error}") from None
    if not parts.hostname or len(url) > LONGEST or not url.isprintable() or " " in url:
        raise UserError(f"{shown(url)}: not an address")
    return cache_folder() / f"{hashlib.sha256(url.encode()).hexdigest()[:12]}-{name}"


def _is_whole(path: Path, sha256: str | None) -> bool:
    """Whether the cache has this file, complete and undamaged."""
    try:
        noted = json.loads(_note(path).read_text())
        if path.stat().st_size != noted["length"] or (sha256 and sha256.lower() != noted["sha256"]):
            return False
        with open(path, "rb") as file:
            return bool(hashlib.file_digest(file, "sha256").hexdigest() == noted["sha256"])
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return False


def _note(path: Path) -> Path:
    return path.with_name(path.name + ".json")


def _download(url: str, path: Path, sha256: str | None) -> None:
    """Fetch into a part file, retrying from where the last attempt stopped, then move it into place. Raises UserError."""
    part = path.with_name(path.name + ".part")
    reason = ""
    for attempt in range(TRIES):
        if attempt:
            time.sleep(min(2.0 ** (attempt - 2), 8))
        try:
            _continue(url, part, sha256)
        except urllib.error.HTTPError as error:
            reason = f"the server answered {error.code} {shown(error.reason)}"
            if error.code == 416:  # our part is not the start of the server's file
                _forget(part)
            elif 400 <= error.code < 500 and error.code not in (408, 425, 429):
                break
            continue
        except _Unwanted as error:
            _forget(part)
            raise UserError(f"{url}: {error}; download it yourself and give its path") from None
        except (urllib.error.URLError, http.client.HTTPException, TimeoutError, ConnectionError, _Short, ValueError) as error:
            reason = shown(error.reason if isinstance(error, urllib.error.URLError) else error) or type(error).__name__
            continue
        with open(part, "rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
        if sha256 and found != sha256.lower():
            _forget(part)
            raise UserError(f"{url}: its sha256 is {found}, expected {sha256.lower()}; the server has a different file")
        if is_page(part) or not part.stat().st_size:
            what = "a web page" if part.stat().st_size else "nothing"
            _forget(part)
            raise UserError(f"{url}: the server sent {what} instead of a file; download it yourself and give its path")
        _note(path).unlink(missing_ok=True)  # of an older file, which stays until this one is whole
        os.replace(part, path)
        _tag(part).unlink(missing_ok=True)
        _note(path).write_text(json.dumps({"url": url, "length": path.stat().st_size, "sha256": found}))
        return
    raise UserError(f"{url}: cannot be downloaded: {reason}; download it yourself and give its path")


def is_page(path: Path) -> bool:
    """Whether a file is a web page: a login's, for instance. No file of networks or numbers begins with this character, but for one
    of safetensors, by its length."""
    with open(path, "rb") as file:
        start = file.read(256)
    for mark in (codecs.BOM_UTF8, codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE):
        start = start.removeprefix(mark)
    return start[8:10] != b'{"' and start.replace(b"\0", b"").lstrip().startswith(b"<")


def _tag(part: Path) -> Path:
    """Where it stands which version of the file a part belongs to."""
    return part.with_name(part.name + ".tag")


def _forget(part: Path) -> None:
    """Remove a part that nothing is to be appended to."""
    part.unlink(missing_ok=True)
    _tag(part).unlink(missing_ok=True)


class _Short(Exception):
    """Fewer bytes arrived than were announced."""


class _Unwanted(Exception):
    """An answer that another attempt would not make better."""


def _continue(url: str, part: Path, sha256: str | None) -> None:
    """Append the missing bytes to the part file, or start over if the server cannot resume."""
    tag = _tag(part)
    known = tag.read_text("utf-8", errors="replace") if part.exists() and tag.exists() else ""
    known = known if known.isascii() and known.isprintable() else ""
    sure = part.exists() and (known or sha256)  # of an unknown version, nothing can be appended to
    have = part.stat().st_size if sure else 0
    headers = {"User-Agent": f"distill/{version()}", "Accept-Encoding": "identity"}
    resume = {"Range": f"bytes={have}-", "If-Range": known} if have else {}
    request = urllib.request.Request(url, headers=headers | {k: v for k, v in resume.items() if v})
    with urllib.request.urlopen(request, timeout=PATIENCE) as answer:
        a_part = answer.status == 206
        if a_part and not is_the_rest(answer.headers.get("Content-Range", f"bytes {have}-*/*" if have else ""), have):
            tag.unlink(missing_ok=True)
            raise _Short("it sent another part of the file than was asked for")
        have = have if a_part else 0
        coding = answer.headers.get("Content-Encoding", "identity")
        if coding.strip().lower() != "identity":
            raise _Unwanted(f"the server sent it packed ({shown(coding, 20)}), which was not asked for")
        tag.write_text(answer.headers.get("ETag") or answer.headers.get("Last-Modified") or "", "utf-8")
        announced = answer.headers.get("Content-Length")
        total = have + int(announced) if announced and announced.isdecimal() else None
        free = shutil.disk_usage(part.parent).free
        if total is not None and total - have > min(free, MOST_BYTES):
            raise _Unwanted(f"it has {total / 2**30:.1f} GiB, and there is room for {min(free, MOST_BYTES) / 2**30:.1f}")
        with open(part, "ab" if have else "wb") as file, _bar(url, total) as bar:
            task = bar.add_task(Path(urlsplit(url).path).name, total=total, completed=have)
            while block := answer.read(BLOCK):
                file.write(block)
                bar.advance(task, len(block))
                if file.tell() > MOST_BYTES:
                    raise _Unwanted(f"it has more than {MOST_BYTES / 2**30:.0f} GiB")
                if total is None and file.tell() > SPARE // 16 and shutil.disk_usage(part.parent).free < SPARE:
                    raise _Unwanted(
                        f"there is no room for it: {file.tell() / 2**30:.1f} GiB have come, and the disk is nearly full"
                    )
    if total is not None and part.stat().st_size != total:
        raise _Short(f"only {part.stat().st_size} of {total} bytes arrived")


def is_the_rest(content_range: str, have: int) -> bool:
    """Whether an answer brings all bytes of a file but the first ones."""
    found = re.fullmatch(r"bytes (\d+)-(\d+|\*)/(\d+|\*)", content_range.strip())
    return found is not None and int(found[1]) == have and ("*" in found.groups() or int(found[2]) + 1 == int(found[3]))


def _bar(url: str, total: int | None) -> Progress:
    """A progress bar on a terminal; one line otherwise."""
    from rich.console import Console  # imported here: it is slow to load, and most commands download nothing
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

    console = Console(stderr=True)
    if not console.is_terminal:
        size = f" ({total / 2**20:.0f} MB)" if total else ""
        print(f"downloading {url}{size}", file=sys.stderr)
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
    return Progress(*columns, console=console, transient=True, disable=not console.is_terminal)
