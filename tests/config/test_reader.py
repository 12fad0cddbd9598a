"""Where a recipe lies: a file, a folder, the Hub."""

from __future__ import annotations

from pathlib import Path

import pytest

from lgd_timm.config.reader import local_source, read_recipe, read_teach_recipe, read_teacher, recipe_file
from lgd_timm.errors import RecipeError


@pytest.mark.parametrize(
    "source",
    [
        f"hub:{rest}"
        for rest in (
            "//",
            "",
            "/a/b",
            "//a",
            "//a/b/c",
            "///b",
            "//a/",
            "//a/b@",
            "//a/b@c@d",
            "//../b",
            "//a/.b",
            "//ä/b",
            "//a/b@ ",
        )
    ],
)
def test_a_malformed_address_is_refused(source: str) -> None:
    for read in (read_recipe, read_teach_recipe, read_teacher):
        with pytest.raises(
            RecipeError,
            match=r"^'hub:.*' names no published folder\. Write hub://ORG/NAME or hub://ORG/NAME@REVISION\.$",
        ):
            read(source)


def test_a_folder_of_the_hub_is_pulled_and_untrusted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "lgd_timm.config.reader.pull", {"org/name-1.0": tmp_path, "org/name@refs/pr/1": tmp_path}.__getitem__
    )
    assert local_source("hub://org/name-1.0") == tmp_path
    with pytest.raises(
        RecipeError, match=r"^hub://org/name-1\.0 holds no recipe\.yaml, so it does not say how it was made"
    ):
        read_recipe("hub://org/name-1.0")
    (tmp_path / "recipe.yaml").write_text("name: a")
    assert recipe_file("hub://org/name@refs/pr/1") == (tmp_path / "recipe.yaml", True)


def test_a_folder_is_untrusted_and_a_file_is_not(tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text("name: a")
    assert recipe_file(tmp_path) == (tmp_path / "recipe.yaml", True)
    assert recipe_file(str(tmp_path / "recipe.yaml")) == (tmp_path / "recipe.yaml", False)
