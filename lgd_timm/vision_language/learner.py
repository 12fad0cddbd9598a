"""A student, what it learns from the data, and what from a teacher: all that is trained."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy

from .batch import Batch
from .losses.attention import attention_loss, check_heads
from .losses.blocks import States, fit_blocks, mean_of_tokens
from .losses.hidden_mse import HiddenMSE
from .losses.logits import soft_cross_entropy
from .losses.nce import TokenNCE
from .model import Output, VisionLanguageModel
from .recipe import Answers, Captions, DistillationRecipe, Task
from .self_critical import SelfCritical
from .stock import AnyModel
from .text import IGNORED


class Taught(NamedTuple):
    """What a teacher says of a batch, without gradients.

    Attributes:
        states: of its blocks; a stored teacher has its last.
        logits: of the words at the places with a target [N, V], or of the answers [B, A].
    """

    states: States
    logits: Tensor


class Distillation(nn.Module):
    """The losses between student and teacher that have a weight.

    Args:
        recipe: weights and switches.
        student, teacher: the two models.

    Raises:
        RecipeError: a loss can't be computed of these models.
    """

    def __init__(self, recipe: DistillationRecipe, *, student: AnyModel, teacher: AnyModel) -> None:
        super().__init__()
        self.recipe = recipe
        ours, theirs = student.config, teacher.config
        widths = {"student": ours.width, "teacher": theirs.width}
        if recipe.attention.weight:
            check_heads(recipe.attention, student=(ours.layers, ours.heads), teacher=(theirs.layers, theirs.heads))
        for name, config in (("nce", recipe.nce), ("hidden_mse", recipe.hidden_mse)):
            if config.weight:
                where = f"distillation.{name}.blocks"
                fit_blocks(config.blocks, student=ours.layers, teacher=theirs.layers, where=where)
        self.nce = TokenNCE(recipe.nce, **widths) if recipe.nce.weight else None
        self.hidden_mse = HiddenMSE(recipe.hidden_mse, **widths) if recipe.hidden_mse.weight else None

    def forward(self, states: States, taught: States) -> dict[str, Tensor]:
        """Compute the weighted losses of hidden states and attention, by name."""
        recipe, losses = self.recipe, {}
        if recipe.attention.weight:
            losses["attention"] = recipe.attention.weight * attention_loss(states, taught, recipe.attention)
        if self.nce is not None:
            losses["nce"] = recipe.nce.weight * self.nce(states, taught)
        if self.hidden_mse is not None:
            losses["hidden_mse"] = recipe.hidden_mse.weight * self.hidden_mse(states, taught)
        return losses

    def update(self, taught: States) -> None:
        """Put the teacher's states in the queue; after the optimizer's step, on every rank."""
        if self.nce is not None:
            self.nce.update(taught)


class Learner(nn.Module):
    """A student with its losses.

    Args:
        student: what is trained.
        task: what it predicts.
        distillation: its losses to a teacher, whose projectors are trained too; None without one.
        critic: draws and scores captions, which are learned from in the place of the data's; None: the data's are.
    """

    def __init__(
        self,
        student: AnyModel,
        *,
        task: Task,
        distillation: Distillation | None = None,
        critic: SelfCritical | None = None,
    ) -> None:
        super().__init__()
        self.student, self.task, self.distillation, self.critic = student, task, distillation, critic

    def forward(self, batch: Batch, taught: Taught | None = None) -> dict[str, Tensor]:
        """Compute the losses of a batch, weighted, by name. Their sum is minimised."""
        if self.critic is not None:
            return {"task": self.critic.loss(self.student, batch)}
        out = self.student(batch, states=taught is not None)
        logits = task_logits(self.student, out, batch)
        losses = {"task": task_loss(logits, batch, self.task)}
        if taught is not None and self.distillation is not None:
            assert out.states is not None
            losses |= self.distillation(out.states, taught.states)
            config = self.distillation.recipe.logits
            if config.weight:
                rows = soft_cross_entropy(logits, taught.logits, config)
                losses["logits"] = config.weight * mean_of_rows(rows, batch)
        return losses


def task_logits(model: AnyModel, out: Output, batch: Batch) -> Tensor:
    """Score what the task asks: words at the places with a target [N, V], or answers [B, A]."""
    if batch.answers is not None:
        assert isinstance(model, VisionLanguageModel)
        return model.answer_logits(out.last)
    return model.word_logits(out.last[:, : batch.words.shape[1]][batch.targets != IGNORED])


def task_loss(logits: Tensor, batch: Batch, task: Task) -> Tensor:
    """Compute the loss to the data's own targets, float32 [].

    Words: cross-entropy; for captions with the task's label smoothing. Answers: binary cross-entropy of each with its
    soft score, summed over answers (Oscar's "mean times classes").
    """
    if isinstance(task, Answers):
        assert batch.answers is not None
        return binary_cross_entropy_with_logits(logits.float(), batch.answers, reduction="none").sum(1).mean()
    smoothing = task.label_smoothing if isinstance(task, Captions) else 0.0
    targets = batch.targets[batch.targets != IGNORED]
    rows = cross_entropy(logits.float(), targets, reduction="none", label_smoothing=smoothing)
    return mean_of_rows(rows, batch)


def mean_of_rows(rows: Tensor, batch: Batch) -> Tensor:
    """Average what `task_logits` has a row for: a sample's places first, then the samples."""
    if batch.answers is not None:
        return rows.mean()
    asked = batch.targets != IGNORED
    return mean_of_tokens(rows.new_zeros(asked.shape).masked_scatter(asked, rows), asked)


def correct_words(logits: Tensor, batch: Batch) -> list[tuple[int, int]]:
    """Of each sample, count the places whose most probable word is the target, and the places with a target."""
    asked = batch.targets != IGNORED
    right = torch.zeros_like(asked).masked_scatter(asked, logits.argmax(1) == batch.targets[asked])
    return list(zip(right.sum(1).tolist(), asked.sum(1).tolist(), strict=True))
