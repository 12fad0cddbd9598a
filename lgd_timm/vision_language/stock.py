"""A causal student that stock transformers loads: FastVLM with a timm backbone as its vision tower.

    AutoModelForImageTextToText.from_pretrained(FOLDER), AutoProcessor.from_pretrained(FOLDER)

The paper's model sees names and regions in both directions, which stock classes of transformers can't express with a
convolutional backbone. This one reads the cells of the backbone's last map as tokens, then the caption, each token
seeing earlier ones alone. It takes the same batches as the paper's form, so that tasks and losses are the same.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, TypedDict

import timm
import torch
from huggingface_hub.errors import StrictDataclassError
from PIL import Image
from torch import Tensor, nn

from ..errors import WeightsError, require
from ..hub.safe_weights import BUILD_ERRORS
from ..publish.metrics import write_metrics
from ..utils.cast import cast_weights
from ..utils.files import atomic_folder, explain_full_disk, write_json
from ..utils.model_size import check_finite, check_model_size
from ..utils.schema import LARGEST_SIDE, SMALLEST_SIDE, SMALLEST_STD, Layers, Range, Tokens, Width, Words, brief
from ..utils.state_keys import differing_keys, shapes_of, stored_shapes
from ..utils.typed_json import read_json
from .batch import Batch
from .losses.blocks import States
from .model import Output, VisionLanguageModel
from .recipe import Captions, VLRecipe
from .text import FILE as TOKENIZER
from .text import IMAGE, Tokenizer, read_tokenizer
from .tower import TowerFeatures

PROMPT = f"{IMAGE}[CLS]"
CONFIG, RECIPE, README = "config.json", "recipe.yaml", "README.md"
GENERATION, WEIGHTS = "generation_config.json", "model.safetensors"
STRANGE = (*BUILD_ERRORS, StrictDataclassError, RecursionError)  # what transformers raises for a strange configuration


@dataclass(frozen=True)
class CausalConfig:
    """Sizes of a causal model; `vocabulary` leaves the image's token out."""

    vocabulary: Words
    length: Tokens  # of a caption
    layers: Layers
    width: Width
    heads: Width
    inner: Width

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


