"""Build timm's optimizers and schedules."""

from __future__ import annotations

from typing import Any

import torch
from timm.optim import create_optimizer_v2, list_optimizers
from timm.scheduler import create_scheduler_v2

from ..config.recipe import Recipe
from ..errors import RecipeError
from ..task import LGDTask


def build_optimizer(recipe: Recipe, task: LGDTask, steps_per_epoch: int) -> tuple[torch.optim.Optimizer, Any]:
    settings, schedule = recipe.optimizer, recipe.schedule
    if settings.name not in list_optimizers():
        raise RecipeError(f"optimizer.name {settings.name!r} is unknown to timm. See timm.optim.list_optimizers().")
    lr = settings.lr if settings.lr is not None else settings.lr_base * recipe.data.batch_size / settings.lr_base_size
    options: dict[str, Any] = {"betas": settings.betas} if settings.betas else {}
    try:
        optimizer = create_optimizer_v2(
            task.student,
            opt=settings.name,
            lr=lr,
            weight_decay=settings.weight_decay,
            momentum=settings.momentum,
            filter_bias_and_bn=not settings.weight_decay_all,
            **options,
        )
    except (
        ValueError,
        TypeError,
        RuntimeError,
        AssertionError,
        ImportError,
    ) as error:  # values that it refuses, libraries that it needs
        raise RecipeError(
            f"optimizer {settings.name!r} can't be built of lr = {lr:g} and the recipe's other values ({error})."
        ) from error
    if schedule.warmup_epochs >= schedule.epochs:
        raise RecipeError(
            f"schedule.warmup_epochs = {schedule.warmup_epochs:g} must be below schedule.epochs = {schedule.epochs}."
        )
    warmup: Any = schedule.warmup_epochs  # a fraction of an epoch is fine, whatever timm's annotation says
    scheduler, _ = create_scheduler_v2(
        optimizer,
        sched=schedule.name,
        num_epochs=schedule.epochs,
        warmup_epochs=warmup,
        warmup_lr=schedule.warmup_lr,
        min_lr=schedule.min_lr,
        step_on_epochs=not schedule.per_step,
        updates_per_epoch=steps_per_epoch,
    )
    return optimizer, scheduler
