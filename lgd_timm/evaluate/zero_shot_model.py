"""Open an encoder with the names that it classifies by: a student, or a recipe's teacher, and the names' text bank."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from ..config.reader import read_recipe, read_teacher
from ..config.recipe import Recipe
from ..config.sandbox import check_reach
from ..data import Views, open_shards
from ..data.dataset import ShardDataset
from ..data.index import ShardSet
from ..data.paths import resolve_path
from ..data.vocabulary import Vocabulary, load_vocabulary
from ..errors import LGDError, VocabularyError
from ..hub.timm_models import build_timm_model
from ..objectives import objective_config
from ..publish.folder import Published
from ..teachers import Stored, TextTeacher, spec_from_dict
from ..teachers.prepare import prepare_teacher
from ..teachers.text_bank import text_bank
from ..utils.device import pick_device
from .models import Model, StudentFolder, open_student, student_folder
from .zero_shot import (
    ClassCountError,
    ZeroShot,
    match_classes,
    stored_classifier,
    warn_of_weak_teacher,
    with_stored_embeddings,
    zero_shot,
    zero_shot_classifier,
)

TEACHER_TEMPERATURE = 0.01  # the released code's (scripts/train.sh), for objectives that have none of their own


@dataclass(frozen=True)
class ZeroShotModel:
    """An image encoder, the names that it classifies by, and what is known of its teacher.

    Attributes:
        label: "student" or "teacher".
        encoder: uint8 images [B, 3, H, W] -> embeddings [B, D].
        vocabulary: C names and their prompt templates.
        bank: the names' text embeddings, float32 [C, D], of length 1.
        views: how images are shown to it: unaugmented.
        teacher_fingerprint: names the teacher's stored embeddings; None of a teacher, and where it is not known.
        student_temperature: of the student's similarities; None of a teacher.
        teacher_temperature: of the teacher's similarities.
        other_names: a student was distilled for other names than these.
        classifier: loads the published classifier, features [B, F] -> logits [B, C]; None where it has other names.
    """

    label: str
    encoder: nn.Module
    vocabulary: Vocabulary
    bank: Tensor
    views: Views
    teacher_fingerprint: str | None
    student_temperature: float | None = None
    teacher_temperature: float = TEACHER_TEMPERATURE
    other_names: bool = False
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
    """Score a model zero-shot, and its teacher where its embeddings of these images are stored.

    A student embeds images in its teacher's space, so it can classify by other names than those that it was distilled
    for.

    Args:
        model: what `open_zero_shot_model` opens.
        data: shard folder, or address of one, with labels.
        split: which split of it.
        vocabulary: source of the names; None: those that the student's run evaluates by, which mostly are its own.
        templates: prompt templates of `vocabulary`.
        batch_size: images a step.
        workers: processes that load images; 0: this one.
        device: "auto", or a device of torch.

    Returns:
        Accuracies of "student", and of "teacher" (None where no embeddings are stored); of a recipe, "teacher" alone.

    Raises:
        LGDError: model, data or names can't be used.
    """
    names = None if vocabulary is None else load_vocabulary(vocabulary, templates=templates)
    shards = open_shards(data, split=split)
    if names is not None:  # before a model is loaded
        names = match_vocabulary(shards, names, name=model)
    opened = open_zero_shot_model(model, names, folders=bank_folders(data))
    if names is None:
        opened = match_model(shards, opened, name=model)
    resolved_device = pick_device(device)
    dataset = ShardDataset(shards, views=opened.views, allow_empty=True)
    settings: dict[str, Any] = {
        "names": opened.vocabulary.names,
        "batch_size": batch_size,
        "workers": workers,
        "device": resolved_device,
    }
    encoder = opened.encoder.to(resolved_device).eval()
    scores: dict[str, ZeroShot | None] = {
        opened.label: zero_shot(zero_shot_classifier(encoder, opened.bank), dataset, **settings)
    }
    if opened.label == "student":
        scores["teacher"] = _teacher_score(opened, dataset, settings)
    warn_of_weak_teacher(scores.get("teacher"))
    return scores


def bank_folders(data: str | Path) -> list[Path]:
    """List the folders beside shards where `teach` leaves text banks. None at an address: servers list no folders."""
    root = resolve_path(data)
    return sorted(root.glob("*/text")) if isinstance(root, Path) else []


def match_vocabulary(shards: ShardSet, vocabulary: Vocabulary, *, name: str) -> Vocabulary:
    """Bring names into the order of the classes that shards name.

    Args:
        shards: what a model is to be scored on.
        vocabulary: its names.
        name: of the model, for messages.

    Returns:
        The vocabulary, in another order where its names are the classes in another order, which is logged.

    Raises:
        VocabularyError: there are more or fewer names than classes.
    """
    order = _class_order(shards, vocabulary, name=name)
    return vocabulary if order is None else Vocabulary(tuple(vocabulary.names[i] for i in order), vocabulary.templates)


def match_model(shards: ShardSet, model: ZeroShotModel, *, name: str) -> ZeroShotModel:
    """Bring a model's names, and all that has their order, into the order of the classes that shards name.

    Args:
        shards: what it is to be scored on.
        model: with its names.
        name: of the model, for messages.

    Returns:
        The model, in another order where its names are the classes in another order, which is logged.

    Raises:
        VocabularyError: it has more or fewer names than there are classes.
    """
    order = _class_order(shards, model.vocabulary, name=name)
    return model if order is None else _reordered(model, order)


def _class_order(shards: ShardSet, vocabulary: Vocabulary, *, name: str) -> list[int] | None:
    try:
        return match_classes(shards, vocabulary.names)
    except ClassCountError as error:
        raise VocabularyError(
            f"{shards.root} ({shards.split}) has {error.classes} classes, {name} is asked about "
            f"{error.names} names, so scores would mean nothing. Give the names of its labels in their order: "
            "--vocabulary."
        ) from None


def _reordered(model: ZeroShotModel, order: Sequence[int]) -> ZeroShotModel:
    """Order a model's names anew: name i is the one that was at `order[i]`."""
    vocabulary = Vocabulary(tuple(model.vocabulary.names[i] for i in order), model.vocabulary.templates)
    classifier = None if model.classifier is None else cache(partial(_ReorderedClassifier, model.classifier, order))
    return replace(model, vocabulary=vocabulary, bank=model.bank[list(order)], classifier=classifier)


