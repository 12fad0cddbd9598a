"""What a student is to reproduce of a view: what the teacher saw there, or what it saw in the whole image."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from lgd_timm.config.reader import read_recipe, read_teach_recipe, recipe_from_dict
from lgd_timm.config.recipe import TeachRecipe
from lgd_timm.data import Views
from lgd_timm.errors import RecipeError, TeacherError
from lgd_timm.publish.folder import load
from lgd_timm.teachers import OpenCLIP
from lgd_timm.training.build import build
from lgd_timm.training.distill import distill
from lgd_timm.training.teach import teach_recipe
from lgd_timm.utils.files import changed_keys


@pytest.fixture(scope="module")
def plainly_taught(tmp_path_factory: pytest.TempPathFactory, shard_folder: Path, tiny_clip: Path) -> Path:
    """Shards with one embedding an image, of the unaugmented view, of both splits. Read only."""
    folder = Path(shutil.copytree(shard_folder, tmp_path_factory.mktemp("plain") / "colours"))
    for split in ("train", "val"):
        recipe = TeachRecipe(
            OpenCLIP(f"local-dir:{tiny_clip}"),
            Views(size=32, augmentation="none"),
            str(folder),
            split=split,
            device="cpu",
        )
        teach_recipe(recipe)
    return folder


@pytest.fixture
def per_image(recipe_dict: dict[str, Any], plainly_taught: Path) -> dict[str, Any]:
    """Five light views of each image, all to be answered as the whole image was."""
    embeddings = str(next(plainly_taught.glob("*-none-*")))
    recipe_dict["data"]["shards"] = str(plainly_taught)
    recipe_dict["teacher"] = {"kind": "stored", "embeddings": embeddings, "target": "image"}
    recipe_dict["views"] = {"size": 32, "augmentation": "light", "count": 5}
    return recipe_dict


@pytest.mark.parametrize("in_memory", [False, True])
def test_every_view_of_an_image_has_the_images_own_embedding(
    per_image: dict[str, Any], tmp_path: Path, in_memory: bool
) -> None:
    per_image["data"]["in_memory"] = in_memory
    run = build(recipe_from_dict(per_image), tmp_path / "run")
    batch = run.dataset.__getitems__([(7, view) for view in range(5)])
    stored = run.teaching.stored
    assert stored is not None
    assert batch.embeddings is not None
    expected = stored.read(run.dataset.shards.filenames[0], batch.keys[0], 0)
    assert all(np.array_equal(row, expected) for row in batch.embeddings.numpy())
    assert len({image.numpy().tobytes() for image in batch.images}) == 5, "the views themselves differ"


def test_embeddings_of_views_are_refused_for_other_views(per_image: dict[str, Any], tmp_path: Path) -> None:
    per_image["teacher"]["target"] = "view"
    with pytest.raises(TeacherError, match="Use the stored views"):
        build(recipe_from_dict(per_image), tmp_path / "run")
    per_image["teacher"]["target"] = "crop"
    with pytest.raises(RecipeError, match="choose one of view, image"):
        recipe_from_dict(per_image)


def test_what_is_published_says_on_which_views_the_teacher_taught(per_image: dict[str, Any], tmp_path: Path) -> None:
    folder = distill(recipe_from_dict(per_image), out=tmp_path / "run")
    recipe = load(folder).recipe
    assert recipe.views == Views(size=32, augmentation="light", count=5)
    own = tmp_path / "recipe.yaml"  # a recipe of one's own may name any path
    own.write_text(yaml.safe_dump(yaml.safe_load((folder / "recipe.yaml").read_text())))
    lesson = read_teach_recipe(own)
    assert lesson.views == Views(size=32, augmentation="none")
    assert lesson.out == per_image["teacher"]["embeddings"]
    assert read_recipe(own) == recipe


def test_a_run_of_the_other_sort_is_not_gone_on_with(per_image: dict[str, Any], tmp_path: Path) -> None:
    per_image["schedule"]["epochs"] = 1
    run = build(recipe_from_dict(per_image), tmp_path / "run")
    per_image["teacher"]["target"] = "view"
    per_image["views"] = None
    other = build(recipe_from_dict(per_image), tmp_path / "run")
    assert changed_keys(run.identity, other.identity)[-1] == changed_keys(other.identity, run.identity)[-1] == "teacher"
