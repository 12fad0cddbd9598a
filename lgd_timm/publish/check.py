"""Check that a folder can be published: complete, loadable by plain timm, its files of one model, with a card."""

from __future__ import annotations

import importlib
import importlib.util
from pathlib import Path
from typing import Any

import timm
import torch
from huggingface_hub import ModelCard
from huggingface_hub.errors import StrictDataclassError

from ..config.strict_yaml import parse_yaml
from ..errors import LGDError, RecipeError, WeightsError
from ..hub.safe_weights import BUILD_ERRORS
from ..hub.timm_models import check_config
from ..hub.verify import FileFacts, StrPath, facts_of
from ..hub.weights import (
    FASTVLM,
    OPEN_CLIP_FILES,
    PUBLISHED_FILES,
    REQUIRED_FILES,
    TIMM_FILES,
    VL_FILES,
    VL_FORMAT,
)
from ..utils.state_keys import Shapes, differing_keys, shapes_of, stored_shapes
from ..utils.typed_json import JSONError, read_json
from .metrics import read_metrics

LARGEST_CARD = 1 << 20  # bytes


def check_folder(folder: StrPath) -> dict[str, FileFacts]:
    """Check that a folder can be published; it takes seconds.

    Args:
        folder: what `save` or `lgd-timm vl publish` wrote.

    Returns:
        Size and hashes of its published files, by name.

    Raises:
        WeightsError: files are missing or unknown; `architecture` is not timm's own; a safetensors file does not open
            or does not fit the architecture strictly; the model's outputs are not finite; names, banks and projector
            do not fit the model; a recipe, metrics or picture can't be read; open_clip can't load its files; or the
            Hub would refuse the front matter of README.md.
    """
    folder = Path(folder)
    names = {path.name for path in folder.iterdir() if not path.name.startswith(".")} if folder.is_dir() else set()
    if missing := [name for name in REQUIRED_FILES if name not in names]:
        raise WeightsError(f"{folder} is no published folder: {', '.join(missing)} missing. Make it with lgd_timm.")
    if is_vision_language(folder):
        return _check_vision_language(folder)
    if unknown := sorted(names.difference(TIMM_FILES)):
        raise WeightsError(
            f"{folder} holds {', '.join(unknown)}; published are only {', '.join(TIMM_FILES)}. Move them away."
        )
    shapes = {name: stored_shapes(folder / name) for name in sorted(names) if name.endswith(".safetensors")}
    features = _check_model(folder, shapes["model.safetensors"])
    if "lgd.safetensors" in names:
        _check_lgd(folder, features)
    if "recipe.yaml" in names:
        _check_recipe(folder / "recipe.yaml")
    read_metrics(folder)
    if "training.png" in names and not (folder / "training.png").read_bytes().startswith(b"\x89PNG\r\n"):
        raise WeightsError(f"{folder}/training.png is no PNG. Remove it, or save the run again.")
    if names.intersection(OPEN_CLIP_FILES):
        _check_open_clip(folder, names)
    _check_card(folder / "README.md")
    return {name: facts_of(folder / name) for name in TIMM_FILES if name in names}


def is_vision_language(folder: StrPath) -> bool:
    """Whether a folder holds a vision-language model of `lgd-timm vl publish`, by its config.json."""
    try:
        config = read_json(Path(folder) / "config.json", dict)
    except (OSError, JSONError):
        return False
    return config.get("model_type") == FASTVLM or str(config.get("format")).startswith(VL_FORMAT)


def _check_vision_language(folder: Path) -> dict[str, FileFacts]:
    """Check a vision-language folder; one of transformers' class must load strictly, if transformers is there."""
    known = (*REQUIRED_FILES, "recipe.yaml", "metrics.json", *VL_FILES)
    names = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    names = {name for name in names if not name.startswith(".")}
    if unknown := sorted(names.difference(known)):
        raise WeightsError(
            f"{folder} holds {', '.join(unknown)}; published are only {', '.join(known)}. Move them away."
        )
    if missing := [name for name in ("recipe.yaml", "metrics.json", "tokenizer.json") if name not in names]:
        raise WeightsError(f"{folder} lacks {', '.join(missing)}. Make it with lgd-timm vl publish.")
    for name in sorted(names):
        if name.endswith(".safetensors"):
            stored_shapes(folder / name)
        elif name.endswith(".json"):
            _read_json(folder / name)
    if "processor_config.json" in names and importlib.util.find_spec("transformers") is not None:
        _check_transformers(folder)
    _check_card(folder / "README.md")
    return {name: facts_of(folder / name) for name in PUBLISHED_FILES if name in names}


def _check_transformers(folder: Path) -> None:
    """Check that transformers loads the folder, and that no tensor is missing, superfluous or of another shape."""
    library: Any = importlib.import_module("transformers")
    try:
        _, found = library.AutoModelForImageTextToText.from_pretrained(
            folder, output_loading_info=True, local_files_only=True
        )
        library.AutoProcessor.from_pretrained(folder, local_files_only=True)
    except (*BUILD_ERRORS, StrictDataclassError) as error:
        reason = " ".join(str(error).split())[:300]
        raise WeightsError(f"{folder}: transformers can't load it ({reason}). Publish it anew.") from error
    wrong = sorted(str(key) for kind in ("missing_keys", "unexpected_keys", "mismatched_keys") for key in found[kind])
    if wrong:
        raise WeightsError(
            f"{folder}: model.safetensors does not fit config.json, {len(wrong)} tensors differ, such as {wrong[0]}. "
            "Publish it anew."
        )


def _read_json(path: Path) -> dict[str, Any]:
    try:
        data: dict[str, Any] = read_json(path, dict)
    except (OSError, JSONError) as error:
        raise WeightsError(f"{path} can't be read as JSON ({error}). Write it again.") from error
    return data


