"""What the tests of the Hub share: a small published folder, and clients in processes of their own.

The Hub's client reads HF_ENDPOINT and the like when it is imported, so it runs in a process whose environment is set
before. `run_script` starts a fresh one each time; `HubClient` forks one for each call of a function of `lgd_timm.hub`.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from contextlib import suppress
from pathlib import Path
from typing import Any

from lgd_timm.errors import WeightsError
from tests.helpers import ROOT
from tests.helpers.hub_server import LFS_SUFFIXES, HubServer, Request

NAME = "lgd_test.small"  # of the small published folder
CARD = "---\nlicense: apache-2.0\nlibrary_name: timm\n---\n# A small model\n"


def make_folder(folder: Path, *, num_classes: int = 3, seed: int = 0) -> Path:
    """A published folder with a small stock model, made by timm alone."""
    import timm
    import torch

    torch.manual_seed(seed)
    model = timm.create_model("test_resnet", num_classes=num_classes)
    config = {"architecture": "test_resnet"}
    timm.models.save_for_hf(model, str(folder), model_config=config, safe_serialization=True)
    (folder / "README.md").write_text(CARD)
    (folder / "metrics.json").write_text('{"accuracy": 0.5}')
    return folder


def publish(server: HubServer, repo_id: str, files: dict[str, bytes]) -> str:
    """Put files into the server's store as a new repository, without a client; returns the commit."""
    store = server.store
    entries = {}
    for name, content in files.items():
        large = name.endswith(LFS_SUFFIXES)
        entries[name] = store.lfs_entry(store.put_blob(content), len(content)) if large else store.entry(content)
    return store.commit(store.create(repo_id, private=False), "main", "published by the test", entries)


def write_manifest(
    path: Path, folder: Path, *, name: str = NAME, repo_id: str = "me/x", commit: str | None = None
) -> dict[str, Any]:
    """A manifest with one weight, which is what lies in the folder."""
    files = {
        file: {"size": len(content), "sha256": hashlib.sha256(content).hexdigest()}
        for file, content in read_files(folder).items()
    }
    row = {"repo_id": repo_id, "commit": commit, "files": files, "metrics": {"top1": 0.5}, "cfg": {"num_classes": 3}}
    path.write_text(json.dumps({name: row}))
    return row


def flip_byte(path: Path, place: int | None = None) -> None:
    """One bit of a byte, by default of the middle one, flips. Links are followed."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2 if place is None else place] ^= 1
    path.write_bytes(content)


def downloads(server: HubServer, file: str) -> list[Request]:
    """Answers that carried (a part of) a file's content."""
    return [r for r in server.log if r.method == "GET" and r.path.endswith(f"/{file}") and r.status in (200, 206)]


def read_files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def read_timeless(folder: Path) -> dict[str, bytes]:
    """The same without the seconds that a run took, in which two equal runs differ."""
    files = read_files(folder)
    return {**files, "metrics.json": re.sub(rb'\n *"seconds": [\d.]+,', b"", files["metrics.json"])}


