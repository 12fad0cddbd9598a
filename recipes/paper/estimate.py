#!/usr/bin/env python3
"""Estimate what the rows of the paper's table would cost: GPU hours and storage. Nothing was measured on a GPU by us.

    python recipes/paper/estimate.py       # prints the tables of docs/results/imagenet.md

Hours are images / (images a second). Throughputs are published ones of an RTX 3090 (timm's benchmark results, mixed
precision, channels last, 224 px); an ImageNet ResNet-50 stands for CLIP's RN50, which is somewhat larger. They are
those of the GPU alone: whether a loader feeds it is another question. Ratios are ours, measured on CPU cores by
`python -m benchmarks`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

from rows import Row, read_rows

IMAGES = {"in1k": 1_281_167, "ct256": 256 * 60}  # to learn from
EVALUATED = {"in1k": 50_000, "ct256": 30_607 - 256 * 60}  # at most: clutter is left out
EMBED_DIM = 1024

TRAIN = {"resnet18": 3482, "mobilenetv2": 2313}  # images/s, RTX 3090
INFER = {"resnet18": 11_200, "mobilenetv2": 9_900, "resnet50": 3_700}
STORED = {
    "resnet18": (1.05, 1.05),
    "mobilenetv2": (1.10, 1.21),
}  # step with stored embeddings / bare student step, row `step` of `python -m benchmarks`
ONLINE = {"resnet18": 1.96, "mobilenetv2": 3.19}  # step with RN50 at work / with stored embeddings, row `online`


def bare(row: Row) -> float:
    """GPU hours of the student's own forward and backward."""
    return IMAGES[row.images] * row.epochs / TRAIN[row.student] / 3600


def teaching(images: str, views: int) -> float:
    """GPU hours of the teacher's forward."""
    return IMAGES[images] * views / INFER["resnet50"] / 3600


def online(row: Row) -> tuple[float, float]:
    """GPU hours with the teacher at work in every step.

    By published throughput, and by our ratios (middle of their range).
    """
    return bare(row) + teaching(row.images, row.epochs), sum(stored(row)) / 2 * ONLINE[row.student]


def stored(row: Row) -> tuple[float, float]:
    """GPU hours with stored embeddings, least and most by our ratios. Teaching, which many runs share, comes before."""
    low, high = STORED[row.student]
    return bare(row) * low, bare(row) * high


def evaluations(row: Row) -> float:
    """GPU hours of the row's evaluations, which see each image once.

    A probe's features are kept, and its epochs cost little.
    """
    seen = EVALUATED["in1k"] + EVALUATED["ct256"]
    if "lp_100" in row.paper:
        seen += IMAGES["in1k"] + IMAGES["ct256"]
    return seen / INFER[row.student] / 3600


def storage(images: str, views: int, width: int) -> float:
    """GB of stored embeddings of `width` bytes a number.

    A sample is a tar header and an .npy file, in blocks of 512 bytes.
    """
    return IMAGES[images] * (512 + 512 * math.ceil((128 + views * EMBED_DIM * width) / 512)) / 1e9


def table_of_rows() -> Iterator[str]:
    scores = "zero-shot: IN-1k / CT-256 | linear probe: 1 / 10 / 100 % / CT-256"
    yield f"| row: images, names, epochs | `bash recipes/paper/run.sh ...` | {scores} | A | B | C |"
    yield "|---|---|---|---|---|---|---|"
    for row in read_rows().values():
        zero_shot = " / ".join(_number(row, metric) for metric in ("zs_in1k", "zs_ct256"))
        probe = " / ".join(_number(row, metric) for metric in ("lp_1", "lp_10", "lp_100", "lp_ct256"))
        by_throughput, by_ratio = online(row)
        low, high = (_hours(hours) for hours in stored(row))
        span = low if low == high else f"{low} - {high}"
        hours = f"{_hours(by_throughput)} | {_hours(by_ratio)} | {span}"
        yield f"| {_words(row)} | `{row.name}` | {zero_shot} | {probe} | {hours} |"


def table_of_storage() -> Iterator[str]:
    yield "| views of each image (K) | teach, GPU hours | float16, GB | int8, GB |"
    yield "|---|---|---|---|"
    for views in (1, 2, 4, 10, 30, 90, 200):
        float16, int8 = (storage("in1k", views, width) for width in (2, 1))
        yield f"| {views} | {_hours(teaching('in1k', views))} | {float16:.1f} | {int8:.1f} |"


def _words(row: Row) -> str:
    data = {"in1k": "IN", "ct256": "CT"}
    method, student = row.name[:4].upper().rstrip("_"), {"resnet18": "RN18", "mobilenetv2": "MNv2"}[row.student]
    names = "-" if method == "SEED" else data[row.names]
    return f"{method} {student}: {data[row.images]}, {names}, {row.epochs}"


def _number(row: Row, metric: str) -> str:
    return f"{row.paper[metric]:.1f}" if metric in row.paper else "-"


def _hours(hours: float) -> str:
    return f"{hours:.1f}" if hours >= 0.05 else "< 0.1"


if __name__ == "__main__":
    most = max(evaluations(row) for row in read_rows().values())
    print(
        *table_of_rows(), "", f"Evaluations of a row: at most {most:.2f} GPU hours.", "", *table_of_storage(), sep="\n"
    )
