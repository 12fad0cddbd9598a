"""Row g: what a student's step on a CPU gains, and costs, when the process keeps the memory that it frees."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from .pairs import Row, measure
from .settings import Settings
from .startup import fresh_process

STUDENT = """
import timm, torch
model = timm.create_model("mobilenetv2_100", num_classes=0).train().to(memory_format=torch.channels_last)
images = torch.randn({batch}, 3, {size}, {size}).contiguous(memory_format=torch.channels_last)
optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
def step():
    optimizer.zero_grad()
    model(images).square().mean().backward()
    optimizer.step()
step()
"""
KEEP = "from lgd_timm.devices import keep_memory\nassert keep_memory()\n"
STEPS = 5


def rows(settings: Settings) -> Iterator[Row]:
    student = STUDENT.format(batch=settings.batch_size, size=settings.size)
    peaks: tuple[list[float], list[float]] = ([], [])
    timed = f"for _ in range({STEPS}): step()"
    sides = (
        fresh_process("memory kept", KEEP + student, timed, peaks=peaks[0]),
        fresh_process("as glibc does", student, timed, peaks=peaks[1]),
    )
    row = measure(
        f"g  {STEPS} steps of mobilenetv2_100, {settings.size} px, B={settings.batch_size}", *sides, unit="s", rounds=settings.rounds
    )
    yield row
    kept, given = (seen[-settings.rounds :] for seen in peaks)
    yield replace(row, unit="MiB peak", values_a=kept, values_b=given)
