"""Row `objective`: loss and bank step beside what no implementation can do without, and beside the plainest one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace

import torch
from torch import Tensor
from torch.nn.functional import normalize

from lgd_timm.objectives import LGD, Objective, RefinedDistillation, create_objective

from ..settings import Settings, cores
from .memory import peak_memory, start_peak
from .pairs import Goal, Row, Side, calls_for, measure, seconds
from .teaching import DIM, bank

BATCH = 256
NAMES = (10, 100, 1000, 21_841)
LARGE = (2048, 21_841)  # batch and names of the memory row
PRESET = "reference"


def rows(settings: Settings) -> Iterator[Row]:
    for names in NAMES[:3] if settings.quick else NAMES:
        yield _over_products(settings, names)
    for threads, busy in ((1, False), (2, False), (1, True), (2, True)):
        yield _in_plain_program(settings, threads=threads, busy=busy)
    for kind in ("lgd", "clip_kd"):
        for stored in (True, False):
            for names in NAMES[:3:2] if settings.quick else NAMES[::3]:
                yield _refined_over_rival(settings, kind, names, stored=stored)
    yield from over_loop(settings)
    yield _memory(settings)


def over_loop(settings: Settings) -> Iterator[Row]:
    for known in (True, False):
        yield _over_loop(settings, 1000, known=known)


def embeddings(count: int, text: Tensor) -> tuple[Tensor, Tensor]:
    """Of a student and of a teacher whose images are of random names."""
    draw = torch.Generator().manual_seed(1)
    name = torch.randint(len(text), (count,), generator=draw)
    teacher = 8 * normalize(text.cpu()[name] + torch.randn(count, DIM, generator=draw) / DIM**0.5, dim=1)
    return torch.randn(count, DIM, generator=draw).to(text.device).requires_grad_(), teacher.to(text.device)


def _over_products(settings: Settings, names: int) -> Row:
    """Forward, backward and bank step over the six matrix products in them."""
    text = bank(names).to(settings.device)
    student, teacher = embeddings(BATCH, text)
    objective = LGD(text, preset=PRESET)
    visual, gradients = objective.visual_bank, torch.randn(2, BATCH, names, device=settings.device)

    def step() -> None:
        student.grad = None
        losses = objective(student, teacher)
        losses["loss"].backward()
        objective.update(teacher, assigned=losses["assigned"])

    @torch.no_grad()
    def products() -> None:
        for rows in (student, teacher):
            rows @ text.T
            rows @ visual.T
        gradients[0] @ text
        gradients[1] @ visual

    def side(name: str, function: Callable[[], None]) -> Side:
        calls = calls_for(function, least=0.02 if settings.quick else 0.3, device=settings.device)
        return Side(name, lambda: 1000 * seconds(function, calls=calls, device=settings.device))

    a, b = side("loss, backward, update", step), side("six products", products)
    goal = Goal(1.4) if names == 1000 else None
    return measure(f"objective: B={BATCH}, D={DIM}, C={names:,}", a, b, unit="ms", rounds=settings.rounds, goal=goal)


def _in_plain_program(settings: Settings, *, threads: int, busy: bool) -> Row:
    """The same for 1,000 names in a process that has not called `keep_memory`, beside one that spins on each core."""
    request = json.dumps({"pairs": settings.rounds, "threads": threads, "quick": settings.quick})
    command = [sys.executable, "-m", "benchmarks.speed.objective", request]
    with _spinning(cores() if busy else 0):
        said = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)
    what = f"{threads} thread{'s' * (threads > 1)}{', every core busy' * busy}"
    return Row(**{**said, "name": f"{said['name']}, plain program, {what}", "goal": Goal(1.5)})


@contextmanager
def _spinning(count: int) -> Iterator[None]:
    """Keep `count` cores busy by processes that only spin, and end with this one."""
    spin = f"import os\nwhile os.getppid() == {os.getpid()}: pass"
    processes = [subprocess.Popen([sys.executable, "-c", spin]) for _ in range(count)]
    try:
        yield
    finally:
        for process in processes:
            process.kill()
            process.wait()


def pairs_of_plain_program(*, pairs: int, threads: int, quick: bool) -> str:
    """What this process measures over the six products, as JSON."""
    torch.set_num_threads(threads)
    return json.dumps(asdict(_over_products(replace(_CPU, rounds=pairs, quick=quick), 1000)))


_CPU = Settings(
    device=torch.device("cpu"),
    rounds=5,
    workers=0,
    students=(),
    batch_size=BATCH,
    amp="none",
    compile=False,
    quick=False,
)


def _refined_over_rival(settings: Settings, kind: str, names: int, *, stored: bool) -> Row:
    """Loss, backward and update of `refined` over those of a rival.

    `stored`: with moments that were fitted before; else with running ones, of which a step that decomposes is seldom.
    """
    text = bank(names).to(settings.device)
    student, teacher = embeddings(BATCH, text)
    refined, rival = RefinedDistillation(text), create_objective(text, kind=kind)
    if stored:
        refined.fit([teacher])
    else:
        for _ in range(8):
            refined.update(teacher)
        refined.set_extra_state(torch.tensor([2**40, 0]))  # long before the next decomposition

    def step(objective: Objective) -> None:
        student.grad = None
        losses = objective(student, teacher)
        losses["loss"].backward()
        objective.update(teacher, assigned=losses.get("assigned"))

    def side(name: str, objective: Objective) -> Side:
        calls = calls_for(lambda: step(objective), least=0.02 if settings.quick else 0.3, device=settings.device)
        return Side(name, lambda: 1000 * seconds(lambda: step(objective), calls=calls, device=settings.device))

    what = f"objective: refined, {'stored' if stored else 'online'}, B={BATCH}, D={DIM}, C={names:,}"
    return measure(what, side("refined", refined), side(kind, rival), unit="ms", rounds=settings.rounds)


def _over_loop(settings: Settings, names: int, *, known: bool) -> Row:
    """The bank's step, a loop over names first.

    `known`: as in training, where the loss has found each image's name already.
    """
    text = bank(names).to(settings.device)
    student, teacher = embeddings(BATCH, text)
    objective = LGD(text, preset=PRESET)
    looped, seen = objective.visual_bank.clone(), objective.seen.clone()
    nearest = (normalize(teacher, dim=1) @ text.T).argmax(1)
    assigned = objective(student, teacher)["assigned"] if known else None

    @torch.no_grad()
    def loop() -> None:
        unit = normalize(teacher, dim=1)
        name_of = nearest if known else (unit @ text.T).argmax(1)
        for name in name_of.unique():
            mean = unit[name_of == name].mean(0)
            if seen[name]:
                looped[name] = 0.999 * looped[name] + 0.001 * mean
            else:
                looped[name], seen[name] = mean, True

    def update() -> None:
        objective.update(teacher, assigned=assigned)

    def timed(function: Callable[[], None]) -> Callable[[], float]:
        """Milliseconds of one call."""

        def turn() -> float:
            total, calls = 0.0, 2 if settings.quick else 20
            for _ in range(calls):
                total += seconds(function, device=settings.device)
            return 1000 * total / calls

        return turn

    a, b = Side("loop over names", timed(loop)), Side("update", timed(update))
    what = f"objective: bank step, B={BATCH}, C={names:,}, {'within a step' if known else 'alone'}"
    goal = Goal(20 if settings.device.type == "cuda" else 2, least=True)
    row = measure(what, a, b, unit="ms", rounds=settings.rounds, goal=goal)
    assert torch.allclose(
        looped[seen], objective.visual_bank[objective.seen], atol=1e-4
    )  # both sides have done the same
    return row


def _memory(settings: Settings) -> Row:
    batch, names = (256, 2000) if settings.quick else LARGE
    matrices = Side("one [B, C] float32 a bank", lambda: 2 * 4 * batch * names / 2**20)
    request = json.dumps({"batch": batch, "names": names, "device": str(settings.device)})

    def peak() -> float:
        command = [sys.executable, "-m", "benchmarks.speed.objective", request]
        return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)

    what = f"objective: peak memory of a step, B={batch:,}, C={names:,}"
    return measure(
        what, Side("loss, backward, update", peak), matrices, unit="MiB", rounds=min(settings.rounds, 3), goal=Goal(1.5)
    )


def peak_of_step(*, batch: int, names: int, device: str) -> float:
    """MiB that a step needs beyond banks and embeddings.

    Of a process of its own, as a peak does not come down again.
    """
    text = bank(names).to(device)
    objective = LGD(text, preset=PRESET)
    student, teacher = embeddings(batch, text)

    def step(count: int) -> None:
        losses = objective(student[:count], teacher[:count])
        losses["loss"].backward()
        objective.update(teacher[:count], assigned=losses["assigned"])

    step(2)  # what is loaded and allocated once is not the step's
    student.grad = torch.zeros_like(student)
    if device != "cpu":
        torch.cuda.synchronize()
        held = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        step(batch)
        return (torch.cuda.max_memory_allocated() - held) / 2**20
    before = start_peak()
    step(batch)
    return peak_memory() - before


if __name__ == "__main__":
    asked = json.loads(sys.argv[1])
    print(pairs_of_plain_program(**asked) if "pairs" in asked else peak_of_step(**asked))
