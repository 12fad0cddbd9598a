"""Cache rendered views in memory: K fixed views of small images are rendered once, later epochs and runs look them up.

A view is a pure function of (seed, key, index), so the cached pixels are those that would be rendered again.
"""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy
from functools import lru_cache

import numpy as np
import torch

from ..errors import ShardError
from .dataset import Batch, ShardDataset, all_bad
from .samplers import Item


def in_memory(dataset: ShardDataset) -> ShardDataset:
    """Return the same dataset, with each item rendered only once.

    Datasets of equal content share the cache. A view of 32 px takes 3 kB, and a stored embedding 2 bytes a dimension.

    Args:
        dataset: with `photometry` "worker".

    Raises:
        ShardError: colour operations are left to a device, so the cached pixels would lack them.
    """
    if dataset.photometry != "worker":
        raise ShardError(
            "Views are kept in memory with their colours done, which the reader then has to do. "
            "Set run.photometry worker."
        )
    stored, shards, views = dataset.stored, dataset.shards, dataset.views
    taught = None if stored is None else (str(stored.root.resolve()), stored.metadata["fingerprint"], stored.per_image)
    content = (str(shards.root.resolve()), shards.split, shards.fingerprint, views.fingerprint, taught)
    dimension = 0 if stored is None else stored.embed_dim
    return _InMemory(dataset, _cache_of(content, (len(dataset), views.count), views.size, dimension))


class _Cache:
    """Rendered items by (position, view). The system gives memory only to what is written."""

    def __init__(self, shape: tuple[int, int], size: int, dimension: int) -> None:
        self.filled = np.zeros(shape, bool)
        self.images = np.empty((*shape, 3, size, size), np.uint8)
        self.embeddings = np.empty((*shape, dimension), np.float16)
        self.labels = np.empty(shape[0], np.int64)
        self.keys: dict[int, str] = {}


@lru_cache(maxsize=4)  # train and evaluation split of two sorts of runs
def _cache_of(content: tuple, shape: tuple[int, int], size: int, dimension: int) -> _Cache:
    return _Cache(shape, size, dimension)


class _InMemory(ShardDataset):
    """Look items up in the cache; render those that are missing."""

    def __init__(self, dataset: ShardDataset, cache: _Cache) -> None:
        super().__init__(dataset.shards, views=dataset.views, stored=dataset.stored, allow_empty=dataset.allow_empty)
        self._source, self._cache = copy(dataset), cache
        self._source.allow_empty = True  # items are read one at a time, so a bad one is not a wholly bad batch

    def __getitems__(self, items: Sequence[Item]) -> Batch:
        cache = self._cache
        positions, indices = np.array(items, np.int64).reshape(-1, 2).T
        failed: dict[Item, tuple[str, str]] = {}
        for row in np.flatnonzero(~cache.filled[positions, indices]):
            item = int(positions[row]), int(indices[row])
            if not cache.filled[item] and item not in failed:  # a batch may hold an item twice
                failed.update(self._render_once(item))
        bad = tuple(failed[item] for item in items if item in failed) if failed else ()
        if bad:
            if len(bad) == len(items) and not self.allow_empty:
                raise all_bad(bad)
            positions, indices = np.array([item for item in items if item not in failed], np.int64).reshape(-1, 2).T
        return Batch(
            images=torch.from_numpy(cache.images[positions, indices]),
            labels=torch.from_numpy(cache.labels[positions]),
            keys=[cache.keys[position] for position in positions.tolist()],
            embeddings=None if self.stored is None else torch.from_numpy(cache.embeddings[positions, indices]),
            bad=bad,
        )

    def _render_once(self, item: Item) -> dict[Item, tuple[str, str]]:
        """Render an item into the cache; return it if it is bad. It is tried again next time: a network may recover."""
        cache, batch = self._cache, self._source[item]
        if batch.bad:
            return {item: batch.bad[0]}
        cache.filled[item] = True
        cache.images[item] = batch.images[0].numpy()
        cache.labels[item[0]], cache.keys[item[0]] = batch.labels[0], batch.keys[0]
        if batch.embeddings is not None:
            cache.embeddings[item] = batch.embeddings[0].numpy()
        return {}
