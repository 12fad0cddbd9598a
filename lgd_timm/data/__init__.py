"""Images and teacher embeddings as WebDataset shards: written, read and taught."""

from .index import ShardSet, open_shards
from .views import Views

__all__ = ["ShardSet", "Views", "open_shards"]
