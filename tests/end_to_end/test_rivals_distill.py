"""Every objective through a whole run: distilled, published, read back, resumed.

And views kept in memory give the same student.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file

from lgd_timm.config.reader import read_recipe, recipe_from_dict
from lgd_timm.data.writer import write_shards
from lgd_timm.errors import LGDError, RecipeError, ShardError
from lgd_timm.publish.check import check_folder
from lgd_timm.publish.folder import load
from lgd_timm.training.build import build
from lgd_timm.training.distill import distill
from lgd_timm.utils.checkpoint import load_checkpoint

OBJECTIVES: dict[str, dict[str, Any]] = {
    "seed": {"kind": "seed", "queue_size": 40},
    "lightly_train": {"kind": "seed", "preset": "lightly_train", "queue_size": 40},
    "regression": {"kind": "regression"},
    "clip_kd": {"kind": "clip_kd"},
    "logits": {"kind": "logits"},
    "supervised": {"kind": "supervised"},
}


@pytest.mark.parametrize("name", OBJECTIVES)
def test_a_run_publishes_a_whole_folder_that_says_its_objective(
    recipe_dict: dict[str, Any], tmp_path: Path, name: str
) -> None:
    recipe_dict.update(objective=OBJECTIVES[name], schedule={"epochs": 1, "warmup_epochs": 0})
    folder = distill(recipe_from_dict(recipe_dict), out=tmp_path / "run")
    check_folder(folder)
    assert yaml.safe_load((folder / "recipe.yaml").read_text())["objective"] == OBJECTIVES[name]
    published = load(folder)
    assert published.banks.visual is None
    assert published.student(torch.zeros(2, 3, 32, 32)).shape == (2, 16)


def test_the_deep_projector_comes_back_from_its_folder(recipe_dict: dict[str, Any], tmp_path: Path) -> None:
    recipe_dict.update(objective={"kind": "regression"}, schedule={"epochs": 1, "warmup_epochs": 0})
    recipe_dict["student"]["projector"] = "deep"
    recipe = recipe_from_dict(recipe_dict)
    folder = distill(recipe, out=tmp_path / "run")
    check_folder(folder)
    run = build(recipe, tmp_path / "run")
    checkpoint = next((tmp_path / "run" / "checkpoints").iterdir())
    load_checkpoint(checkpoint, modules=run.modules, optimizer=run.optimizer, scaler=run.scaler, identity=run.identity)
    images = torch.rand(4, 3, 32, 32)
    expected, found = run.task.student.eval()(images), load(folder).student(images)
    torch.testing.assert_close(found, expected, atol=0.02, rtol=0.02)  # float16 weights
    assert int(load(folder).student.projector[1].num_batches_tracked) == 3


def test_supervised_learns_from_labels_and_needs_them(
    recipe_dict: dict[str, Any], image_folder: Path, tmp_path: Path
) -> None:
    recipe_dict.update(objective={"kind": "supervised"}, schedule={"epochs": 20, "warmup_epochs": 1})
    recipe_dict["run"]["evaluate_every"] = 100
    folder = distill(recipe_from_dict(recipe_dict), out=tmp_path / "run")
    assert yaml.safe_load((folder / "metrics.json").read_text())["zero_shot"]["top1"] > 90, (
        "colours are easy to tell with labels"
    )
    write_shards(image_folder, tmp_path / "unlabelled", split="train", labels=False)
    recipe_dict["data"].update(shards=str(tmp_path / "unlabelled"), val_split=None)
    with pytest.raises(ShardError, match="images without a label"):
        distill(recipe_from_dict(recipe_dict), out=tmp_path / "other")
    assert not (tmp_path / "other").exists()


def test_a_task_without_labels_says_so(recipe_dict: dict[str, Any], tmp_path: Path) -> None:
    recipe_dict.update(objective={"kind": "supervised"})
    task = build(recipe_from_dict(recipe_dict), tmp_path).task
    with pytest.raises(LGDError, match="Supervised learns from labels and was given none"):
        task(torch.zeros(2, 3, 32, 32, dtype=torch.uint8))


def test_a_queue_goes_on_where_it_was(recipe_dict: dict[str, Any], tmp_path: Path) -> None:
    recipe_dict.update(objective=OBJECTIVES["seed"], schedule={"epochs": 2, "warmup_epochs": 0})
    recipe = recipe_from_dict(recipe_dict)
    distill(recipe, out=tmp_path / "run")
    run = build(recipe, tmp_path / "run")
    checkpoint = sorted((tmp_path / "run" / "checkpoints").iterdir())[-1]
    load_checkpoint(checkpoint, modules=run.modules, optimizer=run.optimizer, scaler=run.scaler, identity=run.identity)
    assert int(run.task.objective.state_dict()["place"]) == 2 * 48 % 40


def test_views_in_memory_give_the_same_student_to_the_bit(recipe_dict: dict[str, Any], tmp_path: Path) -> None:
    weights = []
    for kept in (False, True):
        recipe_dict["data"]["in_memory"] = kept
        folder = distill(recipe_from_dict(recipe_dict), out=tmp_path / str(kept))
        weights.append(load_file(folder / "model.safetensors"))
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


def test_an_objective_is_changed_from_the_command_line(recipe_dict: dict[str, Any], tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe_dict))
    recipe = read_recipe(path, overrides={"objective": "{kind: seed, queue_size: 64}"})
    assert recipe.objective == {"kind": "seed", "queue_size": 64}
    with pytest.raises(RecipeError, match=r"objective\.kind 'bingo' is unknown"):
        read_recipe(path, overrides={"objective.kind": "bingo"})
