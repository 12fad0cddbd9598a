"""Images and teacher embeddings as WebDataset shards: written, read, viewed, sampled and loaded; and the names of classes."""

from typing import TYPE_CHECKING

from ..utils.lazy import lazy_names

if TYPE_CHECKING:
    from .index import ShardSet, open_shards
    from .views import Views

__all__ = ["ShardSet", "Views", "open_shards"]

# Lazy, as names of classes are read without torch.
__getattr__ = lazy_names(__name__, {"ShardSet": "index", "Views": "views", "open_shards": "index"})
