"""`lgd-timm evaluate zero-shot | knn | linear-probe | fine-tune | calibration | agreement | all`.

Each command calls the function of `lgd_timm.evaluate` that measures it and prints the score.
"""

from __future__ import annotations

import argparse
from dataclasses import fields
from typing import TYPE_CHECKING, Any

from ..errors import LGDError, TeacherError
from ..utils.schema import BatchSize, Count, Pixels, Rate, Seed, Size, SomeShare, Temperature, Workers
from .common import Command, Parser, add_command, add_device, add_group, number, print_json

if TYPE_CHECKING:
    from ..data.subset import Subset
    from ..evaluate.feature_splits import FeatureSplits
    from ..evaluate.models import Model
    from ..evaluate.zero_shot_model import ZeroShotModel
    from .common import Commands

STUDENT = "published folder, hub://ORG/NAME[@REV], name as lgd_mobilenetv2, run folder"
ANY_MODEL = f"{STUDENT}; also a timm name, local-dir:FOLDER, hf-hub:ORG/NAME, FILE.safetensors"
TEXTS = {
    "zero-shot": "zero-shot accuracy, the teacher's beside it",
    "knn": "weighted k-NN on frozen features",
    "linear-probe": "a linear classifier on frozen features",
    "fine-tune": "train the whole model on all labels, or on some",
    "calibration": "whether zero-shot confidences can be believed",
    "agreement": "how often a student answers as its teacher does",
    "all": "all of these but fine-tune, where the model allows",
}


def add_evaluate(commands: Commands) -> None:
    """Add the parsers."""
    _, evaluations = add_group(commands, "evaluate", "evaluate a model", metavar="WHAT")
    for name, text in TEXTS.items():
        parser = add_command(evaluations, name, _evaluate, text)
        parser.set_defaults(what=name)
        asks = name in ("zero-shot", "calibration", "agreement")
        teacher = ", or a YAML recipe: its teacher" if name == "zero-shot" else ""
        parser.add_argument("model", help=STUDENT + teacher if asks else ANY_MODEL)
        _add_data(parser, batch_size=64 if name == "fine-tune" else 256)
        (_add_names if asks else _add_weights)(parser)
        if name not in ("zero-shot", "agreement"):
            parser.add_argument("--train-split", default="train", help="split whose labels are used")
            parser.add_argument(
                "--seed", type=number(Seed), default=0, help="of which labels are used, and of random weights"
            )
        if name in _ADD_OPTIONS:
            _ADD_OPTIONS[name](parser)


def _add_data(parser: Parser, *, batch_size: int) -> None:
    """Add what every evaluation is told."""
    parser.add_argument("--data", required=True, help="shard folder, or address of one")
    parser.add_argument("--split", default="val", help="split that is scored")
    parser.add_argument("--batch-size", type=number(BatchSize), default=batch_size, metavar="N", help="images a batch")
    parser.add_argument(
        "--workers", type=number(Workers), default=0, metavar="N", help="processes that load images; 0: none"
    )
    add_device(parser)
    parser.add_argument("--json", action="store_true", help="print JSON, per-class accuracies included")


def _add_names(parser: Parser) -> None:
    """Add the names that a zero-shot model is asked about."""
    parser.add_argument(
        "--vocabulary", help="names in label order, or a file (default: what its run was scored on, else its own)"
    )
    parser.add_argument(
        "--templates", default="none", help="prompt templates for --vocabulary: none, simple, openai, a file"
    )


def _add_weights(parser: Parser) -> None:
    """Add what a model that is no student may need to be told."""
    parser.add_argument(
        "--random-weights", action="store_true", help="a timm model before any training, for comparison"
    )
    parser.add_argument("--model-name", metavar="NAME", help="timm's name of the architecture, for FILE.safetensors")
    parser.add_argument(
        "--image-size", type=number(Pixels), metavar="PIXELS", help="of a model that is no student (default: timm's)"
    )


def _add_knn(parser: Parser) -> None:
    parser.add_argument(
        "--k",
        type=number(Count),
        nargs="+",
        default=[20],
        metavar="N",
        help="neighbours; of several, the first is reported",
    )
    parser.add_argument(
        "--temperature", type=number(Temperature), default=0.07, help="of the neighbours' weights, exp(cosine / T)"
    )


