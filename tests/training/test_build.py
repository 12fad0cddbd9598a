"""What a run is built of, by its recipe."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from torch import nn

from lgd_timm.config.reader import recipe_from_dict
from lgd_timm.errors import LGDError
from lgd_timm.teachers import Stored
from lgd_timm.training.build import build
from lgd_timm.training.state import Run


def built(recipe: dict[str, Any], out: Path, **settings: Any) -> Run:
    return build(recipe_from_dict({**recipe, "run": {**recipe.get("run", {}), "device": "cpu", **settings}}), out)


def fast_layers(run: Run) -> int:
    """Convolutions whose class is no longer torch's."""
    student = run.task.student
    return sum(
        isinstance(module, nn.Conv2d) and type(module).__module__.endswith("small_conv") for module in student.modules()
    )


@pytest.mark.parametrize(("switch", "fast"), [("auto", True), (True, True), (False, False)])
def test_small_convolutions_have_a_switch_on_a_cpu(
    recipe_dict: dict[str, Any], tmp_path: Path, switch: bool | str, fast: bool
) -> None:
    assert (fast_layers(built(recipe_dict, tmp_path, small_convs=switch)) > 0) is fast


def test_how_small_convolutions_are_computed_is_no_part_of_a_runs_identity(
    recipe_dict: dict[str, Any], tmp_path: Path
) -> None:
    on, off = (built(recipe_dict, tmp_path, small_convs=switch) for switch in (True, False))
    assert on.identity == off.identity


@pytest.mark.parametrize(
    ("part", "changes", "message"),
    [
        ("student", {"model": "resnet_nineteen"}, "student.model 'resnet_nineteen' is unknown"),
        ("optimizer", {"name": "sgdd"}, "optimizer.name 'sgdd' is unknown"),
        ("schedule", {"warmup_epochs": 3}, "schedule.warmup_epochs = 3 must be below"),
        ("vocabulary", {"source": ["red", "green"]}, "has 3 classes, its vocabulary 2 names"),
        ("data", {"val_split": "test"}, "'test'"),
        ("teacher", {"kind": "stored"}, "there are none"),
    ],
)
def test_what_needs_no_model_is_checked_before_one_is_loaded(
    recipe_dict: dict[str, Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    part: str,
    changes: dict[str, Any],
    message: str,
) -> None:
    def load(*_: Any, **__: Any) -> None:
        raise AssertionError("a teacher is loaded")

    monkeypatch.setattr("lgd_timm.training.build.prepare_teacher", load)
    recipe = {**recipe_dict, part: changes if part == "teacher" else {**recipe_dict[part], **changes}}
    with pytest.raises(LGDError, match=message):
        built(recipe, tmp_path)


def test_stored_embeddings_are_found_and_named(
    recipe_dict: dict[str, Any], taught_folder: Path, tmp_path: Path
) -> None:
    recipe_dict["data"]["shards"] = str(taught_folder)
    run = built({**recipe_dict, "teacher": {"kind": "stored"}}, tmp_path)
    assert isinstance(run.recipe.teacher, Stored)
    assert run.recipe.teacher.embeddings == str(next(taught_folder.glob("*-light-*")))
