"""Views kept in memory: K fixed views of small images are rendered once, and later epochs and runs only look them up.

A view is a pure function of (seed, key, index), so what is kept is what would be rendered again.
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
    """The same dataset, each of its items rendered when it is first asked for. Datasets of equal content share their memory.

    A view of 32 px takes 3 kB, beside a stored embedding. Raises: ShardError where colours are left to a device, as pixels
    would be kept before they are done.
    """
    if dataset.photometry != "worker":
        raise ShardError(
            "Views are kept in memory with their colours done, which the reader then has to do. Set run.photometry worker."
        )
    stored, shards, views = dataset.stored, dataset.shards, dataset.views
    taught = None if stored is None else (str(stored.root.resolve()), stored.facts["fingerprint"], stored.per_image)
    content = (str(shards.root.resolve()), shards.split, shards.fingerprint, views.fingerprint, taught)
    dimension = 0 if stored is None else stored.embed_dim
    return _InMemory(dataset, _kept(content, (len(dataset), views.count), views.size, dimension))


class _Kept:
    """What was rendered, by (position, view). Memory for what was never asked for is reserved and not taken."""

    def __init__(self, shape: tuple[int, int], size: int, dimension: int) -> None:
        self.there = np.zeros(shape, bool)
        self.images = np.empty((*shape, 3, size, size), np.uint8)
        self.embeddings = np.empty((*shape, dimension), np.float16)
        self.labels = np.empty(shape[0], np.int64)
        self.keys: dict[int, str] = {}


@lru_cache(maxsize=4)  # train and evaluation split of two sorts of runs
def _kept(content: tuple, shape: tuple[int, int], size: int, dimension: int) -> _Kept:
    return _Kept(shape, size, dimension)


class _InMemory(ShardDataset):
    """Looks an item up, and renders it if it is not there."""

    def __init__(self, dataset: ShardDataset, kept: _Kept) -> None:
        super().__init__(dataset.shards, views=dataset.views, stored=dataset.stored, allow_empty=dataset.allow_empty)
        self._source, self._kept = copy(dataset), kept
        self._source.allow_empty = True  # one item is read at a time, and a bad one is no batch without a good one

    def __getitems__(self, items: Sequence[Item]) -> Batch:
        kept = self._kept
        positions, indices = np.array(items, np.int64).reshape(-1, 2).T
        failed: dict[Item, tuple[str, str]] = {}
        for place in np.flatnonzero(~kept.there[positions, indices]):
            item = int(positions[place]), int(indices[place])
            if not kept.there[item] and item not in failed:  # a batch may ask twice for the same
                failed.update(self._render_once(item))
        bad = tuple(failed[item] for item in items if item in failed) if failed else ()
        if bad:
            if len(bad) == len(items) and not self.allow_empty:  # as the source would
                raise all_bad(bad)
            positions, indices = np.array([item for item in items if item not in failed], np.int64).reshape(-1, 2).T
        return Batch(
            images=torch.from_numpy(kept.images[positions, indices]),
            labels=torch.from_numpy(kept.labels[positions]),
            keys=[kept.keys[position] for position in positions.tolist()],
            embeddings=None if self.stored is None else torch.from_numpy(kept.embeddings[positions, indices]),
            bad=bad,
        )

    def _render_once(self, item: Item) -> dict[Item, tuple[str, str]]:
        """Keep an item; one that is bad is returned instead, as it may not be so the next time: shards come over networks, too."""
        kept, batch = self._kept, self._source[item]
        if batch.bad:
            return {item: batch.bad[0]}
        kept.there[item] = True
        kept.images[item], kept.labels[item[0]], kept.keys[item[0]] = (
            batch.images[0].numpy(),
            batch.labels[0],
            batch.keys[0],
        )
        if batch.embeddings is not None:
            kept.embeddings[item] = batch.embeddings[0].numpy()
        return {}
