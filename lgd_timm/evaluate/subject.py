"""What a person names on the command line, made ready to be evaluated: a published folder, a weight's name, a teacher."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import timm
from torch import Tensor, nn

from .. import hub
from ..banks import text_bank
from ..devices import pick_device
from ..errors import LGDError, VocabularyError
from ..publish import load
from ..reach import check_reach
from ..recipe import read_teacher
from ..shards import Views, open_shards
from ..shards.read import ShardDataset
from ..sources import is_hub, local_source
from ..teachers import Stored, TextTeacher, spec_from_dict
from ..typed import build
from ..vocabulary import Vocabulary, load_vocabulary
from .zero_shot import ZeroShot, stored_classifier, taught, zero_shot, zero_shot_classifier


@dataclass(frozen=True)
class Subject:
    """An encoder of raw pixels, the names it is asked about, and what is known of its teacher."""

    label: str
    encoder: nn.Module
    vocabulary: Vocabulary
    bank: Tensor
    views: Views  # unaugmented
    teacher_fingerprint: str | None


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
    subject = find_subject(model, names, folders=sorted(Path(data).glob("*/text")))
    place = pick_device(device)
    dataset = ShardDataset(open_shards(data, split=split), views=subject.views, allow_empty=True)
    if dataset.shards.class_names and len(dataset.shards.class_names) != len(subject.vocabulary):
        raise VocabularyError(
            f"{data} ({split}) has {len(dataset.shards.class_names)} classes, {model} is asked about {len(subject.vocabulary)} names, so "
            "scores would mean nothing. Give the names of its labels in their order: --vocabulary."
        )
    settings: dict[str, Any] = {"names": subject.vocabulary.names, "batch_size": batch_size, "workers": workers, "device": place}
    encoder = subject.encoder.to(place).eval()
    scores: dict[str, ZeroShot | None] = {subject.label: zero_shot(zero_shot_classifier(encoder, subject.bank), dataset, **settings)}
    if subject.label == "student":
        scores["teacher"] = _teacher_score(subject, dataset, settings)
    return scores


def _teacher_score(subject: Subject, dataset: ShardDataset, settings: dict[str, Any]) -> ZeroShot | None:
    if subject.teacher_fingerprint is None:
        return None
    images = taught(dataset, views=None, teacher=subject.teacher_fingerprint)
    return None if images is None else zero_shot(stored_classifier(subject.bank), images, description="teacher", **settings)


def find_subject(model: str, vocabulary: Vocabulary | None, *, folders: Sequence[Path] = ()) -> Subject:
    """A published folder, on the disk or on the Hub (`hub://ORG/NAME[@REVISION]`), a published weight's name, or a recipe (its
    online teacher). Banks of other names may lie in `folders`.

    Raises: LGDError for anything else.
    """
    if is_hub(model):
        return _published_subject(local_source(model), vocabulary, folders, travelled=True)
    path = Path(model)
    if path.suffix in (".yaml", ".yml"):
        return _teacher_subject(path, vocabulary)
    if path.is_dir():
        return _published_subject(path, vocabulary, folders)
    if model.startswith("lgd_") and timm.is_model(model):
        default = None if "." in model else timm.get_pretrained_cfg(model)
        return _published_subject(hub.locate(f"{model}.{default.tag}" if default else model), vocabulary, folders)
    raise LGDError(
        f"{model!r} is no published folder, no lgd_ weight and no recipe. A plain timm model has no projector into a teacher's space: "
        "distil it first (lgd-timm distill)."
    )


def _published_subject(folder: Path, vocabulary: Vocabulary | None, folders: Sequence[Path], *, travelled: bool = False) -> Subject:
    """The student of a published folder. What a folder that travelled names is checked before it is opened."""
    published = load(folder)
    teacher = published.metrics.get("teacher", {})
    if not isinstance(teacher, dict):
        raise LGDError(f"{folder}/metrics.json: 'teacher' is {type(teacher).__name__}, not facts about one. Pull the folder again.")
    bank = published.banks.text
    own = Vocabulary(published.banks.names, published.banks.templates)
    if vocabulary is None:
        if travelled:
            check_reach({"data": {"val_vocabulary": published.recipe.data.val_vocabulary}})
        vocabulary = load_vocabulary(published.recipe.data.val_vocabulary or own.names, templates=own.templates)
    if vocabulary != own:

        def text() -> TextTeacher:
            if "teacher" not in teacher:
                raise LGDError(f"{folder}/metrics.json does not say which teacher reads new names. Use the folder's own names.")
            if travelled:
                check_reach({"teacher": teacher["teacher"]})
            return spec_from_dict(teacher["teacher"]).text()

        bank = text_bank(vocabulary, text_fingerprint=published.banks.text_fingerprint, text=text, folders=folders)
    views: Views = published.recipe.views or build(Views, teacher.get("views", {"size": published.student.preprocess.size}), where="views")
    views = replace(views, augmentation="none", count=1)
    return Subject("student", published.student, vocabulary, bank, views, teacher.get("fingerprint"))


def _teacher_subject(path: Path, vocabulary: Vocabulary | None) -> Subject:
    spec, own = read_teacher(path)
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
    return Subject("teacher", image, names, bank, Views(size=image.preprocess.size, augmentation="none"), None)
