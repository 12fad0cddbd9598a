"""Label groups of runs by the settings in which they differ."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import PurePath
from typing import Any

from ...students.entrypoints import short_name

Facts = Mapping[str, Any]

# Fields that come first in a label; others follow in the recipe's order.
_FIRST = (
    "student.model",
    "objective.kind",
    "objective.preset",
    "vocabulary.source",
    "data.shards",
    "schedule.epochs",
    "name",
)
_LONGEST = 40


def label_groups(groups: Sequence[Facts]) -> list[tuple[str, dict[str, str]]]:
    """Label groups.

    Args:
        groups: settings of each group, as nested plain data.

    Returns:
        For each group its label, which takes as many different fields as it needs to be unique, and every field in
        which it differs from another group, in words.
    """
    flat = [dict(_flatten(group)) for group in groups]
    keys = list(dict.fromkeys(key for facts in flat for key in facts))
    different = [key for key in keys if len({repr(facts.get(key)) for facts in flat}) > 1]
    ordered = [key for key in _FIRST if key in different] + [key for key in different if key not in _FIRST]
    labels = [""] * len(flat)
    for key in ordered:
        if len(set(labels)) == len(labels):
            break
        if len({_piece(key, facts) for facts in flat}) > 1:
            labels = [
                ", ".join(part for part in (label, _piece(key, facts)) if part)
                for label, facts in zip(labels, flat, strict=True)
            ]
    differs = [{key: _shown(facts[key]) for key in ordered if facts.get(key) is not None} for facts in flat]
    labels = [label or _base(facts) for label, facts in zip(labels, flat, strict=True)]
    return list(zip(_numbered(labels), differs, strict=True))


def objective_name(settings: Facts) -> str:
    """Name an objective, such as `lgd (paper)`: its kind, and its preset where that has another name."""
    kind, preset = settings.get("kind") or "lgd", settings.get("preset")
    return f"{kind} ({preset})" if preset and preset != kind else str(kind)


def _base(facts: Facts) -> str:
    """Label a group that is the only one, or has nothing that the others lack."""
    objective = {"kind": facts["objective.kind"], "preset": facts["objective.preset"]}
    return f"{short_name(facts['student.model'])}, {objective_name(objective)}"


def _numbered(labels: Sequence[str]) -> list[str]:
    """Make labels unique: equal ones get a number."""
    found: list[str] = []
    for label in labels:
        number, name = 1, label
        while name in found or (number == 1 and labels.count(label) > 1):
            name, number = f"{label} #{number}", number + 1
        found.append(name)
    return found


def _flatten(value: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _flatten(inner, f"{prefix}.{key}" if prefix else str(key))
    else:
        yield prefix, value


def _piece(key: str, facts: Facts) -> str:
    """Write one field in words; empty where the group does not have it."""
    value = facts.get(key)
    if value is None or key == "finished":
        return "not finished" if value is False else ""
    match key:
        case "student.model":
            return short_name(value)
        case "objective.kind" | "objective.preset" | "name":
            return _shown(value)
        case "vocabulary.source":
            return f"{len(value)} names" if isinstance(value, list) and len(value) > 3 else f"names {_shown(value)}"
        case "schedule.epochs":
            return f"{value} epochs"
    shown = _shown(PurePath(value).name if isinstance(value, str) else value)
    return f"{key.rpartition('.')[2].replace('_', ' ')} {shown}"


def _shown(value: Any) -> str:
    text = ", ".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 1]}…"
