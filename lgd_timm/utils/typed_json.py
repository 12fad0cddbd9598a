"""Read JSON of others or of earlier runs: of bounded size, and of the types that its reader expects.

The types are annotations that `schema.build` knows, mostly a `TypedDict`, whose further keys are kept unchecked:

    class Index(TypedDict):
        splits: dict[str, Split]

    class IndexWithNames(Index, total=False):
        class_names: list[str]

    index = read_json(path, IndexWithNames)
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, is_typeddict

from ..errors import RecipeError
from .lfs import POINTER, POINTER_REASON
from .schema import build

LARGEST_JSON = 1 << 26  # bytes
LARGEST_ANNOTATIONS = 1 << 32  # bytes of a COCO or LVIS file: LVIS has 1.2 GB


class JSONError(ValueError):
    """A file that is no JSON, or holds other types than expected. The text is the reason, without the file's name."""


def read_json(path: Path, kind: Any = Any, *, limit: int = LARGEST_JSON) -> Any:
    """Read a JSON file.

    Args:
        path: the file.
        kind: annotation of what it holds.
        limit: most bytes that it may have.

    Returns:
        Its content.

    Raises:
        JSONError: it is no JSON, too large, or of other types.
        OSError: it can't be read.
    """
    with path.open("rb") as file:  # no more than is allowed, whatever the file is
        return parse_json(file.read(limit + 1), kind, limit=limit)


def parse_json(content: bytes | str, kind: Any = Any, *, limit: int = LARGEST_JSON) -> Any:
    """Parse JSON. Arguments and errors as of `read_json`; `content` is UTF-8, a BOM is passed over."""
    if len(content) > limit:
        raise JSONError(f"it has more than {limit} bytes")
    data = content.encode("utf-8", "surrogatepass") if isinstance(content, str) else content
    if data.startswith(POINTER):
        raise JSONError(POINTER_REASON)
    if not data.strip():
        raise JSONError("it is empty")
    try:
        value = json.loads(data.decode("utf-8-sig"))
        if kind is dict and not isinstance(value, dict):
            raise JSONError(f"it holds a {type(value).__name__}, not an object")
        return value if kind in (Any, dict) else build(kind, value, where="" if is_typeddict(kind) else "content")
    except JSONError:
        raise
    except RecipeError as error:  # the schema's words, which are those of recipes
        said = str(error).rstrip(".")
        raise JSONError(said if said.isprintable() else ascii(said)[1:-1]) from None
    except (ValueError, RecursionError) as error:  # a RecursionError's text is of no use to who reads it
        reason = "nested too deep" if isinstance(error, RecursionError) else ascii(str(error))[1:-1][:200]
        raise JSONError(f"no JSON: {reason}") from None
