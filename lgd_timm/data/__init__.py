"""Images and teacher embeddings as WebDataset shards, views of the images, samplers, loaders, class names."""

from typing import TYPE_CHECKING

from ..utils.lazy import lazy_names

if TYPE_CHECKING:
    from .index import ShardSet, open_shards
    from .views import Views

__all__ = ["ShardSet", "Views", "open_shards"]

# Lazy, as names of classes are read without torch.
__getattr__ = lazy_names(__name__, {"ShardSet": "index", "Views": "views", "open_shards": "index"})
