"""What every runtime is given, and what it is compared with: raw pixels in, one answer a picture out.

Normalisation is part of the graph, so that a device needs no arithmetic of its own before it: bytes of 0..255 go in, in RGB.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from ..config.reader import read_value
from ..data import Views
from ..data.preprocess import Preprocess
from ..data.vocabulary import Vocabulary, load_vocabulary
from ..errors import LGDError
from ..evaluate.models import StudentFolder
from ..evaluate.zero_shot_model import ZeroShotModel, student_subject
from ..publish.lgd_safetensors import read_lgd
from .loading import ExportModel

Names = str | Sequence[str]  # as `evaluate --vocabulary` takes them

INPUT = "images"
ALLOWED = 1e-4  # how far a runtime's answers may be from timm's, as a share of the largest one where that is above 1
BATCHES = (1, 3)  # what they are compared on


class Normalise(nn.Module):
    """uint8 or float [B, 3, H, W] in 0..255 -> float, as a model takes it: `images / 255` less the mean, over the deviation."""

    scale: Tensor
    shift: Tensor

    def __init__(self, source: ExportModel) -> None:
        super().__init__()
        mean, std = (
            torch.tensor(values, dtype=torch.float64).view(1, -1, 1, 1) for values in (source.mean, source.std)
        )
        self.register_buffer("scale", (1 / (255 * std)).float())
        self.register_buffer("shift", (-mean / std).float())

    def forward(self, images: Tensor) -> Tensor:
        return images.float() * self.scale + self.shift


class ByName(nn.Module):
    """Features [B, F] -> logits [B, C]: cosines with the text bank over the student's temperature, as a folded classifier gives them."""

    bank: Tensor

    def __init__(self, subject: ZeroShotModel) -> None:
        super().__init__()
        encoder: Any = subject.encoder
        assert subject.student_temperature is not None, "every objective says at which its student is read"
        self.projector = encoder.projector
        self.register_buffer("bank", subject.bank.T.contiguous() / subject.student_temperature)

    def forward(self, features: Tensor) -> Tensor:
        return normalize(self.projector(features), dim=1) @ self.bank


@dataclass(frozen=True)
class Graph:
    """`source` is what was asked for, with `label_names` of these answers; `model` takes normalised pictures."""

    source: ExportModel
    model: nn.Module
    output: str  # logits [B, C] or features [B, F]

    @property
    def module(self) -> nn.Module:
        """uint8 or float [B, 3, size, size] in 0..255 -> answers."""
        return nn.Sequential(Normalise(self.source), self.model).eval()

    def facts(self) -> dict[str, Any]:
        """What goes beside the graph."""
        inside = {
            "channel_order": "RGB",
            "value_range": (0, 255),
            "normalisation": "inside the graph",
            "answers": self.output,
        }
        return {**self.source.facts(), **inside}

    def pixels(self, count: int) -> Tensor:
        """Noise to compare on: uint8 [count, 3, size, size], always the same."""
        shape = (count, 3, self.source.size, self.source.size)
        return torch.randint(256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(0))

    @torch.no_grad()
    def answers(self, pixels: Tensor) -> Tensor:
        """What timm makes of uint8 pictures: float32 [B, K]."""
        source = self.source
        preprocess = Preprocess(size=source.size, mean=source.mean, std=source.std)
        answers: Tensor = self.model(preprocess(pixels))
        return answers

    def compare(self, run: Callable[[np.ndarray], np.ndarray], *, to: str, allowed: float = ALLOWED) -> float:
        """Largest distance of a runtime's answers from timm's, in batches of several sizes. Raises: LGDError where more than `allowed`."""
        largest = 0.0
        for count in BATCHES:
            pixels = self.pixels(count)
            wanted, found = self.answers(pixels), torch.from_numpy(run(pixels.numpy()))
            if found.shape != wanted.shape:
                raise LGDError(
                    f"--to {to}: the runtime answers {list(found.shape)} for {list(wanted.shape)}. Take another target."
                )
            distance = ((found - wanted).abs().max() / max(1.0, float(wanted.abs().max()))).item()
            largest = max(largest, distance)
            if not distance <= allowed:  # which a NaN is not either
                raise LGDError(
                    f"--to {to}: the runtime's {self.output} are {distance:.2g} from timm's, and {allowed:g} is allowed. "
                    "Nothing was kept; take another target, or report this model."
                )
        return largest


def graph_of(
    source: ExportModel, *, features: bool = False, vocabulary: Names | None = None, templates: str = "none"
) -> Graph:
    """The classifier of a model; of a student without one, what it says by names: its own, or those of `vocabulary`.

    `features`: the pooled features instead, which is also what a model without classifier gives.
    Raises: LGDError for names that the model can't be asked about.
    """
    if features and vocabulary is not None:
        raise LGDError("--features are no answers by name. Leave out --vocabulary, or --features.")
    if vocabulary is not None and source.folder is None:
        raise LGDError(
            f"{source.name!r} is no published student, so it has no projector that other names could be read by."
        )
    if features or (not source.classes and source.folder is None):
        model = copy.deepcopy(source.model)
        model.reset_classifier(0)
        return Graph(replace(source, label_names=()), model, "features")
    if source.folder is None or (source.classes and vocabulary is None):
        return Graph(source, source.model, "logits")
    if vocabulary is None:
        banks = read_lgd(source.folder / "lgd.safetensors").banks
        return _by_name(source, source.folder, Vocabulary(banks.names, banks.templates))
    named = read_value("vocabulary", vocabulary) if isinstance(vocabulary, str) else vocabulary
    return _by_name(source, source.folder, load_vocabulary(named, templates=templates))


def _by_name(source: ExportModel, folder: Path, names: Vocabulary) -> Graph:
    subject = student_subject(StudentFolder(folder, source.travelled), names)
    encoder: Any = subject.encoder
    model = nn.Sequential(encoder.backbone, ByName(subject)).eval()
    return Graph(replace(source, label_names=names.names), model, "logits")


def views_of(source: ExportModel) -> Views:
    """How pictures are shown to a model for evaluation."""
    interpolation = source.interpolation if source.interpolation in ("bilinear", "bicubic") else "bicubic"
    return Views(
        size=source.size, augmentation="none", interpolation=interpolation, crop=min(1.0, max(0.1, source.crop_pct))
    )
