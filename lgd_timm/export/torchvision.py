"""Write torchvision's keys: weights that torchvision's own model of the same architecture loads. And read them back."""

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

# timm's architecture -> torchvision's. Strides, paddings, activations and eps are the same; `torchvision_model`
# compares answers.
MODELS = {"resnet18": "resnet18", "mobilenetv2_100": "mobilenet_v2", "efficientnet_b0": "efficientnet_b0"}

_CLASSIFIERS = {"fc": "fc", "classifier": "classifier.1"}  # timm's module -> torchvision's


def export(model: ExportModel, path: Path) -> str:
    """Write torchvision's state dict as a safetensors file.

    Args:
        model: of an architecture in `MODELS`.
        path: the new file.

    Returns:
        A line that says what was written.

    Raises:
        LGDError: another architecture.
        WeightsError: as `torchvision_model`.
    """
    state = torchvision_model(model).state_dict()
    name = MODELS[model.architecture]
    path.write_bytes(safetensors(dict(state), {"format": "pt", **model.metadata(), "architecture": name}))
    head = f"a classifier of {model.classes} names" if model.classes else "no classifier"
    return f"{len(state)} tensors of torchvision.models.{name}, with {head}"


def from_torchvision(state: Mapping[str, Tensor], *, architecture: str) -> dict[str, Tensor]:
    """Rename a state dict of torchvision to timm's keys.

    Args:
        state: torchvision's; its classifier is kept where it has one.
        architecture: timm's name: resnet18, mobilenetv2_100, efficientnet_b0.

    Returns:
        The same tensors under timm's keys.

    Raises:
        LGDError: another architecture.
        WeightsError: the state dict has other layers than the architecture.
    """
    check_architecture(architecture, to="torchvision")
    heads = {theirs: ours for ours, theirs in _CLASSIFIERS.items() if f"{theirs}.weight" in state}
    return rename(state, {theirs: ours for ours, theirs in module_names(architecture).items()} | heads)


@torch.no_grad()
def torchvision_model(model: ExportModel) -> Any:
    """Build torchvision's model with a timm model's weights, and compare its answers.

    Args:
        model: of an architecture in `MODELS`.

    Returns:
        torchvision's model in eval mode, which shares the weights; `nn.Identity` is its classifier where `model` has
        none.

    Raises:
        LGDError: another architecture.
        WeightsError: the answers differ, so the model's configuration changes the stock architecture.
    """
    check_architecture(model.architecture, to="torchvision")
    heads = {ours: theirs for ours, theirs in _CLASSIFIERS.items() if hasattr(model.network, ours) and model.classes}
    state = rename(model.network.state_dict(), module_names(model.architecture) | heads)
    with torch.device("meta"):  # weights are assigned below, so none need to be drawn
        theirs: Any = getattr(torchvision.models, MODELS[model.architecture])(num_classes=model.classes or 1)
    if not model.classes:
        setattr(theirs, "fc" if hasattr(theirs, "fc") else "classifier", nn.Identity())
    theirs.eval().load_state_dict(state, assign=True)
    images = torch.randn(2, 3, model.size, model.size, generator=torch.Generator().manual_seed(0))
    wanted, found = model.network(images), theirs(images)
    difference, scale = float((found - wanted).abs().max()), max(1.0, float(wanted.abs().max()))
    if not difference <= 1e-4 * scale:
        raise WeightsError(
            f"torchvision's {MODELS[model.architecture]} answers otherwise with the weights of {model.name!r} "
            f"(difference {difference:.3g}), so its configuration changes the stock architecture. Take another target, "
            "such as onnx."
        )
    return theirs


def module_names(architecture: str) -> dict[str, str]:
    """Map timm's module names to torchvision's, without the classifier."""
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
    """Blocks are numbered through all stages. Convolution and norm form a pair, except the last two of a block."""
    row = 1 + sum(DEPTHS["mobilenetv2_100"][: layer.stage]) + layer.block
    pair = (
        (f"{layer.index}", f"{layer.index + 1}")
        if layer.kind == "project"
        else (f"{layer.index}.0", f"{layer.index}.1")
    )
    return f"features.{row}.conv.{pair[0]}", f"features.{row}.conv.{pair[1]}"


def _efficientnet(layer: Layer) -> tuple[str, str]:
    inside = f"features.{layer.stage + 1}.{layer.block}.block.{layer.index}"
    return (f"{inside}.fc1", f"{inside}.fc2") if layer.kind == "squeeze" else (f"{inside}.0", f"{inside}.1")
