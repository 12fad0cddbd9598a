"""A recipe: everything that decides what a run makes, as typed data in YAML. Nothing in it can run code.

`read_recipe(source, overrides)` checks every key against the dataclasses below; an unknown one is refused with the nearest
known one. On the command line each field can be overridden: `--optimizer.lr 0.1 --student.model lgd_resnet18`.

A source is a YAML file, a folder that carries its recipe, or `hub://ORG/NAME[@REVISION]`. Recipes of the latter two have
travelled, and stay within the working directory (`reach.py`); a YAML file is the user's own, and may name any path.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

import yaml

from ..data.views import Views
from ..data.vocabulary import Vocabulary, load_vocabulary
from ..errors import RecipeError
from ..hub.safe_weights import refuse_pickle
from ..teachers import TeacherSpec
from ..utils.schema import MACHINE, OMITTED, Count, Key, Name, Rate, Seed, Share, Size, to_plain


@dataclass(frozen=True)
class StudentRecipe:
    """Which timm model learns, and at which size."""

    model: str = "lgd_mobilenetv2"
    projector: Literal["linear", "mlp", "deep"] = "linear"
    image_size: Count | None = None  # None: the views' size; else views are resized (bicubic) on the device
    pretrained: bool = False  # start from the timm model's own weights
    drop_rate: Share = 0.0
    drop_path_rate: Share = 0.0
    mean: tuple[float, float, float] | None = None  # None: the timm model's own statistics
    std: tuple[float, float, float] | None = None

    def __post_init__(self) -> None:
        refuse_pickle(self.model, field="student.model")


@dataclass(frozen=True)
class DataRecipe:
    """Which shards are learned from, and which are evaluated on."""

    shards: str = ""  # a folder, or an address: https://, hf://, s3://, ...
    train_split: Name = "train"
    val_split: Name | None = None
    # names of its labels, in their order; None: the names that are learned
    val_vocabulary: str | list[str] | None = None
    # share of the short side that evaluation sees, timm's crop_pct; 0.875 is Resize(256), CenterCrop(224)
    val_crop: float = 1.0
    batch_size: Count = 256  # global: shared by all ranks
    workers: Annotated[Size, MACHINE] = 0  # processes that load images; 0: this process does
    # render each view once and keep its pixels: for small images, and with workers 0
    in_memory: Annotated[bool, MACHINE] = False
    max_bad: Annotated[Share, MACHINE] = 0.001  # share of the split that may be unreadable

    def __post_init__(self) -> None:
        if self.in_memory and self.workers:
            raise RecipeError(
                f"data.in_memory keeps views in this process, where {self.workers} workers would not see them. Set data.workers 0."
            )


@dataclass(frozen=True)
class VocabularyRecipe:
    """Which names. `source`: a list, or what `load_vocabulary` reads. `templates`: none, simple, openai, a file or a list."""

    source: str | list[str] = ""
    templates: str | list[str] = "none"

    def load(self) -> Vocabulary:
        """Read the names. Raises: VocabularyError."""
        return load_vocabulary(self.source, templates=self.templates)


@dataclass(frozen=True)
class OptimizerRecipe:
    """timm's optimizer factory: `name` is one of timm.optim.list_optimizers()."""

    name: str = "sgd"
    lr: Rate | None = None  # None: lr_base * batch_size / lr_base_size
    lr_base: Rate = 0.03
    lr_base_size: Count = 256
    momentum: Share = 0.9
    weight_decay: Rate = 1e-4
    weight_decay_all: bool = True  # also on biases and norms, as the released code does
    betas: tuple[float, float] | None = None
    clip_grad: Rate | None = None


@dataclass(frozen=True)
class ScheduleRecipe:
    """Epochs, warm-up and timm's scheduler."""

    epochs: Count = 90
    name: Literal["cosine", "tanh", "poly", "constant"] = "cosine"  # those of timm's that need no further settings
    warmup_epochs: Rate = 5
    warmup_lr: float = 0.0
    min_lr: float = 0.0
    per_step: bool = True  # step the schedule every update; the released code does so every epoch


@dataclass(frozen=True)
class MachineRecipe:
    """How the machine does it; none of these should change what is learned, but for rounding. `run` in YAML."""

    seed: Seed = 0
    device: Annotated[str, MACHINE] = "auto"  # auto: cuda, then mps, then cpu
    amp: Literal["none", "float16", "bfloat16"] = "none"
    channels_last: Annotated[bool, MACHINE] = True
    compile: Annotated[bool, MACHINE] = False
    # where colours are changed; auto: on an accelerator, else in the workers
    photometry: Annotated[Literal["auto", "worker", "device"], MACHINE] = "auto"
    # convolutions over maps smaller than their kernel as matrix products; auto: on a CPU
    small_convs: Annotated[Literal["auto", True, False], MACHINE, OMITTED] = "auto"
    ema_decay: Share | None = None
    accumulate: Count = 1  # passes that a rank's part of a batch takes, for less memory; batch norm sees one at a time
    max_skipped: Annotated[Size, MACHINE] = 10  # steps in a row that may be left out as a gradient is not finite
    checkpoint_every: Annotated[Count, MACHINE] = 1  # epochs
    checkpoint_minutes: Annotated[Rate, MACHINE] = 15.0  # and at least so often
    keep_checkpoints: Annotated[Count, MACHINE] = 2  # the last so many; the best is kept, too
    evaluate_every: Annotated[Count, MACHINE] = 1  # epochs
    log_every: Annotated[Count, MACHINE] = 20  # steps


@dataclass(frozen=True)
class TeachRecipe:
    """What `lgd-timm teach` needs: who teaches, on which views, of which shards."""

    teacher: TeacherSpec
    views: Views
    shards: str  # a folder, or an address
    split: Name = "train"
    dtype: Literal["float16", "int8"] = "float16"  # what an embedding's numbers are stored as
    batch_size: Count = 64  # images a rank and step, each view being one
    workers: Size = 0
    device: str = "auto"
    compile: bool = False
    max_bad: Share = 0.001
    out: str | None = None  # folder of the embeddings; None: beside the shards, named after teacher and views

    def to_dict(self) -> dict[str, Any]:
        return dict(to_plain(self))

    def to_yaml(self) -> str:
        return _dump(self.to_dict())


@dataclass(frozen=True)
class Recipe:
    """One experiment."""

    name: Name
    teacher: TeacherSpec
    vocabulary: VocabularyRecipe
    data: DataRecipe
    student: StudentRecipe = field(default_factory=StudentRecipe)
    views: Views | None = None  # None: those of the stored embeddings
    objective: dict[str, Any] = field(default_factory=lambda: {"preset": "reference"})
    optimizer: OptimizerRecipe = field(default_factory=OptimizerRecipe)
    schedule: ScheduleRecipe = field(default_factory=ScheduleRecipe)
    machine: Annotated[MachineRecipe, Key("run")] = field(default_factory=MachineRecipe)

    def to_dict(self) -> dict[str, Any]:
        """Plain data, with `teacher.kind`; `from_dict` of it is this recipe again."""
        return dict(to_plain(self))

    def to_yaml(self) -> str:
        return _dump(self.to_dict())


def _dump(data: Mapping[str, Any]) -> str:
    return yaml.safe_dump(dict(data), sort_keys=False, allow_unicode=True, width=120)