def environment(endpoint: str, home: Path, **settings: str) -> dict[str, str]:
    """The caller's environment without its own Hub settings, plus those of the test."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "LGD_"))}
    hub = {
        "HF_ENDPOINT": endpoint,
        "HF_HOME": str(home),
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "LGD_TIMM_CACHE": str(home / "lgd_timm"),
    }
    return {**kept, **hub, "OMP_NUM_THREADS": "1", **settings}


def run_script(script: str, environ: dict[str, str]) -> Any:
    """Run Python source in a fresh process; returns the JSON that it prints last."""
    done = subprocess.run(
        [sys.executable, "-c", script], env=environ, capture_output=True, text=True, check=False, timeout=120
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


class HubClient:
    """Functions of `lgd_timm.hub`, each call in a fresh process: `client("pull", "org/name")`.

    A process that has imported everything forks for each call, which takes milliseconds instead of seconds and leaves
    no session, no lock and no variable from the call before. WeightsErrors are raised here, from a RemoteCause with the
    class name of the original's cause. `manifest` takes the place of the package's own and is read at every call.
    """

    def __init__(self, environ: dict[str, str], manifest: Path) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.helpers.hub_fixtures", str(manifest)],
            cwd=ROOT,
            env=environ,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self._calls = tempfile.TemporaryDirectory(prefix="hub-calls-")

    def __enter__(self) -> HubClient:
        return self

    def __exit__(self, *exception: object) -> None:
        self._process.communicate(timeout=20)  # closes its input, upon which it ends
        self._calls.cleanup()

    def __call__(self, function: str, *args: Any, **kwargs: Any) -> Any:
        return self.start(function, *args, **kwargs).result()

    def start(self, function: str, *args: Any, environ: dict[str, str] | None = None, **kwargs: Any) -> Call:
        """Begin a call and don't wait for it. `environ` is set after everything was imported."""
        assert self._process.stdin
        assert self._process.stdout
        folder = tempfile.mkdtemp(dir=self._calls.name)
        request = {"function": function, "args": args, "kwargs": kwargs, "environ": environ or {}, "folder": folder}
        self._process.stdin.write(json.dumps(request, default=str) + "\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        assert line, "the client's process ended"
        return Call(int(line), Path(folder))


@dataclasses.dataclass
class Call:
    """A call that is running in process `pid`."""

    pid: int
    folder: Path
    log: list[str] = dataclasses.field(default_factory=list)  # what it logged, warnings and above

    def wait(self, seconds: float = 120) -> bool:
        """Until it has ended. Returns whether it has answered: a killed one has not."""
        end = time.monotonic() + seconds
        while not (self.folder / "reply.json").exists():
            if not self.running:
                return (self.folder / "reply.json").exists()
            assert time.monotonic() < end, f"no answer within {seconds} s"
            time.sleep(0.002)
        return True

    @property
    def running(self) -> bool:
        return Path(f"/proc/{self.pid}").exists()

    def kill(self) -> None:
        """SIGKILL, wherever it is."""
        with suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGKILL)

    def result(self) -> Any:
        assert self.wait(), "it was killed"
        reply = json.loads((self.folder / "reply.json").read_text())
        self.log = reply["log"]
        if reply["error"] == "WeightsError":
            raise WeightsError(reply["message"]) from RemoteCause(reply["cause"])
        assert reply["error"] is None, reply["traceback"]
        return reply["value"]


class RemoteCause(Exception):
    """Stands for the exception that a WeightsError in the client's process was raised from."""


def serve(manifest: str) -> None:
    """The client's process: fork for each line of the input, say the child's number, until the input ends."""
    import timm  # noqa: F401  # registers the students from the package's own manifest, before it is replaced

    from lgd_timm.hub import weights  # here, as it takes seconds: run_script has no use for it

    weights.MANIFEST = Path(manifest)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # ended children vanish by themselves
    for line in sys.stdin:
        pid = os.fork()
        if pid == 0:
            _answer(json.loads(line))
            os._exit(0)
        print(pid, flush=True)


def _answer(request: dict[str, Any]) -> None:
    """Call what was asked for, and leave the reply as a file that appears whole."""
    os.environ.update(request["environ"])
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    heard = _Heard()
    logging.getLogger().addHandler(heard)
    reply: dict[str, Any] = {"value": None, "error": None, "log": heard.lines}
    try:
        reply["value"] = _function(request["function"])(*request["args"], **request["kwargs"])
    except Exception as error:  # handed over whole: the caller raises it
        kind = "WeightsError" if isinstance(error, WeightsError) else type(error).__name__
        cause = type(error.__cause__).__name__
        reply |= {"error": kind, "message": str(error), "cause": cause, "traceback": traceback.format_exc()}
    folder = Path(request["folder"])
    (folder / "part").write_text(json.dumps(reply, default=_jsonable))
    (folder / "part").rename(folder / "reply.json")


def _function(name: str) -> Any:
    from lgd_timm import hub, publish

    return getattr(publish if name == "push" else hub, name)


class _Heard(logging.Handler):
    """Remembers warnings."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage())


def _jsonable(value: Any) -> Any:
    return dataclasses.asdict(value) if dataclasses.is_dataclass(value) and not isinstance(value, type) else str(value)


if __name__ == "__main__":
    serve(sys.argv[1])
