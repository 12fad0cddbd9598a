"""Write the model card: front matter that the Hub reads, and a page that people read (`card.md.j2`).

model_card(...)              the text, from what is known of a model
card_of(folder)              the same for a published folder, from its own files
rewrite_card(folder)         a folder's README.md anew, such as after an update of this package
retarget(text, repo_id)      the same card for another repository
"""

from __future__ import annotations

import re
import textwrap
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from math import prod
from pathlib import Path
from typing import Any

import jinja2
import yaml
from safetensors import safe_open

from ..config.reader import read_recipe
from ..config.recipe import Recipe
from ..data.vocabulary import Vocabulary
from ..errors import LGDError, WeightsError
from ..hub.timm_models import check_config
from ..objectives.registry import objective_class, objective_config
from ..students.entrypoints import short_name
from ..teachers import Stored
from ..utils.files import atomic_file
from .card_metadata import front_matter, teacher_spec
from .card_snippets import ORGANISATION, repository_of, retarget, section
from .lgd_safetensors import LGDFile, read_lgd
from .metrics import EVALUATIONS, SCORES, read_metrics

__all__ = ["Network", "card_of", "model_card", "retarget", "rewrite_card", "weight_name"]


@dataclass(frozen=True)
class Network:
    """Facts of the stock model."""

    architecture: str
    parameters: int  # classifier included
    features: int  # before the classifier


def weight_name(recipe: Recipe) -> str:
    """Return `<model>.<recipe>`, the name of the weights that a recipe makes."""
    return f"{short_name(recipe.student.model)}.{recipe.name}"


def rewrite_card(folder: str | Path, *, name: str | None = None, repo_id: str | None = None) -> Path:
    """Write a published folder's README.md anew, from its recipe, metrics and weights.

    Args:
        folder: the published folder.
        name: the weight's name, by default the recipe's.
        repo_id: the repository that the page speaks of, by default the one that the old card names.

    Returns:
        The file.

    Raises:
        LGDError: the folder can't be read.
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
    """Make the card of a published folder from the other files in it.

    Args:
        folder: the published folder.
        name: the weight's name, by default the recipe's.
        repo_id: the repository that the page speaks of, by default one of our own.

    Returns:
        The text of its README.md.

    Raises:
        LGDError: the files can't be read.
    """
    folder = Path(folder)
    recipe, lgd = read_recipe(folder / "recipe.yaml"), read_lgd(folder / "lgd.safetensors")
    config = check_config(folder)
    with safe_open(folder / "model.safetensors", framework="pt") as file:
        statistics = ("running_mean", "running_var", "num_batches_tracked")
        learned = [key for key in file.keys() if not key.endswith(statistics)]  # noqa: SIM118 - not a dict
        parameters = sum(prod(file.get_slice(key).get_shape()) for key in learned)
    metrics = read_metrics(folder)
    try:
        return _card(
            folder, name=name or weight_name(recipe), recipe=recipe, metrics=metrics, lgd=lgd, config=config,
            parameters=parameters, repo_id=repo_id,
        )  # fmt: skip
    except (TypeError, ValueError, LookupError, AttributeError, ArithmeticError, jinja2.TemplateError) as error:
        if isinstance(error, LGDError):
            raise
        raise WeightsError(
            f"{folder}/metrics.json holds what no card can show ({' '.join(repr(error).split())[:200]}). "
            "Pull or save the folder again."
        ) from error


def _card(
    folder: Path,
    *,
    name: str,
    recipe: Recipe,
    metrics: Mapping[str, Any],
    lgd: LGDFile,
    config: Mapping[str, Any],
    parameters: int,
    repo_id: str | None,
) -> str:
    return model_card(
        name=name,
        recipe=recipe,
        metrics=metrics,
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
    """Write the README.md of a published folder, by the template `card.md.j2`.

    Args:
        name: the weight's name, `<entry>.<tag>`.
        recipe: what made it.
        metrics: the content of `metrics.json`.
        vocabulary: the names that it was distilled for.
        network: facts of the stock model.
        files: names of the files beside the card, which shows what is there.
        repo_id: the repository that the page speaks of, by default one of our own.

    Returns:
        The text, front matter included.
    """
    files, repo_id = tuple(files), repo_id or f"{ORGANISATION}/{re.sub(r'[^A-Za-z0-9_.-]+', '-', name)}"
    linear, open_clip = recipe.student.projector == "linear", "open_clip_model.safetensors" in files
    facts, spec = metrics.get("input", {}), teacher_spec(recipe, metrics)
    classifier = str(spec.get("classifier", ""))
    size = facts.get("size") or recipe.student.image_size or 224
    front = front_matter(name=name, recipe=recipe, metrics=metrics, open_clip=open_clip)
    texts = [vocabulary.prompts(word)[0] for word in vocabulary.names[:3]]
    load = {"classes": linear, "open_clip": open_clip, "size": size, "texts": texts}
    repeat = {"teacher": spec["kind"], "stored": isinstance(recipe.teacher, Stored)}
    return _template().render(
        **_recipe_facts(recipe),
        **_scores(metrics),
        **_run_facts(metrics),
        front=yaml.safe_dump(front, sort_keys=False, allow_unicode=True, width=1000),
        name=name,
        architecture=network.architecture,
        parameters=network.parameters,
        features=network.features,
        teacher=metrics.get("teacher", {}).get("name") or spec.get("model") or spec["kind"],
        classifier=classifier if classifier.startswith("local-dir:") else "",
        names=vocabulary.names,
        files=files,
        open_clip=open_clip,
        size=size,
        mean=facts.get("mean", "as timm has it"),
        std=facts.get("std", "as timm has it"),
        load=section("load", repo_id, load),
        repeat=section("repeat", repo_id, repeat),
    )


# ----------------------------------------------------------------------------------------------- values of the template


def _recipe_facts(recipe: Recipe) -> dict[str, Any]:
    objective = objective_class(recipe.objective)
    return {
        "model": recipe.student.model,
        "pretrained": recipe.student.pretrained,
        "linear": recipe.student.projector == "linear",
        "needs_labels": objective.needs_labels,
        "method": objective.method,
        "balance": getattr(objective_config(recipe.objective), "balance", 0),
        "shards": recipe.data.shards,
        "train_split": recipe.data.train_split,
        "val_split": recipe.data.val_split,
        "batch_size": recipe.data.batch_size,
        "seed": recipe.machine.seed,
    }


def _scores(metrics: Mapping[str, Any]) -> dict[str, Any]:
    """What was measured, of student and teacher."""
    zero_shot, knn = metrics.get("zero_shot") or {}, metrics.get("knn") or {}
    scored = [(evaluation, metrics.get(evaluation.key) or {}) for evaluation in EVALUATIONS]
    shares = sorted((zero_shot.get("per_class") or {}).items(), key=lambda item: item[1])
    calibrations = (("this student", metrics.get("calibration")), ("its teacher", metrics.get("teacher_calibration")))
    return {
        "accuracies": _accuracies(metrics),
        "zero_shot": zero_shot,
        "neighbours": knn if {"k", "train"} <= knn.keys() else None,
        "probes": [(evaluation, scores) for evaluation, scores in scored if {"protocol", "train"} <= scores.keys()],
        "calibrations": [(who, scores) for who, scores in calibrations if scores],
        "agreement": metrics.get("agreement"),
        "notes": metrics.get("notes"),
        "worst": shares[:3] if len(shares) > 5 else [],
    }


def _accuracies(metrics: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Every measured accuracy in percent, the teacher's beside it, and chance."""
    rows = []
    for evaluation in EVALUATIONS:
        student, teacher = metrics.get(evaluation.key) or {}, metrics.get(f"teacher_{evaluation.key}") or {}
        chance = student.get("chance", (metrics.get("zero_shot") or {}).get("chance"))
        for key, label in SCORES.items():
            if key in student:
                guess = None if chance is None else min(100.0, chance * int(key.removeprefix("top")))
                scores = {"student": student[key], "teacher": teacher.get(key), "chance": guess}
                rows.append({"title": f"{evaluation.title} {label}", **scores})
    return rows


