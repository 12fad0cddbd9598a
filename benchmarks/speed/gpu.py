"""`python -m benchmarks gpu`: what one accelerator does, within eight minutes.

The students' steps from JPEG shards over the same steps with a batch in memory, without and with torch.compile;
`teach`; the bank's update over a loop; the ten kernels that take most of a step; how often the host waits in a step.
What the time did not reach is listed, and what was measured until then is kept.
"""

from __future__ import annotations

import signal
import sys
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from torch.autograd import DeviceType

from lgd_timm.errors import LGDError
from lgd_timm.training.step import TrainStep

from ..settings import Settings, machine
from . import objective, steps, teaching
from .pairs import Row, Side, measure, seconds, table
from .photographs import RESIZED, describe, photographs

LIMIT = 450  # seconds; imports and the report take the rest of eight minutes
MOST_STEPS = 20  # in a round
COMPILING = 90  # seconds that a student's compilation may take: with less left it is not begun
SYNC_STEPS = 8
MARKS = "<!-- python -m benchmarks gpu -->", "<!-- end -->"


@dataclass
class Results:
    """What was measured so far."""

    machine: dict[str, str]
    rows: list[Row] = field(default_factory=list)
    kernels: dict[str, list[dict[str, Any]]] = field(default_factory=dict)  # by student
    host_syncs_a_step: dict[str, float] = field(default_factory=dict)  # by student
    left_out: list[str] = field(default_factory=list)
    seconds: float = 0.0

    def to_dict(self) -> dict[str, Any]:
        return {**vars(self), "rows": [{**row.to_dict(), "text": row.cells()} for row in self.rows]}

    def markdown(self) -> str:
        lines = [f"{name}: {fact}" for name, fact in self.machine.items()]
        parts = ["; ".join(lines) + f". {self.seconds:.0f} s in all.", table(self.rows)]
        parts += [f"Host waits a step, {student}: {count:g}." for student, count in self.host_syncs_a_step.items()]
        for student, kernels in self.kernels.items():
            parts.append(f"The kernels that take most of a step of {student}:")
            parts.append(
                "| kernel | ms a step | calls a step |\n|---|---|---|\n" + "\n".join(map(_kernel_line, kernels))
            )
        parts += [f"Left out: {what}." for what in self.left_out]
        return "\n\n".join(parts)


def run(settings: Settings, *, limit: float = LIMIT) -> Results:
    """Measure all that fits into `limit` seconds, the cheap and the important first.

    Raises:
        LGDError: there was no time for a single row, or all rows would be compiled.
    """
    if settings.compile:  # on two CPU cores compilation alone takes all the time
        raise LGDError("gpu measures steps without and with torch.compile by itself. Leave --compile out.")
    started = time.monotonic()
    results = Results({**machine(settings.device), "workers": str(settings.workers), "batch": str(settings.batch_size)})
    doing = "everything"
    with suppress(_TimeIsUp), _alarm(limit):
        for doing, part in _parts(settings, results):
            print(doing, file=sys.stderr, flush=True)
            if doing.startswith("compiled") and limit - (time.monotonic() - started) < COMPILING:
                results.left_out.append(f"{doing}, for lack of time")
                continue
            for row in part:
                results.rows.append(row)
        doing = ""
    if doing:
        results.left_out.append(f"{doing} and what follows, for lack of time")
    if not results.rows:
        raise LGDError(f"Nothing could be measured within {limit:g} s. Is the machine busy?")
    results.seconds = time.monotonic() - started
    return results


def _parts(settings: Settings, results: Results) -> Iterator[tuple[str, Iterator[Row]]]:
    shards = photographs(settings.photographs)
    results.machine["photographs"] = describe(shards)
    for student in settings.students:
        yield f"step of {student}", _step(settings, student)
    fastest = settings.students[0]
    yield f"step of {fastest}, resized shards", _step(settings, fastest, resized=True)
    yield "teach", teaching.rows(settings)
    yield "bank", objective.over_loop(settings)
    yield "host waits", _host_syncs(settings, results, fastest)
    yield "kernels", _kernels(settings, results, fastest)
    if settings.quick:
        results.left_out.append("torch.compile, with --quick")
        return
    for student in settings.students:
        yield f"compiled step of {student}", _step(replace(settings, compile=True), student)


