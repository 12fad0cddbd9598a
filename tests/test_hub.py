"""Published weights: found, verified, pulled and pushed, against a Hub on loopback that can be made to misbehave."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from hub_fixtures import CARD, HubClient, environment, make_folder, publish, read_files
from hub_server import READ_TOKEN, WRITE_TOKEN, HubServer, Request

from lgd_timm import hub
from lgd_timm.errors import WeightsError

NAME = "lgd_test.small"


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small published folder. Tests that change it take a copy."""
    return make_folder(tmp_path_factory.mktemp("small") / NAME)


@pytest.fixture
def folder(small: Path, tmp_path: Path) -> Path:
    """The small published folder, to be changed."""
    return Path(shutil.copytree(small, tmp_path / NAME))


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[HubServer, HubClient, Path]]:
    """One server and one client for all tests: each takes a repository and a cache of its own."""
    root = tmp_path_factory.mktemp("hub")
    manifest = root / "manifest.json"
    with HubServer(root / "store") as server:
        settings = {"HF_TOKEN": WRITE_TOKEN, "LGD_TIMM_HUB": str(root / "none")}
        with HubClient(environment(server.url, root / "home", **settings), manifest) as client:
            yield server, client, manifest


@pytest.fixture
def server(running: tuple[HubServer, HubClient, Path]) -> Iterator[HubServer]:
    """The Hub, without faults and with an empty log."""
    running[0].log.clear()
    yield running[0]
    running[0].faults.clear()


@pytest.fixture
def client(running: tuple[HubServer, HubClient, Path]) -> HubClient:
    return running[1]


def write_manifest(path: Path, folder: Path, *, repo_id: str = "me/x", commit: str | None = None) -> dict[str, Any]:
    files = {name: {"size": len(content), "sha256": hashlib.sha256(content).hexdigest()} for name, content in read_files(folder).items()}
    row = {"repo_id": repo_id, "commit": commit, "files": files, "metrics": {"top1": 0.5}, "cfg": {"num_classes": 3}}
    path.write_text(json.dumps({NAME: row}))
    return row


