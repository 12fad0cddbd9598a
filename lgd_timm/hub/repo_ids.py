"""Find the names of repositories on the Hub in what timm and open_clip call their models."""

from __future__ import annotations

from collections.abc import Sequence

import timm
from huggingface_hub.utils import HFValidationError, validate_repo_id


def timm_repository(model: str) -> str | None:
    """Return the repository of a timm model's weights, or None: `resnet18` -> `timm/resnet18.a1_in1k`."""
    if model.startswith("hf-hub:"):
        return repo_id_of(model.removeprefix("hf-hub:"))
    cfg = timm.get_pretrained_cfg(model) if timm.is_model(model) else None
    if cfg is None or not cfg.hf_hub_id:
        return None
    architecture = model.partition(".")[0]
    return repo_id_of(f"timm/{architecture}.{cfg.tag}" if cfg.hf_hub_id == "timm/" else cfg.hf_hub_id)


def repo_id_of(text: str) -> str | None:
    """Return the `org/name` at the start of a text, or None.

    Args:
        text: as timm and open_clip write it: a file (`org/name/file`) or a revision (`org/name@revision`) may follow.
    """
    parts: Sequence[str] = text.partition("@")[0].split("/")
    repo_id = "/".join(parts[:2])
    return repo_id if len(parts) >= 2 and is_repo_id(repo_id) else None


def is_repo_id(text: str) -> bool:
    """Return whether the Hub allows this name of a repository."""
    try:
        validate_repo_id(text)
    except HFValidationError:
        return False
    return True
