"""List the layers of the three students by timm's names, from which other libraries' names are made.

A mapping is of module names, and tensors keep theirs: with `bn1` -> `features.0.1`, `bn1.running_mean` becomes
`features.0.1.running_mean`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from ..errors import LGDError, WeightsError

# Number of blocks in each stage. The one block of the first stage has no expanding convolution.
DEPTHS = {"mobilenetv2_100": (1, 2, 3, 4, 3, 3, 1), "efficientnet_b0": (1, 2, 2, 3, 3, 4, 1)}
SQUEEZING = ("efficientnet_b0",)  # whose blocks have squeeze-and-excitation
ARCHITECTURES = ("resnet18", *DEPTHS)

Kind = Literal["expand", "depthwise", "squeeze", "project"]


@dataclass(frozen=True)
class Layer:
    """Two modules of an inverted residual block: convolution and batch norm, or the two convolutions of "squeeze".

    Attributes:
        stage: from 0.
        block: from 0, in its stage.
        kind: what the layer does.
        index: from 0, in its block.
        names: timm's names of the two modules.
    """

    stage: int
    block: int
    kind: Kind
    index: int
    names: tuple[str, str]


def block_layers(architecture: str) -> Iterator[Layer]:
    """Yield the layers of all blocks of an architecture in `DEPTHS`, from input to output."""
    for stage, depth in enumerate(DEPTHS[architecture]):
        for block in range(depth):
            rows = _EXPANDING if stage else _FIRST
            layers = ((kind, names) for kind, names in rows if kind != "squeeze" or architecture in SQUEEZING)
            for index, (kind, names) in enumerate(layers):
                first, second = (f"blocks.{stage}.{block}.{name}" for name in names)
                yield Layer(stage, block, kind, index, (first, second))


_SQUEEZE: tuple[Kind, tuple[str, str]] = ("squeeze", ("se.conv_reduce", "se.conv_expand"))
_FIRST: list[tuple[Kind, tuple[str, str]]] = [
    ("depthwise", ("conv_dw", "bn1")),
    _SQUEEZE,
    ("project", ("conv_pw", "bn2")),
]
_EXPANDING: list[tuple[Kind, tuple[str, str]]] = [
    ("expand", ("conv_pw", "bn1")),
    ("depthwise", ("conv_dw", "bn2")),
    _SQUEEZE,
    ("project", ("conv_pwl", "bn3")),
]


def resnet18_names() -> list[str]:
    """List the modules of a ResNet-18 without its classifier; all libraries use the same names."""
    blocks = [f"layer{stage}.{block}" for stage in range(1, 5) for block in range(2)]
    inner = [f"{block}.{name}" for block in blocks for name in ("conv1", "bn1", "conv2", "bn2")]
    return [
        "conv1",
        "bn1",
        *inner,
        *(f"layer{stage}.0.downsample.{index}" for stage in range(2, 5) for index in range(2)),
    ]


def check_architecture(architecture: str, *, to: str) -> None:
    """Check that the layers of an architecture are known here. Raises: LGDError."""
    if architecture not in ARCHITECTURES:
        known = ", ".join(ARCHITECTURES)
        raise LGDError(
            f"--to {to} knows the layers of {known}, and not those of {architecture!r}. Take another target, such as "
            "onnx."
        )


def rename(
    state: Mapping[str, Tensor], modules: Mapping[str, str], *, left_out: Iterable[str] = ()
) -> dict[str, Tensor]:
    """Rename the modules of a state dict.

    Args:
        state: any state dict.
        modules: old name -> new name, of every module with tensors.
        left_out: modules to drop, whether they are there or not.

    Returns:
        The same tensors under new keys.

    Raises:
        WeightsError: the state dict lacks modules, or has others.
    """
    left_out, there = set(left_out), {key.rpartition(".")[0] for key in state}
    if wrong := sorted(there.symmetric_difference(modules) - left_out):
        raise WeightsError(
            f"The weights have other layers than their architecture: {', '.join(wrong[:5])}"
            f"{', ...' if len(wrong) > 5 else ''}. Name a model of the stock architecture."
        )
    split = ((key.rpartition("."), tensor) for key, tensor in state.items())
    return {f"{modules[module]}.{own}": tensor for (module, _, own), tensor in split if module in modules}
