"""A recipe: everything that decides what a run makes, as typed data in YAML. Nothing in it can run code.

`read_recipe(source, overrides)` checks every key against the dataclasses below; an unknown one is refused with the nearest
known one. On the command line each field can be overridden: `--optimizer.lr 0.1 --student.model lgd_resnet18`.

A source is a YAML file, a folder that carries its recipe, or `hub://ORG/NAME[@REVISION]`. Recipes of the latter two have
travelled, and stay within the working directory (`reach.py`); a YAML file is the user's own, and may name any path.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import yaml

from ..data.views import Views
from ..data.vocabulary import Vocabulary, load_vocabulary
from ..errors import RecipeError
from ..hub.safe_weights import refuse_pickle
from ..teachers import TeacherSpec
from ..utils.schema import to_plain


@dataclass(frozen=True)
class StudentRecipe:
    """Which timm model learns, and at which size."""

    model: str = "lgd_mobilenetv2"
    projector: Literal["linear", "mlp", "deep"] = "linear"
    image_size: int | None = None  # None: the views' size; else views are resized (bicubic) on the device
    pretrained: bool = False  # start from the timm model's own weights
    drop_rate: float = 0.0
    drop_path_rate: float = 0.0
    mean: tuple[float, float, float] | None = None  # None: the timm model's own statistics
    std: tuple[float, float, float] | None = None

    def __post_init__(self) -> None:
        refuse_pickle(self.model, field="student.model")


@dataclass(frozen=True)
class DataRecipe:
    """Which shards are learned from, and which are evaluated on."""

    shards: str = ""  # a folder, or an address: https://, hf://, s3://, ...
    train_split: str = "train"
    val_split: str | None = None
    val_vocabulary: str | list[str] | None = (
        None  # names of its labels, in their order; None: the names that are learned
    )
    val_crop: float = (
        1.0  # share of the short side that evaluation sees, timm's crop_pct; 0.875 is Resize(256), CenterCrop(224)
    )
    batch_size: int = 256  # global: shared by all ranks
    workers: int = 0
    in_memory: bool = False  # render each view once and keep its pixels: for small images, and with workers 0
    max_bad: float = 0.001  # share of the split that may be unreadable

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
    lr: float | None = None  # None: lr_base * batch_size / lr_base_size
    lr_base: float = 0.03
    lr_base_size: int = 256
    momentum: float = 0.9
    weight_decay: float = 1e-4
    weight_decay_all: bool = True  # also on biases and norms, as the released code does
    betas: tuple[float, float] | None = None
    clip_grad: float | None = None


@dataclass(frozen=True)
class ScheduleRecipe:
    """Epochs, warm-up and timm's scheduler."""

    epochs: int = 90
    name: Literal["cosine", "tanh", "poly", "constant"] = "cosine"  # those of timm's that need no further settings
    warmup_epochs: float = 5
    warmup_lr: float = 0.0
    min_lr: float = 0.0
    per_step: bool = True  # step the schedule every update; the released code does so every epoch


@dataclass(frozen=True)
class RunRecipe:
    """How the machine does it; none of these should change what is learned, but for rounding."""

    seed: int = 0
    device: str = "auto"  # auto: cuda, then mps, then cpu
    amp: Literal["none", "float16", "bfloat16"] = "none"
    channels_last: bool = True
    compile: bool = False
    photometry: Literal["auto", "worker", "device"] = (
        "auto"  # where colours are changed; auto: on an accelerator, else in the workers
    )
    ema_decay: float | None = None
    accumulate: int = 1  # passes that a rank's part of a batch takes, for less memory; batch norm sees one at a time
    max_skipped: int = 10  # steps in a row that may be left out because a gradient is not finite
    checkpoint_every: int = 1  # epochs
    checkpoint_minutes: float = 15.0  # and at least so often
    keep_checkpoints: int = 2  # the last so many; the best is kept, too
    evaluate_every: int = 1  # epochs
    log_every: int = 20  # steps


# Fields of `run` and `data` that are the machine's, and decide no number but for rounding
MACHINE = {
    "run": (
        *("device", "channels_last", "compile", "photometry", "max_skipped"),
        *("checkpoint_every", "checkpoint_minutes", "keep_checkpoints", "evaluate_every", "log_every"),
    ),
    "data": ("workers", "in_memory", "max_bad"),
}


@dataclass(frozen=True)
class TeachRecipe:
    """What `lgd-timm teach` needs: who teaches, on which views, of which shards."""

    teacher: TeacherSpec
    views: Views
    shards: str  # a folder, or an address
    split: str = "train"
    dtype: Literal["float16", "int8"] = "float16"  # what an embedding's numbers are stored as
    batch_size: int = 64  # images a rank and step, each view being one
    workers: int = 0
    device: str = "auto"
    compile: bool = False
    max_bad: float = 0.001
    out: str | None = None  # folder of the embeddings; None: beside the shards, named after teacher and views

    def to_dict(self) -> dict[str, Any]:
        return dict(to_plain(self))

    def to_yaml(self) -> str:
        return _dump(self.to_dict())


@dataclass(frozen=True)
class Recipe:
    """One experiment."""

    name: str
    teacher: TeacherSpec
    vocabulary: VocabularyRecipe
    data: DataRecipe
    student: StudentRecipe = field(default_factory=StudentRecipe)
    views: Views | None = None  # None: those of the stored embeddings
    objective: dict[str, Any] = field(default_factory=lambda: {"preset": "reference"})
    optimizer: OptimizerRecipe = field(default_factory=OptimizerRecipe)
    schedule: ScheduleRecipe = field(default_factory=ScheduleRecipe)
    run: RunRecipe = field(default_factory=RunRecipe)

    def to_dict(self) -> dict[str, Any]:
        """Plain data, with `teacher.kind`; `from_dict` of it is this recipe again."""
        return dict(to_plain(self))

    def to_yaml(self) -> str:
        return _dump(self.to_dict())


def _dump(data: Mapping[str, Any]) -> str:
    return yaml.safe_dump(dict(data), sort_keys=False, allow_unicode=True, width=120)
