"""What the tests of the Hub share: a small published folder, and clients in processes of their own.

The Hub's client reads HF_ENDPOINT and the like when it is imported, so it runs in a process whose environment is
set before. `run_script` takes a fresh one each time; `HubClient` keeps one and calls functions of `lgd_timm.hub` in it.
"""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
import traceback
from pathlib import Path
from typing import Any

from hub_server import LFS_SUFFIXES, HubServer

from lgd_timm.errors import WeightsError

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


def read_files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def environment(endpoint: str, home: Path, **settings: str) -> dict[str, str]:
    """The caller's environment without its own Hub settings, plus those of the test."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "LGD_"))}
    hub = {
        "HF_ENDPOINT": endpoint,
        "HF_HOME": str(home),
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    }
    return {**kept, **hub, "OMP_NUM_THREADS": "1", **settings}


def run_script(script: str, environ: dict[str, str]) -> Any:
    """Run Python source in a fresh process; returns the JSON that it prints last."""
    done = subprocess.run([sys.executable, "-c", script], env=environ, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


class HubClient:
    """A process in which functions of `lgd_timm.hub` are called: `client("pull", "org/name")`.

    Its WeightsErrors are raised here, from a RemoteCause with the class name of the original's cause. `manifest`
    takes the place of the package's own and is read at every call.
    """

    def __init__(self, environ: dict[str, str], manifest: Path) -> None:
        self._process = subprocess.Popen(
            [sys.executable, __file__, str(manifest)],
            env=environ,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def __enter__(self) -> HubClient:
        return self

    def __exit__(self, *exception: object) -> None:
        self._process.communicate(timeout=20)  # closes its input, upon which it ends

    def __call__(self, function: str, *args: Any, **kwargs: Any) -> Any:
        assert self._process.stdin
        assert self._process.stdout
        self._process.stdin.write(json.dumps([function, args, kwargs], default=str) + "\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        assert line, "the client's process ended"
        reply = json.loads(line)
        if reply["error"] == "WeightsError":
            raise WeightsError(reply["message"]) from RemoteCause(reply["cause"])
        assert reply["error"] is None, reply["traceback"]
        return reply["value"]


class RemoteCause(Exception):
    """Stands for the exception that a WeightsError in the client's process was raised from."""


def serve(manifest: str) -> None:
    """The client's process: answer calls, one JSON line each, until the input ends."""
    from lgd_timm import hub  # here, as it takes seconds: run_script has no use for it

    hub.MANIFEST = Path(manifest)
    for line in sys.stdin:
        function, args, kwargs = json.loads(line)
        reply: dict[str, Any] = {"value": None, "error": None}
        try:
            reply["value"] = getattr(hub, function)(*args, **kwargs)
        except Exception as error:  # handed over whole: the caller raises it
            kind, cause = type(error).__name__, type(error.__cause__).__name__
            reply |= {"error": kind, "message": str(error), "cause": cause, "traceback": traceback.format_exc()}
        print(json.dumps(reply, default=_jsonable), flush=True)


def _jsonable(value: Any) -> Any:
    return dataclasses.asdict(value) if dataclasses.is_dataclass(value) and not isinstance(value, type) else str(value)


if __name__ == "__main__":
    serve(sys.argv[1])
