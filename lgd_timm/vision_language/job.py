"""One training of a vision-language model as the training engine sees it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..data.loader import WorkerDataLoader
from ..errors import RecipeError
from ..training.engine import ScoredTrainable
from ..training.optim import build_optimizer
from ..training.step import Skipped
from ..transfer.job import PictureSampler
from ..transfer.recipe import TransferMachine
from ..utils.distributed import Ranks
from ..utils.schema import MACHINE, marked
from .batch import Batch, TrainingSet, collate
from .learner import Learner, Taught
from .recipe import DistillationRecipe, VLRecipe, VLSchedule
from .teacher import Teacher


@dataclass
class VLJob(ScoredTrainable):
    """What is trained, on what, by whom it is taught, and how it is scored.

    Args:
        recipe: settings.
        learner: the student and its losses.
        data: the training set.
        teacher: gives states; None without one.
        scores: evaluates the student on all ranks; None: nothing is evaluated.
        facts: what a resumed run must have in common with the one before, beside the recipe (JSON).
        out: the run's folder.
        device: where the learner is.
        ranks: the processes that train together.

    Raises:
        RecipeError: too few samples for a batch, a batch that the ranks can't share, an unknown optimizer.
    """

    recipe: VLRecipe
    learner: Learner
    data: TrainingSet
    teacher: Teacher | None
    scores: Callable[[], Mapping[str, float]] | None
    facts: Mapping[str, Any]
    out: Path
    device: torch.device
    ranks: Ranks = field(default_factory=Ranks)
    step: int = 0
    _taught: Taught | None = None  # of the step that is being taken

    def __post_init__(self) -> None:
        recipe, count, size = self.recipe, len(self.data), self.recipe.data.batch_size
        if count < size:
            raise RecipeError(f"{count} samples do not fill a batch of {size}. Lower data.batch_size.")
        if size % self.ranks.world_size:
            raise RecipeError(f"data.batch_size = {size} is global and must divide by {self.ranks.world_size} ranks.")
        self.title, self.machine, self.model = recipe.name, recipe.machine, self.learner
        self.epochs, self.steps_per_epoch, self.batch_size = recipe.schedule.epochs, count // size, size
        self.clip_grad = recipe.optimizer.clip_grad
        self.optimizer = build_optimizer(
            self.learner,
            name=recipe.optimizer.name,
            lr=recipe.optimizer.lr,
            momentum=0.9,
            weight_decay=recipe.optimizer.weight_decay,
            filter_bias_and_bn=True,
        )
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=recipe.machine.amp == "float16")
        self.skipped = Skipped(recipe.machine.max_skipped)

    @property
    def modules(self) -> Mapping[str, nn.Module]:
        distillation = self.learner.distillation
        return {"student": self.learner.student, **({} if distillation is None else {"distillation": distillation})}

    @property
    def identity(self) -> dict[str, Any]:
        recipe = self.recipe.to_dict()
        recipe["run"] = _without(recipe["run"], marked(TransferMachine, MACHINE))
        recipe["distillation"] = _without(recipe["distillation"], (*marked(DistillationRecipe, MACHINE), "teacher"))
        recipe["data"] = {key: recipe["data"][key] for key in ("batch_size", "variants")}
        parts = ("task", "data", "text", "regions", "model", "distillation", "optimizer", "schedule", "run")
        return {**{part: recipe[part] for part in parts}, **self.facts}

    def batches(self) -> Iterator[Batch]:
        sampler = PictureSampler(
            len(self.data),
            batch_size=self.batch_size,
            seed=self.recipe.machine.seed,
            start=self.step,
            stop=self.epochs * self.steps_per_epoch,
            ranks=self.ranks,
        )
        loader: WorkerDataLoader[Batch] = WorkerDataLoader(
            self.data,
            batch_sampler=sampler,
            collate_fn=collate,
            num_workers=self.recipe.machine.workers,
            generator=torch.Generator(),  # else drawing the workers' seed would advance the global generator (dropout)
        )
        for batch in loader:
            yield batch.to(self.device)

    def set_rates(self) -> None:
        share = rate(self.recipe.schedule, self.step, total=self.epochs * self.steps_per_epoch)
        for group in self.optimizer.param_groups:
            group["lr"] = self.recipe.optimizer.lr * share

    def statistics(self) -> Iterable[Tensor]:
        """A forward pass changes no buffer: the queue is changed after the step."""
        return ()

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        noted = {}
        if (critic := self.learner.critic) is not None:
            batch, scores = critic.draw(self.learner.student, batch)
            noted = {"cider": scores.mean()}
        self._taught = None if self.teacher is None else self.teacher(batch)
        losses: dict[str, Tensor] = self.distributed_model(batch, self._taught)
        return {"loss": torch.stack([part.float() for part in losses.values()]).sum(), **losses, **noted}

    def after_step(self) -> None:
        """Put the teacher's states of this step in the queue."""
        if self._taught is not None and self.learner.distillation is not None:
            self.learner.distillation.update(self._taught.states)


def rate(schedule: VLSchedule, step: int, *, total: int) -> float:
    """The share of the learning rate at a step, from 0 to 1."""
    warmup = schedule.warmup * total
    if step < warmup:
        return (step + 1) / (math.floor(warmup) + 1)
    if schedule.name == "constant":
        return 1.0
    done = (step - warmup) / max(1.0, total - warmup)
    return 1 - done if schedule.name == "linear" else 0.5 * (1 + math.cos(math.pi * done))


def _without(mapping: Mapping[str, Any], keys: Iterable[str]) -> dict[str, Any]:
    return {key: value for key, value in mapping.items() if key not in set(keys)}
