"""A recipe: everything that decides what a run makes, as typed data in YAML. Nothing in it can run code.

`read_recipe(source, overrides)` checks every key against the dataclasses below; an unknown one is refused with the
nearest known one. On the command line each field can be overridden: `--optimizer.lr 0.1 --student.model lgd_resnet18`.

A source is a YAML file, a folder that holds its recipe, or `hub://ORG/NAME[@REVISION]`. A YAML file is the user's own
and may name any path. Recipes of the other two may be anybody's: their paths stay within the working directory
(`sandbox.py`).

A field's comment is its description in docs/concepts/recipes.md, which docs/generate.py writes.
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
from ..utils.schema import (
    MACHINE,
    OMITTED,
    BatchSize,
    Count,
    Key,
    Name,
    Pixels,
    Rate,
    Seed,
    Share,
    Size,
    Workers,
    to_plain,
)


@dataclass(frozen=True)
class StudentRecipe:
    """Which timm model learns, and at which size."""

    model: str = "lgd_mobilenetv2"  # a timm model, `local-dir:FOLDER` or `hf-hub:ORG/NAME[@REVISION]`
    projector: Literal["linear", "mlp", "deep"] = "linear"  # from features to the teacher's space; linear: zero-shot
    image_size: Pixels | None = None  # pixels; None: the views' size; else views are resized (bicubic) on the device
    pretrained: bool = False  # start from the timm model's own weights
    drop_rate: Share = 0.0  # dropout before the projector, as the timm model has it
    drop_path_rate: Share = 0.0  # stochastic depth, as the timm model has it
    mean: tuple[float, float, float] | None = None  # of the pixels, 0..1; None: the timm model's own
    std: tuple[float, float, float] | None = None  # of the pixels, 0..1; None: the timm model's own

    def __post_init__(self) -> None:
        refuse_pickle(self.model, field="student.model")


@dataclass(frozen=True)
class DataRecipe:
    """Which shards are learned from, and which are evaluated on."""

    shards: str = ""  # a folder, or an address: https://, hf://, s3://, ...
    train_split: Name = "train"  # the split that is learned from
    val_split: Name | None = None  # the split that is evaluated on; None: nothing is evaluated
    # names of its labels, in their order; None: the names that are learned
    val_vocabulary: str | list[str] | None = None
    # share of the short side that evaluation sees, timm's crop_pct; 0.875 is Resize(256), CenterCrop(224)
    val_crop: float = 1.0
    batch_size: BatchSize = 256  # global: shared by all ranks
    # shards whose samples are shuffled together; of remote shards, the cache should hold two windows
    window: Annotated[Count, OMITTED] = 16
    workers: Annotated[Workers, MACHINE] = 0  # processes that load images; 0: the training process does
    # render each view once and keep its pixels: for small images, and with workers 0
    in_memory: Annotated[bool, MACHINE] = False
    max_bad: Annotated[Share, MACHINE] = 0.001  # share of the split that may be unreadable

    def __post_init__(self) -> None:
        if self.in_memory and self.workers:
            raise RecipeError(
                f"data.in_memory keeps views in this process, where {self.workers} workers would not see them. "
                "Set data.workers 0."
            )


@dataclass(frozen=True)
class VocabularyRecipe:
    """Which names the student learns, and the sentences that the text tower reads them in."""

    source: str | list[str] = ""  # a list of names, or what `load_vocabulary` reads: a file, or a known data set
    templates: str | list[str] = "none"  # none, simple, openai, a file or a list

    def load(self) -> Vocabulary:
        """Read the names. Raises: VocabularyError."""
        return load_vocabulary(self.source, templates=self.templates)


@dataclass(frozen=True)
class OptimizerRecipe:
    """timm's optimizer factory and its settings."""

    name: str = "sgd"  # one of timm.optim.list_optimizers()
    lr: Rate | None = None  # None: lr_base * batch_size / lr_base_size
    lr_base: Rate = 0.03  # the learning rate at a batch of lr_base_size
    lr_base_size: Count = 256  # images
    momentum: Share = 0.9  # of optimizers that have one
    weight_decay: Rate = 1e-4  # of the weights
    weight_decay_all: bool = True  # also on biases and norms, as the released code does
    betas: tuple[float, float] | None = None  # of Adam and its kin; None: the optimizer's own
    clip_grad: Rate | None = None  # greatest norm of the gradient; None: it is not clipped


