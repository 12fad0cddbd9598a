"""Read members of a tar at random, by an index of their offsets."""

from __future__ import annotations

import mmap
import os
import tarfile
from collections.abc import Generator, Iterator
from functools import lru_cache
from pathlib import Path
from typing import BinaryIO

from .shard_cache import CachedFile


class IndexedTar:
    """Random access to the samples of one tar: all headers are read once, then each field takes one read.

    A key is the part of the name before the first dot, as in webdataset; files without key or field are ignored. Of a
    tar that ends early the complete samples can be read, and `damage` says what is wrong.

    Args:
        path: the file, or one at an address, which is fetched again when it is not in the cache any more.

    Raises:
        OSError: the file can't be opened.
        ShardError, CacheError: it can't be fetched.
    """

    def __init__(self, path: Path | CachedFile) -> None:
        self.path = path
        self.damage: str | None = None
        self.samples: dict[str, dict[str, tuple[int, int]]] = {}
        with path.open("rb") as file:
            if not os.fstat(file.fileno()).st_size:  # an empty file can't be mapped
                self.damage = "the file is empty"
            else:
                self._index(file)
        self.keys = tuple(self.samples)

    def _index(self, file: BinaryIO) -> None:
        try:
            for name, offset, size, whole in _members(file):
                folder, slash, base = name.rpartition("/")
                stem, dot, field = base.partition(".")
                key = folder + slash + stem
                if not (stem and dot):  # hidden files, such as macOS's `data/._0.jpg`, are no samples
                    continue
                if not whole:
                    self.samples.pop(key, None)  # the fields before this one are not a complete sample
                    raise tarfile.ReadError(f"{name} ends after the file's end")
                self.samples.setdefault(key, {})[field.lower()] = (offset, size)
        except (tarfile.TarError, OSError, ValueError, LookupError, TypeError, RecursionError, MemoryError) as error:
            # tarfile lets most of these through from headers that it can't make sense of
            self.damage = " ".join(f"{error or type(error).__name__}".split())[:200]

    def read(self, key: str, field: str) -> bytes:
        """Read a whole field. Raises: KeyError where there is none, OSError."""
        offset, size = self.samples[key][field]
        return self.read_at(offset, size)

    def read_at(self, offset: int, size: int) -> bytes:
        """Read `size` bytes from a byte offset. Raises: OSError; ShardError, CacheError for one at an address."""
        if isinstance(self.path, CachedFile):
            with self.path.open("rb") as cached:
                cached.seek(offset)
                return cached.read(size)
        file = _handle(self, os.getpid())
        file.seek(offset)
        return file.read(size)


# A split may have more tars than a process may open files, and opening one for each read is slow on a network's disk.
OPEN_FILES = 64

LARGEST_MEMBER = 1 << 40  # bytes
MOST_MEMBERS = 100_000_000


@lru_cache(maxsize=OPEN_FILES)
def _handle(tar: IndexedTar, process: int) -> BinaryIO:
    """Open a tar on this disk, once a process: forked processes would share the file's position."""
    assert isinstance(tar.path, Path)
    return tar.path.open("rb", buffering=0)


def _members(file: BinaryIO) -> Iterator[tuple[str, int, int, bool]]:
    """Yield (name, offset, size, whole) of each file in a tar. Raises: tarfile.ReadError at the first damage."""
    with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        start = yield from _plain_members(data)
        file.seek(start)  # tarfile reads what is not a plain file: long names, links, damage
        with tarfile.open(fileobj=file, mode="r:") as tar:
            last = -1
            for count, member in enumerate(tar):
                # Negative sizes lead tarfile back to where it was (CVE-2025-8194).
                if member.offset <= last or not 0 <= member.size < LARGEST_MEMBER or member.offset_data < member.offset:
                    raise tarfile.ReadError(f"a member at byte {member.offset} of {member.size} bytes")
                if member.issparse() or count >= MOST_MEMBERS:
                    raise tarfile.ReadError(f"a sparse member, or the {MOST_MEMBERS + 1}th, at byte {member.offset}")
                last = member.offset
                if member.isfile():
                    yield member.name, member.offset_data, member.size, member.offset_data + member.size <= len(data)
            file.seek(tar.offset)
            if file.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):  # tarfile takes any bad header for the end
                raise tarfile.ReadError(f"no header and no end mark at byte {tar.offset}")


def _plain_members(data: mmap.mmap) -> Generator[tuple[str, int, int, bool], None, int]:
    """Yield the leading members that have one plain header, four times faster than tarfile. Returns where they end."""
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
        name = header[: header.index(0, 0, 101) if 0 in header[:100] else 100]
        yield name.decode("utf-8", "surrogateescape"), content, size, True
        offset = content + -(-size // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE


def _checksum(header: bytes) -> bytes:
    """Compute a header's checksum field: six octal digits, over its bytes with spaces in place of that field."""
    return b"%06o" % (sum(header) - sum(header[148:156]) + 8 * 32)
