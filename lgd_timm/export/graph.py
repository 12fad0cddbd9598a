"""Build the graph that a runtime gets: raw pixels in, one answer an image out.

The normalisation is part of the graph, so that a device feeds it RGB bytes (0..255) without any arithmetic of its own.
What a runtime makes of the graph is compared with what timm makes of the same pixels.
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
from ..evaluate.zero_shot_model import ZeroShotModel, zero_shot_student
from ..publish.lgd_safetensors import read_lgd
from .loading import ExportModel

Names = str | Sequence[str]  # as `evaluate --vocabulary` takes them

INPUT = "images"
ALLOWED = 1e-4  # largest difference from timm's answers, as a share of the largest answer where that is above 1
BATCHES = (1, 3)  # batch sizes on which they are compared


class Normalise(nn.Module):
    """Normalise pixels, uint8 or float [B, 3, H, W] in 0..255, as float32: `(images / 255 - mean) / std`."""

    scale: Tensor
    shift: Tensor

    def __init__(self, model: ExportModel) -> None:
        super().__init__()
        mean, std = (torch.tensor(values, dtype=torch.float64).view(1, -1, 1, 1) for values in (model.mean, model.std))
        self.register_buffer("scale", (1 / (255 * std)).float())
        self.register_buffer("shift", (-mean / std).float())

    def forward(self, images: Tensor) -> Tensor:
        return images.float() * self.scale + self.shift


class ZeroShotHead(nn.Module):
    """Classify by names: features [B, F] -> cosines with the text bank over the student's temperature, [B, C].

    These are the logits that a linear projector gives once it is folded into the published classifier.
    """

    bank: Tensor

    def __init__(self, model: ZeroShotModel) -> None:
        super().__init__()
        encoder: Any = model.encoder
        assert model.student_temperature is not None, "every objective has a student_temperature"
        self.projector = encoder.projector
        self.register_buffer("bank", model.bank.T.contiguous() / model.student_temperature)

    def forward(self, features: Tensor) -> Tensor:
        return normalize(self.projector(features), dim=1) @ self.bank


@dataclass(frozen=True)
class Graph:
    """A model as a runtime gets it.

    Attributes:
        model: what is exported; its `label_names` are those of this graph's answers.
        network: takes normalised images, float32 [B, 3, size, size].
        output: what the network answers: "logits" [B, C] or "features" [B, F].
        more: names of what it answers besides, in a tuple: `with_embedding` adds "embedding" [B, D], unit rows.
    """

    model: ExportModel
    network: nn.Module
    output: str
    more: tuple[str, ...] = ()

    @property
    def module(self) -> nn.Module:
        """Normalisation and network in one: uint8 or float [B, 3, size, size] in 0..255 -> answers."""
        return nn.Sequential(Normalise(self.model), self.network).eval()

    def facts(self) -> dict[str, Any]:
        """Describe input and answers, as plain data that is stored with the graph."""
        inside = {
            "channel_order": "RGB",
            "value_range": (0, 255),
            "normalisation": "inside the graph",
            "answers": self.output,
        }
        return {**self.model.facts(), **inside}

    def pixels(self, count: int) -> Tensor:
        """Draw noise to compare on: uint8 [count, 3, size, size], the same at each call."""
        shape = (count, 3, self.model.size, self.model.size)
        return torch.randint(256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(0))

    @torch.no_grad()
    def answers(self, pixels: Tensor) -> Tensor:
        """Answer with timm's own model: uint8 [B, 3, size, size] -> float32 [B, C] or [B, F]."""
        preprocess = Preprocess(size=self.model.size, mean=self.model.mean, std=self.model.std)
        answers = self.network(preprocess(pixels))
        first: Tensor = answers[0] if self.more else answers
        return first

    def compare(self, run: Callable[[np.ndarray], np.ndarray], *, to: str, allowed: float = ALLOWED) -> float:
        """Compare a runtime's answers with timm's, in batches of several sizes.

        Args:
            run: the graph in the runtime, uint8 [B, 3, size, size] -> answers.
            to: name of the target, for messages.
            allowed: largest difference that is accepted, as a share of the largest answer where that is above 1.

        Returns:
            The largest difference, in the same unit.

        Raises:
            LGDError: answers differ by more than `allowed`, or have another shape.
        """
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
            if not distance <= allowed:  # true of NaN too
                raise LGDError(
                    f"--to {to}: the runtime's {self.output} are {distance:.2g} from timm's, and {allowed:g} is "
                    "allowed. Nothing was kept; take another target, or report this model."
                )
        return largest