def flip_byte(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def downloads(server: HubServer, file: str) -> list[Request]:
    return [request for request in server.log if request.method == "GET" and request.path.endswith(f"/{file}")]


# ------------------------------------------------------------------------------------- manifest, verify, locate, check


def test_the_shipped_manifest_reads() -> None:
    for name, weight in hub.manifest().items():
        assert weight.name == name
        assert weight.repo_id.endswith(f"/{name}")
        assert set(hub.REQUIRED_FILES) <= set(weight.files)


def test_manifest_rows(small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub, "MANIFEST", tmp_path / "manifest.json")
    row = write_manifest(hub.MANIFEST, small, commit="a" * 40)
    assert hub.manifest() == {NAME: hub.Weight(name=NAME, **row)}


@pytest.mark.parametrize(
    "damage",
    ["{", "[]", '{"a": {}}', '{"a": {"repo_id": "o/a", "commit": "main", "files": {}, "metrics": {}, "cfg": {}}}'],
)
def test_a_damaged_manifest_is_named(damage: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub, "MANIFEST", tmp_path / "manifest.json")
    hub.MANIFEST.write_text(damage)
    with pytest.raises(WeightsError, match=r"manifest\.json can't be read"):
        hub.manifest()


def test_verify_names_the_file_and_both_hashes(folder: Path) -> None:
    facts = hub.check_folder(folder)
    hub.verify(folder, facts)
    flip_byte(folder / "model.safetensors")
    (folder / "metrics.json").unlink()
    found = hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()
    with pytest.raises(WeightsError) as failure:
        hub.verify(folder, facts)
    message = str(failure.value)
    for part in ("model.safetensors", facts["model.safetensors"]["sha256"], found, "metrics.json", "no such file"):
        assert part in message
    assert "README.md" not in message


def test_locate_looks_in_the_local_folder_first(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub, "MANIFEST", tmp_path / "manifest.json")
    monkeypatch.setenv("LGD_TIMM_HUB", str(tmp_path))
    write_manifest(hub.MANIFEST, folder)
    assert hub.locate(NAME) == folder

    flip_byte(folder / "model.safetensors")
    with pytest.raises(WeightsError, match="is not what was published"):
        hub.locate(NAME)

    shutil.rmtree(folder)
    with pytest.raises(WeightsError, match=r"not on the Hub yet.*does not exist.*LGD_TIMM_HUB") as failure:
        hub.locate(NAME)
    assert str(folder) in str(failure.value)
    with pytest.raises(WeightsError, match=f"Did you mean {NAME}"):
        hub.locate("lgd_tst.small")
    with pytest.raises(WeightsError, match=f"It knows: {NAME}"):
        hub.pull("zzz")


def test_check_folder_gives_size_and_sha256_of_every_file(small: Path) -> None:
    contents = read_files(small)
    expected = {n: {"size": len(c), "sha256": hashlib.sha256(c).hexdigest()} for n, c in contents.items()}
    assert hub.check_folder(small) == expected


def rename_architecture(name: str) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps({**config, "architecture": name}))

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda folder: (folder / "README.md").unlink(), r"README\.md missing"),
        (lambda folder: (folder / "README.md").write_text("# no front matter\n"), "no front matter"),
        (lambda folder: (folder / "README.md").write_text("---\na: [\n---\n"), "not YAML"),
        (lambda folder: (folder / "config.json").write_text("{}"), "no timm config"),
        (rename_architecture("lgd_resnet18"), "'lgd_resnet18', which plain timm does not have"),
        (rename_architecture("resnet99"), "'resnet99', which plain timm does not have"),
        (rename_architecture("test_vit"), "does not fit test_vit strictly"),
        (lambda folder: shutil.copy(make_folder(folder.parent / "other", num_classes=4) / "config.json", folder),
         r"fc\.weight is \(3, \d+\) and should be \(4, \d+\)"),
        (lambda folder: (folder / "model.safetensors").write_bytes(b"garbage"), "does not open as safetensors"),
        (lambda folder: (folder / "lgd.safetensors").write_bytes(b"garbage"), r"lgd\.safetensors does not open"),
        (lambda folder: (folder / "weights.bin").write_bytes(b""), r"holds weights\.bin"),
    ],
)  # fmt: skip
def test_check_folder_refuses(folder: Path, change: Callable[[Path], Any], message: str) -> None:
    change(folder)
    with pytest.raises(WeightsError, match=message):
        hub.check_folder(folder)


# ------------------------------------------------------------------------------------------------------ push and pull


def test_push_then_pull_gives_the_same_bytes(server: HubServer, client: HubClient, small: Path, tmp_path: Path) -> None:
    pushed = client("push", small, "me/round", tag="v1")
    assert sorted(pushed["sent"]) == sorted(read_files(small))
    assert pushed["files"] == hub.check_folder(small)
    assert pushed["url"] == f"{server.url}/me/round/tree/{pushed['commit']}"
    assert server.store.repo("me/round").tags == {"v1": pushed["commit"]}
    first, last = server.store.repo("me/round").commits
    assert last == pushed["commit"], "more than one commit after the repository's own first"
    (sent,) = (request for request in server.log if "/commit/" in request.path)
    assert json.loads(sent.body.splitlines()[0])["value"]["parentCommit"] == first

    server.log.clear()
    pulled = Path(client("pull", "me/round", cache_dir=tmp_path / "cache"))
    assert read_files(pulled) == read_files(small)
    resolved = [request.path for request in server.log if "/resolve/" in request.path]
    assert len(resolved) >= len(read_files(small))
    assert all(f"/resolve/{pushed['commit']}/" in path for path in resolved), "a file was asked for at a branch"
    model = timm.create_model(f"local-dir:{pulled}", pretrained=True)
    expected = timm.create_model(f"local-dir:{small}", pretrained=True).state_dict()
    assert all(torch.equal(tensor, expected[key]) for key, tensor in model.state_dict().items())


