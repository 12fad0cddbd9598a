"""A teacher that has already taught: its embeddings stand beside the shards, its towers are not loaded."""

from __future__ import annotations

from dataclasses import dataclass

from ..shards.stored import StoredEmbeddings, open_stored


@dataclass(frozen=True)
class Stored:
    """Embeddings that `lgd-timm teach` wrote to folder `embeddings`."""

    embeddings: str

    def open(self) -> StoredEmbeddings:
        return open_stored(self.embeddings)
