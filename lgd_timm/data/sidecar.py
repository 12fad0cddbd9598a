"""Write and read sidecars: the embeddings of one shard in one tar, an `.npy` [K, D] for each sample under its key.

The last member is a record of how the sidecar was made, inside the tar so that a killed run leaves both or none.
Its name is one of webdataset's for metadata and has no key, so readers of samples ignore it.
"""

from __future__ import annotations

import io
import json
import math
import os
import re
import tarfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import lru_cache
from itertools import groupby
from pathlib import Path
from typing import Any, Literal

import numpy as np

from ..utils.files import atomic_file
from ..utils.typed_json import LARGEST_JSON, parse_json
from .index import ShardSet
from .tar import IndexedTar

RECORD = "__taught__"
DTYPES = ("float16", "int8")


@dataclass(frozen=True)
class Record:
    """The record in a sidecar."""

    shard: str  # `identity` of the shard that was read
    samples: int
    left_out: dict[str, str]  # <shard>/<key> of the samples that could not be read -> reason
    # Mean and least cosine between what is read back and the float32 embeddings; None where there are no samples.
    fidelity: dict[str, float] | None


def pack(embeddings: np.ndarray, dtype: str) -> np.ndarray:
    """Convert unit rows float32 [..., D] to the stored `dtype`.

    In int8 each row is scaled to the whole range. The scale is not stored: the rows are known to have unit length.
    """
    if dtype == "float16":
        return embeddings.astype(np.float16)
    return np.rint(127 * embeddings / np.abs(embeddings).max(-1, keepdims=True)).astype(np.int8)


def unpack(stored: np.ndarray) -> np.ndarray:
    """Convert stored rows to float16 [..., D] of unit length."""
    if stored.dtype == np.float16:
        return stored
    rows = stored.astype(np.float32)
    return (rows / np.sqrt((rows * rows).sum(-1, keepdims=True))).astype(np.float16)


@lru_cache
def npy_header(shape: tuple[int, ...], dtype: str) -> bytes:
    """Build what `np.save` writes before the numbers. A folder's samples share it: compared, it needs no parsing."""
    array, buffer = np.zeros(shape, dtype), io.BytesIO()
    np.save(buffer, array, allow_pickle=False)
    return buffer.getvalue()[: -array.nbytes]


LONGEST_HEADER = 1 << 16  # bytes of an `.npy`
_NPY = re.compile(
    rb"\x93NUMPY(?:\x01\x00..|[\x02\x03]\x00....)"
    rb"\{'descr': '([<|][fiu][1248])', 'fortran_order': (False|True), "
    rb"'shape': \(([0-9]{1,9}(?:, [0-9]{1,9})*),?\), \} *\n",
    re.DOTALL,
)


def parse_npy(data: bytes) -> np.ndarray:
    """Parse an `.npy` of numbers, as numpy writes its header. numpy's own parser evaluates text and raises anything.

    Raises:
        ValueError: it is none, or its header promises other bytes than there are.
    """
    shape, dtype, order, start = _parse_header(data, size=len(data))
    return np.frombuffer(data, dtype, offset=start).reshape(shape, order=order)


def open_npy(path: Path) -> np.ndarray:
    """Map an `.npy` of numbers on the disk into memory, read only, as `parse_npy` reads one.

    Raises:
        ValueError: it is none, or its header promises other bytes than there are.
        OSError: it can't be read.
    """
    with path.open("rb") as file:
        head, size = file.read(LONGEST_HEADER), os.fstat(file.fileno()).st_size
    shape, dtype, order, start = _parse_header(head, size=size)
    return np.memmap(path, dtype, "r", offset=start, shape=shape, order=order)


def _parse_header(data: bytes, *, size: int) -> tuple[tuple[int, ...], np.dtype[Any], Literal["C", "F"], int]:
    """Shape, type, order and first byte of the numbers of an `.npy` of `size` bytes. Raises: ValueError."""
    found = _NPY.match(data)
    if found is None:
        raise ValueError("no header as numpy writes it for numbers, with allow_pickle=False")
    width = 2 if data[6] == 1 else 4
    shape, dtype = tuple(map(int, found[3].split(b","))), np.dtype(found[1].decode())
    if int.from_bytes(data[8 : 8 + width], "little") != found.end() - 8 - width:
        raise ValueError("a header of another length than it says")
    if math.prod(shape) * dtype.itemsize != size - found.end():
        raise ValueError(f"a header of shape {shape} and type {dtype}, and {size - found.end()} bytes")
    return shape, dtype, "F" if found[2] == b"True" else "C", found.end()


