"""Serve the page that classifies pictures on loopback, and embed the names that its user types.

    GET  /, /app.js, /model.js, /runtime.js    the files of `export --to web`
    POST /names  {"names": ["cat", ...]}       -> {"names": [...], "bank": [[...], ...], "temperature": 0.05}

Pictures stay in the browser. Only requests that this page's own scripts can make are answered: other sites can neither
send JSON here nor speak under this host's name.
"""

from __future__ import annotations

import json
import logging
import sys
import threading
from collections.abc import Callable
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from ..data.vocabulary import Vocabulary, load_vocabulary
from ..errors import LGDError, MissingExtra, TeacherError
from ..evaluate.models import StudentFolder
from ..evaluate.zero_shot_model import student_temperature, text_tower
from ..publish.folder import Published, load
from ..teachers import TextTeacher
from ..teachers.text_bank import encode_vocabulary
from ..utils.schema import brief
from .graph import graph_of, with_embedding
from .loading import ExportModel
from .web import write_page

log = logging.getLogger(__name__)

HOST = "127.0.0.1"
LARGEST = 64 * 1024  # bytes of a request
MOST = 1000  # names
LONGEST = 200  # characters of a name
PATIENCE = 30  # seconds for a request to arrive
POLICY = "default-src 'self' blob: data:; script-src 'self' blob: 'wasm-unsafe-eval'; style-src 'self' 'unsafe-inline'"

Embed = Callable[[Any], dict[str, Any]]


def make_demo(model: ExportModel, folder: Path, *, port: int = 8000, runtime: str | None = None) -> ThreadingHTTPServer:
    """Write the page of a model, and make its server; `serve_forever()` runs it.

    Args:
        model: the model.
        folder: an empty folder for the page's files.
        port: of 127.0.0.1; 0: any that is free.
        runtime: as of `web.export`.

    Returns:
        The server, which listens already.

    Raises:
        LGDError: a model without names, a runtime that can't be had, or a port that is taken.
        MissingExtra: onnx is not installed.
    """
    graph, embed = graph_of(model), None
    if model.folder is not None:
        embed = _names_reader(StudentFolder(model.folder, model.untrusted))
    if embed is not None:
        graph = with_embedding(graph)
    write_page(graph, folder, runtime=runtime, asks=embed is not None)
    try:
        return _Server((HOST, port), partial(_Handler, directory=str(folder), embed=embed))
    except OSError as error:
        raise LGDError(f"--port {port} of {HOST} can't be had ({error.strerror}). Choose another one, or 0.") from error


def read_names(data: Any) -> Vocabulary:
    """Check what the page sent. Raises: LGDError for what is no list of a few plain names."""
    names = data.get("names") if isinstance(data, dict) else None
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise LGDError("Send a list of names.")
    if len(names) > MOST or any(len(name) > LONGEST for name in names):
        raise LGDError(f"{len(names)} names were sent. Send at most {MOST}, of at most {LONGEST} letters each.")
    return load_vocabulary(names)


def _names_reader(folder: StudentFolder) -> Embed | None:
    """Make what embeds names; None, with a line of the log, where the text tower is not there."""
    published = load(folder.path)
    try:
        tower = text_tower(folder, published)
        if tower.fingerprint != published.banks.text_fingerprint:
            raise TeacherError("the text tower is another one than the student's teacher had")
    except (LGDError, MissingExtra) as error:
        log.warning("Other names can't be typed: %s", error)
        return None
    return partial(_embed_names, published, tower, threading.Lock())


def _embed_names(published: Published, tower: TextTeacher, lock: threading.Lock, data: Any) -> dict[str, Any]:
    vocabulary = read_names(data)
    with lock:  # a tower is not made for several threads
        bank = encode_vocabulary(tower, vocabulary)
    return {
        "names": list(vocabulary.names),
        "bank": bank.tolist(),
        "temperature": student_temperature(published.recipe),
    }


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    allow_reuse_address = True

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Log what goes wrong with a request in one line, and a browser that goes away in none."""
        error = sys.exc_info()[1]
        level = logging.DEBUG if isinstance(error, OSError) else logging.WARNING
        log.log(level, "a request was not answered (%s: %s)", type(error).__name__, brief(str(error)))


class _Handler(SimpleHTTPRequestHandler):
    """Answers one request."""

    timeout = PATIENCE
    server_version, sys_version = "lgd-timm", ""

    def __init__(self, *args: Any, directory: str, embed: Embed | None) -> None:
        self._embed = embed
        super().__init__(*args, directory=directory)

    def parse_request(self) -> bool:
        """Refuse requests under another host's name, as of a page elsewhere whose name leads here."""
        if not super().parse_request():
            return False
        assert isinstance(self.server, _Server)
        own = {f"{name}:{self.server.server_port}" for name in (HOST, "localhost")}
        origin = self.headers.get("Origin")
        if self.headers.get("Host") in own and (origin is None or origin.removeprefix("http://") in own):
            return True
        self.send_error(403, "Only this page's own requests are answered.")
        return False

    def translate_path(self, path: str) -> str:
        """Name the file of a path; one that no file can have is that of no file."""
        return super().translate_path(path.replace("%00", "%01"))

    def list_directory(self, path: Any) -> None:
        self.send_error(404)

    def end_headers(self) -> None:
        self.send_header("Content-Security-Policy", POLICY)
        self.send_header("X-Content-Type-Options", "nosniff")
        self.send_header("Cache-Control", "no-store")
        super().end_headers()

    def do_POST(self) -> None:
        if self.path != "/names" or self._embed is None:
            self._send(404, {"error": "There is nothing here."})
        elif self.headers.get_content_type() != "application/json":
            self._send(415, {"error": "Send application/json."})
        elif not (length := self.headers.get("Content-Length", "")).isdecimal():
            self._send(411, {"error": "Send the content's length."})
        elif len(length) > 9 or int(length) > LARGEST:
            self._send(413, {"error": f"Send at most {LARGEST} bytes."})
        else:
            self._answer(self.rfile.read(int(length)))

    def _answer(self, content: bytes) -> None:
        assert self._embed is not None
        try:
            answer = self._embed(json.loads(content))
        except LGDError as error:
            self._send(400, {"error": str(error)})
        except (ValueError, RecursionError):
            self._send(400, {"error": "That is no JSON."})
        else:
            self._send(200, answer)

    def _send(self, status: int, value: dict[str, Any]) -> None:
        body = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        log.debug(format, *args)