class _ReorderedClassifier(nn.Module):
    """A classifier whose logits [B, C] stand in another order."""

    def __init__(self, classifier: Callable[[], nn.Module], order: Sequence[int]) -> None:
        super().__init__()
        self.classifier, self._order = classifier(), list(order)

    def forward(self, features: Tensor) -> Tensor:
        logits: Tensor = self.classifier(features)
        return logits[:, self._order]


def _teacher_score(model: ZeroShotModel, dataset: ShardDataset, settings: dict[str, Any]) -> ZeroShot | None:
    if model.teacher_fingerprint is None:
        return None
    images = with_stored_embeddings(dataset, views=None, teacher=model.teacher_fingerprint)
    return (
        None if images is None else zero_shot(stored_classifier(model.bank), images, description="teacher", **settings)
    )


def open_zero_shot_model(model: str, vocabulary: Vocabulary | None, *, folders: Sequence[Path] = ()) -> ZeroShotModel:
    """Open a student, or a recipe's online teacher, with names.

    Args:
        model: a YAML recipe (its teacher is opened), or a student by any name of `models.student_folder`.
        vocabulary: the names; None: those that the student's run evaluates by, or the recipe's.
        folders: where text banks of other names may be stored, as of `bank_folders`.

    Returns:
        The encoder with its names' bank.

    Raises:
        LGDError: anything else, names that can't be had, or a teacher that can't be opened.
    """
    path = Path(model)
    if path.suffix in (".yaml", ".yml"):
        return _recipe_teacher(path, vocabulary)
    found = student_folder(model)
    if found is None:
        raise LGDError(
            f"{model!r} is no published folder, no lgd_ weight and no recipe. A plain timm model has no projector into "
            "a teacher's space: distil it first (lgd-timm distill)."
        )
    return zero_shot_student(found, vocabulary, folders=folders)


def zero_shot_student(
    folder: StudentFolder, vocabulary: Vocabulary | None, *, folders: Sequence[Path] = (), opened: Model | None = None
) -> ZeroShotModel:
    """Open the student of a folder with names.

    Args:
        folder: a published folder, or a run that has not published yet.
        vocabulary: the names; None: those that its run evaluates by.
        folders: where text banks of other names may be stored.
        opened: what `open_student` gave for this folder, if it was opened before.

    Returns:
        The student with its names' bank; it shares its weights with `opened`.

    Raises:
        LGDError: the student or the names can't be had.
        RecipeError: an untrusted folder names a path outside of the working directory.
    """
    opened = opened or open_student(str(folder.path), folder)
    if opened.published is None:
        return _run_student(folder, opened, vocabulary)
    return _published_student(folder, opened, opened.published, vocabulary, folders)


