"""Without the Hub: offline, or while it is down, in each way in which its own client was measured.

No request is made where none may be, the cache is used where it is right, and otherwise the error says what helps.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lgd_timm.errors import WeightsError
from tests.helpers.hub_fixtures import (
    CARD,
    NAME,
    HubClient,
    downloads,
    environment,
    flip_byte,
    publish,
    read_files,
    run_script,
    write_manifest,
)
from tests.helpers.hub_server import HubServer

OFFLINE = {"HF_HUB_OFFLINE": "1"}  # set after everything was imported, which the Hub's client does not notice


@pytest.fixture
def place(tmp_path: Path) -> dict[str, Any]:
    return {"cache_dir": tmp_path / "cache"}


def test_offline_what_is_there_works_without_a_request(
    server: HubServer, client: HubClient, small: Path, manifest: Path, place: dict[str, Any]
) -> None:
    commit = publish(server, "me/off", read_files(small))
    write_manifest(manifest, small, repo_id="me/off", commit=commit)
    pulled = client("pull", "me/off", **place)
    server.log.clear()
    for name in ("me/off", "me/off@main", f"me/off@{commit}", NAME):
        assert client.start("pull", name, environ=OFFLINE, **place).result() == pulled
    assert server.log == []


def test_offline_what_is_not_there_is_named(
    server: HubServer, client: HubClient, small: Path, manifest: Path, place: dict[str, Any]
) -> None:
    commit = publish(server, "me/gone", read_files(small))
    write_manifest(manifest, small, repo_id="me/gone", commit=commit)
    folder = f"{place['cache_dir']}/models--me--gone"
    with pytest.raises(
        WeightsError, match=rf"me/gone@v1: HF_HUB_OFFLINE is set, and {folder} holds no .*`lgd-timm pull me/gone@v1`"
    ):
        client.start("pull", "me/gone@v1", environ=OFFLINE, **place).result()
    with pytest.raises(
        WeightsError,
        match=rf"HF_HUB_OFFLINE is set, and {folder}/snapshots/{commit} is not whole: .*model\.safetensors .*",
    ):
        client.start("pull", NAME, environ=OFFLINE, **place).result()
    with pytest.raises(WeightsError, match=f"`lgd-timm pull {NAME}`"):
        client.start("locate", NAME, environ=OFFLINE, **place).result()
    with pytest.raises(WeightsError, match="me/gone: HF_HUB_OFFLINE is set, so nothing can be sent"):
        client.start("push", small, "me/gone", environ=OFFLINE).result()
    assert server.log == []


def test_offline_a_file_that_is_missing_or_wrong_is_named(
    server: HubServer, client: HubClient, small: Path, place: dict[str, Any]
) -> None:
    publish(server, "me/hole", read_files(small))
    pulled = Path(client("pull", "me/hole", **place))
    server.log.clear()
    (pulled / "metrics.json").unlink()
    with pytest.raises(
        WeightsError, match=r"is not whole: metrics\.json should have .* no such file\. Where there is a network"
    ):
        client.start("pull", "me/hole", environ=OFFLINE, **place).result()
    flip_byte(pulled / "model.safetensors")
    with pytest.raises(WeightsError, match=r"model\.safetensors should have"):
        client.start("pull", "me/hole", environ=OFFLINE, **place).result()
    assert server.log == []
    assert read_files(Path(client("pull", "me/hole", **place))) == read_files(small)
    assert len(downloads(server, "model.safetensors")) == 1
    assert downloads(server, "config.json") == downloads(server, "metrics.json") == [], (
        "content that is there came again"
    )


TWO_FILES = """
import json
from huggingface_hub import hf_hub_download
print(json.dumps([hf_hub_download("me/part", name) for name in ("config.json", "model.safetensors")]))
"""


def test_a_partial_snapshot_is_not_taken_for_a_whole_one(
    server: HubServer, client: HubClient, small: Path, tmp_path: Path
) -> None:
    publish(server, "me/part", read_files(small))
    run_script(TWO_FILES, environment(server.url, tmp_path))
    place: dict[str, Any] = {"cache_dir": tmp_path / "hub"}
    with pytest.raises(WeightsError, match="holds no folder that lgd_timm pulled whole"):
        client.start("pull", "me/part", environ=OFFLINE, **place).result()
    server.log.clear()
    assert read_files(Path(client("pull", "me/part", **place))) == read_files(small)
    assert downloads(server, "model.safetensors") == [], "the other client's file is right, and came again"


AFTER = """
import json, os, timm
os.environ["HF_HUB_OFFLINE"] = "1"
import huggingface_hub
model = timm.create_model("hf-hub:me/after", pretrained=True)
print(json.dumps([type(model).__name__, len(huggingface_hub.scan_cache_dir().warnings)]))
"""


def test_what_was_pulled_works_for_plain_timm_without_the_network(
    server: HubServer, client: HubClient, small: Path, tmp_path: Path
) -> None:
    publish(server, "me/after", read_files(small))
    client("pull", "me/after", cache_dir=tmp_path / "hub")
    server.log.clear()
    script = AFTER.replace("import json, os, timm", "import json, os").replace(
        "import huggingface_hub", "import huggingface_hub, timm"
    )
    assert run_script(script, environment(server.url, tmp_path)) == ["ResNet", 0]
    assert server.log == []


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        ({"kind": "hang"}, "no answer from .*(ReadTimeout|no whole answer within)"),
        ({"kind": "reset"}, "no answer from .*ReadError"),
        ({"kind": "status", "value": 500}, "500"),
        ({"kind": "status", "value": 503}, "503"),
        ({"kind": "status", "value": 429}, "429"),
    ],
    ids=lambda value: str(value.get("value", value["kind"])) if isinstance(value, dict) else "",
)
def test_when_the_hub_is_in_trouble_the_cache_serves_and_says_so(
    fault: dict[str, Any], reason: str, server: HubServer, client: HubClient, folder: Path, place: dict[str, Any]
) -> None:
    repo_id = f"me/trouble-{fault.get('value', fault['kind'])}"
    commit = publish(server, repo_id, read_files(folder))
    server.faults.add(pattern="/api/models/", **fault)
    with pytest.raises(WeightsError, match=f"{repo_id}: .*{reason}"):
        client("pull", repo_id, **place)
    server.faults.clear()
    pulled = client("pull", repo_id, **place)
    (folder / "README.md").write_text(CARD + "New.\n")
    client("push", folder, repo_id)
    server.faults.add(pattern="/api/models/", **fault)
    call = client.start("pull", repo_id, **place)
    assert call.result() == pulled
    assert any(f"Using commit {commit}" in line and repo_id in line for line in call.log), call.log
    server.faults.clear()
    assert client("pull", repo_id, **place) != pulled


@pytest.mark.parametrize("status", [500, 502, 503, 504, 429])
def test_trouble_that_passes_is_not_noticed(
    status: int, server: HubServer, client: HubClient, small: Path, place: dict[str, Any]
) -> None:
    publish(server, f"me/passing-{status}", read_files(small))
    server.faults.add("status", "/api/models/", value=status, times=2)
    call = client.start("pull", f"me/passing-{status}", **place)
    assert read_files(Path(call.result())) == read_files(small)
    assert call.log == []


def test_a_hub_that_hangs_is_given_up_in_time(
    running: Any, server: HubServer, client: HubClient, small: Path, place: dict[str, Any]
) -> None:
    """With the settings that users have."""
    if server.xet:
        pytest.skip("once is enough: it takes long")
    publish(server, "me/hangs", read_files(small))
    own = {"LGD_TIMM_HUB_TIMEOUT": "", "LGD_TIMM_HUB_PATIENCE": ""}
    for pattern in ("/api/models/", "model.safetensors$"):
        server.faults.clear()
        server.faults.add("hang", pattern)
        start = time.monotonic()
        with pytest.raises(WeightsError, match="no answer from"):
            client.start("pull", "me/hangs", environ=own, **place).result()
        assert time.monotonic() - start < 15


def refuse(status: int, code: str = "") -> Callable[[HubServer, str], None]:
    return lambda server, repo_id: server.faults.add("status", f"/api/models/{repo_id}", value=status, code=code)


@pytest.mark.parametrize(
    ("name", "change", "reason"),
    [
        ("401", refuse(401), "the Hub refuses the token"),
        ("403", refuse(403), "this token may not do that"),
        ("404", refuse(404, "RepoNotFound"), "no such repository"),
        ("deleted", lambda server, repo_id: server.store.delete(repo_id), "no such repository"),
    ],
)
def test_what_the_hub_refuses_is_not_served_silently(
    name: str,
    change: Callable[[HubServer, str], None],
    reason: str,
    server: HubServer,
    client: HubClient,
    small: Path,
    place: dict[str, Any],
) -> None:
    """A branch may be another one by now; a commit is what it was, so it makes no request."""
    repo_id = f"me/refuses-{name}"
    commit = publish(server, repo_id, read_files(small))
    pulled = client("pull", repo_id, **place)
    change(server, repo_id)
    with pytest.raises(WeightsError, match=f"{repo_id}: {reason}"):
        client("pull", repo_id, **place)
    assert client("pull", f"{repo_id}@{commit}", **place) == pulled


def test_a_file_removed_on_the_hub_stays_at_its_commit(
    server: HubServer, client: HubClient, folder: Path, place: dict[str, Any]
) -> None:
    commit = publish(server, "me/removed", read_files(folder))
    pulled = client("pull", "me/removed", **place)
    (folder / "metrics.json").unlink()
    client("push", folder, "me/removed")
    assert client("pull", f"me/removed@{commit}", **place) == pulled
    assert "metrics.json" not in read_files(Path(client("pull", "me/removed", **place)))


def test_without_a_server(small: Path, tmp_path: Path) -> None:
    with HubServer(tmp_path / "store") as server:
        commit = publish(server, "me/x", read_files(small))
        manifest = tmp_path / "manifest.json"
        write_manifest(manifest, small, commit=commit)
        environ = environment(server.url, tmp_path / "home", LGD_TIMM_HUB=str(tmp_path / "none"))
        with HubClient(environ, manifest) as client:
            pulled = client("pull", "me/x")
            server.__exit__()  # the server is gone, and its port is closed
            start = time.monotonic()
            assert client("locate", NAME) == pulled
            assert time.monotonic() - start < 1
            call = client.start("pull", "me/x")
            assert call.result() == pulled
            assert f"Using commit {commit}" in call.log[0]
            calls: list[tuple[str, list[Any]]] = [("pull", ["me/other"]), ("push", [small, "me/x"])]
            for function, arguments in calls:
                with pytest.raises(WeightsError, match=f"no answer from {server.url}.*Check the network") as failure:
                    client(function, *arguments)
                assert str(failure.value.__cause__) == "ConnectError"
            assert time.monotonic() - start < 15
