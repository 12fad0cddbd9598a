"""Build the student that trains: pixels -> stock timm backbone -> projector -> embedding in the teacher's space."""

from __future__ import annotations

from itertools import pairwise
from typing import Any, Literal

import timm
import torch
from timm.data import resolve_model_data_config
from torch import Tensor, nn

from ..data.preprocess import Preprocess
from ..errors import LGDError
from ..hub.safe_weights import BUILD_ERRORS, timm_source
from ..hub.timm_models import build_timm_model

Projector = Literal["linear", "mlp", "deep"]

LARGEST_CHECKED = 512  # pixels; a model that takes these takes larger ones, and one image of them takes no time


def make_projector(kind: str, features: int, embed_dim: int) -> nn.Module:
    """Build a projector from features [B, F] to embeddings [B, D].

    Args:
        kind: `linear` folds into a stock classifier; `mlp` is the released code's Linear-ReLU-Linear, F hidden units
            as in the released clipdistiller.py; `deep` is SimReg's four layers, batch-normalised between (arXiv
            2201.05131, section 3).
        features: F.
        embed_dim: D.

    Raises:
        LGDError: the kind is unknown.
    """
    if kind == "linear":
        return nn.Linear(features, embed_dim)
    if kind == "mlp":
        return nn.Sequential(nn.Linear(features, features), nn.ReLU(inplace=True), nn.Linear(features, embed_dim))
    if kind == "deep":
        widths = (features, 2 * features, features, 2 * features)
        hidden = [
            layer
            for before, after in pairwise(widths)
            for layer in (nn.Linear(before, after, bias=False), nn.BatchNorm1d(after), nn.ReLU(inplace=True))
        ]
        return nn.Sequential(*hidden, nn.Linear(widths[-1], embed_dim))
    raise LGDError(f"projector {kind!r} is unknown; choose linear, mlp or deep.")


class Student(nn.Module):
    """Backbone and projector as one module, so that DDP and EMA see both.

    Args:
        backbone: a stock timm model without classifier; it is what gets published.
        embed_dim: D, of the teacher's space.
        projector: `linear`, `mlp` or `deep`.
        image_size: pixels, by default the backbone's own.
    """

    def __init__(
        self, backbone: Any, *, embed_dim: int, projector: str = "linear", image_size: int | None = None
    ) -> None:
        super().__init__()
        config = resolve_model_data_config(backbone)
        self.preprocess = Preprocess(
            size=image_size or config["input_size"][-1],
            mean=config["mean"],
            std=config["std"],
            interpolation=config["interpolation"],
        )
        self.backbone = backbone
        self.projector_kind = projector
        self.projector = make_projector(
            projector, getattr(backbone, "head_hidden_size", backbone.num_features), embed_dim
        )

    def features(self, images: Tensor) -> Tensor:
        """Return pooled features [B, F] of images: uint8 [B, 3, H, W], or float in 0..1."""
        return self.backbone(self.preprocess(images))

    def forward(self, images: Tensor) -> Tensor:
        """Return embeddings [B, D], before L2 normalisation, of images: uint8 [B, 3, H, W], or float in 0..1."""
        return self.projector(self.features(images))


def check_image_size(model: nn.Module, size: int, *, field: str) -> None:
    """Check, on one image, that a model takes images of a size. Sizes above `LARGEST_CHECKED` are not tried.

    Args:
        model: a backbone; it is left in its mode.
        size: pixels of a side.
        field: what the user called it, for the message.

    Raises:
        LGDError: it does not, as a vision transformer of another patch size, or a network that shrinks them to nothing.
    """
    if size > LARGEST_CHECKED:
        return
    training = model.training
    try:
        with torch.no_grad():
            model.eval()(torch.zeros(1, 3, size, size))
    except (RuntimeError, AssertionError, ValueError) as error:
        reason = " ".join(str(error).split())[:200]
        raise LGDError(
            f"{field} = {size}: the model does not take images of that size ({reason}). Change it."
        ) from error
    finally:
        model.train(training)


def check_name(model: str) -> None:
    """Check that timm knows a model by its name. Raises: LGDError."""
    if not timm.is_model(model) and ":" not in model:
        known = ", ".join(timm.list_models("lgd_*"))
        raise LGDError(
            f"student.model {model!r} is unknown to timm {timm.__version__}. Ours: {known}; all: timm.list_models()."
        )


def create_student(
    model: str,
    *,
    embed_dim: int,
    projector: str = "linear",
    image_size: int | None = None,
    pretrained: bool = False,
    drop_rate: float = 0.0,
    drop_path_rate: float = 0.0,
    mean: tuple[float, float, float] | None = None,
    std: tuple[float, float, float] | None = None,
) -> Student:
    """Build a student of any timm model.

    Args:
        model: a timm model's name, `local-dir:FOLDER` or `hf-hub:ORG/NAME[@REVISION]`; of the latter two only
            safetensors are read.
        embed_dim: D, of the teacher's space.
        projector: `linear`, `mlp` or `deep`.
        image_size: pixels, by default the model's own.
        pretrained: start from the model's own weights.
        drop_rate: dropout, as the timm model has it.
        drop_path_rate: stochastic depth, as the timm model has it.
        mean: of the pixels in 0..1, such as the teacher's; by default the model's own.
        std: likewise.

    Raises:
        LGDError: timm does not know the model, or can't build it.
    """
    check_name(model)
    statistics: dict[str, Any] = {key: value for key, value in (("mean", mean), ("std", std)) if value is not None}
    if image_size:
        statistics["input_size"] = (3, image_size, image_size)
    options: dict[str, Any] = {"drop_rate": drop_rate, "drop_path_rate": drop_path_rate or None}
    source = timm_source(model, field="student.model", pretrained=pretrained)
    try:
        backbone = build_timm_model(
            source, pretrained=pretrained, classifier=False, pretrained_cfg_overlay=statistics, **options
        )
    except BUILD_ERRORS as error:  # an unknown tag, a folder that does not fit, the Hub out of reach
        raise LGDError(f"student.model {model!r} can't be built ({error}).") from error
    if image_size:
        check_image_size(backbone, image_size, field="image size")
    return Student(backbone, embed_dim=embed_dim, projector=projector, image_size=image_size)
