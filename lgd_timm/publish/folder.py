"""Save and load the published folder: a stock timm model that any timm loads, and files that only lgd_timm reads.

config.json, model.safetensors   stock architecture, stock keys; with a linear projector the zero-shot classifier
                                 is folded in, so the model IS a classifier over the vocabulary
lgd.safetensors                  projector, text bank, visual bank, names: for embeddings and for other names
recipe.yaml, metrics.json        how it was made, how good it is
training.png                     losses and accuracy over the training, where matplotlib is installed
open_clip_*                      the same image tower with the teacher's text tower, when asked for: open_clip loads it
README.md                        the model card
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import timm
import torch
from torch import nn

from ..config.reader import read_recipe
from ..config.recipe import Recipe
from ..errors import WeightsError
from ..hub.safe_weights import BUILD_ERRORS
from ..hub.timm_models import build_timm_model, check_config
from ..objectives import objective_config
from ..students.entrypoints import stock_name
from ..students.model import Student, check_image_size
from ..teachers import TeacherSpec
from ..utils.cast import cast_weights
from ..utils.files import atomic_folder, explain_full_disk, sha256_of, write_json
from ..utils.lfs import pointers_in
from ..utils.typed_json import read_json
from .card import card_of
from .lgd_safetensors import Banks, read_lgd, write_lgd
from .metrics import read_metrics, write_metrics
from .open_clip import write_open_clip
from .registration import check_name, manifest_row, register

__all__ = [
    "Banks",
    "Published",
    "check_name",
    "load",
    "manifest_row",
    "register",
    "round_weights",
    "save",
    "stock_model",
]


@dataclass(frozen=True)
class Published:
    """The content of a published folder, ready to embed."""

    student: Student
    banks: Banks
    recipe: Recipe
    metrics: dict[str, Any]
    label_names: tuple[str, ...]


SUMMED = ("config.json", "model.safetensors", "lgd.safetensors")  # files whose sums metrics.json has


def save(
    out: str | Path,
    *,
    student: Student,
    banks: Banks,
    recipe: Recipe,
    metrics: Mapping[str, Any],
    name: str,
    embedding_norm: float = 1.0,
    dtype: torch.dtype = torch.float16,
    curve: bytes | None = None,
    open_clip: TeacherSpec | None = None,
    repo_id: str | None = None,
) -> Path:
    """Write a published folder, whole or not at all.

    Args:
        out: the folder, which must be empty or not exist.
        student: what was distilled.
        banks: names, and the text and visual bank.
        recipe: what made it.
        metrics: the content of `metrics.json`.
        name: the weight's name, `<entry>.<tag>`.
        embedding_norm: mean length of the student's embeddings. It scales the folded classifier, so that its softmax is
            the student's own at its temperature.
        dtype: type of the weights in the files.
        curve: the PNG of `training_curve`.
        open_clip: the teacher, whose text tower then goes along in the two files that open_clip loads.
        repo_id: the repository that the card speaks of, by default one of ours.

    Returns:
        `out`.

    Raises:
        WeightsError: the folder is not empty, weights do not fit `dtype`, or open_clip can't express the pair.
    """
    out = Path(out)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise WeightsError(f"{out} exists and is no empty folder. Choose another one, or remove it.")
    stock = stock_model(student, banks, recipe, embedding_norm=embedding_norm)
    weights = cast_weights(stock.state_dict(), dtype)
    stock = stock.to(dtype=dtype, memory_format=torch.contiguous_format)
    stock.load_state_dict(weights)
    config: dict[str, Any] = {"architecture": stock.pretrained_cfg["architecture"]}
    if student.projector_kind == "linear":
        config["label_names"] = list(banks.names)
    with explain_full_disk(out), atomic_folder(out) as temporary:
        timm.models.save_for_hf(stock, str(temporary), model_config=config, safe_serialization=True)
        _drop_model_args(temporary / "config.json")
        write_lgd(temporary / "lgd.safetensors", student=student, banks=banks, dtype=dtype)
        (temporary / "recipe.yaml").write_text(recipe.to_yaml(), encoding="utf-8")
        sums = {name: sha256_of(temporary / name) for name in SUMMED}
        write_metrics(temporary, {**metrics, "sha256": sums})
        if curve is not None:
            (temporary / "training.png").write_bytes(curve)
        if open_clip is not None:
            architecture = config["architecture"]
            write_open_clip(
                temporary, student=student, banks=banks, teacher=open_clip, architecture=architecture, dtype=dtype
            )
        (temporary / "README.md").write_text(card_of(temporary, name=name, repo_id=repo_id), encoding="utf-8")
        for path in temporary.iterdir():
            path.chmod(0o644)
    return out


def stock_model(student: Student, banks: Banks, recipe: Recipe, *, embedding_norm: float) -> Any:
    """Build the student as a stock timm model; a linear projector and the text bank become its classifier.

    logits_k = c_k . (W f + b) / (embedding_norm * tau_S)       up to a positive scale per image, the zero-shot logits

    Args:
        student: what was distilled.
        banks: its text bank [C, D] holds the rows c_k.
        recipe: says the student's temperature tau_S, and how images are cropped in evaluation.
        embedding_norm: mean length of the student's embeddings.
    """
    linear = isinstance(student.projector, nn.Linear)
    backbone: Any = student.backbone
    architecture = stock_name(backbone.pretrained_cfg["architecture"])  # the recipe may say hf-hub: or local-dir:
    preprocess = student.preprocess
    stock: Any = timm.create_model(
        architecture,
        num_classes=len(banks.names) if linear else 0,
        pretrained_cfg_overlay={
            "tag": recipe.name,
            "crop_pct": recipe.data.val_crop,  # as it was evaluated
            "interpolation": preprocess.interpolation,
            "mean": tuple(preprocess.mean.flatten().tolist()),
            "std": tuple(preprocess.std.flatten().tolist()),
            "input_size": (3, preprocess.size, preprocess.size),
            "pool_size": None,
            "origin_url": "https://arxiv.org/abs/2406.11689",
        },
    )
    missing, unexpected = stock.load_state_dict(student.backbone.state_dict(), strict=False)
    assert not unexpected, unexpected
    classifier: Any = stock.get_classifier()
    assert len(missing) == (2 if linear else 0), missing
    if isinstance(student.projector, nn.Linear):
        scale = 1 / (embedding_norm * objective_config(recipe.objective).student_temperature)
        text = banks.text.to(student.projector.weight.device)
        with torch.no_grad():
            classifier.weight.copy_(scale * text @ student.projector.weight)
            classifier.bias.copy_(scale * text @ student.projector.bias)
    return stock


def load(folder: str | Path) -> Published:
    """Read a published folder.

    Args:
        folder: what `save` wrote, `hub.pull` pulled or `hub.locate` found.

    Returns:
        The student in evaluation mode, with its banks, recipe and metrics.

    Raises:
        WeightsError: it is no published folder, is damaged, or was written by a newer format.
        RecipeError: its recipe can't be read, or names a path outside the working directory.
    """
    folder = Path(folder)
    for name in ("config.json", "model.safetensors", "lgd.safetensors", "recipe.yaml"):
        if not (folder / name).is_file():
            raise WeightsError(
                f"{folder} lacks {name}, so it is no folder that lgd_timm published. "
                "`lgd-timm pull` or `lgd-timm save` makes one."
            )
    if pointers := pointers_in(folder):
        raise WeightsError(f"{folder}: {', '.join(pointers)} are git-lfs pointers. Run there: git lfs pull")
    lgd = read_lgd(folder / "lgd.safetensors")
    if lgd.misfit is not None:
        raise WeightsError(f"{folder}/lgd.safetensors: {lgd.misfit}. Pull or save it again.")
    try:
        config = check_config(folder, published=True)
        size = config["pretrained_cfg"]["input_size"][-1]
        backbone = build_timm_model(f"local-dir:{folder}", pretrained=True, classifier=False)
        check_image_size(backbone, size, field="input_size")
        student = Student(backbone, embed_dim=lgd.banks.text.shape[1], projector=lgd.projector_kind, image_size=size)
        student.projector.load_state_dict(lgd.projector)
    except BUILD_ERRORS as error:
        if isinstance(error, WeightsError):
            raise
        reason = " ".join(str(error).split())
        raise WeightsError(
            f"{folder}: timm can't load config.json and model.safetensors ({reason}). Pull or save it again."
        ) from error
    names = tuple(config.get("label_names", ()))
    if names and names != lgd.banks.names:
        raise WeightsError(
            f"{folder}: config.json and lgd.safetensors have other names. Pull or save it again, all of one run."
        )
    recipe, metrics = read_recipe(folder / "recipe.yaml"), read_metrics(folder)
    sums = metrics.pop("sha256", None)
    if changed := [] if sums is None else [name for name in SUMMED if sha256_of(folder / name) != sums.get(name)]:
        raise WeightsError(
            f"{folder}: {', '.join(changed)} were altered since they were saved, as their sha256 in metrics.json says. "
            "Pull or save the folder again. If you altered them, remove `sha256` from metrics.json."
        )
    return Published(student=student.eval(), banks=lgd.banks, recipe=recipe, metrics=metrics, label_names=names)


def round_weights(student: Student, dtype: torch.dtype = torch.float16) -> Student:
    """Round the student's weights in place as saving will, so that what is evaluated is what is published.

    Raises:
        WeightsError: weights do not fit `dtype`.
    """
    student.load_state_dict(cast_weights(student.state_dict(), dtype))
    return student


def _drop_model_args(path: Path) -> None:
    """Remove `model_args`: stock models need none, and with them transformers (5.23) passes num_classes twice."""
    config = read_json(path, dict)
    config.pop("model_args", None)
    write_json(path, config)
