"""The three detectors: they follow a backbone's strides, give finite losses, and teach the backbone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torchvision.models.detection import maskrcnn_resnet50_fpn

from lgd_timm.errors import LGDError, RecipeError
from lgd_timm.transfer.backbone import blank_backbone
from lgd_timm.transfer.detect import create, prepare
from lgd_timm.transfer.detect.dataset import DetectionBatch, DetectionSample
from lgd_timm.transfer.detect.model import Detector
from lgd_timm.transfer.detect.recipe import DetectRecipe
from lgd_timm.transfer.job import Job
from lgd_timm.utils.distributed import Ranks
from lgd_timm.utils.schema import build
from tests.helpers.detect_data import Dict, tiny_recipe, write_coco

KINDS = ("mask_rcnn", "faster_rcnn", "retinanet")
CPU = torch.device("cpu")


def detector(architecture: str = "test_efficientnet", *, levels: list[int], head: Dict, classes: int = 3) -> Detector:
    recipe = build(
        DetectRecipe,
        {"name": "x", "backbone": {"levels": levels}, "data": {"train": "", "train_images": ""}, "head": head},
        where="",
    )
    backbone = blank_backbone(architecture, mean=(0.1, 0.2, 0.3), std=(0.5, 0.6, 0.7))
    return create(recipe, backbone=backbone, classes=[str(number) for number in range(classes)])


def job(folder: Path, **changes: Any) -> Job:
    write_coco(folder)
    recipe = tiny_recipe(folder)
    for part, values in changes.items():
        recipe[part] |= values
    return prepare(build(DetectRecipe, recipe, where=""), out=folder / "out", device=CPU, ranks=Ranks())


@pytest.mark.parametrize("kind", KINDS)
def test_losses_are_finite_and_reach_all_parameters(tmp_path: Path, kind: str) -> None:
    made = job(tmp_path, head={"kind": kind})
    losses = made.model(DetectionBatch.of([made.pictures[0, 0], made.pictures[1, 0]]).to(CPU))
    assert ("loss_mask" in losses) == (kind == "mask_rcnn")
    assert all(loss.ndim == 0 and loss.isfinite() for loss in losses.values())
    sum(losses.values()).backward()
    assert [name for name, parameter in made.model.named_parameters() if parameter.grad is None] == []
    stem = next(iter(made.backbone.parameters()))
    assert stem.grad is not None
    assert stem.grad.abs().sum() > 0
    made.set_rates()
    rates = {id(parameter): group["lr"] for group in made.optimizer.param_groups for parameter in group["params"]}
    assert rates[id(stem)] == pytest.approx(0.1 * rates[id(next(reversed(list(made.model.parameters()))))])


@pytest.mark.parametrize("kind", KINDS)
def test_findings_are_within_the_picture_and_count_classes_from_0(tmp_path: Path, kind: str) -> None:
    made = job(tmp_path, head={"kind": kind, "score_threshold": 0.0, "detections": 40})
    made.model.eval()
    with torch.no_grad():
        (found,) = made.model(
            DetectionBatch.of([DetectionSample("x", torch.randint(0, 256, (3, 70, 90), dtype=torch.uint8), {})]).to(CPU)
        )
    assert 0 < len(found["scores"]) <= 40
    assert (found["boxes"][:, 0::2] <= 90).all()
    assert (found["boxes"][:, 1::2] <= 70).all()
    assert set(found["labels"].tolist()) <= {0, 1, 2}
    if kind == "mask_rcnn":
        assert found["masks"].shape == (len(found["scores"]), 1, 70, 90)


def test_labels_count_from_1_for_heads_with_a_background(tmp_path: Path) -> None:
    """What a head is taught: torchvision's R-CNNs keep 0 for no object, RetinaNet does not."""
    for kind, first in (("faster_rcnn", 1), ("retinanet", 0)):
        made = detector(levels=[1, 2, 3, 4], head={"kind": kind, "channels": 8})
        taught: list[Any] = []
        made.network.forward = lambda images, targets, taught=taught: taught.append(targets) or {}  # type: ignore[method-assign, assignment]
        made(DetectionBatch(["x"], [torch.zeros(3, 8, 8)], [{"labels": torch.tensor([0, 2])}]))
        assert taught[0][0]["labels"].tolist() == [first, 2 + first]


