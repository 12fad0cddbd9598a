"""The images of a split through a student, once; the teacher's stored embeddings of them come along."""

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
from ..zero_shot_model import ZeroShotModel, bank_folders, check_asked, open_zero_shot_model


@dataclass(frozen=True)
class Encoded:
    """What a student says of N images. Embeddings are float32 unit rows, on the CPU.

    `labels` is None, and `unlabelled` says why, where the images have none, or others than there are names; so are `teacher` and
    `untaught`.
    """

    names: tuple[str, ...]
    bank: Tensor  # [C, D], the names' texts
    temperature: float  # of the student's similarities
    student: Tensor  # [N, D]
    teacher: Tensor | None  # [N, D]
    untaught: str
    labels: Tensor | None  # int64 [N]
    unlabelled: str
    bad: int  # images that could not be read
    dataset: ShardDataset
    positions: tuple[int, ...]  # of each image, in the dataset

    @property
    def similarities(self) -> Tensor:
        """Cosines of images and names, [N, C]."""
        return self.student @ self.bank.T

    @property
    def answers(self) -> Tensor:
        """The student's name for each image, int64 [N]."""
        return self.similarities.argmax(1)

    @property
    def teachers_answers(self) -> Tensor | None:
        return None if self.teacher is None else (self.teacher @ self.bank.T).argmax(1)

    def image(self, index: int) -> Tensor:
        """What the student saw of image `index`: uint8 [3, S, S]."""
        return self.dataset[self.positions[index], 0].images[0]


def encode(folder: Path, *, data: str | Path, split: str, max_bad: float = 0.001) -> Encoded:
    """Encode a split with the student of a published folder. Raises: LGDError when student, images or names can't be used."""
    subject = open_zero_shot_model(str(folder), None, folders=bank_folders(data))
    dataset = ShardDataset(open_shards(data, split=split), views=subject.views, allow_empty=True)
    assert isinstance(subject.encoder, Student)
    features = extract(subject.encoder, dataset, device=pick_device(), max_bad=max_bad)
    assert features.embeddings is not None
    unlabelled = _label_fault(features, subject, dataset, folder)
    teacher, untaught = _taught(features, subject, dataset)
    place = _places(dataset.shards)
    return Encoded(
        names=subject.vocabulary.names,
        bank=subject.bank.float().cpu(),
        temperature=subject.student_temperature or 1.0,
        student=normalize(features.embeddings, dim=1),
        teacher=teacher,
        untaught=untaught,
        labels=None if unlabelled else features.labels,
        unlabelled=unlabelled,
        bad=len(features.bad),
        dataset=dataset,
        positions=tuple(place[key] for key in features.keys),
    )


def _places(shards: ShardSet) -> dict[str, int]:
    """Key of a sample -> its position in the split."""
    starts = [0, *accumulate(shards.lengths)]
    tars = [IndexedTar(shards.path(shard)) for shard in range(len(shards.filenames))]
    return {key: start + i for start, tar in zip(starts, tars, strict=False) for i, key in enumerate(tar.keys)}


def _label_fault(features: Features, subject: ZeroShotModel, dataset: ShardDataset, folder: Path) -> str:
    """Why the labels can't be used; empty if they can."""
    try:
        check_asked(dataset, subject, model=str(folder))
        check_labels(Batch(torch.empty(0), features.labels, list(features.keys)), subject.vocabulary.names, dataset)
    except LGDError as error:
        return str(error)
    return ""


def _taught(features: Features, subject: ZeroShotModel, dataset: ShardDataset) -> tuple[Tensor | None, str]:
    """The teacher's embeddings of the same images, or why there are none."""
    try:
        stored = stored_features(features, dataset, teacher=subject.teacher_fingerprint)
    except (LGDError, OSError) as error:
        return None, str(error)
    if stored is None:
        return (
            None,
            f"its teacher has stored no embeddings of {dataset.shards.root} ({dataset.shards.split}): lgd-timm teach does it.",
        )
    return normalize(stored.features, dim=1), ""
