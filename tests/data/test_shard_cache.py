"""Shards at an address.

Read as those on this disk, fetched once, verified; and what their server does to a run that reads them.
"""

from __future__ import annotations

import json
import logging
import multiprocessing
import os
import pickle
import shutil
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, ClassVar

import fsspec
import numpy as np
import pytest
import torch
from filelock import FileLock
from fsspec.implementations.memory import MemoryFileSystem
from huggingface_hub import constants

from lgd_timm import cli
from lgd_timm.config.reader import recipe_from_dict
from lgd_timm.config.recipe import TeachRecipe
from lgd_timm.config.sandbox import relative
from lgd_timm.data import open_shards
from lgd_timm.data import shard_cache as remote
from lgd_timm.data import storage as transport
from lgd_timm.data.dataset import BadSamples, Batch, ShardDataset
from lgd_timm.data.in_memory import in_memory
from lgd_timm.data.index import ShardSet
from lgd_timm.data.loader import loader
from lgd_timm.data.paths import RemotePath, resolve_path
from lgd_timm.data.samplers import SequentialSampler
from lgd_timm.data.stored_embeddings import find_stored, open_stored
from lgd_timm.data.views import Views
from lgd_timm.data.writer import write_shards
from lgd_timm.errors import CacheError, MissingExtra, RecipeError, ShardError, TeacherError
from lgd_timm.teachers import OpenCLIP
from lgd_timm.training.teach import teach, teach_recipe
from lgd_timm.utils.files import sha256_of
from tests.helpers.folder_server import SIGNATURE, FolderServer
from tests.helpers.small_disk import small_disk
from tests.helpers.tiny_teacher import Tiny

VIEWS = Views(size=16, augmentation="light", count=3)
FIRST, SECOND, THIRD = (f"colours-train-0000{number}.tar" for number in range(3))


