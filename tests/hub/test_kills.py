"""Flipped bytes, killed processes, many processes: nothing wrong is ever served, and the next call succeeds."""

from __future__ import annotations

import random
import shutil
import time
from pathlib import Path
from typing import Any

import pytest

from lgd_timm.errors import WeightsError
from tests.helpers.hub_fixtures import (
    NAME,
    HubClient,
    downloads,
    flip_byte,
    make_folder,
    publish,
    read_files,
    write_manifest,
)
from tests.helpers.hub_server import HubServer

BODY = "^/cdn/.*model.safetensors$"
FLIPS = 50  # of each kind, and everything here runs with and without Xet
KILLS = 10


def test_every_byte_flipped_in_transit_is_noticed(
    server: HubServer, client: HubClient, small: Path, tmp_path: Path
) -> None:
    """It flips once: found, and repaired by fetching again."""
    right = read_files(small)
    publish(server, "me/transit", right)
    draw = random.Random(0)
    for i in range(FLIPS):
        server.log.clear()
        name = draw.choice(["model.safetensors"] * 8 + ["config.json", "README.md"])
        server.faults.add(
            "flip", BODY if name == "model.safetensors" else f"{name}$", value=draw.randrange(len(right[name])), times=1
        )
        pulled = Path(client("pull", "me/transit", cache_dir=tmp_path / str(i)))
        assert len(downloads(server, name)) == 2, f"flip {i} in {name} was not noticed"
        assert read_files(pulled) == right
        shutil.rmtree(tmp_path / str(i))


def test_every_byte_flipped_on_disk_is_noticed(
    server: HubServer, client: HubClient, small: Path, manifest: Path, tmp_path: Path
) -> None:
    """In the cache it is repaired; in the local hub folder, which is the user's, it is refused."""
    right = read_files(small)
    commit = publish(server, "me/disk", right)
    write_manifest(manifest, small, repo_id="me/disk", commit=commit)
    local = {"LGD_TIMM_HUB": str(tmp_path / "hub")}
    folder = Path(shutil.copytree(small, tmp_path / "hub" / NAME))
    assert client.start("locate", NAME, environ=local).result() == str(folder)
    pulled = Path(client("locate", NAME, cache_dir=tmp_path / "cache"))
    draw = random.Random(1)
    for i in range(FLIPS):
        server.log.clear()
        name = draw.choice(["model.safetensors"] * 8 + ["config.json", "README.md"])
        place = draw.randrange(len(right[name]))
        if i % 2:
            flip_byte(pulled / name, place)
            assert Path(client("locate", NAME, cache_dir=tmp_path / "cache")) == pulled
            assert len(downloads(server, name)) == 1, f"flip {i} in {name} was not noticed"
            assert read_files(pulled) == right
        else:
            flip_byte(folder / name, place)
            with pytest.raises(WeightsError, match=f"{name} should have"):
                client.start("locate", NAME, environ=local).result()
            flip_byte(folder / name, place)


def test_killed_pulls_leave_nothing_wrong(server: HubServer, client: HubClient, small: Path, tmp_path: Path) -> None:
    right = read_files(small)
    publish(server, "me/killed", right)
    cache = {"cache_dir": str(tmp_path / "cache"), "local_dir": str(tmp_path / "mine")}
    start = time.monotonic()
    client("pull", "me/killed", **cache)
    whole = time.monotonic() - start
    draw, answered = random.Random(2), 0
    for i in range(KILLS):
        shutil.rmtree(tmp_path / "mine", ignore_errors=True)
        shutil.rmtree(tmp_path / "cache")
        call = client.start("pull", "me/killed", **cache)
        time.sleep(draw.uniform(0, whole))
        call.kill()
        answered += call.wait()
        found = [
            path
            for path in (tmp_path / "cache").rglob("*")
            if path.is_file() and {"blobs", "snapshots"} & set(path.parts)
        ]
        assert all(path.read_bytes() in right.values() for path in found if path.suffix != ".incomplete"), f"kill {i}"
        if (tmp_path / "mine").exists():
            assert read_files(tmp_path / "mine") == right, f"kill {i}: the folder is there and not whole"
        assert read_files(Path(client("pull", "me/killed", **cache))) == right
        assert not list((tmp_path / "cache").rglob("*.incomplete"))
        assert {path.name for path in tmp_path.iterdir()} == {"cache", "mine"}, "a half-written folder stayed"
    assert answered < KILLS, "no call was killed before it had answered: the test shows nothing"


