"""What a server may send that is no Hub: paths for hashes, answers of other commits, bytes that drip or never end."""

from __future__ import annotations

import gzip
import json
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import constants
from huggingface_hub.errors import HTTPError
from huggingface_hub.utils import get_session, set_client_factory
from huggingface_hub.utils._http import default_client_factory

from lgd_timm.errors import WeightsError
from lgd_timm.hub import api
from lgd_timm.hub.cache import RepoCache
from lgd_timm.hub.verify import checked_facts, is_path_below
from lgd_timm.utils.http import LARGEST_ERROR, Truncated, open_session, over_http, read_all, within

COMMIT, SHA256 = "a" * 40, "b" * 64
FILE = {"rfilename": "config.json", "size": 2, "blobId": "c" * 40}
Answer = Callable[[BaseHTTPRequestHandler], None]


def client() -> Any:
    """A session of the class that the Hub's client uses, without its hooks."""
    return type(get_session())(follow_redirects=True)


def whole(session: Any, url: str) -> bytes:
    with over_http(session, url, 0, headers={}) as body:
        return b"".join(body.chunks)


READERS = {"read_all": lambda session, url: read_all(session, url, headers={}, limit=10**6), "over_http": whole}


@contextmanager
def served(answer: Answer) -> Iterator[str]:
    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *_: object) -> None: ...

        def do_GET(self) -> None:
            with suppress(OSError):
                answer(self)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()


def sent(content: bytes, *, status: int = 200, **headers: str) -> Answer:
    def answer(to: BaseHTTPRequestHandler) -> None:
        to.send_response(status)
        for name, value in {"Content-Length": str(len(content)), **headers}.items():
            to.send_header(name.replace("_", "-"), value)
        to.end_headers()
        to.wfile.write(content)

    return answer


@pytest.fixture
def resolve(monkeypatch: pytest.MonkeyPatch) -> Callable[..., api.Snapshot]:
    """`api.resolve`, as if the Hub had answered this."""

    def call(info: Any, *, revision: str | None = None) -> api.Snapshot:
        monkeypatch.setattr(api, "_ask", lambda *_: json.dumps(info).encode())
        return api.resolve("me/x", revision, None)

    return call


def test_a_hubs_answer_is_taken(resolve: Callable[..., api.Snapshot]) -> None:
    large = {"rfilename": "a/b.safetensors", "size": 9, "blobId": "d" * 40}
    large["lfs"] = {"size": 9, "sha256": SHA256, "pointerSize": 1}
    found = resolve({"id": "me/x", "sha": COMMIT, "siblings": [FILE, large]}, revision=COMMIT)
    assert found.files == {
        "config.json": {"size": 2, "git_sha1": "c" * 40},
        "a/b.safetensors": {"size": 9, "sha256": SHA256},
    }


@pytest.mark.parametrize(
    "change",
    [
        {"sha": "/home/me"},
        {"sha": "../../.."},
        {"sha": f"{COMMIT}\n"},
        {"sha": COMMIT.upper()},
        {"sha": 7},
        {"siblings": [{**FILE, "blobId": "/home/me/thesis.tex"}]},
        {"siblings": [{**FILE, "blobId": f"{'c' * 39}/"}]},
        {"siblings": [{**FILE, "size": -1}]},
        {"siblings": [{**FILE, "size": "2"}]},
        {"siblings": [{**FILE, "size": 1e308}]},
        {"siblings": [{**FILE, "lfs": {"size": 2, "sha256": "../x", "pointerSize": 1}}]},
        {"siblings": [{**FILE, "lfs": {"size": True, "sha256": SHA256, "pointerSize": 1}}]},
        {"siblings": [{**FILE, "lfs": {"size": 2}}]},
        {"siblings": [{**FILE, "lfs": [1]}]},
        {"siblings": [7]},
        {"siblings": 7},
    ],
    ids=str,
)
def test_what_would_become_a_path_is_checked(resolve: Callable[..., api.Snapshot], change: dict[str, Any]) -> None:
    with pytest.raises(WeightsError, match="Is HF_ENDPOINT a Hub"):
        resolve({"id": "me/x", "sha": COMMIT, "siblings": [FILE], **change})


def test_the_commit_that_was_asked_for_is_the_one_that_is_answered(resolve: Callable[..., api.Snapshot]) -> None:
    with pytest.raises(WeightsError, match=f"commit {'e' * 40} was asked for, and .* answers {COMMIT}"):
        resolve({"id": "me/x", "sha": COMMIT, "siblings": [FILE]}, revision="e" * 40)


@pytest.mark.parametrize("content", [b"", b"[]", b"{", b"[" * 100_000, b"null", b"\xff"])
def test_what_is_no_json_of_a_hub_is_refused(monkeypatch: pytest.MonkeyPatch, content: bytes) -> None:
    monkeypatch.setattr(api, "_ask", lambda *_: content)
    with pytest.raises(WeightsError, match="Is HF_ENDPOINT a Hub"):
        api.resolve("me/x", None, None)


