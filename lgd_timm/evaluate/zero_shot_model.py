"""What is asked zero-shot questions: a student, or a recipe's teacher, with names and their bank in the teacher's space."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

import timm
from torch import Tensor, nn

from ..config.reader import read_recipe, read_teacher
from ..config.recipe import Recipe
from ..config.sandbox import check_reach
from ..data import Views, open_shards
from ..data.dataset import ShardDataset
from ..data.paths import resolve_path
from ..data.vocabulary import Vocabulary, load_vocabulary
from ..errors import LGDError
from ..objectives import objective_config
from ..publish.folder import load
from ..teachers import Stored, TextTeacher, spec_from_dict
from ..teachers.prepare import prepare_teacher
from ..teachers.text_bank import text_bank
from ..utils.device import pick_device
from .models import StudentFolder, open_student, published_views, student_folder
from .zero_shot import (
    ZeroShot,
    check_class_count,
    stored_classifier,
    with_stored_embeddings,
    zero_shot,
    zero_shot_classifier,
)

TEACHER_TEMPERATURE = 0.01  # the paper's (facts.md 1.3), for objectives that have none of their own


@dataclass(frozen=True)
class ZeroShotModel:
    """An encoder of raw pixels, the names it is asked about, and what is known of its teacher."""

    label: str  # student or teacher
    encoder: nn.Module
    vocabulary: Vocabulary
    bank: Tensor
    views: Views  # unaugmented
    teacher_fingerprint: str | None
    student_temperature: float | None = None
    teacher_temperature: float = TEACHER_TEMPERATURE
    other_names: bool = False  # a student's: it was distilled for other names than these
    # Loads the published classifier, features [B, F] -> logits [B, C]; None where it does not answer with these names
    classifier: Callable[[], nn.Module] | None = None


def evaluate_zero_shot(
    model: str,
    *,
    data: str | Path,
    split: str = "val",
    vocabulary: str | Sequence[str] | None = None,
    templates: str | Sequence[str] = "none",
    batch_size: int = 256,
    workers: int = 0,
    device: str = "auto",
) -> dict[str, ZeroShot | None]:
    """Score a model, and its teacher where the teacher's embeddings of these images are stored beside the shards.

    The student lives in its teacher's space, so `vocabulary` may be other names than those that it was distilled for. Without
    it, a student is asked about the names that its run scored it on, which mostly are its own.
    Raises: LGDError when the model, the data or the names can't be used.
    """
    names = None if vocabulary is None else load_vocabulary(vocabulary, templates=templates)
    subject = open_zero_shot_model(model, names, folders=bank_folders(data))
    place = pick_device(device)
    dataset = ShardDataset(open_shards(data, split=split), views=subject.views, allow_empty=True)
    check_asked(dataset, subject, model=model)
    settings: dict[str, Any] = {
        "names": subject.vocabulary.names,
        "batch_size": batch_size,
        "workers": workers,
        "device": place,
    }
    encoder = subject.encoder.to(place).eval()
    scores: dict[str, ZeroShot | None] = {
        subject.label: zero_shot(zero_shot_classifier(encoder, subject.bank), dataset, **settings)
    }
    if subject.label == "student":
        scores["teacher"] = _teacher_score(subject, dataset, settings)
    return scores


def bank_folders(data: str | Path) -> list[Path]:
    """Where banks of names lie beside shards: `teach` leaves them with the embeddings. None at an address, as servers list no folders."""
    root = resolve_path(data)
    return sorted(root.glob("*/text")) if isinstance(root, Path) else []


def check_asked(dataset: ShardDataset, subject: ZeroShotModel, *, model: str) -> None:
    """Raises: VocabularyError where the shards have more or fewer classes than the subject is asked about names."""
    check_class_count(
        dataset,
        subject.vocabulary.names,
        where=f"{dataset.shards.root} ({dataset.shards.split})",
        asked=f"{model} is asked about",
        advice="Give the names of its labels in their order: --vocabulary.",
    )


def _teacher_score(subject: ZeroShotModel, dataset: ShardDataset, settings: dict[str, Any]) -> ZeroShot | None:
    if subject.teacher_fingerprint is None:
        return None
    images = with_stored_embeddings(dataset, views=None, teacher=subject.teacher_fingerprint)
    return (
        None
        if images is None
        else zero_shot(stored_classifier(subject.bank), images, description="teacher", **settings)
    )


def open_zero_shot_model(model: str, vocabulary: Vocabulary | None, *, folders: Sequence[Path] = ()) -> ZeroShotModel:
    """A student (see `models.student_folder`), or a recipe: its online teacher. Banks of other names may lie in `folders`.

    Raises: LGDError for anything else.
    """
    path = Path(model)
    if path.suffix in (".yaml", ".yml"):
        return _teacher_subject(path, vocabulary)
    found = student_folder(model)
    if found is None:
        raise LGDError(
            f"{model!r} is no published folder, no lgd_ weight and no recipe. A plain timm model has no projector into a teacher's space: "
            "distil it first (lgd-timm distill)."
        )
    return student_subject(found, vocabulary, folders=folders)


def student_subject(
    folder: StudentFolder, vocabulary: Vocabulary | None, *, folders: Sequence[Path] = ()
) -> ZeroShotModel:
    """The student of a folder, asked about these names or, without any, those of its run's evaluation."""
    if folder.checkpoint is not None:
        return _run_subject(folder, vocabulary)
    return _published_subject(folder.path, vocabulary, folders, travelled=folder.travelled)