def test_pushing_again_sends_only_what_changed(server: HubServer, client: HubClient, folder: Path) -> None:
    first = client("push", folder, "me/again", tag="v1")
    server.log.clear()
    second = client("push", folder, "me/again", tag="v1")
    assert (second["commit"], second["sent"]) == (first["commit"], [])
    assert not [request for request in server.log if request.method == "PUT" or "/commit/" in request.path]

    (folder / "README.md").write_text(CARD + "More.\n")
    (folder / "metrics.json").unlink()
    with pytest.raises(WeightsError, match=f"the tag 'v1' is at {first['commit']}"):
        client("push", folder, "me/again", tag="v1")
    third = client("push", folder, "me/again", tag="v2", message="A better card")
    repo = server.store.repo("me/again")
    assert third["sent"] == ["README.md"]
    assert "metrics.json" not in repo.files("main"), "a file that the folder no longer has stayed"
    assert ".gitattributes" in repo.files("main")
    assert repo.commits[third["commit"]]["title"] == "A better card"
    assert repo.tags == {"v1": first["commit"], "v2": third["commit"]}


def test_pull_takes_the_revision_that_was_asked_for(server: HubServer, client: HubClient, folder: Path, tmp_path: Path) -> None:
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


def test_a_dry_run_makes_no_request(server: HubServer, client: HubClient, folder: Path) -> None:
    result = client("push", folder, "me/dry", tag="v1", dry_run=True)
    assert (result["commit"], sorted(result["sent"])) == (None, sorted(read_files(folder)))
    (folder / "README.md").unlink()
    with pytest.raises(WeightsError, match=r"README\.md missing"):
        client("push", folder, "me/dry", dry_run=True)
    assert server.log == []


def test_push_private(server: HubServer, client: HubClient, small: Path, tmp_path: Path) -> None:
    client("push", small, "me/hidden", private=True)
    assert server.store.repo("me/hidden").private
    assert read_files(Path(client("pull", "me/hidden", local_dir=tmp_path / "mine"))) == read_files(small)
    commit = publish(server, "me/open", {"README.md": b"public"})
    with pytest.raises(WeightsError, match="exists and is public"):
        client("push", small, "me/open", private=True)
    assert server.store.repo("me/open").resolve("main") == commit


def test_a_push_that_the_hub_refuses_changes_nothing(server: HubServer, client: HubClient, tmp_path: Path) -> None:
    fresh = make_folder(tmp_path / "fresh", seed=1)  # weights that the server has from no other test
    commit = publish(server, "me/refused", {"README.md": b"old"})
    with pytest.raises(WeightsError, match="this token may not do that"):
        client("push", fresh, "me/refused", token=READ_TOKEN)
    server.faults.add("status", "/cdn/", method="PUT", value=403)
    with pytest.raises(WeightsError, match="me/refused: this token may not do that"):
        client("push", fresh, "me/refused", tag="v1")
    server.faults.clear()
    server.faults.add("status", "/commit/main", method="POST", value=412)
    with pytest.raises(WeightsError, match="somebody else pushed meanwhile"):
        client("push", fresh, "me/refused", tag="v1")
    repo = server.store.repo("me/refused")
    assert (repo.resolve("main"), repo.tags) == (commit, {})


