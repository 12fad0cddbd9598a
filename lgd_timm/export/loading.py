"""Open the model that is exported: a stock timm model, its preprocessing and the names of its classes."""

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
from ..evaluate.models import student_folder, timm_model
from ..hub.safe_weights import refuse_pickle
from ..students.entrypoints import stock_name


@dataclass(frozen=True)
class ExportModel:
    """A model to export, in eval mode, float32, on the CPU.

    Images are in 0..1: resized with `interpolation` to `size / crop_pct`, cropped to `size` pixels, less `mean`, over
    `std`.

    Attributes:
        name: as the user named it.
        architecture: timm's stock name.
        network: float [B, 3, size, size] -> logits [B, classes], or features where it has no classifier.
        label_names: of the classifier's answers; none where nobody named them.
        folder: the published folder that it comes from; None for a plain timm model.
        untrusted: it came over hub://, and may name no path outside of the working directory.
    """

    name: str
    architecture: str
    network: Any
    label_names: tuple[str, ...]
    size: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    interpolation: str
    crop_pct: float
    folder: Path | None = None
    untrusted: bool = False

    @property
    def classes(self) -> int:
        """Number of classes of the classifier; 0 without one."""
        return int(self.network.num_classes)

    def facts(self) -> dict[str, Any]:
        """Describe preprocessing and class names (in the logits' order), as plain data stored with the weights."""
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
        """Give `facts` as the metadata of a file, which are strings."""
        return as_strings(self.facts())


def as_strings(facts: Mapping[str, Any]) -> dict[str, str]:
    """Write values that are no strings as JSON."""
    return {
        key: value if isinstance(value, str) else json.dumps(value, ensure_ascii=False) for key, value in facts.items()
    }


def open_export_model(name: str, *, pretrained: bool = True) -> ExportModel:
    """Open a model by its name, for `targets.export`.

    Args:
        name: a published folder, hub://ORG/NAME, a weight's name, a finished run folder, or any timm model (also
            local-dir: and hf-hub:).
        pretrained: False gives a timm model random weights, to try things out.

    Returns:
        The model with its classifier.

    Raises:
        LGDError: the name is none of these, or of a model that does not take RGB images.
        WeightsError: the run has published nothing yet, or weights can't be had.
    """
    refuse_pickle(name, field="model")
    if Path(name).is_file():
        raise LGDError(
            f"{name!r} is a file, which does not say what it is of. Name its folder, with timm's config.json: "
            "local-dir:FOLDER."
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
    network = timm_model(name if found is None else f"local-dir:{found.path}", pretrained=pretrained, classifier=True)
    config = resolve_model_data_config(network)
    if (channels := config["input_size"][0]) != 3:
        raise LGDError(
            f"{name!r} takes {channels} channels, and only models of colour pictures are exported. Name one."
        )
    return ExportModel(
        name=name,
        architecture=stock_name(network.pretrained_cfg["architecture"]),
        network=network.to(torch.float32).eval(),
        label_names=tuple(network.pretrained_cfg.get("label_names") or ()),
        size=config["input_size"][-1],
        mean=_rounded(config["mean"]),
        std=_rounded(config["std"]),
        interpolation=config["interpolation"],
        crop_pct=config["crop_pct"],
        folder=None if found is None else found.path,
        untrusted=found is not None and found.untrusted,
    )


def _rounded(values: Any) -> tuple[float, float, float]:
    """Round off the tails that float32 left: 0.48500001430511475 was 0.485."""
    red, green, blue = (round(float(value), 6) for value in values)
    return red, green, blue
