"""Draw bars, curves and matrices as PNG with matplotlib, an extra (`plot`).

pyplot is not used: it keeps figures in memory and asks for a display.
"""

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

DPI = 160  # sharp on a phone; the page shows 100 dots to an inch
PALETTE = (BLUE, GREEN, "#8e5ea2", "#c2385a", "#1a9aa8", "#8c6d31")  # of groups; the teacher is orange, chance grey
NUMBERED = 20  # a matrix with at most so many names shows its numbers


@dataclass(frozen=True)
class Bar:
    """One group's accuracy in percent, with its teacher's and chance."""

    label: str
    score: Spread
    colour: str
    teacher: float | None = None
    chance: float | None = None


@dataclass(frozen=True)
class Line:
    """One group over steps or epochs.

    Attributes:
        label: of the group.
        x: steps or epochs, [P].
        mean: over runs, [P].
        deviation: sample standard deviation over runs, [P]; None of a single run.
        colour: of the line.
        runs: number of runs.
        teacher: its accuracy in percent.
        chance: in percent.
    """

    label: str
    x: np.ndarray
    mean: np.ndarray
    deviation: np.ndarray | None
    colour: str
    runs: int
    teacher: float | None = None
    chance: float | None = None


def bars(rows: Sequence[Bar], *, title: str) -> bytes:
    """Draw horizontal bars: a dot for each run, an error bar of one standard deviation, lines at teacher and chance."""
    with _figure(5.2, 1.4 + 0.5 * len(rows)) as (figure, buffer):
        axes = figure.subplots()
        for index, row in enumerate(rows):
            axes.barh(index, row.score.mean, height=0.62, color=row.colour, alpha=0.8)
            if row.score.deviation is not None:
                axes.errorbar(row.score.mean, index, xerr=row.score.deviation, color="black", capsize=4, linewidth=1.3)
                axes.scatter(row.score.values, [index - 0.16] * len(row.score.values), s=9, color="black", zorder=3)
            for value, colour in ((row.teacher, ORANGE), (row.chance, GREY)):
                if value is not None:
                    axes.vlines(value, index - 0.45, index + 0.45, color=colour, linestyle="--", linewidth=1.8)
        highest = max(max(*row.score.values, row.teacher or 0, row.chance or 0) for row in rows)
        axes.set_xlim(0, min(100, 1.08 * highest) or 1)
        axes.set_yticks(range(len(rows)), [f"{_plain(row.label, 34)}\n{row.score} %" for row in rows])
        axes.invert_yaxis()
        axes.set_xlabel("top-1 accuracy (%)")
        axes.set_title(title, loc="left", fontweight="bold", fontsize=11)
        _legend(axes, {"teacher": (row.teacher for row in rows), "chance": (row.chance for row in rows)})
        axes.grid(axis="x", alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
    return buffer.getvalue()


def curves(lines: Sequence[Line], *, title: str, x: str, y: str, from_zero: bool = False) -> bytes:
    """Draw means over runs with bands of one standard deviation, and horizontal lines at teacher and chance."""
    with _figure(5.2, 3.4) as (figure, buffer):
        axes = figure.subplots()
        for line in lines:
            marker = "o" if len(line.x) <= 30 else None
            label = _plain(line.label, 34).lstrip("_")  # matplotlib hides labels that begin with _
            label += f" (n = {line.runs})" if line.runs > 1 else ""
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
    """Draw a heat map.

    Args:
        values: [R, C]; NaN is drawn grey.
        rows: R names.
        columns: C names.
        x: label of the columns.
        y: label of the rows.
        title: of the figure.
        number: format of the numbers, which are shown for at most 20 rows.
        limits: values of the lightest and the darkest colour.
        greyed: rows that are drawn grey.

    Returns:
        The PNG.

    Raises:
        MissingExtra: matplotlib is not installed.
    """
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
    """Give a figure (size in inches) and the buffer that holds its PNG after the block. Raises: MissingExtra."""
    require("matplotlib", extra="plot")
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # of an extra
    from matplotlib.figure import Figure

    figure, buffer = Figure(figsize=(width, height), dpi=DPI, layout="constrained"), io.BytesIO()
    canvas = FigureCanvasAgg(figure)
    yield figure, buffer
    canvas.print_png(buffer, metadata={"Software": None})  # no version, no date: equal runs give equal bytes


def _legend(axes: Any, lines: dict[str, Any]) -> None:
    """Draw a legend of the lines that were drawn."""
    from matplotlib.lines import Line2D  # of an extra

    colours = {"teacher": ORANGE, "chance": GREY}
    given = {name: {value for value in values if value is not None} for name, values in lines.items()}
    drawn = {name: values for name, values in given.items() if values}
    if drawn:
        handles = [Line2D([], [], color=colours[name], linestyle="--", linewidth=1.8) for name in drawn]
        words = [f"{name} {values.pop():.1f} %" if len(values) == 1 else name for name, values in drawn.items()]
        axes.figure.legend(handles, words, frameon=False, fontsize=8, ncols=2, loc="outside lower right")


def _plain(text: str, longest: int) -> str:
    """Escape dollars (mathematics in matplotlib), remove line breaks, and cut to `longest` characters."""
    text = "".join(c if c.isprintable() else " " for c in text)
    text = text if len(text) <= longest else f"{text[: longest - 1]}…"
    return text.replace("$", r"\$")
