"""Notes of runs as a Markdown table: mean ± sample standard deviation over seeds, and how many there are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import mean, stdev
from typing import Any

COLUMNS = {
    "zero_shot": "zero-shot",
    "knn": "k-NN, 10 % of the labels",
    "linear_probe": "linear probe, 10 % of the labels",
}

ELSEWHERE = {  # of runs that were scored there
    "caltech101": "zero-shot, Caltech-101",
    "caltech101_class_mean": "the same, mean over classes",
}


def markdown(notes: Sequence[Mapping[str, Any]], *, rows: Sequence[str]) -> str:
    """One line a row, in the order of `rows`; rows without a run are left out."""
    columns = {**COLUMNS, **{key: title for key, title in ELSEWHERE.items() if any(key in note for note in notes)}}
    lines = [f"| | {' | '.join(columns.values())} | minutes | n |", "|---" * (len(columns) + 3) + "|"]
    for row in rows:
        runs = [note for note in notes if note["row"] == row]
        if runs:
            cells = [spread([run[key] for run in runs if run.get(key) is not None]) for key in columns]
            lines.append(f"| {row} | {' | '.join(cells)} | {mean(run['minutes'] for run in runs):.1f} | {len(runs)} |")
    return "\n".join(lines)


def spread(values: Sequence[float]) -> str:
    """`mean ± sd`; of one value no sd, of none a dash."""
    if not values:
        return "-"
    return f"{mean(values):.2f}" + (f" ± {stdev(values):.2f}" if len(values) > 1 else "")
