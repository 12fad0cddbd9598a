"""What a run is built of, by its recipe."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from torch import nn

from lgd_timm.config.reader import recipe_from_dict
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