def _run_facts(metrics: Mapping[str, Any]) -> dict[str, Any]:
    """What is known of the run."""
    training, teacher = metrics.get("training", {}), metrics.get("teacher", {})
    prints = {
        "images": metrics.get("shards"),
        "teacher": teacher.get("fingerprint"),
        "its text tower": teacher.get("text_fingerprint"),
        "views": teacher.get("views_fingerprint"),
    }
    return {
        "training": training,
        "resized": metrics.get("resized") or {},
        "versions": [f"{name} {training[name]}" for name in ("lgd_timm", "torch", "timm") if name in training],
        "fingerprints": [f"{what} `{value}`" for what, value in prints.items() if value],
    }


# ---------------------------------------------------------------------------------------------- filters of the template


@cache
def _template() -> jinja2.Template:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("lgd_timm", "publish"),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        autoescape=False,  # it is Markdown; `code` and `plain` take the markup out of other people's words
    )
    environment.filters |= {
        "code": _code,
        "duration": _duration,
        "listed": _listed,
        "markup": _markup,
        "number": format,
        "percent": _percent,
        "plain": _plain,
    }
    return environment.get_template("card.md.j2")


def _percent(value: float | None) -> str:
    return "not measured" if value is None else f"{value:.2f} %"


def _duration(seconds: float) -> str:
    """Seconds as people say them; under a minute there is nothing to tell."""
    if seconds < 60:
        return "less than a minute"
    minutes = seconds / 60
    return f"{minutes:.0f} minutes" if minutes < 120 else f"{minutes / 60:.1f} hours"


def _listed(names: Sequence[str]) -> str:
    """A code block of names, at most 200."""
    text = ", ".join(names[:200]) + (f", ... ({len(names)} in all)" if len(names) > 200 else "")
    fence = _fence(text, least=3)
    lines = textwrap.wrap(text, 120, break_long_words=False, break_on_hyphens=False)
    return "\n".join([f"{fence}text", *lines, fence])


def _code(text: str) -> str:
    """Inline code, in which nothing is markup."""
    fence = _fence(text, least=1)
    space = " " if text.startswith("`") or text.endswith("`") else ""
    return f"{fence}{space}{text}{space}{fence}"


def _fence(text: str, *, least: int) -> str:
    """A run of backticks longer than any in the text."""
    return "`" * max(least, 1 + max((len(run) for run in re.findall("`+", text)), default=0))


def _markup(text: Any) -> str:
    """Text without raw HTML; Markdown stays."""
    return str(text).replace("<", "&lt;")


def _plain(text: str) -> str:
    """Text with its Markdown escaped; underscores within words are no markup."""
    return re.sub(r"([\\`*\[\]|#])", r"\\\1", _markup(text))
