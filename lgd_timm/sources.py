"""Where a recipe lies: a YAML file, a folder that carries its recipe, or a published folder on the Hub (hub://ORG/NAME[@REVISION])."""

from __future__ import annotations

import re
from pathlib import Path

from . import hub
from .errors import RecipeError

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
        raise RecipeError(f"{str(source)!r} names no published folder. Write hub://ORG/NAME or hub://ORG/NAME@REVISION.")
    return hub.pull(found.group(1))


def recipe_file(source: str | Path) -> tuple[Path, bool]:
    """The YAML file of a recipe, and whether it travelled: it did where it came in a folder. Raises: RecipeError, and as `hub.pull`."""
    path = local_source(source)
    if path.is_dir():  # published folders and runs carry their recipe
        if not (path / "recipe.yaml").is_file():
            raise RecipeError(f"{source} holds no recipe.yaml, so it does not say how it was made. Give a recipe, or another folder.")
        return path / "recipe.yaml", True
    if not path.is_file():
        near = ", ".join(str(p) for p in sorted(path.parent.glob("*.yaml"))) if path.parent.is_dir() else ""
        raise RecipeError(
            f"No recipe at {path}." + (f" There are: {near}." if near else " Give a YAML file, a published folder or hub://ORG/NAME.")
        )
    return path, False
