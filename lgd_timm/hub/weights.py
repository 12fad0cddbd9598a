"""The weights that this package knows to be published (`manifest.json`), and their folders without the Hub."""

from __future__ import annotations

import difflib
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .. import settings
from ..errors import WeightsError
from ..utils.typed_json import read_json
from .verify import FileFacts, checked_facts, verify

# The files of a published folder, as on the Hub.
REQUIRED_FILES = ("config.json", "model.safetensors", "README.md")
OPEN_CLIP_FILES = ("open_clip_config.json", "open_clip_model.safetensors")
TIMM_FILES = (*REQUIRED_FILES, "lgd.safetensors", "recipe.yaml", "metrics.json", "training.png", *OPEN_CLIP_FILES)
# Of a vision-language folder, beside those: transformers', the tokenizer, and of regions that a detector finds.
VL_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "generation_config.json",
    "processor_config.json",
    "detector/metrics.json",
    "detector/model.safetensors",
    "detector/recipe.yaml",
)
FASTVLM = "fast_vlm"  # model_type of config.json, of transformers' class
VL_FORMAT = "lgd_timm vision_language"  # with a number: format of config.json, of ours
PUBLISHED_FILES = (*TIMM_FILES, *VL_FILES)

MANIFEST = Path(__file__).resolve().with_name("manifest.json")


@dataclass(frozen=True)
class Weight:
    """One row of the manifest.

    Attributes:
        name: `ARCHITECTURE.TAG`, as `timm.create_model` takes it; `fastvlm_...` is a vision-language model, which timm
            does not know.
        repo_id: `org/name`.
        commit: 40 hexadecimal digits; None while the weight is not on the Hub.
        files: path in the repository -> size and sha256.
        metrics: the summary of its metrics.json, such as `zero_shot_top1` in percent.
        cfg: for timm's pretrained_cfg: num_classes, input_size, mean, std, interpolation, crop_pct; empty for others.
    """

    name: str
    repo_id: str
    commit: str | None
    files: dict[str, FileFacts]
    metrics: dict[str, Any]
    cfg: dict[str, Any]


def manifest() -> dict[str, Weight]:
    """Read the weights that this package knows to be published, by name.

    Raises:
        WeightsError: if manifest.json can't be read.
    """
    try:
        rows = read_json(MANIFEST, dict)
        return {name: _weight(name, **row) for name, row in rows.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        reason = f"{type(error).__name__}: {error}"
        raise WeightsError(f"{MANIFEST} can't be read as a manifest ({reason}). Reinstall lgd_timm.") from error


def _weight(name: str, *, repo_id: str, commit: str | None, files: Any, metrics: Any, cfg: Any) -> Weight:
    if commit is not None and not re.fullmatch("[0-9a-f]{40}", commit):
        raise ValueError(f"{name}: commit {commit!r} is neither null nor 40 hexadecimal digits")
    facts = {file: checked_facts(fact["size"], sha256=fact["sha256"]) for file, fact in files.items()}
    return Weight(name, repo_id, commit, facts, metrics, cfg)


def get_weight(name: str) -> Weight:
    """Return the weight of a name.

    Raises:
        WeightsError: for a name that the manifest does not have; the message has the nearest that it has.
    """
    weights = manifest()
    if name in weights:
        return weights[name]
    close = difflib.get_close_matches(name, weights)
    raise WeightsError(
        f"{name!r} is not a weight that this version of lgd_timm knows. "
        f"{'Did you mean ' + ' or '.join(close) + '? ' if close else ''}"
        f"It knows: {', '.join(sorted(weights)) or 'none yet'}. Folders of others are named org/name."
    )


def local_folder(name: str) -> Path | None:
    """Return `settings.hub_folder()/name`, verified, or None if there is no such folder.

    The files of open_clip, which can be large and which no timm model needs, are not verified.

    Raises:
        WeightsError: for a name that the manifest does not have, and for a folder that differs from what was published.
    """
    weight, folder = get_weight(name), settings.hub_folder() / name
    if not folder.is_dir():
        return None
    verify(folder, {file: facts for file, facts in weight.files.items() if file not in OPEN_CLIP_FILES})
    return folder


def pinned_commit(weight: Weight) -> str:
    """Return the commit of a weight on the Hub.

    Raises:
        WeightsError: while the weight is not on the Hub.
    """
    if weight.commit:
        return weight.commit
    folder = settings.hub_folder() / weight.name
    raise WeightsError(
        f"{weight.name} is not on the Hub yet; locally {folder} {'exists' if folder.is_dir() else 'does not exist'}. "
        "Set LGD_TIMM_HUB to a folder that holds it, such as the hub/ of a checkout of lgd_timm, "
        "or make it with its recipe (`lgd-timm distill`)."
    )
