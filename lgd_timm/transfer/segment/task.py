"""Make a segmentation job of data, model and scores."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch

from ...errors import RecipeError, require
from ...utils.distributed import Ranks
from ...utils.files import fingerprint, write_json
from ...utils.schema import to_plain
from ..backbone import find_backbone
from ..job import Job
from .dataset import DrawnPictures, collate
from .folders import Split, open_split
from .metrics import evaluate
from .model import create
from .recipe import DeepLabV3Plus, SegmentRecipe

IOU = "iou.json"
ELSEWHERE = ("root", "val_split")  # fields of `data` that change nothing that is learned from the same images


def prepare(recipe: SegmentRecipe, *, out: Path, device: torch.device, ranks: Ranks) -> Job:
    """Read data and backbone and make a job of them, without writing.

    An evaluation writes the IoU of each class to `out/iou.json`.

    Raises:
        LGDError: the data do not lie as the recipe says, the backbone can't be had, or the head does not fit it.
        MissingExtra: a library of `lgd_timm[segment]` is missing.
    """
    data = recipe.data
    if isinstance(recipe.head, DeepLabV3Plus) and data.batch_size < 2 * ranks.world_size:
        raise RecipeError(
            f"data.batch_size = {data.batch_size} gives a rank one picture, "
            "and deeplabv3plus normalises over two or more."
        )
    train = open_split(data, data.train_split)
    val = train if data.val_split == data.train_split else open_split(data, data.val_split) if data.val_split else None
    if val is not None:
        require("torchmetrics", extra="segment")  # now, and not after an epoch
    source = find_backbone(recipe.backbone, seed=recipe.machine.seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.machine.seed)  # of the decoder's first weights
        model = create(recipe, backbone=source, classes=train.classes).to(device)

    def scores(split: Split) -> Mapping[str, float]:
        found = evaluate(
            model, split, short_side=data.short_side, workers=recipe.machine.workers, device=device, ranks=ranks
        )
        if ranks.first:
            write_json(out / IOU, found.iou)
        return found.mean

    return Job(
        recipe=recipe,
        model=model,
        backbone=model.encoder,
        source=source,
        classes=train.classes,
        pictures=DrawnPictures(train, data=data, seed=recipe.machine.seed, fill=source.mean),
        collate=collate,
        batch_size=data.batch_size,
        scores=None if val is None else lambda: scores(val),
        data_identity=_data_identity(recipe, train),
        out=out,
        device=device,
        ranks=ranks,
    )


def _data_identity(recipe: SegmentRecipe, train: Split) -> dict[str, object]:
    data = {key: value for key, value in to_plain(recipe.data).items() if key not in ELSEWHERE}
    return {
        "data": data,
        "classes": list(train.classes),
        "pictures": fingerprint([pair.picture.name for pair in train.pairs]),
    }
