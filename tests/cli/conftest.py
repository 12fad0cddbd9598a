"""Recipes as files, which commands read."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml

from lgd_timm.config.reader import recipe_from_dict


@pytest.fixture
def recipe(recipe_dict: dict[str, Any], tmp_path: Path) -> Path:
    """The tiny recipe as a file."""
    path = tmp_path / "tiny.yaml"
    path.write_text(recipe_from_dict(recipe_dict).to_yaml())
    return path


@pytest.fixture
def teach_recipe(recipe_dict: dict[str, Any], tmp_path: Path) -> Path:
    path = tmp_path / "teach.yaml"
    shards = shutil.copytree(recipe_dict["data"]["shards"], tmp_path / "shards")
    data = {
        "teacher": recipe_dict["teacher"],
        "views": {"size": 32, "augmentation": "light"},
        "shards": str(shards),
        "device": "cpu",
    }
    path.write_text(yaml.safe_dump(data))
    return path
