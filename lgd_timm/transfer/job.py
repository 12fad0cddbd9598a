"""One transfer as the training engine sees it; a task says what its model, its images and its scores are."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import Sampler

from ..data.loader import WorkerDataLoader
from ..errors import RecipeError
from ..training.engine import ScoredTrainable
from ..training.optim import build_optimizer, build_scheduler, rate_groups
from ..training.step import Skipped
from ..utils.distributed import Ranks
from ..utils.schema import MACHINE, marked
from .backbone import PyramidBackbone
from .recipe import TransferMachine, TransferRecipe

Item = tuple[int, int]  # (index, epoch)


class Pictures(Protocol):
    """A training set.

    What is drawn at random for an image depends on (seed, index, epoch) alone: a run can be resumed.
    """

    def __len__(self) -> int: ...

    def __getitem__(self, item: Item) -> Any: ...


@dataclass
class Job(ScoredTrainable):
    """What is trained, on what, and how it is scored.

    Args:
        recipe: of the task.
        model: in training mode it takes a batch and returns scalar losses by name; their sum is minimised.
        backbone: the part of `model` that learns at the rate `optimizer.lr * optimizer.backbone_lr`.
        source: where the backbone came from.
        classes: names of the classes.
        pictures: the training set.
        collate: makes a batch of samples. A batch has `to(device)` and `keys`, the names of its images.
        batch_size: of all ranks together.
        scores: evaluates the model on all ranks, in percent; the first score says which checkpoint is best.
            None: nothing is evaluated.
        data_identity: what a resumed run must have in common with the one before, beside the recipe's (JSON).

    Raises:
        RecipeError: too few images for a batch, a batch that the ranks can't share, an optimizer or schedule that can't
        be built.
    """

    recipe: TransferRecipe
    model: nn.Module
    backbone: nn.Module
    source: PyramidBackbone
    classes: tuple[str, ...]
    pictures: Pictures
    collate: Callable[[list[Any]], Any]
    batch_size: int
    scores: Callable[[], Mapping[str, float]] | None
    data_identity: Mapping[str, Any]
    out: Path
    device: torch.device
    ranks: Ranks = field(default_factory=Ranks)
    step: int = 0

    def __post_init__(self) -> None:
        recipe, count, world_size = self.recipe, len(self.pictures), self.ranks.world_size
        if count < self.batch_size:
            raise RecipeError(f"{count} pictures do not fill a batch of {self.batch_size}. Lower data.batch_size.")
        if self.batch_size % world_size:
            raise RecipeError(f"data.batch_size = {self.batch_size} is global and must divide by {world_size} ranks.")
        self.title, self.machine = recipe.name, recipe.machine
        self.epochs, self.steps_per_epoch = recipe.schedule.epochs, count // self.batch_size
        self.clip_grad = recipe.optimizer.clip_grad
        self.optimizer = _optimizer(recipe, self.model, self.backbone)
        self.scheduler = _scheduler(recipe, self.optimizer, self.steps_per_epoch)
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=recipe.machine.amp == "float16")
        self.skipped = Skipped(recipe.machine.max_skipped)

    @property
    def modules(self) -> Mapping[str, nn.Module]:
        return {"model": self.model}

    @property
    def identity(self) -> dict[str, Any]:
        recipe = self.recipe.to_dict()
        local = marked(TransferMachine, MACHINE)
        run = {key: value for key, value in recipe["run"].items() if key not in local}
        parts = {key: recipe[key] for key in ("backbone", "optimizer", "schedule", "head")}
        return {**parts, "run": run, **self.data_identity}

    @property
    def lr(self) -> float:
        """The learning rate of what is not the backbone."""
        return float(self.optimizer.param_groups[-1]["lr"])

    def batches(self) -> Iterator[Any]:
        loader: WorkerDataLoader[Any] = WorkerDataLoader(
            self.pictures,
            batch_sampler=self.sampler(),  # of pairs and not of numbers
            collate_fn=self.collate,
            num_workers=self.recipe.machine.workers,
        )
        for batch in loader:
            yield batch.to(self.device)

    def sampler(self) -> PictureSampler:
        """This rank's share of the batches that are left."""
        return PictureSampler(
            len(self.pictures),
            batch_size=self.batch_size,
            seed=self.recipe.machine.seed,
            start=self.step,
            stop=self.epochs * self.steps_per_epoch,
            ranks=self.ranks,
        )

    def set_rates(self) -> None:
        """Set timm's rates; in warm-up a share of them. timm's own warm-up begins with one rate for all parameters."""
        schedule = self.recipe.schedule
        self.scheduler.step_update(self.step)
        if self.step < schedule.warmup_steps:
            share = schedule.warmup_share + (1 - schedule.warmup_share) * self.step / schedule.warmup_steps
            for group in self.optimizer.param_groups:
                group["lr"] *= share

    def losses(self, batch: Any) -> dict[str, Tensor]:
        losses: dict[str, Tensor] = self.distributed_model(batch)
        return {"loss": torch.stack([part.float() for part in losses.values()]).sum(), **losses}

    def after_step(self) -> None:
        """Nothing is left to do."""


class PictureSampler(Sampler[list[Item]]):
    """Sample one rank's share of each batch of steps [start, stop).

    Every epoch has an order of its own, of which what fills no batch is left out.
    """

    def __init__(self, count: int, *, batch_size: int, seed: int, start: int, stop: int, ranks: Ranks) -> None:
        self._count, self._batch_size, self._seed = count, batch_size, seed
        self._start, self._stop, self._ranks = start, stop, ranks

    def __len__(self) -> int:
        return self._stop - self._start

    def __iter__(self) -> Iterator[list[Item]]:
        size, ranks = self._batch_size, self._ranks
        for step in range(self._start, self._stop):
            epoch, number = divmod(step, self._count // size)
            order = np.random.default_rng((self._seed, epoch)).permutation(self._count)
            batch = order[number * size : (number + 1) * size][ranks.rank :: ranks.world_size]
            yield [(int(index), epoch) for index in batch]


def _optimizer(recipe: TransferRecipe, model: nn.Module, backbone: nn.Module) -> torch.optim.Optimizer:
    """timm's, with the backbone at its share of the rate. Raises: RecipeError."""
    settings = recipe.optimizer
    return build_optimizer(
        model,
        name=settings.name,
        lr=settings.lr,
        momentum=settings.momentum,
        weight_decay=settings.weight_decay,
        groups=rate_groups(model, backbone, lr=settings.lr, part_lr=settings.lr * settings.backbone_lr),
    )


def _scheduler(recipe: TransferRecipe, optimizer: torch.optim.Optimizer, steps_per_epoch: int) -> Any:
    schedule = recipe.schedule
    total = schedule.epochs * steps_per_epoch
    if schedule.warmup_steps >= total:
        raise RecipeError(
            f"schedule.warmup_steps = {schedule.warmup_steps} must be below the run's {total} steps "
            f"({schedule.epochs} epochs of {steps_per_epoch}). Lower it."
        )
    return build_scheduler(
        optimizer,
        name=schedule.name,
        epochs=schedule.epochs,
        steps_per_epoch=steps_per_epoch,
        decay_milestones=schedule.milestones,
        decay_rate=schedule.power if schedule.name == "poly" else 0.1,
        warmup_epochs=0,  # see `Job.set_rates`
    )
