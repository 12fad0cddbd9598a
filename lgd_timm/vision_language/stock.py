"""A causal student that stock transformers loads: FastVLM with a timm backbone as its vision tower.

    AutoModelForImageTextToText.from_pretrained(FOLDER), AutoProcessor.from_pretrained(FOLDER)

The paper's model sees names and regions in both directions, which stock classes of transformers can't express with a
convolutional backbone. This one reads the cells of the backbone's last map as tokens, then the caption, each token
seeing earlier ones alone. The losses are the same; student and teacher are both of this form, with equal tokens.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import numpy as np
import timm
import torch
import yaml
from PIL import Image
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from ..errors import RecipeError, TeacherError, WeightsError, require
from ..publish.metrics import write_metrics
from ..students.entrypoints import stock_name
from ..utils.files import atomic_folder, explain_full_disk
from ..utils.schema import Count, Range, to_plain
from .learner import Distillation
from .losses.blocks import States, mean_of_tokens
from .losses.logits import soft_cross_entropy
from .recipe import DistillationRecipe
from .text import IGNORED, Tokenizer

IMAGE = "<image>"  # the token that stands for a cell of the map


@dataclass(frozen=True)
class StockModelRecipe:
    """Sizes of a causal model."""

    backbone: str = "lgd_mobilenetv2"  # a student of ours, or any timm architecture that takes output_stride
    image_size: Count = 96  # pixels to which both sides of an image are resized
    output_stride: Annotated[int, Range(8, 32)] = 16  # pixels of a cell's side; it divides image_size
    length: Count = 40  # tokens of a caption, with its begin and end
    layers: Count = 3
    width: Count = 192
    heads: Count = 12
    inner: Count = 768  # width within the feed-forward layers

    def __post_init__(self) -> None:
        if self.width % self.heads:
            raise RecipeError(f"width = {self.width} must divide by heads = {self.heads}.")
        if self.image_size % self.output_stride:
            raise RecipeError(f"image_size = {self.image_size} must divide by output_stride = {self.output_stride}.")

    @property
    def cells(self) -> int:
        """Tokens of an image."""
        return (self.image_size // self.output_stride) ** 2


@dataclass(frozen=True)
class StockRecipe:
    """What made a published causal student."""

    model: StockModelRecipe = field(default_factory=StockModelRecipe)
    distillation: DistillationRecipe = field(default_factory=DistillationRecipe)


class CausalBatch(NamedTuple):
    """B images and captions: T tokens, of which the first are the image's.

    Attributes:
        pixels: normalised float32 [B, 3, S, S].
        ids: int64 [B, T], padded at the end.
        valid: whether a place holds a token, bool [B, T].
        targets: the token that each place predicts, or IGNORED, int64 [B, T].
    """

    pixels: Tensor
    ids: Tensor
    valid: Tensor
    targets: Tensor


class CausalModel(nn.Module):
    """transformers' FastVlmForConditionalGeneration with a frozen timm backbone.

    Args:
        recipe: sizes.
        tokenizer: of captions; one token is added for the image's cells.
        backbone: a timm model of the recipe's architecture whose weights are taken; None: random ones.

    Attributes:
        stock: the stock model, which is what is published.

    Raises:
        RecipeError: timm can't build the backbone at that stride.
        MissingExtra: transformers is not installed.
    """

    def __init__(self, recipe: StockModelRecipe, *, tokenizer: Tokenizer, backbone: nn.Module | None = None) -> None:
        super().__init__()
        self.recipe, self.tokenizer = recipe, tokenizer
        self.layers, self.width, self.heads = recipe.layers, recipe.width, recipe.heads
        self.image_token = len(tokenizer)
        library = require("transformers", extra="vl")
        self.stock: Any = library.FastVlmForConditionalGeneration(_config(recipe, tokenizer))
        self.stock.set_attn_implementation({"text_config": "eager"})  # which gives the attention
        self.vision: Any = self.stock.model.vision_tower
        if backbone is not None:
            _take_weights(self.vision.timm_model, backbone)
        self.vision.requires_grad_(False)
        data = timm.data.resolve_model_data_config(self.vision.timm_model)
        self.mean, self.std = tuple(data["mean"]), tuple(data["std"])

    def train(self, mode: bool = True) -> CausalModel:
        """Train all but the backbone, whose statistics stay."""
        super().train(mode)
        self.vision.eval()
        return self

    def collate(self, images: Sequence[Image.Image], captions: Sequence[str]) -> CausalBatch:
        """Make a batch. It is the same for a student and a teacher of equal tokens."""
        rows = [self.tokenizer.sentence(text, length=self.recipe.length) for text in captions]
        longest, cells = max(map(len, rows)), self.recipe.cells
        ids = torch.full((len(rows), cells + longest), self.tokenizer.pad)
        ids[:, :cells] = self.image_token
        targets, valid = torch.full_like(ids, IGNORED), torch.zeros_like(ids, dtype=torch.bool)
        for place, row in enumerate(rows):
            ids[place, cells : cells + len(row)] = torch.tensor(row)
            targets[place, cells : cells + len(row) - 1] = torch.tensor(row[1:])
            valid[place, : cells + len(row)] = True
        return CausalBatch(torch.stack([self._pixels(image) for image in images]), ids, valid, targets)

    def forward(self, batch: CausalBatch, *, states: bool = False) -> tuple[Tensor, States | None]:
        """Compute logits of the places with a target [N, V], and states of all blocks where asked for."""
        out = self.stock(
            pixel_values=batch.pixels,
            input_ids=batch.ids,
            attention_mask=batch.valid.long(),
            output_hidden_states=states,
            output_attentions=states,
            use_cache=False,
        )
        logits = out.logits[batch.targets != IGNORED]
        return logits, States(out.hidden_states[1:], out.attentions, batch.valid) if states else None

    def _pixels(self, image: Image.Image) -> Tensor:
        size = (self.recipe.image_size,) * 2
        pixels = torch.from_numpy(np.array(image.convert("RGB").resize(size, Image.Resampling.BICUBIC)))
        mean, std = (torch.tensor(numbers).view(3, 1, 1) for numbers in (self.mean, self.std))
        return (pixels.permute(2, 0, 1).float() / 255 - mean) / std


class CausalLearner(nn.Module):
    """A causal student with its losses: to the captions, and to a teacher where there is one.

    Args:
        student: what is trained.
        recipe: weights of the losses.
        teacher: of the same tokens; it is frozen, and no part of the state.

    Raises:
        TeacherError: the teacher has other tokens.
        RecipeError: a loss can't be computed of these models.
    """

    def __init__(self, student: CausalModel, *, recipe: DistillationRecipe, teacher: CausalModel | None = None) -> None:
        super().__init__()
        self.student, self._recipe = student, recipe
        self._teacher = () if teacher is None else (teacher.requires_grad_(False).eval(),)  # a tuple is no submodule
        self.distillation: Distillation | None = None
        if teacher is not None:
            _check_tokens(student, teacher)
            self.distillation = Distillation(recipe, student=_sizes(student), teacher=_sizes(teacher))
        self._taught: States | None = None

    def forward(self, batch: CausalBatch) -> dict[str, Tensor]:
        """Compute the losses of a batch, weighted, by name. Their sum is minimised."""
        logits, states = self.student(batch, states=bool(self._teacher))
        asked = batch.targets != IGNORED
        rows = cross_entropy(logits.float(), batch.targets[asked], reduction="none")
        losses = {"task": _mean(rows, asked)}
        for teacher in self._teacher:
            with torch.no_grad():
                wanted, taught = teacher(batch, states=True)
            assert self.distillation is not None
            losses |= self.distillation(states, taught)
            if self._recipe.logits.weight:
                soft = soft_cross_entropy(logits, wanted, self._recipe.logits)
                losses["logits"] = self._recipe.logits.weight * _mean(soft, asked)
            self._taught = taught
        return losses

    def update(self) -> None:
        """Put the last batch's teacher states in the queue; after the optimizer's step."""
        if self.distillation is not None and self._taught is not None:
            self.distillation.update(self._taught)
            self._taught = None


def save_stock(
    out: str | Path,
    model: CausalModel,
    *,
    recipe: StockRecipe,
    metrics: Mapping[str, Any],
    dtype: torch.dtype = torch.float32,
) -> Path:
    """Write what transformers loads, whole or not at all, with `recipe.yaml` and `metrics.json` beside it.

    Args:
        out: the folder, which must be empty or not exist.
        model: what is published; it is not changed.
        recipe: what made it.
        metrics: how good it is.
        dtype: of the weights in the file.

    Returns:
        `out`.

    Raises:
        WeightsError: the folder is not empty, or weights do not fit `dtype`.
    """
    out = Path(out)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise WeightsError(f"{out} exists and is no empty folder. Choose another one, or remove it.")
    weights = {key: tensor.to(dtype) if tensor.is_floating_point() else tensor for key, tensor in _state(model).items()}
    if wrong := [key for key, tensor in weights.items() if not tensor.isfinite().all()]:
        raise WeightsError(f"{wrong[0]} does not fit {dtype}: save with dtype=torch.float32.")
    stock = type(model.stock)(model.stock.config).to(dtype)
    stock.load_state_dict(weights)
    with explain_full_disk(out), atomic_folder(out) as temporary:
        stock.generation_config.update(**_generation(model))
        stock.save_pretrained(temporary)
        _processor(model).save_pretrained(temporary)
        text = yaml.safe_dump(to_plain(recipe), sort_keys=False, allow_unicode=True, width=120)
        (temporary / "recipe.yaml").write_text(text, encoding="utf-8")
        write_metrics(temporary, metrics)
    return out


def _state(model: CausalModel) -> dict[str, Tensor]:
    return dict(model.stock.state_dict())


def _config(recipe: StockModelRecipe, tokenizer: Tokenizer) -> Any:
    library = require("transformers", extra="vl")
    architecture = stock_name(recipe.backbone)
    try:
        probe: Any = timm.create_model(architecture, num_classes=0, output_stride=recipe.output_stride)
        with torch.no_grad():
            found = probe.eval().forward_features(torch.zeros(1, 3, recipe.image_size, recipe.image_size))
    except (RuntimeError, TypeError, ValueError, AssertionError, NotImplementedError) as error:
        raise RecipeError(
            f"timm can't build {recipe.backbone} with output_stride {recipe.output_stride} ({error}). "
            "Our three students can."
        ) from error
    if found.dim() != 4 or found.shape[2] * found.shape[3] != recipe.cells:
        raise RecipeError(
            f"{recipe.backbone} has features of shape {tuple(found.shape[1:])}, where a map of {recipe.cells} cells is "
            "needed. Our three students have one."
        )
    return library.FastVlmConfig(
        vision_config={
            "model_type": "timm_wrapper",
            "architecture": architecture,
            "hidden_size": found.shape[1],
            "num_labels": 0,
            "do_pooling": False,
            "model_args": {"output_stride": recipe.output_stride},
        },
        text_config={
            "model_type": "qwen2",
            "vocab_size": len(tokenizer) + 1,
            "hidden_size": recipe.width,
            "intermediate_size": recipe.inner,
            "num_hidden_layers": recipe.layers,
            "num_attention_heads": recipe.heads,
            "num_key_value_heads": recipe.heads,
            "max_position_embeddings": recipe.cells + recipe.length,
            "bos_token_id": tokenizer.cls,
            "eos_token_id": tokenizer.sep,
            "pad_token_id": tokenizer.pad,
            "tie_word_embeddings": True,
        },
        image_token_index=len(tokenizer),
        image_seq_length=recipe.cells,
        tie_word_embeddings=True,
    )


def _generation(model: CausalModel) -> dict[str, Any]:
    tokens = model.tokenizer
    return {
        "bos_token_id": tokens.cls,
        "eos_token_id": tokens.sep,
        "pad_token_id": tokens.pad,
        "max_new_tokens": model.recipe.length - 1,
    }


def _processor(model: CausalModel) -> Any:
    """What turns images and `<image>[CLS]` into the model's input, of transformers' stock classes."""
    library = require("transformers", extra="vl")
    fast = require("tokenizers", extra="vl").Tokenizer.from_str(model.tokenizer.data)
    fast.post_processor = None  # [CLS] stands in the prompt, behind the image
    tokenizer = library.PreTrainedTokenizerFast(
        tokenizer_object=fast,
        bos_token="[CLS]",
        eos_token="[SEP]",
        pad_token="[PAD]",
        unk_token="[UNK]",
        mask_token="[MASK]",
        additional_special_tokens=[IMAGE],
    )
    assert tokenizer.convert_tokens_to_ids(IMAGE) == model.image_token
    side = {"height": model.recipe.image_size, "width": model.recipe.image_size}
    images = library.CLIPImageProcessor(
        size=side, do_center_crop=False, image_mean=list(model.mean), image_std=list(model.std)
    )
    return library.LlavaProcessor(
        image_processor=images,
        tokenizer=tokenizer,
        patch_size=model.recipe.output_stride,
        vision_feature_select_strategy="full",
        image_token=IMAGE,
    )


def _take_weights(stock: nn.Module, backbone: nn.Module) -> None:
    missing, _ = stock.load_state_dict(backbone.state_dict(), strict=False)
    if missing:
        raise RecipeError(f"The backbone lacks {missing[0]}, so it is of another architecture. Name its own.")


def _check_tokens(student: CausalModel, teacher: CausalModel) -> None:
    """Raises: TeacherError where the two have other tokens."""
    for what, ours, theirs in (
        ("cells", student.recipe.cells, teacher.recipe.cells),
        ("tokenizer", student.tokenizer.fingerprint, teacher.tokenizer.fingerprint),
        ("image size", student.recipe.image_size, teacher.recipe.image_size),
        ("pixel statistics", (student.mean, student.std), (teacher.mean, teacher.std)),
    ):
        if ours != theirs:
            raise TeacherError(
                f"The teacher has another {what} ({theirs}) than the student ({ours}), and tokens must correspond. "
                "Train one with the student's."
            )


class _Sizes(NamedTuple):
    layers: int
    width: int
    heads: int


class _OfSizes(NamedTuple):
    """What `Distillation` asks of a model."""

    config: _Sizes


def _sizes(model: CausalModel) -> Any:
    return _OfSizes(_Sizes(model.layers, model.width, model.heads))


def _mean(rows: Tensor, asked: Tensor) -> Tensor:
    """Average what each place with a target has: a caption's places first, then the captions."""
    return mean_of_tokens(rows.new_zeros(asked.shape).masked_scatter(asked, rows), asked)
