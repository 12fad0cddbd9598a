"""The tables: each row is the recipe with something changed (dotted fields, as on the command line)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import yaml

from lgd_timm.cli.common import parse_overrides
from lgd_timm.errors import RecipeError

Overrides = dict[str, Any]

CIFAR10 = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
# As many names of other things, none of them close to one of the ten
OTHER = ["mountain", "chair", "clock", "pizza", "guitar", "castle", "tulip", "telephone", "waterfall", "bottle"]
# The ten among a hundred: the rest are names of CIFAR-100, without those that a truck or an automobile might be called
HUNDRED = "benchmarks/accuracy/hundred_names.txt"
TINY_IMAGENET = "data/tiny_imagenet/names.txt"

PAPER: Overrides = {"objective": {"kind": "lgd", "preset": "paper"}}
TWICE: Overrides = {**PAPER, "schedule.epochs": 2}


def _lgd(**switches: Any) -> Overrides:
    return {"objective": {"kind": "lgd", "preset": "paper", **switches}}


def _refined(**switches: Any) -> Overrides:
    return {"objective": {"kind": "refined", **switches}}


# Settings are those of each rival's paper or released code, named at the top of its file in lgd_timm/objectives/.
# Queues hold 4,096 for 50,000 images, about as SEED's 65,536 do for ImageNet's 1.28 million.
RIVALS: dict[str, Overrides] = {
    "lgd, paper": PAPER,
    "lgd, student temperature 0.05": _lgd(student_temperature=0.05),
    "lgd, reference": {"objective": {"kind": "lgd", "preset": "reference"}},
    "seed": {"objective": {"kind": "seed", "queue_size": 4096}},
    "seed, student temperature 0.05": {"objective": {"kind": "seed", "queue_size": 4096, "student_temperature": 0.05}},
    "seed, lightly_train": {"objective": {"kind": "seed", "preset": "lightly_train", "queue_size": 4096}},
    "regression, deep head": {"objective": {"kind": "regression"}, "student.projector": "deep"},
    "clip_kd": {"objective": {"kind": "clip_kd"}},
    "logits": {"objective": {"kind": "logits"}},
    "refined": _refined(),
    "refined, balanced: told that names are about equally frequent": _refined(preset="balanced"),
    "supervised, with labels": {"objective": {"kind": "supervised"}},
}

ABLATIONS: dict[str, Overrides] = {
    "paper": PAPER,
    "alpha 0, text alone": RIVALS["logits"],
    "alpha 1, visual alone": _lgd(alpha=1.0),
    "extra positive, as released": RIVALS["lgd, reference"],
    "teacher temperature 0.02": _lgd(teacher_temperature=0.02),
    "teacher temperature 0.05": _lgd(teacher_temperature=0.05),
    "visual teacher temperature 0.05": _lgd(visual_teacher_temperature=0.05),
    "student temperature 0.1": _lgd(student_temperature=0.1),
    "student temperature 0.05": _lgd(student_temperature=0.05),
    "student temperature 0.05, extra positive": _lgd(student_temperature=0.05, positive=True),
    "bank re-normalised": _lgd(renormalize=True),
    "unseen names masked": _lgd(mask_unseen=True),
    "momentum 0.9": _lgd(momentum=0.9),
    "soft assignment": _lgd(assignment="soft"),
    "mlp projector": {**PAPER, "student.projector": "mlp"},
    "2 epochs": TWICE,
    "2 epochs, K = 1 light view": {
        **TWICE,
        "teacher.target": "image",
        "views": {"size": 32, "augmentation": "light", "count": 1},
    },
    "2 epochs, K = 2 light views": {
        **TWICE,
        "teacher.target": "image",
        "views": {"size": 32, "augmentation": "light", "count": 2},
    },
}

# The paper's second claim (arXiv 2406.11689, text control): a student knows the names that it was taught
TEXT: dict[str, Overrides] = {
    "the right 10 names": PAPER,
    "10 other names": {**PAPER, "vocabulary.source": OTHER},
    "100 names, the 10 among them": {**PAPER, "vocabulary.source": HUNDRED},
    "refined: the right 10 names": RIVALS["refined"],
    "refined: 100 names, the 10 among them": {**RIVALS["refined"], "vocabulary.source": HUNDRED},
}

# Each part of the objective alone or left out
PARTS: dict[str, Overrides] = {
    "refined": RIVALS["refined"],
    "plain answers": _refined(refine=False),
    "no names": _refined(names_weight=0.0),
    "names alone": _refined(feature_weight=0.0, contrast_weight=0.0),
    "no contrast": _refined(contrast_weight=0.0),
    "no direction": _refined(feature_weight=0.0),
    "centred, not whitened": _refined(whiten=0.0),
    "fully whitened": _refined(whiten=1.0),
    "names weight 1": _refined(names_weight=1.0),
    "names weight 2": _refined(names_weight=2.0),
    "balance 0.5": _refined(balance=0.5),
    "balanced": RIVALS["refined, balanced: told that names are about equally frequent"],
}

# The paper's text control on photographs with hundreds of names: the same images, the names of one set or of the other.
# For recipes/evidence_tiny_imagenet.yaml with --elsewhere data/caltech101
CONTROL: dict[str, Overrides] = {
    f"{label}: {objective}": {**RIVALS[objective], **names}
    for objective in ("lgd, paper", "refined")
    for label, names in (
        ("Tiny-ImageNet's names", {"vocabulary.source": TINY_IMAGENET}),
        (
            "Caltech-101's names",
            {"vocabulary.source": "data/caltech101/names.txt", "data.val_vocabulary": TINY_IMAGENET},
        ),
    )
}

TABLES = {"rivals": RIVALS, "parts": PARTS, "control": CONTROL, "ablations": ABLATIONS, "text": TEXT}


def overrides_of(words: Sequence[str]) -> Overrides:
    """Read `--field.sub value ...` as a recipe's overrides. Raises: RecipeError for other words."""
    return {field: yaml.safe_load(value) for field, value in parse_overrides(words).items()}


def objective_settings(words: Sequence[str]) -> Overrides:
    """Read `--objective.ridge 1 ...` as settings of an objective. Raises: RecipeError for others, and its kind."""
    overrides = overrides_of(words)
    for field in overrides:
        if not field.startswith("objective.") or field == "objective.kind":
            raise RecipeError(f"--{field} is not used here; settings of the objective are (--objective.ridge 1).")
    return {field.removeprefix("objective."): value for field, value in overrides.items()}
