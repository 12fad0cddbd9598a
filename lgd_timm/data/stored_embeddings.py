"""Teacher embeddings that stand beside shards: sidecar tars with the same keys, `.npy` of shape (K, D), float16 or int8."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import ShardError, TeacherError
from .index import INFO, ShardSet, read_info
from .paths import Place, resolve_path
from .shard_cache import check_sums, local_file, read_small
from .sidecar import npy_header, unpack
from .tar import IndexedTar
from .views import Views

TEACHER = "_teacher.json"


@dataclass
class StoredEmbeddings:
    """A finished folder of sidecars. `facts` is `_teacher.json`: who taught, on which views, for which shards.

    `per_image`: the embedding of an image's first stored view stands for any view of it. `sha256`: of the sidecars by name, which
    an address needs.
    """

    root: Place
    facts: dict[str, Any]
    per_image: bool = False
    sha256: Mapping[str, str] = field(default_factory=dict, repr=False)
    _tars: dict[str, IndexedTar] = field(default_factory=dict, repr=False)

    @cached_property
    def embed_dim(self) -> int:
        return int(self.facts["embed_dim"])

    @cached_property
    def views(self) -> Views:
        return Views(**self.facts["views"])

    @cached_property
    def dtype(self) -> np.dtype:
        """Of the stored numbers; what `read` returns is float16 in any case."""
        return np.dtype(self.facts["dtype"])

    @cached_property
    def _shape(self) -> tuple[int, int]:
        return self.views.count, self.embed_dim

    @cached_property
    def _header(self) -> bytes:
        return npy_header(self._shape, self.facts["dtype"])

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_tars": {}}  # workers walk the tars that they read

    def tar(self, filename: str) -> IndexedTar:
        """The sidecar of a shard. Raises: OSError when it is not there; as `remote.local_file`, for one at an address."""
        if filename not in self._tars:
            self._tars[filename] = IndexedTar(local_file(self.root / filename, sha256=self.sha256.get(filename)))
        return self._tars[filename]

    def rows(self, filename: str, key: str) -> np.ndarray:
        """All views of one sample, float16 [K, D], which `read` gives one of. Raises: ShardError for what is no such array."""
        return unpack(self._parse(self.tar(filename).read(key, "npy"), key))

    def read(self, filename: str, key: str, view: int) -> np.ndarray:
        """Embedding of view `view` of one sample, a unit row float16 [D], read only. Raises: ShardError for none, or one not finite."""
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
        data = tar.read_at(offset, end)  # in one read, and no further than needed
        if size != len(header) + self.views.count * row or len(data) != end or not data.startswith(header):
            embedding = unpack(self._parse(tar.read(key, "npy"), key)[view])
        else:
            embedding = unpack(np.frombuffer(data, self.dtype, offset=end - row))
        if not np.isfinite(embedding).all():
            raise ShardError(
                f"stored embedding of {key!r} in {self.root / filename} is not finite. Remove this tar and teach again."
            )
        return embedding

    def _parse(self, data: bytes, key: str) -> np.ndarray:
        """An array whose header is not as we write it: of another writer, or wrong."""
        try:
            embeddings = np.load(io.BytesIO(data), allow_pickle=False)
        except (ValueError, EOFError) as error:
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
        """Refuse embeddings of other shards or, unless one stands for all, of other views. Raises: TeacherError."""
        entry = read_info(self.root)["splits"].get(shards.split)
        if entry is None:
            raise TeacherError(
                f"{self.root} holds no embeddings of split {shards.split!r}. Make them with: lgd-timm teach"
            )
        if tuple(entry["taught"]) != shards.sha256:
            raise TeacherError(
                f"{self.root} was made from other shards than {shards.root} ({shards.split}). Run lgd-timm teach with another --out."
            )
        if self.per_image:
            return
        taught = self.facts["views_fingerprint"]
        if views.fingerprint != taught and replace(views, count=self.views.count) == self.views:
            raise TeacherError(
                f"{self.root} was taught with another version of the views ({taught}, now {views.fingerprint}): the same settings give "
                "other pixels now. Remove the folder and run lgd-timm teach again, or use the version of lgd_timm that taught."
            )
        if views.fingerprint != taught or views.count > self.views.count:
            raise TeacherError(
                f"{self.root} holds {self.views}, asked for {views}. Use the stored views, or run lgd-timm teach for the new ones."
            )


def open_stored(root: str | Place) -> StoredEmbeddings:
    """Open a folder that `lgd-timm teach` finished, or the address of one.

    Raises: TeacherError when it is not one; ShardError where an address can't be read, or has no sha256 sums.
    """
    root = resolve_path(root)
    if isinstance(root, Path) and not ((root / TEACHER).is_file() and (root / INFO).is_file()):
        raise TeacherError(
            f"{root} holds no finished teacher embeddings ({TEACHER}, {INFO}). Make them with: lgd-timm teach"
        )
    return StoredEmbeddings(root, read_teacher_facts(root), sha256=_sums(root))


def _sums(root: Place) -> dict[str, str]:
    """sha256 of each sidecar. Nothing where they lie on this disk: there is no need of them."""
    sums: dict[str, str] = {}
    for entry in read_info(root)["splits"].values() if not isinstance(root, Path) else ():
        names, totals = tuple(entry["filenames"]), tuple(entry.get("sha256", ()))
        check_sums(root / INFO, totals, count=len(names))
        sums.update(zip(names, totals, strict=True))
    return sums


def read_teacher_facts(root: Place) -> dict[str, Any]:
    """The folder's `_teacher.json`. Raises: TeacherError when it is not one; ShardError where an address can't be read."""
    content = read_small(root / TEACHER)
    try:
        facts = json.loads(content.decode())
        assert {"fingerprint", "embed_dim", "dtype", "views", "views_fingerprint"} <= facts.keys()
    except (ValueError, AttributeError, AssertionError) as error:
        raise TeacherError(
            f"{root / TEACHER} can't be read ({error!r}). Remove the folder and run lgd-timm teach again."
        ) from error
    return facts


def find_stored(shards: ShardSet, *, views: Views | None, teacher: str) -> StoredEmbeddings | None:
    """Embeddings by the teacher of that fingerprint, in a folder beside the shards; None when there are none.

    `views` None asks for any unaugmented ones. Of two that differ in their numbers' type, float16 comes first. Beside shards at
    an address none are found, as servers list no folders.
    """
    if not isinstance(shards.root, Path):
        return None
    for path in sorted(shards.root.glob(f"*/{TEACHER}")):
        if read_teacher_facts(path.parent)["fingerprint"] != teacher or not (path.parent / INFO).is_file():
            continue
        stored = open_stored(path.parent)
        try:
            stored.check(shards, views or stored.views)
        except TeacherError:  # other views, or another split: not the ones looked for
            continue
        if views is None and stored.views.augmentation != "none":
            continue
        return stored
    return None