def _add_subset(parser: Parser) -> None:
    labels = parser.add_mutually_exclusive_group()
    labels.add_argument(
        "--fraction",
        type=number(SomeShare),
        help="learn from this share of each class's labels, such as 0.01 (default: all)",
    )
    labels.add_argument(
        "--per-class", type=number(Count), metavar="N", help="learn from N images of each class (default: all)"
    )
    labels.add_argument(
        "--subset", metavar="FILE", help="learn from the keys in a JSON file of `lgd-timm shards subset`"
    )


def _add_linear_probe(parser: Parser) -> None:
    parser.add_argument("--protocol", default="lbfgs", help="lbfgs, ridge, or the paper's sgd")
    parser.add_argument(
        "--strength", type=number(Rate), help="factor of the L2 penalty (default: chosen on held-out training images)"
    )
    parser.add_argument(
        "--sgd-batch-size",
        type=number(BatchSize),
        default=256,
        metavar="N",
        help="images a batch of protocol sgd, whose learning rate is 30 * N / 256",
    )
    _add_subset(parser)


def _add_fine_tune(parser: Parser) -> None:
    _add_subset(parser)
    parser.add_argument("--epochs", type=number(Count), default=30, metavar="N", help="passes over the training images")
    parser.add_argument(
        "--warmup-epochs", type=number(Size), default=1, metavar="N", help="epochs in which the learning rate rises"
    )
    parser.add_argument("--optimizer", default="adamw", help="any of timm's")
    parser.add_argument("--lr", type=number(Rate), default=5e-4, help="peak learning rate of the backbone")
    parser.add_argument("--head-lr", type=number(Rate), default=5e-3, help="peak learning rate of the classifier")
    parser.add_argument(
        "--layer-decay",
        type=number(SomeShare),
        help="share of the next layer's learning rate that a layer gets, such as 0.75 (default: 1)",
    )
    parser.add_argument("--weight-decay", type=number(Rate), default=0.05, help="of the optimizer")
    parser.add_argument("--augmentation", default="light", help="of the training views: none, flip, light, mocov2")


def _add_all(parser: Parser) -> None:
    parser.add_argument("--k", type=number(Count), default=20, metavar="N", help="neighbours")
    parser.add_argument("--protocol", default="lbfgs", help="of the linear probes: lbfgs, ridge, or the paper's sgd")
    parser.add_argument(
        "--write", action="store_true", help="put the scores into the published folder's metrics.json and its card"
    )


_ADD_OPTIONS = {
    "knn": _add_knn,
    "linear-probe": _add_linear_probe,
    "fine-tune": _add_fine_tune,
    "all": _add_all,
}


def _evaluate(options: argparse.Namespace) -> int | None:
    from ..data import open_shards
    from ..utils.device import keep_memory

    for split in dict.fromkeys((getattr(options, "train_split", options.split), options.split)):
        open_shards(options.data, split=split)  # what is not there is said before a model is loaded
    keep_memory()
    return _COMMANDS[options.what](options)


def _zero_shot(options: argparse.Namespace) -> None:
    from ..evaluate.zero_shot_model import evaluate_zero_shot

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
        print_json({label: score.to_dict() if score else None for label, score in scores.items()})
        return
    for label, score in scores.items():
        print(f"{label:8} {score or 'not measured: no stored embeddings of these images by its teacher'}")
    first = next(score for score in scores.values() if score)
    for name, share in first.per_class.items():
        print(f"  {share:6.2f} %  {name}")


def _knn(options: argparse.Namespace) -> None:
    from ..evaluate.knn import knn

    splits = _splits(options, _model(options))
    score = knn(splits.train, splits.test, k=options.k, temperature=options.temperature, device=splits.resolved_device)
    _print(options, score)
    if not options.json and len(options.k) > 1:
        for k, top1 in score.top1_of_k.items():
            print(f"  k = {k}: top-1 {top1:.2f} %")


def _linear_probe(options: argparse.Namespace) -> None:
    from ..evaluate.linear_probe import linear_probe

    splits = _splits(options, _model(options))
    score = linear_probe(
        splits.train,
        splits.test,
        protocol=options.protocol,
        subset=_subset(options),
        strength=options.strength,
        batch_size=options.sgd_batch_size,
        seed=options.seed,
        device=splits.resolved_device,
    )
    _print(options, score)


def _fine_tune(options: argparse.Namespace) -> None:
    from ..data import open_shards
    from ..evaluate.fine_tune import FineTuning, fine_tune

    settings = FineTuning(**{field.name: getattr(options, field.name) for field in fields(FineTuning)})
    splits = _splits(options, _model(options))
    score = fine_tune(
        splits.model.network,
        shards=open_shards(options.data, split=options.train_split),
        test=splits.dataset(options.split),
        subset=_subset(options),
        settings=settings,
        workers=options.workers,
        device=splits.resolved_device,
    )
    _print(options, score)


