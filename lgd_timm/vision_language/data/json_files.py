"""Read annotation files of public data sets: typed, with bounded numbers, extra keys passed over."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Annotated, Any, TypeVar

from ...errors import LGDError, RecipeError
from ...utils import typed_json
from ...utils.files import fingerprint, sha256_of
from ...utils.schema import Range, brief, build

Id = Annotated[int, Range(-(2**63), 2**63 - 1)]

T = TypeVar("T")


def read_json(path: Path, *, expected: str) -> Any:
    """Read a JSON file; `expected` describes its layout in messages. Raises: LGDError where it is none."""
    try:
        return typed_json.read_json(path, limit=typed_json.LARGEST_ANNOTATIONS)
    except (OSError, typed_json.JSONError) as error:
        raise wrong_file(path, f"can't be read as JSON ({brief(str(error))})", expected=expected) from error


def read_list(path: Path, content: Any, key: str, kind: type[T], *, expected: str) -> list[T]:
    """Build the entries of a list in a JSON object.

    Args:
        path: the file, for messages.
        content: what `read_json` read.
        key: of the list, which may not be empty.
        kind: dataclass of an entry; keys that it does not have are passed over.
        expected: the layout, for messages.

    Raises:
        LGDError: there is no such list, or an entry lacks a field, has one of a wrong type or out of its range.
    """
    entries = content.get(key) if isinstance(content, Mapping) else None
    if not isinstance(entries, list) or not entries:
        raise wrong_file(path, f"has no list of {key}", expected=expected)
    known = [field.name for field in fields(kind)]  # type: ignore[arg-type]
    built = []
    for place, entry in enumerate(entries):
        data = {name: entry[name] for name in known if name in entry} if isinstance(entry, Mapping) else entry
        try:
            built.append(build(kind, data, where=f"{key}[{place}]"))
        except RecipeError as error:
            raise wrong_file(path, f"is malformed: {str(error).rstrip('.')}", expected=expected) from error
    return built


def check_unique(path: Path, ids: Sequence[Any], what: str, *, expected: str) -> None:
    """Refuse ids that stand twice. Raises: LGDError."""
    if len(set(ids)) != len(ids):
        raise wrong_file(path, f"gives the same {what} twice", expected=expected)


def check_known(path: Path, ids: Iterable[Any], known: Mapping[Any, Any], what: str, *, expected: str) -> None:
    """Refuse references to what is not there. Raises: LGDError."""
    if (stray := next((one for one in ids if one not in known), None)) is not None:
        raise wrong_file(path, f"refers to the unknown {what} {stray}", expected=expected)


def fingerprint_of(kind: str, files: Sequence[Path], images: Iterable[Path]) -> str:
    """Hash annotation files by their content, and images by their names and sizes.

    Args:
        kind: of the data set.
        files: annotations.
        images: in the order of the samples.

    Raises:
        LGDError: a file can't be read.
    """
    try:
        return fingerprint(kind, [sha256_of(path) for path in files], [(p.name, p.stat().st_size) for p in images])
    except OSError as error:
        raise LGDError(f"{error.filename} can't be read ({error.strerror}). Copy it again.") from error


def wrong_file(path: Path, reason: str, *, expected: str) -> LGDError:
    """Build the error for a file of another layout."""
    return LGDError(f"{path} {reason}. Expected: {expected}.")
