"""Verified means equal to what was published; and it is not said again at the price of reading again."""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from lgd_timm.errors import WeightsError
from lgd_timm.hub import verify as module
from lgd_timm.hub.verify import MOMENT, FileFacts, facts_of, git_sha1, stamp_verified, verify, wrong_files
from lgd_timm.settings import cache_folder
from lgd_timm.utils.files import sha256_of

CONTENT = b"some weights"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two files that were written long enough ago."""
    path = tmp_path / "weights"
    path.mkdir()
    for name in ("model.safetensors", "config.json"):
        (path / name).write_bytes(CONTENT)
    time.sleep(2 * MOMENT / 1e9)
    return path


@pytest.fixture
def facts(folder: Path) -> dict[str, FileFacts]:
    small = FileFacts(size=len(CONTENT), git_sha1=git_sha1(CONTENT))
    return {"model.safetensors": facts_of(folder / "model.safetensors"), "config.json": small}


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of large files that are hashed from now on."""
    names: list[str] = []
    monkeypatch.setattr(module, "sha256_of", lambda path: names.append(path.name) or sha256_of(path))
    return names


def test_what_differs_is_named_with_both_hashes(folder: Path, facts: dict[str, FileFacts]) -> None:
    verify(folder, facts)
    (folder / "model.safetensors").write_bytes(b"other weight")
    (folder / "config.json").unlink()
    with pytest.raises(WeightsError) as failure:
        verify(folder, facts)
    for part in (
        str(folder),
        facts["model.safetensors"]["sha256"],
        hashlib.sha256(b"other weight").hexdigest(),
        "config.json",
        "no such",
    ):
        assert part in str(failure.value)
    assert wrong_files(folder, facts).keys() == facts.keys()


def test_git_names_a_file_as_git_does() -> None:
    assert git_sha1(b"hello\n") == "ce013625030ba8dba906f756967f9e9ca394464a"  # `echo hello | git hash-object --stdin`


def test_a_verified_file_is_not_read_again(folder: Path, facts: dict[str, FileFacts], read: list[str]) -> None:
    for _ in range(3):
        assert wrong_files(folder, facts) == {}
    assert read == ["model.safetensors"]


def rewrite(path: Path) -> None:
    path.write_bytes(b"other weight")


def rewrite_and_set_the_clock_back(path: Path) -> None:
    before = path.stat()
    path.write_bytes(b"other weight")
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def replace(path: Path) -> None:
    other = path.with_name("other")
    other.write_bytes(b"other weight")
    os.replace(other, path)


@pytest.mark.parametrize("change", [rewrite, rewrite_and_set_the_clock_back, replace])
def test_a_changed_file_is(change: Callable[[Path], None], folder: Path, facts: dict[str, FileFacts]) -> None:
    assert wrong_files(folder, facts) == {}
    change(folder / "model.safetensors")
    assert wrong_files(folder, facts).keys() == {"model.safetensors"}


def test_two_writes_within_a_tick_of_the_clock_are_told_apart(folder: Path, facts: dict[str, FileFacts]) -> None:
    """Where the file system's clock does not show the second write, the stamp of the first must not speak for it."""
    for _ in range(50):
        (folder / "model.safetensors").write_bytes(CONTENT)
        assert wrong_files(folder, facts) == {}
        (folder / "model.safetensors").write_bytes(b"other weight")
        assert wrong_files(folder, facts).keys() == {"model.safetensors"}


def test_wrong_files_get_no_stamp(folder: Path, facts: dict[str, FileFacts], read: list[str]) -> None:
    other: dict[str, FileFacts] = {"model.safetensors": FileFacts(size=len(CONTENT), sha256="0" * 64)}
    assert wrong_files(folder, other)
    assert wrong_files(folder, other)
    assert wrong_files(folder, facts) == {}
    assert len(read) == 3


def test_a_stamp_speaks_for_its_own_hash_only(folder: Path, facts: dict[str, FileFacts]) -> None:
    assert wrong_files(folder, facts) == {}
    assert wrong_files(folder, {"model.safetensors": FileFacts(size=len(CONTENT), sha256="0" * 64)})
    assert wrong_files(folder, {"model.safetensors": FileFacts(size=1, sha256=facts["model.safetensors"]["sha256"])})


def test_who_hashed_while_writing_can_vouch(folder: Path, facts: dict[str, FileFacts], read: list[str]) -> None:
    stamp_verified(folder, facts)
    assert wrong_files(folder, facts) == {}
    assert read == []


@pytest.mark.parametrize(
    "damage", ["", "{", "[]", '{"model.safetensors": 1}', '{"model.safetensors": {"state": 1, "sha256": 2}}', "\xff"]
)
def test_damaged_stamps_are_no_stamps(damage: str, folder: Path, facts: dict[str, FileFacts], read: list[str]) -> None:
    assert wrong_files(folder, facts) == {}
    (stamps,) = (cache_folder() / "verified").iterdir()
    stamps.write_bytes(damage.encode("latin-1"))
    assert wrong_files(folder, facts) == {}
    assert wrong_files(folder, facts) == {}
    assert len(read) == 2


def test_a_stamp_with_another_hash_is_no_reason_to_refuse_a_right_file(
    folder: Path, facts: dict[str, FileFacts], read: list[str]
) -> None:
    assert wrong_files(folder, facts) == {}
    (stamps,) = (cache_folder() / "verified").iterdir()
    stamps.write_text(stamps.read_text().replace(facts["model.safetensors"]["sha256"], "0" * 64))
    assert wrong_files(folder, facts) == {}
    assert len(read) == 2


def test_where_no_stamp_can_be_written_files_are_read(
    folder: Path, facts: dict[str, FileFacts], read: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("no folder")
    monkeypatch.setenv("LGD_TIMM_CACHE", str(tmp_path / "file"))
    for _ in range(2):
        assert wrong_files(folder, facts) == {}
    assert len(read) == 2
