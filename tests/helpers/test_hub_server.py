"""The tests' Hub against the true client, huggingface_hub, and against timm: what they do with the real one works."""

from __future__ import annotations

import hashlib
import http.client
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from urllib.request import urlopen

import pytest

from tests.helpers.hub_fixtures import CARD, environment, publish, run_script
from tests.helpers.hub_server import READ_TOKEN, WRITE_TOKEN, HubServer

LARGE = bytes(range(256)) * 4000  # 1 MB, in LFS by its name

PUSH = """
import json, os
from pathlib import Path
from huggingface_hub import HfApi, CommitOperationAdd
from huggingface_hub.errors import HfHubHTTPError

folder = Path(os.environ["FOLDER"])
api = HfApi()
url = api.create_repo("me/x")
api.create_repo("me/x", exist_ok=True)
first = api.upload_folder(repo_id="me/x", folder_path=folder)
api.create_tag("me/x", tag="v1", revision=first.oid)
again = api.upload_folder(repo_id="me/x", folder_path=folder)
second = api.create_commit("me/x", [CommitOperationAdd("config.json", b'{"b": 2}')], commit_message="b")
try:
    api.create_commit(
        "me/x", [CommitOperationAdd("late.txt", b"late")], commit_message="late", parent_commit=first.oid
    )
    late = 200
except HfHubHTTPError as error:
    late = error.response.status_code
tree = list(api.list_repo_tree("me/x", recursive=True))
info = api.model_info("me/x", files_metadata=True)
refs = api.list_repo_refs("me/x")
print(json.dumps({
    "whoami": api.whoami()["name"],
    "url": str(url),
    "commits": [first.oid, again.oid, second.oid],
    "late": late,
    "top": sorted(entry.path for entry in api.list_repo_tree("me/x")),
    "tree": {entry.path: entry.lfs.sha256 if getattr(entry, "lfs", None) else entry.blob_id
             for entry in tree if hasattr(entry, "blob_id")},
    "info": {file.rfilename: file.lfs.sha256 if file.lfs else file.blob_id for file in info.siblings},
    "paths": [entry.path for entry in api.get_paths_info("me/x", ["config.json", "no.txt"])],
    "head": info.sha,
    "refs": {ref.name: ref.target_commit for ref in refs.branches + refs.tags},
}))
"""

PULL = """
import hashlib, json, os
from pathlib import Path
from huggingface_hub import HfApi, hf_hub_download, snapshot_download

def name(call):
    try:
        call()
        return "no error"
    except Exception as error:
        return type(error).__name__

def read(file, revision):
    return hashlib.sha256(Path(hf_hub_download("me/x", file, revision=revision)).read_bytes()).hexdigest()

def code(token, repo="me/x"):
    try:
        HfApi(token=token).model_info(repo)
        return 200
    except Exception as error:
        return error.response.status_code

commit = os.environ["COMMIT"]
print(json.dumps({
    "config": {revision: read("config.json", revision) for revision in ("main", "v1", commit)},
    "large": read("model.safetensors", "v1"),
    "nested": read("deep/er/ünicode.txt", "main"),
    "snapshot": sorted(path.name for path in Path(snapshot_download("me/x")).iterdir()),
    "missing": [
        name(lambda: hf_hub_download("me/none", "config.json")),
        name(lambda: hf_hub_download("me/x", "none.json")),
        name(lambda: hf_hub_download("me/x", "config.json", revision="none")),
        name(lambda: HfApi(token=False).model_info("me/secret")),
        name(lambda: HfApi(token=os.environ["READ"]).create_repo("me/y")),
    ],
    "tokens": [code("hf_wrong"), code(False), code(os.environ["READ"], "me/secret")],
}))
"""

TIMM_PUSH = """
import json, os, timm, torch
torch.manual_seed(1)
model = timm.create_model("test_resnet", num_classes=5).eval()
timm.models.push_to_hf_hub(
    model, "me/small", safe_serialization=True, model_config={"architecture": "test_resnet"},
    model_card={"license": "apache-2.0"},
)
images = torch.linspace(-1, 1, 3 * 64 * 64).reshape(1, 3, 64, 64)
print(json.dumps(model(images).tolist()))
"""

TIMM_LOAD = """
import json, sys, timm, torch
model = timm.create_model("hf-hub:me/small", pretrained=True).eval()
assert "lgd_timm" not in sys.modules
images = torch.linspace(-1, 1, 3 * 64 * 64).reshape(1, 3, 64, 64)
print(json.dumps(model(images).tolist()))
"""


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


