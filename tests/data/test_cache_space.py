"""The cache's bound: what is evicted, what is not, and that no process ever exceeds it."""

from __future__ import annotations

import logging
import multiprocessing
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from filelock import FileLock

from lgd_timm import settings
from lgd_timm.data import cache_space, open_shards, prefetch, shard_cache
from lgd_timm.data.cache_space import claim, lock_of
from lgd_timm.data.dataset import ShardDataset
from lgd_timm.data.index import ShardSet
from lgd_timm.data.loader import loader
from lgd_timm.data.samplers import EpochSampler, SequentialSampler
from lgd_timm.data.shard_cache import CachedFile
from lgd_timm.data.stored_embeddings import open_stored
from lgd_timm.data.views import Views
from lgd_timm.data.writer import write_shards
from lgd_timm.errors import CacheError, LGDError
from tests.helpers.folder_server import FolderServer
from tests.helpers.images import draw_images
from tests.helpers.runs import assert_bit_equal, last_checkpoint, run
from tests.helpers.tiny_teacher import Tiny

VIEWS = Views(size=16, augmentation="light", count=2)
COUNT, HELD = 50, 6  # shards, and how many of them the cache holds


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """50 shards of three images."""
    root = tmp_path_factory.mktemp("many")
    write_shards(draw_images(root / "images", per_class=COUNT, size=20), root / "shards", samples_per_shard=3)
    return root / "shards"


