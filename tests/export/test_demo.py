"""The page on loopback: other names re-rank what a real browser shows, and nobody else is answered."""

from __future__ import annotations

import base64
import http.client
import io
import json
import socket
import threading
from collections.abc import Iterator
from http.server import ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import lgd_timm
from lgd_timm.errors import LGDError
from lgd_timm.export.demo import HOST, LARGEST, make_demo, read_names
from lgd_timm.export.loading import open_export_model
from tests.helpers.browser import Browser, find_chromium
from tests.helpers.web_runtime import runtime_tarball

NAMES = ["a cat", "a dog", "<b>bold</b>"]


@pytest.fixture(scope="module")
def runtime(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return runtime_tarball(tmp_path_factory.mktemp("runtime"))


@pytest.fixture(scope="module")
def server(
    tmp_path_factory: pytest.TempPathFactory, published_folder: Path, runtime: Path
) -> Iterator[ThreadingHTTPServer]:
    folder = tmp_path_factory.mktemp("demo")
    with make_demo(open_export_model(str(published_folder)), folder, port=0, runtime=str(runtime)) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


def ask(
    server: ThreadingHTTPServer, method: str, path: str, body: bytes = b"", **headers: str
) -> tuple[int, dict[str, str], Any]:
    connection = http.client.HTTPConnection(HOST, server.server_port, timeout=60)
    connection.request(method, path, body or None, {key.replace("_", "-"): value for key, value in headers.items()})
    answer = connection.getresponse()
    content, found = answer.read(), {key.lower(): value for key, value in answer.getheaders()}
    connection.close()
    return answer.status, found, json.loads(content) if "json" in found["content-type"] else content


def send(server: ThreadingHTTPServer, names: Any, **headers: str) -> tuple[int, Any]:
    body = json.dumps({"names": names}).encode()
    status, _, answer = ask(server, "POST", "/names", body, **{"Content_Type": "application/json", **headers})
    return status, answer


def test_it_listens_on_loopback_alone(server: ThreadingHTTPServer) -> None:
    assert server.socket.getsockname()[0] == HOST


def test_names_are_embedded(server: ThreadingHTTPServer) -> None:
    status, answer = send(server, NAMES)
    assert status == 200
    assert answer["names"] == NAMES
    bank = torch.tensor(answer["bank"])
    assert torch.allclose(bank.norm(dim=1), torch.ones(len(NAMES)), atol=1e-4)
    assert answer["temperature"] > 0


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["cat"], "at least two names"),
        (["cat", "cat"], "duplicates"),
        (["cat", " "], "empty"),
        (["cat", "do\x07g"], "control character"),
        (["cat", 3], "Send a list of names"),
        ("names.txt", "Send a list of names"),
        (["cat", "d" * 201], "at most 200 letters"),
        ([f"name {number}" for number in range(1001)], "Send at most 1000"),
    ],
)
def test_names_are_checked(server: ThreadingHTTPServer, names: Any, message: str) -> None:
    status, answer = send(server, names)
    assert status == 400
    assert message in answer["error"]
    with pytest.raises(LGDError, match=message):
        read_names({"names": names})


@pytest.mark.parametrize("body", [b"{", b"[" * 50_000, b"\xff", b"[]", b"null"])
def test_what_is_no_list_of_names_is_refused(server: ThreadingHTTPServer, body: bytes) -> None:
    status, _, answer = ask(server, "POST", "/names", body, Content_Type="application/json")
    assert status == 400
    assert answer["error"]


def test_long_requests_are_not_read(server: ThreadingHTTPServer) -> None:
    headers = {"Content_Type": "application/json", "Content_Length": str(LARGEST + 1)}
    assert ask(server, "POST", "/names", b"[]", **headers)[0] == 413


def test_other_sites_are_refused(server: ThreadingHTTPServer) -> None:
    assert send(server, NAMES, Host="evil.example")[0] == 403
    assert send(server, NAMES, Origin="http://evil.example")[0] == 403
    assert ask(server, "GET", "/model.js", Host="evil.example:80")[0] == 403
    assert ask(server, "POST", "/names", b"[]", Content_Type="text/plain")[0] == 415  # as a form of another site sends
    assert send(server, NAMES, Origin=f"http://{HOST}:{server.server_port}")[0] == 200