@pytest.mark.parametrize(
    "change",
    [
        {"commit": "../.."},
        {"commit": "f" * 40},
        {"repo_id": "you/y"},
        {"files": {"a": {"size": 1, "sha256": "/x"}}},
        {"files": {"a": {"size": -1, "sha256": SHA256}}},
        {"files": {"a": {"size": 1}}},
        {"files": {"a": {"size": 1, "sha256": SHA256, "more": 1}}},
        {"files": [1]},
        {"files": None},
    ],
    ids=str,
)
def test_a_remembered_list_is_checked_like_an_answer(tmp_path: Path, change: dict[str, Any]) -> None:
    cache = RepoCache("me/x", tmp_path)
    whole = {"repo_id": "me/x", "commit": COMMIT, "files": {"a": {"size": 1, "sha256": SHA256}}, "private": False}
    file = cache.root / "lgd_timm" / f"{COMMIT}.json"
    file.parent.mkdir(parents=True)
    file.write_text(json.dumps(whole))
    assert cache.read_file_list(COMMIT) is not None
    file.write_text(json.dumps({**whole, **change}))
    assert cache.read_file_list(COMMIT) is None


@pytest.mark.parametrize(
    "name", ["", "/a", "../a", "a/../b", "a//b", "./a", "a\\b", "c:a", "a\x1b", "a\0", "\ud800", "a" * 300, None, 7]
)
def test_names_that_are_no_plain_paths(name: object) -> None:
    assert not is_path_below(name)


@pytest.mark.parametrize("name", ["config.json", "a/b.c", "é.txt", ".gitattributes", "a..b"])
def test_names_that_are(name: str) -> None:
    assert is_path_below(name)


def test_a_hash_is_hexadecimal_from_end_to_end() -> None:
    for wrong in (f"{SHA256}\n", SHA256[:-1], SHA256.upper(), f"{SHA256}a", "", None, 7):
        with pytest.raises(ValueError, match="no hash"):
            checked_facts(1, sha256=wrong)


# ------------------------------------------------------------------------------------------------------- without end


def drip(to: BaseHTTPRequestHandler, *, status: int = 200) -> None:
    to.send_response(status)
    to.send_header("Content-Length", "100000")
    to.end_headers()
    for _ in range(200):
        to.wfile.write(b" ")
        to.wfile.flush()
        time.sleep(0.1)


def drip_headers(to: BaseHTTPRequestHandler) -> None:
    to.wfile.write(b"HTTP/1.1 200 OK\r\n")
    for number in range(200):
        to.wfile.write(b"X-%d: y\r\n" % number)
        to.wfile.flush()
        time.sleep(0.1)


def redirect(to: BaseHTTPRequestHandler) -> None:
    time.sleep(0.3)
    sent(b"", status=302, Location=f"{to.path}a")(to)


def drip_error(to: BaseHTTPRequestHandler) -> None:
    drip(to, status=500)


@pytest.mark.parametrize("answer", [drip, drip_headers, redirect, drip_error])
@pytest.mark.parametrize("how", READERS)
def test_a_server_that_drips_is_given_up(answer: Answer, how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LGD_TIMM_HUB_TIMEOUT", "0.5")
    start = time.monotonic()
    with served(answer) as url, client() as session:
        with pytest.raises((Truncated, HTTPError)):
            READERS[how](session, url)
        assert time.monotonic() - start < 10


def test_a_body_is_read_to_its_limit_and_no_further() -> None:
    with served(sent(bytes(100_000))) as url, client() as session:
        assert read_all(session, url, headers={}, limit=100_000) == bytes(100_000)
        with pytest.raises(ValueError, match="more than 99999 bytes"):
            read_all(session, url, headers={}, limit=99_999)


@pytest.mark.parametrize(
    ("times", "error"),
    [
        (1, pytest.raises(ValueError, match="more than 1000 bytes")),
        (2, pytest.raises(Truncated, match="not asked for")),
    ],
)
def test_a_bomb_is_not_unpacked_further_than_its_limit(times: int, error: AbstractContextManager[Any]) -> None:
    bomb = bytes(50_000_000)
    for _ in range(times):
        bomb = gzip.compress(bomb)
    answer = sent(bomb, Content_Encoding=", ".join(["gzip"] * times))
    with served(answer) as url, client() as session, error:
        read_all(session, url, headers={}, limit=1000)


def test_of_an_errors_body_little_is_read() -> None:
    many = LARGEST_ERROR * 100
    with served(sent(bytes(many), status=404)) as url, client() as session, pytest.raises(HTTPError) as error:
        read_all(session, url, headers={}, limit=10)
    assert len(error.value.response.content) <= LARGEST_ERROR  # type: ignore[attr-defined]


def test_what_comes_too_late_is_closed() -> None:
    closed = threading.Event()
    with pytest.raises(Truncated, match=r"no whole answer within 0\.1 s"):
        within(lambda: time.sleep(0.5), seconds=0.1, late=lambda _: closed.set())
    assert closed.wait(5)


def test_the_hubs_own_client_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    from lgd_timm.utils import http

    monkeypatch.setattr(http, "build_hf_headers", lambda **_: time.sleep(5))
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_IMPLICIT_TOKEN", True)
    start = time.monotonic()
    assert http.hub_headers("hf_x") == {"user-agent": "lgd_timm", "authorization": "Bearer hf_x"}
    assert time.monotonic() - start < 4


@pytest.mark.parametrize("address", ["socks5://127.0.0.1:1080", "nonsense://x", "http://[::1"])
def test_a_proxy_that_cant_be_used_is_said(address, monkeypatch):
    set_client_factory(default_client_factory)  # a new session, which reads the environment
    monkeypatch.setenv("ALL_PROXY", address)
    monkeypatch.setitem(sys.modules, "socksio", None)
    try:
        with pytest.raises(WeightsError, match="proxy that the environment names"):
            open_session()
    finally:
        set_client_factory(default_client_factory)