def _published_subject(
    folder: Path, vocabulary: Vocabulary | None, folders: Sequence[Path], *, travelled: bool
) -> ZeroShotModel:
    """The student of a published folder. What a folder that travelled names is checked before it is opened."""
    published = load(folder)
    views, teacher = published_views(published, folder), published.metrics.get("teacher", {})
    bank = published.banks.text
    own = Vocabulary(published.banks.names, published.banks.templates)
    if vocabulary is None:
        if travelled:
            check_reach({"data": {"val_vocabulary": published.recipe.data.val_vocabulary}})
        vocabulary = load_vocabulary(published.recipe.data.val_vocabulary or own.names, templates=own.templates)
    if vocabulary != own:

        def text() -> TextTeacher:
            if "teacher" not in teacher:
                raise LGDError(
                    f"{folder}/metrics.json does not say which teacher reads new names. Use the folder's own names."
                )
            if travelled:
                check_reach({"teacher": teacher["teacher"]})
            return spec_from_dict(teacher["teacher"]).text()

        bank = text_bank(vocabulary, text_fingerprint=published.banks.text_fingerprint, text=text, folders=folders)
    return ZeroShotModel(
        "student",
        published.student,
        vocabulary,
        bank,
        views,
        teacher.get("fingerprint"),
        **_temperatures(published.recipe),
        other_names=vocabulary.names != own.names,
        classifier=cache(partial(_folded, folder)) if published.label_names and vocabulary == own else None,
    )


def _folded(folder: Path) -> nn.Module:
    """The classifier of the stock model: projector, bank and temperature in one linear layer, rounded as it is published."""
    stock: Any = timm.create_model(f"local-dir:{folder}", pretrained=True)
    classifier: nn.Module = stock.get_classifier()
    return classifier.float().eval()


def _run_subject(folder: StudentFolder, vocabulary: Vocabulary | None) -> ZeroShotModel:
    """The student of a run that has not published yet."""
    recipe = read_recipe(folder.path / "recipe.yaml")
    model = open_student(str(folder.path), folder)
    teaching, bank_of = prepare_teacher(recipe.teacher, vocabulary=recipe.vocabulary.load(), views=recipe.views)
    if vocabulary is None:
        source = recipe.data.val_vocabulary
        vocabulary = (
            teaching.vocabulary if source is None else load_vocabulary(source, templates=recipe.vocabulary.templates)
        )
    bank, teacher = bank_of(vocabulary), teaching.facts["fingerprint"]
    other_names = vocabulary.names != teaching.vocabulary.names
    return ZeroShotModel(
        "student",
        model.network,
        vocabulary,
        bank,
        model.views,
        teacher,
        **_temperatures(recipe),
        other_names=other_names,
    )


def _temperatures(recipe: Recipe) -> dict[str, Any]:
    config = objective_config(recipe.objective)
    teacher = getattr(config, "teacher_temperature", TEACHER_TEMPERATURE)
    return {"student_temperature": config.student_temperature, "teacher_temperature": teacher}


def _teacher_subject(path: Path, vocabulary: Vocabulary | None) -> ZeroShotModel:
    spec, own, crop = read_teacher(path)
    names = vocabulary or own
    if names is None:
        raise LGDError(f"{path} names no vocabulary. Give one with --vocabulary.")
    if isinstance(spec, Stored):
        if spec.taught_by is None:
            raise LGDError(
                f"{path} has stored embeddings and no teacher to run. Evaluate the student: the teacher's score stands beside it."
            )
        spec = spec.taught_by
    image, text = spec.image(), spec.text()
    bank = text_bank(names, text_fingerprint=text.fingerprint, text=lambda: text)
    return ZeroShotModel(
        "teacher", image, names, bank, Views(size=image.preprocess.size, augmentation="none", crop=crop), None
    )
