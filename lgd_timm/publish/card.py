"""The model card: front matter that the Hub reads, and a page that people read.

model_card(...)              the text, from what is known of a model
card_of(folder)              the same for a published folder, from its own files
rewrite_card(folder)         a folder's README.md anew, such as after an update of this package
retarget(text, repo_id)      the same card for another repository
"""

from __future__ import annotations

import json
import re
import textwrap
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import yaml
from safetensors import safe_open

from ..config.reader import read_recipe
from ..config.recipe import Recipe
from ..data.vocabulary import Vocabulary
from ..objectives.registry import objective_class
from ..students.entrypoints import short_name
from ..teachers import Stored
from ..utils.files import atomic_file
from .card_metadata import front_matter, teacher_spec
from .card_snippets import ORGANISATION, repository_of, retarget, section
from .lgd_safetensors import read_lgd
from .metrics import EVALUATIONS, SCORES, read_metrics

__all__ = ["Network", "card_of", "model_card", "retarget", "rewrite_card", "weight_name"]

PAGE = """\
---
{front}---

# {title}

{what}

## How good it is

{numbers}

## How to load it

{head}

Input: {size} x {size} pixels, mean {mean}, std {std}. `timm.data.resolve_model_data_config(model)` has them all.

{load}
{curve}
## Names

It was distilled for these {count}:

{names}

## How it was made

{made}

`recipe.yaml` beside this page is complete: names, data, views, objective, optimizer. To repeat it, and to make one for other names:

{repeat}

The recipe looks for its images at {shards}; say where yours are with `--data.shards PATH`.

## Limits

{limits}

## Licence

* The weights: Apache-2.0.
* The code that made them, `lgd_timm`: Apache-2.0.
* The images ({shards}) and the teacher ({teacher}): their own terms, whatever is said above. Read them before you use this.{text_tower}
"""


@dataclass(frozen=True)
class Network:
    """Facts of the stock model: its architecture, how many parameters it has, its classifier included, and features before it."""

    architecture: str
    parameters: int
    features: int


def weight_name(recipe: Recipe) -> str:
    """`<model>.<recipe>`, the name of what a recipe makes."""
    return f"{short_name(recipe.student.model)}.{recipe.name}"


def rewrite_card(folder: str | Path, *, name: str | None = None, repo_id: str | None = None) -> Path:
    """Write a published folder's README.md anew, from its recipe, metrics and weights. Returns the file.

    By default for the repository that the old card names. Raises: LGDError when the folder can't be read.
    """
    path = Path(folder) / "README.md"
    text = card_of(
        folder,
        name=name,
        repo_id=repo_id or (repository_of(path.read_text(encoding="utf-8")) if path.is_file() else None),
    )
    with atomic_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
    return path


def card_of(folder: str | Path, *, name: str | None = None, repo_id: str | None = None) -> str:
    """The card of a published folder, from the other files in it. Raises: LGDError when they can't be read."""
    folder = Path(folder)
    recipe, lgd = read_recipe(folder / "recipe.yaml"), read_lgd(folder / "lgd.safetensors")
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    with safe_open(folder / "model.safetensors", framework="pt") as file:
        statistics = ("running_mean", "running_var", "num_batches_tracked")
        learned = [key for key in file.keys() if not key.endswith(statistics)]  # noqa: SIM118, as it is no dictionary
        parameters = sum(prod(file.get_slice(key).get_shape()) for key in learned)
    return model_card(
        name=name or weight_name(recipe),
        recipe=recipe,
        metrics=read_metrics(folder),
        vocabulary=Vocabulary(lgd.banks.names, lgd.banks.templates),
        network=Network(str(config["architecture"]), parameters, features=lgd.features),
        files={path.name for path in folder.iterdir()},
        repo_id=repo_id,
    )