class CausalModel(nn.Module):
    """transformers' FastVlmForConditionalGeneration with a frozen timm backbone.

    Args:
        config: sizes.
        tokenizer: of captions; one token is added for the image's cells.
        tower: the backbone, which becomes the vision tower.

    Attributes:
        stock: the stock model, which is what is published.

    Raises:
        MissingExtra: transformers is not installed.
    """

    def __init__(self, config: CausalConfig, *, tokenizer: Tokenizer, tower: TowerFeatures) -> None:
        super().__init__()
        self.config, self.tokenizer = config, tokenizer
        library = require("transformers", extra="vl")
        self.stock: Any = library.FastVlmForConditionalGeneration(_stock_config(config, tokenizer, tower))
        self.stock.set_attn_implementation({"text_config": "eager"})  # which gives the attention
        self.stock.model.vision_tower.timm_model = tower.timm_model  # without a copy
        self.stock.model.vision_tower.requires_grad_(False)
        self.register_state_dict_post_hook(_drop_tied)
        self.register_load_state_dict_pre_hook(_restore_tied)
        self._never = [*tokenizer.unwritten, len(tokenizer)]

    def train(self, mode: bool = True) -> CausalModel:
        """Train all but the backbone, whose statistics stay."""
        super().train(mode)
        self.stock.model.vision_tower.eval()
        return self

    def forward(self, batch: Batch, *, states: bool = False) -> Output:
        """Compute hidden states of a batch's tokens, words first, as `VisionLanguageModel` does.

        Args:
            batch: with features of this model's backbone.
            states: whether to give hidden states and attention of every block.
        """
        cells = batch.features.shape[1]
        out = self.stock.model.language_model(
            inputs_embeds=self._embed(batch.features, batch.words),
            attention_mask=torch.cat([batch.context, batch.text], 1).long(),
            output_hidden_states=states,
            output_attentions=states,
            use_cache=False,
        )
        last = _words_first(out.last_hidden_state, cells, dim=1)
        if not states:
            return Output(last)
        hidden = [_words_first(one, cells, dim=1) for one in out.hidden_states[1:]]
        attention = [_words_first(_words_first(one, cells, dim=2), cells, dim=3) for one in out.attentions]
        return Output(last, States(hidden, attention, batch.valid))

    def word_logits(self, hidden: Tensor) -> Tensor:
        """Score all words [..., V] for hidden states [..., D], but not the image's token."""
        logits: Tensor = self.stock.lm_head(hidden)[..., : self.config.vocabulary]
        return logits

    def generate(self, batch: Batch, task: Captions) -> list[list[int]]:
        """Write a caption of each image of a batch, by transformers' own search; the batch's words are not looked at.

        Args:
            batch: with features of this model's backbone.
            task: how many words there may be, and how many beams are kept.

        Returns:
            Tokens of the captions.
        """
        return self._generate(batch, **self._search(task))

    def sample(self, batch: Batch, task: Captions, *, count: int) -> list[list[int]]:
        """Draw captions of each image by transformers' own sampling, from all words that a caption may have.

        Args:
            batch, task: as of `generate`.
            count: of captions of an image.

        Returns:
            Tokens of the captions, those of an image one after the other.
        """
        drawn = {"do_sample": True, "num_beams": 1, "num_return_sequences": count, "top_k": 0, "top_p": 1.0}
        # Invalid values, as of weights that diverged, are left to the training's step
        return self._generate(batch, **{**self._search(task), **drawn, "remove_invalid_values": True})

    @torch.no_grad()
    def _generate(self, batch: Batch, **settings: Any) -> list[list[int]]:
        first = torch.full((len(batch.keys), 1), self.tokenizer.cls, device=batch.words.device)
        embedded = self._embed(batch.features, first)
        found: Tensor = self.stock.generate(
            inputs_embeds=embedded,
            attention_mask=torch.ones(embedded.shape[:2], dtype=torch.long, device=embedded.device),
            **settings,
        )
        rows: list[list[int]] = found.tolist()
        return rows

    @torch.no_grad()
    def caption(self, images: Sequence[Image.Image], tower: TowerFeatures) -> list[str]:
        """Write a caption of each image as a process without lgd_timm would, from its pixels.

        Args:
            images: of any size.
            tower: whose processor makes pixels of them.
        """
        device = self.stock.lm_head.weight.device
        pixels = tower.processor(images=list(images), return_tensors="pt")["pixel_values"].to(device)
        prompt = torch.tensor([len(self.tokenizer)] * tower.cells**2 + [self.tokenizer.cls], device=device)
        ids = prompt.expand(len(images), -1)
        found = self.stock.generate(
            input_ids=ids, pixel_values=pixels, attention_mask=torch.ones_like(ids), do_sample=False
        )
        return [self.tokenizer.decode(row) for row in found[:, ids.shape[1] :].tolist()]

    def _embed(self, features: Tensor, words: Tensor) -> Tensor:
        """Embed cells and words [B, R + L, D]."""
        parts = self.stock.model
        return torch.cat([parts.multi_modal_projector(features), parts.language_model.embed_tokens(words)], 1)

    def _search(self, task: Captions) -> dict[str, Any]:
        """What generation is told."""
        return {
            "max_new_tokens": min(task.words, self.config.length - 1),
            "num_beams": task.beams,
            "do_sample": False,
            "bos_token_id": self.tokenizer.cls,
            "eos_token_id": self.tokenizer.sep,
            "pad_token_id": self.tokenizer.pad,
            "suppress_tokens": self._never,
        }


AnyModel = VisionLanguageModel | CausalModel


EYES = "stock.model.vision_tower."  # what keys of the frozen backbone begin with
TIED = ("stock.lm_head.weight", "stock.model.language_model.embed_tokens.weight")  # one tensor: files hold the second


def _drop_tied(_: nn.Module, state: dict[str, Any], prefix: str, __: Any) -> None:
    del state[prefix + TIED[0]]


def _restore_tied(_: nn.Module, state: dict[str, Any], prefix: str, *__: Any) -> None:
    if prefix + TIED[1] in state:
        state[prefix + TIED[0]] = state[prefix + TIED[1]]


def _words_first(states: Tensor, cells: int, *, dim: int) -> Tensor:
    """Move the image's cells behind the words."""
    return states.roll(-cells, dim)


