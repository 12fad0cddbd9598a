"""Run every evaluation that a model and its data allow; write the scores into a published folder's metrics and card."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..config.reader import read_recipe
from ..data import open_shards
from ..data.dataset import ShardDataset
from ..data.subset import draw_labels
from ..errors import LGDError, MissingExtra, VocabularyError, WeightsError
from ..publish.card import rewrite_card
from ..publish.metrics import EVALUATIONS, LINEAR_PROBES, read_metrics, write_metrics
from .agreement import Agreement, agreement
from .calibration import Calibration, calibrate, similarity_logits, teacher_calibration
from .feature_splits import FeatureSplits
from .features import Features, class_count
from .knn import KNN, knn
from .linear_probe import LinearProbe, linear_probe
from .models import StudentFolder, find_model
from .zero_shot import FEW_CLASSES, Tally, ZeroShot
from .zero_shot_model import ZeroShotModel, bank_folders, match_model, zero_shot_student

Score = ZeroShot | KNN | LinearProbe | Calibration | Agreement

TITLES = {evaluation.key: evaluation.title for evaluation in EVALUATIONS}
NO_TEACHER_EMBEDDINGS = (
    "Its teacher's embeddings of these images are not stored: lgd-timm teach, with views.augmentation none."
)


@dataclass
class Results:
    """What was measured, and what was not.

    Attributes:
        scores: by their keys in metrics.json; the teacher's keys begin with `teacher_`.
        left_out: why an evaluation was left out, by its key.
        names: of the zero-shot evaluation, where they are not those that the student was distilled for.
    """

    scores: dict[str, Score] = field(default_factory=dict)
    left_out: dict[str, str] = field(default_factory=dict)
    names: tuple[str, ...] | None = None

    def to_dict(self) -> dict[str, Any]:
        """Give the scores as plain data, as metrics.json holds them."""
        plain = {key: score.to_dict() for key, score in self.scores.items()}
        for key in ("zero_shot", "teacher_zero_shot"):
            if key in plain and self.names is not None:
                plain[key]["names"] = list(self.names)
        return plain

    def lines(self) -> list[str]:
        """Print as lines: a table of accuracies, the other scores, and what was left out."""
        rows = [f"{'':30} {'top-1':>8} {'top-5':>8} {'teacher':>8} {'chance':>8}"]
        others = []
        for key, score in self.scores.items():
            if isinstance(score, Calibration | Agreement):
                others.append(f"{key.replace('_', ' ')}: {score}")
            elif not key.startswith("teacher_"):
                teacher = self.scores.get(f"teacher_{key}")
                top5 = score.top5 if score.chance <= FEW_CLASSES else None
                values = (score.top1, top5, getattr(teacher, "top1", None), score.chance)
                cells = " ".join(f"{'-' if value is None else f'{value:.2f} %':>8}" for value in values)
                rows.append(f"{TITLES[key]:30} {cells}")
        return [
            *rows,
            *others,
            *(f"left out: {key.replace('_', ' ')}: {reason}" for key, reason in self.left_out.items()),
        ]

    def measure(self, key: str, function: Callable[[], Score]) -> None:
        """Call `function` and keep its score, or the reason why it raised an LGDError."""
        try:
            self.scores[key] = function()
        except LGDError as error:
            self.left_out[key] = str(error)


def evaluate_all(
    model: str | Path,
    *,
    data: str | Path,
    train_split: str = "train",
    split: str = "val",
    datasets: Mapping[str, ShardDataset] | None = None,
    protocol: str = "lbfgs",
    k: int = 20,
    seed: int = 0,
    pretrained: bool = True,
    architecture: str | None = None,
    image_size: int | None = None,
    batch_size: int = 256,
    workers: int = 0,
    device: str = "auto",
    write: bool = False,
) -> Results:
    """Run zero-shot, k-NN, linear probes on 100, 10 and 1 % of the labels, calibration, and agreement with the teacher.

    The model is opened once, and encodes every image of both splits once.

    Args:
        model: any name of `find_model`.
        data: shard folder, or address of one.
        train_split: labelled images to learn from.
        split: labelled images that are scored.
        datasets: of splits that are open already, with the model's views, by their names.
        protocol: of the linear probes: lbfgs, ridge or sgd.
        k: neighbours of k-NN.
        seed: draws the labels of the smaller probes, and random weights.
        pretrained: as of `find_model`.
        architecture: as of `find_model`.
        image_size: as of `find_model`.
        batch_size: images a step.
        workers: processes that load images; 0: this one.
        device: "auto", or a device of torch.
        write: also write the scores into the published folder's metrics.json and card.

    Returns:
        The scores, and for each evaluation that model or data do not allow, the reason.

    Raises:
        LGDError: model or data can't be used at all.
        WeightsError: `write` would make the card claim what is not so.
    """
    name = str(model)
    found = find_model(name, pretrained=pretrained, architecture=architecture, image_size=image_size, seed=seed)
    if write:
        check_writable(name, found.folder, data=data, train_split=train_split, split=split)
    splits = FeatureSplits(
        found, data, train_split, split, datasets or {}, batch_size=batch_size, workers=workers, device=device
    )
    results = Results()
    student = _zero_shot_student(results, splits)
    teachers: Sequence[Features | None] = (None, None)
    if student is not None:
        teachers = splits.teachers(student.teacher_fingerprint)
        score_by_names(results, student, splits.train, splits.test, teachers=teachers, seed=seed)
    options: dict[str, Any] = {"protocol": protocol, "k": k, "seed": seed, "device": splits.resolved_device}
    probe(results, "", splits.train, splits.test, **options)
    if teachers[0] is not None and teachers[1] is not None:
        probe(results, "teacher_", teachers[0], teachers[1], **options)
    if write:
        assert found.folder is not None
        write_results(results, found.folder.path)
    return results


def _zero_shot_student(results: Results, splits: FeatureSplits) -> ZeroShotModel | None:
    """Give the student its names; where that can't be, note the reason in `results` and return None."""
    opened = splits.model
    reason = f"{opened.name} has no projector into a teacher's space. Distil it first (lgd-timm distill)."
    if opened.folder is not None:
        try:
            student = zero_shot_student(opened.folder, None, folders=bank_folders(splits.data), opened=opened)
            student = match_model(splits.dataset(splits.test_split).shards, student, name=opened.name)
            results.names = student.vocabulary.names if student.other_names else None
            return student
        except (LGDError, MissingExtra) as error:
            reason = str(error)
    results.left_out.update(dict.fromkeys(("zero_shot", "calibration", "agreement"), reason))
    return None