def graph_of(
    model: ExportModel, *, features: bool = False, vocabulary: Names | None = None, templates: str = "none"
) -> Graph:
    """Choose what a graph answers: logits of the model's classifier or of names, or features.

    Args:
        model: what is exported.
        features: answer with pooled features, as a model without a classifier does anyway.
        vocabulary: names to classify by, of a published student; None: its own (the classifier, where it has one).
        templates: prompt templates of `vocabulary`.

    Returns:
        The graph, not yet written.

    Raises:
        LGDError: the model can't classify by these names.
    """
    if features and vocabulary is not None:
        raise LGDError("--features are no answers by name. Leave out --vocabulary, or --features.")
    if vocabulary is not None and model.folder is None:
        raise LGDError(
            f"{model.name!r} is no published student, so it has no projector that other names could be read by."
        )
    if features or (not model.classes and model.folder is None):
        network = copy.deepcopy(model.network)
        network.reset_classifier(0)
        return Graph(replace(model, label_names=()), network, "features")
    if model.folder is None or (model.classes and vocabulary is None):
        return Graph(model, model.network, "logits")
    if vocabulary is None:
        banks = read_lgd(model.folder / "lgd.safetensors").banks
        return _zero_shot_graph(model, model.folder, Vocabulary(banks.names, banks.templates))
    named = read_value("vocabulary", vocabulary) if isinstance(vocabulary, str) else vocabulary
    return _zero_shot_graph(model, model.folder, load_vocabulary(named, templates=templates))


class _WithEmbedding(nn.Module):
    """Logits [B, C] of a head, and unit embeddings [B, D] of a projector, of one backbone's features."""

    def __init__(self, backbone: nn.Module, head: nn.Module, projector: nn.Module) -> None:
        super().__init__()
        self.backbone, self.head, self.projector = backbone, head, projector

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        features = self.backbone(images)
        return self.head(features), normalize(self.projector(features), dim=1)


def with_embedding(graph: Graph) -> Graph:
    """Let a published student's graph answer with its embeddings too, by which images are compared with any names."""
    model, network = graph.model, graph.network
    assert model.folder is not None
    banks = read_lgd(model.folder / "lgd.safetensors").banks
    names = Vocabulary(banks.names, banks.templates)
    encoder: Any = zero_shot_student(StudentFolder(model.folder, model.untrusted), names).encoder
    stock: Any = network
    head = network[-1] if isinstance(network, nn.Sequential) else stock.get_classifier()
    return replace(graph, network=_WithEmbedding(encoder.backbone, head, encoder.projector).eval(), more=("embedding",))


def _zero_shot_graph(model: ExportModel, folder: Path, names: Vocabulary) -> Graph:
    student = zero_shot_student(StudentFolder(folder, model.untrusted), names)
    encoder: Any = student.encoder
    network = nn.Sequential(encoder.backbone, ZeroShotHead(student)).eval()
    return Graph(replace(model, label_names=names.names), network, "logits")


def views_of(model: ExportModel) -> Views:
    """Give the unaugmented views on which a model is evaluated and calibrated."""
    interpolation = model.interpolation if model.interpolation in ("bilinear", "bicubic") else "bicubic"
    crop = min(1.0, max(0.1, model.crop_pct))
    return Views(size=model.size, augmentation="none", interpolation=interpolation, crop=crop)
