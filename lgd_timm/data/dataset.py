"""Samples out of shards: permuted by epoch, split among ranks after shuffling, exactly once for evaluation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, default_collate

from ..errors import CacheError, ShardError
from .color import ColorOps, apply_color
from .decode import EncodedImage
from .index import IMAGE_FIELDS, ShardSet
from .samplers import Item
from .stored_embeddings import StoredEmbeddings
from .tar import IndexedTar
from .views import Views

Photometry = Literal[
    "worker", "device"
]  # where colours are changed: by the reader, or on the device that takes the batch


@dataclass
class Batch:
    """What one step needs. Samples that could not be read are left out and named in `bad`."""

    images: Tensor  # uint8 [B, 3, S, S]
    labels: Tensor  # int64 [B], -1 where the sample has none
    keys: list[str]
    embeddings: Tensor | None = None  # the teacher's, float16 [B, D]
    bad: tuple[tuple[str, str], ...] = ()  # (key, reason)
    colours: tuple[ColorOps, ...] = ()  # what is still to be done to the images; `to` does it

    def pin_memory(self) -> Batch:  # called by DataLoader
        return self._map(Tensor.pin_memory)

    def to(self, device: torch.device) -> Batch:
        """The batch on a device, with its colours changed there if they were left to it."""
        batch = self._map(lambda tensor: tensor.to(device, non_blocking=True))
        return replace(batch, images=apply_color(batch.images, self.colours), colours=()) if self.colours else batch

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
        good: list[tuple[_Sample, ColorOps, np.ndarray | None]] = []
        bad: list[tuple[str, str]] = []
        sample: _Sample | None = None
        for position, index in items:
            try:
                if (
                    sample is None or sample.position != position
                ):  # views of one sample that stand together share its decoding
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
            images=default_collate(images)
            if images
            else torch.empty(0, 3, self.views.size, self.views.size, dtype=torch.uint8),
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
            raise ShardError(
                tar.damage or f"the tar holds {len(tar.keys)} samples, its index says {self.shards.lengths[shard]}"
            )
        key = tar.keys[place]
        fields = tar.samples[key]
        field = next((f for f in IMAGE_FIELDS if f in fields), None)
        if field is None:
            raise ShardError(f"no image among its fields ({', '.join(fields)})")
        label = int(tar.read(key, "cls")) if "cls" in fields else -1
        return _Sample(position, shard, key, EncodedImage(tar.read(key, field)), label)

    def _render(self, sample: _Sample, index: int) -> tuple[Tensor, ColorOps, np.ndarray | None]:
        stored = (
            None if self.stored is None else self.stored.read(self.shards.filenames[sample.shard], sample.key, index)
        )
        view = self.views.draw(sample.key, index, height=sample.picture.height, width=sample.picture.width)
        image = self.views.shape(sample.picture, view)
        if self.photometry == "worker":
            image = apply_color(image[None], [view.colours])[0]
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
    picture: EncodedImage
    label: int


class BadSamples:
    """Counts and names the samples that could not be read; fails when they are more than a share of the split."""

    def __init__(self, allowed: float, *, size: int) -> None:
        self.limit = int(allowed * size)
        self.allowed, self.size = allowed, size
        self.reasons: dict[str, str] = {}

    def add(self, bad: Sequence[tuple[str, str]]) -> list[str]:
        """Record; returns one line for each sample not named before. Raises: ShardError above the limit."""
        new = {
            key: reason for key, reason in bad if key not in self.reasons
        }  # a sample fails once for each of its views
        self.reasons.update(new)
        if len(self.reasons) > self.limit:
            first = "; ".join(f"{key}: {reason}" for key, reason in list(self.reasons.items())[:3])
            raise ShardError(
                f"{len(self.reasons)} of {self.size} samples can't be read; data.max_bad = {self.allowed:g} allows {self.limit}. "
                f"First: {first}. Repair the shards, or raise data.max_bad."
            )
        return [f"skipped {key}: {reason}" for key, reason in new.items()]
