"""Downloads that break, in each way in which the Hub's own client was measured to fail (broken bodies, HEAD/GET races).

Each ends with the right bytes or a clear error, within 15 seconds, and never with a wrong file.
"""

from __future__ import annotations

import hashlib
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
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
    make_folder,
    publish,
    read_files,
    run_script,
    write_manifest,
)
from tests.helpers.hub_server import HubServer
from tests.helpers.small_disk import small_disk

BODY = "^/(cdn|xorb)/.*model.safetensors$"  # the weights themselves, not the redirection to them
PART = 300_000  # bytes: the weights are five to six times as large
PARTS = 6
BOUND = 15  # seconds


@pytest.fixture(autouse=True)
def _bounded() -> Iterator[None]:
    start = time.monotonic()
    yield
    assert time.monotonic() - start < BOUND


def kept(folder: Path) -> list[Path]:
    """Every file below a folder, links resolved."""
    return [path for path in folder.rglob("*") if path.is_file()]


def assert_nothing_wrong(cache: Path, right: dict[str, bytes]) -> None:
    """No content in the cache but what was published, and nothing half-written."""
    blobs = [path for path in kept(cache) if path.parent.name == "blobs" or "snapshots" in path.parts]
    assert all(path.read_bytes() in right.values() for path in blobs)
    assert not [path for path in kept(cache) if path.name.endswith(".incomplete")]


# What goes wrong, and how it ends: the number of requests for the weights' content that it takes.
SURVIVED: dict[str, tuple[dict[str, Any], int]] = {
    "closes once": ({"kind": "cut", "value": PART, "times": 1}, 2),
    "closes again and again, after less than the client keeps": ({"kind": "cut", "value": PART}, PARTS),
    "closes once, before anything": ({"kind": "cut", "times": 1}, 2),
    "resets once": ({"kind": "reset", "value": PART, "times": 1}, 2),
    "resets three times": ({"kind": "reset", "times": 3}, 4),
    "no length, ends early": ({"kind": "nolength", "value": PART, "times": 1}, 2),
    "no length, ends early again and again": ({"kind": "nolength", "value": PART}, PARTS),
    "stalls once": ({"kind": "stall", "value": 60, "times": 1}, 2),
    "hangs once": ({"kind": "hang", "times": 1}, 1),
    "flips a byte once": ({"kind": "flip", "times": 1}, 2),
    **{
        f"says {status} once": ({"kind": "status", "value": status, "times": 1}, 1)
        for status in (408, 429, 500, 502, 503, 504)
    },
}


@pytest.mark.parametrize("name", SURVIVED)
def test_what_passes_is_survived(name: str, server: HubServer, client: HubClient, small: Path, tmp_path: Path) -> None:
    fault, requests = SURVIVED[name]
    repo_id = f"me/passes-{re.sub('[^a-z0-9]', '', name)}"
    publish(server, repo_id, read_files(small))
    server.faults.add(pattern=BODY, **fault)
    pulled = Path(client("pull", repo_id, cache_dir=tmp_path / "cache"))
    assert read_files(pulled) == read_files(small)
    assert len(downloads(server, "model.safetensors")) == requests
    assert_nothing_wrong(tmp_path / "cache", read_files(small))
    assert not [request for request in server.log if request.at == "cas"], "Xet was asked, which waits for minutes"


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "closes always": ({"kind": "cut"}, "no answer from .*RemoteProtocolError"),
    "resets always": ({"kind": "reset"}, "no answer from .*ReadError"),
    "stalls always": ({"kind": "stall", "value": 60}, "no answer from .*(ReadTimeout|no whole answer within)"),
    "hangs always": ({"kind": "hang"}, "no answer from .*(ReadTimeout|no whole answer within)"),
    "says 403": ({"kind": "status", "value": 403}, "this token may not do that"),
    "says 404": ({"kind": "status", "value": 404}, "404"),
    **{f"says {status} always": ({"kind": "status", "value": status}, str(status)) for status in (408, 429, 500, 503)},
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_stays_is_refused(name: str, server: HubServer, client: HubClient, small: Path, tmp_path: Path) -> None:
    fault, reason = REFUSED[name]
    repo_id = f"me/stays-{name.replace(' ', '')}"
    publish(server, repo_id, read_files(small))
    server.faults.add(pattern=BODY, **fault)
    with pytest.raises(WeightsError, match=f"{repo_id} at [0-9a-f]+: .*{reason}"):
        client("pull", repo_id, cache_dir=tmp_path / "cache")
    assert_nothing_wrong(tmp_path / "cache", read_files(small))
    server.faults.clear()
    assert read_files(Path(client("pull", repo_id, cache_dir=tmp_path / "cache"))) == read_files(small)


