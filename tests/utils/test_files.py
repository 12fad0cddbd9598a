"""Files appear whole or not at all; names for content are the same everywhere."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import stat
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from lgd_timm.errors import LGDError, WeightsError
from lgd_timm.utils import files
from lgd_timm.utils.files import (
    atomic_file,
    atomic_folder,
    check_renames,
    fingerprint,
    hold_folder,
    sha256_of,
    write_json,
)
from tests.helpers.held_folder import held


def stop_in(block: AbstractContextManager[Path], name: str = "") -> None:
    """Write something in the block, then stop as a person does."""
    with block as temporary:
        (temporary / name if name else temporary).write_text("new")
        raise KeyboardInterrupt


def test_replacing_shows_the_old_file_until_the_new_one_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "new" / "a.txt"
    with atomic_file(path) as temporary:
        temporary.write_text("first")
        assert not path.exists()
    with atomic_file(path) as temporary:
        temporary.write_text("second")
        assert path.read_text() == "first"
    assert path.read_text() == "second"
    assert stat.S_IMODE(path.stat().st_mode) == 0o644
    assert list(path.parent.iterdir()) == [path]


def test_replacing_keeps_the_old_file_when_the_block_fails(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("old")
    with pytest.raises(KeyboardInterrupt):
        stop_in(atomic_file(path))
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_building_moves_the_index_last(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    moved: list[str] = []
    move = os.replace

    def record(source: Path, target: Path) -> None:
        moved.append(Path(target).name)
        move(source, target)

    monkeypatch.setattr(files.os, "replace", record)
    (tmp_path / "out").mkdir()
    with atomic_folder(tmp_path / "out") as temporary:
        for name in ("_info.json", "b.tar", "A.tar", "zz.tar"):
            (temporary / name).write_text(name)
        assert not list((tmp_path / "out").iterdir())
    assert moved == ["A.tar", "b.tar", "zz.tar", "_info.json"]
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_building_a_new_folder_is_one_rename(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    moved: list[Path] = []
    move = os.replace
    monkeypatch.setattr(files.os, "replace", lambda source, target: (moved.append(Path(target)), move(source, target)))
    with atomic_folder(tmp_path / "out") as temporary:
        for name in ("_info.json", "a.tar"):
            (temporary / name).write_text(name)
        assert not (tmp_path / "out").exists()
    assert moved == [tmp_path / "out"]
    assert stat.S_IMODE((tmp_path / "out").stat().st_mode) == 0o755
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"_info.json", "a.tar"}


def test_building_adds_to_a_folder_that_is_there(tmp_path: Path) -> None:
    (tmp_path / "old.tar").write_text("old")
    (tmp_path / "_info.json").write_text("old")
    with atomic_folder(tmp_path) as temporary:
        (temporary / "new.tar").write_text("new")
        (temporary / "_info.json").write_text("new")
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {
        "old.tar": "old",
        "new.tar": "new",
        "_info.json": "new",
    }


def test_building_that_fails_leaves_the_folder_as_it_was(tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "old.tar").write_text("old")
    with pytest.raises(KeyboardInterrupt):
        stop_in(atomic_folder(out), "old.tar")
    assert [(path.name, path.read_text()) for path in out.iterdir()] == [("old.tar", "old")]
    assert list(tmp_path.iterdir()) == [out]


def test_building_without_an_earlier_folder_leaves_none_behind(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        stop_in(atomic_folder(tmp_path / "out"), "a.tar")
    assert list(tmp_path.iterdir()) == []


def test_json_keeps_its_text(tmp_path: Path) -> None:
    value = {"Größe": ["漢", 1, None], "b": {"c": 0.5}}
    write_json(tmp_path / "a.json", value)
    text = (tmp_path / "a.json").read_text(encoding="utf-8")
    assert json.loads(text) == value
    assert "Größe" in text
    assert text.endswith("}\n")


@pytest.mark.parametrize("size", [0, 1, (1 << 20) - 1, 1 << 20, (1 << 20) + 1, 3 << 20])
def test_sha256_of_any_size(tmp_path: Path, size: int) -> None:
    data = bytes(i % 251 for i in range(1000)) * (size // 1000 + 1)
    (tmp_path / "a").write_bytes(data[:size])
    assert sha256_of(tmp_path / "a") == hashlib.sha256(data[:size]).hexdigest()


def test_fingerprint_is_written_into_published_files_and_so_never_changes() -> None:
    assert fingerprint("a", {"size": 224, "ü": [1, 2.5, None]}) == "688bfdacbe0d52c4"


def test_fingerprint_tells_values_apart_but_not_spellings() -> None:
    assert fingerprint({"a": 1, "b": (1, 2)}) == fingerprint({"b": [1, 2], "a": 1})
    assert (
        len(
            {
                fingerprint(*parts)
                for parts in (["a"], ["a", "b"], [["a", "b"]], ["b", "a"], ["ab"], [1], ["1"], [1.5], [])
            }
        )
        == 9
    )


def test_a_disk_that_cant_rename_folders_is_refused_and_one_that_can_is_left_empty(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    check_renames(tmp_path)
    assert not list(tmp_path.iterdir())

    def refuse(*_: object) -> None:
        raise OSError(errno.ENOSYS, "Function not implemented")

    monkeypatch.setattr(files.os, "replace", refuse)
    with pytest.raises(LGDError, match=r"can't rename folders \(Function not implemented\)"):
        check_renames(tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_folder_is_held_by_one_process_whose_death_frees_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LGD_TIMM_CACHE", str(tmp_path / "cache"))
    with (
        held(tmp_path) as holder,
        pytest.raises(
            WeightsError, match=rf"in use: process {holder.pid} on .* trains there\. Wait for it, end it, or "
        ),
    ):
        hold_folder(tmp_path)
    hold_folder(tmp_path)
    hold_folder(tmp_path)


@pytest.mark.parametrize("mask", [0o022, 0o027, 0o002])
def test_the_umask_decides_who_may_read_what_is_written(tmp_path: Path, mask: int) -> None:
    before = os.umask(mask)
    try:
        write_json(tmp_path / "a.json", 1)
        with atomic_folder(tmp_path / "folder") as temporary:
            (temporary / "file").write_bytes(b"")
    finally:
        os.umask(before)
    assert (tmp_path / "a.json").stat().st_mode & 0o777 == 0o666 & ~mask
    assert (tmp_path / "folder").stat().st_mode & 0o777 == 0o777 & ~mask


def test_a_folder_that_cant_be_renamed_is_moved_file_by_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    replace = os.replace

    def without_folders(source: Path, target: Path) -> None:
        if Path(source).is_dir():
            raise OSError(errno.EPERM, "no renames of folders here")
        replace(source, target)

    monkeypatch.setattr(os, "replace", without_folders)
    for name in ("first", "second"):  # a new folder, and one that exists, with a folder in it
        with atomic_folder(tmp_path / "out") as temporary:
            (temporary / "inner").mkdir()
            (temporary / "inner" / name).write_text(name)
            (temporary / f"_{name}").write_text(name)
    assert sorted(path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*") if path.is_file()) == [
        "out/_first",
        "out/_second",
        "out/inner/first",
        "out/inner/second",
    ]