def _step(settings: Settings, student: str, *, resized: bool = False) -> Iterator[Row]:
    """Distillation from shards over the same step, its batch in memory: what the loader costs."""
    sizes = {"sizes": RESIZED} if resized else {}
    run, other = (steps.prepare(settings, student, **sizes) for _ in range(2))
    with steps.feed(run) as batches:
        batch = batches.first
        steps.warm_up(run, batches)
        calls, images = min(settings.steps, MOST_STEPS), settings.batch_size
        fed, step = steps.fed(run, batches, calls), TrainStep(other)

        def synthetic() -> float:
            return seconds(lambda: steps.distil_step(step, batch), calls=calls, device=settings.device)

        yield measure(
            f"{student}{', short side 288' if resized else ''}, {settings.where}",
            Side("from JPEG shards", lambda: 1000 * images / fed()),
            Side("batch in memory", lambda: images / synthetic()),
            unit="images/s",
            rounds=settings.rounds,
        )


def _host_syncs(settings: Settings, results: Results, student: str) -> Iterator[Row]:
    """Count the calls in which the host waits for the device, by torch's own watch."""
    if settings.device.type != "cuda":
        results.left_out.append("host waits, which only CUDA has")
        return
    run = steps.prepare(settings, student)
    with steps.feed(run) as batches:
        step, batch = TrainStep(run), batches.first
        for _ in range(3):
            steps.distil_step(step, batch)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            torch.cuda.set_sync_debug_mode("warn")
            try:
                for _ in range(SYNC_STEPS):
                    steps.distil_step(step, batch)
            finally:
                torch.cuda.set_sync_debug_mode("default")
    waits = [warning for warning in caught if "synchroniz" in str(warning.message)]
    results.host_syncs_a_step[student] = len(waits) / SYNC_STEPS
    yield from ()


def _kernels(settings: Settings, results: Results, student: str) -> Iterator[Row]:
    cuda = settings.device.type == "cuda"
    events = [event for event in steps.profiled(settings, student) if not cuda or event.device_type == DeviceType.CUDA]
    own = "self_device_time_total" if cuda else "self_cpu_time_total"
    largest = sorted(events, key=lambda event: -getattr(event, own))[:10]
    results.kernels[student] = [
        {"name": event.key, "ms": getattr(event, own) / 1000 / settings.steps, "calls": event.count / settings.steps}
        for event in largest
    ]
    yield from ()


def _kernel_line(kernel: dict[str, Any]) -> str:
    name = kernel["name"].replace("|", "\\|")
    return f"| `{name[:100]}` | {kernel['ms']:.3g} | {kernel['calls']:.3g} |"


def fill(page: Path, text: str) -> None:
    """Put `text` between the page's two marks, in place of what stands there.

    Raises:
        LGDError: the page lacks the marks.
    """
    before, first, rest = page.read_text(encoding="utf-8").partition(MARKS[0])
    _, second, after = rest.partition(MARKS[1])
    if not first or not second:
        raise LGDError(f"{page} lacks the lines {MARKS[0]} and {MARKS[1]}. Put them where the table shall stand.")
    page.write_text(f"{before}{first}\n\n{text}\n\n{second}{after}", encoding="utf-8")


class _TimeIsUp(BaseException):
    """No Exception, which libraries catch."""


@contextmanager
def _alarm(limit: float) -> Iterator[None]:
    """Raise _TimeIsUp after that many seconds, where the system has alarms."""
    if not hasattr(signal, "setitimer"):
        yield
        return

    def ring(_: int, __: FrameType | None) -> None:
        raise _TimeIsUp

    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, limit)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
