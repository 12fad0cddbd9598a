"""Samples out of shards: permuted by epoch, split among ranks after shuffling, exactly once for evaluation."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler, default_collate

from ..errors import CacheError, ShardError
from .index import IMAGE_FIELDS, IndexedTar, ShardSet
from .photometry import Colours, recolour
from .picture import Picture
from .stored import StoredEmbeddings
from .views import Views

Item = tuple[int, int]  # (position in the split, view index)
Photometry = Literal["worker", "device"]  # where colours are changed: by the reader, or on the device that takes the batch


@dataclass
class Batch:
    """What one step needs. Samples that could not be read are left out and named in `bad`."""

    images: Tensor  # uint8 [B, 3, S, S]
    labels: Tensor  # int64 [B], -1 where the sample has none
    keys: list[str]
    embeddings: Tensor | None = None  # the teacher's, float16 [B, D]
    bad: tuple[tuple[str, str], ...] = ()  # (key, reason)
    colours: tuple[Colours, ...] = ()  # what is still to be done to the images; `to` does it

    def pin_memory(self) -> Batch:  # called by DataLoader
        return self._map(Tensor.pin_memory)

    def to(self, device: torch.device) -> Batch:
        """The batch on a device, with its colours changed there if they were left to it."""
        batch = self._map(lambda tensor: tensor.to(device, non_blocking=True))
        return replace(batch, images=recolour(batch.images, self.colours), colours=()) if self.colours else batch

    def split(self, count: int) -> tuple[Batch, ...]:
        """The batch in `count` parts, of equal size if it divides. For batches whose samples are all good, on their device."""
        if count == 1:
            return (self,)
        places = torch.arange(len(self.keys)).tensor_split(count)
        return tuple(self._take(part) for part in places)

    def filled(self, size: int) -> Batch:
        """The same batch, the places of bad samples taken by its good ones: a step is of one size, on every rank."""
        return self if len(self.keys) == size else self._take(torch.arange(size) % len(self.keys))

    def _take(self, places: Tensor) -> Batch:
        rows = places.tolist()
        return replace(
            self._map(lambda tensor: tensor[places.to(tensor.device)]),
            keys=[self.keys[row] for row in rows],
            colours=tuple(self.colours[row] for row in rows) if self.colours else (),
        )

    def record_stream(self, stream: torch.cuda.Stream) -> None:
        """Keep the memory from being given to others while `stream` still works on it."""
        self._map(lambda tensor: tensor.record_stream(stream) or tensor)

    def _map(self, function: Any) -> Batch:
        embeddings = None if self.embeddings is None else function(self.embeddings)
        return replace(self, images=function(self.images), labels=function(self.labels), embeddings=embeddings)


def all_bad(bad: Sequence[tuple[str, str]]) -> ShardError:
    """What is wrong with a batch of which no sample is left."""
    return ShardError(f"All {len(bad)} samples of a batch are bad, first {bad[0][0]}: {bad[0][1]}. Check the shards.")


class ShardDataset(Dataset):
    """Map-style dataset over (position, view index): a list of items in, a Batch out.

    A batch with no good sample is an error, because a step can't be taken on it; with `allow_empty` it is a Batch of none.
    With `photometry` "device" colours are left to `Batch.to`, which an accelerator does in no time.
    """

    def __init__(
        self,
        shards: ShardSet,
        *,
        views: Views,
        stored: StoredEmbeddings | None = None,
        allow_empty: bool = False,
        photometry: Photometry = "worker",
    ) -> None:
        self.shards, self.views, self.stored, self.allow_empty = shards, views, stored, allow_empty
        self.photometry = photometry
        self._starts = np.concatenate([[0], np.cumsum(shards.lengths)])
        self._tars: dict[int, IndexedTar] = {}

    def __len__(self) -> int:
        return len(self.shards)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_tars": {}}  # workers walk the tars that they read

    def __getitem__(self, item: Item) -> Batch:
        return self.__getitems__([item])

    def __getitems__(self, items: Sequence[Item]) -> Batch:
        """Read and render a batch; a bad sample costs its place, not the batch."""
        images: list[Tensor] = []
        good: list[tuple[_Sample, Colours, np.ndarray | None]] = []
        bad: list[tuple[str, str]] = []
        sample: _Sample | None = None
        for position, index in items:
            try:
                if sample is None or sample.position != position:  # views of one sample that stand together share its decoding
                    sample = None
                    sample = self._open(position)
                image, colours, embedding = self._render(sample, index)
            except CacheError:  # no fault of the sample's, and all that follow would meet it
                raise
            except (OSError, ValueError) as error:
                bad.append((self._name(position), f"{type(error).__name__}: {error}"))
                continue
            images.append(image)
            good.append((sample, colours, embedding))
        if not good and not self.allow_empty:
            raise all_bad(bad)
        return Batch(
            # In a worker, default_collate writes to the shared memory in which the batch travels
            images=default_collate(images) if images else torch.empty(0, 3, self.views.size, self.views.size, dtype=torch.uint8),
            labels=torch.tensor([sample.label for sample, _, _ in good], dtype=torch.int64),
            keys=[sample.key for sample, _, _ in good],
            embeddings=self._embeddings([embedding for _, _, embedding in good]),
            bad=tuple(bad),
            colours=() if self.photometry == "worker" else tuple(colours for _, colours, _ in good),
        )

    def _open(self, position: int) -> _Sample:
        shard, place = self._place(position)
        tar = self._tar(shard)
        if place >= len(tar.keys):
            raise ShardError(tar.damage or f"the tar holds {len(tar.keys)} samples, its index says {self.shards.lengths[shard]}")
        key = tar.keys[place]
        fields = tar.samples[key]
        field = next((f for f in IMAGE_FIELDS if f in fields), None)
        if field is None:
            raise ShardError(f"no image among its fields ({', '.join(fields)})")
        label = int(tar.read(key, "cls")) if "cls" in fields else -1
        return _Sample(position, shard, key, Picture(tar.read(key, field)), label)

    def _render(self, sample: _Sample, index: int) -> tuple[Tensor, Colours, np.ndarray | None]:
        stored = None if self.stored is None else self.stored.read(self.shards.filenames[sample.shard], sample.key, index)
        view = self.views.draw(sample.key, index, height=sample.picture.height, width=sample.picture.width)
        image = self.views.shape(sample.picture, view)
        if self.photometry == "worker":
            image = recolour(image[None], [view.colours])[0]
        return image, view.colours, stored

    def _embeddings(self, rows: Sequence[Any]) -> Tensor | None:
        if self.stored is None:
            return None
        return torch.from_numpy(np.stack(rows)) if rows else torch.empty(0, self.stored.embed_dim, dtype=torch.float16)

    def _place(self, position: int) -> tuple[int, int]:
        """Shard, and place in it."""
        shard = int(np.searchsorted(self._starts, position, side="right")) - 1
        return shard, position - int(self._starts[shard])

    def _name(self, position: int) -> str:
        """What to call a sample that may be unreadable."""
        shard, place = self._place(position)
        keys = self._tars[shard].keys if shard in self._tars else ()
        return f"{self.shards.filenames[shard]}/{keys[place] if place < len(keys) else f'sample {place}'}"

    def _tar(self, shard: int) -> IndexedTar:
        if shard not in self._tars:
            self._tars[shard] = IndexedTar(self.shards.path(shard))
        return self._tars[shard]


@dataclass(frozen=True)
class _Sample:
    """One sample, opened: its picture is decoded when a view asks for it, and kept for the next."""

    position: int
    shard: int
    key: str
    picture: Picture
    label: int


@dataclass(frozen=True)
class EpochPlan(Sampler[list[Item]]):
    """The batches of one rank, an endless walk through shuffled epochs cut to steps [start, stop).

    Step s belongs to epoch s // steps_per_epoch and shows view (epoch mod views). Shards are permuted by epoch, then
    samples within windows of `window` shards, which keeps reads near each other; the order is cut into global batches and
    each batch into one part a rank. A last, partial global batch is left to other epochs' luck.
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
                f"{sum(self.lengths)} samples are too few for one global batch of {self.batch_size} x {self.world_size} ranks. "
                "Lower data.batch_size."
            )

    @property
    def steps_per_epoch(self) -> int:
        return sum(self.lengths) // (self.batch_size * self.world_size)

    def __len__(self) -> int:
        return max(0, self.stop - self.start)

    def order(self, epoch: int) -> np.ndarray:
        """Positions of all samples in this epoch's order, int64 [N], equal on every rank."""
        draw = np.random.Generator(np.random.Philox(key=(self.seed << 64) + epoch))
        starts = np.concatenate([[0], np.cumsum(self.lengths)])
        shards = draw.permutation(len(self.lengths))
        windows = [shards[i : i + self.window] for i in range(0, len(shards), self.window)]
        return np.concatenate(
            [draw.permutation(np.concatenate([np.arange(starts[s], starts[s + 1]) for s in window])) for window in windows]
        )

    def __iter__(self) -> Iterator[list[Item]]:
        size = self.batch_size * self.world_size
        order, current = np.empty(0, np.int64), -1
        for step in range(self.start, self.stop):
            epoch, place = divmod(step, self.steps_per_epoch)
            if epoch != current:
                order, current = self.order(epoch), epoch
            first = place * size + self.rank * self.batch_size
            yield [(int(i), epoch % self.views) for i in order[first : first + self.batch_size]]


