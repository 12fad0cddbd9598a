"""torchvision's Mask R-CNN, Faster R-CNN and RetinaNet on the feature pyramid of a timm backbone."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

from torch import Tensor, nn
from torchvision.models.detection import FasterRCNN, MaskRCNN, RetinaNet
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor
from torchvision.models.detection.mask_rcnn import MaskRCNNHeads, MaskRCNNPredictor
from torchvision.ops import FeaturePyramidNetwork, MultiScaleRoIAlign
from torchvision.ops.feature_pyramid_network import ExtraFPNBlock, LastLevelMaxPool, LastLevelP6P7

from ...errors import LGDError
from ..backbone import Pyramid, PyramidBackbone
from .dataset import DetectionBatch
from .recipe import DetectRecipe

RATIOS = (0.5, 1.0, 2.0)  # height to width of the anchors


class Neck(nn.Module):
    """A backbone with a feature pyramid network (arXiv 1612.03144) and coarser maps: torchvision's backbone."""

    def __init__(self, pyramid: Pyramid, *, channels: int, coarser: ExtraFPNBlock) -> None:
        super().__init__()
        self.pyramid = pyramid
        self.fpn = FeaturePyramidNetwork(pyramid.channels, channels, extra_blocks=coarser)
        self.out_channels = channels  # a name that torchvision asks for

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        maps: dict[str, Tensor] = self.fpn(
            OrderedDict((str(index), part) for index, part in enumerate(self.pyramid(images)))
        )
        return maps


class Detector(nn.Module):
    """One of torchvision's detectors, for a `DetectionBatch`; its labels count classes from 0."""

    def __init__(self, network: nn.Module, *, background: bool) -> None:
        super().__init__()
        self.network = network
        self._first = int(background)  # label of the first class; R-CNNs' label 0 is no object

    @property
    def pyramid(self) -> Pyramid:
        neck: Any = self.network.backbone
        pyramid: Pyramid = neck.pyramid
        return pyramid

    def forward(self, batch: DetectionBatch) -> Any:
        """Compute losses, or predict.

        Returns:
            In training scalar losses by name; else, for each image, boxes [N, 4] in its pixels, labels [N], scores [N],
            and with Mask R-CNN masks [N, 1, H, W] in 0..1.
        """
        if self.training:
            return self.network(
                batch.images, [{**target, "labels": target["labels"] + self._first} for target in batch.targets]
            )
        return [{**found, "labels": found["labels"] - self._first} for found in self.network(batch.images)]


def create(recipe: DetectRecipe, *, backbone: PyramidBackbone, classes: Sequence[str]) -> Detector:
    """Build the recipe's detector on a backbone.

    Raises:
        LGDError: the backbone lacks a level, or its levels' strides do not double.
    """
    pyramid = Pyramid(backbone, levels=recipe.backbone.levels, frozen_norms=recipe.backbone.norms == "frozen")
    strides = pyramid.strides
    if any(fine * 2 != coarse for fine, coarse in pairwise(strides)):
        raise LGDError(
            f"backbone.levels = {pyramid.levels} of {backbone.architecture} have strides {strides}, "
            "which must double each time. Choose other levels, or another model."
        )
    shared = {  # of all three, and of their common transform
        "min_size": recipe.data.size,
        "max_size": recipe.data.max_size,
        "image_mean": list(backbone.mean),
        "image_std": list(backbone.std),
        "size_divisible": strides[-1],
        "_skip_resize": True,  # in training: `Pictures` has done it, with sizes that it drew
    }
    build = _retinanet if recipe.head.kind == "retinanet" else _rcnn
    return build(recipe, pyramid, len(classes), shared)


def _rcnn(recipe: DetectRecipe, pyramid: Pyramid, classes: int, shared: dict[str, Any]) -> Detector:
    """Build Mask R-CNN or Faster R-CNN. With 256 channels all parts are torchvision's defaults."""
    head, strides = recipe.head, pyramid.strides
    names = [str(index) for index in range(len(strides))]
    anchors = tuple((8 * stride,) for stride in (*strides, 2 * strides[-1]))  # 32 to 512 pixels with strides 4 to 32
    options: dict[str, Any] = {
        "rpn_anchor_generator": AnchorGenerator(anchors, (RATIOS,) * len(anchors)),
        "box_roi_pool": MultiScaleRoIAlign(names, output_size=7, sampling_ratio=2),
        "box_predictor": FastRCNNPredictor(1024, classes + 1),  # torchvision's box head gives 1024 features
        "box_batch_size_per_image": head.regions,
        "box_score_thresh": head.score_threshold,
        "box_detections_per_img": head.detections,
    }
    if recipe.masks:
        options["mask_roi_pool"] = MultiScaleRoIAlign(names, output_size=14, sampling_ratio=2)
        options["mask_head"] = MaskRCNNHeads(head.channels, (head.channels,) * 4, 1)
        options["mask_predictor"] = MaskRCNNPredictor(head.channels, head.channels, classes + 1)
    neck = Neck(pyramid, channels=head.channels, coarser=LastLevelMaxPool())
    kind = MaskRCNN if recipe.masks else FasterRCNN
    return Detector(kind(neck, **options, **shared), background=True)


def _retinanet(recipe: DetectRecipe, pyramid: Pyramid, classes: int, shared: dict[str, Any]) -> Detector:
    head, strides = recipe.head, pyramid.strides
    octave = [2 ** (step / 3) for step in range(3)]
    anchors = tuple(
        tuple(round(4 * stride * scale) for scale in octave) for stride in (*strides, 2 * strides[-1], 4 * strides[-1])
    )
    neck = Neck(pyramid, channels=head.channels, coarser=LastLevelP6P7(pyramid.channels[-1], head.channels))
    network = RetinaNet(
        neck,
        classes,
        anchor_generator=AnchorGenerator(anchors, (RATIOS,) * len(anchors)),
        score_thresh=head.score_threshold,
        detections_per_img=head.detections,
        **shared,
    )
    return Detector(network, background=False)
