"""A step on an accelerator must not wait for the device: no tensor is read, no size depends on values.

There is no accelerator here, so the step is told to decide on the device, and what it would read is counted on a CPU.
"""

from __future__ import annotations

import sys
from collections import Counter
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from lgd_timm.config.reader import recipe_from_dict
from lgd_timm.training.build import build
from lgd_timm.training.engine import Trainable
from lgd_timm.training.step import TrainStep
from lgd_timm.transfer.detect import prepare as prepare_detector
from lgd_timm.transfer.detect.recipe import DetectRecipe
from lgd_timm.transfer.segment import prepare as prepare_segmenter
from lgd_timm.utils.distributed import Ranks
from lgd_timm.utils.schema import build as build_dataclass
from tests.helpers.detect_data import tiny_recipe, write_coco
from tests.helpers.dots import CPU
from tests.helpers.segment_data import make_folder, recipe_of

Dict = dict[str, Any]

# What makes the host wait for an accelerator: a value (`item`, `bool`, `float`), or a size that depends on values.
WAITS = {"_local_scalar_dense", "nonzero", "masked_select", "_unique2", "unique_dim", "unique_consecutive", "equal"}


class Waits(TorchDispatchMode):
    """Count the calls that would wait for an accelerator, but for those made within some packages' code."""

    def __init__(self, *, besides: tuple[str, ...] = ()) -> None:
        super().__init__()
        self.found: Counter[str] = Counter()
        self._besides = besides

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        masks = name in ("index", "index_put_", "index_put") and any(
            isinstance(index, torch.Tensor) and index.dtype in (torch.bool, torch.uint8) for index in args[1]
        )
        if (name in WAITS or masks) and not any(package in file for file in _files() for package in self._besides):
            self.found[name] += 1
        return func(*args, **(kwargs or {}))


def _files() -> list[str]:
    frame, files = sys._getframe(1), []
    while frame is not None:
        files.append(frame.f_code.co_filename)
        frame = frame.f_back  # type: ignore[assignment]
    return files


def waits(run: Trainable, **options: Any) -> Counter[str]:
    """What the third step counts; the first makes the optimizer's state."""
    run.model.train()
    step = TrainStep(run, on_device=True)
    first, second, third = islice(run.batches(), 3)
    for run.step, batch in enumerate((first, second)):
        step.take(batch)
    run.step = 2
    run.set_rates()
    with Waits(**options) as counter:
        step.take(third)
    step.settle()
    assert run.skipped.total == 0
    return counter.found


def test_the_counter_sees_what_would_wait() -> None:
    values = torch.arange(4.0)
    with Waits() as counter:
        values.sum().item()
        bool(values.sum() > 1)
        values[values > 1]
        values.nonzero()
        values[torch.tensor([0, 1])]  # does not wait
    assert counter.found == {"_local_scalar_dense": 2, "index": 1, "nonzero": 1}


def test_deciding_on_the_host_waits_once(recipe_dict: Dict, tmp_path: Path) -> None:
    run = build(recipe_from_dict(recipe_dict), tmp_path)
    run.model.train()
    step, batches = TrainStep(run), list(islice(run.batches(), 2))
    step.take(batches[0])
    with Waits() as counter:
        step.take(batches[1])
    assert counter.found == {"_local_scalar_dense": 1}


OBJECTIVES: dict[str, Dict] = {
    "lgd reference": {"preset": "reference"},
    "lgd paper": {"preset": "paper"},
    "lgd sharp": {"preset": "sharp"},
    "lgd soft": {"preset": "paper", "assignment": "soft", "mask_unseen": True, "renormalize": True},
    "lgd before": {"preset": "paper", "update": "before"},
    "seed": {"kind": "seed", "queue_size": 32},
    "lightly_train": {"kind": "seed", "preset": "lightly_train", "queue_size": 32},
    "clip_kd": {"kind": "clip_kd"},
    "regression": {"kind": "regression"},
    "logits": {"kind": "logits"},
    "supervised": {"kind": "supervised"},
}


@pytest.mark.parametrize("name", OBJECTIVES)
def test_a_distillation_step_waits_for_nothing(recipe_dict: Dict, tmp_path: Path, name: str) -> None:
    recipe = {**recipe_dict, "objective": OBJECTIVES[name], "optimizer": {"name": "sgd", "lr": 0.01, "clip_grad": 1.0}}
    run = build(recipe_from_dict({**recipe, "run": {"device": "cpu", "ema_decay": 0.9}}), tmp_path)
    assert waits(run) == {}


@pytest.mark.parametrize("changes", [{"amp": "bfloat16"}, {"accumulate": 2}], ids=["bfloat16", "passes"])
def test_precision_and_passes_wait_for_nothing(recipe_dict: Dict, tmp_path: Path, changes: Dict) -> None:
    run = build(recipe_from_dict({**recipe_dict, "run": {"device": "cpu", **changes}}), tmp_path)
    assert waits(run) == {}


@pytest.mark.parametrize("name", ["adamw", "lamb"])
def test_other_optimizers_read_their_own_count_of_steps_alone(recipe_dict: Dict, tmp_path: Path, name: str) -> None:
    """It lies on the host, where reading it waits for nothing."""
    run = build(recipe_from_dict({**recipe_dict, "optimizer": {"name": name, "lr": 0.01}}), tmp_path)
    assert waits(run, besides=("/torch/optim/", "/timm/optim/")) == {}


def test_a_segmentation_step_waits_for_nothing(tmp_path: Path) -> None:
    recipe = recipe_of(make_folder(tmp_path / "data"), optimizer={"name": "sgd"})
    run = prepare_segmenter(recipe, out=tmp_path / "run", device=CPU, ranks=Ranks())
    assert waits(run) == {}


@pytest.mark.parametrize(("kind", "backward"), [("mask_rcnn", {}), ("retinanet", {"index_put": 2})])
def test_a_detection_step_waits_in_torchvisions_code_alone(tmp_path: Path, kind: str, backward: Dict) -> None:
    """torchvision picks proposals and anchors by masks; `backward` is autograd's side of that."""
    write_coco(tmp_path / "data")
    recipe = tiny_recipe(tmp_path / "data")
    recipe |= {"head": {**recipe.get("head", {}), "kind": kind}, "optimizer": {"name": "sgd", "lr": 1e-3}}
    run = prepare_detector(build_dataclass(DetectRecipe, recipe, where=""), out=tmp_path, device=CPU, ranks=Ranks())
    assert waits(run, besides=("/torchvision/",)) == backward
