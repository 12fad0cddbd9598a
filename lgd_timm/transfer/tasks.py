"""Find a task by its name, and say what each has to implement."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import torch
from PIL import Image
from torch import nn

from ..utils.distributed import Ranks
from .backbone import PyramidBackbone
from .job import Job
from .recipe import TransferRecipe

TASKS = ("detect", "segment")


class Task(Protocol):
    """What the module `lgd_timm.transfer.<task>` has."""

    RECIPE: type[TransferRecipe]

    def create(self, recipe: Any, *, backbone: PyramidBackbone, classes: Sequence[str]) -> nn.Module:
        """Build the whole model on a backbone."""

    def prepare(self, recipe: Any, *, out: Path, device: torch.device, ranks: Ranks) -> Job:
        """Read data and backbone and make a job of them, without writing. Raises: LGDError."""

    def draw(
        self, model: nn.Module, picture: Image.Image, *, classes: Sequence[str], recipe: Any, device: torch.device
    ) -> Image.Image:
        """Draw what the model, in eval mode, predicts into a copy of the image."""


def find_task(name: str) -> Task:
    """Import a task, one of TASKS."""
    assert name in TASKS
    task: Any = importlib.import_module(f"{__package__}.{name}")
    return task
