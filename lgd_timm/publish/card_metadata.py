"""Make the card's front matter, which the Hub reads to list, filter and compare models. Its scores were measured."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from typing import Any

from ..config.recipe import Recipe
from ..hub.repo_ids import repo_id_of, timm_repository
from .metrics import EVALUATIONS, SCORES


def front_matter(*, name: str, recipe: Recipe, metrics: Mapping[str, Any], open_clip: bool) -> dict[str, Any]:
    """Return a card's front matter as plain data.

    Args:
        name: the weight's name.
        recipe: what made it.
        metrics: the content of `metrics.json`.
        open_clip: whether the folder has the two files that open_clip loads.
    """
    task = "image-classification" if recipe.student.projector == "linear" else "image-feature-extraction"
    tags = ["timm", "transformers", "lgd_timm", task, "knowledge-distillation", "zero-shot"]
    front: dict[str, Any] = {
        "license": "apache-2.0",
        "library_name": "timm",
        "pipeline_tag": task,
        "tags": [*tags, "open_clip"] if open_clip else tags,
    }
    if dataset := dataset_id(recipe.data.shards):
        front["datasets"] = [dataset]
    if models := base_models(recipe, metrics):
        front["base_model"] = models
    if results := _results(recipe, metrics):
        front["model-index"] = [{"name": name, "results": results}]
    return front


def _results(recipe: Recipe, metrics: Mapping[str, Any]) -> list[dict[str, Any]]:
    dataset: dict[str, Any] = {
        "name": recipe.data.shards,
        "type": dataset_id(recipe.data.shards) or "images",
        "split": recipe.data.val_split,
    }
    results = []
    for evaluation in EVALUATIONS:
        scores = metrics.get(evaluation.key) or {}
        values = [
            {"type": "accuracy", "value": round(scores[key], 2), "name": f"{evaluation.title} {label}"}
            for key, label in SCORES.items()
            if key in scores
        ]
        if values:
            results.append(
                {"task": {"type": evaluation.task, "name": evaluation.title}, "dataset": dataset, "metrics": values}
            )
    return results


def dataset_id(shards: str) -> str | None:
    """Return a data set's id on the Hub from its shards' address: hf://datasets/org/name/folder -> org/name.

    None for others: a folder may be called as a data set is, and hold anything.
    """
    address = shards.partition("hf://datasets/")
    return None if address[0] or not address[1] else repo_id_of(address[2])


def teacher_spec(recipe: Recipe, metrics: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the teacher as plain data with `kind`; with stored embeddings, the one that made them."""
    spec = recipe.to_dict()["teacher"]
    return metrics.get("teacher", {}).get("teacher") or spec.get("taught_by") or spec


def base_models(recipe: Recipe, metrics: Mapping[str, Any]) -> list[str]:
    """List repositories on the Hub that this student came from: its teacher's, and its own first weights'."""
    models = [
        _teacher_id(teacher_spec(recipe, metrics)),
        timm_repository(recipe.student.model) if recipe.student.pretrained else None,
    ]
    return [model for model in models if model]


def _teacher_id(spec: Mapping[str, Any]) -> str | None:
    """The repository of an open_clip teacher, or of a ConSE teacher's classifier."""
    model = spec.get("model") or spec.get("classifier") or ""
    if model.startswith("hf-hub:"):
        return repo_id_of(model.removeprefix("hf-hub:"))
    if spec.get("kind") != "open_clip" or not spec.get("pretrained") or importlib.util.find_spec("open_clip") is None:
        return None
    import open_clip

    return repo_id_of((open_clip.get_pretrained_cfg(model, spec["pretrained"]) or {}).get("hf_hub") or "")
