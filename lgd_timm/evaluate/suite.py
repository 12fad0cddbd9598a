"""Every evaluation that a model allows, in one go; and, for a published folder, into its metrics and its card."""

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
from ..students.model import Student
from .agreement import Agreement, agreement
from .calibration import Calibration, calibrate, similarity_logits, teacher_calibration
from .feature_splits import FeatureSplits
from .features import Features, class_count
from .knn import KNN, knn
from .linear_probe import LinearProbe, linear_probe
from .models import StudentFolder, find_model, student_folder
from .zero_shot import Tally, ZeroShot
from .zero_shot_model import ZeroShotModel, bank_folders, check_asked, student_subject

Score = ZeroShot | KNN | LinearProbe | Calibration | Agreement

TITLES = {evaluation.key: evaluation.title for evaluation in EVALUATIONS}
UNTAUGHT = "Its teacher's embeddings of these images are not stored: lgd-timm teach, with views.augmentation none."


@dataclass
class Results:
    """Scores by their keys in metrics.json, the teacher's with `teacher_` in front; and what was left out, with the reason."""

    scores: dict[str, Score] = field(default_factory=dict)
    left_out: dict[str, str] = field(default_factory=dict)
    names: tuple[str, ...] | None = None  # that were asked zero-shot, where they are not the student's own

    def to_dict(self) -> dict[str, Any]:
        """Plain data, as it stands in metrics.json."""
        plain = {key: score.to_dict() for key, score in self.scores.items()}
        for key in ("zero_shot", "teacher_zero_shot"):
            if key in plain and self.names is not None:
                plain[key]["names"] = list(self.names)
        return plain

    def lines(self) -> list[str]:
        """For people: a table of accuracies, the other scores, and what was left out."""
        rows = [f"{'':30} {'top-1':>8} {'top-5':>8} {'teacher':>8} {'chance':>8}"]
        said = []
        for key, score in self.scores.items():
            if isinstance(score, Calibration | Agreement):
                said.append(f"{key.replace('_', ' ')}: {score}")
            elif not key.startswith("teacher_"):
                teacher = self.scores.get(f"teacher_{key}")
                values = (score.top1, score.top5, getattr(teacher, "top1", None), score.chance)
                cells = " ".join(f"{'-' if value is None else f'{value:.2f} %':>8}" for value in values)
                rows.append(f"{TITLES[key]:30} {cells}")
        return [
            *rows,
            *said,
            *(f"left out: {key.replace('_', ' ')}: {reason}" for key, reason in self.left_out.items()),
        ]

    def measure(self, key: str, function: Callable[[], Score]) -> None:
        """Note a score, or the reason why it can't be had."""
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
    """Zero-shot, k-NN, linear probes on 100, 10 and 1 % of the labels, calibration, agreement with the teacher.

    Every image of both splits is shown to the model once, out of `datasets` where those are given by split (of the model's views),
    and none is left out. `seed` draws the labels. `pretrained`, `architecture`, `image_size`: as of `find_model`. What a model or
    the data do not allow is in `left_out`, with its reason. `write`: also into the published folder's metrics.json and card.
    Raises: LGDError for a model or data that can't be used at all, and where `write` would claim what is not so.
    """
    name = str(model)
    found = find_model(name, pretrained=pretrained, architecture=architecture, image_size=image_size, seed=seed)
    folder = student_folder(name) if isinstance(found.network, Student) else None
    if write:
        check_writable(name, folder, data=data, train_split=train_split, split=split)
    bench = FeatureSplits(
        found, data, train_split, split, datasets or {}, batch_size=batch_size, workers=workers, device=device
    )
    results = Results()
    subject = _asked(results, bench, folder)
    teachers: Sequence[Features | None] = (None, None)
    if subject is not None:
        teachers = bench.teachers(subject.teacher_fingerprint)
        ask(results, subject, bench.train, bench.test, teachers=teachers, seed=seed)
    options: dict[str, Any] = {"protocol": protocol, "k": k, "seed": seed, "device": bench.place}
    probe(results, "", bench.train, bench.test, **options)
    if teachers[0] is not None and teachers[1] is not None:
        probe(results, "teacher_", teachers[0], teachers[1], **options)
    if write:
        assert folder is not None
        write_results(results, folder.path)
    return results


def _asked(results: Results, bench: FeatureSplits, folder: StudentFolder | None) -> ZeroShotModel | None:
    """The model with the names that it is asked about; None, and the reason noted, where it can't be asked."""
    name = bench.model.name
    reason = f"{name} has no projector into a teacher's space. Distil it first (lgd-timm distill)."
    if folder is not None:
        try:
            subject = student_subject(folder, None, folders=bank_folders(bench.data))
            check_asked(bench.dataset(bench.test_split), subject, model=name)
            results.names = subject.vocabulary.names if subject.other_names else None
            return subject
        except (LGDError, MissingExtra) as error:
            reason = str(error)
    results.left_out.update(dict.fromkeys(("zero_shot", "calibration", "agreement"), reason))
    return None


