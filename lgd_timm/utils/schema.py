"""Dataclasses from plain data, checked key by key: unknown fields, types, ranges. And plain data from dataclasses.

`build(hint, data, where=...)` serves any annotation made of dataclasses, unions, Literal, tuple, list, dict and scalars. A union of
dataclasses that each have a class variable `kind` is chosen by the data's key `kind`, and `to_plain` writes it back.
"""

from __future__ import annotations

import difflib
import math
import re
import reprlib
import types
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, fields, is_dataclass
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from ..errors import RecipeError

# Least and greatest value of the fields that have one, by their last name.
RANGES: dict[str, tuple[float, float]] = {
    **dict.fromkeys(
        ("batch_size", "epochs", "image_size", "checkpoint_every", "evaluate_every", "log_every"), (1, math.inf)
    ),
    **dict.fromkeys(("lr_base_size", "accumulate", "keep_checkpoints"), (1, math.inf)),
    **dict.fromkeys(
        ("workers", "lr", "lr_base", "weight_decay", "clip_grad", "warmup_epochs", "max_skipped", "checkpoint_minutes"),
        (0, math.inf),
    ),
    **dict.fromkeys(("max_bad", "momentum", "ema_decay", "drop_rate", "drop_path_rate"), (0, 1)),
    "seed": (0, 2**63 - 1),
}

# Fields that become parts of the names of files and folders.
FILE_NAMES = ("name", "split", "data.train_split", "data.val_split")

_brief = reprlib.Repr()  # values in messages, whatever their size and depth
_brief.maxstring = _brief.maxother = _brief.maxlong = SHOWN = 200


def brief(value: Any) -> str:
    """A value for a message: its repr, shortened where it is long."""
    text = _brief.repr(value)
    return text if len(text) <= SHOWN else f"{text[: SHOWN - 3]}..."


def build(hint: Any, data: Any, *, where: str) -> Any:
    """A value of the annotated type. Raises: RecipeError that names the field, which `where` leads to."""
    return _build(hint, data, where=where) if is_dataclass(hint) else _value(hint, data, where=where)


def to_plain(value: Any) -> Any:
    """Dataclasses as mappings, with their `kind`, and tuples as lists; `build` of it is the same value again."""
    if is_dataclass(value) and not isinstance(value, type):
        kind = {"kind": value.kind} if hasattr(value, "kind") else {}
        return {**kind, **{f.name: to_plain(getattr(value, f.name)) for f in fields(value)}}
    if isinstance(value, dict):
        return {key: to_plain(v) for key, v in value.items()}
    return [to_plain(v) for v in value] if isinstance(value, (list, tuple)) else value


def values(hints: Mapping[str, Any], data: Mapping[Any, Any], *, where: str) -> dict[str, Any]:
    """The known fields of a mapping, each of its type and in its range. Raises: RecipeError."""
    for key in data:
        if key not in hints:
            near = difflib.get_close_matches(str(key), hints, n=1)
            hint = f"did you mean {_dotted(where, near[0])!r}?" if near else f"known: {', '.join(hints)}."
            raise RecipeError(f"Unknown recipe field {brief(_dotted(where, str(key)))}; {hint}")
    checked = {key: _value(hints[key], value, where=_dotted(where, key)) for key, value in data.items()}
    for key, value in checked.items():
        low, high = RANGES.get(key, (-math.inf, math.inf))
        if isinstance(value, (int, float)) and not low <= value <= high:
            raise RecipeError(f"{_dotted(where, key)} = {value} is outside [{low:g}, {high:g}].")
        if (
            _dotted(where, key) in FILE_NAMES
            and isinstance(value, str)
            and not re.fullmatch(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,99}", value)
        ):
            raise RecipeError(
                f"{_dotted(where, key)} = {brief(value)} becomes part of file names. "
                "Use at most 100 letters, digits, '_', '-' and '.', not beginning with '.'."
            )
    return checked


def _build(kind: Any, data: Any, *, where: str) -> Any:
    if not isinstance(data, Mapping):
        raise RecipeError(f"{where or 'The recipe'} must be a mapping of fields, not {brief(data)}.")
    hints = get_type_hints(kind)
    given = values({f.name: hints[f.name] for f in fields(kind)}, data, where=where)
    if missing := [
        f.name for f in fields(kind) if f.name not in given and f.default is MISSING and f.default_factory is MISSING
    ]:
        raise RecipeError(f"{where or 'The recipe'} lacks {', '.join(_dotted(where, name) for name in missing)}.")
    return kind(**given)


def _value(hint: Any, value: Any, *, where: str) -> Any:
    if get_origin(hint) in (Union, types.UnionType):
        return _union(get_args(hint), value, where=where)
    if is_dataclass(hint):
        return _build(hint, value, where=where)
    if get_origin(hint) is not None:
        return _container(hint, value, where=where)
    return _scalar(hint, value, where=where)


def _container(hint: Any, value: Any, *, where: str) -> Any:
    origin, options = get_origin(hint), get_args(hint)
    sequence = isinstance(value, Sequence) and not isinstance(value, str)
    if origin is Literal:
        if value not in options:
            raise RecipeError(f"{where} = {brief(value)}; choose one of {', '.join(map(str, options))}.")
        return value
    if origin is tuple and sequence and len(value) == len(options):
        return tuple(_value(option, v, where=where) for option, v in zip(options, value, strict=True))
    if origin is list and sequence:
        return [_value(options[0], v, where=where) for v in value]
    if origin is dict and isinstance(value, Mapping):
        return dict(value)
    raise RecipeError(f"{where} = {brief(value)} is no {_spell(hint)}.")


def _scalar(hint: Any, value: Any, *, where: str) -> Any:
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
