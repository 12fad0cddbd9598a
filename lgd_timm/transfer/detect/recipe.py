"""Settings of a detector.

The defaults are the paper's for COCO, mmdet's 1x schedule; LVIS differs, see recipes/transfer/.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Literal

from ...errors import RecipeError
from ...utils.schema import MACHINE, BatchSize
from ..recipe import TransferRecipe

LVIS_DETECTIONS = 300  # a picture, of which LVIS counts no more


@dataclass(frozen=True)
class DetectData:
    """Which pictures, and at which size.

    Sizes are pixels of the short side, as long as the long one stays within `max_size`.
    """

    train: str  # annotations, JSON
    train_images: Annotated[
        str, MACHINE
    ]  # folder of their pictures; of LVIS the one that holds COCO's train2017 and val2017
    val: Annotated[str | None, MACHINE] = None  # None: nothing is evaluated
    val_images: Annotated[str | None, MACHINE] = None
    format: Literal["coco", "lvis"] = "coco"
    batch_size: BatchSize = 16  # global: shared by all ranks
    train_sizes: list[int] = field(default_factory=lambda: [800])  # one is drawn each time
    size: Annotated[int, MACHINE] = 800  # of evaluation and prediction
    max_size: int = 1333
    flip: float = 0.5  # how often a picture is mirrored
    oversample: float | None = None  # pictures of classes in less than this share of all come more often; LVIS: 0.001

    def __post_init__(self) -> None:
        sizes = [*self.train_sizes, self.size]
        if not self.train_sizes or min(sizes) < 1 or max(sizes) >= self.max_size:
            raise RecipeError(
                f"data.train_sizes = {self.train_sizes} and data.size = {self.size} "
                f"must lie between 1 and data.max_size = {self.max_size}."
            )
        if not 0 <= self.flip <= 1:
            raise RecipeError(f"data.flip = {self.flip} is outside [0, 1].")
        if self.oversample is not None and not 0 < self.oversample <= 1:
            raise RecipeError(
                f"data.oversample = {self.oversample} is outside (0, 1]. "
                "Leave it out to see all pictures equally often."
            )
        if (self.val is None) != (self.val_images is None):
            raise RecipeError("data.val and data.val_images belong together. Give both or none.")


@dataclass(frozen=True)
class DetectHead:
    """What finds objects in the feature maps, and which of its findings count."""

    kind: Literal["mask_rcnn", "faster_rcnn", "retinanet"] = "mask_rcnn"
    channels: int = 256  # of the feature pyramid, and of what predicts masks
    regions: int = 512  # a picture, of those proposed, that an R-CNN learns from
    score_threshold: float = 0.05  # LVIS: 1e-4
    detections: int = 100  # a picture; LVIS: 300

    def __post_init__(self) -> None:
        if min(self.channels, self.regions, self.detections) < 1 or not 0 <= self.score_threshold < 1:
            raise RecipeError(
                f"head.channels = {self.channels}, head.regions = {self.regions} "
                f"and head.detections = {self.detections} must be 1 or more, "
                f"and head.score_threshold = {self.score_threshold} within [0, 1)."
            )


@dataclass(frozen=True)
class DetectRecipe(TransferRecipe):
    """One detector."""

    data: DetectData = field(kw_only=True)
    head: DetectHead = field(default_factory=DetectHead)

    def __post_init__(self) -> None:
        if self.data.format == "lvis" and self.head.detections > LVIS_DETECTIONS:
            raise RecipeError(
                f"head.detections = {self.head.detections}, of which LVIS counts {LVIS_DETECTIONS} a picture. Lower it."
            )

    @property
    def masks(self) -> bool:
        return self.head.kind == "mask_rcnn"
