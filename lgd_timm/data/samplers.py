"""Samplers: which samples and views each batch of each rank holds."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from torch.utils.data import Sampler

from ..errors import ShardError

Item = tuple[int, int]  # (position in the split, view index)


@dataclass(frozen=True)
class EpochSampler(Sampler[list[Item]]):
    """The batches of one rank for the steps [start, stop) of shuffled epochs.

    Step s belongs to epoch s // steps_per_epoch and shows view (epoch mod views). Shards are permuted by epoch, then
    samples within windows of `window` shards, which keeps reads near each other. The order is cut into global batches,
    and each of them into one part a rank. The samples of a last, partial global batch are not used in that epoch.

    Raises:
        ShardError: there are fewer samples than in one global batch.
    """

    lengths: tuple[int, ...]
    batch_size: int  # of one rank
    views: int = 1
    seed: int = 0
    rank: int = 0
    world_size: int = 1
    start: int = 0
    stop: int = 0
    window: int = 16

    def __post_init__(self) -> None:
        if self.steps_per_epoch < 1:
            raise ShardError(
                f"{sum(self.lengths)} samples are too few for one global batch of "
                f"{self.batch_size} x {self.world_size} ranks. Lower data.batch_size."
            )

    @property
    def steps_per_epoch(self) -> int:
        return sum(self.lengths) // (self.batch_size * self.world_size)

    def __len__(self) -> int:
        return max(0, self.stop - self.start)

    def windows(self, epoch: int) -> list[np.ndarray]:
        """Compute the shards of each window in an epoch's order, the same on every rank."""
        return self._windows(self._generator(epoch))

    def _generator(self, epoch: int) -> np.random.Generator:
        return np.random.Generator(np.random.Philox(key=(self.seed << 64) + epoch))

    def _windows(self, draw: np.random.Generator) -> list[np.ndarray]:
        shards = draw.permutation(len(self.lengths))
        return [shards[i : i + self.window] for i in range(0, len(shards), self.window)]

    def order(self, epoch: int) -> np.ndarray:
        """Compute the positions of all samples in an epoch's order, int64 [N], the same on every rank."""
        draw = self._generator(epoch)
        starts = np.concatenate([[0], np.cumsum(self.lengths)])
        windows = self._windows(draw)
        return np.concatenate(
            [
                draw.permutation(np.concatenate([np.arange(starts[s], starts[s + 1]) for s in window]))
                for window in windows
            ]
        )

    def __iter__(self) -> Iterator[list[Item]]:
        size = self.batch_size * self.world_size
        order, current = np.empty(0, np.int64), -1
        for step in range(self.start, self.stop):
            epoch, batch = divmod(step, self.steps_per_epoch)
            if epoch != current:
                order, current = self.order(epoch), epoch
            first = batch * size + self.rank * self.batch_size
            yield [(int(i), epoch % self.views) for i in order[first : first + self.batch_size]]


@dataclass(frozen=True)
class SequentialSampler(Sampler[list[Item]]):
    """Every sample of one rank exactly once, in the given order, each with all its views: to evaluate and to teach."""

    positions: Sequence[int]
    batch_size: int
    views: int = 1

    def __len__(self) -> int:
        return math.ceil(len(self.positions) / self.batch_size)

    def __iter__(self) -> Iterator[list[Item]]:
        for i in range(0, len(self.positions), self.batch_size):
            yield [(p, view) for p in self.positions[i : i + self.batch_size] for view in range(self.views)]
