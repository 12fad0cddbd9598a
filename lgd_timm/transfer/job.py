"""One training, as a task describes it: model, pictures, scores. `loop.fit` takes it from there."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
from timm.optim import create_optimizer_v2, list_optimizers
from timm.scheduler import create_scheduler_v2
from torch import nn

from ..errors import RecipeError
from ..training.engine import Skipped
from ..utils.checkpoint import load_checkpoint
from ..utils.distributed import Ranks
from .backbone import PyramidBackbone
from .recipe import TransferRecipe

Item = tuple[int, int]  # (index, epoch)


class Pictures(Protocol):
    """A training set. What is drawn at random for a picture depends on (seed, index, epoch) alone, so that a run can be resumed."""

    def __len__(self) -> int: ...

    def __getitem__(self, item: Item) -> Any: ...


@dataclass
class Job:
    """What is trained, on what, and how it is scored.

    `model(batch)` in training mode gives a dictionary of scalar losses; their sum is what is minimised. `backbone` is the part of it
    that learns at `optimizer.backbone_lr`. `collate` makes a batch of samples, whose `.to(device)` moves it, and which has `keys`, the
    names of its pictures. `scores` evaluates the model on all ranks, in percent; the first of them says which checkpoint is best.
    """

    recipe: TransferRecipe
    model: nn.Module
    backbone: nn.Module
    source: PyramidBackbone  # where it came from
    classes: tuple[str, ...]
    pictures: Pictures
    collate: Callable[[list[Any]], Any]
    batch_size: int  # of all ranks together
    scores: Callable[[], Mapping[str, float]] | None
    facts: Mapping[str, Any]  # what a resumed run must agree on, beside the recipe's
    out: Path
    device: torch.device
    ranks: Ranks = field(default_factory=Ranks)
    step: int = 0

    def __post_init__(self) -> None:
        recipe = self.recipe
        if len(self.pictures) < self.batch_size:
            raise RecipeError(
                f"{len(self.pictures)} pictures do not fill a batch of {self.batch_size}. Lower data.batch_size."
            )
        if self.batch_size % self.ranks.world_size:
            raise RecipeError(
                f"data.batch_size = {self.batch_size} is global and must divide by {self.ranks.world_size} ranks."
            )
        self.steps_per_epoch = len(self.pictures) // self.batch_size
        self.total = recipe.schedule.epochs * self.steps_per_epoch
        self.optimizer = _optimizer(recipe, self.model, self.backbone)
        self.scheduler = _scheduler(recipe, self.optimizer, self.steps_per_epoch)
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=recipe.machine.amp == "float16")
        self.skipped = Skipped(recipe.machine.max_skipped)

    @property
    def agreed(self) -> dict[str, Any]:
        """What a resumed run must agree on."""
        recipe = self.recipe.to_dict()
        machine = (
            "device",
            "workers",
            "max_skipped",
            "checkpoint_every",
            "checkpoint_minutes",
            "keep_checkpoints",
            "evaluate_every",
        )
        run = {key: value for key, value in recipe["run"].items() if key not in (*machine, "log_every")}
        return {**{key: recipe[key] for key in ("backbone", "optimizer", "schedule", "head")}, "run": run, **self.facts}

    def set_rates(self) -> None:
        """For the next step: timm's schedule, in warm-up a share of it. timm's own warm-up begins with one rate for all parameters."""
        schedule = self.recipe.schedule
        self.scheduler.step_update(self.step)
        if self.step < schedule.warmup_steps:
            share = schedule.warmup_share + (1 - schedule.warmup_share) * self.step / schedule.warmup_steps
            for group in self.optimizer.param_groups:
                group["lr"] *= share

    def go_on(self, checkpoint: Path) -> None:
        """Take up everything where a checkpoint left it. Raises: as `load_checkpoint`."""
        place = load_checkpoint(
            checkpoint, modules={"model": self.model}, optimizer=self.optimizer, scaler=self.scaler, facts=self.agreed
        )
        self.step, self.skipped.total = place.step, place.counts.get("skipped", 0)


def _optimizer(recipe: TransferRecipe, model: nn.Module, backbone: nn.Module) -> torch.optim.Optimizer:
    """timm's, with the backbone at its share of the rate. Raises: RecipeError."""
    settings = recipe.optimizer
    if settings.name not in list_optimizers():
        raise RecipeError(f"optimizer.name {settings.name!r} is unknown to timm. See timm.optim.list_optimizers().")
    below = {id(parameter) for parameter in backbone.parameters()}
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    groups = [
        {
            "params": [parameter for parameter in trained if id(parameter) in below],
            "lr": settings.lr * settings.backbone_lr,
        },
        {"params": [parameter for parameter in trained if id(parameter) not in below], "lr": settings.lr},
    ]
    return create_optimizer_v2(
        model,
        opt=settings.name,
        lr=settings.lr,
        momentum=settings.momentum,
        weight_decay=settings.weight_decay,
        param_group_fn=lambda _: groups,
    )


def _scheduler(recipe: TransferRecipe, optimizer: torch.optim.Optimizer, steps_per_epoch: int) -> Any:
    schedule = recipe.schedule
    total = schedule.epochs * steps_per_epoch
    if schedule.warmup_steps >= total:
        raise RecipeError(
            f"schedule.warmup_steps = {schedule.warmup_steps} must be below the run's {total} steps ({schedule.epochs} epochs of "
            f"{steps_per_epoch}). Lower it."
        )
    scheduler, _ = create_scheduler_v2(
        optimizer,
        sched=schedule.name,
        num_epochs=schedule.epochs,
        decay_milestones=schedule.milestones,
        decay_rate=schedule.power if schedule.name == "poly" else 0.1,
        warmup_epochs=0,  # see `Job.set_rates`
        step_on_epochs=False,
        updates_per_epoch=steps_per_epoch,
    )
    return scheduler
