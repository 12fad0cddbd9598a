"""Backbones, and their feature maps at several strides, which necks and decoders take."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import timm
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from ..errors import LGDError
from ..evaluate.models import find_model
from ..hub.safe_weights import BUILD_ERRORS
from ..students.entrypoints import stock_name
from ..utils.model_size import check_model_size
from ..utils.schema import SMALLEST_STD, brief
from .recipe import BackboneRecipe

Statistics = tuple[float, float, float]


@dataclass(frozen=True)
class PyramidBackbone:
    """A timm model without classifier, the name of its stock architecture, and its pixel statistics."""

    architecture: str
    model: Any
    mean: Statistics
    std: Statistics


def find_backbone(recipe: BackboneRecipe, *, seed: int = 0) -> PyramidBackbone:
    """Build the model that `recipe.model` names.

    Args:
        recipe: which model, and whether it has its weights or random ones.
        seed: of random weights.

    Raises:
        LGDError: it names no model, or the weights can't be had.
    """
    network = find_model(recipe.model, pretrained=recipe.pretrained, seed=seed).network
    mean, std = (tuple(buffer.flatten().tolist()) for buffer in (network.preprocess.mean, network.preprocess.std))
    model: Any = network.backbone
    return PyramidBackbone(stock_name(model.pretrained_cfg["architecture"]), model, mean, std)


def blank_backbone(architecture: str, *, mean: Statistics, std: Statistics) -> PyramidBackbone:
    """Build a backbone whose weights are yet to be loaded.

    Raises:
        LGDError: timm has no such architecture, or the statistics are none of three colours.
    """
    if ":" in architecture or not timm.is_model(architecture):
        raise LGDError(f"The backbone {brief(architecture)} is no architecture of timm {timm.__version__}.")
    if len(mean) != 3 or len(std) != 3 or min(std) < SMALLEST_STD:
        raise LGDError(f"The backbone's mean {brief(mean)} and std {brief(std)} are not those of three colours.")
    # most of its layers may be removed later, so that its weights' file says nothing of what it takes now
    check_model_size(lambda: timm.create_model(architecture, num_classes=0), name=architecture, unbuilt=BUILD_ERRORS)
    return PyramidBackbone(architecture, timm.create_model(architecture, num_classes=0), mean, std)


class Pyramid(nn.Module):
    """Give a backbone's feature maps of some levels. The layers after the last of them are removed.

    Args:
        backbone: is changed.
        levels: indices of timm's feature maps, rising.
        frozen_norms: whether batch normalisation keeps its statistics in training.

    Attributes:
        channels: of each map, from fine to coarse.
        strides: of each map, in pixels of the image.

    Raises:
        LGDError: the model has no feature maps, or not these levels.
    """

    def __init__(self, backbone: PyramidBackbone, *, levels: Sequence[int], frozen_norms: bool = True) -> None:
        super().__init__()
        name, model = backbone.architecture, backbone.model
        info = getattr(model, "feature_info", None)
        if not info or not hasattr(model, "forward_intermediates"):
            raise LGDError(f"{name} gives no feature maps (timm's features_only). Take another model.")
        if not levels or list(levels) != sorted(set(levels)) or not 0 <= levels[0] <= levels[-1] < len(info):
            raise LGDError(
                f"backbone.levels = {list(levels)} of {name}, which has 0 to {len(info) - 1}. "
                "Give some of these, rising."
            )
        self.levels = list(levels)
        self.channels: list[int] = [info[level]["num_chs"] for level in levels]
        self.strides: list[int] = [info[level]["reduction"] for level in levels]
        self.frozen_norms = frozen_norms
        model.prune_intermediate_layers(self.levels, prune_norm=True, prune_head=True)
        self.body = model

    def forward(self, images: Tensor) -> list[Tensor]:
        """Compute maps [B, C_i, H / s_i, W / s_i], one a level, of normalised images [B, 3, H, W]."""
        maps: list[Tensor] = self.body.forward_intermediates(
            images, indices=self.levels, norm=False, output_fmt="NCHW", intermediates_only=True
        )
        return maps

    def train(self, mode: bool = True) -> Pyramid:
        super().train(mode)
        if self.frozen_norms:
            freeze_norms(self.body)
        return self


def freeze_norms(module: nn.Module) -> None:
    """Let batch normalisation keep its statistics, until `.train()` is called again."""
    for part in module.modules():
        if isinstance(part, _BatchNorm):
            part.eval()