class SidecarWriter:
    """Add samples to a sidecar, and measure what storing them in `dtype` loses."""

    def __init__(self, tar: tarfile.TarFile, *, shape: tuple[int, int], dtype: str) -> None:
        self._tar, self._count, self._dtype = tar, shape[0], dtype
        self._header = npy_header(shape, dtype)
        self._cosines: list[np.ndarray] = []  # [K] a sample
        self._left_out: dict[str, str] = {}

    def add(self, keys: Sequence[str], embeddings: np.ndarray, *, bad: Sequence[tuple[str, str]] = ()) -> None:
        """Write a batch. A sample is left out if one of its views is bad.

        Args:
            keys: of the rows; the K views of a sample stand side by side.
            embeddings: unit rows, float32 [B, D].
            bad: (key, reason) of the samples that could not be read.
        """
        self._left_out.update(bad)
        if not keys:
            return
        packed = pack(embeddings, self._dtype)
        cosines = _cosines(embeddings, unpack(packed))
        start = 0
        for key, views in groupby(keys):
            rows = slice(start, start := start + len(list(views)))
            if rows.stop - rows.start == self._count:
                self._write(f"{key}.npy", self._header + packed[rows].tobytes())
                self._cosines.append(cosines[rows])

    def close(self, shard: str) -> None:
        """Write the record."""
        cosines = np.concatenate(self._cosines) if self._cosines else None
        fidelity = None if cosines is None else _fidelity(float(cosines.mean()), float(cosines.min()))
        record = Record(shard, len(self._cosines), self._left_out, fidelity)
        self._write(RECORD, json.dumps(asdict(record), ensure_ascii=False).encode())

    def _write(self, name: str, data: bytes) -> None:
        member = tarfile.TarInfo(name)  # without time or owner: the same embeddings give the same bytes
        member.size = len(data)
        self._tar.addfile(member, io.BytesIO(data))


@contextmanager
def write_sidecar(
    path: Path, *, shards: ShardSet, shard: int, shape: tuple[int, int], dtype: str
) -> Iterator[SidecarWriter]:
    """Yield the writer of a shard's sidecar, with arrays of `shape` [K, D]. It appears once the block succeeds."""
    with atomic_file(path) as temporary, tarfile.open(temporary, "w") as tar:
        writer = SidecarWriter(tar, shape=shape, dtype=dtype)
        yield writer
        writer.close(identity(shards, shard))


def read_record(path: Path, shards: ShardSet, shard: int) -> Record | None:
    """Read the record of a finished sidecar.

    Returns:
        None unless the tar is complete, of this shard, and holds each of its samples or names it as left out.
    """
    if not path.is_file():
        return None
    tar = IndexedTar(path)
    record = _last_member(tar)
    if record is None or tar.damage or record.shard != identity(shards, shard) or record.samples != len(tar.keys):
        return None
    return record if record.samples + len(record.left_out) == shards.lengths[shard] else None


def identity(shards: ShardSet, shard: int) -> str:
    """Return the shard's sha256, or its name where the index has no sums, as those of other writers."""
    return shards.sha256[shard] if shards.sha256 else shards.filenames[shard]


def overall_fidelity(records: Sequence[Record]) -> dict[str, float] | None:
    """Combine the fidelity of several sidecars; None where they have no samples."""
    parts = [(record.samples, record.fidelity) for record in records if record.fidelity is not None]
    if not parts:
        return None
    mean = sum(samples * fidelity["mean_cosine"] for samples, fidelity in parts) / sum(samples for samples, _ in parts)
    return _fidelity(mean, min(fidelity["least_cosine"] for _, fidelity in parts))


def _fidelity(mean: float, least: float) -> dict[str, float]:
    return {"mean_cosine": round(mean, 9), "least_cosine": round(least, 9)}


def _cosines(embeddings: np.ndarray, restored: np.ndarray) -> np.ndarray:
    """Compute the cosine of each row with its restored one, float64 [B]."""
    a, b = embeddings.astype(np.float64), restored.astype(np.float64)
    return (a * b).sum(-1) / np.sqrt((a * a).sum(-1) * (b * b).sum(-1))


def _last_member(tar: IndexedTar) -> Record | None:
    """Read the member after the last sample, if it is a record."""
    end = max((offset + size for fields in tar.samples.values() for offset, size in fields.values()), default=0)
    try:
        with tar.path.open("rb") as file:
            file.seek(-(-end // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE)
            with tarfile.open(fileobj=file, mode="r:") as rest:
                member = rest.next()
                data = rest.extractfile(member) if member is not None and member.name == RECORD else None
                if data is None:
                    return None
                record: Record = parse_json(data.read(LARGEST_JSON + 1), Record)
                return record
    except (
        tarfile.TarError,
        ValueError,
        TypeError,
        LookupError,
        OSError,
        RecursionError,
        MemoryError,
    ):  # cut off, or of others
        return None
