"""Row h: what it costs to verify weights, while they come and when they are there. The weights are as large as ResNet-18's, the
largest student's; the Hub is a file server on loopback, as fast as it can be and with the speed of a good line.

Each measurement is a process of its own: `python -m benchmarks.pulling cold|cold-unchecked|warm|warm-client` prints seconds.
"""

from __future__ import annotations

import hashlib
import json
import os
import secrets
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from .pairs import Goal, Row, Side, measure
from .settings import Settings

NAME, REPO, COMMIT = "lgd_resnet18.benchmark", "lgd-timm/benchmark", "0" * 40
SIZES = {"config.json": 900, "model.safetensors": 22_400_000, "README.md": 4_000, "lgd.safetensors": 500_000, "recipe.yaml": 1_100}
LINE = 25e6  # bytes/s: 200 Mbit/s


def rows(settings: Settings) -> Iterator[Row]:
    sizes = {name: size // 50 if settings.quick else size for name, size in SIZES.items()}
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        _publish(root / "served", sizes)
        for speed, words in ((None, "loopback"), (LINE, f"{LINE / 1e6:g} MB/s")):
            with _server(root / "served", speed) as url:
                a, b = (_side(name, mode, root, url) for name, mode in (("verified", "cold"), ("not verified", "cold-unchecked")))
                yield measure(f"h  cold pull, {words}", a, b, unit="s", rounds=settings.rounds, goal=Goal(1.03))
        with _server(root / "served", None) as url:
            a, b = (_side(name, mode, root, url) for name, mode in (("ours, verified", "warm"), ("the Hub's client", "warm-client")))
            yield measure("h  warm load", a, b, unit="s", rounds=settings.rounds, goal=Goal(0.005), difference=True)


def _publish(served: Path, sizes: dict[str, int]) -> None:
    """The folder as a file server shows it, and the manifest that knows it."""
    folder = served / REPO / "resolve" / COMMIT
    folder.mkdir(parents=True)
    files = {}
    for name, size in sizes.items():
        content = secrets.token_bytes(size)
        (folder / name).write_bytes(content)
        files[name] = {"size": size, "sha256": hashlib.sha256(content).hexdigest()}
    row = {"repo_id": REPO, "commit": COMMIT, "files": files, "metrics": {}, "cfg": {}}
    (served.parent / "manifest.json").write_text(json.dumps({NAME: row}))


class _Handler(SimpleHTTPRequestHandler):
    speed: float | None = None

    def copyfile(self, source: Any, outputfile: Any) -> None:
        while chunk := source.read(1 << 17):
            outputfile.write(chunk)
            if self.speed:
                time.sleep(len(chunk) / self.speed)

    def log_message(self, format: str, *args: Any) -> None:
        pass


@contextmanager
def _server(folder: Path, speed: float | None) -> Iterator[str]:
    handler = type("Handler", (_Handler,), {"speed": speed})
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(handler, directory=str(folder))) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def _side(name: str, mode: str, root: Path, url: str) -> Side:
    def once() -> float:
        home = root / "home"
        if mode.startswith("cold"):
            shutil.rmtree(home, ignore_errors=True)
        settings = {"HF_ENDPOINT": url, "HF_HOME": str(home), "LGD_TIMM_CACHE": str(home / "lgd"), "LGD_TIMM_HUB": str(root / "none")}
        command = [sys.executable, "-m", "benchmarks.pulling", mode, str(root / "manifest.json")]
        done = subprocess.run(command, env={**os.environ, **settings}, check=True, stdout=subprocess.PIPE, text=True)
        return float(done.stdout)

    return Side(name, once)


def _child(mode: str, manifest: str) -> float:
    from huggingface_hub import hf_hub_download

    from lgd_timm import hub, weights
    from lgd_timm.hub import download

    weights.MANIFEST = Path(manifest)
    names = list(hub.manifest()[NAME].files)
    if mode == "cold-unchecked":
        download._Part._start = lambda part: _NoHash()  # type: ignore[method-assign]
        download._Part.difference = lambda part: ""  # type: ignore[method-assign]
    if mode.startswith("warm"):
        hub.pull(NAME)  # the stamps are there, and trusted
    start = time.perf_counter()
    if mode == "warm-client":
        for name in names:
            hf_hub_download(REPO, name, revision=COMMIT)
    else:
        hub.pull(NAME)
    return time.perf_counter() - start


class _NoHash:
    def update(self, chunk: bytes) -> None:
        pass


if __name__ == "__main__":
    print(_child(*sys.argv[1:]))