def _calibration(options: argparse.Namespace) -> None:
    from ..evaluate.calibration import calibrate, teacher_calibration
    from ..evaluate.suite import NO_TEACHER_EMBEDDINGS

    model, splits = _zero_shot_model(options)
    student = calibrate(model, splits.test, splits.train, seed=options.seed)
    train, test = splits.teachers(model.teacher_fingerprint)
    teacher = None if test is None else teacher_calibration(model, test, train, seed=options.seed)
    if options.json:
        print_json({"student": student.to_dict(), "teacher": teacher.to_dict() if teacher else None})
        return
    print(f"student  {student}")
    print(f"teacher  {teacher or f'not measured. {NO_TEACHER_EMBEDDINGS}'}")


def _agreement(options: argparse.Namespace) -> None:
    from ..evaluate.suite import NO_TEACHER_EMBEDDINGS, agreement_score

    model, splits = _zero_shot_model(options)
    teacher = splits.teacher(splits.test, options.split, fingerprint=model.teacher_fingerprint)
    if teacher is None:
        raise TeacherError(
            f"{options.model} can't be compared with its teacher on {options.data}. {NO_TEACHER_EMBEDDINGS}"
        )
    _print(options, agreement_score(model, splits.test, teacher))


def _all(options: argparse.Namespace) -> None:
    from ..evaluate.suite import evaluate_all

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
        print_json({**results.to_dict(), "left_out": results.left_out})
        return
    for line in results.lines():
        print(line)


def _model(options: argparse.Namespace) -> Model:
    from ..evaluate.models import find_model

    return find_model(
        options.model,
        pretrained=not options.random_weights,
        architecture=options.model_name,
        image_size=options.image_size,
        seed=options.seed,
    )


def _splits(options: argparse.Namespace, model: Model) -> FeatureSplits:
    from ..evaluate.feature_splits import FeatureSplits

    return FeatureSplits(
        model,
        options.data,
        getattr(options, "train_split", "train"),  # which not every evaluation needs
        options.split,
        batch_size=options.batch_size,
        workers=options.workers,
        device=options.device,
    )


def _zero_shot_model(options: argparse.Namespace) -> tuple[ZeroShotModel, FeatureSplits]:
    """A student and its names. Raises: LGDError for what has no teacher, or other names than the data have classes."""
    from ..data import open_shards
    from ..data.vocabulary import load_vocabulary
    from ..evaluate.models import Model
    from ..evaluate.zero_shot_model import bank_folders, match_model, match_vocabulary, open_zero_shot_model
    from ..students.model import Student

    names = _names(options)
    vocabulary = None if names is None else load_vocabulary(names, templates=options.templates)
    shards = open_shards(options.data, split=options.split)
    if vocabulary is not None:  # before a model is loaded
        vocabulary = match_vocabulary(shards, vocabulary, name=options.model)
    model = open_zero_shot_model(options.model, vocabulary, folders=bank_folders(options.data))
    if not isinstance(model.encoder, Student):
        raise LGDError(f"{options.model} is a recipe, and its teacher can only be scored zero-shot. Name a student.")
    splits = _splits(options, Model(options.model, model.encoder, model.views))
    if vocabulary is None:
        model = match_model(shards, model, name=options.model)
    return model, splits


def _names(options: argparse.Namespace) -> Any:
    from ..config.reader import read_value

    return None if options.vocabulary is None else read_value("vocabulary", options.vocabulary)


def _subset(options: argparse.Namespace) -> Subset | None:
    """The labels that may be used; None: all."""
    from ..data import open_shards
    from ..data.subset import draw_labels, labelled_keys, read_subset

    if options.subset is not None:
        return read_subset(options.subset)
    if options.fraction is None and options.per_class is None:
        return None
    keys, labels = labelled_keys(open_shards(options.data, split=options.train_split))
    return draw_labels(keys, labels, fraction=options.fraction, per_class=options.per_class, seed=options.seed)


def _print(options: argparse.Namespace, score: Any) -> None:
    if options.json:
        print_json(score.to_dict())
    else:
        print(score)


_COMMANDS: dict[str, Command] = {
    "zero-shot": _zero_shot,
    "knn": _knn,
    "linear-probe": _linear_probe,
    "fine-tune": _fine_tune,
    "calibration": _calibration,
    "agreement": _agreement,
    "all": _all,
}