@dataclass(frozen=True)
class InOrder(Sampler[list[Item]]):
    """Every sample of one rank exactly once, in stored order, each with all its views: for evaluation and teaching."""

    positions: Sequence[int]
    batch_size: int
    views: int = 1

    def __len__(self) -> int:
        return math.ceil(len(self.positions) / self.batch_size)

    def __iter__(self) -> Iterator[list[Item]]:
        for i in range(0, len(self.positions), self.batch_size):
            yield [(p, view) for p in self.positions[i : i + self.batch_size] for view in range(self.views)]


def loader(dataset: ShardDataset, sampler: Sampler[list[Item]], *, workers: int = 0) -> DataLoader:
    """A DataLoader of Batches. Workers persist for the whole walk; uint8 crosses the process border."""
    return DataLoader(
        dataset,
        batch_sampler=sampler,
        collate_fn=_as_is,
        num_workers=workers,
        pin_memory=torch.cuda.is_available(),
        prefetch_factor=4 if workers else None,
        worker_init_fn=_be_modest,
        generator=torch.Generator(),  # of its own: the workers' seed must not move the global generator, on which dropout draws
    )


def on_device(batches: Iterable[Batch], device: torch.device) -> Iterator[Batch]:
    """Batches moved to a device. On CUDA the next one is copied and coloured on a stream of its own while this one is worked on."""
    if device.type != "cuda":
        for batch in batches:
            yield batch.to(device)
        return
    side = torch.cuda.Stream(device)
    ahead: Batch | None = None
    for batch in batches:
        with torch.cuda.stream(side):
            following = batch.to(device)
        if ahead is not None:
            yield ahead
        torch.cuda.current_stream(device).wait_stream(side)
        following.record_stream(torch.cuda.current_stream(device))
        ahead = following
    if ahead is not None:
        yield ahead


