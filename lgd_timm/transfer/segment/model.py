"""A backbone with one of segmentation_models_pytorch's decoders: its loss, and its prediction for a whole image.

The encoder is that library's own around timm (`tu-<architecture>`), filled with the backbone's weights.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.transforms.v2 import functional as transforms

from ...errors import LGDError, require
from ...hub.safe_weights import BUILD_ERRORS
from ..backbone import PyramidBackbone, freeze_norms
from .dataset import SegmentationBatch
from .folders import IGNORED
from .recipe import DeepLabV3Plus, Head, SegmentRecipe, UNet

# Of the features that these decoders are made for; a U-Net also takes finer ones where there are some.
STRIDES = [4, 8, 16, 32]
# By output stride, as in arXiv 1706.05587; the library's default is that of 8.
ATROUS_RATES = {16: (6, 12, 18), 8: (12, 24, 36)}
AT_ONCE = 16  # classes that are resized together: all 150 of a large image would not fit into memory


class Segmenter(nn.Module):
    """Give each pixel one of several classes.

    Args:
        net: segmentation_models_pytorch's model; `net.encoder` is the backbone.
        backbone: whose pixel statistics normalise the images.
        frozen_norms: whether the backbone's batch normalisation keeps its statistics in training.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, net: Any, *, backbone: PyramidBackbone, frozen_norms: bool) -> None:
        super().__init__()
        self.net, self.frozen_norms = net, frozen_norms
        for name in ("mean", "std"):
            self.register_buffer(name, 255 * torch.tensor(getattr(backbone, name)).view(3, 1, 1), persistent=False)

    @property
    def encoder(self) -> nn.Module:
        encoder: nn.Module = self.net.encoder
        return encoder

    def train(self, mode: bool = True) -> Segmenter:
        super().train(mode)
        if self.frozen_norms:
            freeze_norms(self.encoder)
        return self

    def logits(self, images: Tensor) -> Tensor:
        """Compute logits [B, classes, H, W] of images [B, 3, H, W] of any size, pixels in 0..255."""
        height, width = images.shape[-2:]
        normalised = (images.float() - self.mean) / self.std
        logits: Tensor = self.net(F.pad(normalised, (0, -width % STRIDES[-1], 0, -height % STRIDES[-1])))
        return logits[..., :height, :width]

    def forward(self, batch: SegmentationBatch) -> dict[str, Tensor]:
        """Compute the cross entropy: the mean over all pixels, where the loss of ignored pixels is zero.

        So it is no 0 / 0 where all pixels are ignored, and the mean over ranks is the mean over their common batch.
        mmsegmentation does the same.
        """
        losses = F.cross_entropy(self.logits(batch.images), batch.labels.long(), ignore_index=IGNORED, reduction="none")
        return {"cross_entropy": losses.mean()}

    def predict(self, image: Tensor, *, short_side: int | None) -> Tensor:
        """Predict the classes of a whole image.

        Args:
            image: uint8 [3, H, W].
            short_side: pixels to which its short side is resized before; None: it is not resized.

        Returns:
            Class indices, int64 [H, W].
        """
        size = image.shape[-2:]
        if short_side is not None:
            image = transforms.resize(
                image, [max(1, round(side * short_side / min(size))) for side in size], antialias=True
            )
        return _classes(self.logits(image[None]), size=size)[0]


def create(recipe: SegmentRecipe, *, backbone: PyramidBackbone, classes: Sequence[str]) -> Segmenter:
    """Build the recipe's head on a backbone, with the backbone's weights.

    Raises:
        LGDError: the head does not fit the backbone.
    """
    _check_levels(recipe.backbone.levels, backbone)
    smp = require("segmentation_models_pytorch", extra="segment")
    kind, options = _smp_model(recipe.head)
    try:
        net = getattr(smp, kind)(f"tu-{backbone.architecture}", encoder_weights=None, classes=len(classes), **options)
    except BUILD_ERRORS as error:
        reason = str(error) or type(error).__name__
        raise LGDError(
            f"head.kind {recipe.head.kind} can't be put on {backbone.architecture} ({reason}). Take another head."
        ) from error
    _fill(net.encoder.model, backbone)
    return Segmenter(net, backbone=backbone, frozen_norms=recipe.backbone.norms == "frozen")


def _smp_model(head: Head) -> tuple[str, dict[str, Any]]:
    if isinstance(head, UNet):
        return "Unet", {}
    if isinstance(head, DeepLabV3Plus):
        rates, stride = ATROUS_RATES[head.output_stride], head.output_stride
        return "DeepLabV3Plus", {
            "encoder_output_stride": stride,
            "decoder_atrous_rates": rates,
            "decoder_aspp_dropout": head.dropout,
        }
    return "FPN", {"decoder_dropout": head.dropout}


def _check_levels(levels: Sequence[int], backbone: PyramidBackbone) -> None:
    """Check the recipe's levels: these decoders choose their features themselves."""
    strides = [level["reduction"] for level in getattr(backbone.model, "feature_info", None) or ()]
    if not set(STRIDES) <= set(strides):
        raise LGDError(
            f"{backbone.architecture} has features of strides {strides}; segmenting needs {STRIDES}. "
            "Take another model."
        )
    if list(levels) != (needed := [strides.index(stride) for stride in STRIDES]):
        raise LGDError(
            f"backbone.levels = {list(levels)}, but a segmenter takes strides {STRIDES}: of this model, {needed}. "
            "Set these."
        )


def _fill(encoder: nn.Module, backbone: PyramidBackbone) -> None:
    """Copy the backbone's weights into timm's `features_only` model.

    It lacks what comes after the last features, and may call a part of a sequence `stages_0` where the whole has
    `stages.0`.
    """
    parts = {key.partition(".")[0] for key in encoder.state_dict()}
    given = (
        (name, tensor)
        for key, tensor in backbone.model.state_dict().items()
        for name in (key, key.replace(".", "_", 1))
    )
    try:
        encoder.load_state_dict({name: tensor for name, tensor in given if name.partition(".")[0] in parts})
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:300]
        raise LGDError(
            f"The weights of {backbone.architecture} do not fit its features ({reason}). Take another model."
        ) from error


def _classes(logits: Tensor, *, size: Sequence[int]) -> Tensor:
    """Resize logits [B, classes, h, w] to `size`, some classes at a time; return each pixel's class [B, H, W]."""
    if tuple(logits.shape[-2:]) == tuple(size):
        return logits.argmax(1)
    best = found = None
    for first in range(0, logits.shape[1], AT_ONCE):
        resized = F.interpolate(
            logits[:, first : first + AT_ONCE], size=list(size), mode="bilinear", align_corners=False
        )
        values, indices = resized.max(1)
        if best is None or found is None:
            best, found = values, indices
        else:
            found = torch.where(values > best, indices + first, found)
            best = torch.maximum(values, best)
    assert found is not None
    return found
