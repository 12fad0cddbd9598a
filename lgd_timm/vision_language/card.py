"""The model card of a vision-language folder: what it is, how good it is beside others, how it is loaded."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from ..config.builtin import builtin_recipes
from ..publish.card_snippets import ORGANISATION, section
from .data.mosaics import Mosaics
from .data.sources import Source
from .folder import VLModel
from .recipe import Answers, Captions
from .stock import CausalModel

TITLES = {
    "cider": "CIDEr-D",
    "bleu4": "BLEU-4",
    "rouge_l": "ROUGE-L",
    "meteor": "METEOR",
    "exact": "word by word",
    "tiles": "tiles named rightly",
    "accuracy": "accuracy",
    "word_accuracy": "masked words",
}  # scores as people read them
DATA = {
    "mosaics": "generated scenes: photographs of labelled shards in a 2 x 2 grid, with sentences by templates",
    "easy_vqa": "easy-VQA, rendered pictures of one shape with generated questions",
    "coco_captions": "COCO's captions",
    "vqa_v2": "VQA v2",
    "json_lines": "the publisher's own images",
    "shards": "the publisher's own shards",
}  # what `data.train` is, by kind


def vl_card(model: VLModel, *, name: str, metrics: Mapping[str, Any]) -> str:
    """Write the README.md of a published folder.

    Args:
        model: what is published.
        name: of the folder.
        metrics: the content of its `metrics.json`.
    """
    task = model.encoder.task
    parts = [
        f"---\n{yaml.safe_dump(_front(model), sort_keys=False, width=120)}---",
        f"# {name}",
        _what(model, metrics),
        "## How good it is",
        _scores(model, metrics),
        "## How to load it",
        section("vl", f"{ORGANISATION}/{name}", {"stock": isinstance(model.model, CausalModel), "task": task.kind}),
        "## How it was made",
        _made(model, metrics),
        "## Limits",
        f"It learned from {_data(model.recipe.data.train)}. Whatever it is shown, it answers in the words of that "
        "data. It inherits errors and biases of its backbone and of its teacher.",
        "## Licence",
        "* The weights: Apache-2.0.\n* The code that made them, `lgd_timm`: Apache-2.0.\n* The images and texts: their "
        "own terms. Read them before you use this.",
    ]
    return "\n\n".join(parts) + "\n"


def _data(source: Source) -> str:
    """What the data is, with the folder of its shards."""
    shards = f" (`{source.shards}`)" if isinstance(source, Mosaics) else ""
    return DATA[source.kind] + shards


def _front(model: VLModel) -> dict[str, Any]:
    stock = isinstance(model.model, CausalModel)
    tag = "visual-question-answering" if isinstance(model.encoder.task, Answers) else "image-to-text"
    return {
        "license": "apache-2.0",
        "library_name": "transformers" if stock else "lgd_timm",
        "pipeline_tag": tag,
        "tags": ["lgd_timm", "timm", *(["transformers", "fast_vlm"] if stock else []), "knowledge-distillation"],
    }


def _what(model: VLModel, metrics: Mapping[str, Any]) -> str:
    recipe, kind = model.recipe, "a stock `FastVlmForConditionalGeneration` of transformers"
    if not isinstance(model.model, CausalModel):
        kind = "a BERT over words and regions of an image, of `lgd_timm`"
    does = {"captions": "describes images", "answers": "answers questions about images"}.get(
        model.encoder.task.kind, "predicts masked words of texts about images"
    )
    learned = "It was trained without a teacher."
    if recipe.distillation.teacher is not None:
        used = ", ".join(_losses(recipe.distillation))
        learned = (
            f"It was distilled ({used}) from a larger model that reads the same cells or boxes, as DistillVLM does "
            "([arXiv 2104.02096](https://arxiv.org/abs/2104.02096)), in the independent implementation `lgd_timm`."
        )
    if recipe.self_critical is not None:
        learned = (
            f"It is `{recipe.model.init}`, trained on by the CIDEr-D of captions that it drew (self-critical sequence "
            "training, [arXiv 1612.00563](https://arxiv.org/abs/1612.00563))."
        )
    sizes = recipe.model
    return (
        f"This is {kind}, which {does}: {metrics['parameters'] / 1e6:.1f} million parameters, {sizes.layers} layers of "
        f"width {sizes.width}, {len(model.encoder.tokenizer):,} tokens, with the frozen backbone "
        f"`{recipe.backbone.model}` at {recipe.backbone.image_size} x {recipe.backbone.image_size} pixels. {learned}"
    )


def _losses(distillation: Any) -> list[str]:
    titles = {
        "attention": "attention of the last block",
        "nce": "token-wise NCE on hidden states",
        "hidden_mse": "MSE of hidden states",
        "logits": "soft labels",
    }
    return [title for name, title in titles.items() if getattr(distillation, name).weight]


def _scores(model: VLModel, metrics: Mapping[str, Any]) -> str:
    if not metrics["scores"]:
        return "That was not measured."
    word = "caption" if isinstance(model.encoder.task, Captions) else "answer"
    rows = {
        "**this model**": metrics["scores"],
        "its teacher": metrics.get("teacher_scores"),
        **{_title(run, facts): facts["scores"] for run, facts in metrics.get("compared", {}).items()},
        f"the training data's most frequent {word}, whatever is shown": metrics.get("most_frequent"),
    }
    names = [name for name in metrics["scores"] if name in TITLES]
    lines = [f"| | {' | '.join(TITLES[name] for name in names)} |", "|---" * (len(names) + 1) + "|"]
    for title, scores in rows.items():
        if scores:
            cells = [f"{scores[name]:.2f}" if name in scores else "not measured" for name in names]
            lines.append(f"| {title} | {' | '.join(cells)} |")
    val = model.recipe.data.val
    where = "" if val is None else f" of {_data(val)}"
    return (
        "\n".join(lines)
        + f"\n\nMeasured on {metrics['val_samples']:,} samples{where}, which it did not learn from. In percent, "
        "CIDEr-D times 100. One run each, n = 1: no spread is known."
    )


def _title(run: str, facts: Mapping[str, Any]) -> str:
    """What a row says of another run."""
    return f"`{run}`: {'distilled' if facts['taught'] else 'without a teacher'}, {facts['epochs']} epochs"


def _made(model: VLModel, metrics: Mapping[str, Any]) -> str:
    recipe = model.recipe
    teacher = recipe.distillation.teacher
    ours = _recipe(recipe.name) or "recipe.yaml"
    commands = [f"lgd-timm vl {'pretrain' if teacher is None else 'distill'} {ours}"]
    if teacher is not None:
        commands.insert(0, f"lgd-timm vl adapt {_recipe(Path(teacher).name) or 'TEACHER_RECIPE'} --student {ours}")
    alone = f"lgd-timm vl pretrain {ours} --distillation.teacher null"
    for name, facts in metrics.get("compared", {}).items():
        if not facts["taught"]:
            commands.append(f"{alone} --schedule.epochs {facts['epochs']} --name {name}")
    return (
        f"* {metrics['samples']:,} samples of {_data(recipe.data.train)}; {recipe.schedule.epochs} epochs, "
        f"{metrics['steps']:,} steps of {recipe.data.batch_size}; seed {recipe.machine.seed}\n"
        f"* Versions: lgd_timm {metrics['lgd_timm']}, torch {metrics['torch']}\n\n"
        "`recipe.yaml` beside this page is complete. Each run prints its scores:\n\n```bash\n"
        + "\n".join(commands)
        + "\n```"
    )


def _recipe(name: str) -> str | None:
    """How a recipe of the package is named; None for others."""
    return f"builtin:vl/{name}" if f"vl/{name}" in builtin_recipes() else None