def score_by_names(
    results: Results,
    model: ZeroShotModel,
    train: Features,
    test: Features,
    *,
    teachers: Sequence[Features | None] = (None, None),
    seed: int = 0,
) -> None:
    """Measure what needs names: zero-shot, calibration and agreement of a student, and the first two of its teacher.

    Args:
        results: takes the scores.
        model: a student with its names.
        train: its features of the training split.
        test: its features of the split that is scored.
        teachers: the teacher's stored features of both splits; None where there are none.
        seed: of `calibrate`.
    """
    results.measure("zero_shot", lambda: zero_shot_score(model, test))
    results.measure("calibration", lambda: calibrate(model, test, train, seed=seed))
    teacher_train, teacher_test = teachers
    if teacher_test is None:
        results.left_out.update(
            dict.fromkeys(("teacher_zero_shot", "teacher_calibration", "agreement"), NO_TEACHER_EMBEDDINGS)
        )
        return
    results.measure("teacher_zero_shot", lambda: zero_shot_score(model, teacher_test))
    results.measure("teacher_calibration", lambda: teacher_calibration(model, teacher_test, teacher_train, seed=seed))
    results.measure("agreement", lambda: agreement_score(model, test, teacher_test))


def zero_shot_score(model: ZeroShotModel, features: Features) -> ZeroShot:
    """Score a model zero-shot from embeddings.

    Args:
        model: with its names.
        features: labelled, with embeddings.

    Returns:
        The accuracies.

    Raises:
        ShardError: images have no labels.
        VocabularyError: a label has no name.
    """
    names = model.vocabulary.names
    if class_count(features) > len(names):
        raise VocabularyError(
            f"{features.name} has label {int(features.labels.max())}, the vocabulary only {len(names)} names."
        )
    tally = Tally(names)
    tally.add(similarity_logits(model, features, temperature=1.0)[0], features.labels)
    return tally.score(bad=len(features.bad))