# Of each: strides, and with them the anchors' sizes; the channels are those of timm's feature_info.
@pytest.mark.parametrize(
    ("architecture", "levels", "channels", "strides"),
    [
        ("resnet18", [1, 2, 3, 4], [64, 128, 256, 512], [4, 8, 16, 32]),
        ("mobilenetv2_100", [1, 2, 3, 4], [24, 32, 96, 320], [4, 8, 16, 32]),
        ("mobilenetv2_100", [2, 3, 4], [32, 96, 320], [8, 16, 32]),
        ("efficientnet_b0", [1, 2, 3, 4], [24, 40, 112, 320], [4, 8, 16, 32]),
    ],
)
def test_anchors_follow_the_strides(
    architecture: str, levels: list[int], channels: list[int], strides: list[int]
) -> None:
    rcnn: Any = detector(architecture, levels=levels, head={"kind": "faster_rcnn", "channels": 8}).network
    retina: Any = detector(architecture, levels=levels, head={"kind": "retinanet", "channels": 8}).network
    assert rcnn.backbone.pyramid.channels == channels
    assert rcnn.backbone.pyramid.strides == strides
    image = torch.zeros(1, 3, 128, 128)
    with torch.no_grad():
        maps = [part.shape[-1] for part in rcnn.eval().backbone(image).values()]
        finer = [part.shape[-1] for part in retina.eval().backbone(image).values()]
    assert maps == [128 // stride for stride in (*strides, 64)]
    assert finer == [128 // stride for stride in (*strides, 64, 128)]
    assert [sizes[0] for sizes in rcnn.rpn.anchor_generator.sizes] == [8 * stride for stride in (*strides, 64)]
    assert [sizes[0] for sizes in retina.anchor_generator.sizes] == [4 * stride for stride in (*strides, 64, 128)]
    assert rcnn.roi_heads.box_roi_pool.featmap_names == [str(place) for place in range(len(levels))]


def test_at_256_channels_the_heads_are_torchvisions_own() -> None:
    theirs = maskrcnn_resnet50_fpn(weights=None, weights_backbone=None, num_classes=4).state_dict()
    ours = detector("resnet18", levels=[1, 2, 3, 4], head={}).network.state_dict()
    heads = [
        {name: value.shape for name, value in state.items() if not name.startswith("backbone.")}
        for state in (theirs, ours)
    ]
    assert heads[0] == heads[1]


def test_pixels_are_normalised_as_the_backbone_was_trained() -> None:
    made: Any = detector(levels=[1, 2, 3, 4], head={"channels": 8}).network
    assert made.transform.image_mean == [0.1, 0.2, 0.3]
    assert made.transform.image_std == [0.5, 0.6, 0.7]


def test_training_takes_pictures_at_the_size_that_was_drawn(tmp_path: Path) -> None:
    made: Any = job(tmp_path)
    images, _ = made.model.network.transform([torch.rand(3, 40, 50)])
    assert images.image_sizes == [(40, 50)]
    images, _ = made.model.eval().network.transform([torch.rand(3, 40, 50)])
    assert images.image_sizes == [(64, 80)]


def test_frozen_norms_keep_their_statistics(tmp_path: Path) -> None:
    made = detector(levels=[1, 2, 3, 4], head={"channels": 8})
    made.train()
    before = {name: buffer.clone() for name, buffer in made.named_buffers()}
    made.pyramid(torch.rand(2, 3, 64, 64))
    assert before
    assert all(torch.equal(buffer, before[name]) for name, buffer in made.named_buffers())


def test_equal_seeds_make_equal_detectors(tmp_path: Path) -> None:
    made = [job(tmp_path / str(number), run={"seed": seed}).model.state_dict() for number, seed in enumerate((0, 0, 1))]
    assert all(torch.equal(made[0][name], made[1][name]) for name in made[0])
    assert not all(torch.equal(made[0][name], made[2][name]) for name in made[0])


def test_levels_that_make_no_pyramid() -> None:
    with pytest.raises(LGDError, match=r"strides \[4, 16\], which must double"):
        detector(levels=[1, 3], head={})
    with pytest.raises(LGDError, match="which has 0 to 4"):
        detector(levels=[3, 4, 5], head={})


def test_heads_that_make_no_sense() -> None:
    for head, message in (
        ({"kind": "yolo"}, "head.kind"),
        ({"channels": 0}, "head.channels = 0"),
        ({"score_threshold": 1.0}, "head.score_threshold = 1.0"),
    ):
        with pytest.raises(RecipeError, match=message):
            detector(levels=[1], head=head)
    with pytest.raises(RecipeError, match="LVIS counts 300 a picture"):
        build(
            DetectRecipe,
            {"name": "x", "data": {"train": "", "train_images": "", "format": "lvis"}, "head": {"detections": 301}},
            where="",
        )


def test_files_of_different_classes(tmp_path: Path) -> None:
    from tests.helpers.detect_data import write

    other = write_coco(tmp_path / "other")
    other["categories"][0]["name"] = "purple"
    write(tmp_path / "other" / "instances.json", other)
    with pytest.raises(LGDError, match="different categories"):
        job(
            tmp_path,
            data={"val": str(tmp_path / "other" / "instances.json"), "val_images": str(tmp_path / "other" / "images")},
        )
