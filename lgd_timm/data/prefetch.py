"""Fetch the shards at an address that an epoch reads next, while those before are read.

An epoch's samples are shuffled within windows of shards (`samplers.py`). When half of a window's batches were handed
out, the next window is fetched by a thread of this process. Room for it is made of shards outside of both windows; if
there is none, shards are fetched when they are read.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from torch.utils.data import Sampler

from ..errors import CacheError, ShardError
from .index import ShardSet
from .samplers import EpochSampler, Item
from .shard_cache import CachedFile, NoRoom
from .stored_embeddings import StoredEmbeddings

log = logging.getLogger(__name__)


def fetching_ahead(
    sampler: Sampler[list[Item]], shards: ShardSet, stored: StoredEmbeddings | None
) -> Sampler[list[Item]]:
    """Return a sampler of the same batches that fetches ahead what they need; the same one where nothing is fetched.

    Args:
        sampler: the batches. Only those of epochs are fetched ahead.
        shards: the split that is read.
        stored: the embeddings that are read with it.
    """
    roots = [shards.root, *([] if stored is None else [stored.root])]
    if not isinstance(sampler, EpochSampler) or all(isinstance(root, Path) for root in roots):
        return sampler
    return _FetchingAhead(sampler, shards, stored)


class _Wanted(NamedTuple):
    """Shards that are read now, and those that are read next."""

    now: tuple[int, ...]
    next: tuple[int, ...]


@dataclass(frozen=True)
class _FetchingAhead(Sampler[list[Item]]):
    plan: EpochSampler
    shards: ShardSet
    stored: StoredEmbeddings | None

    def __len__(self) -> int:
        return len(self.plan)

    def __iter__(self) -> Iterator[list[Item]]:
        due: list[tuple[int, _Wanted]] = []
        current, size = -1, self.plan.batch_size * self.plan.world_size
        with _Fetcher(self._files) as fetcher:
            for step, batch in enumerate(self.plan, start=self.plan.start):
                epoch, place = divmod(step, self.plan.steps_per_epoch)
                if epoch != current:
                    due, current = self._schedule(epoch), epoch
                wanted = [wanted for first, wanted in due if first <= place * size]
                if wanted:
                    fetcher.want(wanted[-1])
                    due = due[len(wanted) :]
                yield batch

    def _schedule(self, epoch: int) -> list[tuple[int, _Wanted]]:
        """List from which sample of an epoch on what is wanted."""
        windows = self._windows(epoch)
        following = [*windows[1:], self._windows(epoch + 1)[0]]
        schedule, start = [(0, _Wanted(windows[0], ()))], 0
        for now, then in zip(windows, following, strict=True):
            samples = sum(self.plan.lengths[shard] for shard in now)
            schedule.append((start + samples // 2, _Wanted(now, then)))
            start += samples
        return schedule

    def _windows(self, epoch: int) -> list[tuple[int, ...]]:
        return [tuple(map(int, window)) for window in self.plan.windows(epoch)]

    def _files(self, shards: Sequence[int]) -> list[CachedFile]:
        """List the files of some shards that are at an address, those of one shard beside each other.

        Each rank begins at another one, so that those of a machine fetch different ones.
        """
        files: list[Path | CachedFile] = []
        first = len(shards) * self.plan.rank // self.plan.world_size
        for shard in (*shards[first:], *shards[:first]):
            files.append(self.shards.path(shard))
            if self.stored is not None:
                files.append(self.stored.path(self.shards.filenames[shard]))
        return [file for file in files if isinstance(file, CachedFile)]


class _Fetcher:
    """A thread that fetches what was wanted last. It ends when the block ends, after the shard that it is fetching."""

    def __init__(self, files: Callable[[Sequence[int]], list[CachedFile]]) -> None:
        self._files = files
        self._changed = threading.Condition()
        self._wanted: _Wanted | None = None
        self._fetched: _Wanted | None = None
        self._ended = self._warned = False

    def want(self, wanted: _Wanted) -> None:
        """Fetch these from now on, and no others."""
        with self._changed:
            self._wanted = wanted
            self._changed.notify()

    def __enter__(self) -> _Fetcher:
        threading.Thread(target=self._run, name="shards", daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        with self._changed:
            self._ended = True
            self._changed.notify()

    def _run(self) -> None:
        while (wanted := self._next()) is not None:
            self._fetch(wanted)

    def _next(self) -> _Wanted | None:
        """Wait for what is wanted next; None at the end."""
        with self._changed:
            self._changed.wait_for(lambda: self._ended or self._wanted is not self._fetched)
            self._fetched = self._wanted
            return None if self._ended else self._wanted

    def _fetch(self, wanted: _Wanted) -> None:
        now, following = self._files(wanted.now), self._files(wanted.next)
        keep = frozenset(file.cached.name for file in (*now, *following))

        def stopped() -> bool:
            return self._ended or self._wanted is not wanted

        for number, file in enumerate((*now, *following)):
            if stopped():
                return
            try:
                file.fetch_ahead(keep=keep, stopped=stopped)
            except NoRoom:
                if number < len(now) and not stopped():
                    self._warn(len(now))
                return
            except ShardError as error:  # it is a bad sample only if it can't be had when it is read
                log.info("fetching ahead: %s", error)
            except CacheError as error:  # raised again by whoever reads
                log.info("fetching ahead: %s", error)
                return

    def _warn(self, count: int) -> None:
        if not self._warned:
            log.warning(
                "The cache is too small for the %d files that an epoch's window reads at a time, which are fetched "
                "again and again. Raise LGD_TIMM_CACHE_SIZE, or lower data.window, which changes the order of samples.",
                count,
            )
            self._warned = True