@pytest.fixture(scope="module")
def _running(shard_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[FolderServer]:
    with FolderServer(shard_folder.parent, tmp_path_factory.mktemp("server")) as server:
        yield server


@pytest.fixture
def server(_running: FolderServer) -> Iterator[FolderServer]:
    """The shards of `shard_folder` at /colours, with an empty log and no faults."""
    _running.log.clear()
    yield _running
    _running.faults.clear()


@pytest.fixture(autouse=True)
def _afresh(monkeypatch: pytest.MonkeyPatch) -> None:
    """A shard is asked for three times, with short pauses, and no failure is remembered from another test."""
    monkeypatch.setattr(remote, "_pauses", lambda: iter((0.02, 0.05)))
    monkeypatch.setattr(remote, "_failures", {})


@pytest.fixture
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Short waits for what never comes."""
    monkeypatch.setenv("LGD_TIMM_HUB_TIMEOUT", "0.4")
    monkeypatch.setenv("LGD_TIMM_HUB_PATIENCE", "0.6")


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache" / "shards"


def opened(server: FolderServer, *, split: str = "train") -> ShardSet:
    return open_shards(f"{server.url}/colours", split=split)


def read_all(shards: ShardSet, *, workers: int = 0) -> list[Batch]:
    return list(
        loader(
            ShardDataset(shards, views=VIEWS, allow_empty=True),
            SequentialSampler(range(len(shards)), 16),
            workers=workers,
        )
    )


def same(first: list[Batch], second: list[Batch]) -> bool:
    return all(
        a.keys == b.keys and a.bad == b.bad and torch.equal(a.images, b.images)
        for a, b in zip(first, second, strict=True)
    )


def kept(cache: Path) -> set[str]:
    """Files of the cache, without locks and notes."""
    return {path.name for path in cache.rglob("*") if path.is_file() and path.parent.name != ".locks"}


def assert_right(cache: Path) -> None:
    """Nothing in the cache but what has the sum that its name says."""
    assert all(name == f"{sha256_of(cache / name)}.tar" for name in kept(cache))


# Addresses


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("https://me:SECRET@host/x", r"https://host/x was given with a user or a password"),
        ("https://SECRET@host/x", "with a user or a password"),
        ("s3://key:SECRET@bucket/x", r"s3://bucket/x was given with a user or a password"),
        ("https://host/x?token=SECRET", r"https://host/x was given with a query"),
        ("https://host/x#SECRET", "a fragment"),
        ("hf://datasets/me/x?token=SECRET", "with a query"),
        ("https://host:SECRET/x", "host or port can't be read"),
        ("https://[SECRET/x", "host or port can't be read"),
        ("https://a..SECRET/x", "host or port can't be read"),
        ("zip://a::https://host/SECRET.zip", "chains addresses"),
        ("zip://a.zip::/SECRET", "chains addresses"),
        ("file:///x", "Give it as a path, without file://"),
        ("hub://me/x", "Shards on the Hub are at hf://datasets/ORG/NAME/FOLDER"),
        ("https:///x", "no address of a folder"),
        ("https:/host/x", "has lost a slash"),
        (Path("https://host/x"), "has lost a slash"),
    ],
    ids=str,
)
def test_an_address_is_that_of_a_folder_and_nothing_else(text: str | Path, reason: str) -> None:
    for use in (resolve_path, lambda text: open_shards(text, split="train"), open_stored):
        with pytest.raises(ShardError, match=reason) as caught:
            use(text)
        assert "SECRET" not in str(caught.value)


@pytest.mark.parametrize("path", ["data/x", "/data/x", "C:/x", "pipe:curl x", "a:b//c", "https:", "hf:x"])
def test_all_else_is_a_path(path: str) -> None:
    assert resolve_path(path) == Path(path)


def test_an_address_keeps_its_slashes() -> None:
    address = resolve_path("HTTPS://Host:1/a//b/")
    assert isinstance(address, RemotePath)
    assert str(address / "_info.json") == "https://Host:1/a//b/_info.json"
    assert (address.scheme, address.server, address.resolve()) == ("https", "https://Host:1", address)
    assert pickle.loads(pickle.dumps(address)) == address
    recipe = {"data": {"shards": "https://host/x"}, "teacher": {"embeddings": "s3://bucket/y"}}
    assert relative(recipe) == recipe


def test_an_address_nobody_knows(tmp_path: Path) -> None:
    with pytest.raises(
        ShardError,
        match=r"nonsense://x/_info\.json can't be read .*nonsense.* Use https://, hf://, s3:// or what fsspec",
    ):
        open_shards("nonsense://x", split="train")


def test_s3_names_the_extra_that_it_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "s3fs", None)
    with pytest.raises(MissingExtra, match=r"pip install 'lgd_timm\[s3\]'"):
        open_shards("s3://bucket/x", split="train")


def test_only_shards_and_embeddings_are_read_from_one(train_shards: ShardSet, tmp_path: Path) -> None:
    with pytest.raises(ShardError, match="out https://host/x is an address"):
        write_shards(tmp_path, "https://host/x")
    with pytest.raises(ShardError, match="out https://host/x is an address"):
        teach_recipe(TeachRecipe(OpenCLIP("RN50"), VIEWS, str(train_shards.root)), out="https://host/x")
    assert not Path("https:").exists()


# The same shards, once


@pytest.mark.parametrize("workers", [0, 2])
def test_they_are_those_of_the_folder_and_come_once(
    workers: int, server: FolderServer, shard_folder: Path, train_shards: ShardSet, cache: Path, tmp_path: Path
) -> None:
    shards = opened(server)
    assert (len(shards), shards.class_names, shards.fingerprint) == (
        48,
        train_shards.class_names,
        train_shards.fingerprint,
    )
    assert kept(cache) == set(), "a shard came before it was asked for"
    expected = read_all(train_shards)
    for _ in range(2):
        assert same(read_all(shards, workers=workers), expected)
    assert [server.asked(name) for name in (FIRST, SECOND, THIRD)] == [1, 1, 1]
    assert kept(cache) == {f"{total}.tar" for total in train_shards.sha256}
    moved = shutil.copytree(shard_folder, shard_folder.parent / f"moved{workers}")
    assert same(read_all(open_shards(f"{server.url}/moved{workers}/", split="train")), expected)
    shutil.rmtree(moved)
    assert server.asked(FIRST) == 1, "the same content came again, from another address"


def test_only_what_is_asked_for_comes(server: FolderServer, cache: Path) -> None:
    ShardDataset(opened(server), views=VIEWS)[(20, 0)]
    assert [server.asked(name) for name in (FIRST, SECOND, THIRD)] == [0, 1, 0]
    assert_right(cache)


def in_processes(count: int, work: Callable[[], object]) -> list[int | None]:
    """Exit codes of so many processes that do it at once."""
    children = [multiprocessing.get_context("fork").Process(target=work) for _ in range(count)]
    for child in children:
        child.start()
    for child in children:
        child.join(60)
    return [child.exitcode for child in children]


def test_a_shard_that_went_wrong_in_the_cache_is_fetched_again(
    server: FolderServer, train_shards: ShardSet, cache: Path, caplog: pytest.LogCaptureFixture
) -> None:
    shards = opened(server)
    assert len(read_all(shards)) == 3
    first = cache / f"{train_shards.sha256[0]}.tar"
    for damaged in (b"", first.read_bytes()[:-1] + b"?"):
        first.write_bytes(damaged)
        assert same(read_all(shards), read_all(train_shards))
        assert sha256_of(first) == train_shards.sha256[0]
        assert "went wrong in the cache" in caplog.text
        caplog.clear()
    assert same(read_all(shards), read_all(train_shards))
    assert not caplog.text
    assert server.asked(FIRST) == 3
    assert_right(cache)


def test_processes_share_one_download(server: FolderServer, train_shards: ShardSet, cache: Path) -> None:
    server.faults.add("call", "tar$", call=lambda: time.sleep(0.1))
    expected = read_all(train_shards)
    assert in_processes(4, lambda: sys.exit(0 if same(read_all(opened(server)), expected) else 1)) == [0] * 4
    assert [server.asked(name) for name in (FIRST, SECOND, THIRD)] == [1, 1, 1]


def test_a_killed_download_leaves_nothing_that_stays(server: FolderServer, train_shards: ShardSet, cache: Path) -> None:
    server.faults.add("stall", "tar$", value=60, times=1)
    child = multiprocessing.get_context("fork").Process(
        target=lambda: os.environ.update(LGD_TIMM_HUB_TIMEOUT="60") or read_all(opened(server))
    )
    child.start()
    while not kept(cache):
        time.sleep(0.01)
    os.kill(child.pid or 0, signal.SIGKILL)
    child.join()
    (half,) = kept(cache)
    assert not half.endswith(".tar")
    assert same(read_all(opened(server)), read_all(train_shards))
    assert_right(cache)


# A set without sums


@pytest.mark.parametrize("sums", [None, [], ["0" * 64], ["../../../x", "0" * 64, "0" * 64]])
def test_nothing_is_used_unverified(sums: list[str] | None, server: FolderServer, shard_folder: Path) -> None:
    folder = shutil.copytree(shard_folder, shard_folder.parent / "unsummed")
    try:
        info = json.loads((folder / "_info.json").read_text())
        info["splits"]["train"]["sha256"] = sums
        if sums is None:
            del info["splits"]["train"]["sha256"]
        (folder / "_info.json").write_text(json.dumps(info))
        with pytest.raises(
            ShardError, match=rf"{server.url}/unsummed/_info\.json has no sha256 sums .*Download the folder"
        ):
            open_shards(f"{server.url}/unsummed", split="train")
        assert sums == ["0" * 64] or len(open_shards(folder, split="val")) == 12
    finally:
        shutil.rmtree(folder)


# Faults

SURVIVED: dict[str, tuple[dict[str, Any], int]] = {
    "says 503 twice": ({"kind": "status", "value": 503, "times": 2}, 3),
    "says 429 once": ({"kind": "status", "value": 429, "times": 1}, 2),
    "is cut once": ({"kind": "cut", "value": 9000, "times": 1}, 2),
    "is cut once, and can't go on": ({"kind": "cut", "value": 9000, "times": 1}, 2),
    "resets once": ({"kind": "reset", "value": 9000, "times": 1}, 2),
    "has no length and ends early": ({"kind": "nolength", "value": 9000, "times": 1}, 2),
    "stalls once": ({"kind": "stall", "value": 60, "times": 1}, 2),
    "hangs once": ({"kind": "hang", "times": 1}, 2),
    "flips a byte once": ({"kind": "flip", "times": 1}, 2),
}


@pytest.mark.parametrize("name", SURVIVED)
def test_what_passes_is_survived(
    name: str, server: FolderServer, train_shards: ShardSet, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fault, requests = SURVIVED[name]
    if fault["kind"] in ("stall", "hang"):
        monkeypatch.setenv("LGD_TIMM_HUB_TIMEOUT", "0.4")
    server.faults.add(pattern=SECOND, **fault)
    if "can't go on" in name:
        server.faults.add("norange", SECOND)
    assert same(read_all(opened(server)), read_all(train_shards))
    assert server.asked(SECOND) == requests
    assert_right(cache)
    assert len(kept(cache)) == 3


def test_a_broken_download_goes_on_where_it_was(server: FolderServer) -> None:
    server.faults.add("cut", FIRST, value=9000, times=1)
    read_all(opened(server))
    assert [request.headers.get("range") for request in server.bodies(FIRST)] == [None, "bytes=9000-"]


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "404": ({"kind": "status", "value": 404}, "the server says 404, no such file. Check the address"),
    "403": ({"kind": "status", "value": 403}, "the server says 403, not for you"),
    "503": ({"kind": "status", "value": 503}, "the server says 503. Try again later"),
    "stall": ({"kind": "stall", "value": 60}, "no answer ("),
    "hang": ({"kind": "hang"}, "no answer ("),
    "cut": ({"kind": "cut"}, "no answer (RemoteProtocolError"),
    "short": ({"kind": "nolength", "value": 9000}, "also when fetched again"),
    "flip": ({"kind": "flip"}, "also when fetched again. Either it is another file than its index says"),
}


@pytest.mark.usefixtures("_impatient")
@pytest.mark.parametrize("name", REFUSED)
def test_a_shard_that_cant_be_had_makes_bad_samples(
    name: str, server: FolderServer, train_shards: ShardSet, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fault, reason = REFUSED[name]
    dataset = ShardDataset(opened(server), views=VIEWS)
    server.faults.add(pattern=SECOND, **fault)
    items = [(position, 0) for position in range(12, 36)]
    start = time.monotonic()
    first = dataset.__getitems__(items)
    assert time.monotonic() - start < 5
    asked = server.asked(SECOND)
    assert dataset.__getitems__(items).bad == first.bad
    assert server.asked(SECOND) == asked, "each batch waits for the server anew"
    assert [name for name, _ in first.bad] == [f"{SECOND}/sample {place}" for place in range(16)]
    assert all(
        said.startswith(f"ShardError: {server.url}/colours/{SECOND} ") and reason in said for _, said in first.bad
    )
    assert len(first.keys) == 8, "the other shards are read"
    assert_right(cache)
    # which of them is data.max_bad's to say
    assert len(BadSamples(16 / 48, size=48).add(first.bad)) == 16
    with pytest.raises(ShardError, match=r"16 of 48 samples can't be read; data\.max_bad = 0\.3 allows 14"):
        BadSamples(0.3, size=48).add(first.bad)
    # and later it is tried again
    server.faults.clear()
    monkeypatch.setattr(remote, "RETRY_AFTER", 0)
    assert dataset.__getitems__(items).bad == ()


def test_a_server_that_is_down_is_waited_for_once(server: FolderServer) -> None:
    """Not for each of its shards: a step needs samples of many."""
    server.faults.add("status", "tar$", value=503)
    shards = opened(server)
    (batch,) = loader(ShardDataset(shards, views=VIEWS, allow_empty=True), [[(position, 0) for position in range(48)]])
    assert len(batch.bad) == 48
    assert [server.asked(name) for name in (FIRST, SECOND, THIRD)] == [3, 1, 1]


def test_processes_that_wait_for_one_that_fails_fail_with_it(
    server: FolderServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remote, "_pauses", lambda: iter((0.3, 0.3)))
    server.faults.add("status", FIRST, value=503)

    together = multiprocessing.get_context("fork").Barrier(4)

    def work() -> None:
        dataset = ShardDataset(opened(server), views=VIEWS, allow_empty=True)
        together.wait()
        bad = dataset[(0, 0)].bad
        sys.exit(0 if len(bad) == 1 else 1)

    assert in_processes(4, work) == [0] * 4
    assert 3 <= server.asked(FIRST) < 4 * 3, "each has asked for itself"


def test_a_process_that_never_ends_is_waited_for_once(
    server: FolderServer, train_shards: ShardSet, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LGD_TIMM_LOCK_TIMEOUT", "0.3")
    dataset = ShardDataset(opened(server), views=VIEWS)
    (cache / ".locks").mkdir(parents=True)
    with FileLock(cache / ".locks" / f"{train_shards.sha256[1]}.lock"):
        first = dataset.__getitems__([(0, 0), (16, 0)])
        monkeypatch.setenv("LGD_TIMM_LOCK_TIMEOUT", "600")
        assert dataset.__getitems__([(0, 0), (16, 0)]).bad == first.bad
    ((name, reason),) = first.bad
    assert name == f"{SECOND}/sample 0"
    assert "another process has been fetching it" in reason
    assert server.asked(SECOND) == 0


def test_the_index_is_asked_for_again_too_and_refused_in_time(
    server: FolderServer, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    server.faults.add("status", "_info", value=503, times=1)
    opened(server)
    request.getfixturevalue("_impatient")
    server.faults.add("hang", "_info")
    start = time.monotonic()
    with pytest.raises(
        ShardError, match=rf"{server.url}/colours/_info\.json can't be had: no answer \((ReadTimeout|no whole answer)"
    ):
        opened(server)
    assert time.monotonic() - start < 5
    server.faults.clear()
    with pytest.raises(ShardError, match=r"/nothing/_info\.json can't be had: the server says 404"):
        open_shards(f"{server.url}/nothing", split="train")
    (server.folder / "huge").mkdir()
    (server.folder / "huge" / "_info.json").write_bytes(b" " * 3000)
    monkeypatch.setattr(remote, "LARGEST_INDEX", 2000)
    with pytest.raises(ShardError, match="is no index of shards"):
        open_shards(f"{server.url}/huge", split="train")


@pytest.mark.usefixtures("_impatient")
def test_no_server_at_all() -> None:
    with pytest.raises(ShardError, match=r"http://127\.0\.0\.1:9/x/_info\.json can't be had: no answer \(ConnectError"):
        open_shards("http://127.0.0.1:9/x", split="train")


def test_a_full_disk_is_one_clear_error(server: FolderServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with small_disk(tmp_path / "disk", size="12k") as disk:
        monkeypatch.setenv("LGD_TIMM_CACHE", str(disk))
        dataset = ShardDataset(opened(server), views=VIEWS, allow_empty=True)
        with pytest.raises(CacheError, match=r"80% of what its disk has free. Free some space, or set LGD_TIMM_CACHE"):
            dataset.__getitems__([(0, 0), (20, 0)])
        monkeypatch.setenv("LGD_TIMM_CACHE_SIZE", "1GB")  # more than there is
        for _ in range(2):
            with pytest.raises(
                CacheError, match=r"can't be written: the disk is full. Free some space, or set LGD_TIMM_CACHE"
            ):
                dataset.__getitems__([(0, 0), (20, 0)])
        assert kept(disk / "shards") == set()


def test_a_cache_that_cant_be_written_is_no_bad_sample(
    server: FolderServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("LGD_TIMM_CACHE", str(tmp_path / "file"))
    with pytest.raises(CacheError, match=r"can't be written: .*set LGD_TIMM_CACHE to a folder on another disk"):
        ShardDataset(opened(server), views=VIEWS, allow_empty=True)[(0, 0)]


def test_workers_say_it_in_one_line_too(
    server: FolderServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("LGD_TIMM_CACHE", str(tmp_path / "file"))
    command = [
        "evaluate",
        "knn",
        "test_resnet",
        "--random-weights",
        "--image-size",
        "32",
        "--data",
        f"{server.url}/colours",
    ]
    assert cli.main([*command, "--workers", "1", "--device", "cpu"]) == 2
    said = capsys.readouterr().err
    assert said.startswith(f"lgd-timm: error: {tmp_path}/file/shards/")
    assert said.endswith("set LGD_TIMM_CACHE to a folder on another disk.\n")
    assert said.count("\n") == 1


def test_what_is_kept_in_memory_is_no_outage(
    server: FolderServer, train_shards: ShardSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.faults.add("status", SECOND, value=404)
    dataset = in_memory(ShardDataset(opened(server), views=VIEWS))
    items = [(position, 0) for position in range(12, 20)]
    assert len(dataset.__getitems__(items).bad) == 4
    server.faults.clear()
    monkeypatch.setattr(remote, "RETRY_AFTER", 0)
    expected = ShardDataset(train_shards, views=VIEWS).__getitems__(items)
    assert same([dataset.__getitems__(items)], [expected])


# Secrets


@pytest.mark.usefixtures("_impatient")
def test_no_query_is_ever_shown(server: FolderServer, caplog: pytest.LogCaptureFixture) -> None:
    """Object stores are redirected to with a signature, which is as good as a password."""
    caplog.set_level(logging.INFO, logger="lgd_timm")
    assert read_all(open_shards(f"{server.url}/away/colours", split="val"))[0].bad == ()
    assert any(request.path.startswith("/signed/") and request.query for request in server.log)
    for fault in (
        {"kind": "status", "value": 403},
        {"kind": "status", "value": 503},
        {"kind": "cut"},
        {"kind": "hang"},
    ):
        server.faults.clear()
        server.faults.add(pattern="^/signed/.*_info", **fault)
        with pytest.raises(ShardError, match=f"{server.url}/away/colours/_info.json can't be had") as caught:
            open_shards(f"{server.url}/away/colours", split="train")
        assert SIGNATURE not in "".join(traceback.format_exception(caught.value))
    assert SIGNATURE not in caplog.text


# The Hub


@pytest.fixture
def _hub(server: FolderServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """The server is the Hub."""
    monkeypatch.setattr(constants, "ENDPOINT", server.url)
    monkeypatch.setattr(
        constants, "HUGGINGFACE_CO_URL_TEMPLATE", server.url + "/{repo_id}/resolve/{revision}/{filename}"
    )
    monkeypatch.setenv("HF_TOKEN", "hf_mine")


@pytest.fixture
def on_hub(_hub: None, shard_folder: Path) -> Iterator[str]:
    """The shards in a dataset on the Hub, at revision v1: their address."""
    shutil.copytree(shard_folder, shard_folder.parent / "datasets/me/colours/resolve/v1/in/side")
    yield "hf://datasets/me/colours@v1/in/side"
    shutil.rmtree(shard_folder.parent / "datasets")


def test_the_hub_is_asked_with_the_token_and_others_without(
    server: FolderServer, on_hub: str, train_shards: ShardSet
) -> None:
    expected = read_all(train_shards)
    assert same(read_all(open_shards(on_hub, split="train")), expected)
    read_all(open_shards(f"{server.url}/away/colours", split="val"))
    tokens = {(request.path.startswith("/datasets/"), request.token) for request in server.log}
    assert tokens == {(True, "hf_mine"), (False, None)}


@pytest.mark.parametrize(
    "address", ["hf://me", "hf://datasets/me", "hf://datasets/me/x@", "hf://datasets/me/x@v1@v2/y"]
)
@pytest.mark.usefixtures("_hub")
def test_an_address_on_the_hub_names_a_repository(address: str) -> None:
    with pytest.raises(ShardError, match=r"names no file on the Hub. Write hf://datasets/ORG/NAME/FOLDER"):
        open_shards(address, split="train")


@pytest.mark.parametrize(
    ("address", "path"),
    [
        ("hf://datasets/me/x", "/datasets/me/x/resolve/main/_info.json"),
        ("hf://me/x/a b", "/me/x/resolve/main/a%20b/_info.json"),
        ("hf://datasets/me/x@refs/pr/1/a", "/datasets/me/x/resolve/refs%2Fpr%2F1/a/_info.json"),
        ("hf://datasets/me/x@my%2Fbranch/a", "/datasets/me/x/resolve/my%2Fbranch/a/_info.json"),
    ],
)
@pytest.mark.usefixtures("_hub")
def test_where_on_the_hub(address: str, path: str, server: FolderServer) -> None:
    with pytest.raises(ShardError, match="the server says 404"):
        open_shards(address, split="train")
    assert server.log[0].path == path


def test_offline_the_hub_is_not_asked(server: FolderServer, on_hub: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(ShardError, match=r"can't be had: HF_HUB_OFFLINE is set"):
        open_shards(on_hub, split="train")
    assert server.log == []
    assert len(opened(server)) == 48, "other servers are not the Hub"


# What fsspec knows


class Faulty(MemoryFileSystem):
    """A file system in memory, whose reading of tars goes wrong as it is told."""

    protocol = "faulty"
    store: ClassVar[dict[str, Any]] = {}
    fault: Callable[[bytes], bytes] | None = None
    times = 0

    @classmethod
    def _strip_protocol(cls, path: str) -> str:
        stripped: str = super()._strip_protocol(path.removeprefix("faulty://"))
        return stripped

    def cat_file(self, path: str, start: int | None = None, end: int | None = None, **options: Any) -> bytes:
        content: bytes = super().cat_file(path, start=start, end=end, **options)
        if Faulty.times and Faulty.fault and path.endswith(SECOND):
            Faulty.times -= 1
            return Faulty.fault(content)
        return content


def stall(content: bytes) -> bytes:
    time.sleep(1)
    return content


def refuse(content: bytes) -> bytes:
    raise PermissionError("not for you, see https://host/x?" + SIGNATURE)


def break_down(content: bytes) -> bytes:
    raise RuntimeError("a library's own")


@pytest.fixture
def faulty(shard_folder: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The shards in a file system of fsspec's, whose blocks are small; its address."""
    fsspec.register_implementation("faulty", Faulty, clobber=True)
    monkeypatch.setattr(transport, "BLOCK", 5000)
    for path in shard_folder.iterdir():
        Faulty().pipe(f"/colours/{path.name}", path.read_bytes())
    return "faulty://colours"


@pytest.mark.parametrize(
    ("fault", "times"),
    [
        (None, 0),
        (break_down, 2),
        (lambda content: content[:100], 2),
        (lambda content: content[:-1] + b"?", 1),
        (stall, 1),
    ],
    ids=["none", "error", "short", "flip", "stall"],
)
def test_what_fsspec_reads_is_read_as_well(
    fault: Callable[[bytes], bytes] | None,
    times: int,
    faulty: str,
    train_shards: ShardSet,
    cache: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(Faulty, "fault", staticmethod(fault) if fault else None)
    monkeypatch.setattr(Faulty, "times", times)
    if fault is stall:
        monkeypatch.setenv("LGD_TIMM_HUB_TIMEOUT", "0.4")
    assert same(read_all(open_shards(faulty, split="train")), read_all(train_shards))
    assert Faulty.times == 0
    assert_right(cache)


@pytest.mark.usefixtures("_impatient")
@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        (break_down, "no answer (RuntimeError: a library's own)"),
        (refuse, "PermissionError: not for you, see https://host/x?... Check the address"),
        (stall, "no answer (no answer within 0.4 s)"),
        (lambda content: content[::-1], "also when fetched again"),
    ],
    ids=["error", "refused", "stall", "wrong"],
)
def test_what_it_cant_read_is_bad(
    fault: Callable[[bytes], bytes], reason: str, faulty: str, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Faulty, "fault", staticmethod(fault))
    monkeypatch.setattr(Faulty, "times", 10**6)
    start = time.monotonic()
    batches = read_all(open_shards(faulty, split="train"))
    assert time.monotonic() - start < 5
    assert [len(batch.bad) for batch in batches] == [0, 16, 0]
    assert all(reason in said for _, said in batches[1].bad), batches[1].bad[0]
    assert_right(cache)
    with pytest.raises(
        ShardError, match=r"faulty://none/_info\.json can't be had: FileNotFoundError: .*Check the address"
    ):
        open_shards("faulty://none", split="train")


