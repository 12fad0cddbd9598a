"""The builtin recipes can be read and go together; what a recipe can not mean is refused in one line."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from lgd_timm.config.builtin import builtin_recipes
from lgd_timm.errors import RecipeError
from lgd_timm.utils.schema import build
from lgd_timm.vision_language.recipe import VLRecipe, read_vl_recipe
from lgd_timm.vision_language.run import adapted
from tests.helpers.vl_data import tiny

RECIPES = {name: path for name, path in builtin_recipes().items() if name.startswith("vl/")}


@pytest.mark.parametrize("name", RECIPES)
def test_a_builtin_recipe(name: str, tmp_path: Path) -> None:
    recipe = read_vl_recipe(f"builtin:{name}")
    assert recipe.name == name.removeprefix("vl/")
    (tmp_path / "again.yaml").write_text(recipe.to_yaml())
    assert read_vl_recipe(tmp_path / "again.yaml") == recipe


@pytest.mark.parametrize("name", ["coco_captions", "vqa_v2", "mosaics"])
def test_students_and_teachers_of_one_task(name: str) -> None:
    student, teacher = (read_vl_recipe(f"builtin:vl/{name}_{who}") for who in ("student", "teacher"))
    assert student.distillation.teacher == f"output/{teacher.name}"
    assert teacher.distillation.teacher is None
    assert adapted(teacher, student=student) == teacher
    assert student.task == teacher.task
    assert student.model.heads == teacher.model.heads
    assert student.distillation.nce.queue == 4096


def test_recipes_that_nobody_ran_say_so() -> None:
    unrun = [path for name, path in RECIPES.items() if "coco" in name or "vqa_v2" in name]
    assert len(unrun) == 4
    assert all("NOT RUN HERE" in path.read_text().splitlines()[0] for path in unrun)


WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "heads": ({"model": {"width": 25}}, r"model\.width = 25 must divide by model\.heads = 2"),
    "a pickle": ({"backbone": {"model": "model.bin"}}, r"backbone\.model = 'model\.bin' names a pickle"),
    "a teacher's pickle": ({"distillation": {"teacher": "a.pt"}}, "distillation.teacher = 'a.pt' names a pickle"),
    "a task": ({"task": {"kind": "poems"}}, r"task\.kind = 'poems'; choose one of masked_words, captions, answers"),
    "a switch": ({"distillation": {"nce": {"queue": 0}}}, r"distillation\.nce\.queue = 0 is outside"),
    "a field": ({"regions": {"kind": "grid", "row": 2}}, r"'regions\.row'; did you mean 'regions\.rows'"),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_a_recipe_can_not_mean(name: str) -> None:
    changes, message = WRONG[name]
    with pytest.raises(RecipeError, match=message) as caught:
        build(VLRecipe, tiny(Path("scenes.jsonl"), **changes), where="")
    assert "\n" not in str(caught.value)


def test_adaptation_takes_regions_and_lengths() -> None:
    teacher = read_vl_recipe("builtin:vl/mosaics_teacher")
    student = read_vl_recipe("builtin:vl/vqa_v2_student")
    found = adapted(teacher, student=student)
    text = replace(teacher.text, length=64, tags=64)
    assert found == replace(teacher, regions=student.regions, text=text)
