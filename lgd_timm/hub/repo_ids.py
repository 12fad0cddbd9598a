"""Names of repositories on the Hub."""

from __future__ import annotations

from collections.abc import Sequence

import timm
from huggingface_hub.utils import HFValidationError, validate_repo_id


def timm_repository(model: str) -> str | None:
    """The repository of a timm model's own weights: resnet18 -> timm/resnet18.a1_in1k."""
    if model.startswith("hf-hub:"):
        return _repository(model.removeprefix("hf-hub:"))
    cfg = timm.get_pretrained_cfg(model) if timm.is_model(model) else None
    if cfg is None or not cfg.hf_hub_id:
        return None
    architecture = model.partition(".")[0]
    return _repository(f"timm/{architecture}.{cfg.tag}" if cfg.hf_hub_id == "timm/" else cfg.hf_hub_id)


def _repository(text: str) -> str | None:
    """`org/name` at the start of what open_clip and timm write: a file or @revision may follow. None where there is none."""
    parts: Sequence[str] = text.partition("@")[0].split("/")
    repo_id = "/".join(parts[:2])
    return repo_id if len(parts) >= 2 and _is_repo_id(repo_id) else None


def _is_repo_id(text: str) -> bool:
    try:
        validate_repo_id(text)
    except HFValidationError:
        return False
    return True