def test_a_broken_download_goes_on_where_it_was(
    server: HubServer, client: HubClient, small: Path, tmp_path: Path
) -> None:
    publish(server, "me/ranges", read_files(small))
    server.faults.add("cut", BODY, value=PART, times=1)
    client("pull", "me/ranges", cache_dir=tmp_path)
    asked = [request.headers.get("range") for request in downloads(server, "model.safetensors")]
    assert asked == [None, f"bytes={PART}-"]


def test_a_hub_that_ignores_ranges_is_read_from_the_start(
    server: HubServer, client: HubClient, small: Path, tmp_path: Path
) -> None:
    publish(server, "me/norange", read_files(small))
    server.faults.add("cut", BODY, value=PART, times=1)
    server.faults.add("norange", BODY, times=1)
    pulled = Path(client("pull", "me/norange", cache_dir=tmp_path))
    assert [request.status for request in downloads(server, "model.safetensors")] == [200, 200]
    assert read_files(pulled) == read_files(small)


def test_a_byte_that_flips_in_the_resumed_part_is_noticed(
    server: HubServer, client: HubClient, small: Path, tmp_path: Path
) -> None:
    publish(server, "me/resumed", read_files(small))
    server.faults.add("cut", BODY, value=PART, times=1)
    server.faults.add("flip", BODY, times=1)
    assert read_files(Path(client("pull", "me/resumed", cache_dir=tmp_path))) == read_files(small)
    assert [request.headers.get("range") for request in downloads(server, "model.safetensors")] == [
        None,
        f"bytes={PART}-",
        None,
    ]


def test_small_files_are_checked_by_what_git_calls_them(
    server: HubServer, client: HubClient, small: Path, tmp_path: Path
) -> None:
    publish(server, "me/small", read_files(small))
    server.faults.add("flip", "config.json$", times=1)
    assert read_files(Path(client("pull", "me/small", cache_dir=tmp_path))) == read_files(small)
    assert [request.headers.get("cache-control") for request in downloads(server, "config.json")] == [None, "no-cache"]


