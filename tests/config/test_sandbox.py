"""A published recipe stays in the working directory, whichever field names the path; the user's own may say any."""

from __future__ import annotations

import os
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any, get_args, get_type_hints

import pytest
import yaml

from lgd_timm.config.reader import read_recipe, read_teach_recipe, read_teacher, recipe_from_dict
from lgd_timm.config.recipe import Recipe, TeachRecipe
from lgd_timm.config.sandbox import PATHS, relative
from lgd_timm.errors import RecipeError

CLIP = {"kind": "open_clip", "model": "RN50", "pretrained": "openai"}
CONSE = {"kind": "conse", "classifier": "resnet18", "encoder": "some/encoder"}
MINIMAL: dict[str, Any] = {
    "name": "small",
    "teacher": CLIP,
    "vocabulary": {"source": ["cat", "dog"]},
    "data": {"shards": "shards"},
}

# A recipe with one path in it: the field, the text before the path, the teacher that the field belongs to.
FIELDS = [
    ("data.shards", "", CLIP),
    ("data.val_vocabulary", "", CLIP),
    ("data.val_vocabulary", "coco:", CLIP),
    ("vocabulary.source", "", CLIP),
    ("vocabulary.source", "file:", CLIP),
    ("vocabulary.source", "folder:", CLIP),
    ("vocabulary.source", "lvis:", CLIP),
    ("vocabulary.templates", "", CLIP),
    ("student.model", "local-dir:", CLIP),
    ("teacher.model", "local-dir:", CLIP),
    ("teacher.pretrained", "", CLIP),
    ("teacher.classifier", "local-dir:", CONSE),
    ("teacher.encoder", "", CONSE),
    ("teacher.embeddings", "", {"kind": "stored"}),
    ("teacher.taught_by.model", "local-dir:", {"kind": "stored", "embeddings": "e", "taught_by": CLIP}),
    ("teacher.taught_by.pretrained", "", {"kind": "stored", "embeddings": "e", "taught_by": CLIP}),
    ("teacher.taught_by.classifier", "local-dir:", {"kind": "stored", "embeddings": "e", "taught_by": CONSE}),
    ("teacher.taught_by.encoder", "", {"kind": "stored", "embeddings": "e", "taught_by": CONSE}),
]
BEYOND = [
    ("/etc/a.safetensors", "is an absolute path"),
    ("C:\\a.safetensors", "is an absolute path"),
    ("b/../../a.safetensors", r"climbs out with '\.\.'"),
    ("out/a.safetensors", "is a link to"),
]


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A working directory with a link `out` that leads out of it."""
    (tmp_path / "outside").mkdir()
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    os.symlink(tmp_path / "outside", "out")


def recipe(field: str, value: str, teacher: dict[str, Any]) -> dict[str, Any]:
    data: dict[str, Any] = yaml.safe_load(yaml.safe_dump({**MINIMAL, "teacher": teacher}))
    *parents, last = field.split(".")
    place = data
    for parent in parents:
        place = place.setdefault(parent, {})
    place[last] = value
    return data


def published(data: dict[str, Any]) -> Path:
    """A folder that carries the recipe."""
    folder = Path("published")
    folder.mkdir(exist_ok=True)
    (folder / "recipe.yaml").write_text(yaml.safe_dump(data))
    return folder


def test_every_field_that_can_hold_a_path_is_tried() -> None:
    assert {field for field, *_ in FIELDS} | {"shards", "out"} == set(PATHS)


@pytest.mark.parametrize(("path", "reason"), BEYOND)
@pytest.mark.parametrize(
    ("field", "prefix", "teacher"), FIELDS, ids=lambda value: value if isinstance(value, str) else ""
)
def test_an_untrusted_recipe_names_no_path_beyond(
    field: str, prefix: str, teacher: dict[str, Any], path: str, reason: str
) -> None:
    folder = published(recipe(field, prefix + path, teacher))
    with pytest.raises(
        RecipeError, match=rf"^{field} = .*{reason}.*--{field} {prefix}PATH\), or move the data here"
    ) as caught:
        read_recipe(folder)
    assert "\n" not in str(caught.value)
    own = read_recipe(folder / "recipe.yaml")  # the same file, named by the user
    assert read_recipe(folder, overrides={field: prefix + path}) == own  # and the same value, given by the user


@pytest.mark.parametrize(
    "address", ["https://host/a.safetensors", "HTTP://host/a.safetensors", "hf://datasets/me/a.safetensors"]
)
@pytest.mark.parametrize(
    ("field", "prefix", "teacher"), FIELDS, ids=lambda value: value if isinstance(value, str) else ""
)
def test_an_untrusted_recipe_sends_nobody_to_a_server(
    field: str, prefix: str, teacher: dict[str, Any], address: str
) -> None:
    folder = published(recipe(field, prefix + address, teacher))
    with pytest.raises(
        RecipeError,
        match=rf"^{field} = .* is an address, .*\(--{field} {prefix}PATH, or this address if you trust it\)",
    ):
        read_recipe(folder)
    own = read_recipe(folder / "recipe.yaml")
    assert read_recipe(folder, overrides={field: prefix + address}) == own


@pytest.mark.parametrize(
    ("field", "prefix", "teacher"), FIELDS, ids=lambda value: value if isinstance(value, str) else ""
)
def test_paths_within_are_free(field: str, prefix: str, teacher: dict[str, Any]) -> None:
    folder = published(recipe(field, f"{prefix}data/a.safetensors", teacher))
    assert read_recipe(folder) == read_recipe(folder / "recipe.yaml")


@pytest.mark.parametrize(
    ("field", "value", "teacher"),
    [
        ("student.model", "hf-hub:org/name", CLIP),
        ("teacher.model", "hf-hub:org/name@main", CLIP),
        ("vocabulary.source", "timm:imagenet-1k", CLIP),
        ("vocabulary.source", "open_clip:imagenet", CLIP),
        ("vocabulary.templates", "/etc/{}", CLIP),  # a template, whatever it looks like
        ("teacher.encoder", "package:some_package/model", CONSE),
        ("teacher.encoder", "all-MiniLM-L6-v2", CONSE),
    ],
)
def test_names_are_no_paths(field: str, value: str, teacher: dict[str, Any]) -> None:
    read_recipe(published(recipe(field, value, teacher)))


def test_an_override_frees_its_own_field_only() -> None:
    folder = published(recipe("data.shards", "/a", {"kind": "stored", "embeddings": "/b"}))
    with pytest.raises(RecipeError, match=r"^teacher\.embeddings = '/b'"):
        read_recipe(folder, overrides={"data.shards": "/c"})
    with pytest.raises(RecipeError, match=r"^data\.shards = '/a'"):
        read_recipe(folder, overrides={"teacher": {"kind": "stored", "embeddings": "/c"}})
    read_recipe(folder, overrides={"data.shards": "/c", "teacher.embeddings": "/d"})


def test_the_teacher_alone_is_checked_too() -> None:
    with pytest.raises(RecipeError, match=r"^teacher\.model = 'local-dir:/x'"):
        read_teacher(published(recipe("teacher.model", "local-dir:/x", CLIP)))
    with pytest.raises(RecipeError, match=r"^vocabulary\.source = '/etc/passwd'"):
        read_teacher(published(recipe("vocabulary.source", "/etc/passwd", CLIP)))


def test_teaching_is_checked_by_the_fields_of_teaching() -> None:
    stored = {"kind": "stored", "embeddings": "../e", "taught_by": CLIP}
    folder = published({**recipe("data.shards", "/a", stored), "views": {"size": 32}})
    with pytest.raises(RecipeError, match=r"^shards = '/a'.*--shards PATH"):
        read_teach_recipe(folder)
    assert (
        read_teach_recipe(folder, overrides={"shards": "/a"}).out is None
    )  # other images: not into the recipe's own folder
    folder = published({**recipe("data.shards", "a", stored), "views": {"size": 32}})
    with pytest.raises(RecipeError, match=r"^out = '\.\./e'.*--out PATH"):
        read_teach_recipe(folder)
    assert read_teach_recipe(folder, overrides={"out": "../e"}).out == "../e"


# ---------------------------------------------------------------------------------------------------------- setting out


def test_paths_into_the_working_directory_become_relative() -> None:
    here = Path.cwd()
    for field, prefix, teacher in FIELDS:
        data = recipe_from_dict(recipe(field, f"{prefix}{here}/data/a.safetensors", teacher)).to_dict()
        assert relative(data) == recipe_from_dict(recipe(field, f"{prefix}data/a.safetensors", teacher)).to_dict()


@pytest.mark.parametrize(
    "path", ["/etc/a", "data/a", "../a", "{here}/../a", "{here}aside/a", "https://host/a//b", "s3://bucket/a"]
)
def test_other_paths_stay_as_they_are(path: str) -> None:
    data = recipe_from_dict(recipe("data.shards", path.format(here=Path.cwd()), CLIP)).to_dict()
    assert relative(data) == data


def test_no_field_that_can_hold_a_path_is_missing() -> None:
    """Every text field of a recipe is in the table, or known to be no path: a new one has to be thought about."""
    names = {
        "name",
        "split",
        "train_split",
        "val_split",
        "device",
        "precision",
        "classes",
        "augmentation",
        "interpolation",
        "objective",
    }
    assert {
        field for field in text_fields(Recipe) | text_fields(TeachRecipe) if field.rpartition(".")[2] not in names
    } == set(PATHS)


def text_fields(kind: Any, where: str = "") -> set[str]:
    """Dotted names of the fields of a dataclass, and of those within it, that take any text."""
    hints, found = get_type_hints(kind), set()
    for field in fields(kind):
        options = [hints[field.name], *get_args(hints[field.name])]
        for option in options:
            if is_dataclass(option):
                found |= text_fields(option, f"{where}{field.name}.")
        if str in options:
            found.add(where + field.name)
    return found
