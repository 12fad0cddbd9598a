"""Read a run's `log.jsonl`: draw its losses and scores as a small PNG, and sum up the time that training took."""

from __future__ import annotations

import io
import logging
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypedDict

from ..errors import MissingExtra, require
from ..utils.typed_json import JSONError, parse_json

log = logging.getLogger(__name__)

Row = Mapping[str, Any]

LARGEST_LOSS = 1e30  # above which a row is taken for damaged
POINTS = 300  # on a line; more are averaged, as noise hides the trend and enlarges the file
BLUE, ORANGE, GREEN, GREY = "#1f6fb4", "#e07b20", "#3a9150", "#555555"
STYLES = {"loss": (BLUE, 2.0), "loss_text": (ORANGE, 1.2), "loss_visual": (GREEN, 1.2)}


def read_log(path: Path, *, until: int) -> list[Row]:
    """Read the rows of a `log.jsonl`, in the order of their steps.

    Args:
        path: the file, which need not exist.
        until: the last step that counts.

    Returns:
        The rows; of a step that a resumed run repeated, the last one.
    """
    rows: dict[tuple[int, bool], Row] = {}
    for row in _lines(path) if path.is_file() else ():
        if row["step"] <= until:
            rows[row["step"], "loss" in row] = row
    return [rows[key] for key in sorted(rows)]


class _Step(TypedDict):
    step: int


class _LogRow(_Step, total=False):
    epoch: float
    loss: float
    images_per_second: float | None
    zero_shot_top1: float


def _lines(path: Path) -> Iterator[Row]:
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        try:
            row = parse_json(line, _LogRow)
            if wrong := [name for name, value in row.items() if name.startswith("loss") and not _is_number(value)]:
                raise JSONError(f"{wrong[0]} is no number")
            yield row
        except JSONError as error:  # a run was killed in the middle of a line
            log.warning("%s, line %d can't be read (%s); it is left out", path, number, error)


def training_seconds(rows: Sequence[Row], *, images: int) -> float | None:
    """Estimate the seconds of training on `images` images, evaluation left out; None where the log has no rates."""
    rates = [row["images_per_second"] for row in rows if row.get("images_per_second")]
    return round(images * sum(1 / rate for rate in rates) / len(rates), 1) if rates else None


def training_curve(rows: Sequence[Row], metrics: Mapping[str, Any], *, epochs: float) -> bytes | None:
    """Draw losses over steps and, where it was measured, zero-shot top-1 accuracy over epochs.

    Args:
        rows: of the run's log.
        metrics: the content of `metrics.json`: the scores after `epochs`, and the teacher's.
        epochs: how many epochs the run took.

    Returns:
        A PNG; equal rows give equal bytes. None without losses or without matplotlib (an extra), with a line in the
        log.
    """
    losses = [row for row in rows if "loss" in row]
    if not losses:
        log.info("no training.png: the run's log.jsonl holds no losses")
        return None
    try:
        require("matplotlib", extra="plot")
    except MissingExtra as error:
        log.info("no training.png: %s, then: lgd-timm save RUN OUT", error)
        return None
    scores = [
        (row["epoch"], row["zero_shot_top1"])
        for row in rows
        if {"zero_shot_top1", "epoch"} <= row.keys() and row["epoch"] < epochs
    ]
    student = metrics.get("zero_shot") or {}
    if student:
        scores.append((epochs, student["top1"]))
    return _draw(
        losses, scores, teacher=(metrics.get("teacher_zero_shot") or {}).get("top1"), chance=student.get("chance")
    )


def _draw(
    losses: Sequence[Row], scores: Sequence[tuple[float, float]], *, teacher: float | None, chance: float | None
) -> bytes:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    # not pyplot, which keeps figures and asks for a display
    figure = Figure(figsize=(8, 3), dpi=110, layout="constrained")
    canvas = FigureCanvasAgg(figure)
    left, *right = figure.subplots(1, 2 if scores else 1, squeeze=False)[0]
    _draw_losses(left, losses)
    for axes in right:
        _draw_scores(axes, scores, teacher=teacher, chance=chance)
    for axes in (left, *right):
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(axis="y", alpha=0.25)
        axes.legend(frameon=False, fontsize=8)
    buffer = io.BytesIO()
    canvas.print_png(buffer, metadata={"Software": None})  # no version, no date: equal runs give equal bytes
    return buffer.getvalue()


def _draw_losses(axes: Any, losses: Sequence[Row]) -> None:
    size = -(-len(losses) // POINTS)
    chunks = [losses[start : start + size] for start in range(0, len(losses), size)]
    steps = [_mean(chunk, "step") for chunk in chunks]
    for name in (name for name in losses[-1] if name.startswith("loss")):
        colour, width = STYLES.get(name, (GREY, 1.2))
        axes.plot(
            steps,
            [_mean(chunk, name) for chunk in chunks],
            color=colour,
            linewidth=width,
            label=name.removeprefix("loss_"),
        )
    axes.set_xlabel("step")
    axes.set_ylabel("loss")


def _draw_scores(
    axes: Any, scores: Sequence[tuple[float, float]], *, teacher: float | None, chance: float | None
) -> None:
    epochs, values = zip(*scores, strict=True)
    axes.plot(
        epochs, values, color=BLUE, linewidth=2, marker="o", markersize=4, label=f"student, at last {values[-1]:.2f} %"
    )
    for name, value, colour in (("teacher", teacher, ORANGE), ("chance", chance, GREY)):
        if value is not None:
            axes.axhline(value, color=colour, linestyle="--", linewidth=1.2, label=f"{name}, {value:.2f} %")
    axes.set_xlim(0, max(epochs) * 1.03)
    axes.set_ylim(bottom=0)
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.set_xlabel("epoch")
    axes.set_ylabel("zero-shot top-1 (%)")


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < LARGEST_LOSS


def _mean(rows: Sequence[Row], name: str) -> float:
    """Mean over the rows that have the number; NaN, which is not drawn, where none has."""
    values = [row[name] for row in rows if name in row]
    return sum(values) / len(values) if values else math.nan
