"""Downloads, from a real server that misbehaves."""

from __future__ import annotations

import hashlib
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from random import Random
from types import SimpleNamespace

import pytest
import torch
from filelock import FileLock

from registry.core.errors import UserError
from registry.files import downloads
from registry.files.downloads import fetch
from registry.files.locate import locate
from registry.plugins.loading import load_plugins
from tests.conftest import environment, error_line

Cli = Callable[..., subprocess.CompletedProcess[str]]
X, SIGMA = torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(0)), torch.tensor([0.5, 2.0])


class Server(ThreadingHTTPServer):
    """Serves one content, misbehaving as given by `behaviours`, and records the requests."""

    content = b"\x80" + Random(0).randbytes(299_998) + b"\x80"  # no web page, from the front and from the back
    daemon_threads = True

    def __init__(self, *behaviours: str) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.behaviours, self.requests = list(behaviours), []  # type: ignore[var-annotated]
        self.url = f"http://127.0.0.1:{self.server_address[1]}/teacher.pkl"


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        self.server.requests.append((self.path, self.headers.get("Range")))
        behaviour = self.server.behaviours.pop(0) if self.server.behaviours else ""
        content, start = self.server.content, 0
        if behaviour in ("404", "500", "503"):
            self.send_error(int(behaviour))
            return
        if behaviour == "redirect":
            self.send_response(302)
            self.send_header("Location", "/elsewhere/teacher.pkl")
            self.end_headers()
            return
        tag = '"1"'
        if behaviour == "login":
            content = b"\n<!DOCTYPE html><title>Please log in</title>"
        if behaviour == "marked login":
            content = b"\xef\xbb\xbf<html><title>Please log in</title>"
        if behaviour == "empty":
            content = b""
        if behaviour == "new version":
            content, tag = content[::-1], '"2"'
        if (asked := self.headers.get("Range")) and behaviour != "no ranges" and self.headers.get("If-Range", tag) == tag:
            start = int(asked.removeprefix("bytes=").removesuffix("-"))
        if behaviour == "another part":
            start = len(content) // 2
        self.send_response(206 if start or behaviour == "all as a part" else 200)
        if behaviour in ("another part", "all as a part"):
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        if behaviour != "endless":
            self.send_header("Content-Length", str(len(content) - start))
        if behaviour == "packed":
            self.send_header("Content-Encoding", "gzip")
        self.send_header("ETag", tag)
        self.end_headers()
        body = content[start:]
        if behaviour.startswith("truncate"):
            body = body[: len(body) // 3]
        if behaviour == "slow":
            for i in range(0, len(body), 30_000):
                self.wfile.write(body[i : i + 30_000])
                time.sleep(0.05)
        else:
            self.wfile.write(body)

    def log_message(self, *args: object) -> None: ...


@contextmanager
def serving(*behaviours: str) -> Iterator[Server]:
    with Server(*behaviours) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("DISTILL_CACHE_DIR", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.mark.parametrize(
    ("behaviours", "requests"),
    [
        ((), [None]),
        (("slow",), [None]),
        (("redirect",), [None, None]),
        (("all as a part",), [None]),
        (("500", "503"), [None, None, None]),  # fails twice, then serves
        (("truncate",), [None, "bytes=100000-"]),  # resumes where it stopped
        (("truncate", "truncate"), [None, "bytes=100000-", "bytes=166666-"]),
        (("truncate", "no ranges"), [None, "bytes=100000-"]),  # starts over if the server cannot resume
    ],
)  # fmt: skip
def test_a_download_is_complete(behaviours: tuple[str, ...], requests: list[str | None], cache: Path) -> None:
    with serving(*behaviours) as server:
        path = downloads.fetch(server.url, hashlib.sha256(Server.content).hexdigest())
        assert path.read_bytes() == Server.content
        assert [asked for _, asked in server.requests] == requests
        assert downloads.fetch(server.url) == path
        assert len(server.requests) == len(requests)  # the second call uses the cache
    assert not list(cache.glob("*.part*"))


def test_a_download_of_unknown_length_does_not_fill_the_disk(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with serving("endless") as server:
        assert downloads.fetch(server.url).read_bytes() == Server.content
    monkeypatch.setattr(downloads, "SPARE", 0)
    monkeypatch.setattr(downloads.shutil, "disk_usage", lambda folder: SimpleNamespace(free=-1))
    with serving("endless") as server, pytest.raises(UserError, match=r"there is no room for it: .* and the disk is nearly full"):
        downloads.fetch(server.url)
    assert not list(cache.glob("*.part*"))


def test_another_version_on_the_server_is_not_spliced(cache: Path) -> None:
    with serving("truncate 1", "new version") as server:
        assert downloads.fetch(server.url).read_bytes() == Server.content[::-1]
        assert [asked for _, asked in server.requests] == [None, "bytes=100000-"]


def test_a_part_that_nobody_has_asked_for_is_no_file(cache: Path) -> None:
    """At the first request, or instead of the rest of a file."""
    for behaviours in (("another part",), ("truncate", "another part")):
        with serving(*behaviours) as server:
            assert downloads.fetch(server.url).read_bytes() == Server.content
            assert len(server.requests) == len(behaviours) + 1


@pytest.mark.parametrize(
    ("content_range", "have", "right"),
    [
        ("bytes 0-9/10", 0, True), ("bytes 0-8/10", 0, False), ("bytes 5-9/10", 5, True), ("bytes 5-8/10", 5, False),
        ("bytes 4-9/10", 5, False), ("bytes 5-9/*", 5, True), ("bytes */10", 5, False), ("", 0, False), ("items 0-9/10", 0, False),
    ],
)  # fmt: skip
def test_the_rest_of_a_file(content_range: str, have: int, right: bool) -> None:
    assert downloads.is_the_rest(content_range, have) == right


def test_who_waits_for_another_process_is_told_so(cache: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with serving() as server:
        lock = downloads.place_of(server.url)
        downloads.cache_folder().mkdir(parents=True, exist_ok=True)
        with FileLock(lock.with_name(f"{lock.name}.lock")):
            thread = threading.Thread(target=downloads.fetch, args=(server.url,))
            thread.start()
            deadline = time.monotonic() + 60
            while "waiting for another process that downloads http" not in capsys.readouterr().err:
                assert time.monotonic() < deadline
                time.sleep(0.1)
        thread.join(60)
        assert lock.read_bytes() == Server.content


def test_a_download_that_fails(cache: Path) -> None:
    with serving("404") as server:
        with pytest.raises(UserError, match="the server answered 404 Not Found; download it yourself"):
            downloads.fetch(server.url)
        assert len(server.requests) == 1  # not retried in vain
        url = server.url
    with pytest.raises(UserError, match=r"cannot be downloaded: .*refused"):
        downloads.fetch(url + "x")


@pytest.mark.parametrize("page", ["login", "marked login"])
def test_a_web_page_in_place_of_a_file_is_not_kept(page: str, cache: Path) -> None:
    with serving(page) as server:
        with pytest.raises(UserError, match="the server sent a web page instead of a file"):
            downloads.fetch(server.url)
        assert not list(cache.glob("*.part")) + list(cache.glob("*.pkl"))
        assert downloads.fetch(server.url).read_bytes() == Server.content


def test_a_different_file_than_expected_is_refused(cache: Path) -> None:
    with serving() as server, pytest.raises(UserError, match=f"expected {'0' * 64}; the server has a different file"):
        downloads.fetch(server.url, "0" * 64)
    assert not list(cache.glob("*.part")) + list(cache.glob("*.pkl"))


def test_a_file_in_the_cache_outlives_a_wrong_hash(cache: Path) -> None:
    with serving() as server:
        path = downloads.fetch(server.url)
        with pytest.raises(UserError, match="the server has a different file"):
            downloads.fetch(server.url, "0" * 64)
        assert downloads.fetch(server.url) == path
        assert len(server.requests) == 2  # the third call uses the cache


@pytest.mark.parametrize("harm", ["truncated", "bit flipped", "note lost", "left over from a break", "an odd version"])
def test_a_damaged_cache_is_noticed_and_repaired(harm: str, cache: Path) -> None:
    with serving() as server:
        path = downloads.fetch(server.url)
        if harm == "truncated":
            path.write_bytes(Server.content[:1000])
        elif harm == "bit flipped":
            path.write_bytes(b"x" + Server.content[1:])
        elif harm == "note lost":
            downloads._note(path).unlink()
        else:
            path.with_name(path.name + ".part").write_bytes(Server.content[:1000])
            path.with_name(path.name + ".part.tag").write_bytes(b'"1"' if harm == "left over from a break" else b'"\xb1"')
            path.unlink()
        assert downloads.fetch(server.url).read_bytes() == Server.content
        assert len(server.requests) == 2


def test_processes_share_one_download(cache: Path, tmp_path: Path) -> None:
    with serving("slow") as server:
        code = f"from registry.files.downloads import fetch; print(len(fetch({server.url!r}).read_bytes()))"
        processes = [
            subprocess.Popen(
                [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment()
            )
            for _ in range(3)
        ]
        assert [p.communicate()[0].strip() for p in processes] == ["300000"] * 3
        assert len(server.requests) == 1


def test_a_teacher_from_a_url(cache: Path, cli: Cli, recipe_file: Callable[..., Path], tmp_path: Path) -> None:
    path = recipe_file()
    with serving() as server:
        Server.content, before = (tmp_path / "teacher.pt").read_bytes(), Server.content
        try:
            done = cli("--recipe", path, "--set", f"teacher.source={server.url}", env={"DISTILL_CACHE_DIR": str(cache)})
        finally:
            Server.content = before
        assert done.returncode == 0, done.stderr
        assert "downloading http://127.0.0.1" in done.stderr
        bad = cli(
            "--recipe",
            path,
            "--set",
            f"teacher.source={server.url}",
            "--set",
            "teacher.sha256=12",
            env={"DISTILL_CACHE_DIR": str(cache)},
        )
        assert "[teacher] sha256 = '12': must be" in bad.stderr or "sha256" in error_line(bad)


def test_published_teachers_have_short_names() -> None:
    published = [name for name in load_plugins().names("published") if name.startswith("edm:")]
    assert set(published) == {"edm:cifar10-uncond", "edm:cifar10-cond", "edm:ffhq", "edm:afhqv2", "edm:imagenet64-cond"}
    assert locate("edm:ffhq") == "edm:ffhq"
    with pytest.raises(ValueError, match=r"did you mean 'edm:ffhq'"):
        locate("edm:fhq")


@pytest.mark.parametrize(
    ("behaviour", "told"),
    [
        ("empty", "the server sent nothing instead of a file"),
        ("packed", "the server sent it packed (gzip), which was not asked for"),
    ],
)
def test_an_answer_that_is_no_file_is_not_kept(behaviour: str, told: str, cache: Path) -> None:
    with serving(behaviour) as server:
        with pytest.raises(UserError) as caught:
            downloads.fetch(server.url)
        assert told in str(caught.value)
        assert not list(cache.glob("*.part")) + list(cache.glob("*.pkl"))
        assert downloads.fetch(server.url).read_bytes() == Server.content


@pytest.mark.parametrize(
    ("behaviour", "told"), [("", "it has 0.0 GiB, and there is room for 0.0"), ("endless", "it has more than 0 GiB")]
)
def test_a_file_beyond_all_bounds_is_not_taken(behaviour: str, told: str, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(downloads, "MOST_BYTES", 200_000)
    monkeypatch.setattr(downloads, "BLOCK", 50_000)
    with serving(behaviour) as server, pytest.raises(UserError) as caught:
        downloads.fetch(server.url)
    assert told in str(caught.value)
    assert not list(cache.glob("*.part"))


@pytest.mark.parametrize("url", ["http:///x.pkl", "http://a b/x.pkl", "http://example.org/" + "a" * 5000, "http://[::1/x"])
def test_what_is_no_address_is_refused_at_once_and_shortly(url: str) -> None:
    with pytest.raises(UserError, match="not an address") as raised:
        fetch(url)
    assert len(str(raised.value)) < 300