def model_card(
    *,
    name: str,
    recipe: Recipe,
    metrics: Mapping[str, Any],
    vocabulary: Vocabulary,
    network: Network,
    files: Collection[str] = (),
    repo_id: str | None = None,
) -> str:
    """README.md of a published folder. `metrics` is `metrics.json`; `files`: names of those beside it, as the card shows what is there.

    `repo_id` is the repository that the page speaks of, by default one of our own.
    """
    linear, facts, open_clip = (
        recipe.student.projector == "linear",
        metrics.get("input", {}),
        "open_clip_model.safetensors" in files,
    )
    size = facts.get("size") or recipe.student.image_size or 224
    repo_id = repo_id or f"{ORGANISATION}/{re.sub(r'[^A-Za-z0-9_.-]+', '-', name)}"
    texts = [vocabulary.prompts(word)[0] for word in vocabulary.names[:3]]
    spec = teacher_spec(recipe, metrics)
    teacher = metrics.get("teacher", {}).get("name") or spec.get("model") or spec["kind"]
    return PAGE.format(
        front=yaml.safe_dump(
            front_matter(name=name, recipe=recipe, metrics=metrics, open_clip=open_clip),
            sort_keys=False,
            allow_unicode=True,
            width=1000,
        ),
        title=_plain(name),
        what=_what(recipe, network, teacher=teacher, count=len(vocabulary), size=size),
        numbers=_numbers(recipe, metrics, count=len(vocabulary)),
        head=_HEAD[recipe.student.projector],
        size=size,
        mean=facts.get("mean", "as timm has it"),
        std=facts.get("std", "as timm has it"),
        load=section("load", repo_id, {"classes": linear, "open_clip": open_clip, "size": size, "texts": texts}),
        curve="\n## Training\n\n![Losses and zero-shot accuracy while it learned](training.png)\n"
        if "training.png" in files
        else "",
        count=len(vocabulary),
        names=_listed(vocabulary.names),
        made=_made(recipe, metrics),
        repeat=section("repeat", repo_id, {"teacher": spec["kind"], "stored": isinstance(recipe.teacher, Stored)}),
        shards=_code(recipe.data.shards),
        limits=_limits(recipe, metrics, size=size),
        teacher=_code(teacher),
        text_tower="\n* `open_clip_model.safetensors` holds the teacher's text tower, which is under the teacher's terms."
        if open_clip
        else "",
    )


# ------------------------------------------------------------------------------------------------------------ sections

_HEAD = {
    "linear": "Its classifier is the projector and the text bank folded into one linear layer: it classifies zero-shot.",
    **dict.fromkeys(
        ("mlp", "deep"),
        "Its projector is an MLP, which no stock classifier can hold: it stays in `lgd.safetensors`. The stock file is the backbone.",
    ),
}


def _what(recipe: Recipe, network: Network, *, teacher: str, count: int, size: int) -> str:
    model, architecture = recipe.student.model, network.architecture
    stock = f"a stock {_code(architecture)} of {network.parameters / 1e6:.1f} million parameters"
    ours = f"{_code(model)}, {stock}" if model != architecture else stock
    use = (
        f"a zero-shot classifier over these names at {size} x {size} pixels, and without its classifier "
        if _linear(recipe)
        else ""
    )
    objective = objective_class(recipe.objective)
    learned = (
        f"trained with labels in the space of the teacher {_code(teacher)}, beside"
        if objective.needs_labels
        else (f"distilled without labels from the teacher {_code(teacher)} and")
    )
    return (
        f"This is {ours}, {learned} the names of {count} categories. "
        f"It is {use}a backbone of {network.features:,} features for your own task. "
        f"The method is {objective.method}, in the independent implementation `lgd_timm`."
    )


def _linear(recipe: Recipe) -> bool:
    return recipe.student.projector == "linear"


