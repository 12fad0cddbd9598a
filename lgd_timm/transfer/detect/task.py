"""Make a detection job of data, detector and scores."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import torch

from ...errors import LGDError
from ...utils.distributed import Ranks
from ...utils.files import sha256_of
from ...utils.schema import MACHINE, marked
from ..backbone import find_backbone
from ..job import Job
from .annotations import Annotations, read_annotations
from .dataset import DetectionBatch, Pictures
from .metrics import evaluate
from .model import create
from .recipe import DetectData, DetectRecipe


def prepare(recipe: DetectRecipe, *, out: Path, device: torch.device, ranks: Ranks) -> Job:
    """Read annotations and backbone and make a job of them, without writing.

    Raises:
        LGDError: the annotations or the backbone can't be used.
        MissingExtra: a library of `lgd_timm[detect]` is missing.
    """
    data = recipe.data
    train = _read(recipe, data.train, data.train_images)
    val = _read(recipe, data.val, data.val_images) if data.val is not None and data.val_images is not None else None
    if val is not None and val.classes != train.classes:
        raise LGDError(f"{val.path} and {train.path} have different categories. Give files of one data set.")
    pictures = Pictures(train, data, masks=recipe.masks, seed=recipe.machine.seed)
    backbone = find_backbone(recipe.backbone, seed=recipe.machine.seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.machine.seed)
        model = create(recipe, backbone=backbone, classes=train.classes).to(device)
    local = marked(DetectData, MACHINE)
    facts = {key: value for key, value in recipe.to_dict()["data"].items() if key not in local}
    scores = (
        partial(evaluate, model, val, masks=recipe.masks, device=device, ranks=ranks, workers=recipe.machine.workers)
        if val
        else None
    )
    return Job(
        recipe=recipe,
        model=model,
        backbone=model.pyramid,
        source=backbone,
        classes=train.classes,
        pictures=pictures,
        collate=DetectionBatch.of,
        batch_size=data.batch_size,
        scores=scores,
        data_identity={"data": {**facts, "train": sha256_of(train.path)[:16]}},
        out=out,
        device=device,
        ranks=ranks,
    )


def _read(recipe: DetectRecipe, path: str, folder: str) -> Annotations:
    return read_annotations(path, folder=folder, format=recipe.data.format, masks=recipe.masks)
