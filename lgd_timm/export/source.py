"""What is exported: a stock timm model with its classifier, how pictures are shown to it, and the names that it answers with."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import timm
import torch
from timm.data import resolve_model_data_config

from ..errors import WeightsError
from ..evaluate.models import plain_model, student_folder
from ..students import stock_name


@dataclass(frozen=True)
class Source:
    """A model in eval mode, float32, on the CPU. It has a classifier where the weights have one."""

    name: str  # as it was asked for
    architecture: str  # timm's stock name
    model: Any
    label_names: tuple[str, ...]  # of the classifier's answers; none where nobody named them
    size: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    interpolation: str
    crop_pct: float
    folder: Path | None = None  # a published folder's


def open_source(name: str, *, pretrained: bool = True) -> Source:
    """A published folder, hub://ORG/NAME, a weight's name, a finished run folder, or any timm model (local-dir:, hf-hub: too).

    `pretrained` False: random weights of a timm model, to try things out. Raises: LGDError for what is none of these.
    """
    fresh = not pretrained and timm.is_model(name)
    found = None if fresh else student_folder(name)
    if found is not None and found.checkpoint is not None:
        raise WeightsError(f"{name!r} is a run that has published nothing yet. Save it first: lgd-timm save {name} FOLDER.")
    model = plain_model(name if found is None else f"local-dir:{found.path}", pretrained=pretrained, classifier=True)
    config = resolve_model_data_config(model)
    return Source(
        name=name,
        architecture=stock_name(model.pretrained_cfg["architecture"]),
        model=model.to(torch.float32).eval(),
        label_names=tuple(model.pretrained_cfg.get("label_names") or ()),
        size=config["input_size"][-1],
        mean=tuple(config["mean"]),
        std=tuple(config["std"]),
        interpolation=config["interpolation"],
        crop_pct=config["crop_pct"],
        folder=None if found is None else found.path,
    )
