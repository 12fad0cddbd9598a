"""What tells groups of runs apart, in few words."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import PurePath
from typing import Any

from ...students.entrypoints import short_name

Facts = Mapping[str, Any]

# What a reader asks first comes first; other fields follow in the recipe's order.
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
    """For each group, its label and every field in which it differs from the others, in words.

    A label takes as many of these fields, the most telling first, as it needs to be the group's alone.
    """
    flat = [dict(_flatten(group)) for group in groups]
    keys = list(dict.fromkeys(key for facts in flat for key in facts))
    differing = [key for key in keys if len({repr(facts.get(key)) for facts in flat}) > 1]
    ordered = [key for key in _FIRST if key in differing] + [key for key in differing if key not in _FIRST]
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
    """`lgd (paper)`: the objective's kind, and its preset where one was named that is not called the same."""
    kind, preset = settings.get("kind") or "lgd", settings.get("preset")
    return f"{kind} ({preset})" if preset and preset != kind else str(kind)


def _base(facts: Facts) -> str:
    """The label of a group that stands alone, or has nothing that the others lack."""
    return f"{short_name(facts['student.model'])}, {objective_name({'kind': facts['objective.kind'], 'preset': facts['objective.preset']})}"


def _numbered(labels: Sequence[str]) -> list[str]:
    """The same labels, those that are alike with a number that no other has."""
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
    """One field in words; empty where the group does not have it."""
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
    return f"{key.rpartition('.')[2].replace('_', ' ')} {_shown(PurePath(value).name if isinstance(value, str) else value)}"


def _shown(value: Any) -> str:
    text = ", ".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 1]}…"