def _check_model(folder: Path, shapes: Shapes) -> int:
    """Check that the weights load strictly into the architecture that config.json names, as plain timm builds it.

    Returns the number of features before the classifier.
    """
    path = folder / "config.json"
    try:
        architecture = str(_read_json(path)["architecture"])
    except (WeightsError, KeyError) as error:
        raise WeightsError(f"{path} is no timm config ({type(error).__name__}: {error}). Write it again.") from error
    if architecture.startswith("lgd_") or not timm.is_model(architecture):
        raise WeightsError(
            f"{path} names the architecture {architecture!r}, which plain timm does not have. "
            "Name the stock one, such as 'resnet18', so that the weights load where lgd_timm is not installed."
        )
    check_config(folder)
    try:
        wanted = shapes_of(timm.create_model(f"local-dir:{folder}", pretrained=False).state_dict())
    except BUILD_ERRORS as error:
        reason = " ".join(str(error).split())
        raise WeightsError(f"{path}: timm can't build {architecture} of it ({reason}). Write it again.") from error
    if keys := differing_keys(shapes, wanted):
        examples = [f"{k} is {shapes.get(k, 'missing')} and should be {wanted.get(k, 'absent')}" for k in keys[:3]]
        raise WeightsError(
            f"{folder}: model.safetensors does not fit {architecture} strictly, {len(keys)} tensors differ: "
            f"{'; '.join(examples)}. Save state_dict and config.json of one model."
        )
    return _answer(folder)


@torch.no_grad()
def _answer(folder: Path) -> int:
    """Run the model on a black image of its own size; return how many features it has."""
    try:
        model: Any = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
        picture = torch.zeros(1, *model.pretrained_cfg["input_size"])
        outputs, classes = model(picture), model.num_classes
        model.reset_classifier(0)
        features = model(picture)
    except (RuntimeError, ValueError, TypeError, KeyError, AssertionError) as error:
        reason = " ".join(str(error).split())
        raise WeightsError(
            f"{folder}: the model does not answer ({type(error).__name__}: {reason}). Check config.json."
        ) from error
    finite, wanted = bool(outputs.isfinite().all()), (1, classes or features.shape[1])
    if tuple(outputs.shape) != wanted or not finite:
        raise WeightsError(
            f"{folder}: asked about a black picture, the model answers {tuple(outputs.shape)} numbers, "
            f"{'all' if finite else 'not all'} finite; expected {wanted}, all finite. Check weights and config.json."
        )
    return features.shape[1]


def _check_lgd(folder: Path, features: int) -> None:
    """Check that names, text bank, classifier and projector are of one model."""
    from .lgd_safetensors import read_lgd  # which needs a student, and so more than this module should bring along

    lgd, config = read_lgd(folder / "lgd.safetensors"), _read_json(folder / "config.json")
    names, bank = list(lgd.banks.names), lgd.banks.text
    found: dict[str, Any] = {"text bank of rows": len(bank), "projector": (lgd.features, lgd.embed_dim)}
    wanted: dict[str, Any] = {"text bank of rows": len(names), "projector": (features, bank.shape[1])}
    if lgd.projector_kind == "linear":
        found |= {"label_names": config.get("label_names"), "num_classes": config.get("num_classes")}
        wanted |= {"label_names": names, "num_classes": len(names)}
    wrong = [f"{what} {found[what]}, expected {wanted[what]}" for what in wanted if found[what] != wanted[what]]
    if wrong:
        raise WeightsError(
            f"{folder}: lgd.safetensors does not fit config.json and model.safetensors: {'; '.join(wrong)}. "
            "Save all of one run."
        )


def _check_recipe(path: Path) -> None:
    from ..config.reader import read_recipe

    try:
        read_recipe(path)
    except LGDError as error:
        raise WeightsError(f"{path} is no recipe that this version reads: {error}") from error


def _check_open_clip(folder: Path, names: set[str]) -> None:
    """Check that both files are there and, where open_clip is installed, that it loads them."""
    if missing := [name for name in OPEN_CLIP_FILES if name not in names]:
        raise WeightsError(
            f"{folder} has one of open_clip's two files and lacks {missing[0]}. Save it again, or remove the other."
        )
    if importlib.util.find_spec("open_clip") is not None:
        from .open_clip import load_open_clip

        load_open_clip(folder)
    elif "model_cfg" not in _read_json(folder / OPEN_CLIP_FILES[0]):
        raise WeightsError(f"{folder}/{OPEN_CLIP_FILES[0]} lacks model_cfg. Save it again.")


def _check_card(path: Path) -> None:
    """Check that the model card begins with front matter that YAML and the Hub's client read."""
    try:
        with path.open("rb") as file:
            text = file.read(LARGEST_CARD + 1).decode("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise WeightsError(f"{path} can't be read as text ({error}). Correct it.") from error
    if len(text) > LARGEST_CARD:
        raise WeightsError(f"{path} has more than {LARGEST_CARD} bytes, which no card has. Correct it.")
    before, *parts = text.split("---\n", maxsplit=2)
    try:
        front = parse_yaml(parts[0], source="it", aliases=True) if len(parts) == 2 and not before else None
    except RecipeError as error:
        raise WeightsError(f"{path}: its front matter is not YAML ({error}). Correct it.") from error
    if not isinstance(front, dict):
        raise WeightsError(f"{path} has no front matter. Begin it with a line ---, `key: value` lines, a line ---.")
    try:
        ModelCard(text)
    except (ValueError, TypeError, LookupError, AttributeError, RecursionError) as error:
        raise WeightsError(f"{path}: the Hub's client refuses its front matter ({error}). Correct it.") from error
