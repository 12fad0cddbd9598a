"""Build dataclasses from plain data, checking names, types and ranges of fields, and plain data from dataclasses.

`build(hint, data, where=...)` takes any annotation made of dataclasses, TypedDicts, unions, Literal, tuple, list, dict
and scalars. A TypedDict's further keys are kept as they are, a dataclass has none. In a union of dataclasses that each
have a class variable `kind`, the data's key `kind` chooses, and `to_plain` writes it.

What holds for one field stands beside it, in `Annotated`:

    epochs: Annotated[int, Range(1)] = 90            its least value; `Count` is short for this type
    split: Annotated[str, FileName()] = "train"      it becomes part of a file's name; `Name` is short for this type
    machine: Annotated[MachineRecipe, Key("run")]    its key in plain data, where that is not the field's name
    workers: Annotated[Size, MACHINE] = 0            a mark; `marked(kind, MACHINE)` lists the fields that have it
"""

from __future__ import annotations

import difflib
import math
import re
import reprlib
import types
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import MISSING, Field, dataclass, fields, is_dataclass
from functools import cache
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints, is_typeddict

from ..errors import RecipeError


@dataclass(frozen=True)
class Range:
    """Least and greatest number that a field may hold."""

    low: float
    high: float = math.inf

    def check(self, value: Any, *, where: str) -> None:
        """Raises: RecipeError for a number outside; what is no number passes."""
        if isinstance(value, (int, float)) and not self.low <= value <= self.high:
            raise RecipeError(f"{where} = {brief(value)} is outside [{_number(self.low)}, {_number(self.high)}].")


@dataclass(frozen=True)
class FileName:
    """A text that becomes part of the names of files and folders."""

    def check(self, value: Any, *, where: str) -> None:
        """Raises: RecipeError for a text that is no safe file name; what is no text passes."""
        if isinstance(value, str) and not re.fullmatch(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,99}", value):
            raise RecipeError(
                f"{where} = {brief(value)} becomes part of file names. "
                "Use at most 100 letters, digits, '_', '-' and '.', not beginning with '.'."
            )


@dataclass(frozen=True)
class Key:
    """The key of a field in plain data and in messages."""

    name: str


@dataclass(frozen=True)
class Mark:
    """A property of a field; `marked` finds the fields that have it."""

    meaning: str


MACHINE = Mark("the machine's, not the run's: it decides no number but for rounding")
OMITTED = Mark("left out of plain data where it has its default")

# Greatest values that a machine is asked for: what is beyond them is a slip, and would take its memory or processes.
MOST_WORKERS = 1024  # processes that load images
LARGEST_BATCH = 1 << 20  # images
SMALLEST_SIDE, LARGEST_SIDE = 2, 1 << 12  # pixels of a view; torch (2.14) fails to resize bytes to one pixel
SMALLEST_STD = 1e-3  # of pixels in 0..1, which are divided by it
MOST_VIEWS = 100_000  # of an image
MOST_DIMENSIONS = 1 << 16  # of an embedding
LARGEST_COUNT = (1 << 31) - 1  # of epochs, steps and what else is counted
LARGEST_RATE = 1e9  # of learning rates, weights of a loss, penalties

Count = Annotated[int, Range(1, LARGEST_COUNT)]
Size = Annotated[int, Range(0, LARGEST_COUNT)]
Workers = Annotated[int, Range(0, MOST_WORKERS)]
BatchSize = Annotated[int, Range(1, LARGEST_BATCH)]
Pixels = Annotated[int, Range(SMALLEST_SIDE, LARGEST_SIDE)]
Rate = Annotated[float, Range(0, LARGEST_RATE)]
Temperature = Annotated[float, Range(1e-6, 1e6)]
Share = Annotated[float, Range(0, 1)]
SomeShare = Annotated[float, Range(1e-9, 1)]  # not nothing
Port = Annotated[int, Range(0, 65535)]
Coordinate = Annotated[float, Range(-1e6, 1e6)]  # pixels; torchvision's RoIAlign crashes at infinite ones
Width = Annotated[int, Range(1, 1 << 16)]  # numbers of a layer's output
Layers = Annotated[int, Range(1, 1000)]
Tokens = Annotated[int, Range(0, 1 << 13)]  # of a text
Words = Annotated[int, Range(1, 1 << 22)]  # of a vocabulary
GridSide = Annotated[int, Range(1, 100)]  # cells
RegionCount = Annotated[int, Range(1, 10_000)]  # of an image
SHORT_SIDE, QUALITY = Range(16, 16384), Range(1, 100)  # of JPEGs that are encoded: pixels, and libjpeg's scale
ShortSide = Annotated[int, SHORT_SIDE]
Quality = Annotated[int, QUALITY]
Seed = Annotated[int, Range(0, 2**63 - 1)]
Name = Annotated[str, FileName()]

