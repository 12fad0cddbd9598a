"""Row `ranks`: two ranks on two cores over one rank on one core, each pinned to its own: the cost of communication.

Two processes that work side by side and never talk are measured too: what they lack of twice one's speed is the
machine's (its memory, its neighbours), and what two ranks lack of theirs is the price of communication. One side is

    python -m torch.distributed.run --nproc-per-node N -m benchmarks.speed.ranks CORE STUDENT SIZE BATCH STEPS

Rank 0 prints images/s.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from functools import partial

import torch
import torch.distributed as dist
from timm.optim import create_optimizer_v2
from torch.nn.functional import normalize

from lgd_timm.objectives import LGD
from lgd_timm.students.model import create_student
from lgd_timm.task import LGDTask
from lgd_timm.utils.device import keep_memory

from ..settings import Settings, cores
from .pairs import Goal, Row, Side, measure

NAMES, DIMENSION = 1000, 512


def rows(settings: Settings) -> Iterator[Row]:
    if cores() < 2:
        return
    for student in settings.students:
        words = (student, settings.size, settings.batch_size, settings.steps)
        ranks, alone = Side("2 ranks", partial(_ranks, 2, *words)), Side("1 rank", partial(_ranks, 1, *words))
        silent = Side("2 that never talk", partial(_silent, 2, *words))
        name = f"ranks: {student}, {settings.size} px, B={settings.batch_size} a rank, gloo, a core a rank"
        for other, goal in ((silent, 0.9), (alone, 1.8)):
            yield measure(name, ranks, other, unit="images/s", rounds=settings.rounds, goal=Goal(goal, least=True))


def _ranks(count: int, *words: object) -> float:
    """Images/s of so many ranks together."""
    return _rate(_start(count, 0, *words))


def _silent(count: int, *words: object) -> float:
    """The same of so many processes of one rank each, at the same time."""
    return sum(map(_rate, [_start(1, core, *words) for core in range(count)]))


def _start(count: int, core: int, *words: object) -> subprocess.Popen[str]:
    torchrun = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        f"--nproc-per-node={count}",
        "-m",
        __spec__.name,
    ]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen([*torchrun, *map(str, (core, *words))], env=environment, stdout=subprocess.PIPE, text=True)


def _rate(process: subprocess.Popen[str]) -> float:
    out, _ = process.communicate()
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, process.args)
    return float(out.split()[-1])


def _worker(core: int, student: str, size: int, batch_size: int, steps: int) -> None:
    dist.init_process_group("gloo")
    rank = dist.get_rank()
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {sorted(os.sched_getaffinity(0))[core + rank]})
    keep_memory()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    model = create_student(student, embed_dim=DIMENSION, image_size=size).to(memory_format=torch.channels_last)
    task = LGDTask(
        model, LGD(normalize(torch.randn(NAMES, DIMENSION), dim=1), preset="paper"), device=torch.device("cpu")
    )
    optimizer = create_optimizer_v2(task.student, opt="sgd", lr=0.01, momentum=0.9)
    task.prepare_distributed()
    task.train()
    images = torch.randint(0, 256, (batch_size, 3, size, size), dtype=torch.uint8)
    teacher = torch.randn(batch_size, DIMENSION)
    for step in range(-2, steps):  # two to warm up
        if step == 0:
            dist.barrier()
            start = time.perf_counter()
        optimizer.zero_grad(set_to_none=True)
        task(images, teacher)["loss"].backward()
        optimizer.step()
        task.update(teacher)
    dist.barrier()
    if rank == 0:
        print(steps * batch_size * dist.get_world_size() / (time.perf_counter() - start))
    dist.destroy_process_group()


if __name__ == "__main__":
    _worker(int(sys.argv[1]), sys.argv[2], *map(int, sys.argv[3:]))
