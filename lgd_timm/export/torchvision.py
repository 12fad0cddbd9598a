"""torchvision's keys: the weights as torchvision's own model of the same architecture loads them, and the way back."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import torchvision
from torch import Tensor, nn

from ..errors import WeightsError
from ..publish.lgd_safetensors import safetensors
from .key_mapping import DEPTHS, Layer, block_layers, check_architecture, rename, resnet18_names
from .loading import ExportModel

# timm's architecture -> torchvision's; strides, paddings, activations and eps are the same (`twin` looks again, at what comes out).
MODELS = {"resnet18": "resnet18", "mobilenetv2_100": "mobilenet_v2", "efficientnet_b0": "efficientnet_b0"}

_CLASSIFIERS = {"fc": "fc", "classifier": "classifier.1"}  # timm's module -> torchvision's


def export(source: ExportModel, path: Path) -> str:
    """Write a safetensors file of torchvision's state dict. Raises: LGDError for another architecture; WeightsError, as `twin`."""
    state = twin(source).state_dict()
    name = MODELS[source.architecture]
    path.write_bytes(safetensors(dict(state), {"format": "pt", **source.metadata(), "architecture": name}))
    head = f"a classifier of {source.classes} names" if source.classes else "no classifier"
    return f"{len(state)} tensors of torchvision.models.{name}, with {head}"


def from_torchvision(state: Mapping[str, Tensor], *, architecture: str) -> dict[str, Tensor]:
    """A state dict of torchvision as timm's `architecture` has it (resnet18, mobilenetv2_100, efficientnet_b0).

    Raises: LGDError for another architecture; WeightsError for a state dict that is none of it.
    """
    check_architecture(architecture, to="torchvision")
    heads = {theirs: ours for ours, theirs in _CLASSIFIERS.items() if f"{theirs}.weight" in state}
    return rename(state, {theirs: ours for ours, theirs in module_names(architecture).items()} | heads)


@torch.no_grad()
def twin(source: ExportModel) -> Any:
    """torchvision's model with the same weights, in eval mode; it has no classifier where the source has none.

    Raises: LGDError for an architecture that it is not told of; WeightsError where it answers otherwise than the source, whose
    configuration then changes the stock architecture.
    """
    check_architecture(source.architecture, to="torchvision")
    heads = {ours: theirs for ours, theirs in _CLASSIFIERS.items() if hasattr(source.model, ours) and source.classes}
    state = rename(source.model.state_dict(), module_names(source.architecture) | heads)
    with torch.device("meta"):  # no weights are drawn: the source's are taken, and shared
        model = getattr(torchvision.models, MODELS[source.architecture])(num_classes=source.classes or 1)
    if not source.classes:
        setattr(model, "fc" if hasattr(model, "fc") else "classifier", nn.Identity())
    model.eval().load_state_dict(state, assign=True)
    images = torch.randn(2, 3, source.size, source.size, generator=torch.Generator().manual_seed(0))
    wanted, found = source.model(images), model(images)
    difference, scale = float((found - wanted).abs().max()), max(1.0, float(wanted.abs().max()))
    if not difference <= 1e-4 * scale:
        raise WeightsError(
            f"torchvision's {MODELS[source.architecture]} answers otherwise with the weights of {source.name!r} (difference "
            f"{difference:.3g}), so its configuration changes the stock architecture. Take another target, such as onnx."
        )
    return model


def module_names(architecture: str) -> dict[str, str]:
    """timm's names of modules -> torchvision's, without the classifier."""
    if architecture not in DEPTHS:
        return {name: name for name in resnet18_names()}
    block = _mobilenet if architecture == "mobilenetv2_100" else _efficientnet
    names = {
        ours: theirs
        for layer in block_layers(architecture)
        for ours, theirs in zip(layer.names, block(layer), strict=True)
    }
    last = 1 + (sum(DEPTHS[architecture]) if architecture == "mobilenetv2_100" else len(DEPTHS[architecture]))
    ends = {"conv_stem": "0.0", "bn1": "0.1", "conv_head": f"{last}.0", "bn2": f"{last}.1"}
    return names | {ours: f"features.{theirs}" for ours, theirs in ends.items()}


def _mobilenet(layer: Layer) -> tuple[str, str]:
    """Blocks in one row; convolution and norm are a pair of their own, but not the last two."""
    row = 1 + sum(DEPTHS["mobilenetv2_100"][: layer.stage]) + layer.block
    pair = (
        (f"{layer.place}", f"{layer.place + 1}")
        if layer.kind == "project"
        else (f"{layer.place}.0", f"{layer.place}.1")
    )
    return f"features.{row}.conv.{pair[0]}", f"features.{row}.conv.{pair[1]}"


def _efficientnet(layer: Layer) -> tuple[str, str]:
    inside = f"features.{layer.stage + 1}.{layer.block}.block.{layer.place}"
    return (f"{inside}.fc1", f"{inside}.fc2") if layer.kind == "squeeze" else (f"{inside}.0", f"{inside}.1")