_brief = reprlib.Repr()  # values in messages, whatever their size and depth
_brief.maxstring = _brief.maxother = _brief.maxlong = SHOWN = 200


def _number(bound: float) -> str:
    return str(bound) if isinstance(bound, int) else f"{bound:g}"


def brief(value: Any) -> str:
    """A value for a message: its repr, shortened where it is long."""
    text = _brief.repr(value)
    return text if len(text) <= SHOWN else f"{text[: SHOWN - 3]}..."


def build(hint: Any, data: Any, *, where: str) -> Any:
    """Build a value of an annotated type.

    Args:
        hint: the annotation.
        data: plain data.
        where: dotted name of the field that holds the value, "" for a whole recipe; messages name it.

    Raises:
        RecipeError: a field is unknown or missing, or its value is of a wrong type or out of its range.
    """
    return _build(hint, data, where=where) if is_dataclass(hint) else _value(hint, data, where=where)


def to_plain(value: Any) -> Any:
    """Turn dataclasses into mappings, with their `kind`, and tuples into lists; `build` makes the value of it again."""
    if is_dataclass(value) and not isinstance(value, type):
        kind = {"kind": value.kind} if hasattr(value, "kind") else {}
        return {**kind, **{key: to_plain(getattr(value, f.name)) for key, f in _written(value)}}
    if isinstance(value, dict):
        return {key: to_plain(v) for key, v in value.items()}
    return [to_plain(v) for v in value] if isinstance(value, (list, tuple)) else value


def marked(kind: Any, mark: Mark) -> tuple[str, ...]:
    """Return the keys in plain data of a dataclass's fields that have a mark."""
    return tuple(key for key, (_, hint) in _fields(kind).items() if mark in _notes(hint))


def _written(value: Any) -> Iterator[tuple[str, Field[Any]]]:
    """Fields of a dataclass that plain data has, by their keys."""
    kind: Any = type(value)
    for key, (field, hint) in _fields(kind).items():
        if OMITTED not in _notes(hint) or getattr(value, field.name) != field.default:
            yield key, field


@cache
def _fields(kind: Any) -> Mapping[str, tuple[Field[Any], Any]]:
    """A dataclass's fields with their annotations, by their keys in plain data."""
    hints = get_type_hints(kind, include_extras=True)
    return {_key(f.name, hints[f.name]): (f, hints[f.name]) for f in fields(kind)}


def _key(name: str, hint: Any) -> str:
    return next((note.name for note in _notes(hint) if isinstance(note, Key)), name)


def _notes(hint: Any) -> tuple[Any, ...]:
    """What `Annotated` says beside a type."""
    return get_args(hint)[1:] if get_origin(hint) is Annotated else ()


def values(hints: Mapping[str, Any], data: Mapping[Any, Any], *, where: str) -> dict[str, Any]:
    """Check a mapping's values.

    Args:
        hints: the annotation of each known key.
        data: the mapping.
        where: dotted name of the field that holds it, "" for a whole recipe.

    Returns:
        Each value, built.

    Raises:
        RecipeError: a key is unknown, or a value is of a wrong type or out of its range.
    """
    for key in data:
        if key not in hints:
            near = difflib.get_close_matches(str(key), hints, n=1)
            hint = f"did you mean {_dotted(where, near[0])!r}?" if near else f"known: {', '.join(hints)}."
            raise RecipeError(f"Unknown recipe field {brief(_dotted(where, str(key)))}; {hint}")
    return {key: _value(hints[key], value, where=_dotted(where, key)) for key, value in data.items()}


def _build(kind: Any, data: Any, *, where: str) -> Any:
    if not isinstance(data, Mapping):
        raise RecipeError(f"{where or 'The recipe'} must be a mapping of fields, not {brief(data)}.")
    known = _fields(kind)
    given = values({key: hint for key, (_, hint) in known.items()}, data, where=where)
    if missing := [
        key
        for key, (f, _) in known.items()
        if key not in given and f.default is MISSING and f.default_factory is MISSING
    ]:
        raise RecipeError(f"{where or 'The recipe'} lacks {', '.join(_dotted(where, key) for key in missing)}.")
    return kind(**{known[key][0].name: value for key, value in given.items()})


