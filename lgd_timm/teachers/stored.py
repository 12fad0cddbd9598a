"""Stored embeddings as a teacher: no tower is loaded."""

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
    """Embeddings that `lgd-timm teach` wrote, read from a folder or an address.

    Args:
        embeddings: the folder, or its address.
        taught_by: the teacher that made them. With `dtype` they can be made again where the folder is missing; a
            published recipe has both.
        dtype: type of the stored numbers.
        target: which embedding a student learns for a view. "view": that of the same pixels. "image": that of the first
            stored view of the same image (made with the views `taught_on`); the recipe's `views` are then the student's
            alone, any number of them. That is better for a teacher that reads crops worse than whole images.
        taught_on: the stored views, with target "image".
    """

    kind: ClassVar[str] = "stored"
    embeddings: str
    taught_by: Conse | OpenCLIP | None = None
    dtype: Literal["float16", "int8"] | None = None
    target: Literal["view", "image"] = "view"
    taught_on: Views | None = None

    def open(self) -> StoredEmbeddings:
        """Open the folder.

        Raises:
            TeacherError: it is missing or wrong; the message says how to make it, if that is known.
            ShardError: an address can't be read.
        """
        root = resolve_path(self.embeddings)
        if self.taught_by is not None and isinstance(root, Path) and not (root / TEACHER).is_file():
            raise TeacherError(
                f"teacher.embeddings {self.embeddings!r}: no such embeddings. The recipe says who taught, so make them "
                f"from the same recipe: lgd-timm teach RECIPE --out {self.embeddings}"
            )
        return replace(open_stored(root), per_image=self.target == "image")
