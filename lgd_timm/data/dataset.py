"""Read samples from shards and render them into batches."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, default_collate

from ..errors import CacheError, ShardError
from .color import ColorOps, apply_color, planar
from .decode import EncodedImage
from .index import IMAGE_FIELDS, ShardSet
from .samplers import Item
from .stored_embeddings import StoredEmbeddings
from .tar import IndexedTar
from .views import Views

# Where colour operations are applied: by the process that reads, or on the device to which the batch is moved.
Photometry = Literal["worker", "device"]


@dataclass
class Batch:
    """The input of one step. Samples that could not be read are left out and named in `bad`."""

    images: Tensor  # uint8 [B, 3, S, S]
    labels: Tensor  # int64 [B], -1 where the sample has none
    keys: list[str]
    embeddings: Tensor | None = None  # the teacher's, float16 [B, D]
    bad: tuple[tuple[str, str], ...] = ()  # (key, reason)
    color_ops: tuple[ColorOps, ...] = ()  # not yet applied to the images; `to` applies them

    def pin_memory(self) -> Batch:  # called by DataLoader
        return self._map(Tensor.pin_memory)

    def to(self, device: torch.device) -> Batch:
        """Move the batch to a device and apply there the colour operations that are still open."""
        batch = self._map(lambda tensor: tensor.to(device, non_blocking=True))
        if not self.color_ops:
            return batch
        return replace(batch, images=apply_color(batch.images, self.color_ops), color_ops=())

    def split(self, count: int) -> tuple[Batch, ...]:
        """Split the batch into `count` parts, of equal size if it divides."""
        if count == 1:
            return (self,)
        return tuple(self._take(rows) for rows in torch.arange(len(self.keys)).tensor_split(count))

    def filled(self, size: int) -> Batch:
        """Fill the batch to `size` by repeating its samples, so that a step has one size on every rank."""
        return self if len(self.keys) == size else self._take(torch.arange(size) % len(self.keys))

    def _take(self, rows: Tensor) -> Batch:
        indices = rows.tolist()
        return replace(
            self._map(lambda tensor: tensor[rows.to(tensor.device)]),
            keys=[self.keys[index] for index in indices],
            color_ops=tuple(self.color_ops[index] for index in indices) if self.color_ops else (),
        )

    def record_stream(self, stream: torch.cuda.Stream) -> None:
        """Keep the allocator from reusing the memory while `stream` still works on it."""
        self._map(lambda tensor: tensor.record_stream(stream) or tensor)

    def _map(self, function: Any) -> Batch:
        embeddings = None if self.embeddings is None else function(self.embeddings)
        return replace(self, images=function(self.images), labels=function(self.labels), embeddings=embeddings)


def all_bad(bad: Sequence[tuple[str, str]]) -> ShardError:
    """Build the error for a batch of which no sample could be read."""
    return ShardError(f"All {len(bad)} samples of a batch are bad, first {bad[0][0]}: {bad[0][1]}. Check the shards.")


class ShardDataset(Dataset):
    """Map-style dataset: a list of (position, view index) in, a `Batch` out.

    Args:
        shards: the split that is read.
        views: the views that are rendered.
        stored: the teacher's embeddings of them; None for batches without.
        allow_empty: return a batch of no samples where none can be read, instead of raising ShardError.
        photometry: "worker" applies colour operations while reading; "device" leaves them to `Batch.to`.
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
        return {**self.__dict__, "_tars": {}}  # each worker indexes the tars that it reads

    def __getitem__(self, item: Item) -> Batch:
        return self.__getitems__([item])

    def __getitems__(self, items: Sequence[Item]) -> Batch:
        """Read and render a batch, without the samples that can't be read.

        Raises:
            ShardError: none of the samples can be read, unless `allow_empty`.
            CacheError: shards that were fetched can't be kept on this disk.
        """
        images: list[Tensor] = []
        good: list[tuple[_Sample, ColorOps, np.ndarray | None]] = []
        bad: list[tuple[str, str]] = []
        sample: _Sample | None = None
        for position, index in items:
            try:
                if sample is None or sample.position != position:  # consecutive views of a sample share its decoding
                    sample = None
                    sample = self._open(position)
                image, color_ops, embedding = self._render(sample, index)
            except CacheError:  # not the sample's fault: every other sample would fail as well
                raise
            except (OSError, ValueError) as error:
                bad.append((self._name(position), f"{type(error).__name__}: {error}"))
                continue
            images.append(image)
            good.append((sample, color_ops, embedding))
        if not good and not self.allow_empty:
            raise all_bad(bad)
        empty = torch.empty(0, 3, self.views.size, self.views.size, dtype=torch.uint8)
        return Batch(
            # In a worker, default_collate writes to shared memory, so that the batch is not copied once more
            images=default_collate(images) if images else empty,
            labels=torch.tensor([sample.label for sample, _, _ in good], dtype=torch.int64),
            keys=[sample.key for sample, _, _ in good],
            embeddings=self._embeddings([embedding for _, _, embedding in good]),
            bad=tuple(bad),
            color_ops=() if self.photometry == "worker" else tuple(ops for _, ops, _ in good),
        )

    def _open(self, position: int) -> _Sample:
        shard, index = self._locate(position)
        tar = self._tar(shard)
        if index >= len(tar.keys):
            raise ShardError(
                tar.damage or f"the tar holds {len(tar.keys)} samples, its index says {self.shards.lengths[shard]}"
            )
        key = tar.keys[index]
        fields = tar.samples[key]
        field = next((f for f in IMAGE_FIELDS if f in fields), None)
        if field is None:
            raise ShardError(f"no image among its fields ({', '.join(fields)})")
        label = int(tar.read(key, "cls")) if "cls" in fields else -1
        return _Sample(position, shard, key, EncodedImage(tar.read(key, field)), label)

    def _render(self, sample: _Sample, index: int) -> tuple[Tensor, ColorOps, np.ndarray | None]:
        embedding = None
        if self.stored is not None:
            embedding = self.stored.read(self.shards.filenames[sample.shard], sample.key, index)
        view = self.views.draw(sample.key, index, height=sample.image.height, width=sample.image.width)
        image = self.views.crop_and_resize(sample.image, view)
        if self.photometry == "worker":
            image = apply_color(image[None], [view.color_ops])[0]
        return planar(image), view.color_ops, embedding

    def _embeddings(self, rows: Sequence[Any]) -> Tensor | None:
        if self.stored is None:
            return None
        return torch.from_numpy(np.stack(rows)) if rows else torch.empty(0, self.stored.embed_dim, dtype=torch.float16)

    def _locate(self, position: int) -> tuple[int, int]:
        """Find the shard of a sample, and its index in it."""
        shard = int(np.searchsorted(self._starts, position, side="right")) - 1
        return shard, position - int(self._starts[shard])

    def _name(self, position: int) -> str:
        """Name a sample that may be unreadable: by its key if that is known, else by its index."""
        shard, index = self._locate(position)
        keys = self._tars[shard].keys if shard in self._tars else ()
        return f"{self.shards.filenames[shard]}/{keys[index] if index < len(keys) else f'sample {index}'}"

    def _tar(self, shard: int) -> IndexedTar:
        if shard not in self._tars:
            self._tars[shard] = IndexedTar(self.shards.path(shard))
        return self._tars[shard]


