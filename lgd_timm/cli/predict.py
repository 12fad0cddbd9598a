"""`lgd-timm predict`: name pictures."""

from __future__ import annotations

import argparse
import csv
import sys
from collections.abc import Iterable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import ShardError
from ..utils.schema import BatchSize, Count
from .common import add_command, add_device, number, print_json

if TYPE_CHECKING:
    from ..evaluate.predict import Classifier, Prediction
    from .common import Commands


def add_predict(commands: Commands) -> None:
    """Add the parser."""
    parser = add_command(commands, "predict", _predict, "name pictures")
    parser.add_argument(
        "model", help="published folder, run folder, hub://ORG/NAME[@REV], name as lgd_mobilenetv2, any timm classifier"
    )
    parser.add_argument(
        "pictures", nargs="+", metavar="PICTURES", help="files, folders, patterns; -: paths from standard input"
    )
    parser.add_argument("--top-k", type=number(Count), default=5, metavar="K", help="names for each picture")
    parser.add_argument("--names", help="other names: a text file, '[a, b]', folder:PATH, ... (default: the model's)")
    parser.add_argument(
        "--templates", default="none", help="prompt templates for --names: none, simple, openai, a file"
    )
    kind = parser.add_mutually_exclusive_group()
    kind.add_argument("--csv", metavar="FILE", help="write a row a picture to this file (default: print lines)")
    kind.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--draw", metavar="FILE", help="write a contact sheet, a PNG (default: none)")
    parser.add_argument(
        "--batch-size", type=number(BatchSize), default=32, help="pictures that are classified together"
    )
    add_device(parser)


def _predict(options: argparse.Namespace) -> int:
    from ..evaluate.contact_sheet import draw_sheet
    from ..evaluate.predict import find_pictures, load

    paths = find_pictures(_sources(options.pictures))
    classifier = load(options.model, names=options.names, templates=options.templates, device=options.device)
    predictions = list(_predictions(classifier, paths, top_k=options.top_k, batch_size=options.batch_size))
    if options.json:
        print_json([asdict(prediction) for prediction in predictions])
    elif options.csv:
        _write_csv(options.csv, predictions)
    else:
        for prediction in predictions:
            print(_line(prediction))
    if options.draw and predictions:
        draw_sheet(predictions, options.draw)
    unread = len(paths) - len(predictions)
    if unread:
        print(f"lgd-timm: {unread} of {len(paths)} pictures could not be read", file=sys.stderr)
    return 0 if predictions else 1


def _sources(words: Iterable[str]) -> Iterator[str]:
    for word in words:
        if word == "-":
            yield from (line for line in sys.stdin.read().splitlines() if line.strip())
        else:
            yield word


def _predictions(classifier: Classifier, paths: list[str], *, top_k: int, batch_size: int) -> Iterator[Prediction]:
    """A batch at a time; where one picture of it can't be read, one by one, so that only that one is left out."""
    for start in range(0, len(paths), batch_size):
        batch = paths[start : start + batch_size]
        try:
            yield from classifier.predict(batch, top_k=top_k, batch_size=batch_size)
        except ShardError:
            yield from _one_by_one(classifier, batch, top_k=top_k)


def _one_by_one(classifier: Classifier, paths: list[str], *, top_k: int) -> Iterator[Prediction]:
    for path in paths:
        try:
            yield from classifier.predict(path, top_k=top_k)
        except ShardError as error:
            print(f"lgd-timm: {error}", file=sys.stderr)


def _line(prediction: Prediction) -> str:
    pairs = zip(prediction.names, prediction.probabilities, strict=True)
    return f"{prediction.picture}: {', '.join(f'{name} {100 * share:.1f} %' for name, share in pairs)}"


def _write_csv(path: str, predictions: list[Prediction]) -> None:
    from ..utils.files import atomic_file

    count = max((len(prediction.names) for prediction in predictions), default=0)
    columns = [f"{what}_{rank}" for rank in range(1, count + 1) for what in ("name", "probability")]
    with atomic_file(Path(path)) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        rows = csv.writer(file)
        rows.writerow(["picture", *columns])
        for prediction in predictions:
            pairs = zip(prediction.names, prediction.probabilities, strict=True)
            rows.writerow([prediction.picture, *(cell for pair in pairs for cell in pair)])