def ask(
    results: Results,
    subject: ZeroShotModel,
    train: Features,
    test: Features,
    *,
    teachers: Sequence[Features | None] = (None, None),
    seed: int = 0,
) -> None:
    """Zero-shot, calibration and agreement of a student; of its teacher too where its embeddings of train and test are given."""
    results.measure("zero_shot", lambda: zero_shot_score(subject, test))
    results.measure("calibration", lambda: calibrate(subject, test, train, seed=seed))
    taught_train, taught = teachers
    if taught is None:
        results.left_out.update(dict.fromkeys(("teacher_zero_shot", "teacher_calibration", "agreement"), UNTAUGHT))
        return
    results.measure("teacher_zero_shot", lambda: zero_shot_score(subject, taught))
    results.measure("teacher_calibration", lambda: teacher_calibration(subject, taught, taught_train, seed=seed))
    results.measure("agreement", lambda: agreement_score(subject, test, taught))


def zero_shot_score(subject: ZeroShotModel, features: Features) -> ZeroShot:
    """`zero_shot` from embeddings that are there already. Raises: ShardError, VocabularyError for labels without a name."""
    names = subject.vocabulary.names
    if class_count(features) > len(names):
        raise VocabularyError(
            f"{features.name} has label {int(features.labels.max())}, the vocabulary only {len(names)} names."
        )
    tally = Tally(names)
    tally.add(similarity_logits(subject, features, temperature=1.0)[0], features.labels)
    return tally.score(bad=len(features.bad))


def agreement_score(subject: ZeroShotModel, student: Features, teacher: Features) -> Agreement:
    """`agreement` at the temperatures of the student's recipe."""
    assert student.embeddings is not None
    assert teacher.embeddings is not None
    assert subject.student_temperature is not None
    return agreement(
        student.embeddings,
        teacher.embeddings,
        subject.bank,
        student.labels,
        student_temperature=subject.student_temperature,
        teacher_temperature=subject.teacher_temperature,
    )


def probe(
    results: Results, prefix: str, train: Features, test: Features, *, protocol: str, k: int, seed: int, device: str
) -> None:
    """k-NN and linear probes of frozen features; keys begin with `prefix`."""
    results.measure(f"{prefix}knn", lambda: knn(train, test, k=k, device=device))
    for evaluation in LINEAR_PROBES:

        def learn(fraction: float = evaluation.labels) -> LinearProbe:
            subset = None if fraction == 1 else draw_labels(train.keys, train.labels, fraction=fraction, seed=seed)
            return linear_probe(train, test, protocol=protocol, subset=subset, seed=seed, device=device)

        results.measure(f"{prefix}{evaluation.key}", learn)


def check_writable(name: str, folder: StudentFolder | None, *, data: str | Path, train_split: str, split: str) -> None:
    """A card says on which images its scores were measured: those of its recipe. Raises: WeightsError where they would be others."""
    if folder is None or folder.checkpoint is not None or folder.travelled:
        raise WeightsError(
            f"{name} is no published folder on this disk, so nothing can be written into it. Leave --write out."
        )
    recipe = read_recipe(folder.path / "recipe.yaml")
    metrics = read_metrics(folder.path)
    if (train_split, split) != (recipe.data.train_split, recipe.data.val_split):
        raise WeightsError(
            f"The card of {name} speaks of the splits {recipe.data.train_split!r} and {recipe.data.val_split!r} of its recipe, not of "
            f"{train_split!r} and {split!r}. Evaluate those, or leave --write out."
        )
    if "shards" in metrics and open_shards(data, split=train_split).fingerprint != metrics["shards"]:
        raise WeightsError(
            f"{data} ({train_split}) is not what {name} was trained on, of which its card speaks. Leave --write out."
        )


def write_results(results: Results, folder: Path) -> None:
    """Put scores into a published folder's metrics.json, rounded top-1 accuracies into its `summary`, and write its card anew."""
    metrics = {**read_metrics(folder), **results.to_dict()}
    top1 = {
        f"{key}_top1": round(score.top1, 2)
        for key, score in results.scores.items()
        if isinstance(score, ZeroShot | KNN | LinearProbe)
    }
    metrics["summary"] = {**(metrics.get("summary") or {}), **top1}
    write_metrics(folder, metrics)
    rewrite_card(folder)