def _numbers(recipe: Recipe, metrics: Mapping[str, Any], *, count: int) -> str:
    """Every measured score, the teacher's beside it, chance last; then on what, and which names were asked."""
    rows = []
    for evaluation in EVALUATIONS:
        student, teacher = metrics.get(evaluation.key) or {}, metrics.get(f"teacher_{evaluation.key}") or {}
        chance = student.get("chance", (metrics.get("zero_shot") or {}).get("chance"))
        for key, label in SCORES.items():
            if key in student:
                guess = None if chance is None else min(100.0, chance * int(key.removeprefix("top")))
                cells = [_percent(student[key]), _percent(teacher.get(key)), _percent(guess)]
                rows.append(f"| {evaluation.title} {label} | {' | '.join(cells)} |")
    if not rows:
        return "That was not measured."
    table = "\n".join(["| accuracy | this student | its teacher | chance |", "|---|---|---|---|", *rows])
    zero_shot, where = (
        metrics.get("zero_shot") or {},
        f"{_code(recipe.data.shards)}, split {_code(recipe.data.val_split or '?')}",
    )
    samples = (
        f"Measured on {zero_shot['samples']:,} images of {where}" if "samples" in zero_shot else f"Measured on {where}"
    )
    bad = f"; {zero_shot['bad']:,} more could not be read" if zero_shot.get("bad") else ""
    unlabelled = zero_shot and not objective_class(recipe.objective).needs_labels
    note = " Zero-shot: no label was used, neither to train nor to choose." if unlabelled else ""
    other = _scored(zero_shot.get("names", ()), count=count) if zero_shot else ""
    return f"{table}\n\n{samples}{bad}.{note}{other}{_protocols(metrics)}{_doubts(metrics)}" + (
        f"\n\n{metrics['notes']}" if metrics.get("notes") else ""
    )


def _protocols(metrics: Mapping[str, Any]) -> str:
    """What k-NN and linear probes used, where that is known."""
    said, knn = [], metrics.get("knn") or {}
    if {"k", "train"} <= knn.keys():
        said.append(f"k-NN: k = {knn['k']}, weighted, with {knn['train']:,} labelled training images as the memory.")
    for evaluation in EVALUATIONS:
        scores = metrics.get(evaluation.key) or {}
        if {"protocol", "train"} <= scores.keys():
            subset = f" ({scores['subset']})" if scores.get("subset") else ""
            chosen = (
                ""
                if scores.get("strength") is None
                else f", L2 strength {scores['strength']:g} chosen on a held-out part of them"
            )
            title = evaluation.title[0].upper() + evaluation.title[1:]
            said.append(
                f"{title}: {scores['protocol']} on frozen features of {scores['train']:,} labelled training images{subset}{chosen}."
            )
    return "\n\n" + " ".join(said) if said else ""


def _doubts(metrics: Mapping[str, Any]) -> str:
    """How far its confidences can be believed, and how alike student and teacher are, where that was measured."""
    lines = []
    for key, who in (("calibration", "this student"), ("teacher_calibration", "its teacher")):
        if scores := metrics.get(key):
            fitted = ""
            if scores.get("fitted_ece") is not None:
                how = f"divided by {scores['fitted_temperature']:.3g}, as fits {scores['fitted_on']:,} labelled training images"
                fitted = f", {scores['fitted_ece']:.2f} % with the logits {how}"
            lines.append(
                f"Zero-shot calibration of {who} ({scores['classifier']}): expected calibration error {scores['ece']:.2f} %{fitted}; "
                f"mean confidence {scores['confidence']:.2f} %."
            )
    if scores := metrics.get("agreement"):
        shares = [f"Student and teacher give the same answer on {scores['top1']:.2f} % of the images"]
        for key, verdict in (("top1_teacher_right", "right"), ("top1_teacher_wrong", "wrong")):
            if scores.get(key) is not None:
                shares.append(f"{scores[key]:.2f} % where the teacher is {verdict}")
        alike = (
            f"mean KL(teacher, student) {scores['kl']:.3f} nats, mean cosine of their embeddings {scores['cosine']:.3f}"
        )
        lines.append(f"{', '.join(shares)}; {alike}.")
    return "".join(f"\n\n{line}" for line in lines)


