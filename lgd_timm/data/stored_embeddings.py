"""Read stored teacher embeddings: sidecar tars with the shards' keys, `.npy` [K, D], float16 or int8."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal, TypedDict

import numpy as np

from ..errors import ShardError, TeacherError
from ..utils.schema import MOST_DIMENSIONS, Range
from ..utils.typed_json import JSONError, parse_json
from .index import INFO, ShardSet, read_info
from .paths import AnyPath, resolve_path
from .shard_cache import CachedFile, check_sums, file_at, read_small
from .sidecar import npy_header, parse_npy, unpack
from .tar import IndexedTar
from .views import Views

TEACHER = "_teacher.json"
LARGEST_TEACHER = 1 << 22  # bytes


class _Taught(TypedDict):
    fingerprint: str
    embed_dim: Annotated[int, Range(1, MOST_DIMENSIONS)]
    dtype: Literal["float16", "int8"]
    views: Views
    views_fingerprint: str


class _TaughtMore(_Taught, total=False):
    """What `_teacher.json` says. `teacher` is checked where a teacher is built of it."""

    name: str
    text_fingerprint: str
    earlier_fingerprints: list[str]


@dataclass
class StoredEmbeddings:
    """A finished folder of sidecars.

    Args:
        root: the folder, or its address.
        metadata: its `_teacher.json`: the teacher, the views, the fingerprints of both.
        per_image: use the embedding of an image's first stored view for any view of it.
        sha256: of the sidecars by file name; needed for an address.
    """

    root: AnyPath
    metadata: dict[str, Any]
    per_image: bool = False
    sha256: Mapping[str, str] = field(default_factory=dict, repr=False)
    _tars: dict[str, IndexedTar] = field(default_factory=dict, repr=False)

    @cached_property
    def embed_dim(self) -> int:
        return int(self.metadata["embed_dim"])

    @cached_property
    def views(self) -> Views:
        return Views(**self.metadata["views"])

    @cached_property
    def dtype(self) -> np.dtype:
        """Type of the stored numbers; `read` returns float16 in any case."""
        return np.dtype(self.metadata["dtype"])

    @cached_property
    def _shape(self) -> tuple[int, int]:
        return self.views.count, self.embed_dim

    @cached_property
    def _header(self) -> bytes:
        return npy_header(self._shape, self.metadata["dtype"])

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_tars": {}}  # each worker indexes the tars that it reads

    def path(self, filename: str) -> Path | CachedFile:
        """Return the sidecar of a shard, which can be opened. Raises: as `file_at`."""
        return file_at(self.root / filename, sha256=self.sha256.get(filename))

    def tar(self, filename: str) -> IndexedTar:
        """Open the sidecar of a shard, once. Raises: OSError where it is missing, or as `CachedFile.open`."""
        if filename not in self._tars:
            self._tars[filename] = IndexedTar(self.path(filename))
        return self._tars[filename]

    def rows(self, filename: str, key: str) -> np.ndarray:
        """Read all views of a sample, float16 [K, D]. Raises: KeyError where there are none, ShardError for others."""
        return unpack(self._parse(self.tar(filename).read(key, "npy"), key))

    def read(self, filename: str, key: str, view: int) -> np.ndarray:
        """Read the embedding of one view of one sample.

        Returns:
            A unit row, float16 [D], read only.

        Raises:
            ShardError: there is none, or it can't be read, or it is not finite.
        """
        if self.per_image:
            view = 0
        tar = self.tar(filename)
        if "npy" not in tar.samples.get(key, ()):
            raise ShardError(
                f"no stored embedding for {key!r} in {self.root / filename}"
                + (f" ({tar.damage})" if tar.damage else "")
            )
        (offset, size), header, row = tar.samples[key]["npy"], self._header, self.embed_dim * self.dtype.itemsize
        end = len(header) + (view + 1) * row
        data = tar.read_at(offset, end)  # one read, and no further than needed
        if size != len(header) + self.views.count * row or len(data) != end or not data.startswith(header):
            embedding = unpack(self._parse(tar.read(key, "npy"), key)[view])
        else:
            embedding = unpack(np.frombuffer(data, self.dtype, offset=end - row))
        if not np.isfinite(embedding).all():
            raise ShardError(
                f"stored embedding of {key!r} in {self.root / filename} is not finite. Remove this tar and teach again."
            )
        return embedding

    def batches(self, shards: ShardSet, *, views: int, numbers: Iterable[int] | None = None) -> Iterator[np.ndarray]:
        """Yield the embeddings of every sample's first `views` views, float16 [samples * views, D], a shard at a time.

        Args:
            numbers: of the shards to read; all if None.

        Raises:
            ShardError: an embedding can't be read or is not finite.
            OSError: a sidecar is not there.
        """
        for number in range(len(shards.filenames)) if numbers is None else numbers:
            filename = shards.filenames[number]
            read = [[self.read(filename, key, view) for view in range(views)] for key in self.tar(filename).samples]
            if read:
                yield np.array(read).reshape(-1, self.embed_dim)

    def _parse(self, data: bytes, key: str) -> np.ndarray:
        """Parse an array whose header is not the expected one: of another writer, or damaged."""
        try:
            embeddings = parse_npy(data)
        except ValueError as error:
            raise ShardError(
                f"stored embedding of {key!r} can't be read ({error}). Remove its tar and run lgd-timm teach again."
            ) from error
        if embeddings.shape != self._shape or embeddings.dtype != self.dtype:
            raise ShardError(
                f"stored embedding of {key!r} has shape {embeddings.shape}, expected {self._shape}, "
                f"and type {embeddings.dtype}, expected {self.dtype}. Remove its tar and teach again."
            )
        return embeddings

    def check(self, shards: ShardSet, views: Views) -> None:
        """Refuse embeddings that were made from other shards or, unless `per_image`, from other views.

        Those of the shards that these were resized from count as other views: the crops are the same, the pixels are
        not.

        Raises:
            TeacherError: they do not fit.
        """
        entry = read_info(self.root)["splits"].get(shards.split)
        if entry is None:
            raise TeacherError(
                f"{self.root} holds no embeddings of split {shards.split!r}. Make them with: lgd-timm teach"
            )
        taught = tuple(entry.get("taught", ()))
        resized = bool(taught) and taught == shards.resized_from
        if resized and not self.per_image:
            raise TeacherError(
                f"{self.root} was made from the images of {shards.root} ({shards.split}) before they were resized "
                f"({shards.resized}): its views have other pixels. Run lgd-timm teach on the resized shards, or use "
                "one embedding for all views of an image: --teacher.target image."
            )
        if taught != shards.sha256 and not resized:
            raise TeacherError(
                f"{self.root} was made from other shards than {shards.root} ({shards.split}). "
                "Run lgd-timm teach with another --out."
            )
        if self.per_image:
            return
        stored = self.metadata["views_fingerprint"]
        if views.fingerprint != stored and replace(views, count=self.views.count) == self.views:
            raise TeacherError(
                f"{self.root} was taught with another version of the views ({stored!r}, now {views.fingerprint}): "
                "the same settings give other pixels now. Remove the folder and run lgd-timm teach again, or use the "
                "version of lgd_timm that taught."
            )
        if views.fingerprint != stored or views.count > self.views.count:
            raise TeacherError(
                f"{self.root} holds {self.views}, asked for {views}. "
                "Use the stored views, or run lgd-timm teach for the new ones."
            )


def open_stored(root: str | AnyPath) -> StoredEmbeddings:
    """Open a folder that `lgd-timm teach` finished, or the address of one.

    Raises:
        TeacherError: it is not one.
        ShardError: an address can't be read, or its index has no sha256 sums.
    """
    root = resolve_path(root)
    if isinstance(root, Path) and not ((root / TEACHER).is_file() and (root / INFO).is_file()):
        raise TeacherError(
            f"{root} holds no finished teacher embeddings ({TEACHER}, {INFO}). Make them with: lgd-timm teach"
        )
    return StoredEmbeddings(root, read_teacher_metadata(root), sha256=_read_sums(root))


def _read_sums(root: AnyPath) -> dict[str, str]:
    """Read the sha256 of each sidecar at an address; none on this disk, where they are not needed."""
    sums: dict[str, str] = {}
    for entry in read_info(root)["splits"].values() if not isinstance(root, Path) else ():
        names, totals = tuple(entry.get("filenames", ())), tuple(entry.get("sha256", ()))
        check_sums(root / INFO, totals, count=len(names))
        sums.update(zip(names, totals, strict=True))
    return sums


def read_teacher_metadata(root: AnyPath) -> dict[str, Any]:
    """Read a folder's `_teacher.json`. Raises: TeacherError for a wrong one, ShardError for an unreadable address."""
    content = read_small(root / TEACHER)
    try:
        parse_json(content, _TaughtMore, limit=LARGEST_TEACHER)
        metadata: dict[str, Any] = parse_json(content, dict, limit=LARGEST_TEACHER)  # as it is written
    except JSONError as error:
        raise TeacherError(
            f"{root / TEACHER} can't be read ({error}). Remove the folder and run lgd-timm teach again."
        ) from error
    return metadata


def teacher_fingerprints(root: AnyPath) -> tuple[str, ...]:
    """Return the fingerprints that name who taught a folder, today's first. Raises: as `read_teacher_metadata`."""
    metadata = read_teacher_metadata(root)
    return metadata["fingerprint"], *metadata.get("earlier_fingerprints", ())


def find_stored(shards: ShardSet, *, views: Views | None, teacher: str) -> StoredEmbeddings | None:
    """Find embeddings of a teacher in a folder beside the shards.

    Args:
        shards: the split. Beside one at an address none are found, since servers list no folders.
        views: that the embeddings must hold; None: any unaugmented ones.
        teacher: its fingerprint.

    Returns:
        None where there are none; float16 rather than int8 where both are there.
    """
    if not isinstance(shards.root, Path):
        return None
    for path in sorted(shards.root.glob(f"*/{TEACHER}")):
        if teacher not in teacher_fingerprints(path.parent) or not (path.parent / INFO).is_file():
            continue
        stored = open_stored(path.parent)
        try:
            stored.check(shards, views or stored.views)
        except TeacherError:  # of other views, or of another split
            continue
        if views is None and stored.views.augmentation != "none":
            continue
        return stored
    return None
