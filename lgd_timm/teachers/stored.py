"""A teacher that has already taught: its embeddings stand beside the shards, its towers are not loaded."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

from ..errors import TeacherError
from ..shards.stored import TEACHER, StoredEmbeddings, open_stored
from .conse import Conse
from .open_clip import OpenCLIP


@dataclass(frozen=True)
class Stored:
    """Embeddings that `lgd-timm teach` wrote to folder `embeddings`. `taught_by` says who taught, and `dtype` as what numbers, so
    that they can be made again where the folder is not; a published recipe has both."""

    kind: ClassVar[str] = "stored"
    embeddings: str
    taught_by: Conse | OpenCLIP | None = None
    dtype: Literal["float16", "int8"] | None = None

    def open(self) -> StoredEmbeddings:
        """Raises: TeacherError, which says how to make the folder, if that is known."""
        if self.taught_by is not None and not (Path(self.embeddings) / TEACHER).is_file():
            raise TeacherError(
                f"teacher.embeddings {self.embeddings!r}: no such embeddings. The recipe says who taught, so make them from the same "
                f"recipe: lgd-timm teach RECIPE --out {self.embeddings}"
            )
        return open_stored(self.embeddings)