@dataclass(frozen=True)
class _Sample:
    """One sample, opened. Its image is decoded when a view needs it, and kept for the next view."""

    position: int
    shard: int
    key: str
    image: EncodedImage
    label: int


class BadSamples:
    """Count and name the samples that could not be read; fail when there are too many.

    Args:
        allowed: share of the split, 0 to 1.
        size: samples in the split.
    """

    def __init__(self, allowed: float, *, size: int) -> None:
        self.limit = int(allowed * size)
        self.allowed, self.size = allowed, size
        self.reasons: dict[str, str] = {}

    def add(self, bad: Sequence[tuple[str, str]]) -> list[str]:
        """Record (key, reason) pairs; return a line for each new key. Raises: ShardError above the limit."""
        new = {key: reason for key, reason in bad if key not in self.reasons}  # a sample fails once for each view
        self.reasons.update(new)
        if len(self.reasons) > self.limit:
            first = "; ".join(f"{key}: {reason}" for key, reason in list(self.reasons.items())[:3])
            raise ShardError(
                f"{len(self.reasons)} of {self.size} samples can't be read; data.max_bad = {self.allowed:g} allows "
                f"{self.limit}. First: {first}. Repair the shards, or raise data.max_bad."
            )
        return [f"skipped {key}: {reason}" for key, reason in new.items()]
