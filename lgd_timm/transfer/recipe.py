"""Settings that all transfers share: which backbone, how it is trained, and how the machine does it.

The recipe of a task (`detect/`, `segment/`) adds the fields `data` and `head`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import yaml

from ..config.reader import read_mapping
from ..errors import RecipeError
from ..hub.safe_weights import refuse_pickle
from ..utils.schema import MACHINE, Count, Key, Name, Rate, Seed, Share, Size, Workers, build, to_plain

RecipeT = TypeVar("RecipeT", bound="TransferRecipe")


@dataclass(frozen=True)
class BackboneRecipe:
    """Which model looks at the pictures, and which of its feature maps go on."""

    model: str = "lgd_mobilenetv2"  # a published folder, hub://ORG/NAME, a weight's name, a run folder, any timm model
    pretrained: bool = True  # False: random weights, from scratch
    levels: list[int] = field(
        default_factory=lambda: [1, 2, 3, 4]
    )  # timm's out_indices; 1 to 4 have strides 4 to 32 in most models
    norms: Literal["frozen", "trained"] = (
        "frozen"  # batch statistics; a batch of few pictures is too small to estimate them
    )

    def __post_init__(self) -> None:
        refuse_pickle(self.model, field="backbone.model")
        if not self.pretrained and self.norms == "frozen":
            raise RecipeError(
                "backbone.norms frozen keeps the batch statistics of a training that there was not, "
                "as backbone.pretrained is false. Set backbone.norms trained."
            )


@dataclass(frozen=True)
class TransferOptimizer:
    """timm's optimizer factory.

    The defaults are those of the released detection configs: AdamW, the backbone at a tenth.
    """

    name: str = "adamw"
    lr: Rate = 2e-4
    backbone_lr: float = 0.1  # share of `lr`
    momentum: Share = 0.9
    weight_decay: Rate = 1e-4  # of all parameters
    clip_grad: Rate | None = 0.1


@dataclass(frozen=True)
class TransferSchedule:
    """Epochs, and timm's scheduler, stepped with every update."""

    epochs: Count = 12
    name: Literal["multistep", "cosine", "poly", "constant"] = "multistep"
    milestones: list[int] = field(
        default_factory=lambda: [8, 11]
    )  # of multistep: after so many epochs the rate falls to a tenth
    power: float = 0.9  # of poly
    warmup_steps: int = 500
    warmup_share: float = 0.001  # of the rate, with which warm-up begins


@dataclass(frozen=True)
class TransferMachine:
    """How the machine does it; none of these should change what is learned, but for rounding. `run` in YAML."""

    seed: Seed = 0
    device: Annotated[str, MACHINE] = "auto"
    amp: Literal["none", "float16", "bfloat16"] = "none"
    workers: Annotated[Workers, MACHINE] = 2
    max_skipped: Annotated[Size, MACHINE] = 10  # steps in a row that may be left out because a gradient is not finite
    checkpoint_every: Annotated[Count, MACHINE] = 1  # epochs
    checkpoint_minutes: Annotated[Rate, MACHINE] = 15.0
    keep_checkpoints: Annotated[Count, MACHINE] = 1  # the last so many; the best is kept, too
    evaluate_every: Annotated[Count, MACHINE] = 1  # epochs
    log_every: Annotated[Count, MACHINE] = 20  # steps


@dataclass(frozen=True)
class TransferRecipe:
    """One training of a task. A task's own recipe has `data` and `head` too."""

    name: Name
    backbone: BackboneRecipe = field(default_factory=BackboneRecipe)
    optimizer: TransferOptimizer = field(default_factory=TransferOptimizer)
    schedule: TransferSchedule = field(default_factory=TransferSchedule)
    machine: Annotated[TransferMachine, Key("run")] = field(default_factory=TransferMachine)

    def to_dict(self) -> dict[str, Any]:
        return dict(to_plain(self))

    def to_yaml(self) -> str:
        return yaml.safe_dump(self.to_dict(), sort_keys=False, allow_unicode=True, width=120)


def read_transfer(kind: type[RecipeT], source: str | Path, *, overrides: Mapping[str, Any] | None = None) -> RecipeT:
    """Read a YAML recipe of a task.

    Args:
        kind: the task's recipe.
        source: a file, or a published folder.
        overrides: values by dotted field, such as `optimizer.lr`.

    Raises:
        RecipeError: as `lgd_timm.config.reader.read_recipe`.
    """
    data = read_mapping(source, overrides=overrides)
    recipe: RecipeT = build(kind, data, where="")
    return recipe
