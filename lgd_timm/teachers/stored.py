"""A teacher that has already taught: its embeddings stand beside the shards, its towers are not loaded."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar, Literal

from ..data.paths import resolve_path
from ..data.stored_embeddings import TEACHER, StoredEmbeddings, open_stored
from ..data.views import Views
from ..errors import TeacherError
from .conse import Conse
from .open_clip import OpenCLIP


@dataclass(frozen=True)
class Stored:
    """Embeddings that `lgd-timm teach` wrote to folder `embeddings`, or that lie at an address. `taught_by` says who taught, and
    `dtype` as what numbers, so that they can be made again where the folder is not; a published recipe has both.

    `target`: what a student is to reproduce of a view that it sees. "view": what the teacher saw there, in the very same pixels.
    "image": what the teacher saw in the first of the stored views of that image, taught on `taught_on`; the recipe's `views`, of
    which there may be any number, are the student's alone. A teacher that reads crops worse than whole images teaches better so.
    """

    kind: ClassVar[str] = "stored"
    embeddings: str
    taught_by: Conse | OpenCLIP | None = None
    dtype: Literal["float16", "int8"] | None = None
    target: Literal["view", "image"] = "view"
    taught_on: Views | None = None

    def open(self) -> StoredEmbeddings:
        """Raises: TeacherError, which says how to make the folder, if that is known; ShardError, where an address can't be read."""
        root = resolve_path(self.embeddings)
        if self.taught_by is not None and isinstance(root, Path) and not (root / TEACHER).is_file():
            raise TeacherError(
                f"teacher.embeddings {self.embeddings!r}: no such embeddings. The recipe says who taught, so make them from the same "
                f"recipe: lgd-timm teach RECIPE --out {self.embeddings}"
            )
        return replace(open_stored(root), per_image=self.target == "image")
