"""Encode the images of a split with a student; read the teacher's stored embeddings of them."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.functional import normalize

from ...data import open_shards
from ...data.dataset import Batch, ShardDataset
from ...data.index import ShardSet
from ...data.tar import IndexedTar
from ...errors import LGDError
from ...students.model import Student
from ...utils.device import pick_device
from ..features import Features, extract, stored_features
from ..zero_shot import check_labels
from ..zero_shot_model import ZeroShotModel, bank_folders, match_model, open_zero_shot_model


@dataclass(frozen=True)
class Encoded:
    """A student's embeddings of N images, and its teacher's. Embeddings are float32 of length 1, on the CPU.

    Attributes:
        names: C names that it classifies by.
        bank: the names' text embeddings [C, D].
        temperature: of the student's similarities.
        student: embeddings [N, D].
        teacher: embeddings [N, D]; None where none are stored.
        teacher_fault: why `teacher` is None; else empty.
        labels: int64 [N]; None where images have none, or classes do not fit the names.
        label_fault: why `labels` is None; else empty.
        bad: images that could not be read.
        dataset: that the images are of.
        positions: of each image in the dataset.
    """

    names: tuple[str, ...]
    bank: Tensor
    temperature: float
    student: Tensor
    teacher: Tensor | None
    teacher_fault: str
    labels: Tensor | None
    label_fault: str
    bad: int
    dataset: ShardDataset
    positions: tuple[int, ...]

    @property
    def similarities(self) -> Tensor:
        """Cosines of images and names, [N, C]."""
        return self.student @ self.bank.T

    @property
    def answers(self) -> Tensor:
        """The student's name for each image, int64 [N]."""
        return self.similarities.argmax(1)

    @property
    def teacher_answers(self) -> Tensor | None:
        """The teacher's name for each image, int64 [N]."""
        return None if self.teacher is None else (self.teacher @ self.bank.T).argmax(1)

    def image(self, index: int) -> Tensor:
        """Load image `index` as the student saw it: uint8 [3, S, S]."""
        return self.dataset[self.positions[index], 0].images[0]


def encode(folder: Path, *, data: str | Path, split: str, max_bad: float = 0.001) -> Encoded:
    """Encode a split with the student of a published folder.

    Args:
        folder: the published folder.
        data: shard folder, or address of one.
        split: which split of it.
        max_bad: share of the images that may be unreadable.

    Returns:
        Embeddings and labels of the images.

    Raises:
        LGDError: student, images or names can't be used.
    """
    model = open_zero_shot_model(str(folder), None, folders=bank_folders(data))
    dataset = ShardDataset(open_shards(data, split=split), views=model.views, allow_empty=True)
    assert isinstance(model.encoder, Student)
    features = extract(model.encoder, dataset, device=pick_device(), max_bad=max_bad)
    assert features.embeddings is not None
    model, label_fault = _labelled(features, model, dataset, folder)
    teacher, teacher_fault = _teacher_embeddings(features, model, dataset)
    position = _positions(dataset.shards)
    return Encoded(
        names=model.vocabulary.names,
        bank=model.bank.float().cpu(),
        temperature=model.student_temperature or 1.0,
        student=normalize(features.embeddings, dim=1),
        teacher=teacher,
        teacher_fault=teacher_fault,
        labels=None if label_fault else features.labels,
        label_fault=label_fault,
        bad=len(features.bad),
        dataset=dataset,
        positions=tuple(position[key] for key in features.keys),
    )


def _positions(shards: ShardSet) -> dict[str, int]:
    """Map the key of each sample to its position in the split."""
    starts = [0, *accumulate(shards.lengths)]
    tars = [IndexedTar(shards.path(shard)) for shard in range(len(shards.filenames))]
    return {key: start + i for start, tar in zip(starts, tars, strict=False) for i, key in enumerate(tar.keys)}


def _labelled(
    features: Features, model: ZeroShotModel, dataset: ShardDataset, folder: Path
) -> tuple[ZeroShotModel, str]:
    """Give the model its names in the order of the labels, and say why these can't be used; empty if they can."""
    try:
        model = match_model(dataset.shards, model, name=str(folder))
        check_labels(Batch(torch.empty(0), features.labels, list(features.keys)), model.vocabulary.names, dataset)
    except LGDError as error:
        return model, str(error)
    return model, ""


def _teacher_embeddings(features: Features, model: ZeroShotModel, dataset: ShardDataset) -> tuple[Tensor | None, str]:
    """Read the teacher's embeddings of the same images, or say why there are none."""
    try:
        stored = stored_features(features, dataset, teacher=model.teacher_fingerprint)
    except (LGDError, OSError) as error:
        return None, str(error)
    if stored is None:
        images = f"{dataset.shards.root} ({dataset.shards.split})"
        return None, f"its teacher has stored no embeddings of {images}: lgd-timm teach does it."
    return normalize(stored.features, dim=1), ""
