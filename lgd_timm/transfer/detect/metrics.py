"""Measure the average precision of boxes and masks, in percent, as COCO and LVIS define it.

pycocotools measure it for COCO. LVIS's own package fails with numpy 2 (0.5.3 uses np.float), so faster-coco-eval
measures it for LVIS; with np.float put back, both agree to 1e-15 on random boxes and masks.
"""

from __future__ import annotations

import contextlib
import io
import logging
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torchvision.ops import box_convert

from ...data.loader import WorkerDataLoader
from ...errors import require
from ...utils.distributed import Ranks
from .annotations import Annotations, Entry
from .dataset import DetectionBatch, DetectionSample, read_picture
from .recipe import LVIS_DETECTIONS

log = logging.getLogger(__name__)

COUNTED = {"coco": 100, "lvis": LVIS_DETECTIONS}  # detections a picture
KINDS = {"bbox": "box", "segm": "mask"}
FREQUENCIES = ("r", "c", "f")  # of LVIS: classes in up to 10, up to 100 and more pictures


def evaluate(
    model: nn.Module, annotations: Annotations, *, masks: bool, device: torch.device, ranks: Ranks, workers: int
) -> dict[str, float]:
    """Measure the AP of a detector in eval mode. Ranks share the images out, and all get the result."""
    mine = ranks.share(range(len(annotations.images)))
    pictures: Any = _Plain(annotations)
    loader: WorkerDataLoader[Any] = WorkerDataLoader(pictures, batch_size=None, sampler=mine, num_workers=workers)
    found: dict[int, list[Entry]] = {}
    for index, sample in loader:
        (seen,) = model(DetectionBatch.of([sample]).to(device))
        found[index] = detections(seen, image_id=annotations.images[index]["id"], categories=annotations.categories)
    results = [entry for part in ranks.gather(found).values() for entry in part]
    scores = average_precision(annotations, results, masks=masks) if ranks.first else {}
    return ranks.gather({0: scores} if ranks.first else {})[0]


class _Plain:
    """Images without their objects, by index."""

    def __init__(self, annotations: Annotations) -> None:
        self._annotations = annotations

    def __len__(self) -> int:
        return len(self._annotations.images)

    def __getitem__(self, index: int) -> tuple[int, DetectionSample]:
        return index, DetectionSample(self._annotations.file(index).name, read_picture(self._annotations, index), {})


def detections(seen: Mapping[str, Tensor], *, image_id: int, categories: Sequence[Entry]) -> list[Entry]:
    """Convert a detector's output for one image to entries of COCO's results format."""
    boxes = box_convert(seen["boxes"], "xyxy", "xywh").tolist()
    labels, scores = seen["labels"].tolist(), seen["scores"].tolist()
    entries: list[Entry] = [
        {"image_id": image_id, "category_id": categories[label]["id"], "bbox": box, "score": score}
        for box, label, score in zip(boxes, labels, scores, strict=True)
    ]
    if "masks" in seen and entries:
        pixels = (seen["masks"][:, 0] > 0.5).permute(1, 2, 0).cpu().numpy().astype(np.uint8)
        encoded = require("pycocotools.mask", extra="detect").encode(np.asfortranarray(pixels))
        for entry, mask in zip(entries, encoded, strict=True):
            entry["segmentation"] = {"size": mask["size"], "counts": mask["counts"].decode()}
    return entries


def average_precision(annotations: Annotations, results: Sequence[Entry], *, masks: bool) -> dict[str, float]:
    """Compute AP in percent, by name.

    Returns:
        `box_ap`, `box_ap50`, `box_ap75`, for LVIS also `box_apr`, `box_apc`, `box_apf`; with `masks` the same as
        `mask_*`.
    """
    scores: dict[str, float] = {}
    for iou, name in KINDS.items():
        if iou == "bbox" or masks:
            precision = _precision(annotations, results, iou)
            scores |= {
                f"{name}_ap": _mean(precision),
                f"{name}_ap50": _mean(precision[0]),
                f"{name}_ap75": _mean(precision[5]),
            }
            if annotations.format == "lvis":
                frequency = np.array([category["frequency"] for category in annotations.categories])
                scores |= {f"{name}_ap{sort}": _mean(precision[:, :, frequency == sort]) for sort in FREQUENCIES}
    return scores


def _mean(precision: np.ndarray) -> float:
    """Return the mean in percent of what is defined: a class without objects has no precision."""
    defined = precision[precision > -1]
    return 100 * float(defined.mean()) if defined.size else 0.0


def _precision(annotations: Annotations, results: Sequence[Entry], iou: str) -> np.ndarray:
    """Compute precision [overlaps from 0.5 to 0.95, recalls, categories], -1 where it is not defined."""
    options: dict[str, Any] = {}
    if annotations.format == "lvis":
        library = require("faster_coco_eval", extra="detect")
        kind, evaluator = library.COCO, library.COCOeval_faster
        options = {"lvis_style": True, "separate_eval": True, "print_function": log.debug}
    else:
        kind = require("pycocotools.coco", extra="detect").COCO
        evaluator = require("pycocotools.cocoeval", extra="detect").COCOeval
    truth = kind()
    truth.dataset = _truth(annotations)
    with contextlib.redirect_stdout(io.StringIO()):  # where it tells of its progress
        truth.createIndex()
        found = truth.loadRes([dict(entry) for entry in results]) if results else kind()
        counted = evaluator(truth, found, iou, **options)
        counted.params.maxDets = [COUNTED[annotations.format]]
        counted.evaluate()
        counted.accumulate()
    precision: np.ndarray = counted.eval["precision"][:, :, :, 0, 0]  # of objects of all sizes
    return precision


def _truth(annotations: Annotations) -> dict[str, Any]:
    """Return the annotations as a COCO file has them, copied because an evaluation writes into them."""
    objects = [entry for found in annotations.objects for entry in found]
    return {
        "images": list(annotations.images),
        "categories": list(annotations.categories),
        "annotations": [{"iscrowd": 0, "area": entry["bbox"][2] * entry["bbox"][3], **entry} for entry in objects],
    }