def test_a_byte_that_stays_flipped_is_refused(
    server: HubServer, client: HubClient, small: Path, tmp_path: Path
) -> None:
    publish(server, "me/bad", read_files(small))
    server.faults.add("flip", BODY)
    right = (small / "model.safetensors").read_bytes()
    wrong = bytearray(right)
    wrong[len(wrong) // 2] ^= 1
    with pytest.raises(WeightsError, match=r"model\.safetensors should have") as failure:
        client("pull", "me/bad", cache_dir=tmp_path / "cache")
    for content in (right, bytes(wrong)):
        assert hashlib.sha256(content).hexdigest() in str(failure.value)
    assert_nothing_wrong(tmp_path / "cache", read_files(small))
    assert "model.safetensors" not in {path.name for path in (tmp_path / "cache").rglob("*")}, (
        "a link to nothing stayed"
    )


@pytest.mark.parametrize("change", ["shorter", "longer"])
def test_a_file_of_another_size_is_refused(
    change: str, server: HubServer, client: HubClient, folder: Path, manifest: Path, tmp_path: Path
) -> None:
    write_manifest(manifest, folder, repo_id=f"me/{change}")
    content = (folder / "model.safetensors").read_bytes()
    commit = publish(
        server,
        f"me/{change}",
        {**read_files(folder), "model.safetensors": content[:-1] if change == "shorter" else content * 2},
    )
    write_manifest(manifest, folder, repo_id=f"me/{change}", commit=commit)
    with pytest.raises(
        WeightsError,
        match=rf"model\.safetensors should have {len(content)} bytes .* but there is (more than )?\d+ bytes",
    ):
        client("pull", NAME, cache_dir=tmp_path / "cache")


@pytest.mark.parametrize("fault", ["reset", "flip", "status"])
def test_nothing_half_written_stays(
    fault: str, server: HubServer, client: HubClient, small: Path, tmp_path: Path
) -> None:
    repo_id = f"me/half-{fault}"
    publish(server, repo_id, read_files(small))
    target = tmp_path / "weights" / "mine"
    server.faults.add(fault, BODY, value=403 if fault == "status" else 1000)
    with pytest.raises(WeightsError, match=repo_id):
        client("pull", repo_id, local_dir=target, cache_dir=tmp_path / "cache")
    assert not target.parent.exists()

    server.faults.clear()
    assert Path(client("pull", repo_id, local_dir=target, cache_dir=tmp_path / "cache")) == target
    assert read_files(target) == read_files(small), "the folder holds more or less than what was published"
    assert os.listdir(tmp_path / "weights") == ["mine"]


def test_a_push_in_the_middle_of_a_pull_mixes_nothing(
    server: HubServer, client: HubClient, small: Path, tmp_path: Path
) -> None:
    """Weights of the same size and another card land between the first request and the files."""
    publish(server, "me/race", read_files(small))
    other = make_folder(tmp_path / NAME, seed=5)
    (other / "README.md").write_text(CARD + "Other.\n")
    server.faults.add("call", "/resolve/.*config.json$", times=1, call=lambda: client("push", other, "me/race"))
    pulled = Path(client("pull", "me/race", cache_dir=tmp_path / "cache"))
    assert read_files(pulled) == read_files(small), "files of two commits were mixed"
    assert read_files(Path(client("pull", "me/race", cache_dir=tmp_path / "cache"))) == read_files(other)


CLIENTS_OWN = """
import json, os
from huggingface_hub import hf_hub_download
paths = [hf_hub_download(repo, "model.safetensors", cache_dir=os.environ["CACHE"]) for repo in ("me/own", "me/twin")]
print(json.dumps(paths))
"""


def test_what_another_client_let_through_is_repaired(
    running: Any, server: HubServer, client: HubClient, small: Path, tmp_path: Path
) -> None:
    """The Hub's client keeps a flipped byte and, with Xet, hands it on to every repository that holds the file."""
    for repo_id in ("me/own", "me/twin"):
        publish(server, repo_id, read_files(small))
    server.faults.add("flip", BODY, value=PART, times=1)
    settings = {"HF_HUB_DISABLE_XET": "0" if server.xet else "1", "CACHE": str(tmp_path / "cache")}
    paths = run_script(CLIENTS_OWN, environment(server.url, tmp_path / "home", **settings))
    right = (small / "model.safetensors").read_bytes()
    assert Path(paths[0]).read_bytes() != right, "the client checks now what it downloads"
    for repo_id in ("me/own", "me/twin"):
        assert read_files(Path(client("pull", repo_id, cache_dir=tmp_path / "cache"))) == read_files(small)
    assert all(Path(path).read_bytes() == right for path in paths), (
        "who asks the other client next gets the wrong bytes"
    )


def test_what_killed_downloads_left_is_swept(server: HubServer, client: HubClient, small: Path, tmp_path: Path) -> None:
    publish(server, "me/swept", read_files(small))
    blobs = tmp_path / "cache" / "models--me--swept" / "blobs"
    blobs.mkdir(parents=True)
    stale, held = blobs / f"{'a' * 64}.12345678.incomplete", blobs / f"{'b' * 64}.12345678.incomplete"
    for path in (stale, held):
        path.write_bytes(b"half")
    lock = tmp_path / "cache" / ".locks" / "models--me--swept" / f"{'b' * 64}.lock"
    lock.parent.mkdir(parents=True)
    hold = "import sys, filelock; lock = filelock.FileLock(sys.argv[1]); lock.acquire(); "
    hold += "print('held', flush=True); sys.stdin.read()"
    with subprocess.Popen(
        [sys.executable, "-c", hold, str(lock)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as other:
        assert other.stdout
        other.stdout.readline()
        client("pull", "me/swept", cache_dir=tmp_path / "cache")
        assert not stale.exists()
        assert held.exists(), "another client's download was disturbed"
        assert other.stdin
        other.stdin.close()


def test_a_full_disk_is_one_clear_line(server: HubServer, client: HubClient, small: Path, tmp_path: Path) -> None:
    publish(server, "me/full", read_files(small))
    with small_disk(tmp_path / "disk", size="500k") as full:
        with pytest.raises(WeightsError, match=r"me/full at [0-9a-f]+: the disk is full.*Free some space"):
            client("pull", "me/full", cache_dir=full)
        assert_nothing_wrong(full, read_files(small))