def test_there_is_nothing_but_the_page(server: ThreadingHTTPServer) -> None:
    status, headers, _ = ask(server, "GET", "/")
    assert status == 200
    assert "default-src 'self'" in headers["content-security-policy"]
    assert ask(server, "GET", "/../../etc/passwd")[0] == 404
    assert ask(server, "POST", "/", b"[]", Content_Type="application/json")[0] == 404


def test_a_taken_port_is_said(published_folder: Path, runtime: Path, tmp_path: Path) -> None:
    with socket.create_server((HOST, 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(LGDError, match=f"--port {port} of {HOST} can't be had"):
            make_demo(open_export_model(str(published_folder)), tmp_path, port=port, runtime=str(runtime))


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    if find_chromium() is None:
        pytest.skip("no chromium here; tests/run.sh installs it where it may")
    with Browser(tmp_path_factory.mktemp("profile")) as browser:
        yield browser


SHOW = """(async () => {
  await open(new Blob([Uint8Array.from(atob(%s), (letter) => letter.charCodeAt(0))]));
  return JSON.stringify(LGD_ANSWER);
})()"""
TYPE = """(async () => {
  document.getElementById('names').value = %s;
  document.querySelector('#other button[type=submit]').click();
  for (let i = 0; i < 600 && !document.getElementById('names-state').textContent.includes(%s); i++)
    await new Promise((resolve) => setTimeout(resolve, 50));
  return JSON.stringify({ ...LGD_ANSWER, said: document.getElementById('names-state').textContent,
    shown: [...document.querySelectorAll('#answers li span:not(.bar)')].map((span) => span.textContent) });
})()"""


def test_typed_names_rerank_the_picture(browser: Browser, server: ThreadingHTTPServer, published_folder: Path) -> None:
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8))
    file = io.BytesIO()
    picture.save(file, "PNG")
    browser.open(f"http://{HOST}:{server.server_port}/")
    browser.evaluate("LGD_READY")
    own = json.loads(browser.evaluate(SHOW % json.dumps(base64.b64encode(file.getvalue()).decode())))
    assert own["names"] == list(lgd_timm.load(published_folder).names)
    found = json.loads(browser.evaluate(TYPE % (json.dumps("\n".join(NAMES)), json.dumps("compared"))))
    (wanted,) = lgd_timm.load(published_folder, names=NAMES).predict(picture)
    assert found["names"] == NAMES
    by_name = dict(zip(wanted.names, wanted.probabilities, strict=True))
    assert found["probabilities"] == pytest.approx([by_name[name] for name in NAMES], abs=1e-3)
    assert found["shown"][0] == wanted.name
    assert NAMES[2] in found["shown"]  # as text
    wrong = json.loads(browser.evaluate(TYPE % (json.dumps("one"), json.dumps("two names"))))
    assert "at least two names" in wrong["said"]
    browser.evaluate("document.getElementById('own').click()")
    again = json.loads(browser.evaluate("JSON.stringify(LGD_ANSWER)"))
    assert again["probabilities"] == own["probabilities"]
    assert all(url.startswith((f"http://{HOST}:", "blob:")) for url in browser.requests)
    # a refused list of names is a 400, which the browser notes; nothing else is
    assert [c for c in browser.complaints if "400" not in json.dumps(c)] == []


@pytest.mark.parametrize(
    ("path", "length", "status"),
    [
        ("/names", "9" * 5000, 413),
        ("/names", "\u0663", 411),
        ("/names", "-1", 411),
        ("/%00", None, 404),
        ("/%ff", None, 404),
    ],
)
def test_strange_requests_get_an_answer(
    server: ThreadingHTTPServer, path: str, length: str | None, status: int, capfd: pytest.CaptureFixture[str]
) -> None:
    lines = [f"{'GET' if length is None else 'POST'} {path} HTTP/1.1", f"Host: {HOST}:{server.server_port}"]
    lines += [] if length is None else ["Content-Type: application/json", f"Content-Length: {length}"]
    with socket.create_connection((HOST, server.server_port), timeout=60) as connection:
        connection.sendall(("\r\n".join(lines) + "\r\n\r\n").encode())
        answer = connection.recv(100).decode()
    assert answer.split()[1] == str(status)
    assert "Traceback" not in capfd.readouterr().err
