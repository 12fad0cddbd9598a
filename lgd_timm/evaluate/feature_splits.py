"""What several evaluations of one model share: its data, and its features of both splits, extracted when first asked for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

from ..data import open_shards
from ..data.dataset import ShardDataset
from ..errors import LGDError
from ..utils.device import pick_device
from .features import Features, extract, stored_features
from .models import Model


@dataclass
class FeatureSplits:
    """A model and shards. `datasets` may give a split's images ready-made, say those of `shards.memory.in_memory`."""

    model: Model
    data: str | Path
    train_split: str = "train"
    test_split: str = "val"
    datasets: Mapping[str, ShardDataset] = field(default_factory=dict)
    batch_size: int = 256
    workers: int = 0
    device: str = "auto"
    max_bad: float = 0.001
    cache: bool = True

    @cached_property
    def place(self) -> str:
        return pick_device(self.device)

    def dataset(self, split: str) -> ShardDataset:
        """A split as the model is to see it. Raises: LGDError for a ready-made one of other views; ShardError."""
        given, views = self.datasets.get(split), self.model.views
        if given is None:
            return ShardDataset(open_shards(self.data, split=split), views=views, allow_empty=True)
        if replace(given.views, seed=0, count=1) != replace(views, seed=0, count=1):
            raise LGDError(
                f"The dataset of {split!r} shows {given.views}, {self.model.name} is to see {views}. Give it those views."
            )
        return given

    @cached_property
    def train(self) -> Features:
        """Of the training split. Raises: as `dataset` and `extract`."""
        return self._extracted(self.train_split)

    @cached_property
    def test(self) -> Features:
        """Of the split that is scored."""
        return self._extracted(self.test_split)

    def _extracted(self, split: str) -> Features:
        return extract(
            self.model.network,
            self.dataset(split),
            batch_size=self.batch_size,
            workers=self.workers,
            device=self.place,
            max_bad=self.max_bad,
            cache=self.cache,
        )

    def teacher(self, features: Features, split: str, *, fingerprint: str | None) -> Features | None:
        """The stored embeddings of the same images by the teacher of that fingerprint. None where there are none."""
        return stored_features(features, self.dataset(split), teacher=fingerprint)

    def teachers(self, fingerprint: str | None) -> tuple[Features | None, Features | None]:
        """The same of the training split and of the one that is scored."""
        return (
            self.teacher(self.train, self.train_split, fingerprint=fingerprint),
            self.teacher(self.test, self.test_split, fingerprint=fingerprint),
        )
