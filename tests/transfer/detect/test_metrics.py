"""AP: 100 for what is right, less for what is shifted, missed or invented, and by LVIS's rules where it has some."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor, nn

from lgd_timm.transfer.detect.annotations import Annotations, read_annotations
from lgd_timm.transfer.detect.dataset import DetectionBatch
from lgd_timm.transfer.detect.metrics import average_precision, detections, evaluate
from lgd_timm.utils.distributed import Ranks
from tests.helpers.detect_data import IDS, Dict, write, write_coco, write_lvis

COCO = ["box_ap", "box_ap50", "box_ap75", "mask_ap", "mask_ap50", "mask_ap75"]
LVIS = [f"{sort}_ap{what}" for sort in ("box", "mask") for what in ("", "50", "75", "r", "c", "f")]


@pytest.fixture(params=["coco", "lvis"])
def annotations(request: pytest.FixtureRequest, tmp_path: Path) -> Annotations:
    return made(tmp_path, request.param)


def made(folder: Path, format: str, content: Dict | None = None) -> Annotations:
    file, pictures = ("instances.json", folder / "images") if format == "coco" else ("lvis.json", folder)
    if content is None:
        (write_coco if format == "coco" else write_lvis)(folder)
    else:
        write(folder / file, content)
    return read_annotations(folder / file, folder=pictures, format=format, masks=True)


def seen(annotations: Annotations, index: int, *, shift: int = 0) -> dict[str, Tensor]:
    """What a detector would give that is right, but for a shift to the right, in pixels."""
    objects = annotations.objects[index]
    boxes = torch.tensor([entry["bbox"] for entry in objects])
    boxes[:, 2:] += boxes[:, :2]
    masks = torch.stack([torch.from_numpy(annotations.mask(entry, index)) for entry in objects])
    return {
        "boxes": boxes + torch.tensor([shift, 0, shift, 0]),
        "labels": torch.tensor([annotations.labels[entry["category_id"]] for entry in objects]),
        "scores": torch.linspace(0.9, 0.6, len(objects)),
        "masks": masks.roll(shift, -1)[:, None].float(),
    }


def entries(annotations: Annotations, index: int, **options: Any) -> list[Dict]:
    found = seen(annotations, index, **options)
    return detections(found, image_id=annotations.images[index]["id"], categories=annotations.categories)


def results(annotations: Annotations, **options: Any) -> list[Dict]:
    return [entry for index in range(len(annotations.images)) for entry in entries(annotations, index, **options)]


def test_what_is_right_scores_100(annotations: Annotations, capsys: pytest.CaptureFixture[str]) -> None:
    scores = average_precision(annotations, results(annotations), masks=True)
    assert list(scores) == (COCO if annotations.format == "coco" else LVIS)
    assert scores == pytest.approx(dict.fromkeys(scores, 100.0))
    assert capsys.readouterr().out == ""


def test_what_is_shifted_scores_less(annotations: Annotations) -> None:
    """By 4 pixels of 16 to 39: overlaps are between 0.6 and 0.81, so each counts at 0.5, and none at 0.85."""
    scores = average_precision(annotations, results(annotations, shift=4), masks=True)
    for sort in ("box", "mask"):
        assert scores[f"{sort}_ap50"] == pytest.approx(100)
        assert 20 < scores[f"{sort}_ap"] < 70
    far = average_precision(annotations, results(annotations, shift=30), masks=True)
    assert far["box_ap50"] < 5


def test_what_is_missed_or_invented_costs(annotations: Annotations) -> None:
    right = results(annotations)
    missed = average_precision(annotations, right[1:], masks=True)
    assert missed["box_ap"] < 100
    assert missed["mask_ap"] < 100
    invented = [{**copy.deepcopy(entry), "bbox": [0, 0, 5, 5], "score": 0.99} for entry in right[:1]]
    assert average_precision(annotations, right + invented, masks=False)["box_ap"] < 100


def test_nothing_found_scores_0(annotations: Annotations) -> None:
    scores = average_precision(annotations, [], masks=True)
    assert scores == dict.fromkeys(scores, 0.0)


def test_boxes_alone(annotations: Annotations) -> None:
    found = [{key: value for key, value in entry.items() if key != "segmentation"} for entry in results(annotations)]
    scores = average_precision(annotations, found, masks=False)
    assert all(name.startswith("box_") and value == pytest.approx(100) for name, value in scores.items())


def test_an_evaluation_changes_nothing(annotations: Annotations) -> None:
    found = results(annotations)
    before = copy.deepcopy((annotations.images, annotations.objects, found))
    average_precision(annotations, found, masks=True)
    assert (annotations.images, annotations.objects, found) == before


def test_crowds_of_coco_are_neither_missed_nor_wrong(tmp_path: Path) -> None:
    coco = write_coco(tmp_path)
    coco["annotations"][0]["iscrowd"] = 1
    annotations = made(tmp_path, "coco", coco)
    right = results(annotations)
    assert average_precision(annotations, right, masks=False)["box_ap"] == pytest.approx(100)
    assert average_precision(annotations, right[1:], masks=False)["box_ap"] == pytest.approx(100)


def invented(annotations: Annotations, index: int, category: int) -> Dict:
    return {"image_id": annotations.images[index]["id"], "category_id": category, "bbox": [0, 0, 5, 5], "score": 0.99}


def test_lvis_blames_only_for_what_is_known_to_be_absent(tmp_path: Path) -> None:
    """A class that is neither in a picture nor known to be absent from it may be there, and so may more of one that was
    not finished.
    """
    lvis = write_lvis(tmp_path)
    image = next(image for image in lvis["images"] if image["neg_category_ids"])
    index, absent = lvis["images"].index(image), image["neg_category_ids"][0]
    strict = made(tmp_path, "lvis", lvis)
    right = results(strict)
    assert average_precision(strict, [*right, invented(strict, index, absent)], masks=False)["box_ap"] < 99
    image["neg_category_ids"] = []
    lenient = made(tmp_path, "lvis", lvis)
    assert average_precision(lenient, [*right, invented(lenient, index, absent)], masks=False)[
        "box_ap"
    ] == pytest.approx(100)

    held = lenient.objects[index][0]["category_id"]
    assert average_precision(lenient, [*right, invented(lenient, index, held)], masks=False)["box_ap"] < 99
    image["not_exhaustive_category_ids"] = [held]
    unfinished = made(tmp_path, "lvis", lvis)
    assert average_precision(unfinished, [*right, invented(unfinished, index, held)], masks=False)[
        "box_ap"
    ] == pytest.approx(100)


def test_lvis_scores_by_frequency(tmp_path: Path) -> None:
    """red is rare, green common, blue frequent (detect_data): what misses all of red has APr 0 and the others whole."""
    annotations = made(tmp_path, "lvis")
    found = [entry for entry in results(annotations) if entry["category_id"] != IDS["red"]]
    scores = average_precision(annotations, found, masks=False)
    assert [scores[f"box_ap{sort}"] for sort in "rcf"] == pytest.approx([0, 100, 100])
    assert scores["box_ap"] == pytest.approx(200 / 3)


class Knowing(nn.Module):
    """A detector that was told what is in each picture, by name."""

    def __init__(self, annotations: Annotations, *, shift: int) -> None:
        super().__init__()
        self.told = {
            annotations.file(index).name: seen(annotations, index, shift=shift)
            for index in range(len(annotations.images))
        }

    def forward(self, batch: DetectionBatch) -> list[dict[str, Tensor]]:
        assert all(image.dtype == torch.float32 for image in batch.images)
        return [self.told[key] for key in batch.keys]


class OneOfTwo(Ranks):
    """Two ranks, one after the other: what one sends, the other finds."""

    sent: ClassVar[list[dict[int, Any]]] = []

    def gather(self, mine: Any) -> dict[int, Any]:
        self.sent.append(dict(mine))
        everyone: dict[int, Any] = {}
        for part in self.sent:
            everyone |= part
        return dict(sorted(everyone.items()))


def test_two_ranks_score_as_one(annotations: Annotations) -> None:
    model = Knowing(annotations, shift=3)

    def scores(ranks: Ranks) -> dict[str, float]:
        return evaluate(model, annotations, masks=True, device=torch.device("cpu"), ranks=ranks, workers=0)

    alone = scores(Ranks())
    assert alone["box_ap"] < 100
    second, first = OneOfTwo(1, 2), OneOfTwo(0, 2)
    OneOfTwo.sent.clear()
    shares: list[Sequence[int]] = [ranks.share(range(len(annotations.images))) for ranks in (first, second)]
    assert sorted([*shares[0], *shares[1]]) == list(range(6))
    for index in second.share(range(6)):  # what the second rank would send
        OneOfTwo.sent.append({index: entries(annotations, index, shift=3)})
    assert scores(first) == alone


def test_the_lowest_scores_are_kept_as_entries(annotations: Annotations) -> None:
    (entry, *_) = entries(annotations, 0)
    object_ = annotations.objects[0][0]
    assert entry["bbox"] == pytest.approx(object_["bbox"])
    assert entry["category_id"] == object_["category_id"]
    assert entry["segmentation"]["size"] == [64, 96]
    assert isinstance(entry["segmentation"]["counts"], str)
    assert (
        detections(
            {
                "boxes": torch.zeros(0, 4),
                "labels": torch.zeros(0),
                "scores": torch.zeros(0),
                "masks": torch.zeros(0, 1, 4, 4),
            },
            image_id=1,
            categories=(),
        )
        == []
    )