def _stock_config(config: CausalConfig, tokenizer: Tokenizer, tower: TowerFeatures) -> Any:
    library = require("transformers", extra="vl")
    return library.FastVlmConfig(
        vision_config={
            "model_type": "timm_wrapper",
            "architecture": tower.architecture,
            "hidden_size": tower.dim,
            "num_labels": 0,
            "do_pooling": False,
            "model_args": {"output_stride": tower.stride},
        },
        text_config={
            "model_type": "qwen2",
            "vocab_size": config.vocabulary + 1,
            "hidden_size": config.width,
            "intermediate_size": config.inner,
            "num_hidden_layers": config.layers,
            "num_attention_heads": config.heads,
            "num_key_value_heads": config.heads,
            "max_position_embeddings": tower.cells**2 + config.length,
            "bos_token_id": tokenizer.cls,
            "eos_token_id": tokenizer.sep,
            "pad_token_id": tokenizer.pad,
            "tie_word_embeddings": True,
        },
        image_token_index=config.vocabulary,
        image_seq_length=tower.cells**2,
        tie_word_embeddings=True,
    )


def save_stock(
    folder: Path,
    model: CausalModel,
    *,
    tower: TowerFeatures,
    recipe: VLRecipe,
    metrics: Mapping[str, Any],
    dtype: torch.dtype = torch.float32,
    card: str | None = None,
) -> None:
    """Write what transformers loads, whole or not at all, with `recipe.yaml` and `metrics.json` beside it.

    Args:
        folder: must not exist.
        model: what is published; it is not changed.
        tower: its backbone.
        recipe: what made it.
        metrics: how good it is.
        dtype: of the weights in the file. Transformers computes in float32, whatever it is.
        card: text of README.md; None: there is none.

    Raises:
        WeightsError: the folder exists, or weights do not fit `dtype`.
    """
    if folder.exists():
        raise WeightsError(f"{folder} exists. Choose another folder, or remove it.")
    weights = cast_weights(model.stock.state_dict(), dtype)
    stock = type(model.stock)(model.stock.config).to(dtype)
    stock.load_state_dict(weights)
    assert isinstance(recipe.task, Captions)
    with explain_full_disk(folder), _without_bars(), atomic_folder(folder) as temporary:
        stock.generation_config.update(**model._search(recipe.task))
        stock.save_pretrained(temporary)
        _compute_in_float32(temporary / CONFIG)
        _processor(model.tokenizer, tower).save_pretrained(temporary)
        (temporary / RECIPE).write_text(recipe.to_yaml(), encoding="utf-8")
        write_metrics(temporary, metrics)
        if card is not None:
            (temporary / README).write_text(card, encoding="utf-8")
        for path in temporary.iterdir():
            path.chmod(0o644)


def _compute_in_float32(path: Path) -> None:
    """Let transformers load float16 weights as float32, else a CPU's words would be those of float16."""
    config = read_json(path, dict)
    for part in (config, config["vision_config"], config["text_config"]):
        part["dtype"] = "float32"
    write_json(path, config)


class _Text(TypedDict):
    vocab_size: Words
    hidden_size: Width
    intermediate_size: Width
    num_hidden_layers: Layers
    num_attention_heads: Width
    max_position_embeddings: Annotated[int, Range(1, 1 << 17)]


class _Vision(TypedDict):
    architecture: str
    model_args: dict[Literal["output_stride"], Annotated[int, Range(1, 64)]]


class _Config(TypedDict):
    text_config: _Text
    vision_config: _Vision


class _Generation(TypedDict, total=False):
    max_new_tokens: Tokens | None
    max_length: Tokens | None
    num_beams: Annotated[int, Range(1, 100)] | None


def _check_stock(folder: Path) -> None:
    """Check sizes, keys and shapes before transformers loads. Raises: as `open_stock`."""
    config = read_json(folder / CONFIG, _Config)
    read_json(folder / GENERATION, _Generation)
    vision = config["vision_config"]
    if not timm.is_model(vision["architecture"]) or vision["model_args"].keys() != {"output_stride"}:
        raise WeightsError(f"{CONFIG}: vision_config {brief(vision)} is no backbone of ours. Fetch the folder again.")
    library = require("transformers", extra="vl")

    def create() -> nn.Module:
        stock: nn.Module = library.FastVlmForConditionalGeneration(
            library.FastVlmConfig.from_pretrained(folder, local_files_only=True)
        )
        return stock

    model = check_model_size(create, name=folder / CONFIG, weights=folder / WEIGHTS, unbuilt=STRANGE)
    model = model or create()  # which says why it can't be built
    wanted = {key: shape for key, shape in shapes_of(model.state_dict()).items() if f"stock.{key}" != TIED[0]}
    # transformers would draw what is missing, and print a report of keys, which are foreign text
    if wrong := differing_keys(stored_shapes(folder / WEIGHTS), wanted):
        raise WeightsError(
            f"{WEIGHTS} is not that of {CONFIG}: {len(wrong)} tensors differ, such as {brief(wrong[0])}. "
            "Fetch the folder again."
        )