def test_killed_pushes_leave_the_old_or_the_new(server: HubServer, client: HubClient, tmp_path: Path) -> None:
    versions = [make_folder(tmp_path / str(seed) / NAME, seed=seed) for seed in (100 + server.xet, 200 + server.xet)]
    (versions[1] / "README.md").write_text((versions[0] / "README.md").read_text() + "New.\n")
    client("push", versions[0], "me/pushed")
    start = time.monotonic()
    client("push", versions[1], "me/pushed")
    whole = time.monotonic() - start
    contents = [read_files(version) for version in versions]
    sent_twice, draw, answered = 0, random.Random(3), 0
    for i in range(KILLS):
        goal = contents[i % 2]
        call = client.start("push", versions[i % 2], "me/pushed", tag=f"v{i}")
        time.sleep(draw.uniform(0, whole))
        call.kill()
        answered += call.wait()
        server.log.clear()
        assert published(server) in contents, f"kill {i}: neither the old nor the new"
        commits = len(server.store.repo("me/pushed").commits)
        client("push", versions[i % 2], "me/pushed", tag=f"v{i}")
        repo = server.store.repo("me/pushed")
        assert published(server) == goal
        assert repo.tags[f"v{i}"] == repo.branches["main"]
        assert len(repo.commits) <= commits + 1
        sent_twice += sum(request.method == "PUT" for request in server.log)
    assert sent_twice == 0, "weights that the Hub has were sent again"
    assert answered < KILLS, "no call was killed before it had answered: the test shows nothing"


def published(server: HubServer) -> dict[str, bytes]:
    files = server.store.repo("me/pushed").files("main")
    return {
        name: server.store.blob_path(file["sha256"]).read_bytes()
        for name, file in files.items()
        if name != ".gitattributes"
    }


def test_eight_processes_download_once(server: HubServer, client: HubClient, small: Path, tmp_path: Path) -> None:
    publish(server, "me/eight", read_files(small))
    calls = [client.start("pull", "me/eight", cache_dir=tmp_path / "cache") for _ in range(8)]
    folders = {call.result() for call in calls}
    assert len(folders) == 1
    assert read_files(Path(folders.pop())) == read_files(small)
    for name in read_files(small):
        assert len(downloads(server, name)) == 1, name


def test_who_waits_goes_on_when_the_other_is_killed(
    server: HubServer, client: HubClient, small: Path, tmp_path: Path
) -> None:
    publish(server, "me/waits", read_files(small))
    server.faults.add("stall", BODY, value=60, times=1)
    patient: dict[str, Any] = {"environ": {"LGD_TIMM_HUB_TIMEOUT": "30"}, "cache_dir": tmp_path / "cache"}
    first = client.start("pull", "me/waits", **patient)
    while not downloads(server, "model.safetensors"):
        time.sleep(0.01)
    second = client.start("pull", "me/waits", **patient)
    time.sleep(0.5)
    assert second.running, "it did not wait for the other"
    start = time.monotonic()
    first.kill()
    assert read_files(Path(second.result())) == read_files(small)
    assert time.monotonic() - start < 5


def test_waiting_for_another_process_has_a_bound(
    server: HubServer, client: HubClient, small: Path, tmp_path: Path
) -> None:
    publish(server, "me/bound", read_files(small))
    server.faults.add("stall", BODY, value=60, times=1)
    place: dict[str, Any] = {"cache_dir": tmp_path / "cache"}
    first = client.start("pull", "me/bound", environ={"LGD_TIMM_HUB_TIMEOUT": "30"}, **place)
    while not downloads(server, "model.safetensors"):
        time.sleep(0.01)
    with pytest.raises(
        WeightsError, match=r"another process has been downloading .* for 0\.5 s \(LGD_TIMM_LOCK_TIMEOUT\)"
    ):
        client.start("pull", "me/bound", environ={"LGD_TIMM_LOCK_TIMEOUT": "0.5"}, **place).result()
    first.kill()


def test_two_pushes_at_once_do_not_mix(server: HubServer, client: HubClient, small: Path, tmp_path: Path) -> None:
    """Both start from the same commit: one lands, the other is told, and nothing of it is there."""
    other = make_folder(tmp_path / NAME, seed=300 + server.xet)
    client("push", make_folder(tmp_path / "first" / NAME, seed=400 + server.xet), "me/two")
    server.faults.add("call", "/commit/main$", method="POST", times=1, call=lambda: client("push", other, "me/two"))
    with pytest.raises(WeightsError, match="somebody else pushed meanwhile; nothing was changed"):
        client("push", small, "me/two")
    files = server.store.repo("me/two").files("main")
    assert (
        server.store.blob_path(files["model.safetensors"]["sha256"]).read_bytes()
        == (other / "model.safetensors").read_bytes()
    )
