"""Recipes of the package: found by name from anywhere, with their own files; and the one to begin with."""

from __future__ import annotations

from pathlib import Path

import pytest

from lgd_timm import settings
from lgd_timm.config.builtin import builtin_recipes, describe, write_template
from lgd_timm.config.reader import read_recipe, read_teach_recipe
from lgd_timm.config.recipe import Recipe
from lgd_timm.data import open_shards
from lgd_timm.errors import RecipeError
from lgd_timm.teachers import OpenCLIP, Stored


def test_every_recipe_has_a_name_and_a_line() -> None:
    known = builtin_recipes()
    assert {"quickstart", "paper/lgd_in1k", "cifar10_conse_resnet18"} <= set(known)
    for name, path in known.items():
        assert len(describe(path)) > 10, name
        assert not describe(path).endswith((".", ":")), name


@pytest.mark.parametrize("source", ["builtin:quickstart", "quickstart", "recipes/quickstart.yaml"])
def test_a_name_is_enough_anywhere(source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    recipe = read_recipe(source)
    assert recipe.name == "quickstart"
    assert isinstance(recipe.teacher, Stored)
    assert Path(recipe.teacher.embeddings).is_dir()
    assert len(open_shards(recipe.data.shards, split="train")) == 4000


def test_in_a_checkout_paths_stay_as_they_are_written(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(settings.recipes_folder().parent)
    assert read_recipe("recipes/quickstart.yaml").data.shards == "recipes/cifar10_small"


def test_other_sorts_of_recipes_are_found_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert read_teach_recipe("teach_conse_cifar10").shards == "data/cifar10"  # the user's own data


def test_a_file_of_the_users_comes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "quickstart").write_text("name: mine\n")
    with pytest.raises(RecipeError, match="lacks"):
        read_recipe("quickstart")
    assert read_recipe("builtin:quickstart").name == "quickstart"


def test_a_name_that_is_none_has_advice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(RecipeError, match=r"'builtin:quickstrat' is no recipe of this package\. There are: quickstart"):
        read_recipe("builtin:quickstrat")
    with pytest.raises(RecipeError, match=r"builtin:NAME \(see lgd-timm recipes\)"):
        read_recipe("nothing.yaml")


def test_the_template_is_a_recipe_with_what_was_asked(tmp_path: Path) -> None:
    (tmp_path / "names.txt").write_text("cat\ndog\n")
    path = write_template(tmp_path / "new" / "mine.yaml", shards="data/mine", names=str(tmp_path / "names.txt"))
    recipe: Recipe = read_recipe(path)
    assert isinstance(recipe.teacher, OpenCLIP)
    assert recipe.data.shards == "data/mine"
    assert recipe.vocabulary.load().names == ("cat", "dog")
    with pytest.raises(RecipeError, match="exists"):
        write_template(path, shards="a", names="b")
