"""Compare a run with the published folder that its recipe came from."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..errors import RecipeError, WeightsError
from ..publish.metrics import read_metrics

log = logging.getLogger(__name__)

# What decides the weights besides the recipe: words for people, and where metrics.json has it.
_ORIGINS = {
    "images": ("shards",),
    "teacher": ("teacher", "fingerprint"),
    "text tower": ("teacher", "text_fingerprint"),
    "type of the stored embeddings": ("teacher", "dtype"),
}
# Parts of a recipe that change what is learned. Paths and names of folders do not.
_PARTS = ("vocabulary", "views", "student", "objective", "optimizer", "schedule")


def compare(
    folder: Path, *, metrics: Mapping[str, Any], recipe: Mapping[str, Any], published: Mapping[str, Any]
) -> None:
    """Log one line: the run repeats the folder that its recipe came from, or what differs.

    Raises: RecipeError when the folder's metrics.json can't be read.
    """
    theirs = _read(folder)
    others = [
        what
        for what, keys in _ORIGINS.items()
        if (there := _get(theirs, keys)) is not None and there != _get(metrics, keys)
    ]
    known = all(_get(theirs, keys) is not None for keys in (_ORIGINS["images"], _ORIGINS["teacher"]))
    # a part that was left open (null) there is spelled out here
    changed = [part for part in _PARTS if published[part] is not None and published[part] != recipe[part]]
    note = f", with another {', '.join(changed)}" if changed else ""
    if others:
        log.warning("does not repeat %s: other %s%s", folder, ", other ".join(others), note)
    elif not known:
        log.warning(
            "may not repeat %s: its metrics.json does not say which images and which teacher it saw%s", folder, note
        )
    else:
        log.info("repeats %s: the same images and the same teacher%s", folder, note)


def _read(folder: Path) -> dict[str, Any]:
    try:
        return read_metrics(folder)
    except WeightsError as error:
        raise RecipeError(f"{error} Or give its recipe.yaml alone.") from error


def _get(data: Any, keys: tuple[str, ...]) -> Any:
    for key in keys:
        data = data.get(key) if isinstance(data, Mapping) else None
    return data
