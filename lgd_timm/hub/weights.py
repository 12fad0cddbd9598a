"""The weights that this package knows to be published: `manifest.json`, one row a weight; and where they lie without the Hub."""

from __future__ import annotations

import difflib
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .. import settings
from ..errors import WeightsError
from .verify import FileFacts, verify

# The files of a published folder, as on the Hub.
REQUIRED_FILES = ("config.json", "model.safetensors", "README.md")
OPEN_CLIP_FILES = ("open_clip_config.json", "open_clip_model.safetensors")
PUBLISHED_FILES = (*REQUIRED_FILES, "lgd.safetensors", "recipe.yaml", "metrics.json", "training.png", *OPEN_CLIP_FILES)

MANIFEST = Path(__file__).resolve().with_name("manifest.json")


@dataclass(frozen=True)
class Weight:
    """One row of the manifest. `commit` is None as long as the weight is not on the Hub."""

    name: str
    repo_id: str
    commit: str | None
    files: dict[str, FileFacts]
    metrics: dict[str, Any]
    cfg: dict[str, Any]  # facts for timm's pretrained_cfg: num_classes, input_size, mean, std, interpolation, crop_pct


def manifest() -> dict[str, Weight]:
    """The weights that this package knows to be published, by name. WeightsError when the file is damaged."""
    try:
        rows = json.loads(MANIFEST.read_text(encoding="utf-8"))
        return {name: _weight(name, **row) for name, row in rows.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        reason = f"{type(error).__name__}: {error}"
        raise WeightsError(f"{MANIFEST} can't be read as a manifest ({reason}). Reinstall lgd_timm.") from error


def _weight(name: str, *, repo_id: str, commit: str | None, files: Any, metrics: Any, cfg: Any) -> Weight:
    if commit is not None and not re.fullmatch("[0-9a-f]{40}", commit):
        raise ValueError(f"{name}: commit {commit!r} is neither null nor 40 hexadecimal digits")
    facts = {file: FileFacts(size=fact["size"], sha256=fact["sha256"]) for file, fact in files.items()}
    return Weight(name, repo_id, commit, facts, metrics, cfg)


def get_weight(name: str) -> Weight:
    """The weight of that name. WeightsError for one that the manifest does not have, with the nearest that it has."""
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
    """`settings.hub_folder()/name`, verified, if there is such a folder.

    The files of open_clip, which no timm model needs and which can be large, are not looked at. WeightsError for a name that the
    manifest does not have, and for a folder that is not what was published.
    """
    weight, folder = get_weight(name), settings.hub_folder() / name
    if not folder.is_dir():
        return None
    verify(folder, {file: facts for file, facts in weight.files.items() if file not in OPEN_CLIP_FILES})
    return folder


def pinned_commit(weight: Weight) -> str:
    """Where the weight is on the Hub. WeightsError while it is not there."""
    if weight.commit:
        return weight.commit
    folder = settings.hub_folder() / weight.name
    raise WeightsError(
        f"{weight.name} is not on the Hub yet; locally {folder} {'exists' if folder.is_dir() else 'does not exist'}. "
        "Set LGD_TIMM_HUB to a folder that holds it, such as the hub/ of a checkout of lgd_timm, "
        "or make it with its recipe (`lgd-timm distill`)."
    )
