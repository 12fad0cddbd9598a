"""Settings of a segmentation beside those of all transfers: its data and its head."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar, Literal

from ...errors import RecipeError
from ...utils.schema import BatchSize, Name
from ..recipe import TransferRecipe


@dataclass(frozen=True)
class SegmentData:
    """Where the pictures lie, and what is drawn at random in training; the defaults are mmsegmentation's."""

    root: str
    layout: Literal["cityscapes", "ade20k", "folder"] = "folder"
    train_split: Name = "train"  # a folder's name; of the plain layout also "all": the pictures that lie in no split
    val_split: Name | None = "val"  # None: nothing is evaluated
    batch_size: BatchSize = 16  # of all ranks together
    short_side: int | None = (
        None  # pixels to which pictures are resized, before training's own scale; None: they stay as they are
    )
    crop: tuple[int, int] = (512, 512)  # height and width, pixels
    scale: tuple[float, float] = (0.5, 2.0)  # least and greatest
    flip: bool = True
    distort: bool = True  # brightness, contrast, saturation and hue

    def __post_init__(self) -> None:
        if min(self.crop) < 32 or any(side % 32 for side in self.crop):
            raise RecipeError(
                f"data.crop = {list(self.crop)}: each must be a multiple of 32, the stride of the coarsest features."
            )
        if not 0 < self.scale[0] <= self.scale[1]:
            raise RecipeError(
                f"data.scale = {list(self.scale)}: the least must be positive and not above the greatest."
            )
        if self.short_side is not None and self.short_side < 1:
            raise RecipeError(f"data.short_side = {self.short_side} is below 1. Give pixels, or null.")


def _check_dropout(rate: float) -> None:
    if not 0 <= rate < 1:
        raise RecipeError(f"head.dropout = {rate} is outside [0, 1).")


@dataclass(frozen=True)
class FPN:
    """Panoptic FPN's semantic branch (arXiv 1901.02446), at stride 4."""

    kind: ClassVar[str] = "fpn"
    dropout: float = 0.2

    def __post_init__(self) -> None:
        _check_dropout(self.dropout)


@dataclass(frozen=True)
class DeepLabV3Plus:
    """Atrous pyramid with one skip (arXiv 1802.02611), at stride 4; the last stages are dilated to `output_stride`."""

    kind: ClassVar[str] = "deeplabv3plus"
    output_stride: Literal[8, 16] = 16
    dropout: float = 0.5

    def __post_init__(self) -> None:
        _check_dropout(self.dropout)


@dataclass(frozen=True)
class UNet:
    """A skip from every stride (arXiv 1505.04597), to full resolution."""

    kind: ClassVar[str] = "unet"


Head = FPN | DeepLabV3Plus | UNet


@dataclass(frozen=True)
class SegmentRecipe(TransferRecipe):
    """One training of a segmenter."""

    data: SegmentData = field(kw_only=True)
    head: Head = FPN()
