"""`lgd-timm evaluate ...`: what each command calls and prints. Its options are in `cli.py`, which this need not slow down."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from dataclasses import fields
from typing import Any

import torch

from ..config.reader import read_value
from ..data import open_shards
from ..data.subset import Subset, draw_labels, keys_by_class, read_subset
from ..data.vocabulary import load_vocabulary
from ..errors import LGDError, TeacherError
from ..evaluate.calibration import calibrate, teacher_calibration
from ..evaluate.feature_splits import FeatureSplits
from ..evaluate.fine_tune import FineTuning, fine_tune
from ..evaluate.knn import knn
from ..evaluate.linear_probe import linear_probe
from ..evaluate.models import Model, find_model
from ..evaluate.suite import UNTAUGHT, agreement_score, evaluate_all
from ..evaluate.zero_shot_model import (
    ZeroShotModel,
    bank_folders,
    check_asked,
    evaluate_zero_shot,
    open_zero_shot_model,
)
from ..students.model import Student


def _zero_shot(options: argparse.Namespace) -> None:
    scores = evaluate_zero_shot(
        options.model,
        data=options.data,
        split=options.split,
        vocabulary=_names(options),
        templates=options.templates,
        batch_size=options.batch_size,
        workers=options.workers,
        device=options.device,
    )
    if options.json:
        _print_json({who: score.to_dict() if score else None for who, score in scores.items()})
        return
    for who, score in scores.items():
        print(f"{who:8} {score or 'not measured: no stored embeddings of these images by its teacher'}")
    first = next(score for score in scores.values() if score)
    for name, share in first.per_class.items():
        print(f"  {share:6.2f} %  {name}")


def _knn(options: argparse.Namespace) -> None:
    bench = _bench(options, _model(options))
    score = knn(bench.train, bench.test, k=options.k, temperature=options.temperature, device=bench.place)
    _print(options, score)
    if not options.json and len(options.k) > 1:
        for k, top1 in score.top1_of_k.items():
            print(f"  k = {k}: top-1 {top1:.2f} %")


def _linear_probe(options: argparse.Namespace) -> None:
    bench = _bench(options, _model(options))
    score = linear_probe(
        bench.train,
        bench.test,
        protocol=options.protocol,
        subset=_subset(options),
        strength=options.strength,
        batch_size=options.sgd_batch_size,
        seed=options.seed,
        device=bench.place,
    )
    _print(options, score)


def _fine_tune(options: argparse.Namespace) -> None:
    settings = FineTuning(**{field.name: getattr(options, field.name) for field in fields(FineTuning)})
    bench = _bench(options, _model(options))
    score = fine_tune(
        bench.model.network,
        shards=open_shards(options.data, split=options.train_split),
        test=bench.dataset(options.split),
        subset=_subset(options),
        settings=settings,
        workers=options.workers,
        device=bench.place,
    )
    _print(options, score)


def _calibration(options: argparse.Namespace) -> None:
    subject, bench = _asked(options)
    student = calibrate(subject, bench.test, bench.train, seed=options.seed)
    train, test = bench.teachers(subject.teacher_fingerprint)
    teacher = None if test is None else teacher_calibration(subject, test, train, seed=options.seed)
    if options.json:
        _print_json({"student": student.to_dict(), "teacher": teacher.to_dict() if teacher else None})
        return
    print(f"student  {student}")
    print(f"teacher  {teacher or f'not measured. {UNTAUGHT}'}")


def _agreement(options: argparse.Namespace) -> None:
    subject, bench = _asked(options)
    teacher = bench.teacher(bench.test, options.split, fingerprint=subject.teacher_fingerprint)
    if teacher is None:
        raise TeacherError(f"{options.model} can't be compared with its teacher on {options.data}. {UNTAUGHT}")
    _print(options, agreement_score(subject, bench.test, teacher))


def _all(options: argparse.Namespace) -> None:
    results = evaluate_all(
        options.model,
        data=options.data,
        train_split=options.train_split,
        split=options.split,
        protocol=options.protocol,
        k=options.k,
        seed=options.seed,
        pretrained=not options.random_weights,
        architecture=options.model_name,
        image_size=options.image_size,
        batch_size=options.batch_size,
        workers=options.workers,
        device=options.device,
        write=options.write,
    )
    if options.json:
        _print_json({**results.to_dict(), "left_out": results.left_out})
        return
    for line in results.lines():
        print(line)


def _model(options: argparse.Namespace) -> Model:
    return find_model(
        options.model,
        pretrained=not options.random_weights,
        architecture=options.model_name,
        image_size=options.image_size,
        seed=options.seed,
    )


def _bench(options: argparse.Namespace, model: Model) -> FeatureSplits:
    return FeatureSplits(
        model,
        options.data,
        getattr(options, "train_split", "train"),  # which not every evaluation needs
        options.split,
        batch_size=options.batch_size,
        workers=options.workers,
        device=options.device,
    )


def _asked(options: argparse.Namespace) -> tuple[ZeroShotModel, FeatureSplits]:
    """A student and its names. Raises: LGDError for what has no teacher, or other names than the data have classes."""
    names = _names(options)
    vocabulary = None if names is None else load_vocabulary(names, templates=options.templates)
    subject = open_zero_shot_model(options.model, vocabulary, folders=bank_folders(options.data))
    if not isinstance(subject.encoder, Student):
        raise LGDError(f"{options.model} is a recipe, and its teacher can only be scored zero-shot. Name a student.")
    bench = _bench(options, Model(options.model, subject.encoder, subject.views))
    check_asked(bench.dataset(options.split), subject, model=options.model)
    return subject, bench


def _names(options: argparse.Namespace) -> Any:
    return None if options.vocabulary is None else read_value("vocabulary", options.vocabulary)


def _subset(options: argparse.Namespace) -> Subset | None:
    """The labels that may be used; None: all."""
    if options.subset is not None:
        return read_subset(options.subset)
    if options.fraction is None and options.per_class is None:
        return None
    classes = keys_by_class(open_shards(options.data, split=options.train_split))
    keys = [key for keys in classes.values() for key in keys]
    labels = torch.tensor([label for label, keys in classes.items() for _ in keys])
    return draw_labels(keys, labels, fraction=options.fraction, per_class=options.per_class, seed=options.seed)


def _print(options: argparse.Namespace, score: Any) -> None:
    if options.json:
        _print_json(score.to_dict())
    else:
        print(score)


def _print_json(value: Any) -> None:
    print(json.dumps(value, indent=1, ensure_ascii=False))


COMMANDS: dict[str, Callable[[argparse.Namespace], None]] = {
    "zero-shot": _zero_shot,
    "knn": _knn,
    "linear-probe": _linear_probe,
    "fine-tune": _fine_tune,
    "calibration": _calibration,
    "agreement": _agreement,
    "all": _all,
}
