"""Two sides, measured in turns, A B A B, so that what the machine does meanwhile happens to both."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch


@dataclass(frozen=True)
class Goal:
    """What A/B (or A-B) should be at most, or at least."""

    value: float
    least: bool = False

    def met(self, reached: float) -> bool:
        return reached >= self.value if self.least else reached <= self.value

    def __str__(self) -> str:
        return f"{'>=' if self.least else '<='} {self.value:g}"


@dataclass(frozen=True)
class Side:
    """`measure` does one round and returns what it cost or gave, in the row's unit."""

    name: str
    measure: Callable[[], float]


@dataclass(frozen=True)
class Row:
    """One line of the table."""

    name: str
    a: str
    b: str
    unit: str
    values_a: list[float]
    values_b: list[float]
    goal: Goal | None = None
    difference: bool = False  # compare by A-B, not A/B

    @property
    def compared(self) -> list[float]:
        """Round by round."""
        return [a - b if self.difference else a / b for a, b in zip(self.values_a, self.values_b, strict=True)]

    def cells(self) -> list[str]:
        goal = (
            ""
            if self.goal is None
            else f"{self.goal} ({'met' if self.goal.met(statistics.median(self.compared)) else 'missed'})"
        )
        return [
            self.name,
            f"{self.a}: {spread(self.values_a)}",
            f"{self.b}: {spread(self.values_b)}",
            self.unit,
            f"{'A-B' if self.difference else 'A/B'} {spread(self.compared)}",
            goal,
            str(len(self.compared)),
        ]

    def to_dict(self) -> dict[str, Any]:
        return {**asdict(self), "compared": self.compared}


HEADINGS = ("row", "A: median [quartiles]", "B: median [quartiles]", "unit", "compared", "goal", "n")


def measure(
    name: str, a: Side, b: Side, *, unit: str, rounds: int, goal: Goal | None = None, difference: bool = False
) -> Row:
    """One round of each to warm up, then `rounds` of both in turns."""
    a.measure()
    b.measure()
    pairs = [(a.measure(), b.measure()) for _ in range(rounds)]
    return Row(name, a.name, b.name, unit, [x for x, _ in pairs], [y for _, y in pairs], goal, difference)


def seconds(function: Callable[[], Any], *, calls: int = 1, device: torch.device | None = None) -> float:
    """Mean of `calls` calls in a row; the device has done its part when the clock stops."""
    synchronize(device)
    start = time.perf_counter()
    for _ in range(calls):
        function()
    synchronize(device)
    return (time.perf_counter() - start) / calls


def calls_for(function: Callable[[], Any], *, least: float, device: torch.device | None = None) -> int:
    """How many calls take at least that many seconds: what takes microseconds can't be timed alone."""
    function()
    calls = 1
    while (elapsed := calls * seconds(function, calls=calls, device=device)) < least:
        calls = max(2 * calls, round(calls * least / max(elapsed, 1e-6)))
    return calls


def synchronize(device: torch.device | None) -> None:
    if device is not None and device.type == "cuda":
        torch.cuda.synchronize(device)


def spread(values: Sequence[float]) -> str:
    """Median and quartiles; of fewer than four values, least and greatest."""
    middle = statistics.median(values)
    low, _, high = (
        statistics.quantiles(values, n=4, method="inclusive") if len(values) > 3 else (min(values), 0, max(values))
    )
    return f"{digits(middle)} [{digits(low)}..{digits(high)}]"


def digits(value: float) -> str:
    """Three of them."""
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}"


def table(rows: Sequence[Row]) -> str:
    """Markdown, aligned."""
    lines = [list(HEADINGS), *(row.cells() for row in rows)]
    widths = [max(len(line[i]) for line in lines) for i in range(len(HEADINGS))]
    text = [
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) + " |" for line in lines
    ]
    text.insert(1, "|" + "|".join("-" * (width + 2) for width in widths) + "|")
    return "\n".join(text)
