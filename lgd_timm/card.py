"""The model card: front matter that the Hub reads, and a page that people read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import yaml

from .recipe import Recipe
from .students import stock_name

PAGE = """\
---
{front}---

# {name}

{student} ({architecture}), distilled without labels by Language-Guided Distillation ([arXiv 2406.11689](https://arxiv.org/abs/2406.11689),
an independent implementation: `lgd_timm`). It knows {count} category names and was taught by {teacher}.

## How good it is

{table}

Top-1 over {samples} images of `{data}`, split `{split}`. Zero-shot: no label was used, neither to train nor to choose.
{scored}{notes}

## How to load it

```python
import timm

# a classifier over the names below, and a backbone; neither needs lgd_timm
classifier = timm.create_model("hf-hub:{repo}", pretrained=True)
backbone = timm.create_model("hf-hub:{repo}", pretrained=True, num_classes=0)

import lgd_timm  # the same by name, from a local folder or the Hub, verified by sha256

classifier = timm.create_model("{name}", pretrained=True)
```

{head}

Input: {size} x {size} pixels, mean {mean}, std {std}: `timm.data.resolve_model_data_config(model)` has them all.

## Names

{names}

## How it was made

{training}`recipe.yaml` beside this page is complete.
To repeat it: `lgd-timm distill recipe.yaml`; for other names: add `--vocabulary names.txt`.

## Limits

It was trained on `{data}` only and answers with one of its names whatever it is shown. It inherits what its teacher gets wrong: errors and
biases of the teacher's training data included. It is a small model at {size} px; expect little of it on other images without fine-tuning.

## Licence

The weights are released under Apache-2.0. That says nothing of the images and the teacher, which have their own terms.
"""


def model_card(*, name: str, recipe: Recipe, metrics: Mapping[str, Any], names: Sequence[str]) -> str:
    """README.md of a published folder. `metrics` is `metrics.json`."""
    facts = metrics.get("input", {})
    student, teacher = metrics.get("zero_shot", {}), metrics.get("teacher_zero_shot", {})
    linear = recipe.student.projector == "linear"
    return PAGE.format(
        front=yaml.safe_dump(_front_matter(name, recipe, student), sort_keys=False, allow_unicode=True),
        name=name,
        student=recipe.student.model,
        architecture=stock_name(recipe.student.model),
        count=len(names),
        teacher=metrics.get("teacher", {}).get("name", "a teacher"),
        table=_table(student, teacher),
        samples=student.get("samples", "no"),
        data=recipe.data.shards,
        split=recipe.data.val_split,
        scored=_scored(student.get("names", ()), count=len(names)),
        notes=metrics.get("notes", ""),
        training=_training(metrics.get("training", {})),
        repo=f"lgd-timm/{name}",
        head=(
            "Its classifier is the projector and the text bank folded into one linear layer: it classifies zero-shot."
            if linear
            else "Its projector is an MLP, which no stock classifier can hold: it stays in `lgd.safetensors`."
        ),
        size=facts.get("size", "?"),
        mean=facts.get("mean", "?"),
        std=facts.get("std", "?"),
        names=_listed(names),
    )


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names[:200]) + (f", ... ({len(names)} in all)" if len(names) > 200 else "")


def _scored(names: Sequence[str], *, count: int) -> str:
    """One sentence on the names that were scored, where they are not the model's own."""
    if not names:
        return ""
    return (
        f"Student and teacher were asked about the {len(names)} names of that split, which are not the {count} that the student was "
        f"distilled for: the scores are those of its embeddings, not of the classifier below. They are: {_listed(names)}.\n"
    )


def _training(facts: Mapping[str, Any]) -> str:
    """One sentence on what the run was, or nothing where it is not known."""
    if not facts:
        return ""
    what = f"{facts['images']:,} images, {facts['epochs']} epochs, {facts['steps']:,} steps"
    return f"{what} on {facts['device']} (torch {facts['torch']}, timm {facts['timm']}), {facts['date']}.\n"


def _table(student: Mapping[str, Any], teacher: Mapping[str, Any]) -> str:
    rows = ["| | zero-shot top-1 | top-5 |", "|---|---|---|"]
    for label, scores in (("this student", student), ("its teacher", teacher)):
        rows.append(f"| {label} | {scores['top1']:.2f} % | {scores['top5']:.2f} % |" if scores else f"| {label} | not measured | |")
    if student:
        rows.append(f"| chance | {student['chance']:.2f} % | |")
    return "\n".join(rows)


def _front_matter(name: str, recipe: Recipe, student: Mapping[str, Any]) -> dict[str, Any]:
    front: dict[str, Any] = {
        "license": "apache-2.0",
        "library_name": "timm",
        "pipeline_tag": "image-classification",
        "tags": ["timm", "lgd_timm", "image-classification", "knowledge-distillation", "zero-shot"],
    }
    if student:
        result = {
            "task": {"type": "image-classification", "name": "Zero-shot image classification"},
            "dataset": {
                "name": recipe.data.shards,
                "type": recipe.data.shards.rpartition("/")[2],
                "split": recipe.data.val_split,
            },
            "metrics": [{"type": "accuracy", "value": round(student["top1"], 2), "name": "top-1"}],
        }
        front["model-index"] = [{"name": name, "results": [result]}]
    return front
