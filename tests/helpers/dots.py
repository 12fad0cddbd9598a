"""A task of dots, small enough to train in a moment.

What `lgd_timm.transfer` needs of one, for the tests of what all tasks share.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor, nn

from lgd_timm.training.step import TrainStep
from lgd_timm.transfer import run as runs
from lgd_timm.transfer.backbone import Pyramid, PyramidBackbone, find_backbone
from lgd_timm.transfer.job import Item, Job
from lgd_timm.transfer.recipe import (
    BackboneRecipe,
    TransferMachine,
    TransferOptimizer,
    TransferRecipe,
    TransferSchedule,
)
from lgd_timm.utils.checkpoint import all_checkpoints
from lgd_timm.utils.distributed import Ranks

CPU = torch.device("cpu")


@dataclass(frozen=True)
class DotsRecipe(TransferRecipe):
    head: dict[str, Any] = field(default_factory=lambda: {"dropout": 0.5})


@dataclass(frozen=True)
class DotsBatch:
    keys: list[str]
    pixels: Tensor
    targets: Tensor

    @classmethod
    def of(cls, samples: list[tuple[str, Tensor, float]]) -> DotsBatch:
        keys, pixels, targets = zip(*samples, strict=True)
        return cls(list(keys), torch.stack(pixels), torch.tensor(targets))

    def to(self, device: torch.device) -> DotsBatch:
        return DotsBatch(self.keys, self.pixels.to(device), self.targets.to(device))


class Dots:
    """Pictures of noise, as bright as their index; what is added depends on the epoch."""

    def __init__(self, count: int = 6) -> None:
        self.count = count
        self.seen: list[Item] = []

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, item: Item) -> tuple[str, Tensor, float]:
        self.seen.append(item)
        index, epoch = item
        draw = torch.Generator().manual_seed(1000 * epoch + index)
        return f"dot{index}", torch.rand(3, 32, 32, generator=draw) + index, float(index)


class DotsModel(nn.Module):
    """Brightness, by regression, with dropout and a buffer that moves: all that a resumed run has to get right."""

    def __init__(self, backbone: PyramidBackbone, *, dropout: float) -> None:
        super().__init__()
        self.pyramid = Pyramid(backbone, levels=[1], frozen_norms=False)
        self.head = nn.Sequential(nn.Dropout(dropout), nn.Linear(self.pyramid.channels[0], 1))

    def forward(self, batch: DotsBatch) -> dict[str, Tensor]:
        (maps,) = self.pyramid(batch.pixels)
        difference = self.head(maps.mean((2, 3)))[:, 0] - batch.targets
        return {"squared": difference.square().mean(), "absolute": 0.1 * difference.abs().mean()}


class DotsTask:
    """As `lgd_timm.transfer.detect` is one. `scores` are given out one by one, at each evaluation."""

    RECIPE = DotsRecipe

    def __init__(self) -> None:
        self.pictures = Dots()
        self.scores: Iterator[float] = iter(range(1, 1000))
        self.changes: dict[str, Any] = {}  # of the job

    def create(self, recipe: DotsRecipe, *, backbone: PyramidBackbone, classes: Any) -> DotsModel:
        return DotsModel(backbone, dropout=recipe.head["dropout"])

    def prepare(self, recipe: DotsRecipe, *, out: Path, device: torch.device, ranks: Ranks) -> Job:
        source = find_backbone(recipe.backbone, seed=recipe.machine.seed)
        torch.manual_seed(recipe.machine.seed)
        model = self.create(recipe, backbone=source, classes=())
        made: dict[str, Any] = {
            "classes": ("dot",),
            "pictures": self.pictures,
            "batch_size": 2,
            "data_identity": {"dots": 1},
            "scores": self._scores,
        }
        made |= {"recipe": recipe, "model": model, "backbone": model.pyramid, "source": source, "collate": DotsBatch.of}
        return Job(**{**made, "out": out, "device": device, "ranks": ranks, **self.changes})

    def draw(
        self, model: nn.Module, picture: Image.Image, *, classes: Any, recipe: Any, device: torch.device
    ) -> Image.Image:
        assert not model.training
        return picture.transpose(Image.Transpose.ROTATE_180)

    def _scores(self) -> Mapping[str, float]:
        return {"brightness": float(next(self.scores)), "other": 0.0}


def recipe(**changes: Any) -> DotsRecipe:
    """3 epochs of 3 steps, with momentum, warm-up and a milestone."""
    made = DotsRecipe(
        name="dots",
        backbone=BackboneRecipe("test_efficientnet", pretrained=False, levels=[1], norms="trained"),
        optimizer=TransferOptimizer(lr=0.01),
        schedule=TransferSchedule(epochs=3, milestones=[2], warmup_steps=2),
        machine=TransferMachine(device="cpu", workers=0, log_every=1, keep_checkpoints=100),
    )
    for part, values in changes.items():
        made = replace(made, **{part: replace(getattr(made, part), **values)})
    return made


def run(out: Path, *, resume: bool = False, **changes: Any) -> dict[str, Any]:
    return runs.transfer("detect", recipe(**changes), out=out, resume=resume)


def weights(out: Path) -> dict[str, Tensor]:
    return load_file(out / "model.safetensors")


def assert_equal(first: dict[str, Tensor], second: dict[str, Tensor]) -> None:
    assert first.keys() == second.keys()
    assert [name for name in first if not torch.equal(first[name], second[name])] == []


def log(out: Path) -> list[dict[str, Any]]:
    """Lines of the log, without what the clock says."""
    lines = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    return [{name: value for name, value in line.items() if name != "images_per_second"} for line in lines]


def steps(out: Path) -> list[int]:
    return [int(path.name.removeprefix("step-")) for path in all_checkpoints(out / "checkpoints")]


def struck(monkeypatch: pytest.MonkeyPatch, *, step: int, strike: Callable[[], Any]) -> None:
    """Something happens in the middle of a step."""
    take = TrainStep.take

    def taken(self: TrainStep, batch: Any) -> Any:
        if self.run.step == step:
            strike()
        return take(self, batch)

    monkeypatch.setattr(TrainStep, "take", taken)
