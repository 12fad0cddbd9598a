"""Write OpenMMLab's keys: a backbone with the layer names of MMDetection and MMSegmentation. And read them back.

The names are those of their model definitions: {mmdet,mmseg}/models/backbones/{resnet,mobilenet_v2}.py, and
efficientnet.py of mmdet and of mmpretrain, as mmseg has none. Their loader reads only pickles
(mmengine/runner/checkpoint.py) and we write none: docs/guides/export.md has the line that makes one. A file without
`prefix` serves a backbone's `init_cfg=dict(type='Pretrained', ...)`, one with `backbone.` a detector's `load_from`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from ..errors import LGDError
from ..publish.lgd_safetensors import safetensors
from .key_mapping import DEPTHS, Layer, block_layers, check_architecture, rename, resnet18_names
from .loading import ExportModel
from .torchvision import torchvision_model

# By default their EfficientNet pads as TensorFlow does and has another eps; timm's pads evenly.
_AS_TIMM = "arch='b0', conv_cfg=None, norm_cfg=dict(type='BN', eps=1e-5)"

# Configuration of the backbone that has these names.
BACKBONES = {
    "mmdet": {
        "resnet18": "dict(type='ResNet', depth=18)",
        "mobilenetv2_100": "dict(type='MobileNetV2')",
        "efficientnet_b0": f"dict(type='EfficientNet', {_AS_TIMM})",
    },
    "mmseg": {
        "resnet18": "dict(type='ResNet', depth=18)",
        "mobilenetv2_100": "dict(type='MobileNetV2')",
        "efficientnet_b0": f"dict(type='mmpretrain.EfficientNet', {_AS_TIMM})",
    },
}


def mmdet(model: ExportModel, path: Path, *, prefix: str = "") -> str:
    """Write MMDetection's keys as a safetensors file.

    Args:
        model: of an architecture in `key_mapping.ARCHITECTURES`.
        path: the new file.
        prefix: stands in front of every key, such as "backbone.".

    Returns:
        A line that says what was written, and two of configuration: `backbone` and `data_preprocessor`.

    Raises:
        LGDError: another architecture, or a prefix that is no beginning of a key.
        WeightsError: as `torchvision_model`.
    """
    return _write(model, path, library="mmdet", prefix=prefix)


def mmseg(model: ExportModel, path: Path, *, prefix: str = "") -> str:
    """Write MMSegmentation's keys as a safetensors file. Arguments, returns and errors: as of `mmdet`."""
    return _write(model, path, library="mmseg", prefix=prefix)


def from_mm(state: Mapping[str, Tensor], *, architecture: str, library: str, prefix: str = "") -> dict[str, Tensor]:
    """Rename a backbone's state dict to timm's keys.

    Args:
        state: OpenMMLab's; keys without `prefix` are ignored.
        architecture: timm's name: resnet18, mobilenetv2_100, efficientnet_b0.
        library: "mmdet" or "mmseg".
        prefix: what stands in front of the backbone's keys.

    Returns:
        The tensors under timm's keys, without what the library lacks: the classifier, and of mmseg's MobileNetV2 the
        last convolution.

    Raises:
        LGDError: another architecture.
        WeightsError: the state dict has other layers than the architecture.
    """
    check_architecture(architecture, to=library)
    plain = {key.removeprefix(prefix): tensor for key, tensor in state.items() if key.startswith(prefix)}
    return rename(plain, {theirs: ours for ours, theirs in module_names(architecture, library=library).items()})


def _write(model: ExportModel, path: Path, *, library: str, prefix: str) -> str:
    check_architecture(model.architecture, to=library)
    if not re.fullmatch(r"([A-Za-z_]\w*\.)*", prefix):
        raise LGDError(f"--prefix {prefix!r} is no beginning of a key. Write names that end in dots, such as backbone.")
    torchvision_model(model)  # compares answers: theirs is the same network as torchvision's, which is installed
    names = module_names(model.architecture, library=library)
    state = rename(
        model.network.state_dict(), names, left_out=("fc", "classifier", *_beyond(model.architecture, library))
    )
    backbone = BACKBONES[library][model.architecture]
    mean, std = ([round(255 * value, 3) for value in values] for values in (model.mean, model.std))
    preprocessor = f"dict(mean={mean}, std={std}, bgr_to_rgb=True)"  # of pixels in 0..255
    facts = {"format": "pt", "size": str(model.size), "backbone": backbone, "data_preprocessor": preprocessor}
    path.write_bytes(safetensors({prefix + key: tensor for key, tensor in state.items()}, facts))
    return f"{len(state)} tensors for {library}\n  backbone = {backbone}\n  data_preprocessor = {preprocessor}"


def _beyond(architecture: str, library: str) -> tuple[str, ...]:
    """Modules of timm, beside the classifier, that the library's backbone lacks."""
    return ("conv_head", "bn2") if (architecture, library) == ("mobilenetv2_100", "mmseg") else ()


def module_names(architecture: str, *, library: str) -> dict[str, str]:
    """Map timm's module names to the library's, without the classifier."""
    if architecture not in DEPTHS:
        return {name: name for name in resnet18_names()}
    if architecture == "efficientnet_b0":
        block, first, last = _efficientnet, "layers.0", "layers.6"
    else:
        block, first, last = _BLOCKS[library], "conv1", "conv2"
    names = {
        ours: theirs
        for layer in block_layers(architecture)
        for ours, theirs in zip(layer.names, block(layer), strict=True)
    }
    names |= {"conv_stem": f"{first}.conv", "bn1": f"{first}.bn", "conv_head": f"{last}.conv", "bn2": f"{last}.bn"}
    return {ours: theirs for ours, theirs in names.items() if ours not in _beyond(architecture, library)}


def _mmdet_mobilenet(layer: Layer) -> tuple[str, str]:
    return _conv_module(f"layer{layer.stage + 1}.{layer.block}.{_WORDS[layer.kind]}")


def _mmseg_mobilenet(layer: Layer) -> tuple[str, str]:
    return _conv_module(f"layer{layer.stage + 1}.{layer.block}.conv.{layer.index}")


def _efficientnet(layer: Layer) -> tuple[str, str]:
    group, before = _GROUPS[layer.stage]
    inside = f"layers.{group}.{before + layer.block}.{_WORDS[layer.kind]}"
    return (f"{inside}.conv1.conv", f"{inside}.conv2.conv") if layer.kind == "squeeze" else _conv_module(inside)


def _conv_module(name: str) -> tuple[str, str]:
    return f"{name}.conv", f"{name}.bn"


# timm's stage -> their stage, and how many of its blocks come before. Stages of one resolution are one stage there (80
# and 112 channels, 192 and 320).
_GROUPS = ((1, 0), (2, 0), (3, 0), (4, 0), (4, 3), (5, 0), (5, 4))
_WORDS = {"expand": "expand_conv", "depthwise": "depthwise_conv", "squeeze": "se", "project": "linear_conv"}
_BLOCKS = {"mmdet": _mmdet_mobilenet, "mmseg": _mmseg_mobilenet}
