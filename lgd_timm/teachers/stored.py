"""Stored embeddings as a teacher: no tower is loaded."""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar, Literal

from ..data.index import INFO, ShardSet, open_shards
from ..data.paths import AnyPath, resolve_path
from ..data.stored_embeddings import TEACHER, StoredEmbeddings, open_stored, read_teacher_metadata
from ..data.views import Views
from ..errors import LGDError, TeacherError
from ..utils.schema import build
from .conse import Conse
from .open_clip import OpenCLIP

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Stored:
    """Embeddings that `lgd-timm teach` wrote, read from a folder or an address.

    Args:
        embeddings: the folder, or its address. Of a folder of shards, and with None of the recipe's, the embeddings
            beside the shards that fit the recipe are meant (`found_beside`).
        taught_by: the teacher that made them. With `dtype` they can be made again where the folder is missing; a
            published recipe has both.
        dtype: type of the stored numbers.
        target: which embedding a student learns for a view. "view": that of the same pixels. "image": that of the first
            stored view of the same image (made with the views `taught_on`); the recipe's `views` are then the student's
            alone, any number of them. That is better for a teacher that reads crops worse than whole images.
        taught_on: the stored views, with target "image".
    """

    kind: ClassVar[str] = "stored"
    embeddings: str | None = None
    taught_by: Conse | OpenCLIP | None = None
    dtype: Literal["float16", "int8"] | None = None
    target: Literal["view", "image"] = "view"
    taught_on: Views | None = None

    @property
    def folder(self) -> str | None:
        """The folder or address of the embeddings themselves; None where they have to be found beside shards."""
        root = None if self.embeddings is None else resolve_path(self.embeddings)
        return None if root is None or _holds_shards(root) else self.embeddings

    def found_beside(self, shards: str, *, split: str, views: Views | None) -> Stored:
        """Return the same with the folder of its embeddings, where they have to be found.

        Args:
            shards: the recipe's shards.
            split: which split of them is learned from.
            views: the recipe's views; None: any.

        Raises:
            TeacherError: no embeddings beside the shards fit, or several do; the message says which there are.
            ShardError: the shards can't be read.
        """
        if self.folder is not None:
            return self
        root = resolve_path(self.embeddings or shards)
        if not isinstance(root, Path):
            raise TeacherError(f"{root} is an address, which lists no folders. Name the folder: teacher.embeddings.")
        opened = open_shards(root, split=split)
        folders = [path.parent for path in sorted(root.glob(f"*/{TEACHER}"))]
        misfits = {folder: self._misfit(folder, opened, views) for folder in folders}
        fits = [folder for folder, reason in misfits.items() if reason is None]
        if not fits:
            there = "; ".join(f"{folder.name}: {reason}" for folder, reason in misfits.items())
            raise TeacherError(
                f"No embeddings beside {root} fit the recipe ({there or 'there are none'}). Make them with: lgd-timm "
                "teach RECIPE. Or name a folder: teacher.embeddings."
            )
        metadata = map(read_teacher_metadata, fits)
        if len({(facts["fingerprint"], facts["views_fingerprint"]) for facts in metadata}) > 1:
            names = ", ".join(folder.name for folder in fits)
            raise TeacherError(
                f"Several embeddings beside {root} fit the recipe: {names}. Name one: teacher.embeddings."
            )
        log.info("embeddings: %s", fits[0])  # float16 comes before int8
        return replace(self, embeddings=str(fits[0]))

    def _misfit(self, folder: Path, shards: ShardSet, views: Views | None) -> str | None:
        """Why a folder's embeddings are not those of the recipe; None if they may be."""
        try:
            stored = replace(open_stored(folder), per_image=self.target == "image")
            by = build(Conse | OpenCLIP, stored.metadata.get("teacher"), where="teacher")
            if self.taught_by is not None and by != self.taught_by:
                return "of another teacher"
            if self.dtype is not None and stored.metadata["dtype"] != self.dtype:
                return f"stored as {stored.metadata['dtype']}"
            if stored.per_image and self.taught_on is not None and stored.views != self.taught_on:
                return f"taught on {stored.views}"
            stored.check(shards, views or stored.views)
        except LGDError as error:
            return str(error).rstrip(".")
        return None

    def open(self) -> StoredEmbeddings:
        """Open the folder.

        Raises:
            TeacherError: it is missing or wrong; the message says how to make it, if that is known.
            ShardError: an address can't be read.
        """
        if self.embeddings is None:
            raise TeacherError("teacher.embeddings is not given. Name the folder that lgd-timm teach made.")
        root = resolve_path(self.embeddings)
        if self.taught_by is not None and isinstance(root, Path) and not (root / TEACHER).is_file():
            raise TeacherError(
                f"teacher.embeddings {self.embeddings!r}: no such embeddings. The recipe says who taught, so make them "
                f"from the same recipe: lgd-timm teach RECIPE --out {self.embeddings}"
            )
        return replace(open_stored(root), per_image=self.target == "image")


def _holds_shards(root: AnyPath) -> bool:
    return isinstance(root, Path) and (root / INFO).is_file() and not (root / TEACHER).is_file()
