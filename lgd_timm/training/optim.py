"""Build timm's optimizers and schedules, from the values of any recipe."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from timm.optim import create_optimizer_v2, list_optimizers
from timm.scheduler import create_scheduler_v2
from torch import nn

from ..errors import RecipeError

BUILD_ERRORS = (ValueError, TypeError, RuntimeError, AssertionError, ImportError)  # values refused, libraries missing


def check_optimizer(name: str) -> None:
    """Check that timm knows an optimizer. Raises: RecipeError."""
    if name not in list_optimizers():
        raise RecipeError(f"optimizer.name {name!r} is unknown to timm. See timm.optim.list_optimizers().")


def build_optimizer(
    model: nn.Module,
    *,
    name: str,
    lr: float,
    momentum: float,
    weight_decay: float,
    groups: Sequence[dict[str, Any]] | None = None,
    **options: Any,
) -> torch.optim.Optimizer:
    """Build one of timm's optimizers.

    Args:
        model: whose parameters are trained.
        name: one of `timm.optim.list_optimizers()`.
        lr: learning rate of the parameters whose group has none of its own.
        momentum: of optimizers that have one.
        weight_decay: of all parameters, unless `options` say otherwise.
        groups: parameters with settings of their own, as torch's optimizers take them; None: all of the model's.
        options: passed on to `timm.optim.create_optimizer_v2`.

    Raises:
        RecipeError: the optimizer is unknown, refuses a value, or needs a library that is missing.
    """
    check_optimizer(name)
    if groups is not None:
        options["param_group_fn"] = lambda _: list(groups)
    try:
        return create_optimizer_v2(model, opt=name, lr=lr, weight_decay=weight_decay, momentum=momentum, **options)
    except BUILD_ERRORS as error:
        raise RecipeError(
            f"optimizer {name!r} can't be built of lr = {lr:g} and the recipe's other values ({error})."
        ) from error


def rate_groups(model: nn.Module, part: nn.Module, *, lr: float, part_lr: float) -> list[dict[str, Any]]:
    """Group the trained parameters of a model: those of a part of it at a rate of their own, then the others."""
    inside = {id(parameter) for parameter in part.parameters()}
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    return [
        {"params": [parameter for parameter in trained if id(parameter) in inside], "lr": part_lr},
        {"params": [parameter for parameter in trained if id(parameter) not in inside], "lr": lr},
    ]


def build_scheduler(
    optimizer: torch.optim.Optimizer,
    *,
    name: str,
    epochs: int,
    steps_per_epoch: int,
    per_step: bool = True,
    **options: Any,
) -> Any:
    """Build one of timm's schedules.

    Args:
        optimizer: whose learning rates it sets.
        name: multistep, cosine, tanh, poly or constant.
        epochs: how many epochs the run has.
        steps_per_epoch: how many steps an epoch has.
        per_step: whether rates change with every step, by `step_update`, or with every epoch, by `step`.
        options: passed on to `timm.scheduler.create_scheduler_v2`.
    """
    scheduler, _ = create_scheduler_v2(
        optimizer,
        sched=name,
        num_epochs=epochs,
        step_on_epochs=not per_step,
        updates_per_epoch=steps_per_epoch,
        **options,
    )
    return scheduler