def _percent(value: float | None) -> str:
    return "not measured" if value is None else f"{value:.2f} %"


def _scored(names: Sequence[str], *, count: int) -> str:
    """On the names that were scored, where they are not the model's own."""
    if not names:
        return ""
    return (
        f"\n\nStudent and teacher were asked about the {len(names)} names of that split, which are not the {count} that the student was "
        f"distilled for: the scores are those of its embeddings, not of its classifier. They are:\n\n{_listed(names)}"
    )


def _made(recipe: Recipe, metrics: Mapping[str, Any]) -> str:
    """What is known of the run, a line each."""
    facts, teacher = metrics.get("training", {}), metrics.get("teacher", {})
    lines = []
    if facts:
        took = f" in {_duration(facts['seconds'])}, evaluation left out," if facts.get("seconds") else ""
        lines.append(
            f"{facts['images']:,} images of {_code(recipe.data.shards)}, split {_code(recipe.data.train_split)}, {facts['epochs']} epochs, "
            f"{facts['steps']:,} steps of {recipe.data.batch_size} images{took} on {facts['device']}, {facts['date']}; one run, seed "
            f"{recipe.machine.seed}"
        )
        versions = [f"{library} {facts[library]}" for library in ("lgd_timm", "torch", "timm") if library in facts]
        lines.append(f"Versions: {', '.join(versions)}")
    prints = {
        "images": metrics.get("shards"),
        "teacher": teacher.get("fingerprint"),
        "its text tower": teacher.get("text_fingerprint"),
        "views": teacher.get("views_fingerprint"),
    }
    if known := [f"{what} `{value}`" for what, value in prints.items() if value]:
        lines.append(f"Fingerprints: {', '.join(known)}")
    return "\n".join(f"* {line}" for line in lines) or "Nothing was noted of the run."


def _duration(seconds: float) -> str:
    """A time as people say it; under a minute there is nothing to tell."""
    if seconds < 60:
        return "less than a minute"
    minutes = seconds / 60
    return f"{minutes:.0f} minutes" if minutes < 120 else f"{minutes / 60:.1f} hours"


def _limits(recipe: Recipe, metrics: Mapping[str, Any], *, size: int) -> str:
    student = metrics.get("zero_shot") or {}
    shares = sorted((student.get("per_class") or {}).items(), key=lambda item: item[1])
    worst = ""
    if len(shares) > 5:
        worst = f" Of the names that were scored it knows least: {', '.join(f'{_code(name)} ({share:.1f} %)' for name, share in shares[:3])}."
    answer = " and answers with one of its names whatever it is shown" if _linear(recipe) else ""
    return (
        f"It was trained on {_code(recipe.data.shards)} only{answer}. It inherits what its teacher gets wrong, errors and biases of the "
        f"teacher's training data included.{worst} It is a small model at {size} px: on other images expect little without fine-tuning."
    )


# -------------------------------------------------------------------------------------------------------------- markup


def _listed(names: Sequence[str]) -> str:
    """Names as they are, in a block where nothing is markup; at most 200."""
    text = ", ".join(names[:200]) + (f", ... ({len(names)} in all)" if len(names) > 200 else "")
    fence = _fence(text, least=3)
    lines = textwrap.wrap(text, 120, break_long_words=False, break_on_hyphens=False)
    return "\n".join([f"{fence}text", *lines, fence])


def _code(text: str) -> str:
    """A word of somebody else's as inline code, in which nothing is markup."""
    fence = _fence(text, least=1)
    space = " " if text.startswith("`") or text.endswith("`") else ""
    return f"{fence}{space}{text}{space}{fence}"


def _fence(text: str, *, least: int) -> str:
    """More backticks than stand together in the text."""
    return "`" * max(least, 1 + max((len(run) for run in re.findall("`+", text)), default=0))


def _plain(text: str) -> str:
    """Text outside of code, its markup escaped; underscores within words are none."""
    return re.sub(r"([\\`*<>\[\]|#])", r"\\\1", text)
