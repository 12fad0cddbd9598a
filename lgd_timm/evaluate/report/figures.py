"""Bars, curves and matrices as PNG. matplotlib is an extra (`plot`), used without pyplot, which keeps figures and asks for a display."""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor

from ...errors import require
from ...publish.training_curve import BLUE, GREEN, GREY, ORANGE
from .collect import Spread

DPI = 160  # sharp on a telephone; the page shows 100 of these to an inch
PALETTE = (
    BLUE,
    GREEN,
    "#8e5ea2",
    "#c2385a",
    "#1a9aa8",
    "#8c6d31",
)  # of groups: orange is the teacher's, grey is chance's
NUMBERED = 20  # names up to which a matrix has its numbers written in


@dataclass(frozen=True)
class Bar:
    """One group's number, in percent, and what stands beside it."""

    label: str
    score: Spread
    colour: str
    teacher: float | None = None
    chance: float | None = None


@dataclass(frozen=True)
class Line:
    """One group over steps or epochs: its mean, and the band of a standard deviation where there are several runs."""

    label: str
    x: np.ndarray
    mean: np.ndarray
    deviation: np.ndarray | None
    colour: str
    runs: int
    teacher: float | None = None
    chance: float | None = None


def bars(rows: Sequence[Bar], *, title: str) -> bytes:
    """Horizontal bars, a dot a run, the standard deviation as an error bar; teacher and chance as lines across each bar."""
    with _figure(5.2, 1.4 + 0.5 * len(rows)) as (figure, buffer):
        axes = figure.subplots()
        for place, row in enumerate(rows):
            axes.barh(place, row.score.mean, height=0.62, color=row.colour, alpha=0.8)
            if row.score.deviation is not None:
                axes.errorbar(row.score.mean, place, xerr=row.score.deviation, color="black", capsize=4, linewidth=1.3)
                axes.scatter(row.score.values, [place - 0.16] * len(row.score.values), s=9, color="black", zorder=3)
            for value, colour in ((row.teacher, ORANGE), (row.chance, GREY)):
                if value is not None:
                    axes.vlines(value, place - 0.45, place + 0.45, color=colour, linestyle="--", linewidth=1.8)
        highest = max(max(*row.score.values, row.teacher or 0, row.chance or 0) for row in rows)
        axes.set_xlim(0, min(100, 1.08 * highest) or 1)
        axes.set_yticks(range(len(rows)), [f"{_plain(row.label, 34)}\n{row.score} %" for row in rows])
        axes.invert_yaxis()
        axes.set_xlabel("top-1 accuracy (%)")
        axes.set_title(title, loc="left", fontweight="bold", fontsize=11)
        _keys(axes, {"teacher": (row.teacher for row in rows), "chance": (row.chance for row in rows)})
        axes.grid(axis="x", alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
    return buffer.getvalue()


def curves(lines: Sequence[Line], *, title: str, x: str, y: str, from_zero: bool = False) -> bytes:
    """Means over runs with their bands; teacher and chance, where given, as horizontal lines."""
    with _figure(5.2, 3.4) as (figure, buffer):
        axes = figure.subplots()
        for line in lines:
            marker = "o" if len(line.x) <= 30 else None
            label = _plain(line.label, 34).lstrip("_") + (
                f" (n = {line.runs})" if line.runs > 1 else ""
            )  # matplotlib hides _labels
            axes.plot(line.x, line.mean, color=line.colour, linewidth=1.8, marker=marker, markersize=3.5, label=label)
            if line.deviation is not None:
                axes.fill_between(
                    line.x,
                    line.mean - line.deviation,
                    line.mean + line.deviation,
                    color=line.colour,
                    alpha=0.2,
                    linewidth=0,
                )
        for name, colour, values in (
            ("teacher", ORANGE, {line.teacher for line in lines}),
            ("chance", GREY, {line.chance for line in lines}),
        ):
            for i, value in enumerate(sorted(value for value in values if value is not None)):
                axes.axhline(value, color=colour, linestyle="--", linewidth=1.4, label=None if i else name)
        if from_zero:
            axes.set_ylim(bottom=0)
        axes.set_xlabel(x)
        axes.set_ylabel(y)
        axes.set_title(title, loc="left", fontweight="bold", fontsize=11)
        axes.grid(axis="y", alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
        axes.xaxis.get_major_locator().set_params(integer=True)  # steps and epochs
        figure.legend(frameon=False, fontsize=8, ncols=2, loc="outside lower left")
    return buffer.getvalue()


def matrix(
    values: Tensor,
    *,
    rows: Sequence[str],
    columns: Sequence[str],
    x: str,
    y: str,
    title: str,
    number: str,
    limits: tuple[float, float],
    greyed: Sequence[int] = (),
) -> bytes:
    """A heat map of [R, C], its numbers written as format `number` where there are at most 20 names; rows in `greyed` count as unknown."""
    count, low, high = len(values), *limits
    side = 4.6 if count <= NUMBERED else min(12.0, 2.0 + 0.105 * count)
    size = 8.0 if count <= NUMBERED else max(3.6, min(8.0, 72 * (side - 1.2) / count * 0.8))
    table = np.ma.masked_invalid(values.numpy().astype(float))
    table[list(greyed)] = np.ma.masked
    with _figure(side + 0.6, side) as (figure, buffer):
        axes = figure.subplots()
        colours = require("matplotlib", extra="plot").colormaps["Blues"].with_extremes(bad="#d9d9d9")
        image = axes.imshow(table, cmap=colours, vmin=low, vmax=high, interpolation="nearest")
        axes.set_xticks(range(len(columns)), [_plain(name, 16) for name in columns], rotation=90, fontsize=size)
        axes.set_yticks(range(len(rows)), [_plain(name, 16) for name in rows], fontsize=size)
        if count <= NUMBERED:
            for i, j in np.ndindex(table.shape):
                if table[i, j] is not np.ma.masked:
                    dark = table[i, j] > (low + high) / 2
                    text = format(table[i, j], number)
                    axes.text(
                        j,
                        i,
                        text,
                        ha="center",
                        va="center",
                        fontsize=min(8, 90 / count),
                        color="white" if dark else "black",
                    )
        axes.set_xlabel(x)
        axes.set_ylabel(y)
        axes.set_title(title, loc="left", fontweight="bold", fontsize=11)
        bar = figure.colorbar(image, ax=axes, fraction=0.04, pad=0.02)
        bar.ax.tick_params(labelsize=8)
        bar.outline.set_visible(False)
    return buffer.getvalue()


@contextmanager
def _figure(width: float, height: float) -> Iterator[tuple[Any, io.BytesIO]]:
    """A figure of inches, and the buffer that holds its PNG when the block has ended. Raises: MissingExtra."""
    require("matplotlib", extra="plot")
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure, buffer = Figure(figsize=(width, height), dpi=DPI, layout="constrained"), io.BytesIO()
    canvas = FigureCanvasAgg(figure)
    yield figure, buffer
    canvas.print_png(buffer, metadata={"Software": None})  # no version, no date: equal runs give equal bytes


def _keys(axes: Any, lines: dict[str, Any]) -> None:
    """A legend of the lines that were drawn."""
    from matplotlib.lines import Line2D

    colours = {"teacher": ORANGE, "chance": GREY}
    given = {name: {value for value in values if value is not None} for name, values in lines.items()}
    drawn = {name: values for name, values in given.items() if values}
    if drawn:
        handles = [Line2D([], [], color=colours[name], linestyle="--", linewidth=1.8) for name in drawn]
        words = [f"{name} {values.pop():.1f} %" if len(values) == 1 else name for name, values in drawn.items()]
        axes.figure.legend(handles, words, frameon=False, fontsize=8, ncols=2, loc="outside lower right")


def _plain(text: str, longest: int) -> str:
    """Text as it is: no mathematics between dollars, no line breaks, no longer than fits."""
    text = "".join(c if c.isprintable() else " " for c in text)
    text = text if len(text) <= longest else f"{text[: longest - 1]}…"
    return text.replace("$", r"\$")