@pytest.fixture
def server(tmp_path: Path) -> Any:
    with HubServer(tmp_path / "store") as server:
        yield server


def test_what_the_client_pushes_it_finds_again_in_a_fresh_process(server: HubServer, tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    (folder / "deep" / "er").mkdir(parents=True)
    (folder / "README.md").write_text(CARD)
    (folder / "config.json").write_text('{"a": 1}')
    (folder / "deep" / "er" / "ünicode.txt").write_text("deep")
    (folder / "model.safetensors").write_bytes(LARGE)
    pusher = environment(server.url, tmp_path / "home1", HF_TOKEN=WRITE_TOKEN, FOLDER=str(folder))
    pushed = run_script(PUSH, pusher)

    first, again, second = pushed["commits"]
    assert pushed["whoami"] == "me"
    assert pushed["url"] == f"{server.url}/me/x"
    assert again == first, "the second upload of the same files made a commit"
    assert pushed["late"] == 412
    assert pushed["top"] == [".gitattributes", "README.md", "config.json", "deep", "model.safetensors"]
    assert pushed["tree"]["model.safetensors"] == sha256(LARGE)
    assert pushed["tree"] == pushed["info"]
    assert pushed["paths"] == ["config.json"]
    assert pushed["refs"] == {"main": second, "v1": first}
    assert pushed["head"] == second
    assert sum(request.method == "PUT" for request in server.log) == 1
    assert not any("authorization" in request.headers for request in server.log if request.cdn)

    publish(server, "me/secret", {"README.md": b"secret"})
    server.set_private("me/secret")
    puller = environment(server.url, tmp_path / "home2", COMMIT=first, READ=READ_TOKEN)
    pulled = run_script(PULL, puller)
    assert pulled["config"] == {"main": sha256(b'{"b": 2}'), "v1": sha256(b'{"a": 1}'), first: sha256(b'{"a": 1}')}
    assert pulled["large"] == sha256(LARGE)
    assert pulled["nested"] == sha256(b"deep")
    assert pulled["snapshot"] == sorted([*pushed["top"]])
    assert pulled["missing"] == [
        "RepositoryNotFoundError",
        "RemoteEntryNotFoundError",
        "RevisionNotFoundError",
        "RepositoryNotFoundError",
        "HfHubHTTPError",
    ]
    assert pulled["tokens"] == [401, 200, 200]


def test_timm_pushes_and_loads_with_identical_logits(server: HubServer, tmp_path: Path) -> None:
    pushed = run_script(TIMM_PUSH, environment(server.url, tmp_path / "home1", HF_TOKEN=WRITE_TOKEN))
    loaded = run_script(TIMM_LOAD, environment(server.url, tmp_path / "home2"))
    assert loaded == pushed
    assert "pytorch_model.bin" not in server.store.repo("me/small").files("main")


def ask(
    server: HubServer, start: int | None = None, path: str = "/me/x/resolve/main/config.json", **headers: str
) -> Any:
    """Status, body and headers of an answer to a plain client; a body that breaks off raises."""
    connection = http.client.HTTPConnection(urlsplit(server.url).netloc, timeout=5)
    connection.request("GET", path, headers={**headers, **({"Range": f"bytes={start}-"} if start else {})})
    try:
        answer = connection.getresponse()
        return answer.status, answer.read(), answer.headers
    finally:
        connection.close()


def test_ranges_and_faults(server: HubServer) -> None:
    """The parts that the client uses only when something goes wrong, asked for directly."""
    publish(server, "me/x", {"config.json": b"0123456789"})
    assert ask(server)[:2] == (200, b"0123456789")
    status, rest, headers = ask(server, 4)
    assert (status, rest, headers["Content-Range"]) == (206, b"456789", "bytes 4-9/10")
    assert ask(server, 10)[0] == 416

    server.faults.add("flip", "config", times=1)
    assert ask(server)[1] == b"0123446789"
    assert ask(server)[1] == b"0123456789", "a fault with times=1 happened twice"
    server.faults.add("flip", "config", value=9, times=1)
    assert ask(server)[1] == b"0123456788"

    server.faults.add("status", "config", value=503, times=2)
    assert [ask(server)[0] for _ in range(3)] == [503, 503, 200]

    server.faults.add("cut", "config", value=3)
    with pytest.raises(http.client.IncompleteRead) as failure:
        ask(server)
    assert failure.value.partial == b"012"
    server.faults.clear()
    assert ask(server)[0] == 200

    server.faults.add("stall", "config", value=60)
    connection = http.client.HTTPConnection(urlsplit(server.url).netloc, timeout=0.3)
    connection.request("GET", "/me/x/resolve/main/config.json")
    answer = connection.getresponse()
    with pytest.raises(TimeoutError):
        answer.read()
    connection.close()


def test_more_faults(server: HubServer) -> None:
    content = bytes(range(256)) * 8000  # 2 MB: more than the sockets' buffers take at once
    publish(server, "me/x", {"config.json": content})

    server.faults.add("reset", "config", value=1_500_000, times=1)
    connection = http.client.HTTPConnection(urlsplit(server.url).netloc, timeout=5)
    connection.request("GET", "/me/x/resolve/main/config.json")
    answer = connection.getresponse()
    assert answer.read(1_500_000) == content[:1_500_000]
    with pytest.raises(ConnectionResetError):
        answer.read()
    connection.close()

    server.faults.add("nolength", "config", value=1000, times=1)
    status, body, headers = ask(server)
    assert (status, body, headers["Content-Length"]) == (200, content[:1000], None)

    server.faults.add("norange", "config", times=1)
    status, body, headers = ask(server, 1000)
    assert (status, body, headers["Content-Range"]) == (200, content, None)
    assert server.log[-1].headers["range"] == "bytes=1000-"

    server.faults.add("hang", "config", value=0.2, times=1)
    with pytest.raises(http.client.RemoteDisconnected):
        ask(server)
    assert server.log[-1].status == 0

    def push() -> None:
        repo = server.store.repo("me/x")
        server.store.commit(repo, "main", "meanwhile", {"config.json": server.store.entry(b"new")})

    server.faults.add("call", "config", call=push, times=1)
    assert ask(server)[:2] == (200, b"new"), "the push did not come before the answer"
    assert len(server.store.repo("me/x").commits) == 3


def test_a_request_that_hangs_ends_with_the_server(tmp_path: Path) -> None:
    with HubServer(tmp_path) as server, ThreadPoolExecutor() as pool:
        publish(server, "me/x", {"config.json": b"{}"})
        server.faults.add("hang", "config")
        hanging = pool.submit(ask, server)
        with pytest.raises(TimeoutError):
            hanging.result(timeout=0.2)
        server.closing.set()
        with pytest.raises(http.client.RemoteDisconnected):
            hanging.result(timeout=5)


GATED = """
import json, os
from huggingface_hub import HfApi, auth_check, hf_hub_download

def name(call, *args, **kwargs):
    try:
        call(*args, **kwargs)
        return "ok"
    except Exception as error:
        return type(error).__name__

tokens = (False, os.environ["READ"], os.environ["WRITE"])
api = HfApi(token=os.environ["WRITE"])
print(json.dumps({
    "info": [name(HfApi().model_info, "me/gated", token=token) for token in tokens],
    "file": [name(hf_hub_download, "me/gated", "config.json", token=token) for token in tokens],
    "check": [name(auth_check, "me/gated", token=token) for token in tokens],
    "delete": [name(HfApi(token=os.environ["READ"]).delete_repo, "me/old"), name(api.delete_repo, "me/old"),
               name(api.delete_repo, "me/old"), name(api.model_info, "me/old")],
}))
"""


def test_gated_and_deleted_repositories(server: HubServer, tmp_path: Path) -> None:
    publish(server, "me/gated", {"config.json": b"{}"})
    publish(server, "me/old", {"config.json": b"{}"})
    server.set_gated("me/gated")
    found = run_script(GATED, environment(server.url, tmp_path / "home", READ=READ_TOKEN, WRITE=WRITE_TOKEN))
    assert found["info"] == found["file"] == found["check"] == ["GatedRepoError", "GatedRepoError", "ok"]
    assert found["delete"] == ["HfHubHTTPError", "ok", "RepositoryNotFoundError", "RepositoryNotFoundError"]
    assert ask(server, path="/api/models/me/gated")[0] == 403


def test_as_a_program_it_serves_what_an_earlier_one_stored(tmp_path: Path) -> None:
    with HubServer(tmp_path) as server:
        commit = publish(server, "me/x", {"README.md": b"kept"})
    command = [sys.executable, "-m", "tests.helpers.hub_server", "--root", str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as program:
        assert program.stdout
        try:
            endpoint = dict(word.split("=", 1) for word in program.stdout.readline().split()[1:])["HF_ENDPOINT"]
            with urlopen(f"{endpoint}/me/x/resolve/{commit}/README.md", timeout=10) as answer:
                assert answer.read() == b"kept"
        finally:
            program.terminate()