def _load(folder: Path) -> Any:
    """Let transformers load a folder whose keys and shapes were checked. Raises: WeightsError."""
    library = require("transformers", extra="vl")
    with _without_bars():
        stock = library.FastVlmForConditionalGeneration.from_pretrained(
            folder, dtype=torch.float32, local_files_only=True, use_safetensors=True
        )
    check_finite(stock.state_dict(), folder / WEIGHTS)
    return stock


def open_stock(folder: Path) -> tuple[CausalModel, TowerFeatures]:
    """Read what `save_stock` wrote.

    Raises:
        WeightsError: a size is beyond bounds, or weights are missing, others or not finite.
        OSError, ValueError, KeyError: a file is missing or damaged.
    """
    try:
        return _open_stock(folder)
    except StrictDataclassError as error:  # of transformers' configurations
        raise WeightsError(f"{CONFIG} is damaged ({' '.join(str(error).split())[:300]}). Fetch it again.") from error


def _open_stock(folder: Path) -> tuple[CausalModel, TowerFeatures]:
    _check_stock(folder)
    stock, library = _load(folder), require("transformers", extra="vl")
    config = stock.config
    try:
        processor = library.AutoProcessor.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except Exception as error:  # tokenizers, below it, raises no narrower one
        reason = " ".join(str(error).split())[:300]
        raise WeightsError(f"The processor beside {CONFIG} is damaged ({reason}). Fetch it again.") from error
    vision, images = config.vision_config, processor.image_processor
    side = images.size["height"]
    if not SMALLEST_SIDE <= side <= LARGEST_SIDE or len(images.image_std) != 3 or min(images.image_std) < SMALLEST_STD:
        raise WeightsError(f"The processor's size {brief(side)} or std {brief(images.image_std)} is none of ours.")
    tower = TowerFeatures(
        stock.model.vision_tower.timm_model,
        architecture=vision.architecture,
        image_size=side,
        cells=side // vision.model_args["output_stride"],
        mean=tuple(images.image_mean),
        std=tuple(images.image_std),
    )
    text = config.text_config
    sizes = CausalConfig(
        vocabulary=text.vocab_size - 1,
        length=text.max_position_embeddings - tower.cells**2,
        layers=text.num_hidden_layers,
        width=text.hidden_size,
        heads=text.num_attention_heads,
        inner=text.intermediate_size,
    )
    model = CausalModel(sizes, tokenizer=read_tokenizer(folder / TOKENIZER), tower=tower)
    model.stock.load_state_dict(stock.state_dict())
    model.stock.generation_config = stock.generation_config
    return model.eval(), tower


@contextmanager
def _without_bars() -> Iterator[None]:
    """Let transformers draw no progress bars, as files of some megabytes take no time."""
    logging = require("transformers", extra="vl").utils.logging
    drawn = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if drawn:
            logging.enable_progress_bar()


def _processor(tokenizer: Tokenizer, tower: TowerFeatures) -> Any:
    """What turns images and `PROMPT` into the model's input, of transformers' stock classes."""
    library = require("transformers", extra="vl")
    fast = require("tokenizers", extra="vl").Tokenizer.from_str(tokenizer.data)
    wrapped = library.PreTrainedTokenizerFast(
        tokenizer_object=fast,
        bos_token="[CLS]",
        eos_token="[SEP]",
        pad_token="[PAD]",
        unk_token="[UNK]",
        mask_token="[MASK]",
        additional_special_tokens=[IMAGE],
        clean_up_tokenization_spaces=False,
    )
    assert wrapped.convert_tokens_to_ids(IMAGE) == len(tokenizer)
    return library.LlavaProcessor(
        image_processor=tower.processor,
        tokenizer=wrapped,
        patch_size=tower.stride,
        vision_feature_select_strategy="full",
        image_token=IMAGE,
    )