# Embeddings, teaching, evaluation


def taught_by_tiny(shards: ShardSet, out: Path | None) -> Any:
    return teach(Tiny(), shards, spec={"kind": "tiny"}, text_fingerprint="t", views=VIEWS, batch_size=12, out=out)


def test_teaching_reads_an_address_and_writes_to_a_folder(
    server: FolderServer, train_shards: ShardSet, tmp_path: Path
) -> None:
    with pytest.raises(TeacherError, match=rf"{server.url}/colours is an address.*--out FOLDER"):
        taught_by_tiny(opened(server), None)
    with pytest.raises(TeacherError, match="--out FOLDER"):  # and not that there is no such teacher
        teach_recipe(TeachRecipe(OpenCLIP("local-dir:nowhere"), VIEWS, f"{server.url}/colours"))
    far, near = (
        taught_by_tiny(shards, tmp_path / where) for where, shards in (("far", opened(server)), ("near", train_shards))
    )
    for name in train_shards.filenames:
        assert (far.root / name).read_bytes() == (near.root / name).read_bytes()
    far.check(train_shards, VIEWS)


def test_embeddings_at_an_address_are_those_of_the_folder(
    server: FolderServer, train_shards: ShardSet, cache: Path, tmp_path: Path
) -> None:
    near = taught_by_tiny(train_shards, server.folder / "tiny")
    try:
        far = open_stored(f"{server.url}/tiny")
        shards = opened(server)
        far.check(shards, VIEWS)
        assert find_stored(shards, views=None, teacher=near.metadata["fingerprint"]) is None
        items = [(position, view) for position in (0, 20, 47) for view in range(3)]
        near_batch, far_batch = (
            ShardDataset(shards, views=VIEWS, stored=stored).__getitems__(items)
            for shards, stored in ((train_shards, near), (shards, pickle.loads(pickle.dumps(far))))
        )
        assert torch.equal(far_batch.embeddings, near_batch.embeddings)
        assert same([far_batch], [near_batch])
        assert_right(cache)
        np.testing.assert_array_equal(
            far.rows(FIRST, far.tar(FIRST).keys[0]), near.rows(FIRST, near.tar(FIRST).keys[0])
        )
        assert server.asked(FIRST) == 2, "the shard and its embeddings, once"
        server.faults.add("status", f"/tiny/{THIRD}", value=404)
        fresh = ShardDataset(shards, views=VIEWS, stored=open_stored(f"{server.url}/tiny"))
        for path in cache.glob("*.tar"):
            path.unlink()
        assert "tiny/" + THIRD in fresh.__getitems__([(0, 0), (47, 0)]).bad[0][1]
        info = json.loads((near.root / "_info.json").read_text())
        del info["splits"]["train"]["sha256"]
        (near.root / "_info.json").write_text(json.dumps(info))
        with pytest.raises(ShardError, match="has no sha256 sums"):
            open_stored(f"{server.url}/tiny")
    finally:
        shutil.rmtree(server.folder / "tiny")


