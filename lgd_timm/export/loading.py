"""What is exported: a stock timm model with its classifier, how pictures are shown to it, and the names that it answers with."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import timm
import torch
from timm.data import resolve_model_data_config

from ..errors import LGDError, WeightsError
from ..evaluate.models import plain_model, student_folder
from ..hub.safe_weights import refuse_pickle
from ..students.entrypoints import stock_name


@dataclass(frozen=True)
class ExportModel:
    """A model in eval mode, float32, on the CPU: float [B, 3, size, size] -> logits [B, classes], or features where it has no classifier.

    It is shown pictures in 0..1, resized with `interpolation` to `size / crop_pct` and cropped to `size`, less `mean`, over `std`.
    """

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
    travelled: bool = False  # it came over hub://, and may name no path outside of the working directory

    @property
    def classes(self) -> int:
        """How many names the classifier answers with; 0 without one."""
        return int(self.model.num_classes)

    def facts(self) -> dict[str, Any]:
        """What goes beside the weights: how pictures are shown, and the names in the order of the logits."""
        return {
            "architecture": self.architecture,
            "interpolation": self.interpolation,
            "size": self.size,
            "mean": self.mean,
            "std": self.std,
            "crop_pct": self.crop_pct,
            "label_names": self.label_names,
        }

    def metadata(self) -> dict[str, str]:
        """The same as a file's metadata take it."""
        return as_strings(self.facts())


def as_strings(facts: Mapping[str, Any]) -> dict[str, str]:
    """Values that are no strings as JSON."""
    return {
        key: value if isinstance(value, str) else json.dumps(value, ensure_ascii=False) for key, value in facts.items()
    }


def open_source(name: str, *, pretrained: bool = True) -> ExportModel:
    """A published folder, hub://ORG/NAME, a weight's name, a finished run folder, or any timm model (local-dir:, hf-hub: too).

    `pretrained` False: random weights of a timm model, to try things out. Raises: LGDError for what is none of these.
    """
    refuse_pickle(name, field="model")
    if Path(name).is_file():
        raise LGDError(
            f"{name!r} is a file, which does not say what it is of. Name its folder, with timm's config.json: local-dir:FOLDER."
        )
    fresh = not pretrained and timm.is_model(name)
    found = None if fresh else student_folder(name)
    if found is not None and not pretrained:
        raise LGDError(
            f"{name!r} is a student with weights of its own. Leave out --random-weights, or name a timm model."
        )
    if found is not None and found.checkpoint is not None:
        raise WeightsError(
            f"{name!r} is a run that has published nothing yet. Save it first: lgd-timm save {name} FOLDER."
        )
    model = plain_model(name if found is None else f"local-dir:{found.path}", pretrained=pretrained, classifier=True)
    config = resolve_model_data_config(model)
    if (channels := config["input_size"][0]) != 3:
        raise LGDError(
            f"{name!r} takes {channels} channels, and only models of colour pictures are exported. Name one."
        )
    return ExportModel(
        name=name,
        architecture=stock_name(model.pretrained_cfg["architecture"]),
        model=model.to(torch.float32).eval(),
        label_names=tuple(model.pretrained_cfg.get("label_names") or ()),
        size=config["input_size"][-1],
        mean=_three(config["mean"]),
        std=_three(config["std"]),
        interpolation=config["interpolation"],
        crop_pct=config["crop_pct"],
        folder=None if found is None else found.path,
        travelled=found is not None and found.travelled,
    )


def _three(values: Any) -> tuple[float, float, float]:
    """Statistics without the tails that float32 left: 0.48500001430511475 was 0.485."""
    red, green, blue = (round(float(value), 6) for value in values)
    return red, green, blue