def _published_student(
    folder: StudentFolder,
    opened: Model,
    published: Published,
    vocabulary: Vocabulary | None,
    folders: Sequence[Path],
) -> ZeroShotModel:
    """What an untrusted folder names is checked before it is opened."""
    teacher = published.metrics.get("teacher", {})
    bank = published.banks.text
    own = Vocabulary(published.banks.names, published.banks.templates)
    if vocabulary is None:
        if folder.untrusted:
            check_reach({"data": {"val_vocabulary": published.recipe.data.val_vocabulary}})
        vocabulary = load_vocabulary(published.recipe.data.val_vocabulary or own.names, templates=own.templates)
    if sorted(vocabulary.names) == sorted(own.names) and vocabulary.templates == own.templates and vocabulary != own:
        own_model = _published_student(folder, opened, published, own, folders)
        return _reordered(own_model, [own.names.index(name) for name in vocabulary.names])
    if vocabulary != own:
        text = partial(text_tower, folder, published)
        bank = text_bank(vocabulary, text_fingerprint=published.banks.text_fingerprint, text=text, folders=folders)
    folded = published.label_names and vocabulary == own
    return ZeroShotModel(
        "student",
        opened.network,
        vocabulary,
        bank,
        opened.views,
        teacher.get("fingerprint"),
        **_temperatures(published.recipe),
        other_names=vocabulary.names != own.names,
        classifier=cache(partial(_folded_classifier, folder.path)) if folded else None,
    )


def text_tower(folder: StudentFolder, published: Published) -> TextTeacher:
    """Build the text tower of a published student's teacher.

    Raises:
        LGDError: the folder does not say which teacher it was, or the tower can't be built.
        RecipeError: an untrusted folder names a path outside of the working directory.
    """
    teacher = published.metrics.get("teacher", {})
    if "teacher" not in teacher:
        raise LGDError(
            f"{folder.path}/metrics.json does not say which teacher reads new names. Use the folder's own names."
        )
    if folder.untrusted:
        check_reach({"teacher": teacher["teacher"]})
    return spec_from_dict(teacher["teacher"]).text()


def _folded_classifier(folder: Path) -> nn.Module:
    """Load the stock model's classifier: projector, bank and temperature in one linear layer, rounded as published."""
    stock: Any = build_timm_model(f"local-dir:{folder}", pretrained=True)
    classifier: nn.Module = stock.get_classifier()
    return classifier.float().eval()


def _run_student(folder: StudentFolder, opened: Model, vocabulary: Vocabulary | None) -> ZeroShotModel:
    recipe = read_recipe(folder.path / "recipe.yaml")
    teaching, bank_of = prepare_teacher(recipe.teacher, vocabulary=recipe.vocabulary.load(), views=recipe.views)
    if vocabulary is None:
        names = recipe.data.val_vocabulary
        vocabulary = (
            teaching.vocabulary if names is None else load_vocabulary(names, templates=recipe.vocabulary.templates)
        )
    return ZeroShotModel(
        "student",
        opened.network,
        vocabulary,
        bank_of(vocabulary),
        opened.views,
        teaching.metadata["fingerprint"],
        **_temperatures(recipe),
        other_names=vocabulary.names != teaching.vocabulary.names,
    )


def student_temperature(recipe: Recipe) -> float:
    """Return by what the similarities of a recipe's student are divided, as its objective has it."""
    return float(objective_config(recipe.objective).student_temperature)


def _temperatures(recipe: Recipe) -> dict[str, Any]:
    teacher = getattr(objective_config(recipe.objective), "teacher_temperature", TEACHER_TEMPERATURE)
    return {"student_temperature": student_temperature(recipe), "teacher_temperature": teacher}


def _recipe_teacher(path: Path, vocabulary: Vocabulary | None) -> ZeroShotModel:
    spec, own, crop = read_teacher(path)
    names = vocabulary or own
    if names is None:
        raise LGDError(f"{path} names no vocabulary. Give one with --vocabulary.")
    if isinstance(spec, Stored):
        if spec.taught_by is None:
            raise LGDError(
                f"{path} has stored embeddings and no teacher to run. Evaluate the student: the teacher's score stands "
                "beside it."
            )
        spec = spec.taught_by
    image, text = spec.image(), spec.text()
    bank = text_bank(names, text_fingerprint=text.fingerprint, text=lambda: text)
    return ZeroShotModel(
        "teacher", image, names, bank, Views(size=image.preprocess.size, augmentation="none", crop=crop), None
    )
