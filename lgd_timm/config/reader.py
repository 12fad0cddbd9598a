"""Read recipes from a YAML file, from a folder that holds one, or from a published folder on the Hub.

A source on the Hub is written hub://ORG/NAME[@REVISION]. A recipe that came in a folder or from the Hub may be
anybody's, so it is untrusted: `sandbox.check_reach` refuses paths in it that leave the working directory.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from ..data.vocabulary import Vocabulary, load_vocabulary
from ..errors import RecipeError
from ..hub.snapshot_download import pull
from ..objectives.registry import check_objective
from ..teachers import Stored, TeacherSpec
from ..utils.schema import build, to_plain
from .builtin import find_builtin, is_builtin, locate_files
from .recipe import DataRecipe, Recipe, TeachRecipe, VocabularyRecipe
from .sandbox import check_reach
from .strict_yaml import parse_yaml, read_yaml

_HUB = re.compile(r"hub://([A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*(@[^\s@]+)?)", re.ASCII)


def is_hub(source: str | Path) -> bool:
    """Whether a source is meant to be on the Hub."""
    return str(source).startswith("hub:")


def local_source(source: str | Path) -> Path:
    """Return a source as a path on this disk; a `hub://` source is pulled, whole and verified.

    Raises:
        RecipeError: the `hub://` address is malformed.
        WeightsError: it can't be pulled (see `hub.pull`).
    """
    if not is_hub(source):
        return Path(source)
    found = _HUB.fullmatch(str(source))
    if found is None:
        raise RecipeError(
            f"{str(source)!r} names no published folder. Write hub://ORG/NAME or hub://ORG/NAME@REVISION."
        )
    return pull(found.group(1))


def recipe_file(source: str | Path) -> tuple[Path, bool]:
    """Find the YAML file of a recipe.

    Args:
        source: a YAML file, `builtin:NAME`, a folder that holds `recipe.yaml`, or `hub://ORG/NAME[@REVISION]`.

    Returns:
        The file, and whether it is untrusted: it is where it came in a folder.

    Raises:
        RecipeError: there is no recipe.
        WeightsError: a `hub://` source can't be pulled (see `hub.pull`).
    """
    if (builtin := find_builtin(str(source))) is not None:
        return builtin, False
    path = local_source(source)
    if path.is_dir():  # published folders and runs carry their recipe
        if not (path / "recipe.yaml").is_file():
            raise RecipeError(
                f"{source} holds no recipe.yaml, so it does not say how it was made. Give a recipe, or another folder."
            )
        return path / "recipe.yaml", True
    if not path.is_file():
        near = ", ".join(str(p) for p in sorted(path.parent.glob("*.yaml"))) if path.parent.is_dir() else ""
        raise RecipeError(
            f"No recipe at {path}."
            + (
                f" There are: {near}."
                if near
                else " Give a YAML file, builtin:NAME (see lgd-timm recipes), a published folder or hub://ORG/NAME."
            )
        )
    return path, False


def read_recipe(source: str | Path, *, overrides: Mapping[str, Any] | None = None) -> Recipe:
    """Read the recipe of a distillation.

    Args:
        source: a YAML file, a folder that holds `recipe.yaml`, or `hub://ORG/NAME[@REVISION]`.
        overrides: dotted fields and their values, such as {"optimizer.lr": 0.1}; text is read as YAML.

    Returns:
        The recipe, every field checked. Its `name` is the file's where it has none.

    Raises:
        RecipeError: the file is missing or malformed, a key is unknown, a value is of a wrong type or out of its range,
            or an untrusted recipe names a path outside the working directory.
        WeightsError: a `hub://` source can't be pulled.
    """
    path, untrusted = recipe_file(source)
    data = _overridden(_read_mapping(path), overrides)
    data.setdefault("name", path.stem)
    recipe = recipe_from_dict(data)
    if untrusted:
        check_reach(recipe.to_dict(), own=overrides or ())
    return recipe


def read_teach_recipe(source: str | Path, *, overrides: Mapping[str, Any] | None = None) -> TeachRecipe:
    """Read a recipe for `lgd-timm teach`.

    Args:
        source: as for `read_recipe`. A recipe of a distillation will do too, if it says who teaches (or taught) on
            which views.
        overrides: dotted fields of a recipe for `teach`, whichever sort was read: `shards`, `split`, `views.count`.

    Returns:
        The recipe, every field checked.

    Raises:
        RecipeError: as `read_recipe`; and where the teacher is stored embeddings and nothing says who made them.
        WeightsError: a `hub://` source can't be pulled.
    """
    path, untrusted = recipe_file(source)
    data = _read_mapping(path)
    if "data" in data:
        data = _teach_fields(recipe_from_dict({"name": "teach", **data}), own=overrides or {})
    data = _overridden(data, overrides)
    if isinstance(data.get("teacher"), dict) and data["teacher"].get("kind") == Stored.kind:
        raise RecipeError(
            f"{path}: teacher.kind is 'stored', which has taught already, and nothing says who did. "
            "Give conse or open_clip, or say who taught in teacher.taught_by."
        )
    recipe: TeachRecipe = build(TeachRecipe, data, where="")
    if untrusted:
        check_reach(recipe.to_dict(), own=overrides or ())
    return recipe


class TeacherQuery(NamedTuple):
    """A recipe's teacher, and what is needed to evaluate it."""

    teacher: TeacherSpec
    vocabulary: Vocabulary | None  # the names that it is asked about, if there are any
    crop: float  # share of an image's short side that it sees (`data.val_crop`)