@dataclass(frozen=True)
class ScheduleRecipe:
    """Epochs, warm-up and timm's scheduler."""

    epochs: Count = 90  # passes over the training split
    name: Literal["cosine", "tanh", "poly", "constant"] = "cosine"  # those of timm's that need no further settings
    warmup_epochs: Rate = 5  # the learning rate rises linearly for so long
    warmup_lr: Rate = 0.0  # the learning rate at the start of warm-up
    min_lr: Rate = 0.0  # the learning rate at the end
    per_step: bool = True  # step the schedule every update; the released code does so every epoch


@dataclass(frozen=True)
class MachineRecipe:
    """How the machine does it; none of these should change what is learned, but for rounding. `run` in YAML."""

    seed: Seed = 0  # of the first weights, the order of images, and dropout
    device: Annotated[str, MACHINE] = "auto"  # auto: cuda, then mps, then cpu
    amp: Literal["none", "float16", "bfloat16"] = "none"  # type of the forward pass's numbers; none: float32
    channels_last: Annotated[bool, MACHINE] = True  # memory layout of the student and its images
    compile: Annotated[bool, MACHINE] = False  # torch.compile
    # where colours are changed; auto: on an accelerator, else in the workers
    photometry: Annotated[Literal["auto", "worker", "device"], MACHINE] = "auto"
    # compute convolutions over maps smaller than their kernel as matrix products; auto: on a CPU
    small_convs: Annotated[Literal["auto", True, False], MACHINE, OMITTED] = "auto"
    ema_decay: Share | None = None  # of an average of the weights, which is then what is published; None: no average
    accumulate: Count = 1  # passes that a rank's part of a batch takes, for less memory; batch norm sees one at a time
    # steps in a row that may be left out because a gradient is not finite
    max_skipped: Annotated[Size, MACHINE] = 10
    checkpoint_every: Annotated[Count, MACHINE] = 1  # epochs
    checkpoint_minutes: Annotated[Rate, MACHINE] = 15.0  # and at least so often
    keep_checkpoints: Annotated[Count, MACHINE] = 2  # the last so many; the best is kept, too
    evaluate_every: Annotated[Count, MACHINE] = 1  # epochs
    log_every: Annotated[Count, MACHINE] = 20  # steps


@dataclass(frozen=True)
class TeachRecipe:
    """What `lgd-timm teach` needs: who teaches, on which views, of which shards."""

    teacher: TeacherSpec  # `kind: conse` or `kind: open_clip`, and its fields
    views: Views  # the views of each image that are embedded
    shards: str  # a folder, or an address
    split: Name = "train"  # the split that is embedded
    dtype: Literal["float16", "int8"] = "float16"  # what an embedding's numbers are stored as
    batch_size: BatchSize = 64  # images a rank and step, each view being one
    workers: Workers = 0  # processes that load images; 0: the main process does
    device: str = "auto"  # auto: cuda, then mps, then cpu
    compile: bool = False  # torch.compile the teacher
    max_bad: Share = 0.001  # share of the split that may be unreadable
    out: str | None = None  # folder of the embeddings; None: beside the shards, named after teacher and views

    def to_dict(self) -> dict[str, Any]:
        """Plain data, with `teacher.kind`; `build` of it is this recipe again."""
        return dict(to_plain(self))

    def to_yaml(self) -> str:
        """The same as YAML."""
        return _dump(self.to_dict())


@dataclass(frozen=True)
class Recipe:
    """One experiment: what `lgd-timm distill` needs."""

    name: Name  # the tag of the weights: they are published as <model>.<name>
    teacher: TeacherSpec  # `kind: conse`, `kind: open_clip` or `kind: stored`, and its fields
    vocabulary: VocabularyRecipe  # which names
    data: DataRecipe  # which images
    student: StudentRecipe = field(default_factory=StudentRecipe)  # which model
    views: Views | None = None  # how images are cropped and changed; None: those of the stored embeddings
    objective: dict[str, Any] = field(default_factory=lambda: {"preset": "reference"})  # the loss: `kind` and switches
    optimizer: OptimizerRecipe = field(default_factory=OptimizerRecipe)  # how weights are updated
    schedule: ScheduleRecipe = field(default_factory=ScheduleRecipe)  # how long, and at which learning rates
    machine: Annotated[MachineRecipe, Key("run")] = field(default_factory=MachineRecipe)  # how the machine does it

    def to_dict(self) -> dict[str, Any]:
        """Plain data, with `teacher.kind`; `recipe_from_dict` of it is this recipe again."""
        return dict(to_plain(self))

    def to_yaml(self) -> str:
        """The same as YAML."""
        return _dump(self.to_dict())


def _dump(data: Mapping[str, Any]) -> str:
    return yaml.safe_dump(dict(data), sort_keys=False, allow_unicode=True, width=120)
