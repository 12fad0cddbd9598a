"""Find the recipes that come with the package, and write a commented one for one's own data.

`builtin:quickstart` is recipes/quickstart.yaml, wherever the package is installed. Paths in it that begin with recipes/
are those of the package.
"""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import Any

from .. import settings
from ..errors import RecipeError
from ..utils.files import atomic_file

PREFIX = "builtin:"
TEMPLATE = Path(__file__).with_name("template.yaml")


def builtin_recipes() -> dict[str, Path]:
    """List the recipes by name: a file's path below recipes/, without its ending."""
    folder = settings.recipes_folder()
    files = sorted(path for path in folder.rglob("*.yaml") if path.is_file())
    return {path.relative_to(folder).with_suffix("").as_posix(): path for path in files}


def describe(path: Path) -> str:
    """Return the first sentence of a recipe's header, without its full stop."""
    header = []
    for line in path.read_text(encoding="utf-8").splitlines():
        if not line.startswith("# "):
            break
        header.append(line[2:].strip())
    return " ".join(header).partition(". ")[0].partition(": ")[0].rstrip(".:")


def find_builtin(source: str) -> Path | None:
    """Find the file of a builtin recipe.

    Args:
        source: `builtin:NAME`; or NAME, or recipes/NAME.yaml, where that is no file of the user's.

    Returns:
        The file; None where `source` is something else.

    Raises:
        RecipeError: `builtin:NAME` with a name that no recipe has.
    """
    asked = source.startswith(PREFIX)
    if not asked and Path(source).exists():
        return None
    known = builtin_recipes()
    name = source.removeprefix(PREFIX).removeprefix("recipes/").removesuffix(".yaml")
    if name in known:
        return known[name]
    if asked:
        near = difflib.get_close_matches(name, known, n=3) or sorted(known)
        raise RecipeError(
            f"{source!r} is no recipe of this package. There are: {', '.join(near)}. See lgd-timm recipes."
        )
    return None


def is_builtin(path: Path) -> bool:
    """Whether a file is one of the package's recipes."""
    return path.resolve().is_relative_to(settings.recipes_folder().resolve())


def locate_files(data: Any) -> Any:
    """Return a builtin recipe's plain data with its paths that begin with recipes/ as those of the package."""
    if isinstance(data, dict):
        return {key: locate_files(value) for key, value in data.items()}
    if isinstance(data, list):
        return [locate_files(value) for value in data]
    if isinstance(data, str) and data.startswith("recipes/") and not Path(data).exists():
        return str(settings.recipes_folder() / data.removeprefix("recipes/"))
    return data


def write_template(path: str | Path, *, shards: str, names: str) -> Path:
    """Write a commented recipe for one's own images and names.

    Args:
        path: new YAML file.
        shards: folder of the shards.
        names: text file with one name a line.

    Returns:
        The file.

    Raises:
        RecipeError: the file exists.
    """
    path = Path(path)
    if path.exists():
        raise RecipeError(f"{path} exists. Choose another name, or remove it.")
    text = TEMPLATE.read_text(encoding="utf-8").replace("SHARDS", shards).replace("NAMES", names)
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
    return path
