"""Hold the state of one distillation."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..config.recipe import Recipe
from ..data.dataset import BadSamples, ShardDataset
from ..data.samplers import EpochSampler
from ..task import LGDTask
from ..teachers.prepare import Teaching
from ..utils.checkpoint import load_checkpoint
from ..utils.distributed import Ranks
from .engine import Skipped


@dataclass(frozen=True)
class Validation:
    """What encoders are scored on: labelled images, the names of their labels, and these names' bank [C, D]."""

    dataset: ShardDataset
    names: tuple[str, ...]
    bank: Tensor


@dataclass
class Run:
    """One distillation: what was built, and where it stands."""

    recipe: Recipe
    out: Path
    teaching: Teaching
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

    @property
    def counts(self) -> dict[str, Any]:
        """What a resumed run goes on counting."""
        return {"bad": self.bad.reasons, "skipped": self.skipped.total}

    def go_on(self, checkpoint: Path) -> None:
        """Take up everything where a checkpoint left it. Raises: as `load_checkpoint`."""
        place = load_checkpoint(
            checkpoint, modules=self.task.kept, optimizer=self.optimizer, scaler=self.scaler, facts=self.facts
        )
        self.step = place.step
        self.bad.reasons.update(place.counts.get("bad", {}))
        self.skipped.total = place.counts.get("skipped", 0)

    @property
    def facts(self) -> dict[str, Any]:
        """What a resumed run must agree on: all that decides the numbers, but not how the machine makes them."""
        recipe, stored = self.recipe.to_dict(), self.teaching.stored
        return {
            **{key: recipe[key] for key in ("student", "objective", "optimizer", "schedule")},
            "batch_size": self.recipe.data.batch_size,
            "seed": self.recipe.machine.seed,
            "amp": self.recipe.machine.amp,
            "ema_decay": self.recipe.machine.ema_decay,
            "shards": self.dataset.shards.fingerprint,
            "views": [self.teaching.views.fingerprint, self.teaching.views.count],
            "names": self.teaching.vocabulary.fingerprint,
            "teacher": self.teaching.facts["fingerprint"]
            + (" (of images)" if stored is not None and stored.per_image else ""),
        }
