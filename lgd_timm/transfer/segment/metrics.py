"""Measure mIoU and accuracies, from one confusion matrix of all images, as Cityscapes and ADE20K define them.

A class that occurs neither in labels nor in predictions has no IoU and is left out of the mean; one that is only
predicted has 0. The mean accuracy is over the classes that occur in the labels.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch

from ...data.loader import WorkerDataLoader
from ...errors import LGDError, require
from ...utils.distributed import Ranks
from .dataset import WholePictures
from .folders import IGNORED, Split
from .model import Segmenter


class Scores(NamedTuple):
    """Scores in percent: means by name, and the IoU of each class, None where it has none."""

    mean: Mapping[str, float]
    iou: Mapping[str, float | None]


def evaluate(
    model: Segmenter, split: Split, *, short_side: int | None, workers: int, device: torch.device, ranks: Ranks
) -> Scores:
    """Evaluate each image once, shared out over the ranks, which all get the result.

    Raises:
        LGDError: no pixel has a label.
    """
    mine = ranks.share(range(len(split.pairs)))
    pictures: WorkerDataLoader[Any] = WorkerDataLoader(
        WholePictures(split),
        batch_size=None,
        sampler=mine,
        num_workers=workers,
    )
    metric = new_metric(len(split.classes)).to(device)
    for image, label, _ in pictures:
        metric.update(model.predict(image.to(device), short_side=short_side), label.to(device).long())
    confusions = ranks.gather({ranks.rank: metric.confmat.cpu()})
    metric.confmat = torch.stack(list(confusions.values())).sum(0).to(device)
    if not metric.confmat.sum():
        raise LGDError(
            "No pixel of the pictures that are evaluated has a label. "
            "Set data.val_split to a split that has some, or to null."
        )
    return scores_of(metric, classes=split.classes)


def new_metric(classes: int) -> Any:
    """Build torchmetrics' IoU of each class, NaN for one that does not occur. `confmat` is [labelled, predicted]."""
    metrics = require("torchmetrics.classification", extra="segment")
    return metrics.MulticlassJaccardIndex(
        classes,
        average="none",
        ignore_index=IGNORED,
        zero_division=math.nan,
        validate_args=False,
        sync_on_compute=False,
    )


def scores_of(metric: Any, *, classes: Sequence[str]) -> Scores:
    """Compute the scores of what was counted."""
    iou, right, labelled = 100 * metric.compute(), metric.confmat.diag(), metric.confmat.sum(1)
    mean = {
        "mIoU": float(iou.nanmean()),
        "pixel_accuracy": float(100 * right.sum() / labelled.sum()),
        "mean_accuracy": float((100 * right / labelled).nanmean()),
    }
    return Scores(
        mean,
        {name: None if value.isnan() else round(float(value), 3) for name, value in zip(classes, iou, strict=True)},
    )
