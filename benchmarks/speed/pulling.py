"""Row `pull`: the cost of verifying weights, while they come and when they are there.

The weights are as large as ResNet-18's, the largest student's; the Hub is a file server on loopback, as fast as it can
be, and as slow as a good line.
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
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from ..settings import Settings
from .pairs import Goal, Row, Side, measure

NAME, REPO, COMMIT = "lgd_resnet18.benchmark", "lgd-timm/benchmark", "0" * 40
SIZES = {
    "config.json": 900,
    "model.safetensors": 22_400_000,
    "README.md": 4_000,
    "lgd.safetensors": 500_000,
    "recipe.yaml": 1_100,
}
LINE = 25e6  # bytes/s: 200 Mbit/s


def rows(settings: Settings) -> Iterator[Row]:
    sizes = {name: size // 50 if settings.quick else size for name, size in SIZES.items()}
    rounds = settings.rounds if settings.quick else 5 * settings.rounds  # they are short, and neighbours are loud
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        _publish(root / "served", sizes)
        for speed, words in ((None, "loopback"), (LINE, f"{LINE / 1e6:g} MB/s")):
            with _server(root / "served", speed) as url, _client(root, url) as ask:
                a, b = (
                    Side(name, partial(ask, mode))
                    for name, mode in (("verified", "cold"), ("not verified", "cold-unchecked"))
                )
                yield measure(f"pull: cold, {words}", a, b, unit="s", rounds=rounds, goal=Goal(1.03))
                if speed is None:
                    a, b = (
                        Side(name, partial(ask, mode))
                        for name, mode in (("ours, verified", "warm"), ("the Hub's client", "warm-client"))
                    )
                    yield measure("pull: warm load", a, b, unit="s", rounds=rounds, goal=Goal(0.005), difference=True)


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


SERVER = """
import sys, time
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

class Handler(SimpleHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # headers and body are two writes: without this each answer waits 40 ms

    def copyfile(self, source, outputfile):
        while chunk := source.read(1 << 17):
            outputfile.write(chunk)
            if speed := float(sys.argv[2]):
                time.sleep(len(chunk) / speed)

    def log_message(self, format, *args):
        pass

server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=sys.argv[1]))
print(server.server_port, flush=True)
server.serve_forever()
"""


@contextmanager
def _server(folder: Path, speed: float | None) -> Iterator[str]:
    """A file server in a process of its own, of so many bytes a second."""
    command = [sys.executable, "-c", SERVER, str(folder), str(speed or 0)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout
        yield f"http://127.0.0.1:{server.stdout.readline().strip()}"
        server.kill()


@contextmanager
def _client(root: Path, url: str) -> Iterator[Callable[[str], float]]:
    """A process that pulls, as the Hub's client reads its settings once.

    `ask(mode)` gives the seconds that a pull took.
    """
    settings = {
        "HF_ENDPOINT": url,
        "HF_HOME": str(root / "home"),
        "LGD_TIMM_CACHE": str(root / "lgd"),
        "LGD_TIMM_HUB": str(root / "none"),
    }
    command = [sys.executable, "-m", "benchmarks.speed.pulling", str(root)]
    with subprocess.Popen(
        command, env={**os.environ, **settings}, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as client:
        assert client.stdin
        assert client.stdout
        stdin, stdout = client.stdin, client.stdout

        def ask(mode: str) -> float:
            stdin.write(f"{mode}\n")
            stdin.flush()
            return float(stdout.readline())

        yield ask
        client.kill()


def _serve(root: Path) -> None:
    """Answer modes on the standard input: cold, cold-unchecked, warm, warm-client."""
    from huggingface_hub import hf_hub_download

    from lgd_timm import hub
    from lgd_timm.hub import file_download as download
    from lgd_timm.hub import weights
    from lgd_timm.utils import http as receive

    weights.MANIFEST = root / "manifest.json"
    checked = (receive.Download._hash, download._difference)
    unchecked = (lambda part: part._chunks.clear(), lambda part, facts: "")
    names = list(weights.manifest()[NAME].files)
    for mode in map(str.strip, sys.stdin):
        hashing, difference = unchecked if mode == "cold-unchecked" else checked
        receive.Download._hash, download._difference = hashing, difference  # type: ignore[method-assign]
        cache = root / ("cold" if mode.startswith("cold") else "warm")
        if cache.name == "cold":
            shutil.rmtree(cache, ignore_errors=True)
        elif not cache.exists():
            hub.pull(NAME, cache_dir=cache)
            time.sleep(0.2)  # until a file is old enough for its stamp
            hub.pull(NAME, cache_dir=cache)
        start = time.perf_counter()
        if mode == "warm-client":
            for name in names:
                hf_hub_download(REPO, name, revision=COMMIT, cache_dir=cache)
        else:
            hub.pull(NAME, cache_dir=cache)
        print(time.perf_counter() - start, flush=True)


if __name__ == "__main__":
    _serve(Path(sys.argv[1]))
