"""Share one model's features of a train and a test split between evaluations: each split is extracted once."""

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
    """A model and the splits on which it is evaluated.

    Attributes:
        model: what is evaluated.
        data: shard folder, or address of one.
        train_split: labelled images to learn from.
        test_split: images that are scored.
        datasets: of splits that are open already, such as those of `data.in_memory`, by their names.
        batch_size: images a step.
        workers: processes that load images; 0: this one.
        device: "auto", or a device of torch.
        max_bad: share of the images that may be unreadable.
        cache: read and write the feature cache.
    """

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
    def resolved_device(self) -> str:
        """The device of torch that `device` means."""
        return pick_device(self.device)

    def dataset(self, split: str) -> ShardDataset:
        """Open a split with the model's views.

        Args:
            split: its name.

        Returns:
            One of `datasets`, or a new dataset.

        Raises:
            LGDError: one of `datasets` has other views.
            ShardError: the shards can't be used.
        """
        given, views = self.datasets.get(split), self.model.views
        if given is None:
            return ShardDataset(open_shards(self.data, split=split), views=views, allow_empty=True)
        if replace(given.views, seed=0, count=1) != replace(views, seed=0, count=1):
            raise LGDError(
                f"The dataset of {split!r} shows {given.views}, {self.model.name} is to see {views}. Give it those "
                "views."
            )
        return given

    @cached_property
    def train(self) -> Features:
        """Features of the training split. Raises: as `dataset` and `extract`."""
        return self._extracted(self.train_split)

    @cached_property
    def test(self) -> Features:
        """Features of the split that is scored. Raises: as `dataset` and `extract`."""
        return self._extracted(self.test_split)

    def _extracted(self, split: str) -> Features:
        return extract(
            self.model.network,
            self.dataset(split),
            batch_size=self.batch_size,
            workers=self.workers,
            device=self.resolved_device,
            max_bad=self.max_bad,
            cache=self.cache,
        )

    def teacher(self, features: Features, split: str, *, fingerprint: str | None) -> Features | None:
        """Read a teacher's stored embeddings of the images of a split (see `stored_features`)."""
        return stored_features(features, self.dataset(split), teacher=fingerprint)

    def teachers(self, fingerprint: str | None) -> tuple[Features | None, Features | None]:
        """Read a teacher's stored embeddings of both splits: of the training split, and of the one that is scored."""
        return (
            self.teacher(self.train, self.train_split, fingerprint=fingerprint),
            self.teacher(self.test, self.test_split, fingerprint=fingerprint),
        )
