"""mIoU and accuracies against matrices that were worked out by hand, and over ranks."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import pytest
import torch
from torch import Tensor
from torchmetrics.functional.classification import multiclass_jaccard_index

from lgd_timm.errors import LGDError
from lgd_timm.transfer.segment.folders import open_split
from lgd_timm.transfer.segment.metrics import evaluate, new_metric, scores_of
from lgd_timm.transfer.segment.recipe import SegmentData
from lgd_timm.utils.distributed import Ranks
from tests.helpers.segment_data import NAMES, make_folder

T = TypeVar("T")


def scored(predicted: list[int], labelled: list[int], *, classes: int) -> Any:
    metric = new_metric(classes)
    metric.update(torch.tensor([predicted]), torch.tensor([labelled]))
    return scores_of(metric, classes=[f"class {n}" for n in range(classes)])


def test_scores_by_hand() -> None:
    """Class 0: 2 right, 1 taken for 1. Class 1: 1 right, 1 taken for 0. Class 2: 1 right."""
    found = scored([0, 0, 1, 1, 0, 2], [0, 0, 0, 1, 1, 2], classes=3)
    assert found.iou == {"class 0": 50.0, "class 1": 33.333, "class 2": 100.0}
    assert found.mean["mIoU"] == pytest.approx(100 * (2 / 4 + 1 / 3 + 1) / 3)
    assert found.mean["pixel_accuracy"] == pytest.approx(100 * 4 / 6)
    assert found.mean["mean_accuracy"] == pytest.approx(100 * (2 / 3 + 1 / 2 + 1) / 3)
    assert next(iter(found.mean)) == "mIoU"  # which says what checkpoint is best


def test_a_class_that_never_occurs_is_left_out_and_one_that_is_only_predicted_counts() -> None:
    """Class 2 is predicted once and never labelled: IoU 0, and no accuracy. Class 3 occurs nowhere."""
    found = scored([0, 0, 1, 2], [0, 0, 1, 1], classes=4)
    assert found.iou == {"class 0": 100.0, "class 1": 50.0, "class 2": 0.0, "class 3": None}
    assert found.mean["mIoU"] == pytest.approx((100 + 50 + 0) / 3)
    assert found.mean["mean_accuracy"] == pytest.approx((100 + 50) / 2)
    assert found.mean["pixel_accuracy"] == pytest.approx(75)


def test_ignored_pixels_count_for_nothing() -> None:
    with_them = scored([0, 0, 1, 2, 2], [0, 0, 1, 255, 255], classes=3)
    assert with_them == scored([0, 0, 1], [0, 0, 1], classes=3)
    assert with_them.iou["class 2"] is None
    assert with_them.mean == {"mIoU": 100.0, "pixel_accuracy": 100.0, "mean_accuracy": 100.0}


def test_the_mean_is_torchmetrics_macro_average() -> None:
    draw = torch.Generator().manual_seed(0)
    predicted, labelled = (torch.randint(0, 7, (1, 500), generator=draw) for _ in range(2))
    metric = new_metric(9)
    metric.update(predicted, labelled)
    theirs = multiclass_jaccard_index(predicted, labelled, num_classes=9, average="macro")
    assert scores_of(metric, classes=[str(n) for n in range(9)]).mean["mIoU"] == pytest.approx(100 * float(theirs))


class Guess:
    """Sees classes by brightness, and so is right here and there."""

    def predict(self, image: Tensor, *, short_side: int | None) -> Tensor:
        assert short_side == 40
        return (image.float().mean(0) / 50).long().clamp(max=2)


class Part(Ranks):
    """A rank whose fellows' counts are known already, as `gather` would bring them."""

    others: Mapping[int, Any]

    def gather(self, mine: Mapping[int, T]) -> dict[int, T]:
        return dict(sorted({**self.others, **mine}.items()))


class Alone(Ranks):
    """A rank that keeps what it counted."""

    def gather(self, mine: Mapping[int, T]) -> dict[int, T]:
        Part.others = {**Part.others, **mine}
        return dict(mine)


def test_ranks_see_each_picture_once_and_agree(tmp_path: Path) -> None:
    split = open_split(SegmentData(str(make_folder(tmp_path, count=5))), "all")
    model: Any = Guess()
    options: dict[str, Any] = {"short_side": 40, "workers": 0, "device": torch.device("cpu")}
    whole = evaluate(model, split, ranks=Ranks(), **options)
    assert 0 < whole.mean["mIoU"] < 100
    Part.others = {}
    parts = [evaluate(model, split, ranks=Alone(rank, 2), **options) for rank in range(2)]
    assert all(part.mean != whole.mean for part in parts)
    assert sum(int(confusion.sum()) for confusion in Part.others.values()) == 5 * 48 * 64
    assert [evaluate(model, split, ranks=Part(rank, 2), **options) for rank in range(2)] == [whole, whole]


def test_pictures_without_any_label_can_not_be_scored(tmp_path: Path) -> None:
    root = make_folder(tmp_path, count=2)
    split = open_split(SegmentData(str(root)), "all")
    split.numbers[: len(NAMES)] = 255
    with pytest.raises(LGDError, match=r"No pixel .* has a label\. Set data\.val_split"):
        evaluate(Guess(), split, short_side=40, workers=0, device=torch.device("cpu"), ranks=Ranks())  # type: ignore[arg-type]
