"""What a folder of shards holds: timm's `_info.json` with sha256 sums, and where each sample lies in its tar.

Samples are read by position, not streamed. An epoch's order is then a pure function of (seed, epoch), the same for any
number of workers and ranks; evaluation sees each sample exactly once; a run can go on at any step; and no shuffle
buffer holds samples in memory. webdataset's own pipeline offers none of these (mechanics.md, part C).
"""

from __future__ import annotations

import json
import mmap
import os
import tarfile
from collections.abc import Generator, Iterator
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import BinaryIO

from ..errors import ShardError
from ..files import fingerprint
from ..places import Place, place
from .remote import check_sums, local_file, read_small

INFO = "_info.json"
IMAGE_FIELDS = ("jpg", "jpeg", "png", "webp")


@dataclass(frozen=True)
class ShardSet:
    """One split: its tars, their sample counts and sums."""

    root: Place
    split: str
    filenames: tuple[str, ...]
    lengths: tuple[int, ...]
    sha256: tuple[str, ...]
    class_names: tuple[str, ...] = ()

    def __len__(self) -> int:
        return sum(self.lengths)

    @cached_property
    def fingerprint(self) -> str:
        """Name of the content: file names, counts and sums."""
        return fingerprint(self.filenames, self.lengths, self.sha256)

    def path(self, shard: int) -> Path:
        """Where a shard is on this disk. From an address it is fetched, when it is first asked for. Raises: as `remote.local_file`."""
        return local_file(self.root / self.filenames[shard], sha256=self.sha256[shard] if self.sha256 else None)


def read_info(root: Place) -> dict:
    """The folder's `_info.json`, or a ShardError that says what is missing."""
    path = root / INFO
    if isinstance(path, Path) and not path.is_file():
        raise ShardError(f"{root} holds no {INFO}, so it is not a finished shard folder. Write one with: lgd-timm shards IMAGES {root}")
    content = read_small(path)
    try:
        info = json.loads(content.decode())
        assert isinstance(info["splits"], dict)
    except (ValueError, KeyError, TypeError, AssertionError) as error:
        raise ShardError(f"{path} can't be read as timm's shard index ({error!r}). Write the shards again.") from error
    return info


def open_shards(root: str | Place, *, split: str) -> ShardSet:
    """Open one split of a shard folder or address. Checks that every tar is there, on this disk; does not read them.

    Raises: ShardError when the folder, the split or a shard is missing, and for an address whose index has no sha256 sums.
    """
    root = place(root)
    shards = read_split(root, read_info(root), split=split)
    missing = [name for name in shards.filenames if not (root / name).is_file()] if isinstance(root, Path) else []
    if missing:
        raise ShardError(f"{root} lacks {len(missing)} of {len(shards.filenames)} shards of {split!r}, first {missing[0]}. Copy them here.")
    return shards


def read_split(root: Place, info: dict, *, split: str) -> ShardSet:
    """What an index says of a split, whether or not it is so. Raises: ShardError for an index that can't be used."""
    if split not in info["splits"]:
        raise ShardError(f"{root} has no split {split!r}; it has {', '.join(sorted(info['splits'])) or 'none'}.")
    entry = info["splits"][split]
    try:
        shards = ShardSet(
            root=root,
            split=split,
            filenames=tuple(entry["filenames"]),
            lengths=tuple(entry["shard_lengths"]),
            sha256=tuple(entry.get("sha256", ())),
            class_names=tuple(info.get("class_names", ())),
        )
        assert len(shards.lengths) == len(shards.filenames) > 0
    except (KeyError, TypeError, AttributeError, AssertionError) as error:
        raise ShardError(f"{root / INFO}: split {split!r} lacks file names or lengths ({error!r}). Write it again.") from error
    if astray := [name for name in shards.filenames if name != os.path.basename(name) or name in ("", ".", "..")]:
        raise ShardError(f"{root / INFO}: split {split!r} names {astray[0]!r}, which is not in this folder. Write the shards again.")
    check_sums(root / INFO, shards.sha256, count=len(shards.filenames))
    return shards


class IndexedTar:
    """Random access to the samples of one tar: the headers are walked once, then each field is one read.

    A key is the part of the name before the first dot, as in webdataset; a file without key or field is no sample's.
    A tar that ends early keeps the samples that are whole; `damage` then says what was wrong.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.damage: str | None = None
        self.samples: dict[str, dict[str, tuple[int, int]]] = {}
        if not path.stat().st_size:  # which can't be mapped
            self.damage = "the file is empty"
        else:
            self._walk()
        self.keys = tuple(self.samples)

    def _walk(self) -> None:
        try:
            for name, offset, size, whole in _members(self.path):
                folder, slash, base = name.rpartition("/")
                stem, dot, field = base.partition(".")
                key = folder + slash + stem
                if not (key and dot):
                    continue
                if not whole:
                    self.samples.pop(key, None)  # the fields before this one are no whole sample
                    raise tarfile.ReadError(f"{name} ends after the file's end")
                self.samples.setdefault(key, {})[field.lower()] = (offset, size)
        except (tarfile.TarError, OSError) as error:
            self.damage = str(error)

    def read(self, key: str, field: str) -> bytes:
        """The whole field. Raises: KeyError, OSError."""
        offset, size = self.samples[key][field]
        return self.read_at(offset, size)

    def read_at(self, offset: int, size: int) -> bytes:
        file = _handle(self, os.getpid())
        file.seek(offset)
        return file.read(size)


OPEN_FILES = 64  # a process may know more tars than it may have files; opening one each time costs where the disk is far away


@lru_cache(maxsize=OPEN_FILES)
def _handle(tar: IndexedTar, process: int) -> BinaryIO:
    """The open tar, one a process: forked ones would share its position."""
    return tar.path.open("rb", buffering=0)


def _members(path: Path) -> Iterator[tuple[str, int, int, bool]]:
    """(name, offset, size, whole) of each file in a tar. Raises: tarfile.ReadError where the tar is damaged, after what is before."""
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        start = yield from _plain_members(data)
        file.seek(start)  # what is not a plain file (long names, links, damage) is for tarfile to read
        with tarfile.open(fileobj=file, mode="r:") as tar:
            for member in tar:
                if member.isfile():
                    yield member.name, member.offset_data, member.size, member.offset_data + member.size <= len(data)
            file.seek(tar.offset)
            if file.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):  # tarfile takes any bad header for the end
                raise tarfile.ReadError(f"no header and no end mark at byte {tar.offset}")


def _plain_members(data: mmap.mmap) -> Generator[tuple[str, int, int, bool], None, int]:
    """The leading members that need no more than their own header, four times faster than tarfile. Returns where they end."""
    offset, end = 0, len(data)
    while True:
        header = data[offset : offset + tarfile.BLOCKSIZE]
        plain = header[156:157] == tarfile.REGTYPE and header[257:262] == b"ustar" and header[345:346] == b"\0"
        digits = header[124:135].rstrip(b" \0")
        if not plain or not digits.isdigit() or _checksum(header) != header[148:154]:
            return offset
        size, content = int(digits, 8), offset + tarfile.BLOCKSIZE
        if content + size > end:
            return offset
        yield header[: header.index(0, 0, 101) if 0 in header[:100] else 100].decode("utf-8", "surrogateescape"), content, size, True
        offset = content + -(-size // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE


def _checksum(header: bytes) -> bytes:
    """Six octal digits: the sum of the header's bytes with spaces for the sum itself."""
    return b"%06o" % (sum(header) - sum(header[148:156]) + 8 * 32)