def _as_is(batch: Any) -> Any:
    return batch


def _be_modest(_: int) -> None:
    """A worker's start."""
    torch.set_num_threads(1)  # workers are the parallelism; more threads would only fight
    if hasattr(os, "nice"):  # while the queue is full the step goes first: a core shared evenly would keep all its threads waiting
        os.nice(10)


def place_photometry(place: Photometry | Literal["auto"], device: torch.device) -> Photometry:
    """Where colours are best changed: an accelerator does a batch in the time that a worker needs for an image."""
    if place == "auto":
        return "worker" if device.type == "cpu" else "device"
    return place


class BadSamples:
    """Counts and names the samples that could not be read; fails when they are more than a share of the split."""

    def __init__(self, allowed: float, *, size: int) -> None:
        self.limit = int(allowed * size)
        self.allowed, self.size = allowed, size
        self.reasons: dict[str, str] = {}

    def add(self, bad: Sequence[tuple[str, str]]) -> list[str]:
        """Record; returns one line for each sample not named before. Raises: ShardError above the limit."""
        new = {key: reason for key, reason in bad if key not in self.reasons}  # a sample fails once for each of its views
        self.reasons.update(new)
        if len(self.reasons) > self.limit:
            first = "; ".join(f"{key}: {reason}" for key, reason in list(self.reasons.items())[:3])
            raise ShardError(
                f"{len(self.reasons)} of {self.size} samples can't be read; data.max_bad = {self.allowed:g} allows {self.limit}. "
                f"First: {first}. Repair the shards, or raise data.max_bad."
            )
        return [f"skipped {key}: {reason}" for key, reason in new.items()]
