"""Read and write `metrics.json`, and say what its scores are called."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Evaluation:
    """One sort of evaluation: its key in `metrics.json`, where `teacher_<key>` is the teacher's; how people and the Hub name it."""

    key: str
    title: str
    task: str


EVALUATIONS = (
    Evaluation("zero_shot", "zero-shot", "zero-shot-image-classification"),
    Evaluation("knn", "k-NN", "image-classification"),
    Evaluation("linear_probe", "linear probe", "image-classification"),
    Evaluation("linear_probe_10", "linear probe, 10 % of labels", "image-classification"),
    Evaluation("linear_probe_1", "linear probe, 1 % of labels", "image-classification"),
)


SCORES = {"top1": "top-1", "top5": "top-5"}
