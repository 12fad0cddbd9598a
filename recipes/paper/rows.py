#!/usr/bin/env python3
"""Read the rows of the paper's main table from rows.tsv; as a script, print a row's numbers beside what was measured.

python recipes/paper/rows.py lgd_resnet18_in1k_200 output/paper/lgd_resnet18_in1k_200
"""

from __future__ import annotations

import csv
import json
import sys
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).parent

# A column of rows.tsv, which is the name of the evaluation's file too -> what it is
METRICS = {
    "zs_in1k": "zero-shot, ImageNet",
    "zs_ct256": "zero-shot, Caltech-256",
    "lp_1": "linear probe, 1 % of ImageNet",
    "lp_10": "linear probe, 10 % of ImageNet",
    "lp_100": "linear probe, ImageNet",
    "lp_ct256": "linear probe, Caltech-256",
}


@dataclass(frozen=True)
class Row:
    """One row: its recipe, what `run.sh` changes in it, and the paper's top-1 accuracies in percent."""

    name: str
    recipe: Path
    student: str  # resnet18 or mobilenetv2
    images: str  # in1k or ct256
    names: str  # in1k or ct256
    epochs: int
    paper: dict[str, float]  # keys of METRICS; those that the paper does not have are left out


def read_rows() -> dict[str, Row]:
    with (HERE / "rows.tsv").open(encoding="utf-8", newline="") as file:
        lines = list(csv.DictReader(file, delimiter="\t"))
    return {
        line["row"]: Row(
            name=line["row"],
            recipe=HERE / f"{line['recipe']}.yaml",
            student=line["student"],
            images=line["recipe"].rpartition("_")[2],
            names=line["names"],
            epochs=int(line["epochs"]),
            paper={key: float(line[key]) for key in METRICS if line[key] != "-"},
        )
        for line in lines
    }


def measured(out: Path, metric: str) -> float:
    """Top-1 of an evaluation's JSON, in percent."""
    scores = json.loads((out / f"{metric}.json").read_text(encoding="utf-8"))
    return float(scores.get("student", scores)["top1"])


def main(name: str, out: str) -> None:
    print(f"{name}, top-1 in %{'':18} paper  here")
    for metric, paper in read_rows()[name].paper.items():
        print(f"  {METRICS[metric]:32} {paper:5.1f} {measured(Path(out), metric):5.1f}")


if __name__ == "__main__":
    main(*sys.argv[1:])
