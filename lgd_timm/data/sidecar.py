"""One shard's embeddings in one tar: an `.npy` [K, D] a sample under the shard's keys, and last a record of how it was made.

The record lies inside so that both appear in one step, whenever a run is killed. Its name is one of webdataset's for
metadata and gives no key: whoever reads samples passes over it. Sidecars of before have none.
"""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import lru_cache
from itertools import groupby
from pathlib import Path

import numpy as np

from ..utils.files import atomic_file
from .index import ShardSet
from .tar import IndexedTar

RECORD = "__taught__"
DTYPES = ("float16", "int8")


@dataclass(frozen=True)
class Record:
    """What a sidecar says of itself."""

    shard: str  # `identity` of the shard that was seen
    samples: int
    left_out: dict[str, str]  # <shard>/<key> of the samples that could not be read -> reason
    fidelity: (
        dict[str, float] | None
    )  # mean and least cosine of what is read back with the float32 embeddings; None: not known


def pack(embeddings: np.ndarray, dtype: str) -> np.ndarray:
    """Unit rows float32 [..., D] in the form that is stored. In int8 each row fills the range; its scale is not kept, rows being units."""
    if dtype == "float16":
        return embeddings.astype(np.float16)
    return np.rint(127 * embeddings / np.abs(embeddings).max(-1, keepdims=True)).astype(np.int8)


def unpack(stored: np.ndarray) -> np.ndarray:
    """What a reader gets of the stored rows, float16 [..., D], of unit length."""
    if stored.dtype == np.float16:
        return stored
    rows = stored.astype(np.float32)
    return (rows / np.sqrt((rows * rows).sum(-1, keepdims=True))).astype(np.float16)


@lru_cache
def npy_header(shape: tuple[int, ...], dtype: str) -> bytes:
    """What `np.save` writes before the numbers: the same for all samples of a folder, so it can be compared instead of parsed."""
    array, buffer = np.zeros(shape, dtype), io.BytesIO()
    np.save(buffer, array, allow_pickle=False)
    return buffer.getvalue()[: -array.nbytes]


class SidecarWriter:
    """Adds samples to a sidecar and measures what its form loses."""

    def __init__(self, tar: tarfile.TarFile, *, shape: tuple[int, int], dtype: str) -> None:
        self._tar, self._count, self._dtype = tar, shape[0], dtype
        self._header = npy_header(shape, dtype)
        self._cosines: list[np.ndarray] = []  # [K] a sample
        self._left_out: dict[str, str] = {}

    def add(self, keys: Sequence[str], embeddings: np.ndarray, *, bad: Sequence[tuple[str, str]] = ()) -> None:
        """Write a batch: unit rows float32 [B, D], the K views of a key in a row. A sample of which a view is bad is left out whole."""
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
def writing(path: Path, *, shards: ShardSet, shard: int, shape: tuple[int, int], dtype: str) -> Iterator[SidecarWriter]:
    """Yield the writer of one shard's sidecar, with arrays of `shape` [K, D]. It is there, whole, when the block ends well."""
    with atomic_file(path) as temporary, tarfile.open(temporary, "w") as tar:
        writer = SidecarWriter(tar, shape=shape, dtype=dtype)
        yield writer
        writer.close(identity(shards, shard))


def finished(path: Path, shards: ShardSet, shard: int) -> Record | None:
    """The record of a sidecar that is whole and of this shard, all of whose samples it holds or names as left out; else None."""
    if not path.is_file():
        return None
    tar = IndexedTar(path)
    record = _read_record(tar)
    if record is None and tar.keys == IndexedTar(shards.path(shard)).keys:
        record = Record(identity(shards, shard), len(tar.keys), {}, None)
    if record is None or tar.damage or record.shard != identity(shards, shard) or record.samples != len(tar.keys):
        return None
    return record if record.samples + len(record.left_out) == shards.lengths[shard] else None


def identity(shards: ShardSet, shard: int) -> str:
    """The shard's sha256; its name where the index gives no sums, as those of others may."""
    return shards.sha256[shard] if shards.sha256 else shards.filenames[shard]


def overall_fidelity(records: Sequence[Record]) -> dict[str, float] | None:
    """Of all samples of these sidecars; None when that of any is not known, or there are no samples."""
    parts = [(record.samples, record.fidelity) for record in records if record.samples]
    if not parts or any(fidelity is None for _, fidelity in parts):
        return None
    cosines = [(samples, fidelity["mean_cosine"], fidelity["least_cosine"]) for samples, fidelity in parts if fidelity]
    mean = sum(samples * mean for samples, mean, _ in cosines) / sum(samples for samples, _, _ in cosines)
    return _fidelity(mean, min(least for _, _, least in cosines))


def _fidelity(mean: float, least: float) -> dict[str, float]:
    return {"mean_cosine": round(mean, 9), "least_cosine": round(least, 9)}


def _cosines(embeddings: np.ndarray, again: np.ndarray) -> np.ndarray:
    """Of each row with its likeness, float64 [B]."""
    a, b = embeddings.astype(np.float64), again.astype(np.float64)
    return (a * b).sum(-1) / np.sqrt((a * a).sum(-1) * (b * b).sum(-1))


def _read_record(tar: IndexedTar) -> Record | None:
    """The member after the last sample."""
    end = max((offset + size for fields in tar.samples.values() for offset, size in fields.values()), default=0)
    try:
        with tar.path.open("rb") as file:
            file.seek(-(-end // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE)
            with tarfile.open(fileobj=file, mode="r:") as rest:
                member = rest.next()
                data = rest.extractfile(member) if member is not None and member.name == RECORD else None
                return None if data is None else Record(**json.loads(data.read()))
    except (tarfile.TarError, ValueError, TypeError):  # cut, or not of ours
        return None
