"""What the layers of the three students are called in timm, as one list that the names of other libraries are made from.

A renaming maps names of modules; tensors keep their own: with `bn1` -> `features.0.1`, `bn1.running_mean` is `features.0.1.running_mean`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from ..errors import LGDError, WeightsError

# Blocks of each stage. The one block of the first stage does not expand.
DEPTHS = {"mobilenetv2_100": (1, 2, 3, 4, 3, 3, 1), "efficientnet_b0": (1, 2, 2, 3, 3, 4, 1)}
SQUEEZING = ("efficientnet_b0",)  # whose blocks have squeeze-and-excite
ARCHITECTURES = ("resnet18", *DEPTHS)

Kind = Literal["expand", "depthwise", "squeeze", "project"]


@dataclass(frozen=True)
class Layer:
    """Two modules of an inverted residual block: a convolution and its batch norm; of "squeeze", the two convolutions."""

    stage: int
    block: int  # of its stage
    kind: Kind
    place: int  # in its block
    names: tuple[str, str]  # timm's


def block_layers(architecture: str) -> Iterator[Layer]:
    """The layers of every block of an architecture in DEPTHS, in the order of the network."""
    for stage, depth in enumerate(DEPTHS[architecture]):
        for block in range(depth):
            rows = _EXPANDING if stage else _FIRST
            kept = ((kind, names) for kind, names in rows if kind != "squeeze" or architecture in SQUEEZING)
            for place, (kind, names) in enumerate(kept):
                first, second = (f"blocks.{stage}.{block}.{name}" for name in names)
                yield Layer(stage, block, kind, place, (first, second))


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
    """The modules of a ResNet-18 without its classifier, which bear the same names everywhere."""
    blocks = [f"layer{stage}.{block}" for stage in range(1, 5) for block in range(2)]
    inner = [f"{block}.{name}" for block in blocks for name in ("conv1", "bn1", "conv2", "bn2")]
    return [
        "conv1",
        "bn1",
        *inner,
        *(f"layer{stage}.0.downsample.{place}" for stage in range(2, 5) for place in range(2)),
    ]


def check_architecture(architecture: str, *, to: str) -> None:
    """Raises: LGDError for an architecture whose names are not known here."""
    if architecture not in ARCHITECTURES:
        known = ", ".join(ARCHITECTURES)
        raise LGDError(
            f"--to {to} knows the layers of {known}, and not those of {architecture!r}. Take another target, such as onnx."
        )


def rename(
    state: Mapping[str, Tensor], modules: Mapping[str, str], *, left_out: Iterable[str] = ()
) -> dict[str, Tensor]:
    """A state dict with its modules renamed, without those `left_out`. Raises: WeightsError where it has others or lacks some."""
    left_out, there = set(left_out), {key.rpartition(".")[0] for key in state}
    if wrong := sorted(there.symmetric_difference(modules) - left_out):
        raise WeightsError(
            f"The weights have other layers than their architecture: {', '.join(wrong[:5])}{', ...' if len(wrong) > 5 else ''}. "
            "Name a model of the stock architecture."
        )
    split = ((key.rpartition("."), tensor) for key, tensor in state.items())
    return {f"{modules[module]}.{own}": tensor for (module, _, own), tensor in split if module in modules}
