"""Rows `step` and `online`: a distillation step over the student's own step, and over one with an online teacher."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import timm
import torch
from torch.autograd.profiler_util import EventList
from torch.nn.functional import cosine_similarity, cross_entropy
from torch.profiler import ProfilerActivity, profile

from lgd_timm.config.reader import recipe_from_dict
from lgd_timm.data import Views
from lgd_timm.data.dataset import Batch, ShardDataset
from lgd_timm.data.loader import loader, on_device
from lgd_timm.students.entrypoints import stock_name
from lgd_timm.teachers import ImageTeacher
from lgd_timm.training.build import build, build_task, task_optimizer, task_scheduler
from lgd_timm.training.state import Run
from lgd_timm.training.step import TrainStep

from ..settings import Settings, cores
from .feed import Feed
from .pairs import Goal, Row, Side, measure, seconds
from .photographs import SIZES, photographs
from .teaching import NAMES, online_teacher, stored_teaching

ENDLESS = 10**9  # steps
SPEEDUP = {"lgd_mobilenetv2": Goal(3, least=True), "lgd_resnet18": Goal(2, least=True)}


def prepare(settings: Settings, student: str, *, sizes: Mapping[tuple[int, int], int] = SIZES) -> Run:
    """A distillation as `lgd-timm distill` builds it: stored embeddings of two views, 1,000 names."""
    shards = photographs(settings.photographs, sizes=sizes)
    stored = stored_teaching(shards, Views(size=settings.size, count=2), workers=settings.workers)
    recipe = recipe_from_dict(
        {
            "name": "benchmark",
            "teacher": {"kind": "stored", "embeddings": str(stored.root)},
            "vocabulary": {"source": NAMES},
            "data": {"shards": str(shards.root), "batch_size": settings.batch_size, "workers": settings.workers},
            "student": {"model": student},
            "run": {"device": str(settings.device), "amp": settings.amp, "compile": settings.compile},
        }
    )
    run = build(recipe, Path())
    run.task.train()
    return run


def with_teacher(settings: Settings, student: str, teacher: ImageTeacher) -> Run:
    """The same distillation, with the teacher in the step."""
    run = prepare(settings, student)
    teaching = replace(run.teaching, image=teacher, stored=None)
    task = build_task(run.recipe, teaching, run.device)
    task.train()
    optimizer = task_optimizer(run.recipe, task)
    scheduler = task_scheduler(run.recipe, optimizer, steps_per_epoch=run.steps_per_epoch)
    dataset = ShardDataset(run.dataset.shards, views=teaching.views)
    return replace(run, teaching=teaching, dataset=dataset, task=task, optimizer=optimizer, scheduler=scheduler)


def feed(run: Run) -> Feed:
    plan = replace(run.plan, stop=ENDLESS)
    return Feed(lambda: on_device(loader(run.dataset, plan, workers=run.recipe.data.workers), run.device))


def distil_step(step: TrainStep, batch: Batch) -> None:
    run = step.run
    run.set_rates()
    step.take(batch)
    run.step += 1


def fed(run: Run, batches: Feed, steps: int) -> Callable[[], float]:
    """Milliseconds a step of distillation, its batches coming from the loader."""

    step = TrainStep(run)

    def turn() -> float:
        with batches.turn() as stream:
            return 1000 * seconds(lambda: distil_step(step, next(stream)), calls=steps, device=run.device)

    return turn


def in_memory(step: Callable[[], None], settings: Settings) -> Callable[[], float]:
    """Milliseconds a step that needs no loader."""
    return lambda: 1000 * seconds(step, calls=settings.steps, device=settings.device)


def bare_step(run: Run, batch: Batch) -> Callable[[], None]:
    """The student's forward and backward and the optimizer's step, with the simplest loss on its embedding."""
    assert batch.embeddings is not None
    target = batch.embeddings.float()

    def step() -> None:
        with _autocast(run):
            output = run.task.trainable_module(batch.images)
        loss = -cosine_similarity(output.float(), target).mean()
        run.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        run.optimizer.step()

    return step


def supervised_step(run: Run, batch: Batch) -> Callable[[], None]:
    """The stock model with a classifier of 1,000 labels, on pixels that are normalised already."""
    model = timm.create_model(stock_name(run.recipe.student.model), num_classes=1000).to(
        run.device, memory_format=torch.channels_last
    )
    if run.recipe.machine.compile:
        model.compile()
    optimizer = torch.optim.SGD(model.train().parameters(), lr=0.01, momentum=0.9, weight_decay=1e-4)
    pixels = run.task.student.preprocess(batch.images).contiguous(memory_format=torch.channels_last)

    def step() -> None:
        with _autocast(run):
            output = model(pixels)
        optimizer.zero_grad(set_to_none=True)
        cross_entropy(output.float(), batch.labels).backward()
        optimizer.step()

    return step


def _autocast(run: Run) -> Any:
    return torch.autocast(run.device.type, dtype=torch.bfloat16, enabled=run.recipe.machine.amp != "none")


def stored_over_bare(settings: Settings) -> Iterator[Row]:
    """Row `step`. On an accelerator also over the same step without a loader, and over plain supervised training."""
    goal = Goal(1.10 if cores() <= 2 else 1.05)
    for student in settings.students:
        run, other = prepare(settings, student), prepare(settings, student)
        with feed(run) as batches:
            batch = batches.first
            sides = {"bare student step": bare_step(other, batch)}
            if settings.device.type == "cuda":
                sides |= {
                    "same step, batch in memory": partial(distil_step, TrainStep(other), batch),
                    "supervised step": supervised_step(other, batch),
                }
            warm_up(run, batches)
            for name, step in sides.items():
                yield measure(
                    f"step: {student}, {settings.where}",
                    Side("distil step from shards", fed(run, batches, settings.steps)),
                    Side(name, in_memory(step, settings)),
                    unit="ms a step",
                    rounds=settings.rounds,
                    goal=goal if name.startswith("bare") else None,
                )


def stored_over_online(settings: Settings) -> Iterator[Row]:
    """Row `online`. A run does not compile its teacher; one that did would have the second variant's time."""
    for name in ("online RN50", "online RN50, compiled"):
        teacher = online_teacher(settings.device).to(memory_format=torch.channels_last)
        if name.endswith("compiled"):
            teacher.compile_encoder()
        for student in filter(SPEEDUP.get, settings.students):  # those that have a goal: a step of this row takes long
            online, stored = with_teacher(settings, student, teacher), prepare(settings, student)
            with feed(online) as online_batches, feed(stored) as stored_batches:
                sides = []
                for side, run, batches in ((name, online, online_batches), ("stored", stored, stored_batches)):
                    warm_up(run, batches)
                    sides.append(Side(side, fed(run, batches, settings.steps)))
                what = f"online: {student}, {settings.where}"
                yield measure(what, *sides, unit="ms a step", rounds=settings.rounds, goal=SPEEDUP[student])


def warm_up(run: Run, batches: Feed) -> None:
    """As many batches as the queue holds: what is in it then was made while steps were taken."""
    fed(run, batches, 4 * run.recipe.data.workers + 1)()


def top_operations(settings: Settings, student: str) -> str:
    """Where a step of distillation spends its time: the ten operations that take most of it."""
    cuda = settings.device.type == "cuda"
    return profiled(settings, student).table(
        sort_by="self_device_time_total" if cuda else "self_cpu_time_total", row_limit=10
    )


def profiled(settings: Settings, student: str) -> EventList:
    """What `settings.steps` steps of distillation did, from shards."""
    run = prepare(settings, student)
    cuda = run.device.type == "cuda"
    with feed(run) as batches:
        warm_up(run, batches)
        with profile(activities=[ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if cuda else [])]) as profiler:
            fed(run, batches, settings.steps)()
    return profiler.key_averages()
