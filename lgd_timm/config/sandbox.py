"""Keep the paths of an untrusted recipe within the working directory.

A YAML file that the user names is the user's own and may name any path. One that came with a published folder or over
hub:// is untrusted, as anybody may have written it. Each path in it must be relative, without `..`, and lie in the
working directory with all links followed. An address of shards (`https://...`) is refused too, since it would make
this machine ask any server for anything. What the user says on the command line is the user's own again, and free.

`PATHS` lists all fields that can hold a path; a path is always the end of the value (`local-dir:PATH`, `coco:PATH`).
"""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

from ..data.paths import is_address
from ..data.vocabulary import names_file, templates_file
from ..errors import RecipeError
from ..utils.schema import brief


def _whole(value: str) -> str:
    return value


def _folder(value: str) -> str | None:
    """The path of a model `local-dir:PATH`; any other model is a name, as `builtin:` and `hf-hub:` are followed by."""
    schema, colon, rest = value.partition(":")
    return rest if colon and schema not in ("hf-hub", "builtin") else None


def _weights_file(value: str) -> str | None:
    return value if "/" in value or "\\" in value or value.endswith(".safetensors") else None


def _encoder(value: str) -> str | None:
    """A folder, or a name on the Hub that a folder could have too. A package's folder is checked by the teacher."""
    return None if value.startswith("package:") else value


_TEACHER: dict[str, Callable[[str], str | None]] = {
    "embeddings": _whole,  # stored
    "classifier": _folder,  # conse
    "encoder": _encoder,
    "model": _folder,  # open_clip
    "pretrained": _weights_file,
}

# Field of a recipe, for `distill` or for `teach` -> the path that its value ends with, or None.
PATHS: dict[str, Callable[[str], str | None]] = {
    "data.shards": _whole,
    "data.val_vocabulary": names_file,
    "vocabulary.source": names_file,
    "vocabulary.templates": templates_file,
    "student.model": _folder,
    **{f"teacher.{field}": find for field, find in _TEACHER.items()},
    **{f"teacher.taught_by.{field}": find for field, find in _TEACHER.items() if field != "embeddings"},
    "shards": _whole,
    "out": _whole,
}


def check_reach(recipe: Mapping[str, Any], *, own: Collection[str] = ()) -> None:
    """Check the paths of an untrusted recipe.

    Args:
        recipe: the recipe as plain data.
        own: dotted fields that the user has set, which are not checked.

    Raises:
        RecipeError: a path leaves the working directory, or is an address.
    """
    for field, value, path in _paths(recipe):
        if any(field == key or field.startswith(f"{key}.") for key in own):
            continue
        if reason := _beyond(path):
            yours = value[: len(value) - len(path)] + (
                "PATH, or this address if you trust it" if is_address(path) else "PATH"
            )
            raise RecipeError(
                f"{field} = {brief(value)} {reason}, "
                "and a recipe that came in a folder stays in the working directory. "
                f"Say where yours is (--{field} {yours}), or move the data here and give a relative path."
            )


def relative(recipe: Mapping[str, Any]) -> dict[str, Any]:
    """Return a recipe with absolute paths into the working directory made relative, so that it can be published."""
    changed: dict[str, Any] = dict(recipe)
    for field, value, path in _paths(recipe):
        if os.path.isabs(path) and (inside := Path(os.path.normpath(path))).is_relative_to(Path.cwd()):
            prefix = value[: len(value) - len(path)]
            changed = _with(changed, field.split("."), prefix + inside.relative_to(Path.cwd()).as_posix())
    return changed


def _paths(recipe: Mapping[str, Any]) -> Iterator[tuple[str, str, str]]:
    """Yield field, value and path of every path in a recipe."""
    for field, find in PATHS.items():
        value: Any = recipe
        for part in field.split("."):
            value = value.get(part) if isinstance(value, Mapping) else None
        if isinstance(value, str) and (path := find(value)) is not None:
            yield field, value, path


def _beyond(path: str) -> str | None:
    """Why a path is not within the working directory; None if it is."""
    if is_address(path):
        return "is an address"
    if PurePosixPath(path).anchor or PureWindowsPath(path).anchor:
        return "is an absolute path"
    if ".." in PureWindowsPath(path).parts:  # which takes both / and \ for separators
        return "climbs out with '..'"
    here, there = os.path.realpath("."), os.path.realpath(path)
    return None if Path(there).is_relative_to(here) else f"is a link to {there}"


def _with(data: Mapping[str, Any], parts: list[str], value: str) -> dict[str, Any]:
    first, *rest = parts
    return {**data, first: _with(data[first], rest, value) if rest else value}
