"""Build timm models of foreign folders: their config.json is checked before timm reads it, and weights load strictly.

timm loads non-strictly where `num_classes` differs from the file's, as it does for a backbone without classifier:
tensors that the file lacks keep their random values, without a word. Here every tensor comes from a strict load.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import timm
import torch
from safetensors.torch import load_file

from ..errors import WeightsError
from ..utils.model_size import check_model_size
from ..utils.schema import LARGEST_SIDE, SMALLEST_SIDE, SMALLEST_STD
from ..utils.state_keys import prefix_advice, without_prefix
from ..utils.typed_json import JSONError, read_json
from .safe_weights import BUILD_ERRORS

LARGEST_CONFIG = 1 << 24  # bytes of a config.json: names of 21,000 classes take less than a tenth
LARGEST_ARG = 4096  # the greatest integer among a model's arguments, but for
LARGEST_ARGS = {"img_size": 2048, "patch_size": 64, "window_size": 64, "in_chans": 256}
LARGEST_CLASSES = 1_000_000
LONGEST_TEXT = 10_000

# Arguments of a timm model that a folder may set: none of them changes how many layers are built.
MODEL_ARGS = {
    "img_size", "patch_size", "in_chans", "num_classes", "global_pool", "class_token", "no_embed_class", "reg_tokens",
    "pre_norm", "fc_norm", "final_norm", "pool_include_prefix", "init_values", "qkv_bias", "qk_norm", "pos_embed",
    "dynamic_img_size", "dynamic_img_pad", "strict_img_size", "use_rope", "ref_feat_shape", "drop_rate",
    "drop_path_rate", "proj_drop_rate", "attn_drop_rate", "pos_drop_rate", "norm_layer", "act_layer", "output_stride",
    "window_size", "head_init_scale", "use_naflex",
}  # fmt: skip
# Where a configuration would send timm for other weights than those beside it.
SOURCES = ("url", "file", "state_dict", "hf_hub_id", "hf_hub_filename", "source", "custom_load")


def build_timm_model(source: str, *, pretrained: bool, classifier: bool = True, **options: Any) -> Any:
    """Build a model with `timm.create_model`, none of whose weights are random where `pretrained` is True.

    The global random state is used as timm alone would use it.

    Args:
        source: timm's name of it, or `local-dir:FOLDER`, whose config.json is checked first.
        pretrained: load its weights.
        classifier: keep the classifier.
        options: further arguments of `timm.create_model`.

    Returns:
        The model.

    Raises:
        WeightsError: config.json is refused, or weights lack tensors of the model or have others.
        RuntimeError, OSError, ValueError, LookupError, TypeError, AttributeError, AssertionError, SafetensorError: as
            timm raises them.
    """
    if source.startswith("local-dir:"):
        check_config(Path(source.removeprefix("local-dir:")))
        _check_memory(Path(source.removeprefix("local-dir:")), pretrained=pretrained)
    if not pretrained:
        if not classifier:
            options["num_classes"] = 0
        return timm.create_model(source, pretrained=False, **options)
    if classifier:
        return _load_whole(source, **options)
    with torch.random.fork_rng(devices=[]):
        weights = _load_whole(source, **options).state_dict()
    model: Any = timm.create_model(source, pretrained=False, num_classes=0, **options)
    wanted = model.state_dict()
    if lacking := [key for key, tensor in wanted.items() if key not in weights or weights[key].shape != tensor.shape]:
        raise WeightsError(
            f"{source}: without its classifier the model has {len(lacking)} tensors that the weights lack, "
            f"{', '.join(lacking[:3])}. Take another model."
        )
    model.load_state_dict({key: weights[key] for key in wanted})
    return model


def _load_whole(source: str, **options: Any) -> Any:
    """Let timm load the weights with the classifier that they have, which it does strictly."""
    try:
        return timm.create_model(source, pretrained=True, **options)
    except RuntimeError as error:
        reason = " ".join(str(error).split())
        if "state_dict" not in reason:
            raise
        model, advice = _load_stripped(source, **options)
        if model is not None:
            return model
        raise WeightsError(
            f"{source}: its weights are not those of the architecture that it names ({reason[:500]}).{advice} "
            "Pull or save it again."
        ) from error


def _load_stripped(source: str, **options: Any) -> tuple[Any, str]:
    """Load a folder whose keys have one prefix, as training code writes them; else None, and how they begin."""
    file = Path(source.removeprefix("local-dir:")) / "model.safetensors"
    if not source.startswith("local-dir:") or not file.is_file():
        return None, ""
    model: Any = timm.create_model(source, pretrained=False, **options)
    state, wanted = load_file(file), model.state_dict()
    advice = prefix_advice(state, wanted)
    stripped = without_prefix(state, wanted)
    if stripped.keys() != wanted.keys() or any(stripped[key].shape != wanted[key].shape for key in wanted):
        return None, advice
    model.load_state_dict(stripped)
    return model, advice


def _check_memory(folder: Path, *, pretrained: bool) -> None:
    """Refuse a config.json whose model is far larger than the weights beside it. Raises: WeightsError."""
    file = folder / "model.safetensors"
    check_model_size(
        lambda: timm.create_model(f"local-dir:{folder}", pretrained=False),
        name=folder / "config.json",
        weights=file if pretrained and file.is_file() else None,
        unbuilt=BUILD_ERRORS,
    )


# ------------------------------------------------------------------------------------------------------- config.json


def check_config(folder: Path, *, published: bool = False) -> dict[str, Any]:
    """Check a timm config.json: known arguments only, each of its type and within its bounds.

    Args:
        folder: where it is.
        published: a folder of this package, which names a stock architecture, takes colour images and has no
            `model_args`.

    Returns:
        Its content.

    Raises:
        WeightsError: names the field, its value and what it may be.
    """
    path = folder / "config.json"
    config = _read(path)
    cfg = config.get("pretrained_cfg", {} if published else config)
    if not isinstance(cfg, dict):
        raise _refused(path, "pretrained_cfg", cfg, "an object")
    architecture, classes = config.get("architecture"), config.get("num_classes", cfg.get("num_classes"))
    if not isinstance(architecture, str) or not timm.is_model(architecture):
        raise _refused(path, "architecture", architecture, "a model of timm")
    if classes is not None or published:
        _check_integer(path, "num_classes", classes, low=0, high=LARGEST_CLASSES)
    _check_names(path, config)
    _check_sizes(path, cfg)
    _check_args(path, config.get("model_args", {}))
    if published:
        _check_published(path, config, cfg)
    return config


def _read(path: Path) -> dict[str, Any]:
    try:
        config: dict[str, Any] = read_json(path, dict, limit=LARGEST_CONFIG)
    except (OSError, JSONError) as error:
        raise WeightsError(f"{path} can't be read as timm's config ({error}). Pull or save it again.") from error
    return config


def _refused(path: Path, field: str, value: Any, expected: str) -> WeightsError:
    return WeightsError(f"{path}: {field} = {ascii(value)[:100]} is not {expected}. Don't use this folder, or mend it.")


def _check_integer(path: Path, field: str, value: Any, *, low: int, high: int) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
        raise _refused(path, field, value, f"an integer from {low} to {high}")


def _check_names(path: Path, config: dict[str, Any]) -> None:
    names = config.get("label_names", [])
    if not isinstance(names, list) or not all(isinstance(name, str) and len(name) <= LONGEST_TEXT for name in names):
        raise _refused(path, "label_names", names, "a list of names")


def _check_sizes(path: Path, cfg: dict[str, Any]) -> None:
    for field in ("input_size", "test_input_size", "min_input_size"):
        size = cfg.get(field)
        if size is None:
            continue
        if not isinstance(size, list) or len(size) != 3:
            raise _refused(path, field, size, "[channels, height, width]")
        for place, side in enumerate(size):
            _check_integer(path, field, side, low=1 if place == 0 else SMALLEST_SIDE, high=LARGEST_SIDE)
    for field in ("mean", "std"):
        values = cfg.get(field)
        if values is not None and not (isinstance(values, list) and values and all(map(_is_finite, values))):
            raise _refused(path, field, values, "a list of numbers")
        if field == "std" and values is not None and min(values) < SMALLEST_STD:
            raise _refused(path, field, values, "a list of numbers above 0, as pixels are divided by them")
    for field in ("crop_pct", "test_crop_pct"):
        share = cfg.get(field)
        if share is not None and not (_is_finite(share) and 0 < share <= 10):
            raise _refused(path, field, share, "a number above 0")
    for field in ("fixed_input_size", "custom_load"):
        if not isinstance(cfg.get(field, False), bool):
            raise _refused(path, field, cfg[field], "true or false")
    if not isinstance(cfg.get("interpolation", ""), str):
        raise _refused(path, "interpolation", cfg["interpolation"], "the name of a filter")


def _is_finite(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < 1e6 and math.isfinite(value)


def _check_args(path: Path, args: Any) -> None:
    if not isinstance(args, dict):
        raise _refused(path, "model_args", args, "an object")
    for name, value in args.items():
        if name not in MODEL_ARGS:
            raise _refused(path, "model_args", name, f"one of {', '.join(sorted(MODEL_ARGS))}")
        values = value if isinstance(value, list) and len(value) <= 3 else [value]
        largest = LARGEST_ARGS.get(name, LARGEST_ARG)
        if not all(one is None or isinstance(one, bool) or _is_small(one, largest) for one in values):
            raise _refused(path, f"model_args.{name}", value, f"a number up to {largest}, or a short text")


def _is_small(value: Any, largest: int) -> bool:
    return len(value) <= 100 if isinstance(value, str) else _is_finite(value) and abs(value) <= largest


def _check_published(path: Path, config: dict[str, Any], cfg: dict[str, Any]) -> None:
    classes = config.get("num_classes", cfg.get("num_classes"))
    if config["architecture"].startswith("lgd_"):
        raise _refused(path, "architecture", config["architecture"], "a stock one, which plain timm has")
    if "model_args" in config:
        raise _refused(path, "model_args", config["model_args"], "there in a folder of lgd_timm")
    if given := [field for field in SOURCES if cfg.get(field)]:
        raise _refused(path, f"pretrained_cfg.{given[0]}", cfg[given[0]], "there in a folder of lgd_timm")
    size = cfg.get("input_size")
    if size is None or size[0] != 3 or any(len(cfg.get(field) or ()) != 3 for field in ("mean", "std")):
        raise _refused(path, "input_size", size, "[3, height, width], with a mean and std of three colours")
    if "label_names" in config and len(config["label_names"]) != classes:
        raise _refused(path, "label_names", config["label_names"], f"{classes} names, as num_classes says")
