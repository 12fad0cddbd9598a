"""Features of the cells of a frozen backbone's last map, which FastVLM's vision tower computes of an image."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import timm
import torch
from torch import Tensor, nn

from ..errors import RecipeError, require
from ..teachers.base import module_fingerprint
from ..transfer.backbone import PyramidBackbone, Statistics, find_backbone
from ..transfer.recipe import BackboneRecipe
from .recipe import VisionRecipe


class TowerFeatures(nn.Module):
    """Features of cells, row by row, which are the tokens of an image.

    Args:
        model: a timm model with a map of `cells` by `cells` at `image_size`.
        architecture: timm's name of it.
        image_size: pixels to which both sides of an image are resized.
        cells: of a side.
        mean, std: pixel statistics.

    Attributes:
        dim: width F of a feature.
        processor: transformers' own image processor, which makes pixels of images.
    """

    def __init__(
        self, model: Any, *, architecture: str, image_size: int, cells: int, mean: Statistics, std: Statistics
    ) -> None:
        super().__init__()
        self.architecture, self.image_size, self.cells, self.mean, self.std = architecture, image_size, cells, mean, std
        self.timm_model: Any = model
        self.dim = int(self.timm_model.num_features)
        side = {"height": image_size, "width": image_size}
        library = require("transformers", extra="vl")
        self.processor: Any = library.CLIPImageProcessor(
            size=side, do_center_crop=False, image_mean=list(mean), image_std=list(std)
        )
        self.requires_grad_(False).eval()

    @property
    def stride(self) -> int:
        """Pixels of a cell's side."""
        return self.image_size // self.cells

    @property
    def fingerprint(self) -> str:
        """Of all that decides the features."""
        return module_fingerprint(self, self.architecture, self.image_size, self.cells, self.mean, self.std)

    def train(self, mode: bool = True) -> TowerFeatures:
        """Stay in evaluation mode: the statistics of a frozen backbone do not change."""
        super().train(False)
        return self

    @torch.no_grad()
    def forward(self, images: Sequence[Tensor], _: Sequence[Tensor] = ()) -> list[Tensor]:
        """Compute features float32 [cells * cells, F] of each image, uint8 [3, H, W]; boxes are not looked at."""
        pixels = torch.stack([self.pixels(image) for image in images]).to(next(self.parameters()).device)
        return list(self.timm_model.forward_features(pixels).flatten(2).transpose(1, 2))

    def pixels(self, image: Tensor) -> Tensor:
        """Make the model's input [3, S, S] of an image, uint8 [3, H, W]."""
        pixels: Tensor = self.processor(images=image.cpu(), return_tensors="pt", input_data_format="channels_first")[
            "pixel_values"
        ][0]
        return pixels


def find_frozen(recipe: VisionRecipe, *, seed: int) -> PyramidBackbone:
    """Find the recipe's backbone, none of which is trained. Raises: LGDError where there is no such model."""
    norms: Any = "frozen" if recipe.pretrained else "trained"  # which is what the recipe's check asks; none is trained
    return find_backbone(BackboneRecipe(recipe.model, pretrained=recipe.pretrained, norms=norms), seed=seed)


def open_tower(recipe: VisionRecipe, *, cells: int, seed: int) -> TowerFeatures:
    """Build the recipe's backbone with a last map of `cells` by `cells`.

    Args:
        recipe: whose `image_size` must divide by `cells`.
        cells: of a side.
        seed: of random weights.

    Raises:
        LGDError: there is no such model.
        RecipeError: timm can't build it with such a map.
    """
    source = find_frozen(recipe, seed=seed)
    model = _with_stride(source.architecture, image_size=recipe.image_size, cells=cells)
    model.load_state_dict(source.model.state_dict())
    return TowerFeatures(
        model,
        architecture=source.architecture,
        image_size=recipe.image_size,
        cells=cells,
        mean=source.mean,
        std=source.std,
    )


def _with_stride(architecture: str, *, image_size: int, cells: int) -> Any:
    """A timm model without classifier whose last map has so many cells. Raises: RecipeError where it can't be had."""
    stride = image_size // cells
    try:
        model: Any = timm.create_model(architecture, num_classes=0, output_stride=stride)
        with torch.no_grad():
            found = model.eval().forward_features(torch.zeros(1, 3, image_size, image_size))
    except (RuntimeError, TypeError, ValueError, AssertionError, NotImplementedError) as error:
        raise RecipeError(
            f"timm can't build {architecture} with output_stride {stride} ({error}), which image_size {image_size} and "
            f"{cells} cells of a side ask for. Our three students can, with 8, 16 or 32."
        ) from error
    if found.dim() != 4 or tuple(found.shape[2:]) != (cells, cells):
        raise RecipeError(
            f"{architecture} has features of shape {tuple(found.shape[1:])}, where a map of {cells} x {cells} cells is "
            "needed. Our three students have one."
        )
    return model
