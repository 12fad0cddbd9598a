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


def markdown(notes: Sequence[Mapping[str, Any]], *, rows: Sequence[str]) -> str:
    """One line a row, in the order of `rows`; rows without a run are left out."""
    lines = [f"| | {' | '.join(COLUMNS.values())} | minutes | n |", "|---" * (len(COLUMNS) + 3) + "|"]
    for row in rows:
        runs = [note for note in notes if note["row"] == row]
        if runs:
            cells = [spread([run[key] for run in runs if run.get(key) is not None]) for key in COLUMNS]
            lines.append(f"| {row} | {' | '.join(cells)} | {mean(run['minutes'] for run in runs):.1f} | {len(runs)} |")
    return "\n".join(lines)


def spread(values: Sequence[float]) -> str:
    """`mean ± sd`; of one value no sd, of none a dash."""
    if not values:
        return "-"
    return f"{mean(values):.2f}" + (f" ± {stdev(values):.2f}" if len(values) > 1 else "")
