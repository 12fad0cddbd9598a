"""A vision-language model as a folder, which captions plain pictures by itself.

A model of transformers' own class is saved as transformers has it (`stock.py`); other folders are

FOLDER/  config.json        sizes, task, answers, regions, backbone
         model.safetensors  the transformer (`model.`) and the frozen backbone (`backbone.`)
         tokenizer.json  recipe.yaml  metrics.json
         detector/          of regions that a detector finds
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors.torch import load_file, save_file
from torch import nn

from ..config.reader import local_source, read_mapping
from ..errors import LGDError, WeightsError
from ..hub.safe_weights import BUILD_ERRORS
from ..hub.snapshot_download import locate
from ..hub.weights import FASTVLM, VL_FORMAT, manifest
from ..teachers.base import module_fingerprint
from ..transfer.backbone import blank_backbone
from ..utils.cast import cast_weights
from ..utils.checkpoint import DAMAGE
from ..utils.files import atomic_folder, explain_full_disk, write_json
from ..utils.model_size import check_finite, check_model_size
from ..utils.schema import Pixels, Size, build, to_plain
from ..utils.typed_json import read_json
from .batch import Encoder
from .features import Extract, RegionFeatures
from .model import ModelConfig, VisionLanguageModel
from .recipe import DetectorRegions, Regions, Task, TextRecipe, VLRecipe
from .regions import open_regions
from .stock import README, AnyModel, CausalModel, open_stock, save_stock
from .text import FILE as TOKENIZER
from .text import Tokenizer
from .tower import TowerFeatures

CONFIG, WEIGHTS, METRICS, RECIPE, DETECTOR = (
    "config.json",
    "model.safetensors",
    "metrics.json",
    "recipe.yaml",
    "detector",
)
FORMAT = f"{VL_FORMAT} 1"


@dataclass(frozen=True)
class BackboneConfig:
    """The frozen backbone of a folder."""

    architecture: str
    level: Size
    image_size: Pixels
    mean: tuple[float, float, float]
    std: tuple[float, float, float]


@dataclass(frozen=True)
class FolderConfig:
    """What config.json holds."""

    format: str
    task: Task
    model: ModelConfig
    backbone: BackboneConfig
    regions: Regions
    regions_fingerprint: str
    text: TextRecipe
    tokenizer: str  # fingerprint
    answers: list[str]


@dataclass(frozen=True)
class VLModel:
    """A model with all that it needs to look at pictures.

    Attributes:
        model: the transformer, in eval mode.
        extract: computes features of regions.
        encoder: makes tokens of texts.
        regions: where the boxes come from.
        regions_fingerprint: of these boxes: teacher and student must have the same.
        recipe: how it was trained.
        metrics: its scores.
    """

    model: AnyModel
    extract: Extract
    encoder: Encoder
    regions: Regions
    regions_fingerprint: str
    recipe: VLRecipe
    metrics: Mapping[str, Any]

    @property
    def fingerprint(self) -> str:
        """Of the weights of transformer and backbone."""
        return module_fingerprint(self.model, self.extract.fingerprint, self.model.config)

    @property
    def config(self) -> FolderConfig:
        extract, encoder = self.extract, self.encoder
        assert isinstance(extract, RegionFeatures)
        assert isinstance(self.model, VisionLanguageModel)
        return FolderConfig(
            format=FORMAT,
            task=encoder.task,
            model=self.model.config,
            backbone=BackboneConfig(extract.architecture, extract.level, extract.image_size, extract.mean, extract.std),
            regions=self.regions,
            regions_fingerprint=self.regions_fingerprint,
            text=encoder.text,
            tokenizer=encoder.tokenizer.fingerprint,
            answers=list(encoder.answers),
        )


def save_model(model: VLModel, folder: Path, *, dtype: torch.dtype = torch.float32, card: str | None = None) -> None:
    """Write a model as a folder, complete or not at all; one of transformers' own class as transformers has it.

    Args:
        model: what is written.
        folder: must not exist.
        dtype: of the weights.
        card: text of README.md; None: there is none.

    Raises:
        WeightsError: the folder exists, or weights do not fit `dtype`.
    """
    if isinstance(model.model, CausalModel):
        assert isinstance(model.extract, TowerFeatures)
        save_stock(
            folder,
            model.model,
            tower=model.extract,
            recipe=model.recipe,
            metrics=model.metrics,
            dtype=dtype,
            card=card,
        )
        return
    if folder.exists():
        raise WeightsError(f"{folder} exists. Choose another folder, or remove it.")
    regions = model.regions
    state = {
        **{f"model.{key}": tensor for key, tensor in model.model.state_dict().items()},
        **{f"backbone.{key}": tensor for key, tensor in model.extract.state_dict().items()},
    }
    with atomic_folder(folder) as temporary:
        if isinstance(regions, DetectorRegions):
            _copy_detector(Path(regions.run), temporary / DETECTOR)
            regions = replace(regions, run=DETECTOR)
        with explain_full_disk(folder / WEIGHTS):
            save_file(cast_weights(state, dtype), temporary / WEIGHTS)
        write_json(temporary / CONFIG, to_plain(replace(model.config, regions=regions)))
        write_json(temporary / METRICS, dict(model.metrics))
        (temporary / TOKENIZER).write_text(model.encoder.tokenizer.data, encoding="utf-8")
        (temporary / RECIPE).write_text(model.recipe.to_yaml(), encoding="utf-8")
        if card is not None:
            (temporary / README).write_text(card, encoding="utf-8")


def _copy_detector(run: Path, folder: Path) -> None:
    folder.mkdir()
    for name in ("metrics.json", "model.safetensors", "recipe.yaml"):
        shutil.copyfile(run / name, folder / name)


def model_folder(source: str | Path) -> Path:
    """Find a model's folder: a published one, a run's `model/`, `hub://ORG/NAME` or a published weight's name.

    Raises:
        WeightsError: there is none, or it can't be pulled.
    """
    path = local_source(source)
    if not path.exists() and str(source) in manifest():
        path = locate(str(source))
    for folder in (path, path / "model"):
        if (folder / CONFIG).is_file():
            return folder
    raise WeightsError(f"{source} holds no {CONFIG}. Give a finished run of lgd-timm vl, or what it published.")


def open_model(source: str | Path) -> VLModel:
    """Open a published folder or a finished run, on the CPU and in eval mode.

    Raises:
        WeightsError: it is none, or is damaged.
        MissingExtra: transformers is missing.
    """
    folder = model_folder(source)
    try:
        return _open(folder)
    except LGDError as error:
        raise WeightsError(f"{folder} can't be read: {error}") from error
    except (*DAMAGE, StrictDataclassError) as error:
        reason = " ".join(str(error).split())[:300] or type(error).__name__
        raise WeightsError(f"{folder} can't be read ({reason}). Fetch it again, or publish it anew.") from error


def _open(folder: Path) -> VLModel:
    if read_json(folder / CONFIG, dict).get("model_type") == FASTVLM:
        return _open_stock(folder)
    config: FolderConfig = read_json(folder / CONFIG, FolderConfig)
    if config.format != FORMAT:
        raise WeightsError(f"{CONFIG} has the format {config.format!r}, and {FORMAT!r} is known. Update lgd_timm.")
    tokenizer = Tokenizer((folder / TOKENIZER).read_text(encoding="utf-8"))
    if tokenizer.fingerprint != config.tokenizer:
        raise WeightsError(f"{TOKENIZER} is not the model's. Fetch the folder again.")
    _check_parts(config, tokenizer)

    def create() -> nn.ModuleList:
        return nn.ModuleList([VisionLanguageModel(config.model), _backbone(config.backbone)])

    check_model_size(create, name=folder / CONFIG, weights=folder / WEIGHTS, unbuilt=BUILD_ERRORS)
    model, extract = VisionLanguageModel(config.model), _backbone(config.backbone)
    state = {key: tensor.float() if tensor.is_floating_point() else tensor for key, tensor in
             load_file(folder / WEIGHTS).items()}  # fmt: skip
    check_finite(state, folder / WEIGHTS)
    for part, prefix in ((model, "model."), (extract, "backbone.")):
        part.load_state_dict({k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)})
    regions = config.regions
    if isinstance(regions, DetectorRegions):
        regions = replace(regions, run=str(folder / DETECTOR))
    return VLModel(
        model=model.eval(),
        extract=extract,
        encoder=Encoder(config.task, config.text, tokenizer=tokenizer, answers=config.answers),
        regions=regions,
        regions_fingerprint=config.regions_fingerprint,
        recipe=_recipe(folder),
        metrics=read_json(folder / METRICS, dict[str, Any]),
    )


def _open_stock(folder: Path) -> VLModel:
    recipe = _recipe(folder)
    model, tower = open_stock(folder)
    return VLModel(
        model=model,
        extract=tower,
        encoder=Encoder(recipe.task, recipe.text, tokenizer=model.tokenizer),
        regions=recipe.regions,
        regions_fingerprint=open_regions(recipe.regions).fingerprint,
        recipe=recipe,
        metrics=read_json(folder / METRICS, dict[str, Any]),
    )


def _recipe(folder: Path) -> VLRecipe:
    recipe: VLRecipe = build(VLRecipe, read_mapping(folder / RECIPE), where="")
    return recipe


def _check_parts(config: FolderConfig, tokenizer: Tokenizer) -> None:
    """Check that the parts of a folder have each other's sizes. Raises: WeightsError."""
    sizes, text = config.model, config.text
    if len(tokenizer) > sizes.vocabulary or text.length > sizes.length or text.tags > sizes.tags:
        raise WeightsError(
            f"{CONFIG} has a model of {sizes.vocabulary} tokens and texts of {sizes.length} and {sizes.tags}, and a "
            f"tokenizer of {len(tokenizer)} and texts of {text.length} and {text.tags}. Fetch the folder again."
        )
    if sizes.answers != len(config.answers):
        raise WeightsError(
            f"{CONFIG} has {len(config.answers)} answers, and a model of {sizes.answers}. Fetch it again."
        )


def _backbone(config: BackboneConfig) -> RegionFeatures:
    blank = blank_backbone(config.architecture, mean=config.mean, std=config.std)
    return RegionFeatures(blank, level=config.level, image_size=config.image_size)
