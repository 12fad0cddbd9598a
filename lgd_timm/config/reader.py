"""Where a recipe lies: a YAML file, a folder that carries its recipe, or a published folder on the Hub (hub://ORG/NAME[@REVISION])."""

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
from .recipe import DataRecipe, Recipe, TeachRecipe, VocabularyRecipe
from .sandbox import check_reach
from .strict_yaml import parse_yaml, read_yaml

_HUB = re.compile(r"hub://([A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*(@[^\s@]+)?)", re.ASCII)


def is_hub(source: str | Path) -> bool:
    return str(source).startswith("hub:")


def local_source(source: str | Path) -> Path:
    """A `hub://` source as the folder that was pulled, whole and verified; any other as the path that it is.

    Raises: RecipeError for a malformed one, and as `hub.pull`.
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
    """The YAML file of a recipe, and whether it travelled: it did where it came in a folder. Raises: RecipeError, and as `hub.pull`."""
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
            + (f" There are: {near}." if near else " Give a YAML file, a published folder or hub://ORG/NAME.")
        )
    return path, False


def read_recipe(source: str | Path, *, overrides: Mapping[str, Any] | None = None) -> Recipe:
    """Read a YAML recipe and apply dotted overrides such as {"optimizer.lr": 0.1}.

    Raises: RecipeError for a missing or malformed file, unknown keys, values of a wrong type, and paths that a recipe which
    travelled may not name; WeightsError for a hub:// source that can't be had.
    """
    path, travelled = recipe_file(source)
    data = _overridden(_read_mapping(path), overrides)
    data.setdefault("name", path.stem)
    recipe = recipe_from_dict(data)
    if travelled:
        check_reach(recipe.to_dict(), own=overrides or ())
    return recipe


def read_teach_recipe(source: str | Path, *, overrides: Mapping[str, Any] | None = None) -> TeachRecipe:
    """The same for `lgd-timm teach`. A recipe for `distill` will do too, if it says who teaches (or taught) on which views.

    Overrides are those of `teach` in any case: `shards`, `split`, `views.count`. Raises: as `read_recipe`.
    """
    path, travelled = recipe_file(source)
    data = _read_mapping(path)
    if "data" in data:
        data = _teach_fields(recipe_from_dict({"name": "lesson", **data}), own=overrides or {})
    data = _overridden(data, overrides)
    if isinstance(data.get("teacher"), dict) and data["teacher"].get("kind") == Stored.kind:
        raise RecipeError(
            f"{path}: teacher.kind is 'stored', which has taught already, and nothing says who did. Give conse or open_clip, "
            "or say who taught in teacher.taught_by."
        )
    recipe: TeachRecipe = build(TeachRecipe, data, where="")
    if travelled:
        check_reach(recipe.to_dict(), own=overrides or ())
    return recipe


class TeacherQuery(NamedTuple):
    """A recipe's teacher, the names that it is asked about if there are any, and how much of an image it sees (`data.val_crop`)."""

    teacher: TeacherSpec
    vocabulary: Vocabulary | None
    crop: float


def read_teacher(source: str | Path) -> TeacherQuery:
    """The teacher of a recipe of either sort, as it is evaluated. Raises: as `read_recipe`; VocabularyError."""
    path, travelled = recipe_file(source)
    data = _read_mapping(path)
    teacher: TeacherSpec = build(TeacherSpec, data.get("teacher"), where="teacher")
    names: VocabularyRecipe = build(VocabularyRecipe, data.get("vocabulary", {}), where="vocabulary")
    if travelled:
        check_reach({"teacher": to_plain(teacher), "vocabulary": to_plain(names)})
    data_recipe: DataRecipe = build(DataRecipe, data.get("data", {}), where="data")
    return TeacherQuery(
        teacher,
        load_vocabulary(names.source, templates=names.templates) if names.source else None,
        crop=data_recipe.val_crop,
    )


def read_mapping(source: str | Path, *, overrides: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """The fields of a YAML recipe of any sort, unchecked, with overrides; its `name` is the file's if it has none. Raises: RecipeError."""
    path, _ = recipe_file(source)
    data = _overridden(_read_mapping(path), overrides)
    data.setdefault("name", path.stem)
    return data


def recipe_from_dict(data: Mapping[str, Any]) -> Recipe:
    """Check and build. Raises: RecipeError naming the field."""
    recipe: Recipe = build(Recipe, data, where="")
    return replace(recipe, objective=check_objective(recipe.objective))


def read_value(key: str, text: str) -> Any:
    """What a word on the command line means, `--key text`: YAML, so that lists and numbers can be given. Raises: RecipeError."""
    return parse_yaml(text, source=f"--{key} {text[:80]!r}")


def _teach_fields(recipe: Recipe, *, own: Mapping[str, Any]) -> dict[str, Any]:
    """A recipe for `distill` as one for `teach`, which makes the embeddings that the former names.

    Not into the same folder, however, where the user asks for another teacher, other views or images: those find their own.
    """
    data, teacher = recipe.to_dict(), recipe.teacher
    lesson = {"teacher": data["teacher"], "shards": recipe.data.shards, "split": recipe.data.train_split}
    lesson |= {"workers": recipe.data.workers, "max_bad": recipe.data.max_bad, "device": recipe.machine.device}
    views = teacher.taught_on if isinstance(teacher, Stored) and teacher.target == "image" else recipe.views
    if views is not None:
        lesson["views"] = to_plain(views)
    if isinstance(teacher, Stored) and teacher.taught_by is not None:
        lesson |= {"teacher": data["teacher"]["taught_by"], "dtype": teacher.dtype or "float16"}
        if not any(key.partition(".")[0] in ("teacher", "views", "shards", "dtype") for key in own):
            lesson["out"] = teacher.embeddings
    return lesson


def _read_mapping(path: Path) -> dict[str, Any]:
    data = read_yaml(path)
    if not isinstance(data, dict):
        raise RecipeError(f"{path} holds {type(data).__name__}, not a mapping of recipe fields.")
    return data


def _overridden(data: dict[str, Any], overrides: Mapping[str, Any] | None) -> dict[str, Any]:
    """The data with dotted fields set, in place."""
    for key, value in (overrides or {}).items():
        *parents, last = key.split(".")
        place = data
        for parent in parents:
            place = place.setdefault(parent, {})
            if not isinstance(place, dict):
                raise RecipeError(f"--{key}: {parent!r} holds a single value, it has no field {last!r}.")
        place[last] = read_value(key, value) if isinstance(value, str) else value
    return data
