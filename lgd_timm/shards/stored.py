"""Teacher embeddings that stand beside shards: sidecar tars with the same keys, float16 `.npy` of shape (K, D)."""

from __future__ import annotations

import io
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import ShardError, TeacherError
from .index import INFO, IndexedTar, ShardSet, read_info
from .views import Views

TEACHER = "_teacher.json"


@dataclass
class StoredEmbeddings:
    """A finished folder of sidecars. `facts` is `_teacher.json`: who taught, on which views, for which shards."""

    root: Path
    facts: dict[str, Any]
    _tars: dict[str, IndexedTar] = field(default_factory=dict, repr=False)

    @property
    def embed_dim(self) -> int:
        return int(self.facts["embed_dim"])

    @property
    def views(self) -> Views:
        return Views(**self.facts["views"])

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_tars": {}}  # workers walk the tars that they read

    def read(self, filename: str, key: str, view: int) -> np.ndarray:
        """Embedding of view `view` of one sample, float16 [D]. Raises: ShardError when there is none."""
        if filename not in self._tars:
            self._tars[filename] = IndexedTar(self.root / filename)
        tar = self._tars[filename]
        if key not in tar.samples:
            raise ShardError(f"no stored embedding for {key!r} in {self.root / filename}" + (f" ({tar.damage})" if tar.damage else ""))
        embeddings = np.load(io.BytesIO(tar.read(key, "npy")), allow_pickle=False)
        if embeddings.shape != (self.views.count, self.embed_dim):
            raise ShardError(f"stored embedding of {key!r} has shape {embeddings.shape}, expected {(self.views.count, self.embed_dim)}")
        return embeddings[view]

    def check(self, shards: ShardSet, views: Views) -> None:
        """Refuse embeddings of other shards or other views. Raises: TeacherError."""
        entry = read_info(self.root)["splits"].get(shards.split)
        if entry is None:
            raise TeacherError(f"{self.root} holds no embeddings of split {shards.split!r}. Make them with: lgd-timm teach")
        if tuple(entry["taught"]) != shards.sha256:
            raise TeacherError(
                f"{self.root} was made from other shards than {shards.root} ({shards.split}). Run lgd-timm teach with another --out."
            )
        if views.fingerprint != self.views.fingerprint or views.count > self.views.count:
            raise TeacherError(
                f"{self.root} holds {self.views}, asked for {views}. Use the stored views, or run lgd-timm teach for the new ones."
            )


def open_stored(root: str | Path) -> StoredEmbeddings:
    """Open a folder that `lgd-timm teach` finished. Raises: TeacherError when it is not one."""
    root = Path(root)
    if not (root / TEACHER).is_file() or not (root / INFO).is_file():
        raise TeacherError(f"{root} holds no finished teacher embeddings ({TEACHER}, {INFO}). Make them with: lgd-timm teach")
    return StoredEmbeddings(root, read_teacher_facts(root))


def read_teacher_facts(root: Path) -> dict[str, Any]:
    """The folder's `_teacher.json`. Raises: TeacherError when it is not one."""
    try:
        facts = json.loads((root / TEACHER).read_text(encoding="utf-8"))
        assert {"fingerprint", "embed_dim", "views"} <= facts.keys()
    except (ValueError, AttributeError, AssertionError) as error:
        raise TeacherError(f"{root / TEACHER} can't be read ({error!r}). Remove the folder and run lgd-timm teach again.") from error
    return facts


def find_stored(shards: ShardSet, *, views: Views | None, teacher: str) -> StoredEmbeddings | None:
    """Embeddings by the teacher of that fingerprint, in a folder beside the shards; None when there are none.

    `views` None asks for any unaugmented ones.
    """
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