@pytest.fixture(scope="module")
def _running(many: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[FolderServer]:
    with FolderServer(many.parent, tmp_path_factory.mktemp("server")) as server:
        yield server


@pytest.fixture
def server(_running: FolderServer) -> Iterator[FolderServer]:
    _running.log.clear()
    yield _running
    _running.faults.clear()


@pytest.fixture(autouse=True)
def _afresh(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is remembered from another test."""
    monkeypatch.setattr(shard_cache, "_right", {})
    monkeypatch.setattr(shard_cache, "_failures", {})


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    folder = tmp_path / "cache" / "shards"
    (folder / ".locks").mkdir(parents=True)
    return folder


@pytest.fixture
def bound(many: Path, monkeypatch: pytest.MonkeyPatch) -> int:
    """Bytes for 6 of the largest shards."""
    size = HELD * max(path.stat().st_size for path in many.glob("*.tar"))
    monkeypatch.setenv("LGD_TIMM_CACHE_SIZE", str(size))
    return size


def put(folder: Path, name: str, size: int, *, read: int) -> Path:
    """A file of the cache that was last read so many seconds after the epoch."""
    path = folder / name
    path.write_bytes(bytes(size))
    os.utime(path, (read, read))
    return path


def opened(server: FolderServer) -> ShardSet:
    return open_shards(f"{server.url}/shards", split="train")


def used(cache: Path) -> int:
    total = 0
    for entry in os.scandir(cache):
        try:
            total += entry.stat().st_size if entry.is_file() else 0
        except FileNotFoundError:
            continue
    return total


@pytest.fixture
def most(cache: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The most bytes that the cache held when room was claimed, in any process; `.value`.

    That is when it holds most, as downloads write no more than they claimed. A folder that is listed while others
    rename files shows some of them twice.
    """
    locked, found = cache_space._locked, multiprocessing.get_context("fork").Value("q", 0)

    @contextmanager
    def counted(folder: Path) -> Iterator[None]:
        with locked(folder):
            yield
            sizes = {path.name.strip(".").partition(".")[0]: size for path, size, _ in cache_space._entries(folder)}
            found.value = max(found.value, sum(sizes.values()))

    monkeypatch.setattr(cache_space, "_locked", counted)
    return found


# Sizes


@pytest.mark.parametrize(
    ("text", "size"),
    [("1000", 1000), ("20GB", 20 * 10**9), ("1.5 TB", 15 * 10**11), ("64MiB", 1 << 26), ("2k", 2000), ("", None)],
)
def test_sizes_are_read(text: str, size: int | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LGD_TIMM_CACHE_SIZE", text)
    assert settings.cache_size() == size


@pytest.mark.parametrize("text", ["much", "-1", "0", "10XB", "1e9", "20 GB or so", "inf"])
def test_what_is_no_size_is_refused(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LGD_TIMM_CACHE_SIZE", text)
    with pytest.raises(LGDError, match=r"LGD_TIMM_CACHE_SIZE='.*' is no number of bytes above 0"):
        settings.cache_size()


def test_without_a_bound_it_is_a_share_of_the_free_disk(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache_space.shutil, "disk_usage", lambda _: SimpleNamespace(free=700))
    put(cache, "a.tar", 300, read=1)
    file = put(cache, ".b.tar.x", 0, read=2)
    with pytest.raises(CacheError, match=r"b has 0\.000801 MB, .* may take 0\.0008 MB, 80% of what its disk has free"):
        claim(file, 801, what="b")
    assert claim(file, 600, what="b")
    assert not (cache / "a.tar").exists()


# What is evicted


def test_what_was_not_read_for_longest_goes_and_no_more_than_needed(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LGD_TIMM_CACHE_SIZE", "100")
    for number, read in enumerate((30, 10, 20, 40)):
        put(cache, f"{number}.tar", 25, read=read)
    file = put(cache, ".new.tar.x", 0, read=50)
    assert claim(file, 26, what="new", keep={"2.tar"})
    assert sorted(path.name for path in cache.glob("*.tar")) == ["2.tar", "3.tar"]
    assert file.stat().st_size == 26
    assert claim(file, 50, what="new", keep={"2.tar"}), "it has grown"
    assert used(cache) == 100
    assert not claim(file, 51, what="new", keep={"2.tar", "3.tar"})
    assert used(cache) == 100, "what is not enough was evicted all the same"
    with pytest.raises(CacheError, match=r"^new has 0\.000101 MB, and the cache in .* \(LGD_TIMM_CACHE_SIZE\)\. Raise"):
        claim(file, 101, what="new")


def test_downloads_of_others_count_and_those_of_the_dead_do_not(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LGD_TIMM_CACHE_SIZE", "100")
    alive, dead, file = (put(cache, f".{name}.tar.x", size, read=1) for name, size in (("a", 40), ("d", 60), ("n", 0)))
    with FileLock(lock_of(cache, "a")):
        assert not claim(file, 61, what="n")
        assert alive.exists()
        assert not dead.exists()
        assert claim(file, 60, what="n")
    assert used(cache) == 100


# Training through it


def test_reading_again_fetches_again(server: FolderServer, cache: Path, bound: int) -> None:
    dataset = ShardDataset(opened(server), views=VIEWS)
    first = dataset[(0, 0)]
    for position in range(3, 3 * 12, 3):
        dataset[(position, 0)]
    again = dataset[(0, 0)]
    assert (again.keys, again.images.equal(first.images)) == (first.keys, True)
    assert server.asked(dataset.shards.filenames[0]) == 2
    assert 0 < used(cache) <= bound


def test_a_shard_above_the_bound_is_one_clear_error(
    server: FolderServer, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LGD_TIMM_CACHE_SIZE", "5kB")
    dataset = ShardDataset(opened(server), views=VIEWS, allow_empty=True)
    name = dataset.shards.filenames[0]
    with pytest.raises(CacheError, match=rf"{name} has .* MB, and the cache in {cache} may take 0\.005 MB \(LGD_"):
        dataset[(0, 0)]
    assert used(cache) == 0


@pytest.mark.parametrize("fault", [None, {"kind": "nolength"}], ids=["sized", "of unknown size"])
def test_processes_share_the_bound(
    fault: dict[str, Any] | None, server: FolderServer, cache: Path, bound: int, most: Any
) -> None:
    """Four processes in different orders, two of them with a thread that fetches ahead: never more than six shards."""
    if fault is not None:
        server.faults.add(pattern="tar$", value=10**9, **fault)
    context, shards = multiprocessing.get_context("fork"), opened(server)

    def read(seed: int) -> None:
        plan = EpochSampler(shards.lengths, 6, seed=seed, stop=10, window=2 if seed % 2 else COUNT)
        batches = loader(ShardDataset(shards, views=VIEWS, allow_empty=True), plan)
        sys.exit(0 if all(batch.bad == () for batch in batches) else 1)

    children = [context.Process(target=read, args=(seed,)) for seed in range(4)]
    for child in children:
        child.start()
    for child in children:
        child.join(60)
    assert [child.exitcode for child in children] == [0] * 4
    assert 0.5 * bound < most.value <= bound
    assert used(cache) <= bound
    assert all(name.name.endswith(".tar") for name in cache.iterdir() if name.is_file()), "something half-written stays"


@pytest.mark.parametrize(("window", "batch_size", "workers"), [(16, 16, 1), (2, 3, 0)])
def test_fifty_shards_train_through_a_cache_of_six(
    window: int,
    batch_size: int,
    workers: int,
    many: Path,
    server: FolderServer,
    cache: Path,
    bound: int,
    most: Any,
    recipe_dict: dict[str, Any],
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    recipe_dict["data"] |= {"val_split": None, "batch_size": batch_size, "window": window}
    recipe_dict["schedule"]["epochs"] = 1
    run(recipe_dict, tmp_path / "near", data={"shards": str(many)})
    run(recipe_dict, tmp_path / "far", data={"shards": f"{server.url}/shards", "workers": workers})
    assert_bit_equal(last_checkpoint(tmp_path / "far"), last_checkpoint(tmp_path / "near"))
    assert 0.5 * bound < most.value <= bound
    assert ("The cache is too small for the 16 files" in caplog.text) == (window == 16)
    if window == 2:
        asked = sum(server.asked(name) for name in opened(server).filenames)
        # The first batch is read three times: for its labels, to learn from it, and for the norm of its embeddings
        assert asked <= COUNT + HELD, "shards of the window were evicted"


def test_the_next_window_comes_while_this_one_is_read(server: FolderServer, cache: Path, bound: int) -> None:
    shards = opened(server)
    plan = EpochSampler(shards.lengths, 3, stop=6, window=3)
    windows = [{f"{shards.sha256[shard]}.tar" for shard in window} for window in plan.windows(0)]
    sampler = iter(prefetch.fetching_ahead(plan, shards, None))

    def wait_for(names: set[str]) -> None:
        end = time.monotonic() + 10
        while not names <= {path.name for path in cache.glob("*.tar")}:
            assert time.monotonic() < end
            time.sleep(0.005)

    next(sampler)
    wait_for(windows[0])
    assert {path.name for path in cache.glob("*.tar")} == windows[0]
    next(sampler)  # samples 3 to 5 of 9
    next(sampler)
    wait_for(windows[0] | windows[1])
    next(sampler), next(sampler), next(sampler)
    wait_for(windows[1] | windows[2])
    assert used(cache) <= bound
    sampler.close()  # type: ignore[attr-defined]
    assert all(server.asked(name) <= 1 for name in shards.filenames)


def test_what_is_fetched_ahead_is_never_what_is_read_now(server: FolderServer, cache: Path, bound: int) -> None:
    files = [opened(server).path(number) for number in range(9)]
    assert all(isinstance(file, CachedFile) for file in files)
    for file in files[:6]:
        with file.open("rb"):  # type: ignore[union-attr]
            pass
    there = {path.name for path in cache.glob("*.tar")}
    wanted = prefetch._Wanted(tuple(range(6)), (6, 7, 8))
    fetcher = prefetch._Fetcher(lambda numbers: [files[number] for number in numbers])  # type: ignore[misc]
    fetcher.want(wanted)
    fetcher._fetch(wanted)
    assert len(there) >= 6
    assert there <= {path.name for path in cache.glob("*.tar")}


def test_folders_fetch_nothing(train_shards: ShardSet, server: FolderServer) -> None:
    plan = EpochSampler(train_shards.lengths, 16, stop=3)
    assert prefetch.fetching_ahead(plan, train_shards, None) is plan
    sequence = SequentialSampler(range(9), 3)
    assert prefetch.fetching_ahead(sequence, opened(server), None) is sequence


def test_a_server_that_is_down_ends_nothing_but_samples(
    server: FolderServer, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    monkeypatch.setenv("LGD_TIMM_SHARD_PATIENCE", "0.1")
    shards = opened(server)
    server.faults.add("status", "tar$", value=404)
    plan = EpochSampler(shards.lengths, 6, stop=3, window=3)
    batches = list(loader(ShardDataset(shards, views=VIEWS, allow_empty=True), plan))
    assert [len(batch.bad) for batch in batches] == [6, 6, 6]
    assert "the server says 404" in batches[0].bad[0][1]


def test_embeddings_are_fetched_with_their_shards(many: Path, server: FolderServer, cache: Path) -> None:
    from lgd_timm.training.teach import teach

    near = open_shards(many, split="train")
    out = many.parent / "tiny"
    teach(Tiny(), near, spec={"kind": "tiny"}, text_fingerprint="t", views=VIEWS, batch_size=12, out=out)
    stored, shards = open_stored(f"{server.url}/tiny"), opened(server)
    plan = EpochSampler(shards.lengths, 6, stop=3, window=3)
    batches = list(loader(ShardDataset(shards, views=VIEWS, stored=stored), plan))
    expected = list(loader(ShardDataset(near, views=VIEWS, stored=open_stored(out)), plan))
    for ours, theirs in zip(batches, expected, strict=True):
        assert ours.keys == theirs.keys
        assert ours.embeddings is not None
        assert theirs.embeddings is not None
        assert ours.embeddings.equal(theirs.embeddings)
