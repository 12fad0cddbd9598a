"""What is pulled: which files, of which revision, to where, and what is refused."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from lgd_timm.errors import WeightsError
from tests.helpers.hub_fixtures import CARD, NAME, HubClient, downloads, flip_byte, publish, read_files, write_manifest
from tests.helpers.hub_server import HubServer


def test_pull_takes_the_revision_that_was_asked_for(
    server: HubServer, client: HubClient, folder: Path, tmp_path: Path
) -> None:
    first = client("push", folder, "me/revised", tag="v1")
    (folder / "README.md").write_text(CARD + "New.\n")
    second = client("push", folder, "me/revised")
    cards = {
        name: (Path(client("pull", name, revision=revision, cache_dir=tmp_path / "cache")) / "README.md").read_text()
        for name, revision in {
            "me/revised": None,
            "me/revised@v1": None,
            f"me/revised@{first['commit']}": first["commit"],
        }.items()
    }
    assert list(cards.values()) == [CARD + "New.\n", CARD, CARD]
    assert second["commit"] != first["commit"]
    with pytest.raises(WeightsError, match="names another revision"):
        client("pull", "me/revised@v1", revision="main")
    with pytest.raises(WeightsError, match="me/revised at v9: it has no such revision"):
        client("pull", "me/revised@v9")


def test_a_manifest_name_comes_at_its_pinned_commit(
    manifest: Path, server: HubServer, client: HubClient, folder: Path, tmp_path: Path
) -> None:
    commit = publish(server, "me/pinned", read_files(folder))
    write_manifest(manifest, folder, repo_id="me/pinned", commit=commit)
    (folder / "README.md").write_text(CARD + "Newer.\n")
    client("push", folder, "me/pinned")
    place: dict[str, Any] = {"cache_dir": tmp_path / "cache"}
    located = Path(client("locate", NAME, **place))
    assert (located / "README.md").read_text() == CARD

    server.log.clear()
    assert Path(client("locate", NAME, **place)) == located
    assert server.log == [], "what is cached and right was asked for again"
    assert "Newer" in (Path(client("pull", NAME, revision="main", **place)) / "README.md").read_text()

    flip_byte(located / "model.safetensors")
    server.log.clear()
    assert (Path(client("locate", NAME, **place)) / "model.safetensors").read_bytes() == (
        folder / "model.safetensors"
    ).read_bytes()
    assert len(downloads(server, "model.safetensors")) == 1, "the damaged cache was not repaired"

    write_manifest(manifest, folder, repo_id="me/pinned", commit=commit)  # expects the newer README at this commit
    with pytest.raises(WeightsError, match=r"README\.md should have .* also when fetched again"):
        client("pull", NAME, **place)


def test_local_dir_is_never_overwritten(server: HubServer, client: HubClient, small: Path, tmp_path: Path) -> None:
    publish(server, "me/placed", read_files(small))
    (tmp_path / "empty").mkdir()
    assert read_files(Path(client("pull", "me/placed", local_dir=tmp_path / "empty"))) == read_files(small)
    server.log.clear()
    client("pull", "me/placed", local_dir=tmp_path / "empty")
    assert downloads(server, "model.safetensors") == []

    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("mine")
    with pytest.raises(WeightsError, match="is not what was published"):
        client("pull", "me/placed", local_dir=tmp_path / "mine")
    assert read_files(tmp_path / "mine") == {"notes.txt": b"mine"}
    with pytest.raises(WeightsError, match="is a file"):
        client("pull", "me/placed", local_dir=tmp_path / "mine" / "notes.txt")


def test_pickles_are_refused_and_never_downloaded(server: HubServer, client: HubClient, tmp_path: Path) -> None:
    files = {"config.json": b"{}", "README.md": CARD.encode(), "pytorch_model.bin": b"pickle"}
    publish(server, "me/pickled", files)
    with pytest.raises(WeightsError, match=r"no safetensors, and pickles can run code.*pytorch_model\.bin"):
        client("pull", "me/pickled", cache_dir=tmp_path)
    publish(server, "me/both", {**files, "model.safetensors": b"safe"})
    pulled = client("pull", "me/both", cache_dir=tmp_path)
    assert set(read_files(Path(pulled))) == {"config.json", "README.md", "model.safetensors"}
    assert not any(".bin" in request.path for request in server.log)
    publish(server, "me/bare", {"model.safetensors": b"safe"})
    with pytest.raises(WeightsError, match=r"without config\.json, README\.md"):
        client("pull", "me/bare", cache_dir=tmp_path)


def test_what_the_hub_refuses_is_explained(server: HubServer, client: HubClient, small: Path) -> None:
    with pytest.raises(WeightsError, match="me/none: no such repository") as failure:
        client("pull", "me/none")
    assert str(failure.value.__cause__) == "RepositoryNotFoundError"
    with pytest.raises(WeightsError, match="the Hub refuses the token") as failure:
        client("pull", "me/none", token="hf_wrong")
    assert str(failure.value.__cause__) == "HfHubHTTPError"
    with pytest.raises(WeightsError, match="the Hub refuses the token"):
        client("push", small, "me/new", token="hf_wrong")
    with pytest.raises(WeightsError, match="not a valid/name: "):
        client("pull", "not a valid/name")
    publish(server, "me/gated", read_files(small))
    server.faults.add("status", "/api/models/me/gated", value=403, code="GatedRepo")
    with pytest.raises(WeightsError, match="me/gated: it is gated") as failure:
        client("pull", "me/gated")
    assert str(failure.value.__cause__) == "GatedRepoError"


def test_snapshot_takes_what_matches(server: HubServer, client: HubClient, tmp_path: Path) -> None:
    files = {
        "config.json": b"{}",
        "model.safetensors": b"safe",
        "tok/vocab.json": b"[]",
        "pytorch_model.bin": b"pickle",
        "notes.txt": b"n",
    }
    publish(server, "me/any", files)
    folder = Path(
        client("snapshot", "me/any", require=["config.json", "*.safetensors"], allow=["*.json"], cache_dir=tmp_path)
    )
    found = {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    assert found == {name: files[name] for name in ("config.json", "model.safetensors", "tok/vocab.json")}
    with pytest.raises(WeightsError, match=r"without open_clip_\*"):
        client("snapshot", "me/any", require=["open_clip_*"], cache_dir=tmp_path)
    publish(server, "me/evil", {"../../evil.json": b"{}", "a.safetensors": b""})
    with pytest.raises(WeightsError, match=r"'\.\./\.\./evil\.json', which leads out of the folder"):
        client("snapshot", "me/evil", require=["*.json"], cache_dir=tmp_path)


@pytest.mark.parametrize("revision", ["../../x", "/etc", "a..b", "a b", "-x"])
def test_revisions_are_no_paths(revision: str, client: HubClient, tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="is no revision"):
        client("pull", "me/x", revision=revision, cache_dir=tmp_path / "cache")
    assert not (tmp_path / "cache").exists()


def test_what_was_pulled_is_found_by_other_clients_under_its_branch(
    server: HubServer, client: HubClient, small: Path, tmp_path: Path
) -> None:
    commit = publish(server, "me/refs", read_files(small))
    client("pull", "me/refs", cache_dir=tmp_path)
    assert (tmp_path / "models--me--refs" / "refs" / "main").read_text() == commit


def test_a_file_of_the_users_own_is_not_deleted(
    server: HubServer, client: HubClient, small: Path, tmp_path: Path
) -> None:
    """Who put a link to better weights into the cache loses the link, not the weights."""
    publish(server, "me/usersown", read_files(small))
    pulled = Path(client("pull", "me/usersown", cache_dir=tmp_path / "cache"))
    mine = tmp_path / "mine.safetensors"
    mine.write_bytes(b"better")
    (pulled / "model.safetensors").unlink()
    (pulled / "model.safetensors").symlink_to(mine)
    assert read_files(Path(client("pull", "me/usersown", cache_dir=tmp_path / "cache"))) == read_files(small)
    assert mine.read_bytes() == b"better"


def test_a_cache_that_may_only_be_read_still_serves(
    server: HubServer, client: HubClient, small: Path, tmp_path: Path
) -> None:
    publish(server, "me/readonly", read_files(small))
    pulled = client("pull", "me/readonly", cache_dir=tmp_path / "cache")
    root = tmp_path / "cache" / "models--me--readonly"
    shutil.rmtree(root / "lgd_timm")
    shutil.rmtree(root / "refs")
    for name in ("lgd_timm", "refs"):
        (root / name).write_text("no folder: nothing can be written there, not even by root")
    assert client("pull", "me/readonly", cache_dir=tmp_path / "cache") == pulled
