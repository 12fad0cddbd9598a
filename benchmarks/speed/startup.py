"""Row `startup`: the time and memory to import lgd_timm and create a model, beside timm alone.

Each measurement is a process of its own.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace

from lgd_timm.settings import hub_folder

from ..settings import Settings
from .pairs import Goal, Row, Side, measure

WEIGHT = "lgd_mobilenetv2.conse_cifar10"
CHILD = """
import json, sys, time
from benchmarks.speed.memory import peak_memory
preparation, timed = sys.argv[1:]
exec(preparation)
start = time.perf_counter()
exec(timed)
print(json.dumps([time.perf_counter() - start, peak_memory()]))
"""


def rows(settings: Settings) -> Iterator[Row]:
    ours, stock = f"timm.create_model({WEIGHT!r}, pretrained=True)", "timm.create_model('mobilenetv2_100')"
    same = f"timm.create_model('local-dir:{hub_folder() / WEIGHT}', pretrained=True)"
    # What is done, then both sides as `fresh_processes` has them
    comparisons = (
        ("import", ("lgd_timm", "", "import lgd_timm"), ("timm", "", "import timm"), Goal(0.1)),
        (
            "create with weights",
            ("lgd_mobilenetv2", "import timm, lgd_timm", ours),
            ("timm, same file", "import timm", same),
            None,
        ),
        (
            "create",
            ("lgd_mobilenetv2 with weights", "import timm, lgd_timm", ours),
            ("timm, no weights", "import timm", stock),
            None,
        ),
    )
    for what, a, b, goal in comparisons:
        yield from fresh_processes(f"startup: {what}", a, b, rounds=settings.rounds, goal=goal, difference=True)


def fresh_processes(
    what: str, a: Sequence[str], b: Sequence[str], *, rounds: int, goal: Goal | None = None, difference: bool = False
) -> Iterator[Row]:
    """Two rows, seconds and peak memory; a side is its name, the code before the clock starts, and the code that is
    timed.
    """
    peaks: tuple[list[float], list[float]] = ([], [])
    sides = (_side(*side, peaks=seen) for side, seen in zip((a, b), peaks, strict=True))
    row = measure(what, *sides, unit="s", rounds=rounds, goal=goal, difference=difference)
    yield row
    peaks_a, peaks_b = (seen[-rounds:] for seen in peaks)  # without those of the warm-up
    yield replace(row, unit="MiB peak", values_a=peaks_a, values_b=peaks_b, goal=None)


def _side(name: str, preparation: str, timed: str, *, peaks: list[float]) -> Side:
    """Seconds of the timed code; the process' peak memory goes into `peaks`."""

    def once() -> float:
        command = [sys.executable, "-c", CHILD, preparation, timed]
        elapsed, peak = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)
        peaks.append(peak)
        return elapsed

    return Side(name, once)