def test_evaluation_reads_an_address(
    server: FolderServer,
    shard_folder: Path,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def knn(data: str) -> Any:
        command = [
            "evaluate",
            "knn",
            "test_resnet",
            "--random-weights",
            "--image-size",
            "32",
            "--k",
            "5",
            "--data",
            data,
        ]
        status = cli.main([*command, "--device", "cpu", "--json"])
        said = capsys.readouterr()
        return json.loads(said.out) if status == 0 else said.err

    far = f"{server.url}/colours"
    server.faults.add("status", SECOND, value=404)
    assert (
        f"16 of 48 samples can't be read; data.max_bad = 0.001 allows 0. First: {SECOND}/sample 0: ShardError: {far}"
        in knn(far)
    )
    server.faults.clear()
    monkeypatch.setattr(remote, "RETRY_AFTER", 0)
    assert knn(far) == knn(str(shard_folder))
    assert cli.main(["shards", "subset", far, str(tmp_path / "few.json"), "--per-class", "2"]) == 0


def test_features_with_an_outage_are_not_kept(server: FolderServer, monkeypatch: pytest.MonkeyPatch) -> None:
    from lgd_timm.evaluate.features import extract
    from lgd_timm.evaluate.models import find_model

    network = find_model("test_resnet", pretrained=False, image_size=32).network
    dataset = ShardDataset(opened(server), views=Views(size=32, augmentation="none"), allow_empty=True)
    server.faults.add("status", SECOND, value=404)
    assert len(extract(network, dataset, max_bad=1)) == 32
    server.faults.clear()
    monkeypatch.setattr(remote, "RETRY_AFTER", 0)
    assert len(extract(network, dataset, max_bad=1)) == 48


def test_a_run_on_addresses_is_the_run_on_folders(taught_folder: Path, published_folder: Path, tmp_path: Path) -> None:
    from lgd_timm.config.reader import read_recipe
    from lgd_timm.training.distill import distill

    data = read_recipe(published_folder.parent / "recipe.yaml").to_dict()
    with FolderServer(taught_folder.parent, tmp_path / "scratch") as server:
        data["data"]["shards"] = f"{server.url}/{taught_folder.name}"
        data["teacher"]["embeddings"] = f"{server.url}/{taught_folder.name}/{Path(data['teacher']['embeddings']).name}"
        published = distill(recipe_from_dict(data), out=tmp_path / "run")
        assert (published / "model.safetensors").read_bytes() == (published_folder / "model.safetensors").read_bytes()
        again = read_recipe(published / "recipe.yaml")
        assert (again.data.shards, again.teacher.embeddings) == (data["data"]["shards"], data["teacher"]["embeddings"])
        with pytest.raises(
            RecipeError,
            match=r"^data\.shards = 'http://.*' is an address.*--data\.shards PATH, or this address if you trust",
        ):
            read_recipe(published)
        own = {
            "data.shards": data["data"]["shards"],
            "teacher.embeddings": "mine",
            "teacher.taught_by.model": "local-dir:mine",
        }
        assert read_recipe(published, overrides=own).data.shards == data["data"]["shards"]
