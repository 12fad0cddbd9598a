"""What is there, where, and whether it is right, without a request."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.helpers.hub_fixtures import NAME, HubClient, flip_byte, make_folder, publish, read_files, write_manifest
from tests.helpers.hub_server import HubServer


def test_the_manifests_weights_are_listed(
    server: HubServer, client: HubClient, small: Path, manifest: Path, tmp_path: Path
) -> None:
    write_manifest(manifest, small, repo_id="me/listed")
    (row,) = (row for row in client("listing", cache_dir=tmp_path / "cache") if row["name"] == NAME)
    assert row["places"] == {}
    assert row["verified"] is None
    assert row["size"] == sum(map(len, read_files(small).values()))
    assert row["metrics"] == {"top1": 0.5}

    commit = publish(server, "me/listed", read_files(small))
    write_manifest(manifest, small, repo_id="me/listed", commit=commit)
    pulled = Path(client("pull", NAME, cache_dir=tmp_path / "cache"))
    server.log.clear()
    (row,) = client("listing", cache_dir=tmp_path / "cache")
    assert row["places"] == {"cached": str(pulled), "remote": f"{server.url}/me/listed/tree/{commit}"}
    assert row["verified"] is True

    flip_byte(pulled / "model.safetensors")
    (row,) = client("listing", cache_dir=tmp_path / "cache")
    assert row["verified"] is False
    assert list(row["wrong"]) == ["model.safetensors"]
    assert server.log == []


def test_what_was_pulled_from_others_is_listed(
    server: HubServer, client: HubClient, small: Path, manifest: Path, tmp_path: Path
) -> None:
    write_manifest(manifest, small)
    commit = publish(server, "some-org/their.model", read_files(small))
    pulled = client("pull", "some-org/their.model", cache_dir=tmp_path / "cache")
    row = client("listing", cache_dir=tmp_path / "cache")[-1]
    assert (row["name"], row["repo_id"]) == (f"some-org/their.model@{commit}", "some-org/their.model")
    assert (row["places"]["cached"], row["verified"]) == (pulled, True)


def test_folders_of_the_local_hub_are_listed(client: HubClient, small: Path, manifest: Path, tmp_path: Path) -> None:
    write_manifest(manifest, small)
    shutil.copytree(small, tmp_path / "hub" / NAME)
    make_folder(tmp_path / "hub" / "mine")
    call = client.start("listing", cache_dir=tmp_path / "cache", environ={"LGD_TIMM_HUB": str(tmp_path / "hub")})
    rows = {row["name"]: row for row in call.result()}
    assert rows[NAME]["places"] == {"local": str(tmp_path / "hub" / NAME)}
    assert rows[NAME]["verified"] is True
    assert (rows["mine"]["repo_id"], rows["mine"]["verified"]) == (None, None)


@pytest.mark.parametrize("summary", ["", "[]", '{"summary": 1}'])
def test_metrics_that_are_none_are_not_shown(
    summary: str, client: HubClient, small: Path, manifest: Path, tmp_path: Path
) -> None:
    write_manifest(manifest, small)
    folder = make_folder(tmp_path / "hub" / "mine")
    (folder / "metrics.json").write_text(summary)
    call = client.start("listing", cache_dir=tmp_path / "cache", environ={"LGD_TIMM_HUB": str(tmp_path / "hub")})
    assert next(row for row in call.result() if row["name"] == "mine")["metrics"] == {}