def test_a_push_that_arrives_altered_is_not_tagged(
    server: HubServer, client: HubClient, small: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store_entry = server.store.entry
    monkeypatch.setattr(server.store, "entry", lambda content: store_entry(content + b" "))
    with pytest.raises(WeightsError, match=r"read back, has another config\.json, README\.md, metrics\.json than"):
        client("push", small, "me/altered", tag="v1")
    assert server.store.repo("me/altered").tags == {}


def test_a_manifest_name_comes_at_its_pinned_commit(
    running: tuple[HubServer, HubClient, Path], server: HubServer, client: HubClient, folder: Path, tmp_path: Path
) -> None:
    commit = publish(server, "me/pinned", read_files(folder))
    write_manifest(running[2], folder, repo_id="me/pinned", commit=commit)
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
    assert (Path(client("locate", NAME, **place)) / "model.safetensors").read_bytes() == (folder / "model.safetensors").read_bytes()
    assert len(downloads(server, "model.safetensors")) == 1, "the damaged cache was not repaired"

    write_manifest(running[2], folder, repo_id="me/pinned", commit=commit)  # expects the newer README at this commit
    with pytest.raises(WeightsError, match=r"README\.md should have .* also when fetched again"):
        client("pull", NAME, **place)


# ------------------------------------------------------------------------------------------------------ what goes wrong


def test_a_byte_flipped_once_is_repaired(server: HubServer, client: HubClient, small: Path, tmp_path: Path) -> None:
    publish(server, "me/flipped", read_files(small))
    for file in ("model.safetensors", "config.json"):  # LFS's sha256, and git's sha1 of a small file
        server.faults.add("flip", f"{file}$", times=1)
        server.log.clear()
        pulled = Path(client("pull", "me/flipped", cache_dir=tmp_path / file))
        assert read_files(pulled) == read_files(small)
        assert len(downloads(server, file)) == 2


def test_a_byte_that_stays_flipped_is_refused(server: HubServer, client: HubClient, small: Path, tmp_path: Path) -> None:
    publish(server, "me/bad", read_files(small))
    server.faults.add("flip", "model.safetensors$")
    right = (small / "model.safetensors").read_bytes()
    wrong = bytearray(right)
    wrong[len(wrong) // 2] ^= 1
    with pytest.raises(WeightsError, match=r"model\.safetensors should have") as failure:
        client("pull", "me/bad", cache_dir=tmp_path / "cache")
    for content in (right, wrong):
        assert hashlib.sha256(content).hexdigest() in str(failure.value)
    cached = list((tmp_path / "cache").rglob("*"))
    kept = [path for path in cached if path.is_file() and path.read_bytes() == bytes(wrong)]
    assert kept == [], "the wrong file stayed in the cache, where timm would load it"
    assert "config.json" in {path.name for path in cached}
    assert "model.safetensors" not in {path.name for path in cached}, "a link to nothing stayed"


@pytest.mark.parametrize("fault", ["cut", "flip", "status"])
def test_nothing_half_written_stays(fault: str, server: HubServer, client: HubClient, small: Path, tmp_path: Path) -> None:
    repo_id = f"me/half-{fault}"
    publish(server, repo_id, read_files(small))
    target = tmp_path / "weights" / "mine"
    server.faults.add(fault, "model.safetensors$", value=503 if fault == "status" else 1000)
    with pytest.raises(WeightsError, match=repo_id):
        client("pull", repo_id, local_dir=target, cache_dir=tmp_path / "cache")
    assert os.listdir(tmp_path / "weights") == []

    server.faults.clear()
    assert Path(client("pull", repo_id, local_dir=target, cache_dir=tmp_path / "cache")) == target
    assert read_files(target) == read_files(small), "the folder holds more or less than what was published"
    assert os.listdir(tmp_path / "weights") == ["mine"]


def test_a_cut_download_goes_on(server: HubServer, client: HubClient, small: Path, tmp_path: Path) -> None:
    publish(server, "me/cut", read_files(small))
    server.faults.add("cut", "model.safetensors$", value=1000, times=1)
    assert read_files(Path(client("pull", "me/cut", cache_dir=tmp_path))) == read_files(small)
    assert len(downloads(server, "model.safetensors")) == 2


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


def test_without_a_network(small: Path, tmp_path: Path) -> None:
    with HubServer(tmp_path / "store") as server:
        commit = publish(server, "me/x", read_files(small))
    write_manifest(tmp_path / "manifest.json", small, commit=commit)
    # The server is gone, and its port is closed. The cache is one as the Hub's client lays it out.
    snapshot = tmp_path / "cache" / "models--me--x" / "snapshots" / commit
    shutil.copytree(small, snapshot)
    environ = environment(server.url, tmp_path / "home", LGD_TIMM_HUB=str(tmp_path / "none"))
    with HubClient(environ, tmp_path / "manifest.json") as client:
        assert Path(client("locate", NAME, cache_dir=tmp_path / "cache")) == snapshot
        calls: list[tuple[str, list[Any]]] = [("pull", ["me/x"]), ("locate", [NAME]), ("push", [small, "me/x"])]
        for function, arguments in calls:
            with pytest.raises(WeightsError, match=f"no answer from {server.url}.*Check the network") as failure:
                client(function, *arguments)
            assert str(failure.value.__cause__) == "ConnectError"
