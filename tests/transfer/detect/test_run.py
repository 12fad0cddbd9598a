"""A detector's run from its recipe to its pictures.

It goes on to the bit, learns what it is shown, and draws what it sees.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from safetensors.torch import load_file

from lgd_timm.cli.main import main
from lgd_timm.errors import WeightsError
from lgd_timm.transfer import run as runs
from lgd_timm.transfer.detect import draw
from lgd_timm.transfer.detect.dataset import DetectionBatch
from lgd_timm.transfer.detect.recipe import DetectRecipe
from lgd_timm.transfer.recipe import read_transfer
from lgd_timm.utils.checkpoint import all_checkpoints
from lgd_timm.utils.schema import build
from tests.helpers import ROOT
from tests.helpers.detect_data import Dict, tiny_recipe, write_coco, write_lvis

RECIPES = ROOT / "recipes" / "transfer"


def run(recipe: Dict, out: Path, *, resume: bool = False) -> Dict:
    return runs.transfer("detect", build(DetectRecipe, recipe, where=""), out=out, resume=resume)


def test_a_run_that_goes_on_within_an_epoch_ends_bit_equal(tmp_path: Path) -> None:
    write_coco(tmp_path / "data")
    recipe = tiny_recipe(tmp_path / "data")
    recipe["run"] |= {"checkpoint_minutes": 0.0, "keep_checkpoints": 100, "evaluate_every": 10}
    whole = tmp_path / "whole"
    metrics = run(recipe, whole)
    assert list(metrics["scores"]) == ["box_ap", "box_ap50", "box_ap75", "mask_ap", "mask_ap50", "mask_ap75"]
    killed = Path(shutil.copytree(whole, tmp_path / "killed"))
    (killed / "metrics.json").unlink()
    for path in all_checkpoints(killed / "checkpoints")[1:]:
        shutil.rmtree(path)
    assert run(recipe, killed, resume=True)["scores"] == metrics["scores"]
    first, second = (load_file(folder / "model.safetensors") for folder in (whole, killed))
    assert [name for name in first if not torch.equal(first[name], second[name])] == []


def test_a_run_does_not_go_on_with_other_pictures(tmp_path: Path) -> None:
    write_coco(tmp_path / "data")
    recipe = tiny_recipe(tmp_path / "data", val=None, val_images=None)
    assert run(recipe, tmp_path / "run")["scores"] == {}
    (tmp_path / "run" / "metrics.json").unlink()
    shutil.rmtree(tmp_path / "data")
    write_coco(tmp_path / "data", count=8)
    with pytest.raises(WeightsError, match="another run: data differ"):
        run(recipe, tmp_path / "run", resume=True)


def test_lvis_is_trained_on_and_scored(tmp_path: Path) -> None:
    write_lvis(tmp_path)
    recipe = tiny_recipe(tmp_path, format="lvis", oversample=0.5)
    recipe["data"] |= {"train": str(tmp_path / "lvis.json"), "train_images": str(tmp_path)}
    recipe["data"] |= {"val": str(tmp_path / "lvis.json"), "val_images": str(tmp_path)}
    recipe["head"] |= {"kind": "faster_rcnn", "score_threshold": 1e-4, "detections": 300}
    metrics = run(recipe, tmp_path / "run")
    assert list(metrics["scores"]) == ["box_ap", "box_ap50", "box_ap75", "box_apr", "box_apc", "box_apf"]
    assert all(0 <= value <= 100 for value in metrics["scores"].values())


class Sees(torch.nn.Module):
    """One object for sure, one half so, and one that is not to be drawn."""

    def forward(self, batch: DetectionBatch) -> list[dict[str, torch.Tensor]]:
        masks = torch.zeros(3, 1, *batch.images[0].shape[-2:])
        masks[0, 0, 20:40, 20:40] = 1
        boxes = torch.tensor([[20.0, 20, 40, 40], [50, 50, 70, 70], [5, 60, 15, 75]])
        return [
            {"boxes": boxes, "labels": torch.tensor([1, 0, 0]), "scores": torch.tensor([0.9, 0.5, 0.3]), "masks": masks}
        ]


def changed(before: Image.Image, after: Image.Image, x: int, y: int) -> bool:
    return before.getpixel((x, y)) != after.getpixel((x, y))


def test_what_is_drawn(tmp_path: Path) -> None:
    picture = Image.new("RGB", (80, 80), (255, 255, 255))
    recipe: Any = build(DetectRecipe, tiny_recipe(tmp_path), where="")
    drawn = draw(Sees().eval(), picture, classes=["cat", "dog"], recipe=recipe, device=torch.device("cpu"))
    assert drawn.size == picture.size
    assert picture.getcolors() == [(6400, (255, 255, 255))]  # still as it was
    assert changed(picture, drawn, 30, 38)  # the mask
    assert changed(picture, drawn, 50, 68)  # a box's edge
    assert not changed(picture, drawn, 60, 68)  # and its inside, of what has no mask
    assert not changed(picture, drawn, 5, 70)  # too unsure


def test_recipes_are_what_they_say() -> None:
    """The paper's settings (its released configs), which are the defaults; LVIS differs in what its name says."""
    coco = read_transfer(DetectRecipe, RECIPES / "detect_coco.yaml")
    lvis = read_transfer(DetectRecipe, RECIPES / "detect_lvis.yaml")
    for recipe in (coco, lvis):
        assert (recipe.optimizer.name, recipe.optimizer.lr, recipe.optimizer.weight_decay) == ("adamw", 2e-4, 1e-4)
        assert (recipe.optimizer.backbone_lr, recipe.optimizer.clip_grad) == (0.1, 0.1)
        assert (recipe.schedule.epochs, recipe.schedule.milestones, recipe.schedule.warmup_steps) == (12, [8, 11], 500)
        assert (recipe.head.kind, recipe.head.channels, recipe.data.batch_size) == ("mask_rcnn", 256, 16)
    assert (coco.data.train_sizes, coco.data.oversample, coco.head.score_threshold, coco.head.detections) == (
        [800],
        None,
        0.05,
        100,
    )
    assert (lvis.data.format, lvis.data.oversample, lvis.head.score_threshold, lvis.head.detections) == (
        "lvis",
        1e-3,
        1e-4,
        300,
    )
    assert (min(lvis.data.train_sizes), max(lvis.data.train_sizes)) == (640, 800)
    read_transfer(DetectRecipe, RECIPES / "detect_samples.yaml")


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "epochs"), [("mask_rcnn", 60), ("faster_rcnn", 60), ("retinanet", 150)])
def test_a_detector_learns_by_heart_what_it_is_shown(tmp_path: Path, kind: str, epochs: int) -> None:
    """So targets, losses and scores fit together: from random weights, eight pictures of rectangles."""
    write_coco(tmp_path / "data", count=8)
    recipe = tiny_recipe(tmp_path / "data", batch_size=4, train_sizes=[96], size=96, max_size=192)
    recipe |= {
        "backbone": {"model": "test_resnet", "pretrained": False, "norms": "trained"},
        "optimizer": {"lr": 2e-3, "backbone_lr": 1.0, "clip_grad": 1.0},
        "schedule": {"epochs": epochs, "milestones": [3 * epochs // 4], "warmup_steps": 10},
        "head": {"kind": kind, "channels": 32, "regions": 64},
    }
    recipe["run"] |= {"evaluate_every": epochs, "checkpoint_every": epochs}
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    assert main(["transfer", "detect", str(tmp_path / "recipe.yaml"), "--output", str(tmp_path / "run")]) == 0
    scores = json.loads((tmp_path / "run" / "metrics.json").read_text())["scores"]
    assert {name: score for name, score in scores.items() if name.endswith("ap50") and score < 95} == {}
    pictures = runs.predict(tmp_path / "run", tmp_path / "data" / "images", out=tmp_path / "drawn", device="cpu")
    assert len(pictures) == 8
    assert all(
        (np.asarray(Image.open(path)) != np.asarray(Image.open(tmp_path / "data" / "images" / path.name))).any()
        for path in pictures
    )
