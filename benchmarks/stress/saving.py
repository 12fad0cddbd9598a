"""Time a checkpoint until it is on the disk, as a share of the 15 minutes between two of them.

python -m benchmarks.stress.saving
"""

from __future__ import annotations

import statistics
import sys
import tempfile
import time
from pathlib import Path

import torch
from timm.optim import create_optimizer_v2
from torch.nn.functional import normalize

from lgd_timm.config.recipe import MachineRecipe
from lgd_timm.objectives import LGD
from lgd_timm.students.entrypoints import STUDENTS
from lgd_timm.students.model import create_student
from lgd_timm.task import LGDTask
from lgd_timm.utils.checkpoint import save_checkpoint

NAMES, DIMENSION, ROUNDS = 1000, 1024, 15


def main() -> int:
    minutes = MachineRecipe().checkpoint_minutes
    print(
        f"| with momentum, average and banks, n = {ROUNDS} | MB | seconds, median [quartiles] "
        f"| of {minutes:g} minutes |",
        "|---|---|---|---|",
        sep="\n",
    )
    for student in STUDENTS:
        size, seconds = _measure(student)
        low, median, high = statistics.quantiles(seconds, n=4)
        print(
            f"| {student} | {size / 1e6:.0f} | {median:.2f} [{low:.2f}..{high:.2f}] "
            f"| {100 * median / (60 * minutes):.3f} % |",
            flush=True,
        )
    return 0


def _measure(student: str) -> tuple[int, list[float]]:
    """Bytes of a checkpoint, and the seconds that each took."""
    objective = LGD(normalize(torch.randn(NAMES, DIMENSION), dim=1), preset="paper")
    task = LGDTask(create_student(student, embed_dim=DIMENSION), objective, device=torch.device("cpu"))
    task.setup_ema(decay=0.99)
    optimizer = create_optimizer_v2(task.student, opt="sgd", lr=0.01, momentum=0.9)
    for parameter in task.student.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()  # which makes the momentum
    scaler, seconds = torch.amp.GradScaler("cpu", enabled=False), []
    with tempfile.TemporaryDirectory(
        dir="."
    ) as folder:  # where runs are kept, and not in a memory that looks like a disk
        for step in range(ROUNDS):
            start = time.perf_counter()
            path = save_checkpoint(
                Path(folder), step=step, modules=task.state_modules, optimizer=optimizer, scaler=scaler, identity={}
            )
            seconds.append(time.perf_counter() - start)
        size = sum(file.stat().st_size for file in path.iterdir())
    return size, seconds


if __name__ == "__main__":
    sys.exit(main())