def agreement_score(model: ZeroShotModel, student: Features, teacher: Features) -> Agreement:
    """Measure the `agreement` of student and teacher at the temperatures of the student's recipe."""
    assert student.embeddings is not None
    assert teacher.embeddings is not None
    assert model.student_temperature is not None
    return agreement(
        student.embeddings,
        teacher.embeddings,
        model.bank,
        student.labels,
        student_temperature=model.student_temperature,
        teacher_temperature=model.teacher_temperature,
    )


def probe(
    results: Results, prefix: str, train: Features, test: Features, *, protocol: str, k: int, seed: int, device: str
) -> None:
    """Measure k-NN and linear probes of frozen features; their keys in `results` begin with `prefix`."""
    results.measure(f"{prefix}knn", lambda: knn(train, test, k=k, device=device))
    for evaluation in LINEAR_PROBES:

        def learn(fraction: float = evaluation.labels) -> LinearProbe:
            subset = None if fraction == 1 else draw_labels(train.keys, train.labels, fraction=fraction, seed=seed)
            return linear_probe(train, test, protocol=protocol, subset=subset, seed=seed, device=device)

        results.measure(f"{prefix}{evaluation.key}", learn)


def check_writable(name: str, folder: StudentFolder | None, *, data: str | Path, train_split: str, split: str) -> None:
    """Check that scores of these images may stand in a student's card, which speaks of its recipe's images.

    Args:
        name: as the user named the student.
        folder: the student's; None of another model.
        data: shards that it is to be scored on.
        train_split: of them.
        split: of them.

    Raises:
        WeightsError: there is no published folder on this disk, or the images are others.
    """
    if folder is None or folder.checkpoint is not None or folder.untrusted:
        raise WeightsError(
            f"{name} is no published folder on this disk, so nothing can be written into it. Leave --write out."
        )
    recipe = read_recipe(folder.path / "recipe.yaml")
    metrics = read_metrics(folder.path)
    if (train_split, split) != (recipe.data.train_split, recipe.data.val_split):
        raise WeightsError(
            f"The card of {name} speaks of the splits {recipe.data.train_split!r} and {recipe.data.val_split!r} of its "
            f"recipe, not of {train_split!r} and {split!r}. Evaluate those, or leave --write out."
        )
    if "shards" in metrics and open_shards(data, split=train_split).fingerprint != metrics["shards"]:
        raise WeightsError(
            f"{data} ({train_split}) is not what {name} was trained on, of which its card speaks. Leave --write out."
        )


def write_results(results: Results, folder: Path) -> None:
    """Add scores to a published folder's metrics.json, with rounded top-1 accuracies in `summary`; rewrite its card.

    Args:
        results: what was measured.
        folder: the published folder.
    """
    metrics = {**read_metrics(folder), **results.to_dict()}
    top1 = {
        f"{key}_top1": round(score.top1, 2)
        for key, score in results.scores.items()
        if isinstance(score, ZeroShot | KNN | LinearProbe)
    }
    metrics["summary"] = {**(metrics.get("summary") or {}), **top1}
    write_metrics(folder, metrics)
    rewrite_card(folder)
