"""Row `allocator`: what a student's step on a CPU gains, and costs, when the process keeps the memory that it frees."""

from __future__ import annotations

from collections.abc import Iterator

from ..settings import Settings
from .pairs import Row
from .startup import fresh_processes

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
KEEP = "from lgd_timm.utils.device import keep_memory\nassert keep_memory()\n"
STEPS = 5


def rows(settings: Settings) -> Iterator[Row]:
    student = STUDENT.format(batch=settings.batch_size, size=settings.size)
    timed = f"for _ in range({STEPS}): step()"
    what = f"allocator: {STEPS} steps of mobilenetv2_100, {settings.size} px, B={settings.batch_size}"
    kept, given = ("memory kept", KEEP + student, timed), ("as glibc does", student, timed)
    yield from fresh_processes(what, kept, given, rounds=settings.rounds)
