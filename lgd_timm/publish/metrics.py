"""`metrics.json` of a published folder: read it, write it, and the table of evaluations whose scores it holds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypedDict

from ..errors import RecipeError, WeightsError
from ..utils.files import write_json
from ..utils.schema import Pixels, build
from ..utils.typed_json import JSONError, read_json

FILE = "metrics.json"


@dataclass(frozen=True)
class Evaluation:
    """One evaluation. Its scores stand under `key` in `metrics.json`, the teacher's under `teacher_<key>`."""

    key: str
    title: str  # in a sentence or a row of the card
    heading: str  # over a column or a figure of the report
    command: str  # what measures it: the words after `lgd-timm`
    task: str | None = None  # the Hub's name of the task; None: it has none for this
    labels: float = 0.0  # share of the training split's labels that it learns from
    score: str = "top1"  # the number of its scores that stands for it, in percent


EVALUATIONS = (
    Evaluation("zero_shot", "zero-shot", "Zero-shot", "evaluate zero-shot", task="zero-shot-image-classification"),
    Evaluation("knn", "k-NN", "k-NN", "evaluate knn", task="image-classification", labels=1.0),
    Evaluation(
        "linear_probe",
        "linear probe",
        "Linear probe 100 %",
        "evaluate linear-probe",
        task="image-classification",
        labels=1.0,
    ),
    Evaluation(
        "linear_probe_10",
        "linear probe, 10 % of labels",
        "Linear probe 10 %",
        "evaluate linear-probe --fraction 0.1",
        task="image-classification",
        labels=0.1,
    ),
    Evaluation(
        "linear_probe_1",
        "linear probe, 1 % of labels",
        "Linear probe 1 %",
        "evaluate linear-probe --fraction 0.01",
        task="image-classification",
        labels=0.01,
    ),
)  # those that measure an accuracy
LINEAR_PROBES = tuple(evaluation for evaluation in EVALUATIONS if evaluation.key.startswith("linear_probe"))
CALIBRATION = Evaluation("calibration", "calibration", "ECE", "evaluate calibration", score="ece")

SCORES = {"top1": "top-1", "top5": "top-5"}  # accuracies of an evaluation, in percent -> as people read them


def read_metrics(folder: str | Path) -> dict[str, Any]:
    """Read a folder's `metrics.json`.

    Args:
        folder: a published folder, or one that may become one.

    Returns:
        Its content as plain data; an empty dictionary where the folder has no such file.

    Raises:
        WeightsError: the file is not JSON, or not an object.
    """
    path = Path(folder) / FILE
    if not path.is_file():
        return {}
    try:
        metrics: dict[str, Any] = read_json(path, _Metrics)
        for evaluation in (*EVALUATIONS, CALIBRATION):
            for key in (evaluation.key, f"teacher_{evaluation.key}"):
                metrics |= {key: build(_Scores | None, metrics[key], where=key)} if key in metrics else {}
    except (OSError, JSONError, RecipeError) as error:
        raise WeightsError(f"{path} can't be read ({error}). Pull or save the folder again.") from error
    return metrics


class _Scores(TypedDict, total=False):
    top1: float
    top5: float
    chance: float
    ece: float
    per_class: dict[str, float | None] | None
    samples: int


class _Teacher(TypedDict, total=False):
    name: str
    teacher: dict[str, Any]


class _Input(TypedDict, total=False):
    size: Pixels
    mean: list[float]
    std: list[float]
    interpolation: str


_Sums = TypedDict(
    "_Sums", {"config.json": str, "model.safetensors": str, "lgd.safetensors": str}, total=False
)  # of the files beside it, since they were saved


class _Metrics(TypedDict, total=False):
    summary: dict[str, Any]  # printed by who lists it, escaped
    teacher: _Teacher
    training: dict[str, Any]
    input: _Input
    agreement: dict[str, Any] | None
    notes: Any
    shards: str
    sha256: _Sums


def write_metrics(folder: str | Path, metrics: Mapping[str, Any]) -> None:
    """Write a folder's `metrics.json`, whole or not at all.

    Args:
        folder: where the file goes.
        metrics: all of its content, as JSON holds it.
    """
    write_json(Path(folder) / FILE, dict(metrics))