def _value(hint: Any, value: Any, *, where: str) -> Any:
    if get_origin(hint) is Annotated:
        return _noted(hint, value, where=where)
    if get_origin(hint) in (Union, types.UnionType):
        return _union(get_args(hint), value, where=where)
    if is_dataclass(hint) or is_typeddict(hint):
        return (_entries if is_typeddict(hint) else _build)(hint, value, where=where)
    if get_origin(hint) is not None:
        return _container(hint, value, where=where)
    return _scalar(hint, value, where=where)


def _entries(hint: Any, value: Any, *, where: str) -> dict[str, Any]:
    """A TypedDict: its keys are checked, further ones are kept."""
    if not isinstance(value, Mapping):
        raise RecipeError(f"{where or 'the content'} must be an object, not {brief(value)}.")
    if missing := sorted(key for key in hint.__required_keys__ if key not in value):
        raise RecipeError(f"{where or 'the content'} lacks {', '.join(missing)}.")
    hints = _entry_hints(hint)
    return {k: _value(hints[k], v, where=_dotted(where, k)) if k in hints else v for k, v in value.items()}


@cache
def _entry_hints(hint: Any) -> Mapping[str, Any]:
    """The annotation of each key of a TypedDict."""
    return get_type_hints(hint, include_extras=True)


def _noted(hint: Any, value: Any, *, where: str) -> Any:
    """A value of an annotated type, for which its checks hold."""
    built = _value(get_args(hint)[0], value, where=where)
    for note in _notes(hint):
        if isinstance(note, Range | FileName):
            note.check(built, where=where)
    return built


def _container(hint: Any, value: Any, *, where: str) -> Any:
    origin, options = get_origin(hint), get_args(hint)
    sequence = isinstance(value, Sequence) and not isinstance(value, str)
    if origin is Literal:
        if (type(value), value) not in [(type(option), option) for option in options]:  # 1 == True
            raise RecipeError(f"{where} = {brief(value)}; choose one of {', '.join(map(str, options))}.")
        return value
    if origin is tuple and sequence and len(value) == len(options):
        return tuple(_value(option, v, where=where) for option, v in zip(options, value, strict=True))
    if origin is list and sequence:
        return [_value(options[0], v, where=where) for v in value]
    if origin is dict and isinstance(value, Mapping):
        return {key: _value(options[1], v, where=_dotted(where, str(key))) for key, v in value.items()}
    raise RecipeError(f"{where} = {brief(value)} is no {_spell(hint)}.")


def _scalar(hint: Any, value: Any, *, where: str) -> Any:
    if hint is Any:
        return value
    if hint is float and not isinstance(value, bool):
        try:
            number = float(value)  # YAML 1.1 reads 1e-4 as text, and 1 as an integer
        except (TypeError, ValueError, OverflowError) as error:
            raise RecipeError(f"{where} = {brief(value)} is no number.") from error
        if not math.isfinite(number):
            raise RecipeError(f"{where} = {number} is not finite. Give a number.")
        return number
    if isinstance(value, hint) and not (hint is int and isinstance(value, bool)):
        return value
    raise RecipeError(f"{where} = {brief(value)} is no {_spell(hint)}.")


def _union(options: Sequence[Any], value: Any, *, where: str) -> Any:
    if value is None and type(None) in options:
        return None
    rest = [option for option in options if option is not type(None)]
    if all(hasattr(option, "kind") for option in rest):
        return _tagged({option.kind: option for option in rest}, value, where=where)
    for option in rest[:-1]:
        try:
            return _value(option, value, where=where)
        except RecipeError:
            continue  # the last option's message is the one to show
    return _value(rest[-1], value, where=where)


def _tagged(kinds: Mapping[str, Any], value: Any, *, where: str) -> Any:
    given = value.get("kind") if isinstance(value, Mapping) else value
    if not isinstance(value, Mapping) or not isinstance(given, str) or given not in kinds:
        raise RecipeError(f"{where}.kind = {brief(given)}; choose one of {', '.join(kinds)}.")
    return _build(kinds[given], {key: v for key, v in value.items() if key != "kind"}, where=where)


def _dotted(where: str, key: str) -> str:
    return f"{where}.{key}" if where else key


def _spell(hint: Any) -> str:
    return getattr(hint, "__name__", str(hint)) if get_origin(hint) is None else str(hint)
