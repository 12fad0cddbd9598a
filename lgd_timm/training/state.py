"""One distillation as the training engine sees it."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ..config.recipe import Recipe
from ..data.dataset import BadSamples, Batch, ShardDataset
from ..data.loader import loader, on_device
from ..data.samplers import EpochSampler
from ..evaluate.zero_shot import ZeroShot, zero_shot, zero_shot_classifier
from ..objectives import Assigned, join_assigned
from ..task import LGDTask
from ..teachers.prepare import PreparedTeacher
from ..utils.distributed import Bad, Ranks
from .engine import Trainable
from .step import Skipped

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Validation:
    """What encoders are scored on: labelled images, the names of their labels, and these names' bank [C, D]."""

    dataset: ShardDataset
    names: tuple[str, ...]
    bank: Tensor


class _Pass(NamedTuple):
    """What a pass leaves for the objective's update: the teacher's embeddings [B, D], and the names nearest to them."""

    teacher: Tensor
    assigned: Assigned | None


@dataclass
class Run(Trainable):
    """One distillation: what was built from its recipe, and how many steps were taken. See `engine.Trainable`."""

    recipe: Recipe
    out: Path
    teaching: PreparedTeacher
    validation: Validation | None
    device: torch.device
    ranks: Ranks
    dataset: ShardDataset
    plan: EpochSampler
    task: LGDTask
    optimizer: torch.optim.Optimizer
    scheduler: Any
    scaler: torch.amp.GradScaler
    bad: BadSamples
    skipped: Skipped
    step: int = 0
    _passes: list[_Pass] = field(default_factory=list)  # of the step that is being taken

    def __post_init__(self) -> None:
        recipe = self.recipe
        self.title = "distill"
        self.machine = recipe.machine
        self.epochs, self.steps_per_epoch = recipe.schedule.epochs, self.plan.steps_per_epoch
        self.batch_size, self.clip_grad = recipe.data.batch_size, recipe.optimizer.clip_grad
        self.model = self.task

    @property
    def modules(self) -> Mapping[str, nn.Module]:
        return self.task.state_modules

    @property
    def identity(self) -> dict[str, Any]:
        recipe, stored = self.recipe.to_dict(), self.teaching.stored
        return {
            **{key: recipe[key] for key in ("student", "objective", "optimizer", "schedule")},
            "batch_size": self.recipe.data.batch_size,
            "seed": self.recipe.machine.seed,
            "amp": self.recipe.machine.amp,
            "ema_decay": self.recipe.machine.ema_decay,
            "shards": self.dataset.shards.fingerprint
            # earlier checkpoints, all of the default, don't say it
            + ("" if self.plan.window == EpochSampler.window else f" (windows of {self.plan.window})"),
            "views": [self.teaching.views.fingerprint, self.teaching.views.count],
            "names": self.teaching.vocabulary.fingerprint,
            "teacher": self.teaching.metadata["fingerprint"]
            + (" (of images)" if stored is not None and stored.per_image else ""),
        }

    @property
    def counts(self) -> dict[str, Any]:
        return {"bad": self.bad.reasons, **super().counts}

    def load_counts(self, counts: Mapping[str, Any]) -> None:
        super().load_counts(counts)
        self.bad.reasons.update(counts.get("bad", {}))

    def batches(self) -> Iterator[Batch]:
        """This rank's batches to the last step, on its device, all of one size."""
        plan = replace(self.plan, start=self.step, stop=self.epochs * self.steps_per_epoch)
        read = loader(self.dataset, plan, workers=self.recipe.data.workers)
        yield from on_device((batch.filled(plan.batch_size) for batch in read), self.device)

    def bad_samples(self, batch: Batch) -> Bad:
        return batch.bad

    def count_bad(self, bad: Bad) -> None:
        for line in self.bad.add(bad):
            log.warning(line)

    def set_rates(self) -> None:
        epoch, rest = divmod(self.step, self.steps_per_epoch)
        if rest == 0:
            self.scheduler.step(epoch)
        self.scheduler.step_update(self.step)

    def statistics(self) -> Iterable[Tensor]:
        """The student's batch statistics, and the objective's banks where its loss fills them."""
        objective = self.task.objective
        return [*self.task.student.buffers(), *(() if objective.per_image else objective.buffers())]

    def passes(self, batch: Batch) -> Sequence[tuple[Batch, float]]:
        self._passes.clear()  # of a step that was left out
        parts = batch.split(self.recipe.machine.accumulate)
        return [(part, len(part.keys) / len(batch.keys)) for part in parts]

    def no_sync(self) -> AbstractContextManager[Any]:
        return self.task.no_sync()

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        embeddings = None if batch.embeddings is None else batch.embeddings.float()
        result = self.task(batch.images, embeddings, labels=batch.labels)
        self._passes.append(_Pass(result["teacher"], result.get("assigned")))
        return {name: value for name, value in result.items() if name.startswith("loss")}

    def after_step(self) -> None:
        """Update the objective's banks with the teacher's embeddings, and the average of the student."""
        teachers, assigned = zip(*self._passes, strict=True)
        teacher = teachers[0] if len(teachers) == 1 else torch.cat(teachers)
        self.task.update(teacher, assigned=join_assigned(assigned))
        self._passes.clear()
        self.task.update_ema(step=self.step)

    def evaluates(self, epoch: int) -> bool:
        """Not at the end, where what is published is evaluated instead."""
        return self.validation is not None and 0 < epoch < self.epochs and epoch % self.machine.evaluate_every == 0

    def evaluate(self) -> dict[str, float]:
        result = self.zero_shot(self.task.best_student, ranks=self.ranks)
        return {"zero_shot_top1": result.top1, "zero_shot_top5": result.top5}

    def zero_shot(self, encoder: nn.Module, *, ranks: Ranks) -> ZeroShot:
        """Measure an encoder's zero-shot accuracy on the recipe's evaluation split, which there must be.

        Args:
            encoder: maps images [B, 3, H, W] to embeddings [B, D]; is left in eval mode.
            ranks: which share the images out.
        """
        assert self.validation is not None
        if ranks.world_size > 1:
            for buffer in encoder.buffers():  # batch statistics, in which ranks differ by their last step
                torch.distributed.broadcast(buffer, 0)
        return self.score(
            zero_shot_classifier(encoder.eval(), self.validation.bank), self.validation.dataset, ranks=ranks
        )

    def score(self, classify: Callable[[Batch], Tensor], dataset: ShardDataset, *, ranks: Ranks) -> ZeroShot:
        """Measure a classifier's accuracy on the evaluation split, or on a dataset of the same names."""
        assert self.validation is not None
        data = self.recipe.data
        return zero_shot(
            classify,
            dataset,
            names=self.validation.names,
            workers=data.workers,
            device=self.device,
            max_bad=data.max_bad,
            ranks=ranks,
        )