def read_teacher(source: str | Path) -> TeacherQuery:
    """Read the teacher of a recipe of either sort, as it is evaluated.

    Raises:
        RecipeError: as `read_recipe`.
        VocabularyError: the names can't be read.
        WeightsError: a `hub://` source can't be pulled.
    """
    path, untrusted = recipe_file(source)
    data = _read_mapping(path)
    teacher: TeacherSpec = build(TeacherSpec, data.get("teacher"), where="teacher")
    names: VocabularyRecipe = build(VocabularyRecipe, data.get("vocabulary", {}), where="vocabulary")
    if untrusted:
        check_reach({"teacher": to_plain(teacher), "vocabulary": to_plain(names)})
    data_recipe: DataRecipe = build(DataRecipe, data.get("data", {}), where="data")
    return TeacherQuery(
        teacher,
        load_vocabulary(names.source, templates=names.templates) if names.source else None,
        crop=data_recipe.val_crop,
    )


def read_mapping(source: str | Path, *, overrides: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Read the fields of a YAML recipe of any sort, with overrides; nothing but its `name` is filled in or checked.

    Raises:
        RecipeError: the file is missing, or is no mapping.
    """
    path, _ = recipe_file(source)
    data = _overridden(_read_mapping(path), overrides)
    data.setdefault("name", path.stem)
    return data


def recipe_from_dict(data: Mapping[str, Any]) -> Recipe:
    """Build a recipe from plain data. Raises: RecipeError that names the field."""
    recipe: Recipe = build(Recipe, data, where="")
    return replace(recipe, objective=check_objective(recipe.objective))


def read_value(key: str, text: str) -> Any:
    """Read a value from the command line, `--key text`, as YAML, so that it may be a list. Raises: RecipeError."""
    return parse_yaml(text, source=f"--{key} {text[:80]!r}")


def _teach_fields(recipe: Recipe, *, own: Mapping[str, Any]) -> dict[str, Any]:
    """Turn a recipe for `distill` into the fields of one for `teach`, which makes the embeddings that it names.

    `own` are the overrides. Where they ask for another teacher, other views or images, the embeddings go into a
    folder of their own.
    """
    data, teacher = recipe.to_dict(), recipe.teacher
    fields = {"teacher": data["teacher"], "shards": recipe.data.shards, "split": recipe.data.train_split}
    fields |= {"workers": recipe.data.workers, "max_bad": recipe.data.max_bad, "device": recipe.machine.device}
    views = teacher.taught_on if isinstance(teacher, Stored) and teacher.target == "image" else recipe.views
    if views is not None:
        fields["views"] = to_plain(views)
    if isinstance(teacher, Stored) and teacher.taught_by is not None:
        fields |= {"teacher": data["teacher"]["taught_by"], "dtype": teacher.dtype or "float16"}
        if not any(key.partition(".")[0] in ("teacher", "views", "shards", "dtype") for key in own):
            fields["out"] = teacher.folder
    return fields


def _read_mapping(path: Path) -> dict[str, Any]:
    data = read_yaml(path)
    if not isinstance(data, dict):
        raise RecipeError(f"{path} holds {type(data).__name__}, not a mapping of recipe fields.")
    return locate_files(data) if is_builtin(path) else data


def _overridden(data: dict[str, Any], overrides: Mapping[str, Any] | None) -> dict[str, Any]:
    """Set dotted fields of the data, which is changed, and return it."""
    for key, value in (overrides or {}).items():
        *parents, last = key.split(".")
        section = data
        for parent in parents:
            if section.get(parent) is None:  # recipes of runs hold null for a part that is not used
                section[parent] = {}
            section = section[parent]
            if not isinstance(section, dict):
                raise RecipeError(f"--{key}: {parent!r} holds a single value, it has no field {last!r}.")
        section[last] = read_value(key, value) if isinstance(value, str) else value
    return data
